import pytest
import torch

from mask2former.training.class_head import set_classes
from tests.reference import tiny_model

BEFORE = {0: "cat", 1: "dog", 2: "sky"}


def changed(names: list[str]):
    """A model before and after it got other classes, and what `set_classes` says of it."""
    before, model = (tiny_model(num_labels=3, id2label=BEFORE) for _ in range(2))
    with torch.no_grad():
        for one in (before, model):
            one.class_predictor.bias.copy_(torch.arange(4.0) + 1)  # as after training
    return before, model, set_classes(model, dict(enumerate(names)))


@pytest.mark.parametrize(
    ("names", "rows", "kept"),
    [
        (["sky", "cow", "cat"], [2, None, 0, 3], ["sky", "cat"]),
        (["sky", "cat", "dog"], [2, 0, 1, 3], ["sky", "cat", "dog"]),  # another order
        (["dog"], [1, 3], ["dog"]),
        (["a", "b", "c", "d"], [None, None, None, None, 3], []),
    ],
)
def test_classes_of_the_same_name_and_no_object_keep_their_rows(names, rows, kept):
    before, model, said = changed(names)
    assert said == (kept, [name for name in names if name not in kept])
    assert model.config.id2label == dict(enumerate(names))
    assert model.class_predictor.out_features == len(names) + 1
    for label, row in enumerate(rows):
        weight, bias = model.class_predictor.weight[label], model.class_predictor.bias[label]
        if row is None:
            assert not (weight == before.class_predictor.weight[:, None]).all(-1).any()
            assert 0 < weight.abs().max() <= 2 * model.config.init_std and bias == 0
        else:
            assert torch.equal(weight, before.class_predictor.weight[row])
            assert bias == before.class_predictor.bias[row]


def test_a_model_of_other_classes_predicts_what_it_predicted():
    before, model, _ = changed(["sky", "cat", "dog"])
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = before(image).class_queries_logits, model(image).class_queries_logits
    torch.testing.assert_close(other, one[..., [2, 0, 1, 3]])
