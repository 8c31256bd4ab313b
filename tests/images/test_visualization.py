import itertools
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mask2former.images.visualization import (
    MAX_ENLARGED_SIDE,
    MIN_SIDE,
    draw_segments,
    id_map_to_rgb,
    label_colour,
    rgb_to_id_map,
    save_png,
    side_by_side,
)
from mask2former.scenes.scene import ID2LABEL, render_scene


@pytest.fixture
def tags(monkeypatch):
    """What is written on pictures: a list of (box, text, fill of the tag, fill of the text)."""
    boxes, written = [], []
    draw_box, draw_text = ImageDraw.ImageDraw.rounded_rectangle, ImageDraw.ImageDraw.text

    def rounded_rectangle(self, box, radius, fill):
        boxes.append((box, fill))
        draw_box(self, box, radius, fill=fill)

    def text(self, position, text, fill, font, **options):
        if boxes:
            box, colour = boxes.pop()
            written.append((box, text, colour, fill))
        draw_text(self, position, text, fill=fill, font=font, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rounded_rectangle", rounded_rectangle)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


def grey(height=600, width=700, level=128):
    return np.full((height, width, 3), level, np.uint8)


def halves(height=600, width=700):
    ids = np.zeros((height, width), np.int32)
    ids[:, : width // 2] = 4
    return ids


def test_only_listed_segments_are_coloured():
    ids = halves()
    ids[:, -50:] = 9  # not listed
    overlay = np.asarray(draw_segments(grey(), ids, [{"id": 4, "label_id": 1}], {1: "thing"}))
    assert overlay.shape == (600, 700, 3)
    np.testing.assert_array_equal(overlay[:, 400:], grey()[:, 400:])
    # Away from the contour and the tag in the middle, half of the label's colour.
    blend = (np.array(label_colour(1)) + 128) / 2
    np.testing.assert_allclose(overlay[20:200, 20:320].reshape(-1, 3) - blend, 0, atol=1)


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_opacity_is_the_share_of_the_colour(opacity):
    segments = [{"id": 4, "label_id": 2}]
    overlay = np.asarray(draw_segments(grey(), halves(), segments, {2: "x"}, opacity=opacity))
    expected = opacity * np.array(label_colour(2)) + (1 - opacity) * 128
    np.testing.assert_allclose(overlay[100, 100], expected, atol=1)


def test_contours_have_the_full_colour_where_segments_end():
    segments = [{"id": 4, "label_id": 3}]
    overlay = np.asarray(draw_segments(grey(), halves(), segments, {3: "x"}, opacity=0.2))
    np.testing.assert_array_equal(overlay[100, 348], label_colour(3))
    # The picture's own edge is no contour.
    np.testing.assert_array_equal(overlay[100, 0], overlay[100, 100])


def test_neighbouring_segments_of_one_label_differ():
    ids = halves()
    ids[ids == 0] = 7
    segments = [{"id": 4, "label_id": 0}, {"id": 7, "label_id": 0}]
    overlay = np.asarray(draw_segments(grey(), ids, segments, {0: "x"})).astype(int)
    assert np.abs(overlay[100, 100] - overlay[100, 600]).max() > 20
    shuffled = draw_segments(grey(), ids, segments[::-1], {0: "x"})
    np.testing.assert_array_equal(overlay, np.asarray(shuffled))


def test_colours_are_distinct():
    first = [label_colour(label) for label in range(133)]
    assert len(set(first)) == 133
    distances = [np.abs(np.subtract(*pair)).max() for pair in itertools.combinations(first[:20], 2)]
    assert min(distances) > 20
    assert len({label_colour(0, instance) for instance in range(20)}) == 20
    assert all(0 <= channel <= 255 for colour in first for channel in colour)


def test_tags_name_label_and_score(tags):
    ids = halves()
    ids[400:, 400:] = 5
    ids[:100, 400:] = 6
    segments = [
        {"id": 4, "label_id": 1, "score": 0.876},
        {"id": 5, "label_id": 8},
        {"id": 6, "label_id": 2, "label": "dog"},
    ]
    draw_segments(grey(), ids, segments, {1: "cat"})
    assert sorted(text for _, text, _, _ in tags) == ["8", "cat 0.88", "dog"]


def test_tags_lie_in_their_segment_where_they_fit(tags):
    ids = halves()
    draw_segments(grey(), ids, [{"id": 4, "label_id": 1}], {1: "cat"})
    ((left, top, right, bottom), *_) = tags[0]
    assert (ids[top : bottom + 1, left : right + 1] == 4).all()


def test_tags_leave_small_segments_visible(tags):
    for row, column in [(0, 0), (0, 690), (590, 0), (590, 690), (300, 300)]:
        ids = np.zeros((600, 700), np.int32)
        ids[row : row + 10, column : column + 10] = 1
        draw_segments(grey(), ids, [{"id": 1, "label_id": 1}], {1: "a long name"})
        left, top, right, bottom = tags.pop()[0]
        assert not ids[top : bottom + 1, left : right + 1].any()


@pytest.mark.parametrize("name", ["x", "a name that is much too long for the picture " * 4])
def test_tags_stay_in_the_picture(tags, name):
    rng = np.random.default_rng(5)
    ids = np.zeros((512, 560), np.int32)
    for i in range(1, 20):
        row, column = rng.integers(-20, 540, 2)
        ids[max(0, row) : row + 60, max(0, column) : column + 60] = i
    segments = [{"id": int(i), "label_id": 2} for i in np.unique(ids[ids > 0])]
    draw_segments(grey(512, 560), ids, segments, {2: name})
    assert len(tags) == len(segments)
    for left, top, right, bottom in (tag[0] for tag in tags):
        assert 0 <= left < right < 560
        assert 0 <= top < bottom < 512


def test_tags_of_neighbours_do_not_overlap(tags):
    ids = np.zeros((600, 700), np.int32)
    for i in range(1, 5):  # four narrow segments side by side, each with a wide tag
        ids[250:350, 300 + 20 * i : 320 + 20 * i] = i
    draw_segments(grey(), ids, [{"id": i, "label_id": 2} for i in range(1, 5)], {2: "a wide name"})
    assert len(tags) == 4
    for first, second in itertools.combinations([tag[0] for tag in tags], 2):
        beside = first[2] < second[0] or second[2] < first[0]
        assert beside or first[3] < second[1] or second[3] < first[1]


def test_text_contrasts_with_its_tag(tags):
    ids = np.arange(1, 31, dtype=np.int32).repeat(20)[:, None].repeat(600, axis=1)
    segments = [{"id": i, "label_id": i} for i in range(1, 31)]
    draw_segments(grey(600, 600), ids, segments, {})
    assert {text for *_, text in tags} == {"black", "white"}
    for _, _, colour, text in tags:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in np.divide(colour, 255)
        ]
        luminance = np.dot(linear, (0.2126, 0.7152, 0.0722))
        contrast = (luminance + 0.05) / 0.05 if text == "black" else 1.05 / (luminance + 0.05)
        assert contrast >= 4.5  # WCAG 2.1, level AA


def test_small_pictures_are_enlarged_by_a_whole_number():
    scene = render_scene(3, 100, 130)
    overlay = draw_segments(scene.image, scene.segmentation, scene.segments_info, ID2LABEL)
    assert overlay.size == (130 * 6, 100 * 6)
    assert min(overlay.size) >= MIN_SIDE


def test_enlarged_masks_stay_in_place():
    scene = render_scene(12, 64, 64)
    flat = np.zeros_like(scene.image)
    overlay = draw_segments(flat, scene.segmentation, scene.segments_info, ID2LABEL, opacity=1)
    colours = {}
    for segment in scene.segments_info:
        order = sum(
            s["label_id"] == segment["label_id"] for s in scene.segments_info[: segment["id"]]
        )
        colours[segment["id"]] = label_colour(segment["label_id"], order - 1)
    expected = np.array([(0, 0, 0), *colours.values()])[scene.segmentation]
    found = np.asarray(overlay)[4::8, 4::8].astype(int)
    # Hairlines and tags cover some of it.
    assert np.mean((found == expected).all(-1)) > 0.8


def test_a_long_thin_picture_is_not_blown_up():
    ids = np.ones((6, 1500), np.int32)
    overlay = draw_segments(grey(6, 1500), ids, [{"id": 1, "label_id": 0}], {0: "line"})
    assert max(overlay.size) <= MAX_ENLARGED_SIDE
    wide = draw_segments(grey(6, 5000), np.ones((6, 5000), np.int32), [], {})
    assert wide.size == (5000, 6)


def test_inputs_may_be_pil_and_tensors_and_stay_unchanged():
    image, ids = grey(), halves()
    segments = [{"id": 4, "label_id": 1}]
    from_arrays = draw_segments(image, ids, segments, {1: "x"})
    from_others = draw_segments(Image.fromarray(image), torch.from_numpy(ids), segments, {1: "x"})
    assert from_arrays.tobytes() == from_others.tobytes()
    np.testing.assert_array_equal(image, grey())
    np.testing.assert_array_equal(ids, halves())


def test_grey_and_transparent_pictures_do():
    for mode in ("L", "RGBA", "P"):
        picture = Image.fromarray(grey()).convert(mode)
        assert draw_segments(picture, halves(), [{"id": 4, "label_id": 1}], {1: "x"}).mode == "RGB"


def test_listed_segments_without_a_pixel_are_left_out(tags):
    draw_segments(grey(), halves(), [{"id": 4, "label_id": 1}, {"id": 5, "label_id": 1}], {1: "x"})
    assert len(tags) == 1


def test_bad_pictures_are_named():
    with pytest.raises(ValueError, match=r"segmentation is \(600, 700\) but the image is \(5, 6\)"):
        draw_segments(grey(5, 6), halves(), [], {})
    with pytest.raises(ValueError, match="image is float64"):
        draw_segments(grey() / 255.0, halves(), [], {})
    with pytest.raises(ValueError, match="no panel"):
        side_by_side([])


def test_panels_stand_side_by_side_at_one_height():
    red, blue = (200, 0, 0), (0, 0, 200)
    small, large = np.full((50, 40, 3), red, np.uint8), np.full((100, 120, 3), blue, np.uint8)
    sheet = np.asarray(side_by_side([("small", small), ("large", Image.fromarray(large))]))
    corners = []
    for colour, width in ((red, 80), (blue, 120)):
        rows, columns = np.nonzero((sheet == colour).all(-1))
        assert rows.max() - rows.min() + 1 == 100
        assert columns.max() - columns.min() + 1 == width
        assert len(rows) == 100 * width
        corners.append((rows.min(), columns.min()))
    assert corners[0][0] == corners[1][0]
    assert corners[0][1] + 80 < corners[1][1]
    titles = sheet[: corners[0][0]]
    assert (titles[:, : corners[1][1]] < 100).any()
    assert (titles[:, corners[1][1] :] < 100).any()


def test_a_long_title_widens_its_panel_and_is_not_cut():
    sheet = np.asarray(side_by_side([("a title longer than its picture", grey(100, 20))]))
    assert sheet.shape[1] > 100
    assert (sheet[:, [0, -1]] == 255).all()


def test_id_maps_survive_the_coco_encoding():
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 2**24, (13, 17))
    rgb = id_map_to_rgb(torch.from_numpy(ids))
    assert rgb.dtype == np.uint8
    weights = (1, 256, 65536)
    np.testing.assert_array_equal(rgb.astype(int) @ weights, ids)
    back = rgb_to_id_map(rgb)
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, ids)


@pytest.mark.parametrize("wrong", [-1, 2**24])
def test_ids_that_do_not_fit_are_named(wrong):
    with pytest.raises(ValueError, match=str(wrong)):
        id_map_to_rgb(np.array([[0, wrong]]))


def test_png_files_are_lossless_and_replace_old_ones(tmp_path):
    ids = np.arange(600).reshape(20, 30)
    path = tmp_path / "ids.png"
    path.write_text("old")
    save_png(id_map_to_rgb(ids), path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(rgb_to_id_map(picture), ids)
    assert [file.name for file in tmp_path.iterdir()] == ["ids.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_text("old")

    def fail(self, target, format):
        target.write_text("half of a")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Image.Image, "save", fail)
        save_png(grey(), path)
    assert path.read_text() == "old"

    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(os, "replace", refuse)
        save_png(grey(), path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_png(grey(), tmp_path / "nowhere" / "picture.png")
