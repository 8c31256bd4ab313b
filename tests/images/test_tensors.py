import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.images.tensors import image_list, image_tensor
from mask2former.io.errors import DataError


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def channels_first(array):
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def test_lists_tuples_and_batches_become_lists_and_one_image_a_list_of_one():
    image = pixels(5, 7, 3)
    assert len(image_list([image, image], 3)) == 2
    assert len(image_list((image,), 3)) == 1
    assert len(image_list(np.stack([image] * 4), 3)) == 4
    assert len(image_list(torch.zeros(2, 3, 5, 7), 3)) == 2
    assert image_list(image, 3)[0] is image


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        image_list([], 3)


@pytest.mark.parametrize("kind", ["last", "first", "torch last", "torch first", "reversed", "pil"])
def test_layouts_and_containers_give_the_same_tensor(kind):
    array = pixels(5, 7, 3)
    image = {
        "last": array,
        "first": np.ascontiguousarray(array.transpose(2, 0, 1)),
        "torch last": torch.from_numpy(array),
        "torch first": channels_first(array),
        "reversed": array[:, ::-1].copy()[:, ::-1],  # a view of negative stride
        "pil": Image.fromarray(array),
    }[kind]
    assert torch.equal(image_tensor(image, 0), channels_first(array))


def test_an_ambiguous_layout_is_channels_first_unless_said_otherwise():
    array = pixels(3, 7, 3)
    assert torch.equal(image_tensor(array, 0), torch.from_numpy(array))
    assert torch.equal(image_tensor(array, 0, "channels_last"), channels_first(array))


def test_a_pil_image_is_never_ambiguous():
    array = pixels(4, 7, 3)
    assert torch.equal(image_tensor(Image.fromarray(array), 0), channels_first(array))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (1, 5, 7)])
def test_grey_is_repeated_into_three_channels(shape):
    array = pixels(*shape)
    expected = torch.from_numpy(array.reshape(5, 7)).expand(3, 5, 7)
    assert torch.equal(image_tensor(array, 0), expected)


def test_alpha_is_dropped():
    array = pixels(5, 7, 4)
    assert torch.equal(image_tensor(array, 0), channels_first(array)[:3])
    assert torch.equal(image_tensor(Image.fromarray(array), 0), channels_first(array)[:3])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_pil_modes_become_rgb(mode):
    image = Image.fromarray(pixels(6, 9, 3)).convert(mode)
    expected = channels_first(np.array(image.convert("RGB")))
    assert torch.equal(image_tensor(image, 0), expected)


def test_a_palette_with_transparency_keeps_its_colours():
    image = Image.fromarray(pixels(6, 9, 3)).convert("P")
    expected = channels_first(np.array(image.convert("RGB")))
    image.info["transparency"] = bytes([0, 128, 255])
    assert torch.equal(image_tensor(image, 0), expected)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_to_eight(dtype):
    array = np.array([[0, 128, 129, 257, 65535]], dtype=dtype)
    expected = torch.tensor([[0, 0, 1, 1, 255]], dtype=torch.uint8).expand(3, 1, 5)
    assert torch.equal(image_tensor(array, 0), expected)


def test_a_sixteen_bit_png_is_scaled_to_eight_bits(tmp_path):
    Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        assert image_tensor(image, 0)[0].tolist() == [[0, 128, 255]]


def test_a_sixteen_bit_png_may_come_as_mode_i():
    """As Pillow opened them before it had a mode for 16 bits."""
    image = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.int32))
    image.format = "PNG"
    assert image.mode == "I"
    assert image_tensor(image, 0)[0].tolist() == [[0, 128, 255]]


def test_bool_is_black_and_white():
    assert image_tensor(np.array([[True, False]]), 0)[2].tolist() == [[255, 0]]


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64, np.float16])
def test_other_dtypes_keep_their_values_as_float32(dtype):
    array = np.array([[0, 3, 255]], dtype=dtype)
    tensor = image_tensor(array, 0)
    assert tensor.dtype == torch.float32
    assert tensor[0].tolist() == [[0, 3, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    stored = pixels(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    with Image.open(tmp_path / "turned.png") as image:
        assert torch.equal(image_tensor(image, 0), channels_first(upright))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(pixels(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with Image.open(path) as image, pytest.raises(DataError, match=rf"Image 3 \(.*cut\.{suffix}"):
        image_tensor(image, 3)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_of_unknown_range_are_refused(mode):
    with pytest.raises(DataError, match=f"Image 1 .*mode {mode}"):
        image_tensor(Image.new(mode, (3, 3)), 1)


@pytest.mark.parametrize(
    "image",
    [pixels(5, 7), pixels(5, 7, 4), Image.new("L", (3, 3)), Image.new("P", (3, 3))],
    ids=["grey", "alpha", "pil grey", "pil palette"],
)
def test_what_is_not_rgb_can_be_refused(image):
    with pytest.raises(ValueError, match="Image 2 is not RGB"):
        image_tensor(image, 2, convert_rgb=False)
    assert image_tensor(pixels(5, 7, 3), 2, convert_rgb=False).shape == (3, 5, 7)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(DataError, match="Image 2 has no pixels"):
        image_tensor(np.zeros((0, 4, 3), dtype=np.uint8), 2)


@pytest.mark.parametrize(
    "image",
    ["photo.jpg", np.array([["a"]]), None, torch.zeros(3, 3, dtype=torch.complex64)],
    ids=["path", "strings", "none", "complex"],
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="Image 0 must"):
        image_tensor(image, 0)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((5, 7, 2), None), ((5,), None), ((5, 7, 3), "channels_first"), ((5, 7), "channels_last")],
)
def test_other_shapes_are_refused(shape, layout):
    with pytest.raises(ValueError, match="Image 0 of shape"):
        image_tensor(np.zeros(shape, dtype=np.uint8), 0, layout)
