"""A data set in memory, for tests of what works on any data set."""

import weakref

import torch

from mask2former.data.dataset import VOID, Sample, SegmentationDataset
from mask2former.data.scene_dataset import SceneDataset
from mask2former.io.errors import DataError


class MemoryDataset(SegmentationDataset):
    """Samples given one by one; a string stands for a file that cannot be read for this reason.

    Args:
        samples: of the data set.
        task: of the data set.
        classes: names by the number that a class has in the annotation files.
        things: the names of the things.
    """

    def __init__(self, samples, task="panoptic", classes=None, things=(), skipped=()):
        classes = classes or {0: "cat", 1: "dog", 2: "sky"}
        self.samples, self.task, self.skipped = samples, task, skipped
        self.id2label = dict(enumerate(classes.values()))
        self.category_ids = list(classes)
        self.thing_label_ids = [i for i, name in self.id2label.items() if name in things]

    def __len__(self):
        return len(self.samples)

    def name(self, index):
        sample = self.samples[index]
        return sample if isinstance(sample, str) else sample.name

    def __getitem__(self, index):
        if isinstance(self.samples[index], str):
            raise DataError(self.samples[index])
        return self.samples[index]


class CountingScenes(SceneDataset):
    """Rendered scenes that note how many of their pictures are in memory at once."""

    most_alive = 0

    def __getitem__(self, index):
        one = super().__getitem__(index)
        self.images = [*getattr(self, "images", []), weakref.ref(one.image)]
        alive = sum(image() is not None for image in self.images)
        self.most_alive = max(self.most_alive, alive)
        return one


def sample(masks, labels, name="a.png", crowd=None, areas=None, noise=None) -> Sample:
    """A picture with these masks: lists of lists of integers, or of bool in another list.

    It is grey; where `noise` is a number, its pixels are random, others for every number.
    """
    masks = torch.as_tensor(masks)
    size = (3, *masks.shape[-2:])
    image = torch.full(size, 128, dtype=torch.uint8)
    if noise is not None:
        generator = torch.Generator().manual_seed(noise)
        image = torch.randint(256, size, dtype=torch.uint8, generator=generator)
    return Sample(
        name,
        image,
        masks if masks.dtype == torch.bool else masks.int(),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(crowd or [False] * len(labels), dtype=torch.bool),
        None if areas is None else torch.tensor(areas, dtype=torch.float64),
    )


def flawed_dataset() -> MemoryDataset:
    """Two panoptic images, with void, a crowd and an empty segment, and one unreadable file."""
    first = sample([[0, 0, 1, VOID], [2, 2, 2, VOID]], [1, 0, 1], "first.png", [False, False, True])
    second = sample([[0, 0], [0, 0], [0, 0]], [2, 0], "second.png")  # the last has no pixel
    return MemoryDataset([first, "third.png is truncated.", second], things={"cat", "dog"})
