"""Samples -> batches of model inputs, in an order that is a function of the seed alone.

The samples of a run are numbered, from 0 on. Batch after batch takes the next numbers, and the
processes of a run divide the numbers of each batch. Number k is image k % n, in an
order drawn for epoch k // n, of a data set of n images; its augmentation draws from a generator
made of the seed and k. So a batch does not depend on what came before it, on the number of
worker processes, or on the number of processes that train.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils import data

from mask2former.data.augmentation import Augmentation
from mask2former.data.dataset import Sample, SegmentationDataset
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.images.resize import padded
from mask2former.io.errors import DataError
from mask2former.losses.annotations import VOID, make_annotations

Batch = dict[str, Any]

# What random numbers are for, beside the seed.
_ORDER, _AUGMENTATION = 0, 1


def make_loader(
    dataset: SegmentationDataset,
    processor: Mask2FormerImageProcessor,
    augment: Augmentation,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    skip_bad: bool = False,
) -> Loader:
    """The batches of a training run, or of the rest of one.

    Args:
        dataset: what to train on. Every epoch has all its images once, in a new order; an epoch
            that ends inside a batch runs into the next.
        processor: rescales and normalizes; images come in the size that `augment` gives them.
        augment: random changes.
        batch_size: images per step, of all processes together.
        steps: of the whole run, those before `first_step` included.
        seed: of all that is drawn, 0 or more.
        first_step: the step to go on from, counted from 0.
        rank, world_size: which part of every batch is wanted, and into how many it is cut. The
            parts of all ranks, one after the other, are the batch of one process.
        workers: processes that read and augment, each with one thread and two batches ahead; 0
            does it in this process, while training waits. They are spawned, so a script that
            starts them must do so below `if __name__ == "__main__":`, and `dataset` must pickle.
        skip_bad: where an image cannot be used, take the one after it in the epoch's order.

    Raises:
        ValueError: an argument is out of range.
    """
    if len(dataset) == 0:
        raise ValueError("The data set has no images; give it at least one.")
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch_size is {batch_size}, which {world_size} processes cannot share equally; give "
            f"a multiple of {world_size}."
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}, but the {world_size} processes count from 0.")
    if not 0 <= first_step <= steps:
        raise ValueError(f"first_step is {first_step}, which is not from 0 to steps, {steps}.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; give 0 or more.")
    share = batch_size // world_size
    firsts = range(rank * share, steps * batch_size, batch_size)
    batches = _Batches(dataset, processor, augment, share, seed, skip_bad)
    return Loader(batches, firsts[first_step:], workers)


class Loader:
    """Batches, made ahead of their use by worker processes if there are any.

    Every iteration starts from the first step again. A batch is a dict:
        pixel_values: float32 (N, 3, H, W).
        pixel_mask: bool (N, H, W), True where there is image; only where there is padding.
        annotations: per image an `Annotation`, whose masks are an int32 index map (H, W), `VOID` in
            the padding, or (T, H, W), bool, or uint8 where pixels are ignored, 0 in the padding.
            They are checked here, on the CPU, and not by the model, where it would wait for its
            device.
        names: per image its name, for messages.
        skipped: only with `skip_bad` and where images were passed over: the reason for each.

    Iterating raises:
        DataError: an image cannot be used, or, with `skip_bad`, none can. The message is the data
            set's, which names the file, whichever process read it.
        ValueError: a sample's masks and labels do not fit each other or the data set's classes.
    """

    def __init__(self, batches: _Batches, firsts: range, workers: int) -> None:
        self._loader = data.DataLoader(
            batches,
            batch_size=None,  # an item is a batch already
            sampler=firsts,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            worker_init_fn=outlast_signals,
            pin_memory=torch.cuda.is_available(),
            # It draws a seed for the workers, which must not come out of the training's numbers.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


def outlast_signals(worker: int) -> None:
    """Ctrl-C and cluster managers signal all processes of a run. What that means, the one that
    started them decides; it may want batches for the rest of its step. Workers end when it does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Batches(data.Dataset):
    """Batches by the number of their first sample in the run."""

    def __init__(
        self,
        dataset: SegmentationDataset,
        processor: Mask2FormerImageProcessor,
        augment: Augmentation,
        batch_size: int,
        seed: int,
        skip_bad: bool,
    ) -> None:
        self.dataset, self.processor, self.augment = dataset, processor, augment
        self.batch_size, self.seed, self.skip_bad = batch_size, seed, skip_bad

    def __getitem__(self, first: int) -> Batch | DataError:
        """A batch, or the error as a value: torch wraps what a worker raises in its traceback."""
        skipped: list[str] = []
        try:
            numbers = range(first, first + self.batch_size)
            samples = [self._sample(number, skipped) for number in numbers]
        except DataError as error:
            return error
        batch = collated(
            samples,
            self.processor,
            len(self.dataset.id2label),
            canvas=self.augment.canvas,
            ignore_value=self.augment.ignore_value,
        )
        return {**batch, "skipped": skipped} if skipped else batch

    def _sample(self, number: int, skipped: list[str]) -> Sample:
        epoch, position = divmod(number, len(self.dataset))
        order = _epoch_order(len(self.dataset), self.seed, epoch)
        for index in np.roll(order, -position):
            try:
                sample = self.dataset[int(index)]
            except DataError as error:
                if not self.skip_bad:
                    raise
                skipped.append(str(error))
                continue
            return self.augment(sample, np.random.default_rng((self.seed, _AUGMENTATION, number)))
        raise DataError(f"None of the {len(order)} images can be used; the last: {skipped[-1]}")


@lru_cache(maxsize=2)  # a batch has samples of two epochs at most, unless there are few images
def _epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(images)


def collated(
    samples: list[Sample],
    processor: Mask2FormerImageProcessor,
    num_labels: int,
    *,
    canvas: tuple[int, int] | None = None,
    ignore_value: int = 255,
) -> Batch:
    """A batch, as `Loader` describes it, of samples that `training_targets` made ready.

    Images are rescaled and normalized as the processor does, and padded to `canvas`, (height,
    width), or to the largest image, as the processor pads.

    Args:
        samples: one per image.
        processor: rescales, normalizes and pads.
        num_labels: classes of the data set.
        canvas: (height, width) of the batch.
        ignore_value: marks ignored pixels in masks.

    Raises:
        ValueError: masks and labels of a sample do not fit each other or the classes.
    """
    inputs = processor(
        [sample.image for sample in samples],
        do_resize=False,
        do_center_crop=False,
        do_pad=True,
        pad_size=canvas and {"height": canvas[0], "width": canvas[1]},
        return_tensors="pt",
        device="cpu",
    )
    pixel_mask = inputs["pixel_mask"].bool()
    size = tuple(pixel_mask.shape[-2:])
    masks = [padded(s.masks, size, VOID if s.masks.dim() == 2 else 0) for s in samples]
    labels = [sample.labels for sample in samples]
    batch: Batch = {
        "pixel_values": inputs["pixel_values"],
        "annotations": make_annotations(
            masks, labels, len(samples), size, num_labels, ignore_value
        ),
        "names": [sample.name for sample in samples],
    }
    return batch if bool(pixel_mask.all()) else {**batch, "pixel_mask": pixel_mask}
