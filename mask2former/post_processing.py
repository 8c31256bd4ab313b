"""Logits -> semantic, instance and panoptic segmentations, at full resolution in bounded memory.

The procedures are those of the paper's inference code (semantic, instance and panoptic inference of
the original Mask2Former, with detectron2's sem_seg_postprocess for the sizes): mask logits are
resized bilinearly to the padded input size, cropped to the image, then resized to the target size,
and only then turned into masks.

Neither (queries, height, width) nor (classes, height, width) is ever held at full resolution. A
bilinear resize is linear and separable, so both resizes together are one short list of taps per
output row and per output column (`MaskResizer`), and any band of rows can be made alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mask2former.image_resize import Size

# Floats per working buffer, 16 MB in float32: small enough for caches, large enough for kernels.
BAND_ELEMENTS = 1 << 22

INSTANCE_VOID = -1
PANOPTIC_VOID = 0

ImageSize = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Taps:
    """A linear map along one axis: output i is the sum over k of weight[i, k] * input[index[i, k]].

    index: int64 (outputs, taps). weight: float64 (outputs, taps). Both on the CPU.
    """

    index: Tensor
    weight: Tensor

    @classmethod
    def identity(cls, length: int) -> _Taps:
        return cls(torch.arange(length)[:, None], torch.ones(length, 1, dtype=torch.float64))

    @classmethod
    def bilinear(cls, source: int, target: int) -> _Taps:
        """F.interpolate(mode="bilinear", align_corners=False) along one axis."""
        position = (torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5
        position = position.clamp(0, source - 1)
        low = position.floor().long()
        fraction = position - low
        index = torch.stack([low, (low + 1).clamp(max=source - 1)], dim=1)
        return cls(index, torch.stack([1 - fraction, fraction], dim=1))

    def after(self, first: _Taps) -> _Taps:
        """The one map that equals applying `first` and then this one."""
        weight = first.weight[self.index] * self.weight[:, :, None]
        return _Taps(first.index[self.index].flatten(1), weight.flatten(1))

    def trimmed(self) -> _Taps:
        """The same map without taps that no output uses."""
        used = (self.weight != 0).any(0)
        return _Taps(self.index[:, used], self.weight[:, used])

    def apply(self, values: Tensor, dim: int) -> Tensor:
        """(queries, rows, columns) -> the same with `dim` resized, in the dtype of `values`."""
        # Separate multiplications and additions round the same way in every band and vector lane.
        view = (-1, 1) if dim == 1 else (-1,)
        result: Tensor | None = None
        for index, weight in zip(self.index.unbind(1), self.weight.unbind(1), strict=True):
            picked = _pick(values, dim, index.to(values.device))
            picked *= weight.to(values).view(view)
            result = picked if result is None else result.add_(picked)
        return result


def _pick(values: Tensor, dim: int, index: Tensor) -> Tensor:
    """index_select in its faster form: on the CPU, of columns it is ten times slower than gather,
    which is as much slower of rows."""
    if dim == 1:
        return values.index_select(1, index)
    return values.gather(2, index.expand(*values.shape[:2], -1))


def _axis_taps(cells: int, valid: int | None, padded: int | None, target: int | None) -> _Taps:
    """Taps from `cells` mask logits along one axis to `target` pixels of the image.

    The axis of the model's input had `padded` pixels, the first `valid` of them real (both None
    when unknown). Cells that lie wholly in the padding are never read, so an image gives the same
    masks whatever it was padded to; the original lets them blend into the last two pixels.
    """
    if padded is None:
        return _Taps.identity(cells) if target is None else _Taps.bilinear(cells, target).trimmed()
    real_cells = math.ceil(valid * cells / padded)
    if target is None:
        return _Taps.identity(real_cells)
    enlarged = _Taps.bilinear(cells, padded)
    cropped = _Taps(enlarged.index[:valid].clamp(max=real_cells - 1), enlarged.weight[:valid])
    if valid != target:
        cropped = _Taps.bilinear(valid, target).after(cropped)
    return cropped.trimmed()


class MaskResizer:
    """Resizes mask logits (queries, cells high, cells wide) to the target, any band of rows alone.

    Args:
        cells: height and width of the mask logits.
        image_size: (valid height, valid width, padded height, padded width) of the model's input in
            pixels, or None when unknown: then nothing is cropped.
        target_size: (height, width) in pixels, or None for the logits' own resolution, cropped to
            the cells that show the image.
    """

    def __init__(self, cells: Size, image_size: ImageSize | None, target_size: Size | None) -> None:
        valid_height, valid_width, height, width = image_size or (None,) * 4
        rows, columns = target_size or (None, None)
        self.rows = _axis_taps(cells[0], valid_height, height, rows)
        self.columns = _axis_taps(cells[1], valid_width, width, columns)
        self.size: Size = (len(self.rows.index), len(self.columns.index))

    def __call__(self, logits: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of the result, (queries, rows, width): float64 for float64 logits,
        else float32. The values do not depend on how the rows are cut into bands."""
        index, weight = self.rows.index[start:stop], self.rows.weight[start:stop]
        first, last = int(index.min()), int(index.max())
        source = logits[:, first : last + 1]
        source = source if source.dtype == torch.float64 else source.float()
        return _Taps(index - first, weight).apply(self.columns.apply(source, 2), 1)

    def bands(self, channels: int) -> Iterator[tuple[int, int]]:
        """(start, stop) row ranges of which each holds at most BAND_ELEMENTS values in `channels`
        planes, or a single row if that is more."""
        height, width = self.size
        step = max(1, BAND_ELEMENTS // max(1, channels * width))
        for start in range(0, height, step):
            yield start, min(start + step, height)


@torch.no_grad()
def semantic_segmentation(
    outputs: Any, target_sizes: Sequence[Size] | Tensor | None = None
) -> list[Tensor]:
    """One int64 class map (height, width) per image: the class with the largest sum over queries of
    class probability times mask probability.

    Args:
        outputs: the model's output: class_queries_logits (N, Q, classes + 1), masks_queries_logits
            (N, Q, h, w) and, if present, image_sizes.
        target_sizes: (height, width) in pixels per image; None for the logits' own resolution.

    Raises:
        ValueError: the number of target sizes is not the batch size.

    Source: `semantic_inference` of the original code, after the resize instead of before it.
    """
    maps = []
    for class_logits, mask_logits, resizer in _images(outputs, target_sizes):
        class_probs = _float(class_logits).softmax(-1)[:, :-1].T
        segmentation = torch.empty(resizer.size, dtype=torch.int64, device=mask_logits.device)
        for start, stop in resizer.bands(max(class_probs.shape)):
            mask_probs = resizer(mask_logits, start, stop).sigmoid_()
            scores = class_probs @ mask_probs.flatten(1)
            # max is several times faster than argmax along the first dimension on the CPU
            segmentation[start:stop] = scores.max(0).indices.view(stop - start, -1)
        maps.append(segmentation)
    return maps


@torch.no_grad()
def panoptic_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int] = (),
    target_sizes: Sequence[Size] | Tensor | None = None,
) -> list[dict[str, Any]]:
    """Per image a dict of "segmentation", an int32 map (height, width) with 0 for void and ids from
    1, and "segments_info", one dict per id: id, label_id, was_fused, score.

    Queries that predict an object with a score above `threshold` compete for every pixel by score
    times mask probability. A query is dropped when it wins less than `overlap_mask_area_threshold`
    of the area where its own mask probability reaches `mask_threshold`; it keeps those of its
    pixels that reach `mask_threshold`. Segments of one label in `label_ids_to_fuse` become one,
    with the best score of its parts. See `semantic_segmentation` for other arguments and errors.

    Source: `panoptic_inference` of the original code (which fuses stuff and has 0.8 and 0.5 for
    `threshold` and `mask_threshold`).
    """
    results = []
    for class_logits, mask_logits, resizer in _images(outputs, target_sizes):
        scores, labels = _float(class_logits).softmax(-1).max(-1)
        keep = (labels != class_logits.shape[-1] - 1) & (scores > threshold)
        scores, labels = scores[keep], labels[keep]
        winners, areas = _compete(mask_logits[keep], scores, resizer, mask_threshold)
        segments, id_of_query = _panoptic_segments(
            scores.tolist(),
            labels.tolist(),
            areas.T.tolist(),
            overlap_mask_area_threshold,
            set(label_ids_to_fuse),
        )
        table = torch.tensor([*id_of_query, PANOPTIC_VOID], dtype=torch.int32)
        segmentation = table.to(winners.device)[winners.long()]
        results.append({"segmentation": segmentation, "segments_info": segments})
    return results


def _compete(
    mask_logits: Tensor, scores: Tensor, resizer: MaskResizer, mask_threshold: float
) -> tuple[Tensor, Tensor]:
    """Which query has each pixel, and three areas per query.

    Returns:
        int32 (height, width): the winning query, or `queries` where even its mask probability is
        under `mask_threshold`; int64 (3, queries): pixels won, pixels of the query's own mask,
        pixels won within its own mask.
    """
    queries, device = len(mask_logits), mask_logits.device
    winners = torch.full(resizer.size, queries, dtype=torch.int32, device=device)
    areas = torch.zeros(3, queries, dtype=torch.int64, device=device)
    if queries == 0:
        return winners, areas
    for start, stop in resizer.bands(queries):
        probs = resizer(mask_logits, start, stop).sigmoid_().flatten(1)
        own = probs >= mask_threshold
        winner = probs.mul_(scores[:, None]).max(0).indices
        inside = own.gather(0, winner[None])[0]
        areas[0] += torch.bincount(winner, minlength=queries)
        areas[1] += own.sum(1)
        areas[2] += torch.bincount(winner[inside], minlength=queries)
        winners[start:stop] = winner.masked_fill(~inside, queries).view(stop - start, -1)
    return winners, areas


def _panoptic_segments(
    scores: list[float],
    labels: list[int],
    areas: list[list[int]],
    overlap_mask_area_threshold: float,
    label_ids_to_fuse: set[int],
) -> tuple[list[dict[str, Any]], list[int]]:
    """The segments, and for every query the id of its segment (void for a dropped query)."""
    segments: list[dict[str, Any]] = []
    fused: dict[int, dict[str, Any]] = {}
    id_of_query = [PANOPTIC_VOID] * len(scores)
    for query, (score, label, area) in enumerate(zip(scores, labels, areas, strict=True)):
        won, own, won_inside = area
        if won_inside == 0 or won / own < overlap_mask_area_threshold:
            continue
        segment = fused.get(label)
        if segment is None:
            segment = {
                "id": len(segments) + 1,
                "label_id": label,
                "was_fused": label in label_ids_to_fuse,
                "score": round(score, 6),
            }
            segments.append(segment)
            if segment["was_fused"]:
                fused[label] = segment
        segment["score"] = max(segment["score"], round(score, 6))
        id_of_query[query] = segment["id"]
    return segments, id_of_query


@torch.no_grad()
def instance_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    target_sizes: Sequence[Size] | Tensor | None = None,
    return_coco_annotation: bool = False,
    return_binary_maps: bool = False,
    thing_label_ids: Collection[int] | None = None,
) -> list[dict[str, Any]]:
    """Per image a dict of "segmentation" and "segments_info", one dict per instance in order of
    falling score: id (from 0), label_id, was_fused (False), score.

    The Q best (query, label) pairs of an image are candidates; with `thing_label_ids`, those of
    other labels are then left out. A mask is where the mask probability is above `mask_threshold`,
    a score is the class probability times the mean mask probability inside the mask, and an
    instance needs a score of at least `threshold`.

    "segmentation" is one of
    - an int32 map (height, width), -1 for void: a higher score covers a lower one, and an instance
      of which less than `overlap_mask_area_threshold` stays visible is left out;
    - with `return_binary_maps`, a bool tensor (instances, height, width), and
    - with `return_coco_annotation`, a list with a COCO RLE (see `mask_to_rle`) per instance; these
      two keep overlaps whole, so `overlap_mask_area_threshold` has nothing to decide.

    See `semantic_segmentation` for the other arguments.

    Raises:
        ValueError: both return forms are asked for, or as in `semantic_segmentation`.

    Source: `instance_inference` of the original code; the map is an addition of transformers.
    """
    if return_coco_annotation and return_binary_maps:
        raise ValueError(
            "return_coco_annotation and return_binary_maps exclude each other; set only one."
        )
    results = []
    for class_logits, mask_logits, resizer in _images(outputs, target_sizes):
        candidates = _candidates(class_logits, threshold, thing_label_ids)
        instances = _scored_instances(candidates, mask_logits, resizer, threshold, mask_threshold)
        masks = (
            resizer(mask_logits[query, None])[0].sigmoid_() > mask_threshold
            for _, _, query in instances
        )
        if return_coco_annotation:
            segmentation: Any = [mask_to_rle(mask) for mask in masks]
        elif return_binary_maps:
            segmentation = torch.empty(
                (len(instances), *resizer.size), dtype=torch.bool, device=mask_logits.device
            )
            for plane, mask in zip(segmentation, masks, strict=True):
                plane.copy_(mask)
        else:
            segmentation = torch.full(
                resizer.size, INSTANCE_VOID, dtype=torch.int32, device=mask_logits.device
            )
            painted = _paint(segmentation, masks, overlap_mask_area_threshold)
            instances = [instances[i] for i in painted]
        segments = [
            {"id": i, "label_id": label, "was_fused": False, "score": round(score, 6)}
            for i, (score, label, _) in enumerate(instances)
        ]
        results.append({"segmentation": segmentation, "segments_info": segments})
    return results


def _candidates(
    class_logits: Tensor, threshold: float, thing_label_ids: Collection[int] | None
) -> list[tuple[float, int, int]]:
    """(class probability, label, query) of the Q best pairs that can still reach `threshold`."""
    probs = _float(class_logits).softmax(-1)[:, :-1]
    queries, classes = probs.shape
    best, pairs = probs.flatten().topk(min(queries, queries * classes))
    triples = zip(
        best.tolist(), (pairs % classes).tolist(), (pairs // classes).tolist(), strict=True
    )
    return [
        (score, label, query)
        for score, label, query in triples
        if score >= threshold and (thing_label_ids is None or label in thing_label_ids)
    ]


def _scored_instances(
    candidates: list[tuple[float, int, int]],
    mask_logits: Tensor,
    resizer: MaskResizer,
    threshold: float,
    mask_threshold: float,
) -> list[tuple[float, int, int]]:
    """(score, label, query) of candidates with a mask and a score >= `threshold`, best first."""
    queries = sorted({query for _, _, query in candidates})
    if not queries:
        return []
    sums = []
    for query in queries:
        probs = resizer(mask_logits[query, None])[0].sigmoid_()
        inside = probs > mask_threshold
        sums.append(torch.stack([inside.sum(), torch.where(inside, probs, 0).sum()]))
    area_and_sum = dict(zip(queries, torch.stack(sums).tolist(), strict=True))
    instances = []
    for class_prob, label, query in candidates:
        area, prob_sum = area_and_sum[query]
        if area > 0 and class_prob * prob_sum / area >= threshold:
            instances.append((class_prob * prob_sum / area, label, query))
    return sorted(instances, key=lambda instance: -instance[0])


def _paint(
    segmentation: Tensor, masks: Iterator[Tensor], overlap_mask_area_threshold: float
) -> list[int]:
    """Gives each mask, in the order given, the pixels still void, unless too few of its own are.

    Writes ids from 0 into `segmentation` and returns which masks got one.
    """
    painted: list[int] = []
    for i, mask in enumerate(masks):
        visible = mask & (segmentation == INSTANCE_VOID)
        area, visible_area = torch.stack([mask.sum(), visible.sum()]).tolist()
        if visible_area > 0 and visible_area / area >= overlap_mask_area_threshold:
            segmentation.masked_fill_(visible, len(painted))
            painted.append(i)
    return painted


def mask_to_rle(mask: Tensor) -> dict[str, Any]:
    """COCO run-length encoding of a bool mask (height, width): {"size": [height, width], "counts":
    str}, runs counted down the columns and compressed, which pycocotools reads and JSON can hold.

    Source: the format of `rleEncode` and `rleToString` in the COCO API's maskApi.c.
    """
    pixels = mask.bool().T.flatten()
    changes = (pixels[1:] != pixels[:-1]).nonzero().flatten() + 1
    edges = [0, *changes.tolist(), len(pixels)]
    counts = [stop - start for start, stop in pairwise(edges)]
    if bool(pixels[0]):
        counts.insert(0, 0)  # the first run is background by definition
    return {"size": list(mask.shape), "counts": _compressed(counts)}


def _compressed(counts: list[int]) -> str:
    """Each count less the one two before it, in groups of 5 bits, low first, a sixth for "more"."""
    characters = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != (-1 if group & 0x10 else 0)
            characters.append(chr(48 + group + (0x20 if more else 0)))
    return "".join(characters)


def _images(
    outputs: Any, target_sizes: Sequence[Size] | Tensor | None
) -> Iterator[tuple[Tensor, Tensor, MaskResizer]]:
    """Class logits (Q, classes + 1), mask logits (Q, h, w) and the resizer of every image."""
    class_logits, mask_logits = outputs.class_queries_logits, outputs.masks_queries_logits
    image_sizes = getattr(outputs, "image_sizes", None)
    for name, sizes in (("target_sizes", target_sizes), ("image_sizes", image_sizes)):
        if sizes is not None and len(sizes) != len(mask_logits):
            raise ValueError(
                f"{name} has {len(sizes)} entries for a batch of {len(mask_logits)}; give one per "
                "image."
            )
    for i in range(len(mask_logits)):
        image_size = None if image_sizes is None else tuple(int(n) for n in image_sizes[i])
        target_size = None if target_sizes is None else tuple(int(n) for n in target_sizes[i])
        resizer = MaskResizer(tuple(mask_logits.shape[-2:]), image_size, target_size)
        yield class_logits[i], mask_logits[i], resizer


def _float(logits: Tensor) -> Tensor:
    """Probabilities are made in float32 at least, whatever the model ran in."""
    return logits if logits.dtype == torch.float64 else logits.float()
