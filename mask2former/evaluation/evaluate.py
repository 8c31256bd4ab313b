"""A model measured on a data set, one image at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import distributed, nn
from torch.utils import data
from tqdm import tqdm

from mask2former.data.batches import outlast_signals
from mask2former.data.dataset import VOID, SegmentationDataset, Task
from mask2former.evaluation.average_precision import AveragePrecision, Instances
from mask2former.evaluation.dataset_predictor import DatasetPredictor
from mask2former.evaluation.mean_iou import MeanIoU
from mask2former.evaluation.panoptic_quality import PanopticQuality
from mask2former.evaluation.truth import Truth
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.images.thresholds import PAPER_THRESHOLDS, Thresholds
from mask2former.io.errors import DataError
from mask2former.modeling import Mask2FormerForUniversalSegmentation

Metric = Literal["pq", "ap", "boundary-ap", "miou"]

# The tasks of the data sets that a metric can be measured on.
METRIC_TASKS: dict[Metric, tuple[Task, ...]] = {
    "pq": ("panoptic",),
    "ap": ("panoptic", "instance"),
    "boundary-ap": ("panoptic", "instance"),
    "miou": ("panoptic", "semantic"),
}
DEFAULT_METRICS: dict[Task, tuple[Metric, ...]] = {
    "panoptic": ("pq", "miou"),
    "instance": ("ap",),
    "semantic": ("miou",),
}


@dataclass(frozen=True)
class Results:
    """What `evaluate` measured. Fractions of one; nan where there was nothing to measure.

    Attributes:
        figures: "pq", "sq", "rq" and each with "_things" and "_stuff"; "ap" and the other
            figures of `AveragePrecision`, for boundaries with the prefix "boundary_"; "miou" and
            "pixel_accuracy".
        classes: for every class "label_id", "name" and its figures: "pq", "sq", "rq",
            "tp", "fp", "fn"; "ap", "ap50", "boundary_ap", "boundary_ap50"; "iou".
        images: for every image its "index" in the data set, "image", its name, and "score".
        score: what the images' scores are: "pq" or "miou", of the image alone, or "overlap", see
            `mean_best_overlap`; the first of these that was measured.
        skipped: one sentence for each image that could not be read.
    """

    figures: dict[str, float]
    classes: list[dict[str, Any]]
    images: list[dict[str, Any]]
    score: Literal["pq", "miou", "overlap"]
    skipped: list[str]


def evaluate(
    model: Mask2FormerForUniversalSegmentation,
    processor: Mask2FormerImageProcessor,
    dataset: SegmentationDataset,
    metrics: Sequence[Metric] | None = None,
    *,
    thresholds: Thresholds = PAPER_THRESHOLDS,
    paper_padding: bool = False,
    skip_bad: bool = False,
    gather: bool = False,
    workers: int = 0,
    progress: bool = True,
) -> Results:
    """Measure a model on all images of a data set, at their own resolution.

    The procedures and defaults are those of the paper's evaluation. No more than one image's logits
    are held, and no float map for every query at full resolution; the masks of instances are kept
    encoded. The model is in evaluation mode meanwhile.

    Args:
        processor: prepares the images; its `size` decides how large the model sees them.
        metrics: by default panoptic quality and mean IoU of panoptic data, average precision of
            instances, mean IoU of semantic data.
        thresholds: of panoptic segments. Of instances only the mask threshold counts, because
            average precision takes all instances.
        paper_padding: reproduce the paper's code, where the padding of an image to a multiple of 32
            takes part in everything, even of a single image: attention, normalisation and the
            resize of mask logits see it. The mask logits of all queries are then held at the size
            of the model's input. By default nothing depends on padding.
        skip_bad: leave out samples that cannot be read, and list them.
        gather: every process of torch.distributed's default group calls this; each takes its share
            of the images, and all return the results of all images.
        workers: processes that read the images ahead, one each; 0 reads them in this process. They
            are spawned, so a script that starts them must do so below
            `if __name__ == "__main__":`, and `dataset` must pickle.
        progress: show a progress bar.

    Raises:
        DataError: the data set has no images, does not suit a metric, or has other classes than the
            model; a sample is not what it should be; faster-coco-eval is needed and missing.
        ValueError: a metric is unknown.
    """
    metrics = check_metrics(dataset, metrics)
    predictor = DatasetPredictor(
        model, processor, dataset, thresholds=thresholds, paper_padding=paper_padding
    )
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if gather else (0, 1)
    tally, failure = _Tally(dataset, metrics), None
    with _evaluating(model):
        share = range(rank, len(dataset), ranks)
        truths = _read(_Truths(dataset, metrics, predictor.things or ()), share, workers)
        for index, truth in tqdm(
            truths, "evaluating", len(share), unit="image", disable=not progress or rank > 0
        ):
            if not isinstance(truth, DataError):
                tally.take(index, truth, predictor)
            elif skip_bad:
                tally.skipped.append(str(truth))
            else:
                failure = truth
                break
    found = [(tally, failure)] * ranks
    if gather:
        # Every process must know of a failure in one, or the others would wait for it forever.
        distributed.all_gather_object(found, (tally, failure))
    total = _Tally(dataset, metrics)
    for other, error in found:
        if error is not None:
            raise error
        total.add(other)
    return total.results(dataset)


def check_metrics(
    dataset: SegmentationDataset, metrics: Sequence[Metric] | None
) -> tuple[Metric, ...]:
    """The metrics to measure, by default those of the data set's task.

    Raises:
        DataError: the data set has no images or does not suit a metric.
        ValueError: a metric is unknown.
    """
    if len(dataset) == 0:
        raise DataError("The data set has no images, so there is nothing to measure.")
    metrics = tuple(dict.fromkeys(metrics or DEFAULT_METRICS[dataset.task]))
    for metric in metrics:
        if metric not in METRIC_TASKS:
            raise ValueError(f"metrics holds {metric!r}; give some of {', '.join(METRIC_TASKS)}.")
        if dataset.task not in METRIC_TASKS[metric]:
            possible = [name for name, tasks in METRIC_TASKS.items() if dataset.task in tasks]
            raise DataError(
                f"{metric} cannot be measured on a data set of {dataset.task} annotations; ask for "
                f"{' or '.join(possible)}."
            )
        if metric.endswith("ap") and dataset.task == "panoptic" and not dataset.thing_label_ids:
            raise DataError(f"{metric} is measured on things, and the data set has none.")
    return metrics


class _Truths(data.Dataset):
    """The truth of each image of a data set, or the error that reading it raised. The error is
    returned because torch would wrap what a worker raises in the worker's traceback."""

    def __init__(
        self, dataset: SegmentationDataset, metrics: tuple[Metric, ...], things: Collection[int]
    ) -> None:
        self.dataset, self.metrics, self.things = dataset, metrics, things

    def __getitem__(self, index: int) -> tuple[int, Truth | DataError]:
        try:
            return index, Truth.of(self.dataset[index], self.metrics, self.things)
        except DataError as error:
            return index, error


def _read(truths: _Truths, share: range, workers: int) -> data.DataLoader:
    """The truths of the images of one process, in their order."""
    return data.DataLoader(
        truths,
        batch_size=None,
        sampler=share,
        num_workers=workers,
        prefetch_factor=1 if workers else None,  # images may be large, and shared memory small
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=outlast_signals,
        # The loader draws a seed for the workers, which must not change a training's numbers.
        generator=torch.Generator(),
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards in the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class _Tally:
    """The counts of some images of a data set."""

    def __init__(self, dataset: SegmentationDataset, metrics: tuple[Metric, ...]) -> None:
        self.metrics = metrics
        self.labels, self.things = len(dataset.id2label), dataset.thing_label_ids
        self.panoptic = self._panoptic_quality() if "pq" in metrics else None
        self.semantic = self._mean_iou() if "miou" in metrics else None
        wanted = "ap" in metrics or "boundary-ap" in metrics
        self.instances = AveragePrecision(self.labels) if wanted else None
        self.images: list[dict[str, Any]] = []
        self.skipped: list[str] = []

    def _panoptic_quality(self) -> PanopticQuality:
        return PanopticQuality(self.labels, self.things)

    def _mean_iou(self) -> MeanIoU:
        return MeanIoU(self.labels, ignore_label=VOID)

    def take(self, index: int, truth: Truth, predictor: DatasetPredictor) -> None:
        """Segment one image and count what is right and wrong in it."""
        logits = predictor.logits(truth.image, truth.name)
        scores: dict[str, float] = {}
        if self.panoptic is not None and truth.panoptic is not None:
            found = predictor.panoptic(logits)
            one = self._panoptic_quality()
            one.update(found.ids, found.segments, *truth.panoptic)
            self.panoptic.add(one)
            scores["pq"] = one.compute()["pq"]
        if self.semantic is not None and truth.semantic is not None:
            one = self._mean_iou()
            one.update(predictor.labels(logits), truth.semantic)
            self.semantic.add(one)
            scores["miou"] = one.compute()["miou"]
        if self.instances is not None and truth.instances is not None:
            instances = predictor.instances(logits)
            self.instances.update(index, instances, truth.instances)
            if not scores:
                threshold = predictor.thresholds.threshold
                scores["overlap"] = mean_best_overlap(instances, truth.instances, threshold)
        score = next(iter(scores.values()))
        self.images.append({"index": index, "image": truth.name, "score": score})

    def add(self, other: _Tally) -> None:
        """Add the counts of other images."""
        for name in ("panoptic", "semantic", "instances"):
            mine = getattr(self, name)
            if mine is not None:
                mine.add(getattr(other, name))
        self.images = sorted(self.images + other.images, key=lambda image: image["index"])
        self.skipped += other.skipped

    def results(self, dataset: SegmentationDataset) -> Results:
        figures: dict[str, float] = {}
        classes = [
            {"label_id": label, "name": dataset.id2label[label]} for label in range(self.labels)
        ]

        def take(result: dict[str, Any], prefix: str = "") -> None:
            for row, part in zip(classes, result.pop("per_class"), strict=True):
                del part["label_id"]
                row.update({prefix + name: value for name, value in part.items()})
            figures.update({prefix + name: value for name, value in result.items()})

        if self.panoptic is not None:
            result = self.panoptic.compute()
            for part in result["per_class"]:
                del part["iou"]  # a sum over the matches; "sq" is their mean
            take(result)
        if self.instances is not None and "ap" in self.metrics:
            take(self.instances.compute())
        if self.instances is not None and "boundary-ap" in self.metrics:
            take(self.instances.compute("boundaries"), "boundary_")
        if self.semantic is not None:
            result = self.semantic.compute()
            figures.update(miou=result["miou"], pixel_accuracy=result["pixel_accuracy"])
            for row, iou in zip(classes, result["per_class"], strict=True):
                row["iou"] = iou
        score = "pq" if self.panoptic else "miou" if self.semantic else "overlap"
        return Results(figures, classes, self.images, score, self.skipped)


def mean_best_overlap(predictions: Instances, truths: Instances, threshold: float) -> float:
    """How well the instances of one image were found, from 0 to 1; nan if there are none.

    Every true object, and every prediction with a score of at least `threshold`, has its best
    intersection over union with one of its class on the other side; this is the mean over all of
    them. Crowds count for nothing, nor do predictions of which more than half lies in a crowd of
    their class.
    """
    from faster_coco_eval import mask

    kept = [i for i, score in enumerate(predictions.scores) if score >= threshold]
    if not kept or not truths.masks:
        objects = len(kept) + truths.crowd.count(False)
        return 0.0 if objects else float("nan")
    crowd = np.array(truths.crowd, bool)
    overlaps = np.asarray(
        mask.iou(
            [predictions.masks[i] for i in kept], list(truths.masks), crowd.astype(int).tolist()
        )
    )
    overlaps *= np.array([predictions.labels[i] for i in kept])[:, None] == truths.labels
    excused = (overlaps[:, crowd] > 0.5).any(axis=1)
    overlaps = overlaps[:, ~crowd]
    if overlaps.shape[1] == 0:
        return float("nan") if excused.all() else 0.0
    best = np.concatenate([overlaps.max(axis=0), overlaps.max(axis=1)[~excused]])
    return float(best.mean())
