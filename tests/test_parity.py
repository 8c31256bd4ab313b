"""Agreement with the transformers implementation, on identical random weights and points."""

import contextlib

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from mask2former import (
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    Mask2FormerModel,
)
from mask2former.checkpoints.huggingface import to_huggingface
from mask2former.losses import loss
from mask2former_ops import uncertain_points
from tests.reference import (
    make_labels,
    randomise,
    relative_error,
    same_points,
    transformers_model,
)

LIMIT = 1e-9  # relative L2 error in float64; measured: outputs 4.4e-15, gradients 1.3e-11
# A gradient that is zero but for rounding, as that of an attention's key bias, has no relative
# error; it is compared with this part of the gradient of all parameters.
NEGLIGIBLE = 1e-6

SMALL = {
    "feature_size": 64,
    "mask_feature_size": 64,
    "hidden_dim": 64,
    "num_attention_heads": 4,
    "encoder_layers": 2,
    "encoder_feedforward_dim": 96,
    "decoder_layers": 5,
    "dim_feedforward": 96,
    "train_num_points": 200,
}
SWIN = {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}
RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 1, 1]}
FIVE = {
    "hidden_sizes": [16, 32, 48, 64, 64],
    "depths": [1] * 5,
    "out_features": [f"stage{number}" for number in range(1, 6)],
}

# backbone, options of the backbone, options of the model, image size
CASES = {
    "swin window 7": ("swin", SWIN, {}, (92, 124)),
    "swin window 12": ("swin", SWIN | {"window_size": 12, "embed_dim": 32}, {}, (131, 77)),
    "swin no qkv bias": ("swin", SWIN | {"qkv_bias": False, "mlp_ratio": 2.0}, {}, (64, 96)),
    "resnet bottleneck": ("resnet", RESNET, {}, (97, 65)),
    "resnet basic": ("resnet", RESNET | {"layer_type": "basic"}, {}, (64, 64)),
    "resnet coarse": ("resnet", RESNET | {"downsample_in_first_stage": True}, {}, (128, 160)),
    "resnet first": ("resnet", RESNET | {"downsample_in_bottleneck": True}, {}, (70, 90)),
    "pre-norm": ("swin", SWIN, {"pre_norm": True}, (70, 90)),
    "pre-norm resnet": ("resnet", RESNET, {"pre_norm": True, "dim_feedforward": 33}, (64, 96)),
    "projection": ("resnet", RESNET, {"enforce_input_projection": True}, (64, 96)),
    "widths": ("resnet", RESNET, {"hidden_dim": 32, "mask_feature_size": 48}, (64, 96)),
    "one query": ("resnet", RESNET, {"num_queries": 1}, (64, 96)),
    "200 queries": ("swin", SWIN, {"num_queries": 200}, (33, 65)),
    "stride 8": ("resnet", RESNET, {"common_stride": 8}, (96, 64)),
    "two FPN levels": ("resnet", RESNET | FIVE, {"feature_strides": [4, 8, 16, 32, 64]}, (128, 64)),
    "gelu": ("resnet", RESNET, {"activation_function": "gelu", "encoder_layers": 1}, (64, 96)),
    "one layer": ("resnet", RESNET, {"decoder_layers": 2, "encoder_layers": 1}, (64, 96)),
    "weights": (
        "resnet",
        RESNET,
        {"no_object_weight": 0.4, "class_weight": 1.0, "mask_weight": 20.0, "dice_weight": 1.0},
        (64, 96),
    ),
    "points": (
        "resnet",
        RESNET,
        {"train_num_points": 77, "oversample_ratio": 2.0, "importance_sample_ratio": 0.5},
        (64, 96),
    ),
}

ASKED = {
    "output_hidden_states": True,
    "output_auxiliary_logits": True,
    "output_attentions": True,
}


@pytest.fixture(autouse=True, scope="module")
def float64():
    """transformers draws its points in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def both_models(theirs, folder):
    """Ours, loaded from the folder that a transformers model with random weights wrote, and it."""
    theirs = randomise(theirs, seed=1).double().eval()
    theirs.save_pretrained(folder)
    return Mask2FormerForUniversalSegmentation.from_pretrained(folder), theirs


def random_pixels(size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(2))


def assert_outputs_agree(ours, theirs):
    """Every field of both, tuple fields entry by entry; decoder hidden states are batch first."""
    own = {"loss", "image_sizes", "loss_dict"}  # which theirs does without, or without labels
    shared = [name for name in ours if name not in own]
    assert shared == [name for name in theirs if name not in own]
    for name in theirs:
        a, b = ours[name], theirs[name]
        if name == "transformer_decoder_hidden_states":
            b = [state.transpose(0, 1) for state in b]
        if name == "auxiliary_logits":
            a, b = ([part[key] for part in x for key in sorted(part)] for x in (a, b))
        if isinstance(a, torch.Tensor):
            a, b = [a], [b.reshape(a.shape) if name == "loss" else b]
        assert len(a) == len(b), name
        for x, y in zip(a, b, strict=True):
            assert relative_error(x, y) < LIMIT, name


def gradients_by_file_name(ours, theirs, folder):
    """In memory transformers has other names; in writing a file it translates them."""
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    theirs.save_pretrained(folder, state_dict=gradients)
    b = load_file(folder / "model.safetensors")
    a = to_huggingface({name: p.grad for name, p in ours.named_parameters()}, ours.config)
    return {name: a[name] for name in b}, b


def assert_losses_and_gradients_agree(
    ours, theirs, pixels, masks, classes, folder, points=same_points
):
    losses = []
    for model in (ours, theirs):
        model.zero_grad()
        with points():
            losses.append(model(pixels, mask_labels=masks, class_labels=classes).loss)
        losses[-1].backward()
    assert relative_error(losses[0], losses[1].squeeze()) < LIMIT
    assert all(p.grad is not None for p in ours.parameters())
    a, b = gradients_by_file_name(ours, theirs, folder)
    assert sum(g.numel() for g in a.values()) == sum(p.numel() for p in ours.parameters())
    total = torch.stack([g.norm() for g in b.values()]).norm()
    for name, gradient in b.items():
        difference = (a[name] - gradient).norm()
        assert difference < LIMIT * max(gradient.norm(), NEGLIGIBLE * total), name


# ---- the published sizes -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["swin", "resnet"])
def models(request, float64, tmp_path_factory):
    """Swin-T and ResNet-50."""
    return both_models(transformers_model(request.param), tmp_path_factory.mktemp(request.param))


def test_every_output_agrees(models):
    pixels = random_pixels((92, 124))  # no multiple of 32, nor of a window
    with torch.no_grad():
        ours, theirs = (model(pixels, **ASKED) for model in models)
    assert len(ours.transformer_decoder_hidden_states) == 10
    assert len(ours.auxiliary_logits) == len(ours.attentions) == 9
    assert_outputs_agree(ours, theirs)


def test_loss_and_every_gradient_agree(models, tmp_path):
    masks, classes = make_labels(3, [4, 7], (92, 124), num_labels=5)
    pixels = random_pixels((92, 124))
    assert_losses_and_gradients_agree(*models, pixels, masks, classes, tmp_path)


def test_loss_and_every_gradient_agree_at_the_points_that_we_select(models, tmp_path, monkeypatch):
    """Our own selection runs in our loss, and transformers' loss gets the points that it found."""
    ours, theirs = models
    images, predictions = 2, ours.config.decoder_layers
    selected = []

    def select(logits, *options):
        selected.append(uncertain_points(logits, *options))
        return selected[-1]

    def selected_for(criterion, logits, *options):
        # Ours selects for all predictions of an image, theirs for all images of a prediction.
        layer = next(order)
        return torch.cat([selected[i * predictions + layer] for i in range(images)])

    @contextlib.contextmanager
    def our_points():
        with same_points():
            monkeypatch.setattr(loss, "uncertain_points", select)
            yield

    order = iter([predictions - 1, *range(predictions - 1)])  # of theirs: the last one comes first
    monkeypatch.setattr(type(theirs.criterion), "sample_points_using_uncertainty", selected_for)
    masks, classes = make_labels(3, [4, 7], (92, 124), num_labels=5)
    pixels = random_pixels((92, 124))
    assert_losses_and_gradients_agree(*models, pixels, masks, classes, tmp_path, our_points)
    assert next(order, None) is None
    assert len(selected) == images * predictions
    assert selected[0].unique(dim=0).shape == (4, ours.config.train_num_points, 2)  # own points


def test_folder_that_we_write_loads_in_transformers(models, tmp_path):
    ours, theirs = models
    ours.save_pretrained(tmp_path)
    again, report = type(theirs).from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float64
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    written = again.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(written[name], tensor) or "swin.layernorm" in name  # which nothing uses


def test_bare_model_loads_the_folder_of_a_bare_transformers_model(models, tmp_path):
    ours, theirs = models
    theirs.model.save_pretrained(tmp_path)
    again = Mask2FormerModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.model.state_dict().items())


# ---- the matrix ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", list(CASES))
def test_outputs_loss_and_gradients_agree_in_every_configuration(case, tmp_path):
    backbone, backbone_options, options, size = CASES[case]
    ours, theirs = both_models(
        transformers_model(backbone, backbone_options, **SMALL | options), tmp_path
    )
    pixels = random_pixels(size)
    masks, classes = make_labels(3, [3, 2], size, num_labels=5)
    with torch.no_grad():
        assert_outputs_agree(ours(pixels, **ASKED), theirs(pixels, **ASKED))
        assert_outputs_agree(
            ours.model(pixels, output_hidden_states=True),
            theirs.model(pixels, output_hidden_states=True),
        )
    assert_losses_and_gradients_agree(ours, theirs, pixels, masks, classes, tmp_path)


def test_training_mode_agrees_with_its_batch_statistics(tmp_path):
    ours, theirs = both_models(transformers_model("resnet", RESNET, **SMALL), tmp_path)
    pixels = random_pixels((64, 96))
    masks, classes = make_labels(3, [3, 2], (64, 96), num_labels=5)
    models = (ours.train(), theirs.train())
    assert_losses_and_gradients_agree(*models, pixels, masks, classes, tmp_path / "again")
    statistics = to_huggingface(ours.state_dict(), ours.config)
    for name, tensor in theirs.state_dict().items():
        if "running" in name:
            assert relative_error(statistics[name], tensor) < LIMIT


@pytest.mark.parametrize("asked", [{}, ASKED])
def test_tuples_have_the_same_entries(tmp_path, asked):
    ours, theirs = both_models(transformers_model("resnet", RESNET, **SMALL), tmp_path)
    pixels = random_pixels((64, 64))
    hidden = {"output_hidden_states": True} if asked else {}
    with torch.no_grad():
        a, b = (model(pixels, **asked, return_dict=False) for model in (ours, theirs))
        c, d = (m.model(pixels, **hidden, return_dict=False) for m in (ours, theirs))
    assert isinstance(a, tuple)
    assert len(a) == len(b) == (10 if asked else 5)
    assert len(c) == len(d) == (8 if asked else 4)
    for x, y in (*zip(a[:2], b[:2], strict=True), *zip(c[:3], d[:3], strict=True)):
        assert relative_error(x, y) < LIMIT


# ---- batches of images of different sizes --------------------------------------------------------


def random_images(sizes):
    generator = torch.Generator().manual_seed(5)
    arrays = [
        torch.randint(256, (*size, 3), generator=generator, dtype=torch.uint8) for size in sizes
    ]
    return [Image.fromarray(array.numpy()) for array in arrays]


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_a_batch_of_the_compatible_processor_agrees(backbone, tmp_path):
    """transformers takes a pixel mask and does not look at it; ours does the same without one."""
    options = {"swin": SWIN, "resnet": RESNET}[backbone]
    ours, theirs = both_models(transformers_model(backbone, options, **SMALL), tmp_path)
    sizes = [(61, 90), (75, 40)]
    maps = [torch.arange(h * w).view(h, w) // (h * w // 5 + 1) for h, w in sizes]
    processor = Mask2FormerImageProcessor(hf_compat=True, do_resize=False)
    batch = processor(random_images(sizes), maps, return_tensors="pt")
    assert batch["pixel_mask"].min() == 0
    inputs = {
        "pixel_values": batch["pixel_values"].double(),
        "mask_labels": [masks.double() for masks in batch["mask_labels"]],
        "class_labels": batch["class_labels"],
    }
    with torch.no_grad(), same_points():
        a = ours(**inputs, **ASKED)
        b = theirs(**inputs, **ASKED, pixel_mask=batch["pixel_mask"])
    assert_outputs_agree(a, b)
    labels = inputs["mask_labels"], inputs["class_labels"]
    assert_losses_and_gradients_agree(
        ours, theirs, inputs["pixel_values"], *labels, tmp_path / "again"
    )


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_each_image_of_a_masked_batch_agrees_with_transformers_on_the_image_alone(
    backbone, tmp_path
):
    options = {"swin": SWIN, "resnet": RESNET}[backbone]
    ours, theirs = both_models(transformers_model(backbone, options, **SMALL), tmp_path)
    sizes = [(64, 96), (128, 64), (96, 96)]
    images = [random_pixels(size, batch=1) for size in sizes]
    pixels = torch.full((3, 3, 128, 160), 7.0)
    mask = torch.zeros(3, 128, 160)
    for i, (height, width) in enumerate(sizes):
        pixels[i, :, :height, :width], mask[i, :height, :width] = images[i][0], 1
    with torch.no_grad():
        together = ours(pixels, pixel_mask=mask)
        for i, (height, width) in enumerate(sizes):
            alone = theirs(images[i])
            logits = together.masks_queries_logits[i : i + 1, :, : height // 4, : width // 4]
            assert relative_error(logits, alone.masks_queries_logits) < LIMIT
            classes = together.class_queries_logits[i : i + 1]
            assert relative_error(classes, alone.class_queries_logits) < LIMIT


# ---- float32 -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_float32_agrees_at_full_size_but_where_a_mask_is_undecided(tmp_path):
    """Swin-T at 640x640, each query by itself.

    A logit of an attention mask that is zero but for rounding falls on either side, and moves what
    its query sees.
    """
    torch.set_default_dtype(torch.float32)
    try:
        theirs = randomise(transformers_model("swin", num_queries=100), seed=1).eval()
        theirs.save_pretrained(tmp_path)
        ours = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
        pixels = torch.randn(1, 3, 640, 640, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            a, b = ours(pixels), theirs(pixels, output_auxiliary_logits=True)
    finally:
        torch.set_default_dtype(torch.float64)
    decided = torch.ones(100, dtype=torch.bool)
    for index, prediction in enumerate(b.auxiliary_logits):
        size = (20 * 2 ** (index % 3),) * 2
        masks = F.interpolate(prediction["masks_queries_logits"], size, mode="bilinear")[0]
        decided &= masks.abs().amin((1, 2)) > 1e-5
    assert decided.sum() > 50  # 67
    for name in ("class_queries_logits", "masks_queries_logits"):
        for query in decided.nonzero()[:, 0]:
            error = relative_error(a[name][0, query], b[name][0, query])
            assert error < 1e-4, name  # measured: 7.5e-6
