import pytest
import torch
from torch.utils import _pytree  # what torch's wrappers use

from mask2former import Mask2FormerForUniversalSegmentationOutput, Mask2FormerModelOutput
from tests.reference import make_labels, tiny_model


def training_output() -> Mask2FormerForUniversalSegmentationOutput:
    masks, classes = make_labels(0, [1, 2], (64, 64), 3)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return tiny_model()(
        pixels, masks, classes, output_hidden_states=True, output_auxiliary_logits=True
    )


def test_absent_fields_are_left_out_and_the_rest_is_in_order():
    output = Mask2FormerForUniversalSegmentationOutput(
        masks_queries_logits=torch.ones(1), class_queries_logits=torch.zeros(1)
    )
    assert list(output.keys()) == ["class_queries_logits", "masks_queries_logits"]
    assert output[1] is output.masks_queries_logits is output["masks_queries_logits"]
    assert output.to_tuple() == (output.class_queries_logits, output.masks_queries_logits)
    assert len(output[:1]) == 1
    with pytest.raises(KeyError):
        output["loss"]


def test_image_sizes_have_a_name_but_no_position():
    output = Mask2FormerForUniversalSegmentationOutput(image_sizes=[(1, 2, 3, 4)])
    assert output.image_sizes is output["image_sizes"]
    assert list(output) == ["image_sizes"]
    assert output.to_tuple() == ()


def test_an_output_is_made_of_a_mapping():
    output = training_output()
    copy = type(output)(dict(output))
    assert type(copy) is type(output)
    assert list(copy) == list(output)
    assert all(copy[name] is output[name] for name in output)
    loss = Mask2FormerModelOutput({"encoder_last_hidden_state": output.loss})
    assert loss.encoder_last_hidden_state is output.loss
    with pytest.raises(TypeError, match="logits"):
        Mask2FormerModelOutput({"logits": output.loss})


@pytest.mark.parametrize("bare", [False, True])
def test_torch_finds_the_tensors_in_an_output(bare):
    output = training_output()
    if bare:
        output = Mask2FormerModelOutput(output.loss, masks_queries_logits=(output.loss,))
    doubled = _pytree.tree_map_only(torch.Tensor, lambda tensor: 2 * tensor, output)
    assert type(doubled) is type(output)
    assert list(doubled) == list(output)
    for found, given in zip(*(_pytree.tree_leaves(o) for o in (doubled, output)), strict=True):
        assert torch.equal(found, 2 * given) if torch.is_tensor(given) else found == given


def test_accelerate_brings_an_output_through_mixed_precision():
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # of another test's run
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    try:
        model = accelerator.prepare(tiny_model().train())
        masks, classes = make_labels(0, [1, 2], (64, 64), 3)
        pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        output = model(pixels, masks, classes)
        assert isinstance(output, Mask2FormerForUniversalSegmentationOutput)
        assert output.class_queries_logits.dtype == torch.float32
        assert torch.equal(output.class_queries_logits.bfloat16(), output.class_queries_logits)
        total = sum(output.loss_dict.values())
        assert output.loss.item() == pytest.approx(total.item(), rel=1e-6)
        assert output.image_sizes == [(64, 64, 64, 64)] * 2
        accelerator.backward(output.loss)
        assert all(p.grad is not None for p in model.parameters())
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
