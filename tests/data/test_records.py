import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from PIL import Image

from mask2former.data.records import (
    BadRecords,
    Listing,
    PackedRecords,
    files_below,
    read_pixels,
)
from mask2former.io.errors import DataError
from tests.data.files import write_picture


def test_the_first_bad_record_stops_with_a_remedy():
    bad = BadRecords(skip=False)
    with pytest.raises(DataError, match="a.json: image 3 is gone. Mend it, .* --skip-bad"), bad:
        raise DataError("a.json: image 3 is gone.")


def test_bad_records_are_left_out_with_their_reasons():
    bad, good = BadRecords(skip=True), []
    for number in range(4):
        with bad:
            if number % 2:
                raise DataError(f"{number} is odd.")
            good.append(number)
    assert good == [0, 2]
    assert bad.reasons == ["1 is odd.", "3 is odd."]


def test_files_below_a_folder_may_be_behind_links_and_have_suffixes_in_capitals(tmp_path):
    for name in ("in/a.png", "in/._a.png", "in/deep/b.JPG", "in/c.txt", "out/d.png"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    found = files_below(tmp_path / "in", (".png", ".jpg"))
    names = sorted(file.relative_to(tmp_path / "in").as_posix() for file in found)
    assert names == ["a.png", "deep/b.JPG", "link/d.png"]


def test_no_other_exception_is_swallowed():
    with pytest.raises(ZeroDivisionError), BadRecords(skip=True):
        1 / 0  # noqa: B018


def test_packed_records_are_the_records():
    records = [{"a": [1.5, 2]}, (), "text", [None] * 3]
    packed = PackedRecords(iter(records))
    assert list(packed) == records
    assert packed[-1] == records[-1]
    assert list(pickle.loads(pickle.dumps(packed))) == records
    for index in (4, -5):
        with pytest.raises(IndexError):
            packed[index]
    assert len(PackedRecords([])) == 0


def test_records_are_not_copied_into_every_worker_process():
    records = PackedRecords([f"{number} {'x' * 1000}" for number in range(1000)])
    sent = ForkingPickler.dumps(records)  # as it is sent to a process that is spawned
    assert len(sent) < 20_000  # of a million, measured: 8500, most of it the edges
    assert pickle.loads(sent)[7].startswith("7 x")


def test_a_listing_looks_into_each_folder_once(tmp_path, monkeypatch):
    write_picture(tmp_path / "a" / "1.png")
    listing = Listing()
    assert listing.has(tmp_path / "a" / "1.png")
    monkeypatch.setattr("os.listdir", None)
    assert not listing.has(tmp_path / "a" / "2.png")
    assert not listing.has(tmp_path / "nowhere" / "1.png")


def test_pixels_are_read_upright_in_the_order_of_the_model(tmp_path):
    pixels = write_picture(tmp_path / "a.png", 4, 6)
    image = read_pixels(tmp_path / "a.png", (4, 6))
    assert image.stride() == (1, 18, 3)  # as the decoder wrote it
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels)


def test_an_image_of_another_size_is_named(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(DataError, match="a.jpg is 6x4 .* but x.json is for 4x6; .* EXIF"):
        read_pixels(tmp_path / "a.jpg", (4, 6), "x.json")
