"""How a backbone gets into the model's configuration, and from there into files."""

import json

import pytest

from mask2former import (
    DataError,
    Mask2FormerConfig,
    ResNetConfig,
    SwinConfig,
    TimmBackboneConfig,
)

STAGES = ["stage1", "stage2", "stage3", "stage4"]


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def test_from_backbone_config_takes_the_other_options_too():
    backbone = SwinConfig(embed_dim=48)
    config = Mask2FormerConfig.from_backbone_config(backbone, num_queries=7, num_labels=3)
    assert config.backbone_config is backbone
    assert (config.num_queries, config.num_labels) == (7, 3)


def test_a_dict_ours_and_theirs_make_the_same_backbone(transformers):
    options = {"embed_dim": 48, "depths": [1, 1, 2, 1], "window_size": 12, "drop_path_rate": 0.2}
    configs = [
        Mask2FormerConfig.from_backbone_config(backbone).backbone_config
        for backbone in (
            SwinConfig(**options),
            {"model_type": "swin", **options},
            transformers.SwinConfig(**options),
            transformers.SwinConfig(**options, out_features=STAGES),
        )
    ]
    assert all(isinstance(config, SwinConfig) for config in configs)
    for config in configs:
        assert config.out_features == STAGES
        assert {name: getattr(config, name) for name in options} == options


@pytest.mark.parametrize(
    ("given", "stages"),
    [
        ({}, STAGES),
        ({"out_features": ["stage4"]}, STAGES),  # what transformers says by default
        ({"out_features": ["stage2", "stage3", "stage4"]}, STAGES[1:]),
        ({"out_indices": [2, 3, 4]}, STAGES[1:]),
        ({"out_indices": [-3, -2, -1]}, STAGES[1:]),
        (
            {"out_indices": [4], "out_features": ["stage4"], "stage_names": ["stem", *STAGES]},
            STAGES,
        ),
    ],
)
@pytest.mark.parametrize("model_type", ["swin", "resnet"])
def test_stages_equal_transformers(model_type, given, stages):
    config = Mask2FormerConfig(backbone_config={"model_type": model_type, **given}).backbone_config
    assert config.out_features == stages
    assert not {"out_indices", "stage_names"} & set(config.to_dict())


def test_the_stem_is_no_stage_of_ours():
    with pytest.raises(ValueError, match=r"out_features names \['stem'\]"):
        Mask2FormerConfig(backbone_config={"model_type": "swin", "out_indices": [0, 1, 2, 3]})
    with pytest.raises(ValueError, match=r"out_indices is \[7\]; .* from -5 to 4"):
        Mask2FormerConfig(backbone_config={"model_type": "resnet", "out_indices": [7]})


def test_a_configuration_of_transformers_alone_stays_its_object(transformers, tmp_path):
    given = transformers.ConvNextConfig(depths=[1, 1, 1, 1], out_features=STAGES)
    config = Mask2FormerConfig.from_backbone_config(given)
    assert isinstance(config.backbone_config, transformers.ConvNextConfig)
    assert config.backbone_config is not given  # which a model may complete
    config.save_pretrained(tmp_path)
    again = Mask2FormerConfig.from_pretrained(tmp_path)
    assert again.backbone_config.to_dict() == given.to_dict()
    theirs = transformers.Mask2FormerConfig.from_pretrained(tmp_path)
    assert theirs.backbone_config.to_dict() == given.to_dict()


@pytest.mark.parametrize(
    "backbone",
    [
        SwinConfig(),
        ResNetConfig(freeze_batch_norm_2d=True),
        TimmBackboneConfig(backbone="resnet50", out_indices=(1, 2, 3, 4)),
    ],
    ids=lambda backbone: backbone.model_type,
)
def test_transformers_reads_the_configuration_that_we_write(transformers, backbone, tmp_path):
    Mask2FormerConfig(backbone_config=backbone).save_pretrained(tmp_path)
    assert Mask2FormerConfig.from_pretrained(tmp_path).backbone_config == backbone
    theirs = transformers.Mask2FormerConfig.from_pretrained(tmp_path).backbone_config
    assert theirs.model_type == backbone.model_type
    for name in ("depths", "window_size", "out_features", "backbone", "out_indices"):
        if hasattr(backbone, name):
            assert getattr(theirs, name) == getattr(backbone, name)


def test_a_timm_configuration_of_transformers_becomes_ours(transformers):
    given = transformers.TimmBackboneConfig(backbone="resnet50", freeze_batch_norm_2d=True)
    config = Mask2FormerConfig(backbone_config=given).backbone_config
    assert isinstance(config, TimmBackboneConfig)
    assert (config.backbone, config.freeze_batch_norm_2d) == ("resnet50", True)


def test_a_timm_name_becomes_a_configuration_with_its_options():
    config = Mask2FormerConfig(
        backbone="convnext_tiny",
        use_timm_backbone=True,
        use_pretrained_backbone=True,
        backbone_kwargs={"out_indices": (0, 1, 2, 3), "drop_path_rate": 0.3},
    )
    assert config.backbone_config == TimmBackboneConfig(
        backbone="convnext_tiny",
        out_indices=[0, 1, 2, 3],
        model_kwargs={"drop_path_rate": 0.3},
    )
    assert (config.backbone, config.use_timm_backbone) == ("convnext_tiny", True)


def test_a_file_of_transformers_4_that_names_a_timm_backbone_is_read():
    values = {"backbone": "resnet50", "use_timm_backbone": True, "backbone_config": None}
    config = Mask2FormerConfig.from_dict({**values, "backbone_kwargs": {"out_indices": [1, 2, 3]}})
    assert config.backbone_config.out_indices == [1, 2, 3]


def write_model(folder, **values):
    labels = {"id2label": {"0": "cat"}, "label2id": {"cat": 0}, "torch_dtype": "float16"}
    values = {"architectures": ["ForImageClassification"], **labels, **values}
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def test_the_name_of_a_folder_is_read_at_once_and_all_of_it_is_saved(tmp_path):
    (tmp_path / "swin").mkdir()
    name = write_model(tmp_path / "swin", model_type="swin", embed_dim=48, window_size=12)
    options = {"drop_path_rate": 0.4, "out_indices": [2, 3, 4]}
    config = Mask2FormerConfig(backbone=name, backbone_kwargs=options)
    assert config.backbone_config == SwinConfig(
        embed_dim=48, window_size=12, drop_path_rate=0.4, out_features=STAGES[1:]
    )
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["backbone"], written["backbone_kwargs"]) == (None, None)
    assert Mask2FormerConfig.from_pretrained(tmp_path) == config


def test_an_unknown_name_gets_one_sentence():
    with pytest.raises(DataError, match=r"no backbone 'resnet50' .* use_timm_backbone=True"):
        Mask2FormerConfig(backbone="resnet50")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "x", "backbone_config": SwinConfig()}, "backbone and backbone_config cannot"),
        ({"use_timm_backbone": True}, "use_timm_backbone goes with the name of a backbone"),
        ({"backbone_kwargs": {"a": 1}}, "backbone_kwargs goes with the name of a backbone"),
        ({"use_pretrained_backbone": True}, "use_pretrained_backbone goes with the name"),
        ({"use_pretrained_backbone": "yes"}, "use_pretrained_backbone is 'yes'; it must be true"),
        ({"backbone_config": {"model_type": "timm_backbone"}}, "must be timm's name of a model"),
        (
            {"backbone_config": {"model_type": "swin", "depths": 3}},
            "depths is 3; it must be a list",
        ),
        (
            {
                "backbone": "x",
                "use_timm_backbone": True,
                "backbone_kwargs": {"features_only": False},
            },
            "features_only is false, but a backbone has to return feature maps",
        ),
    ],
)
def test_contradictions_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Mask2FormerConfig(**options)


def test_a_value_that_transformers_refuses_is_one_sentence(transformers):
    message = "backbone_config is no ConvNextConfig: Validation error for field 'depths'"
    with pytest.raises(ValueError, match=message):
        Mask2FormerConfig(backbone_config={"model_type": "convnext", "depths": "many"})


def test_what_is_no_backbone_is_named_with_the_known_ones(transformers):
    message = r"'bert', which is no backbone; use one of \['resnet', 'swin', 'timm_backbone'\] or"
    with pytest.raises(DataError, match=message):
        Mask2FormerConfig(backbone_config={"model_type": "bert"})
