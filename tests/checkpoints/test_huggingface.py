import json

import pytest
import torch

from mask2former import DataError, Mask2FormerForUniversalSegmentation
from mask2former.checkpoints.folder import read_weights, save_weights
from mask2former.checkpoints.huggingface import to_huggingface
from tests.reference import tiny_model


@pytest.fixture(params=["swin", "resnet"])
def model(request):
    return tiny_model(request.param)


def test_save_and_load_restores_every_tensor(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    assert not again.training
    assert again.config == model.config
    theirs = again.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_half_precision_files_load_as_float32(model, tmp_path):
    model.half().save_pretrained(tmp_path)
    _, saved = read_weights(tmp_path)
    assert saved["class_predictor.weight"].dtype == torch.float16
    assert Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path).dtype == torch.float32


def test_missing_key_is_named_as_in_the_file(model, tmp_path):
    model.save_pretrained(tmp_path)
    _, weights = read_weights(tmp_path)
    del weights["model.transformer_module.queries_features.weight"]
    save_weights(tmp_path, weights)
    message = r"misses 1 key\(s\), such as 'model\.transformer_module\.queries_features\.weight'"
    with pytest.raises(DataError, match=message):
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)


def test_foreign_key_is_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    _, weights = read_weights(tmp_path)
    save_weights(tmp_path, weights | {"model.extra.weight": torch.zeros(1)})
    with pytest.raises(DataError, match=r"has foreign 1 key\(s\), such as 'model\.extra\.weight'"):
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)


def test_shape_that_contradicts_the_configuration_is_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_queries"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"query_features\.weight with shape"):
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)


def test_weights_of_another_backbone_are_refused(tmp_path):
    tiny_model("swin").save_pretrained(tmp_path)
    tiny_model("resnet").config.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="does not belong"):
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)


def test_index_buffers_of_older_files_are_ignored(tmp_path):
    model = tiny_model("swin")
    model.save_pretrained(tmp_path)
    _, weights = read_weights(tmp_path)
    block = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self."
    save_weights(tmp_path, weights | {block + "relative_position_index": torch.zeros(49, 49)})
    Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)


def test_the_null_class_weight_is_written(model):
    weight = to_huggingface(model.state_dict(), model.config)["criterion.empty_weight"]
    assert weight.tolist() == pytest.approx([1.0] * model.config.num_labels + [0.1])
