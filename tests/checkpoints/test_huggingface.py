import json

import pytest
import torch

from mask2former import (
    DataError,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerModel,
    SwinConfig,
)
from mask2former.checkpoints.huggingface import to_huggingface
from mask2former.checkpoints.weights import read_weights, save_weights
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
    message = r"queries_features\.weight has shape \(6, 32\) instead of \(7, 32\)"
    with pytest.raises(DataError, match=message):
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


def strictly_in_transformers(folder, model):
    """transformers' own model from the folder; it holds every tensor of ours and no other."""
    transformers = pytest.importorskip("transformers")
    theirs, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    theirs.save_pretrained(folder / "again")
    expected = to_huggingface(model.state_dict(), model.config)
    _, found = read_weights(folder / "again")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    return theirs


@pytest.mark.parametrize("max_shard_size", ["1GB", "100KB"])
def test_transformers_reads_what_we_write_and_we_what_it_writes(model, tmp_path, max_shard_size):
    model.save_pretrained(tmp_path / "ours", max_shard_size=max_shard_size)
    sharded = (tmp_path / "ours" / "model.safetensors.index.json").exists()
    assert sharded == (max_shard_size == "100KB")
    theirs = strictly_in_transformers(tmp_path / "ours", model)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_size)
    assert sharded == (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    again = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "theirs").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_the_bare_model_travels_to_transformers_and_back(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    model.model.save_pretrained(tmp_path / "ours")
    theirs, info = transformers.Mask2FormerModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    theirs.save_pretrained(tmp_path / "theirs")
    again = Mask2FormerModel.from_pretrained(tmp_path / "theirs").state_dict()
    assert all(torch.equal(again[k], v) for k, v in model.model.state_dict().items())


def test_a_pytorch_file_of_transformers_is_read(model, tmp_path):
    model.save_pretrained(tmp_path)
    strictly_in_transformers(tmp_path, model)
    (tmp_path / "model.safetensors").unlink()
    torch.save(read_weights(tmp_path / "again")[1], tmp_path / "pytorch_model.bin")
    again = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


OTHER_HEAD = {"class_predictor.weight": ((4, 32), (8, 32)), "class_predictor.bias": ((4,), (8,))}


def test_other_classes_are_refused_with_every_key_and_both_shapes(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="ignore_mismatched_sizes=True to re-initialise") as caught:
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path, num_labels=7)
    for name, (found, expected) in OTHER_HEAD.items():
        assert f"{name} has shape {found} instead of {expected}" in str(caught.value)


def test_fine_tuning_with_other_classes_starts_from_all_the_rest(model, tmp_path):
    model.save_pretrained(tmp_path)
    labels = {index: f"kind {index}" for index in range(7)}
    with pytest.warns(UserWarning, match=r"2 parameter\(s\) of .* do not fit") as caught:
        tuned = Mask2FormerForUniversalSegmentation.from_pretrained(
            tmp_path, id2label=labels, ignore_mismatched_sizes=True
        )
    assert caught[0].filename == __file__
    report = str(caught[0].message).splitlines()[1:]
    assert sorted(report) == sorted(
        f"  {name} has shape {found} instead of {expected}"
        for name, (found, expected) in OTHER_HEAD.items()
    )
    assert tuned.config.id2label == labels
    weights = tuned.state_dict()
    head = weights.pop("class_predictor.weight"), weights.pop("class_predictor.bias")
    assert [tensor.shape for tensor in head] == [(8, 32), (8,)] and head[0].std() > 0
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights.items())
    tuned.save_pretrained(tmp_path / "tuned")
    strictly_in_transformers(tmp_path / "tuned", tuned)


def test_queries_of_another_number_are_re_initialised_too(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="queries_features.weight has shape"):
        tuned = Mask2FormerForUniversalSegmentation.from_pretrained(
            tmp_path, num_queries=9, ignore_mismatched_sizes=True
        )
    assert tuned.model.transformer_decoder.query_features.weight.shape == (9, 32)


def test_where_all_sizes_fit_ignoring_mismatches_says_nothing(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path, ignore_mismatched_sizes=True
    )
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())


def test_missing_keys_are_no_mismatch(model, tmp_path):
    model.model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="misses 2 key"):
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_a_configuration_can_be_given(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    config = Mask2FormerConfig.from_dict(model.config.to_dict() | {"dropout": 0.25})
    again = Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path, config=config, mask_weight=7.0
    )
    assert (again.config.dropout, again.config.mask_weight) == (0.25, 7.0)
    assert config.mask_weight == 5.0
    again = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path, config=config)
    assert again.config == config and again.config is not config


def test_overrides_of_labels_agree_or_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    load = Mask2FormerForUniversalSegmentation.from_pretrained
    names = {0: "a", 1: "b", 2: "c"}
    ids = {"a": 0, "b": 1, "c": 2}
    assert load(tmp_path, id2label=names, label2id=ids).config.id2label == names
    assert load(tmp_path, label2id=ids, num_labels=None).config.id2label == names
    named = model.config
    named.id2label = names
    named.save_pretrained(tmp_path)
    assert load(tmp_path, num_labels=3).config.id2label == names
    with pytest.raises(ValueError, match="label2id must be the inverse"):
        load(tmp_path, id2label=names, label2id={"a": 1, "b": 0, "c": 2})
    with pytest.raises(ValueError, match=r"label's id is 'one'; ids are the integers 0, 1, 2"):
        load(tmp_path, label2id={"a": 0, "b": "one"})
    with pytest.raises(ValueError, match="num_labels"):
        load(tmp_path, id2label=names, num_labels=5)
    with pytest.raises(TypeError, match="'ignore_missmatched_sizes' is no argument"):
        load(tmp_path, ignore_missmatched_sizes=True)
    with pytest.raises(TypeError, match=r"call \.to\(dtype\)"):
        load(tmp_path, torch_dtype="auto")


def test_the_things_go_with_the_labels_and_the_task_stays(tmp_path):
    model = tiny_model(num_labels=3, task="instance", thing_label_ids=[0])
    model.save_pretrained(tmp_path)
    load = Mask2FormerForUniversalSegmentation.from_pretrained
    assert load(tmp_path, num_labels=3).config.thing_label_ids == [0]
    other = load(tmp_path, id2label={0: "a", 1: "b", 2: "c"}).config
    assert (other.task, other.thing_label_ids) == ("instance", None)
    given = load(tmp_path, id2label={0: "a", 1: "b", 2: "c"}, thing_label_ids=[2]).config
    assert given.thing_label_ids == [2]


def test_another_backbone_replaces_the_checkpoints(model, tmp_path):
    """Its weights are not the checkpoint's, and the message names them."""
    model.save_pretrained(tmp_path / "model")
    values = {"model_type": "swin", **SwinConfig(embed_dim=24).to_dict()}
    (tmp_path / "swin").mkdir()
    (tmp_path / "swin" / "config.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"misses \d+ key\(s\), such as"):
        Mask2FormerForUniversalSegmentation.from_pretrained(
            tmp_path / "model", backbone=str(tmp_path / "swin")
        )
