import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.data.dataset import VOID
from mask2former.data.inspection import contact_sheet as module
from mask2former.data.inspection.contact_sheet import TILE, contact_sheet
from mask2former.data.scene_dataset import SceneDataset
from mask2former.images.visualization import label_colour
from mask2former.io.errors import DataError
from tests.data.memory import CountingScenes, MemoryDataset, sample


def shown(monkeypatch, dataset, samples, seed=0) -> list[str]:
    """The names of the samples on a sheet, in their order."""
    names = []
    tile = module._tile
    monkeypatch.setattr(
        module, "_tile", lambda sample, dataset: names.append(sample.name) or tile(sample, dataset)
    )
    contact_sheet(dataset, samples, seed)
    monkeypatch.undo()
    return names


def coloured(height, width, masks, labels, task="panoptic", **settings):
    """A data set of one grey picture."""
    one = sample(np.broadcast_to(masks, (height, width)).tolist(), labels, **settings)
    return MemoryDataset([one], task)


def panels(dataset) -> tuple[np.ndarray, np.ndarray]:
    """Picture and overlay of a sheet of one sample, float."""
    sheet = np.asarray(contact_sheet(dataset, 1)).astype(float)
    height, width = dataset[0].size
    scale = TILE / max(height, width)
    height, width = round(scale * height), round(scale * width)
    top = left = module._GAP
    second = left + width + module._SEAM
    rows = slice(top, top + height)
    return sheet[rows, left : left + width], sheet[rows, second : second + width]


def test_samples_are_spread_over_the_data_set_and_chosen_by_the_seed(monkeypatch):
    dataset = SceneDataset(range(60), 32)
    names = shown(monkeypatch, dataset, 6)
    seeds = [int(name.split()[1]) for name in names]
    assert [seed // 10 for seed in seeds] == [0, 1, 2, 3, 4, 5]
    assert shown(monkeypatch, dataset, 6) == names
    assert shown(monkeypatch, dataset, 6, seed=1) != names


def test_no_more_samples_than_there_are(monkeypatch):
    dataset = SceneDataset(range(3), 32)
    assert shown(monkeypatch, dataset, 12) == ["scene 0", "scene 1", "scene 2"]


def test_bad_samples_are_replaced_by_others(monkeypatch):
    good = sample([[0] * 40] * 30, [0], "good.png")
    assert shown(monkeypatch, MemoryDataset(["bad", good, "bad", "bad"]), 2) == ["good.png"]


def test_a_data_set_that_cannot_be_read_has_no_sheet():
    for samples in ([], ["bad"]):
        with pytest.raises(DataError, match="No sample"):
            contact_sheet(MemoryDataset(samples), 3)
    with pytest.raises(ValueError, match="samples is 0"):
        contact_sheet(SceneDataset([1]), 0)


def test_segments_have_their_colours_and_void_is_dark():
    masks = np.zeros((64, 128), int)
    masks[:, 40:80], masks[:, 80:] = 1, VOID
    picture, overlay = panels(coloured(64, 128, masks, [0, 2]))
    assert np.all(np.abs(picture - 128) <= 1)
    width = picture.shape[1]
    for part, label in ((slice(0, 40), 0), (slice(40, 80), 2)):
        columns = slice(round(part.start / 128 * width) + 8, round(part.stop / 128 * width) - 8)
        expected = (np.array(label_colour(label)) + 128) / 2
        found = np.median(overlay[:60, columns].reshape(-1, 3), axis=0)
        assert found == pytest.approx(expected, abs=2)
    dark = overlay[:, round(80 / 128 * width) + 8 :]
    assert np.all(np.abs(dark - 128 * module._DARKNESS) <= 2)


def test_the_smaller_of_two_overlapping_masks_is_on_top_and_the_rest_stays_as_it_is():
    masks = torch.zeros(2, 90, 90, dtype=torch.bool)
    masks[1, :60], masks[0, 20:40, 20:40] = True, True
    _, overlay = panels(MemoryDataset([sample(masks.tolist(), [0, 2])], "instance"))
    at = [round(k / 90 * TILE) for k in (10, 25, 85)]
    colours = {label: (np.array(label_colour(label)) + 128) / 2 for label in (0, 2)}
    assert overlay[at[0], at[0]] == pytest.approx(colours[2], abs=2)
    assert overlay[at[1], at[1]] == pytest.approx(colours[0], abs=2)
    assert overlay[at[2], at[2]] == pytest.approx([128] * 3, abs=2)


def test_ignored_pixels_are_dark_too():
    _, overlay = panels(coloured(64, 64, -2, []))
    assert np.all(np.abs(overlay - 128 * module._DARKNESS) <= 2)


def test_crowds_are_marked(monkeypatch):
    tags = []
    draw = module.draw_segments

    def noted(picture, ids, segments):
        tags.extend(segment["label"] for segment in segments)
        return draw(picture, ids, segments)

    monkeypatch.setattr(module, "draw_segments", noted)
    contact_sheet(MemoryDataset([sample([[0, 1]], [1, 0], crowd=[True, False])]))
    assert tags == ["dog (crowd)", "cat"]


def test_names_stand_under_the_pictures():
    masks = np.zeros((64, 128), int)
    named, nameless = (
        np.asarray(contact_sheet(coloured(64, 128, masks, [0], name=name), 1)).astype(int)
        for name in ("holiday/photo-0012.jpg", "")
    )
    changed = np.argwhere((named != nameless).any(axis=2))
    assert len(changed) > 100
    assert changed[:, 0].min() >= module._GAP + TILE // 2


def test_long_names_lose_their_beginning():
    font = module.ImageFont.load_default(size=15)
    short = module._shortened("deep/" * 100 + "photo.jpg", font, 300)
    assert short.startswith("...") and short.endswith("photo.jpg")
    assert font.getlength(short) <= 300
    assert module._shortened("photo.jpg", font, 300) == "photo.jpg"


def test_pictures_of_all_sizes_share_a_sheet():
    sizes = [(32, 32), (300, 40), (40, 900), (1, 1), (1000, 1500)]
    images = [sample(torch.zeros(size).tolist(), [0], str(size)) for size in sizes]
    images = [dataclasses.replace(one, masks=one.masks.int()) for one in images]
    sheet = contact_sheet(MemoryDataset(images), len(images))
    assert isinstance(sheet, Image.Image) and sheet.mode == "RGB"
    assert sheet.width < 4 * sheet.height and sheet.height < 4 * sheet.width


def test_one_sample_at_a_time_is_in_memory():
    dataset = CountingScenes(range(12), 32)
    contact_sheet(dataset, 6)
    assert 1 <= dataset.most_alive <= 2  # the next is read before the last is forgotten
