import copy
import json
import sys

import pytest
import torch
from torch.nn import functional as F

from mask2former import (
    DataError,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    TimmBackboneConfig,
)
from mask2former.model.backbones import make_backbone
from tests.reference import (
    SMALL,
    assert_checkpointing_changes_no_gradient,
    backbone_of,
    randomise,
    relative_error,
    tiny_model,
)

timm = pytest.importorskip("timm")

# Published architectures, made small.
SMALL_VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2}
DINOV2 = TimmBackboneConfig(
    backbone="vit_small_patch14_dinov2", model_kwargs={**SMALL_VIT, "img_size": 28}
)
DINOV3 = TimmBackboneConfig(backbone="vit_small_patch16_dinov3", model_kwargs=SMALL_VIT)


def config_of(name, **model_kwargs):
    return TimmBackboneConfig(backbone=name, model_kwargs=model_kwargs)


def small_configs():
    return [
        config_of("test_convnext2"),
        config_of("test_resnet"),
        TimmBackboneConfig.from_dict(DINOV2.to_dict()),
        TimmBackboneConfig.from_dict(DINOV3.to_dict()),
    ]


@pytest.mark.parametrize(
    ("config", "channels"),
    list(
        zip(
            small_configs(),
            [[32, 64, 96, 128], [32, 48, 192, 96], [8, 16, 32, 32], [8, 16, 32, 32]],
            strict=True,
        )
    ),
    ids=lambda value: getattr(value, "backbone", ""),
)
def test_maps_have_the_models_strides_for_any_image_size(config, channels):
    backbone = backbone_of(config)
    assert backbone.channels == channels
    assert (backbone.strides, backbone.stride) == ([4, 8, 16, 32], 32)
    for height, width in ((64, 96), (33, 50)):
        maps = backbone(torch.randn(2, 3, height, width))
        assert [x.shape[1] for x in maps] == channels
        assert [tuple(x.shape[2:]) for x in maps] == [
            (-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)
        ]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("convnext_tiny", [96, 192, 384, 768]),
        ("convnext_base", [128, 256, 512, 1024]),
        ("convnext_tiny.dinov3_lvd1689m", [96, 192, 384, 768]),
        ("resnet50", [256, 512, 1024, 2048]),
        ("efficientnet_b0", [24, 40, 112, 320]),
        ("vit_small_patch14_dinov2", [96, 192, 384, 384]),
        ("vit_base_patch14_reg4_dinov2", [192, 384, 768, 768]),
        ("vit_large_patch16_dinov3", [256, 512, 1024, 1024]),
        ("samvit_base_patch16", [64, 128, 256, 256]),  # its final norm has a projection
    ],
)
def test_published_models_fit(name, channels):
    with torch.device("meta"):
        backbone = backbone_of(config_of(name))
        maps = backbone(torch.empty(1, 3, 100, 130))
    assert [x.shape[1] for x in maps] == channels
    assert [tuple(x.shape[2:]) for x in maps] == [(25, 33), (13, 17), (7, 9), (4, 5)]


def test_a_plain_transformer_sees_a_padded_image_and_gives_its_normalised_last_map():
    backbone = randomise(backbone_of(TimmBackboneConfig.from_dict(DINOV3.to_dict())), 1).double()
    image = torch.randn(1, 3, 40, 64, dtype=torch.float64)
    theirs = timm.create_model(DINOV3.backbone, num_classes=0, **SMALL_VIT).double().eval()
    theirs.load_state_dict(backbone.body.state_dict())
    tokens = theirs.forward_features(F.pad(image, (0, 0, 0, 24)))[:, theirs.num_prefix_tokens :]
    expected = tokens.transpose(1, 2).unflatten(2, (4, 4))[:, :, :3]
    assert relative_error(backbone(image)[2], expected) < 1e-12


def test_position_embeddings_are_timms_for_the_padded_size():
    """Patches of 14: 64 pixels are five of them, where the model was made for two."""
    backbone = randomise(backbone_of(TimmBackboneConfig.from_dict(DINOV2.to_dict())), 1).double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    theirs = timm.create_model(
        DINOV2.backbone, num_classes=0, **{**DINOV2.model_kwargs, "img_size": 70}
    )
    state = backbone.body.state_dict()
    state["pos_embed"] = timm.layers.resample_abs_pos_embed(
        state["pos_embed"], (5, 5), num_prefix_tokens=0 if theirs.no_embed_class else 1
    )
    theirs.double().eval().load_state_dict(state)
    tokens = theirs.forward_features(F.pad(image, (0, 6, 0, 6)))[:, 1:]
    grid = tokens.transpose(1, 2).unflatten(2, (5, 5))
    expected = F.interpolate(grid, scale_factor=14 / 16, mode="bilinear")
    assert relative_error(backbone(image)[2], expected) < 1e-12


def test_several_maps_of_a_plain_transformer_serve_one_level_each():
    options = {**DINOV3.to_dict(), "model_kwargs": {**SMALL_VIT, "depth": 5}}
    options["out_indices"] = [0, 1, 2, 3]
    backbone = backbone_of(TimmBackboneConfig.from_dict(options))
    assert len(backbone.body.blocks) == 4  # the last serves nobody
    image = torch.randn(1, 3, 64, 64)
    theirs = backbone.body.forward_intermediates(
        image, indices=[2, 3], norm=True, intermediates_only=True
    )
    maps = backbone(image)
    assert torch.equal(maps[2], theirs[0])
    assert torch.equal(maps[3], F.max_pool2d(theirs[1], 2))


def test_a_transformer_in_windows_takes_any_size():
    config = config_of(
        "swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    )
    maps = backbone_of(config)(torch.randn(1, 3, 70, 100))
    assert [tuple(x.shape[1:]) for x in maps] == [(8, 18, 25), (16, 9, 13), (32, 5, 7), (64, 3, 4)]


@pytest.mark.parametrize("config", small_configs(), ids=lambda config: config.backbone)
def test_an_image_gives_the_same_answer_alone_and_in_a_batch(config):
    """In float64, with garbage in the padding. Measured: 5.0e-15."""
    model = randomise(tiny_model(backbone_config=config), seed=3).double()
    image = torch.randn(1, 3, 40, 70, dtype=torch.float64)
    pixels = torch.full((2, 3, 97, 101), 7.0, dtype=torch.float64)
    mask = torch.ones(2, 97, 101)
    pixels[0, :, :40, :70] = image
    mask[0, 40:] = mask[0, :, 70:] = 0
    small = torch.zeros(1, 64, 96)
    small[:, :40, :70] = 1
    with torch.no_grad():
        together = model(pixels, pixel_mask=mask)
        alone = model(F.pad(image, (0, 26, 0, 24), value=5.0), pixel_mask=small)
    assert relative_error(together.class_queries_logits[:1], alone.class_queries_logits) < 1e-12
    masks = [x.masks_queries_logits[:1, :, :10, :18] for x in (together, alone)]
    assert relative_error(*masks) < 1e-12


@pytest.mark.parametrize("config", small_configs(), ids=lambda config: config.backbone)
def test_a_saved_model_loads_with_every_tensor(config, tmp_path):
    model = tiny_model(backbone_config=config)
    model.save_pretrained(tmp_path)
    again = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    assert again.config == model.config
    theirs = again.state_dict()
    assert set(theirs) == set(model.state_dict())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "out_indices"), [("test_convnext2", [0, 1, 2, 3]), ("test_resnet", [1, 2, 3, 4])]
)
def test_models_with_a_convolutional_timm_backbone_equal_transformers(name, out_indices, tmp_path):
    """Both ways, in float64, with the file's keys checked. Measured: 6.5e-16."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.TimmBackboneConfig(backbone=name, out_indices=out_indices)
    config = transformers.Mask2FormerConfig(backbone_config=backbone, num_labels=3, **SMALL)
    theirs = transformers.Mask2FormerForUniversalSegmentation(config)
    theirs = randomise(theirs, seed=1).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "theirs").double()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = theirs.double()(image), ours(image)
    assert ours.config.backbone_config.out_indices == out_indices
    for field in ("class_queries_logits", "masks_queries_logits", "encoder_last_hidden_state"):
        assert relative_error(getattr(actual, field), getattr(expected, field)) < 1e-9
    ours.float().save_pretrained(tmp_path / "ours")
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        logits = again.double().eval()(image).masks_queries_logits
    assert relative_error(logits, actual.masks_queries_logits) < 1e-9


def test_a_timm_name_in_the_model_configuration(tmp_path):
    config = Mask2FormerConfig(
        backbone="test_resnet",
        use_timm_backbone=True,
        backbone_kwargs={"out_indices": (1, 2, 3, 4), "drop_path_rate": 0.5},
        **SMALL,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    drops = [m for m in model.model.backbone.modules() if type(m).__name__ == "DropPath"]
    assert max(drop.drop_prob for drop in drops) == 0.5
    model.save_pretrained(tmp_path)
    again = Mask2FormerConfig.from_pretrained(tmp_path)
    assert again == config
    assert again.backbone_config.model_kwargs == {"drop_path_rate": 0.5}


def test_pretrained_weights_come_from_timms_file(tmp_path):
    path = tmp_path / "weights.pth"
    source = timm.create_model("test_convnext2")
    torch.save(source.state_dict(), path)
    config = Mask2FormerConfig(
        backbone="test_convnext2",
        use_timm_backbone=True,
        use_pretrained_backbone=True,
        backbone_kwargs={"pretrained_cfg_overlay": {"file": str(path)}},
        **SMALL,
    )
    backbone = make_backbone(config)
    assert torch.equal(backbone.body.stem_0.weight, source.stem[0].weight)
    model = Mask2FormerForUniversalSegmentation(config)
    model.save_pretrained(tmp_path / "model")
    path.unlink()  # a whole model's folder has all weights
    Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "model")


def test_a_whole_model_never_asks_for_pretrained_weights(tmp_path, monkeypatch):
    """Not even where its file, as transformers 4 wrote them, says so."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = tiny_model(backbone_config=config_of("test_convnext2"))
    model.save_pretrained(tmp_path)
    values = model.config.to_dict()
    values |= {
        "backbone_config": None,
        "backbone": "test_convnext2",
        "use_timm_backbone": True,
        "use_pretrained_backbone": True,
        "backbone_kwargs": {"cache_dir": str(tmp_path)},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    again = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_pretrained_weights_out_of_reach_are_one_sentence(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = config_of("test_convnext2", cache_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"could not fetch 'test_convnext2' .*; connect to the net"):
        backbone_of(config, use_pretrained_backbone=True)


@pytest.mark.parametrize("config", small_configs(), ids=lambda config: config.backbone)
def test_gradient_checkpointing_gives_the_same_gradients(config):
    backbone = randomise(backbone_of(config), seed=1).double()
    assert_checkpointing_changes_no_gradient(backbone)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_gradient_checkpointing_counts_each_batch_of_a_batch_norm_once(name, copied):
    backbone = backbone_of(config_of(name)).train()
    before = {k: v.clone() for k, v in backbone.named_buffers()}
    image = torch.randn(2, 3, 64, 64)
    statistics = []
    for value in (False, True):
        backbone.gradient_checkpointing = value
        trained = copy.deepcopy(backbone) if copied else backbone
        for k, v in trained.named_buffers():
            v.copy_(before[k])
        for _ in range(2):
            sum(x.square().sum() for x in trained(image)).backward()
        statistics.append({k: v.clone() for k, v in trained.named_buffers()})
    kinds = {k.rpartition(".")[2] for k in before}
    assert kinds == {"running_mean", "running_var", "num_batches_tracked"}
    for k, v in statistics[0].items():
        assert not torch.equal(v, before[k]) and torch.equal(v, statistics[1][k]), k


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_is_frozen_on_demand(frozen):
    config = TimmBackboneConfig(backbone="test_resnet", freeze_batch_norm_2d=frozen)
    backbone = backbone_of(config).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    backbone(torch.randn(2, 3, 64, 64))
    after = backbone.state_dict()
    assert len(before) > 0
    assert all(torch.equal(tensor, after[name]) == frozen for name, tensor in before.items())


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match=r"timm has no model 'resnet5000'; timm\.list_models"):
        backbone_of(config_of("resnet5000"))


def test_a_map_that_is_not_there_is_named():
    config = TimmBackboneConfig(backbone="test_convnext2", out_indices=[1, 2, 3, 4])
    with pytest.raises(ValueError, match="'test_convnext2' has maps 0 to 3"):
        backbone_of(config)


def test_a_model_of_one_image_size_is_refused():
    with pytest.raises(ValueError, match="'beit_base_patch16_224' takes images of one size only"):
        backbone_of(config_of("beit_base_patch16_224"))


def test_without_timm_the_command_to_install_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        DataError, match=r"'resnet50' of timm needs .* pip install mask2former\[timm"
    ):
        backbone_of(config_of("resnet50"))


def test_the_users_configuration_stays_as_it_is():
    given = TimmBackboneConfig(backbone="resnet10t")
    make_backbone(Mask2FormerConfig(backbone_config=given, feature_strides=[8, 16, 32]))
    assert given == TimmBackboneConfig(backbone="resnet10t")
    assert make_backbone(Mask2FormerConfig(backbone_config=given)).strides == [4, 8, 16, 32]


def test_a_network_that_cannot_be_checkpointed_goes_on_without():
    backbone = backbone_of(TimmBackboneConfig(backbone="hrnet_w18_small"))
    backbone.gradient_checkpointing = True
    assert backbone.gradient_checkpointing is False


def test_maps_of_other_strides_than_the_configurations_are_named():
    config = TimmBackboneConfig(backbone="resnet10t", out_indices=[0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"have strides \[2, 4, 8, 16\], but feature_strides is"):
        make_backbone(Mask2FormerConfig(backbone_config=config))
