import json

import pytest
import torch

from mask2former import DataError, Mask2FormerForUniversalSegmentation, Mask2FormerModel
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


def test_the_bare_model_loads_from_both_kinds_of_folder_and_saves_its_own(model, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    bare = Mask2FormerModel.from_pretrained(tmp_path / "whole")
    bare.save_pretrained(tmp_path / "bare")
    _, names = read_weights(tmp_path / "bare")
    assert not any(name.startswith(("model.", "class_predictor", "criterion")) for name in names)
    again = Mask2FormerModel.from_pretrained(tmp_path / "bare").state_dict()
    assert all(torch.equal(again[k], v) for k, v in model.model.state_dict().items())
    with pytest.raises(DataError, match=r"misses 2 key\(s\), such as 'class_predictor\.bias'"):
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "bare")


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
