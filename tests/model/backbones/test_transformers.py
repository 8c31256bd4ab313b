import sys

import pytest
import torch
from torch.nn import functional as F

from mask2former import DataError, Mask2FormerConfig, Mask2FormerForUniversalSegmentation
from mask2former.model.backbones import make_backbone
from mask2former.model.backbones.transformers import stage_shapes
from tests.reference import (
    SMALL,
    assert_checkpointing_changes_no_gradient,
    backbone_of,
    randomise,
    relative_error,
    tiny_model,
)

transformers = pytest.importorskip("transformers")

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def convnext(**options):
    return transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], **options)


def dinov2(**options):
    return transformers.Dinov2Config(**VIT, image_size=28, **options)


def dinov3(**options):
    return transformers.DINOv3ViTConfig(**VIT, intermediate_size=48, **options)


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        (convnext(), [8, 16, 24, 32]),
        (dinov2(), [8, 16, 32, 32]),
        (dinov3(), [8, 16, 32, 32]),
    ],
    ids=["convnext", "dinov2", "dinov3"],
)
def test_maps_have_the_models_strides_for_any_image_size(config, channels):
    backbone = backbone_of(config)
    assert backbone.channels == channels
    assert (backbone.strides, backbone.stride) == ([4, 8, 16, 32], 32)
    for height, width in ((64, 96), (33, 50)):
        maps = backbone(torch.randn(2, 3, height, width))
        assert [tuple(x.shape[1:]) for x in maps] == [
            (c, -(-height // s), -(-width // s))
            for c, s in zip(channels, (4, 8, 16, 32), strict=True)
        ]


def test_channels_and_strides_are_found_without_running_a_network_of_weights():
    shapes = stage_shapes(convnext())
    assert shapes.pop("stem") == (8, 4)
    assert list(shapes.values()) == [(8, 4), (16, 8), (24, 16), (32, 32)]
    assert set(stage_shapes(dinov2()).values()) == {(32, 14)}


def test_a_network_that_says_it_has_other_channels_than_it_has_is_measured():
    backbone = backbone_of(transformers.HGNetV2Config())
    assert backbone.body.channels[0] == 256
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert [x.shape[1] for x in maps] == backbone.channels == [128, 512, 1024, 2048]


def test_named_stages_are_kept():
    config = convnext(out_features=["stage2", "stage3", "stage4"])
    with pytest.raises(ValueError, match=r"have strides \[8, 16, 32\], but feature_strides is"):
        backbone_of(config)
    backbone = backbone_of(config, feature_strides=[8, 16, 32])
    assert (backbone.channels, backbone.strides) == ([16, 24, 32], [8, 16, 32])


def test_maps_of_several_stages_of_a_plain_transformer_serve_one_level_each():
    names = ["stem", "stage1", "stage2"]
    config = dinov3(out_features=names)
    backbone = backbone_of(config, feature_strides=[8, 16, 32])
    image = torch.randn(1, 3, 64, 64)
    theirs = backbone.body(image).feature_maps
    assert torch.equal(backbone(image)[1], theirs[1])
    assert torch.equal(backbone(image)[2], F.max_pool2d(theirs[2], 2))


def test_a_stage_that_is_no_map_is_named():
    with pytest.raises(ValueError, match="no map of a whole stride"):
        backbone_of(dinov2(reshape_hidden_states=False))


def test_a_convnext_model_equals_transformers(tmp_path):
    """Both ways, in float64, with the file's keys checked. Measured: 6.4e-16."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = transformers.Mask2FormerConfig(
        backbone_config=convnext(out_features=stages), num_labels=3, **SMALL
    )
    theirs = transformers.Mask2FormerForUniversalSegmentation(config)
    theirs = randomise(theirs, seed=1).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "theirs").double()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = theirs.double()(image), ours(image)
    for field in ("class_queries_logits", "masks_queries_logits", "encoder_last_hidden_state"):
        assert relative_error(getattr(actual, field), getattr(expected, field)) < 1e-9
    ours.float().save_pretrained(tmp_path / "ours")
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        logits = again.double().eval()(image).masks_queries_logits
    assert relative_error(logits, actual.masks_queries_logits) < 1e-9


@pytest.mark.parametrize("make", [convnext, dinov2, dinov3])
def test_a_saved_model_loads_with_every_tensor(make, tmp_path):
    model = tiny_model(backbone_config=make())
    model.save_pretrained(tmp_path)
    again = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    assert again.config.to_dict() == model.config.to_dict()
    theirs = again.state_dict()
    assert set(theirs) == set(model.state_dict())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("make", [convnext, dinov2, dinov3])
def test_an_image_gives_the_same_answer_alone_and_in_a_batch(make):
    """In float64, with garbage in the padding. Measured: 1.2e-15."""
    model = randomise(tiny_model(backbone_config=make()), seed=3).double()
    image = torch.randn(1, 3, 64, 32, dtype=torch.float64)
    pixels = torch.full((2, 3, 97, 101), 7.0, dtype=torch.float64)
    mask = torch.ones(2, 97, 101)
    pixels[0, :, :64, :32] = image
    mask[0, 64:] = mask[0, :, 32:] = 0
    with torch.no_grad():
        together, alone = model(pixels, pixel_mask=mask), model(image)
    assert relative_error(together.class_queries_logits[:1], alone.class_queries_logits) < 1e-12
    masks = together.masks_queries_logits[:1, :, :16, :8]
    assert relative_error(masks, alone.masks_queries_logits) < 1e-12


@pytest.mark.parametrize(
    ("model_type", "channels"),
    [
        ("convnext", [96, 192, 384, 768]),
        ("dinov2", [192, 384, 768, 768]),
        ("dinov2_with_registers", [192, 384, 768, 768]),
        ("dinov3_convnext", [96, 192, 384, 768]),
        ("dinov3_vit", [96, 192, 384, 384]),
        ("focalnet", [96, 192, 384, 768]),
        ("pp_lcnet", [64, 128, 256, 512]),
        ("pvt_v2", [32, 64, 160, 256]),
        ("swinv2", [96, 192, 384, 768]),
    ],
)
def test_the_librarys_default_models_fit(model_type, channels):
    with torch.device("meta"):
        backbone = backbone_of({"model_type": model_type})
        maps = backbone(torch.empty(1, 3, 100, 130))
    assert [x.shape[1] for x in maps] == channels
    assert [tuple(x.shape[2:]) for x in maps] == [(25, 33), (13, 17), (7, 9), (4, 5)]


def test_a_model_of_one_image_size_is_refused():
    with pytest.raises(ValueError, match="'vitpose_backbone' cannot be used, because it does not"):
        backbone_of({"model_type": "vitpose_backbone"})


def test_gradient_checkpointing_gives_the_same_gradients():
    backbone = randomise(backbone_of(dinov2()), seed=1).double().train()
    assert_checkpointing_changes_no_gradient(backbone)


def test_gradient_checkpointing_counts_each_batch_of_a_batch_norm_once():
    """Of transformers' backbones with batch norms, those of PP-LCNet can be checkpointed."""
    backbone = backbone_of({"model_type": "pp_lcnet"}).train()
    before = {k: v.clone() for k, v in backbone.named_buffers()}
    image = torch.randn(2, 3, 64, 64)
    statistics = []
    for value in (False, True):
        backbone.gradient_checkpointing = value
        assert backbone.gradient_checkpointing is value
        for k, v in backbone.named_buffers():
            v.copy_(before[k])
        sum(x.square().sum() for x in backbone(image)).backward()
        statistics.append({k: v.clone() for k, v in backbone.named_buffers()})
    assert len(before) > 20
    for k, v in statistics[0].items():
        assert not torch.equal(v, before[k]) and torch.equal(v, statistics[1][k]), k


@pytest.mark.parametrize("make", [convnext, dinov2, dinov3])
def test_every_trainable_parameter_has_a_gradient(make):
    backbone = backbone_of(make()).train()
    sum(x.square().sum() for x in backbone(torch.randn(1, 3, 64, 64))).backward()
    assert not [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]


def test_a_network_without_gradient_checkpointing_says_so():
    backbone = backbone_of(convnext())
    backbone.gradient_checkpointing = True
    assert not backbone.gradient_checkpointing


def test_pretrained_weights_come_from_a_folder(tmp_path):
    source = transformers.ConvNextForImageClassification(convnext())
    source.save_pretrained(tmp_path)
    config = Mask2FormerConfig(backbone=str(tmp_path), use_pretrained_backbone=True, **SMALL)
    assert "id2label" not in config.backbone_config.to_diff_dict()
    body = make_backbone(config).body
    theirs = source.convnext.state_dict()
    shared = [name for name in body.state_dict() if not name.startswith("hidden_states_norms")]
    assert len(shared) > 10
    assert all(torch.equal(body.state_dict()[name], theirs[name]) for name in shared)


def test_pretrained_weights_out_of_reach_are_one_sentence(tmp_path):
    config = convnext()
    config.save_pretrained(tmp_path)  # and no weights
    config = Mask2FormerConfig(backbone=str(tmp_path), use_pretrained_backbone=True)
    with pytest.raises(DataError, match=r"weights of '.*' could not be fetched .*connect to"):
        make_backbone(config)


def test_without_transformers_the_command_to_install_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = r"'convnext', .* needs .* transformers.* pip install mask2former\[transformers\]"
    with pytest.raises(DataError, match=message):
        Mask2FormerConfig(backbone_config={"model_type": "convnext"})
