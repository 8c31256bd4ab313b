"""A data set in memory."""

import torch

from mask2former.data.dataset import Sample, SegmentationDataset
from mask2former.errors import DataError


class MemoryDataset(SegmentationDataset):
    """Samples given one by one; a string stands for one that cannot be read for this reason."""

    def __init__(self, samples, names, task="panoptic", things=()):
        self.samples, self.task = samples, task
        self.id2label = dict(enumerate(names))
        self.category_ids = list(self.id2label)
        self.thing_label_ids = list(things)

    def __len__(self):
        return len(self.samples)

    def name(self, index):
        return self.samples[index].name

    def __getitem__(self, index):
        if isinstance(self.samples[index], str):
            raise DataError(self.samples[index])
        return self.samples[index]


def make_sample(masks, labels, crowd=None, name="a.png", areas=None, seed=0) -> Sample:
    """Random pixels with these masks: bool (T, H, W), or a label map."""
    masks = torch.as_tensor(masks)
    generator = torch.Generator().manual_seed(seed)
    size = (3, *masks.shape[-2:])
    return Sample(
        name,
        torch.randint(256, size, dtype=torch.uint8, generator=generator),
        masks if masks.dtype == torch.bool else masks.int(),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(crowd or [False] * len(labels), dtype=torch.bool),
        None if areas is None else torch.tensor(areas, dtype=torch.float64),
    )
