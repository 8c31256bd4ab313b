import multiprocessing
import os
import signal
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former import Mask2FormerImageProcessor
from mask2former.data.augmentation import Augmentation, coco_lsj, few_images, semantic_crop
from mask2former.data.batches import collated, make_loader
from mask2former.data.dataset import Sample, SegmentationDataset
from mask2former.data.records import read_pixels
from mask2former.data.scene_dataset import SceneDataset
from mask2former.io.errors import DataError
from mask2former.losses.annotations import VOID
from tests.reference import same_points, tiny_model

PROCESSOR = Mask2FormerImageProcessor(size={"height": 32, "width": 48}, image_std=[0.2, 0.3, 0.4])
SCENES = SceneDataset(range(5), 32)
CLASSES = len(SCENES.id2label)


class FileDataset(SegmentationDataset):
    """Images in files, each one segment."""

    task, id2label, category_ids, thing_label_ids = "panoptic", {0: "thing"}, [0], [0]

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def name(self, index):
        return self.paths[index].name

    def __getitem__(self, index):
        image = read_pixels(self.paths[index])
        masks = torch.zeros(image.shape[-2:], dtype=torch.int32)
        return Sample(self.name(index), image, masks, torch.tensor([0]), torch.tensor([False]))


@pytest.fixture
def files(tmp_path):
    """Seven small images."""
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        Image.new("RGB", (12, 8), (number, 0, 0)).save(path)
    return FileDataset(paths)


def loader(dataset=SCENES, augment=None, **options):
    options = {"batch_size": 4, "steps": 6, "seed": 3, **options}
    return make_loader(dataset, PROCESSOR, augment or coco_lsj(32), **options)


def names(batches):
    return list(chain.from_iterable(batch["names"] for batch in batches))


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for key, value in batch.items():
        if key == "names":
            assert value == other[key]
        elif key == "annotations":
            assert_same_annotations(value, other[key])
        else:
            assert torch.equal(value, other[key])


def assert_same_annotations(some, others):
    for one, other in zip(some, others, strict=True):
        assert (one.ignored is None, one.ids is None) == (other.ignored is None, other.ids is None)
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other, name))
            else:
                assert value == getattr(other, name)


def test_a_batch_has_what_the_model_takes():
    for task in ("panoptic", "instance", "semantic"):
        for batch in loader(SceneDataset(range(5), 32, task)):
            assert batch["pixel_values"].shape == (4, 3, 32, 32)
            assert batch["pixel_values"].dtype == torch.float32
            for i in range(4):
                masks, labels = batch["annotations"][i].masks, batch["annotations"][i].labels
                assert labels.dtype == torch.int64
                if task == "instance":
                    assert masks.dtype == torch.bool
                    assert masks.shape == (len(labels), 32, 32)
                    assert masks.flatten(1).any(1).all()
                else:
                    assert masks.dtype == torch.int32
                    assert masks.shape == (32, 32)
                    assert set(masks.unique().tolist()) - {VOID} == set(range(len(labels)))


def test_images_are_normalized_as_the_processor_does_and_padded_with_zeros():
    sample = SCENES[0]
    wanted = PROCESSOR(sample.image, do_resize=False)["pixel_values"][0]
    small = replace(sample, image=sample.image[:, :20], masks=sample.masks[:20])
    batch = collated([sample, small], PROCESSOR, CLASSES, canvas=(32, 40))
    assert torch.equal(batch["pixel_values"][0, :, :, :32], wanted)
    assert torch.equal(batch["pixel_values"][1, :, :20, :32], wanted[:, :20])
    inside = torch.zeros(2, 32, 40, dtype=torch.bool)
    inside[0, :, :32] = inside[1, :20, :32] = True
    assert torch.equal(batch["pixel_mask"], inside)
    assert not batch["pixel_values"].transpose(0, 1)[:, ~inside].any()
    maps = torch.stack([annotation.masks for annotation in batch["annotations"]])
    assert (maps[~inside] == VOID).all()
    assert torch.equal(maps[1, :20, :32], sample.masks[:20])


def test_masks_are_padded_with_zeros():
    sample = SceneDataset([0], 32, "instance")[0]
    (annotation,) = collated([sample], PROCESSOR, CLASSES, canvas=(32, 40))["annotations"]
    masks = annotation.masks
    assert masks.dtype == torch.bool
    assert torch.equal(masks[..., :32], sample.masks)
    assert not masks[..., 32:].any()


def test_without_a_canvas_the_largest_image_and_the_divisor_decide():
    small, large = SceneDataset([0], 32)[0], SceneDataset([0], 40)[0]
    batch = collated([small, large], PROCESSOR, CLASSES)
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert "pixel_mask" not in collated([SCENES[0], SCENES[1]], PROCESSOR, CLASSES)


def test_settings_of_the_processor_that_are_for_prediction_change_nothing():
    processor = replace(
        PROCESSOR, do_center_crop=True, crop_size={"height": 8, "width": 8}, do_pad=False
    )
    samples = [SCENES[0], SceneDataset([0], 40)[0]]
    assert_same(collated(samples, processor, CLASSES), collated(samples, PROCESSOR, CLASSES))


def test_every_epoch_has_all_images_in_a_new_order():
    order = names(loader(steps=5))
    epochs = [order[first : first + 5] for first in range(0, 20, 5)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4  # of 120 orders
    assert names(loader(steps=5, seed=4)) != order


def test_a_data_set_smaller_than_a_batch_is_used_again():
    batches = list(loader(SceneDataset([8, 9], 32), batch_size=7, steps=2))
    assert [len(batch["names"]) for batch in batches] == [7, 7]
    assert names(batches).count("scene 8") == 7


def test_an_image_looks_different_whenever_it_comes():
    (batch,) = loader(SceneDataset([1], 32), coco_lsj(96), batch_size=5, steps=1)
    images = batch["pixel_values"].flatten(1)
    assert (torch.cdist(images, images) > 0).sum() == 20


@pytest.mark.parametrize("augment", [coco_lsj(32), semantic_crop((32, 32)), few_images(PROCESSOR)])
def test_ranks_share_the_batches_of_one_process(augment):
    whole = list(loader(augment=augment))
    ranks = [list(loader(augment=augment, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(part) for part in ranks] == [6, 6]
    for batch, *parts in zip(whole, *ranks, strict=True):
        pixels = torch.cat([part["pixel_values"] for part in parts])
        assert torch.equal(batch["pixel_values"], pixels)
        assert batch["names"] == names(parts)
        joined = chain.from_iterable(part["annotations"] for part in parts)
        assert_same_annotations(batch["annotations"], list(joined))


def test_a_run_goes_on_from_any_step():
    whole = list(loader())
    for first_step in (1, 4, 6):
        rest = loader(first_step=first_step)
        assert len(rest) == 6 - first_step
        for batch, other in zip(whole[first_step:], rest, strict=True):
            assert_same(batch, other)


def test_the_last_step_of_an_endless_run_is_as_near_as_the_first():
    steps = 10**12
    assert len(loader(steps=steps)) == steps
    (batch,) = loader(steps=steps, first_step=steps - 1)
    assert len(batch["names"]) == 4
    next(iter(loader(steps=steps)))


def test_the_random_numbers_of_training_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(loader(augment=semantic_crop((32, 32))))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_workers_change_nothing_outlast_signals_and_their_errors_stay_one_sentence(files):
    """One pool of two processes for all, because each takes seconds to start."""
    alone = list(loader(files, steps=40))
    together = iter(loader(files, steps=40, workers=2))
    for batch in alone[:3]:
        assert_same(batch, next(together))
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    for batch in alone[3:12]:  # more than were made ahead
        assert_same(batch, next(together))
    files.paths[5].unlink()
    with pytest.raises(DataError) as error:
        for batch in alone[12:]:
            assert_same(batch, next(together))
    assert not multiprocessing.active_children()
    assert type(error.value) is DataError
    assert str(error.value) == (
        f"{files.paths[5]} cannot be read (No such file or directory); is the file complete?"
    )


def test_a_vanished_file_is_named_and_ends_the_run(files):
    before = list(loader(files))
    files.paths[2].unlink()
    step = next(i for i, batch in enumerate(before) if "2.png" in batch["names"])
    batches = iter(loader(files))
    for batch in before[:step]:
        assert_same(batch, next(batches))
    with pytest.raises(DataError, match="2.png cannot be read"):
        next(batches)


def test_bad_images_are_skipped_for_the_next_of_the_epoch(files):
    before = list(loader(files, batch_size=7, steps=2, augment=few_images(PROCESSOR)))
    files.paths[2].write_bytes(b"nothing")
    options = {"batch_size": 7, "augment": few_images(PROCESSOR), "skip_bad": True}
    after = list(loader(files, steps=2, **options))
    for batch, other in zip(before, after, strict=True):
        index = batch["names"].index("2.png")
        follower = batch["names"][(index + 1) % 7]
        expected = [follower if name == "2.png" else name for name in batch["names"]]
        assert other["names"] == expected
        (reason,) = other["skipped"]
        assert reason.startswith(f"{files.paths[2]} is not an image")
        kept = [i for i in range(7) if i != index]
        assert torch.equal(batch["pixel_values"][kept], other["pixel_values"][kept])
    (resumed,) = loader(files, steps=2, first_step=1, **options)
    assert resumed.pop("skipped") == after[1].pop("skipped")
    assert_same(resumed, after[1])


def test_a_data_set_of_bad_images_only_is_refused(files):
    for path in files.paths:
        path.unlink()
    with pytest.raises(DataError, match="None of the 7 images can be used; the last: .*png cannot"):
        next(iter(loader(files, skip_bad=True)))


class HostReads(TorchDispatchMode):
    """Counts the values of tensors that the host reads, for which it waits for an accelerator."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_the_model_does_not_check_annotations_of_the_loader_again(task):
    model = tiny_model(num_labels=8)
    dataset = SceneDataset(range(2), 32, task)
    batch = collated([dataset[0], dataset[1]], PROCESSOR, CLASSES)
    pixels, annotations = batch["pixel_values"], batch["annotations"]
    with same_points(), HostReads() as reads:  # the operator draws its seed on the host
        model(pixels, annotations=annotations)
    assert reads.count == 0
    masks, labels = ([getattr(a, name) for a in annotations] for name in ("masks", "labels"))
    with same_points(), HostReads() as reads:
        model(pixels, mask_labels=masks, class_labels=labels)
    assert reads.count > 0


def test_samples_that_do_not_fit_their_classes_are_refused_in_the_loader():
    sample = SCENES[0]
    with pytest.raises(ValueError, match=r"class_labels\[0\] has labels from"):
        collated([sample], PROCESSOR, int(sample.labels.max()))
    with pytest.raises(ValueError, match=r"mask_labels\[0\] is an index map with values from"):
        collated([replace(sample, labels=sample.labels[:1])], PROCESSOR, CLASSES)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
@pytest.mark.parametrize("void", ["background", "ignore"])
def test_the_model_learns_from_a_batch(task, void):
    model = tiny_model(num_labels=8)
    dataset = SceneDataset(range(4), 64, task)
    batches = loader(dataset, coco_lsj(64, void=void), steps=2)
    for batch in batches:
        del batch["names"]
        assert "pixel_mask" in batch
        loss = model(**batch).loss
        assert torch.isfinite(loss)
        loss.backward()
    assert model.class_predictor.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_pixels_of_a_crowd_can_be_ignored_which_changes_the_loss(task):
    sample = SceneDataset([2], 64, task)[0]
    sample = replace(sample, crowd=torch.arange(len(sample.labels)) == 0)
    region = sample.masks_of(torch.tensor([0]))[0]
    if task == "instance":
        region &= ~sample.masks[1:].any(0)
    model = tiny_model(num_labels=8).eval()
    losses = {}
    for void in ("background", "ignore"):
        target = Augmentation((), void=void)(sample, np.random.default_rng(0))
        assert len(target.labels) == len(sample.labels) - 1
        batch = collated([target], PROCESSOR, CLASSES)
        (annotation,) = batch["annotations"]
        if void == "ignore":
            assert (annotation.ignored == region).all()
        else:
            assert annotation.ignored is None
        del batch["names"]
        torch.manual_seed(0)
        losses[void] = model(**batch).loss.item()
    assert losses["background"] != losses["ignore"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dataset": SceneDataset([])}, "The data set has no images"),
        ({"batch_size": 3, "world_size": 2}, "batch_size is 3, which 2 processes cannot share"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2, but the 2 processes count from 0."),
        ({"first_step": 7}, "first_step is 7, which is not from 0 to steps, 6."),
        ({"seed": -1}, "seed is -1; give 0 or more."),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        loader(**options)
    assert message in str(error.value)
