"""The classes of the data sets that the paper's models were trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class PublishedClasses:
    """The classes of a model in the order of its outputs.

    Attributes:
        dataset: what the data set is called.
        names: of all classes.
        things: label ids of the countable classes.
    """

    dataset: str
    names: list[str]
    things: list[int]


def published_classes(count: int) -> PublishedClasses | None:
    """The classes of the only published data set with this many classes or this many things.

    Instance models know the things alone. None where there is no such data set.

    Names, order and things are those of the paper's code: 133 classes of COCO (80 things), 19 of
    Cityscapes (8), 150 of ADE20K (100), 65 of Mapillary Vistas (37).
    """
    datasets = json.loads(FILE.read_text(encoding="utf-8"))
    for dataset, classes in datasets.items():
        if len(classes["names"]) == count:
            return PublishedClasses(dataset, classes["names"], classes["things"])
    for dataset, classes in datasets.items():
        if len(classes["things"]) == count:
            names = [classes["names"][label] for label in classes["things"]]
            return PublishedClasses(f"{dataset}, things only", names, list(range(count)))
    return None
