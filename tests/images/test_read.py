import numpy as np
import pytest
from PIL import Image

from mask2former.images.read import open_image, read_image
from mask2former.io.errors import DataError


@pytest.fixture
def picture():
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_a_rotated_photograph_is_read_upright(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn right by 90 degrees to see it upright
    picture.save(tmp_path / "phone.png", exif=exif)
    image = read_image(tmp_path / "phone.png")
    np.testing.assert_array_equal(np.asarray(image), np.rot90(np.asarray(picture), k=-1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_any_mode_is_read_as_rgb(picture, tmp_path, mode):
    path = tmp_path / "image.tiff"
    picture.convert(mode).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", picture.size)


def test_16_bit_grey_values_are_scaled_and_not_clipped(tmp_path):
    grey = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    image = np.asarray(read_image(tmp_path / "deep.png"))
    np.testing.assert_array_equal(image, np.repeat(np.round(grey / 257)[..., None], 3, axis=2))


def test_unreadable_files_raise_a_data_error_that_names_them(tmp_path):
    with pytest.raises(DataError, match="nowhere.png"):
        read_image(tmp_path / "nowhere.png")


def test_a_file_can_be_opened_in_its_own_mode(picture, tmp_path):
    picture.convert("P").save(tmp_path / "map.png")
    assert open_image(tmp_path / "map.png").mode == "P"


def test_values_of_unknown_range_are_a_data_error_that_names_the_file(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(DataError, match=r"depth\.tiff is a PIL image of mode F"):
        read_image(tmp_path / "depth.tiff")
