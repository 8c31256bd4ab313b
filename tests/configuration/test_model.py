import json

import pytest

from mask2former import DataError, Mask2FormerConfig, ResNetConfig, SwinConfig


def test_defaults_are_the_documented_ones():
    config = Mask2FormerConfig()
    assert (config.feature_size, config.mask_feature_size, config.hidden_dim) == (256, 256, 256)
    assert (config.encoder_layers, config.decoder_layers, config.num_queries) == (6, 10, 100)
    assert (config.encoder_feedforward_dim, config.dim_feedforward) == (1024, 2048)
    assert (config.class_weight, config.mask_weight, config.dice_weight) == (2.0, 5.0, 5.0)
    assert (config.no_object_weight, config.train_num_points) == (0.1, 12544)
    assert (config.activation_function, config.num_attention_heads) == ("relu", 8)
    assert (config.oversample_ratio, config.importance_sample_ratio) == (3.0, 0.75)
    assert (config.init_std, config.init_xavier_std, config.dropout) == (0.02, 1.0, 0.0)
    assert (config.common_stride, config.feature_strides) == (4, [4, 8, 16, 32])
    assert config.pre_norm is config.enforce_input_projection is False
    assert config.use_auxiliary_loss is True
    assert config.output_auxiliary_logits is None
    assert config.ignore_value == 255
    assert config.backbone_config.model_type == "swin"
    assert config.backbone_config.depths == [2, 2, 18, 2]
    assert config.num_labels == 2


def test_defaults_agree_with_transformers():
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.Mask2FormerConfig().to_dict(), Mask2FormerConfig().to_dict()
    shared = set(theirs) & set(ours) - {"architectures", "backbone_config", "id2label", "label2id"}
    assert len(shared) > 25
    assert {
        k: list(v) if isinstance(v, tuple) else v for k, v in theirs.items() if k in shared
    } == {k: v for k, v in ours.items() if k in shared}


@pytest.mark.parametrize("backbone", [SwinConfig(embed_dim=48), ResNetConfig(layer_type="basic")])
def test_round_trip_through_a_folder_keeps_everything(tmp_path, backbone):
    config = Mask2FormerConfig(
        backbone_config=backbone, id2label={0: "cat", 1: "sky", 2: "sea"}, num_queries=7
    )
    config.save_pretrained(tmp_path)
    again = Mask2FormerConfig.from_pretrained(tmp_path)
    assert again == config
    assert again.label2id == {"cat": 0, "sky": 1, "sea": 2}


def test_every_documented_parameter_survives_a_round_trip(tmp_path):
    changed = {
        "feature_size": 64,
        "mask_feature_size": 40,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 48,
        "activation_function": "gelu",
        "encoder_layers": 2,
        "decoder_layers": 3,
        "num_attention_heads": 4,
        "dropout": 0.25,
        "dim_feedforward": 56,
        "pre_norm": True,
        "enforce_input_projection": True,
        "common_stride": 8,
        "ignore_value": 254,
        "num_queries": 9,
        "no_object_weight": 0.5,
        "class_weight": 3.0,
        "mask_weight": 4.0,
        "dice_weight": 6.0,
        "train_num_points": 11,
        "oversample_ratio": 2.0,
        "importance_sample_ratio": 0.5,
        "init_std": 0.1,
        "init_xavier_std": 2.0,
        "use_auxiliary_loss": False,
        "feature_strides": [8, 16, 32],
        "output_auxiliary_logits": True,
        "task": "instance",
        "thing_label_ids": [1],
    }
    default = Mask2FormerConfig()
    assert all(getattr(default, name) != value for name, value in changed.items())
    Mask2FormerConfig(**changed).save_pretrained(tmp_path)
    again = Mask2FormerConfig.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in changed} == changed


def test_unknown_keys_survive_a_round_trip(tmp_path):
    values = Mask2FormerConfig().to_dict() | {"some_future_key": [1, 2]}
    values["backbone_config"]["another"] = "x"
    (tmp_path / "config.json").write_text(json.dumps(values))
    Mask2FormerConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["some_future_key"] == [1, 2]
    assert written["backbone_config"]["another"] == "x"


def test_num_labels_makes_unnamed_labels():
    assert Mask2FormerConfig(num_labels=3).id2label[2] == "LABEL_2"
    with pytest.raises(ValueError, match="num_labels is 3 but id2label has 1"):
        Mask2FormerConfig(num_labels=3, id2label={0: "a"})


def test_labels_may_be_assigned_later_and_survive_saving(tmp_path):
    config = Mask2FormerConfig()
    config.num_labels = 5
    assert config.id2label[4] == "LABEL_4"
    config.id2label = {0: "a", 1: "b", 2: "c"}
    assert config.num_labels == 3
    config.save_pretrained(tmp_path)
    assert Mask2FormerConfig.from_pretrained(tmp_path).id2label == config.id2label


def test_other_labels_are_no_things_of_before():
    config = Mask2FormerConfig(num_labels=5, thing_label_ids=(4, 0, 4))
    assert config.thing_label_ids == [0, 4]
    config.num_labels = 2
    assert config.thing_label_ids is None


def test_transformers_keeps_the_task_and_the_things(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = Mask2FormerConfig(SwinConfig(), num_labels=3, task="semantic", thing_label_ids=[0, 2])
    config.save_pretrained(tmp_path / "ours")
    theirs = transformers.Mask2FormerConfig.from_pretrained(tmp_path / "ours")
    assert (theirs.task, theirs.thing_label_ids) == ("semantic", [0, 2])
    theirs.save_pretrained(tmp_path / "theirs")
    again = Mask2FormerConfig.from_pretrained(tmp_path / "theirs")
    assert (again.task, again.thing_label_ids) == ("semantic", [0, 2])


def test_published_files_say_neither_task_nor_things():
    config = Mask2FormerConfig.from_dict({"label2id": {"cat": 0, "sky": 1, "sea": 2}})
    assert config.task is config.thing_label_ids is None


def test_the_labels_of_a_file_are_those_that_its_things_name():
    values = {"label2id": {"cat": 0, "sky": 1, "dog": 2}, "thing_label_ids": [0, 2]}
    assert Mask2FormerConfig.from_dict(values).thing_label_ids == [0, 2]
    assert Mask2FormerConfig.from_dict({"num_labels": 4, "thing_label_ids": [3]}).num_labels == 4


def test_num_labels_of_a_file_without_names_counts():
    assert Mask2FormerConfig.from_dict({"num_labels": 4}).num_labels == 4


def test_the_dtype_of_the_files_weights_is_not_carried_over():
    config = Mask2FormerConfig.from_dict({"dtype": "float16", "torch_dtype": "float16"})
    assert not {"dtype", "torch_dtype"} & set(config.to_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_queries": -1}, "num_queries is -1; it must be an integer of at least 1"),
        ({"num_queries": "many"}, "num_queries is 'many'"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"decoder_layers": 0}, "decoder_layers is 0"),
        ({"encoder_layers": -3}, "encoder_layers is -3; it must be an integer of at least 0"),
        ({"dropout": "no"}, "dropout is 'no'; it must be a number from 0 to 1"),
        ({"dropout": 1.5}, "dropout is 1.5; it must be a number from 0 to 1"),
        ({"dropout": True}, "dropout is True"),
        ({"mask_weight": -1}, "mask_weight is -1; it must be a number from 0 to inf"),
        ({"class_weight": float("nan")}, "class_weight is nan"),
        ({"oversample_ratio": 0.5}, "oversample_ratio is 0.5; it must be a number from 1"),
        ({"importance_sample_ratio": 2}, "importance_sample_ratio is 2"),
        ({"pre_norm": "yes"}, "pre_norm is 'yes'; it must be true or false"),
        ({"feature_strides": []}, "feature_strides is .*; it must be a list of positive integers"),
        ({"id2label": [1, 2]}, "id2label is .*; it must be a dict"),
        ({"backbone_config": "swin"}, "backbone_config is 'swin'; it must be a dict"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"task": "caption"}, "task is 'caption'; it must be one of .*'semantic'"),
        ({"task": ["semantic"]}, r"task is \['semantic'\]"),
        ({"thing_label_ids": [0, 2]}, r"thing_label_ids is \[0, 2\]; .* which are 0 to 1"),
        ({"thing_label_ids": 1}, "thing_label_ids is 1; it must be a list of labels"),
        ({"thing_label_ids": ["0"]}, r"thing_label_ids is \['0'\]"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(tmp_path, change, message):
    values = Mask2FormerConfig().to_dict() | change
    if "num_labels" in change:
        del values["id2label"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=message):
        Mask2FormerConfig.from_pretrained(tmp_path)


def test_id2label_must_have_no_gaps():
    with pytest.raises(ValueError, match="without gaps"):
        Mask2FormerConfig(id2label={1: "a"})


def test_heads_must_divide_the_widths():
    with pytest.raises(ValueError, match="multiples of num_attention_heads 8"):
        Mask2FormerConfig(hidden_dim=100)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SwinConfig(hidden_act="snake"), "hidden_act"),
        (lambda: ResNetConfig(hidden_act="snake"), "hidden_act"),
        (lambda: Mask2FormerConfig(activation_function="snake"), "activation_function"),
    ],
)
def test_unknown_activation_is_named_with_the_known_ones(make, name):
    with pytest.raises(ValueError, match=rf"{name} is 'snake'; it must be one of \['relu', "):
        make()


def test_a_square_may_be_given_by_both_sides():
    config = SwinConfig(image_size=[224, 224], patch_size=(4, 4))
    assert (config.image_size, config.patch_size) == (224, 4)
    with pytest.raises(ValueError, match="patch_size is"):
        SwinConfig(patch_size=[4, 2])


def test_unknown_stage_is_named():
    with pytest.raises(ValueError, match="stage9"):
        SwinConfig(out_features=["stage9"])


def test_folder_without_config_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"has no config\.json"):
        Mask2FormerConfig.from_pretrained(tmp_path)


def test_broken_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json is not valid JSON"):
        Mask2FormerConfig.from_pretrained(tmp_path)


def test_another_models_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="type 'bert'"):
        Mask2FormerConfig.from_pretrained(tmp_path)


def test_contradicting_config_file_is_a_data_error(tmp_path):
    values = Mask2FormerConfig().to_dict() | {"hidden_dim": 100}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="invalid configuration: hidden_dim 100"):
        Mask2FormerConfig.from_pretrained(tmp_path)


def test_a_file_with_label2id_alone_has_its_labels():
    config = Mask2FormerConfig.from_dict({"label2id": {"cat": 1, "sky": 0}})
    assert config.id2label == {0: "sky", 1: "cat"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label2id": {"cat": 0, "sky": "x"}}, "A label's id is 'x'; ids are the integers"),
        ({"label2id": {"cat": 0, "sky": 1.5}}, "A label's id is 1.5; ids are the integers"),
        ({"label2id": {"cat": [0]}}, r"A label's id is \[0\]; ids are the integers"),
        ({"label2id": {"cat": 0, "sky": 0}}, "label2id gives two labels the same id"),
        ({"label2id": ["cat"]}, "must be a dict of label to id"),
        ({"id2label": {"first": "cat"}}, "A label's id is 'first'; ids are the integers"),
    ],
)
def test_ids_that_are_no_integers_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Mask2FormerConfig.from_dict(values)
