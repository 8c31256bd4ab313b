"""Logits to semantic, instance and panoptic segmentations, at full resolution in bounded memory.

The procedures are those of the paper's inference code (semantic, instance and panoptic inference of
the original Mask2Former, with detectron2's sem_seg_postprocess for the sizes): mask logits are
resized bilinearly to the padded input size, cropped to the image, then resized to the target size,
and only then turned into masks.

No tensor (queries, height, width) or (classes, height, width) of full resolution exists: masks are
made in bands of rows, or one query at a time. Every threshold is reached by a value equal to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.images.mask_resizer import MaskResizer
from mask2former.images.resize import Size, size_of
from mask2former.images.run_length import mask_to_rle

# Pixels of no segment. Segments have ids from 1, in the order of "segments_info".
VOID = 0


class SegmentationDict(dict):
    """A dict of the "segmentation" and "segments_info" of one image."""

    @property
    def shape(self) -> torch.Size:
        """The map's, because the documentation's instance example asks for it."""
        return self["segmentation"].shape


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

    Queries that predict an object with a score of at least `threshold` compete for every pixel by
    score times mask probability. A query is dropped when it wins less than
    `overlap_mask_area_threshold` of the area where its own mask probability is at least
    `mask_threshold`; of the pixels it won it keeps those in this area. Segments of one label in
    `label_ids_to_fuse` become one, with the best score of its parts.

    See `semantic_segmentation` for other arguments and errors.

    Source: `panoptic_inference` of the original code (which fuses stuff and has 0.8 and 0.5 for
    `threshold` and `mask_threshold`).
    """
    results = []
    for class_logits, mask_logits, resizer in _images(outputs, target_sizes):
        scores, labels = _float(class_logits).softmax(-1).max(-1)
        keep = (labels != class_logits.shape[-1] - 1) & (scores >= threshold)
        scores, labels = scores[keep], labels[keep]
        winners, areas = _compete(mask_logits[keep], scores, resizer, mask_threshold)
        segments, query_ids = _panoptic_segments(
            scores.tolist(),
            labels.tolist(),
            areas.T.tolist(),
            overlap_mask_area_threshold,
            set(label_ids_to_fuse),
        )
        table = torch.tensor([*query_ids, VOID], dtype=torch.int32)
        segmentation = table.to(winners.device)[winners.long()]
        results.append(SegmentationDict(segmentation=segmentation, segments_info=segments))
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
    """The segments, and for every query the id of its segment (VOID for a dropped query)."""
    segments: list[dict[str, Any]] = []
    fused: dict[int, dict[str, Any]] = {}
    query_ids = [VOID] * len(scores)
    for query, (score, label, area) in enumerate(zip(scores, labels, areas, strict=True)):
        won, own, won_inside = area
        if won_inside == 0 or won / own < overlap_mask_area_threshold:
            continue
        segment = fused.get(label)
        if segment is None:
            segment = _segment(len(segments), label, label in label_ids_to_fuse, score)
            segments.append(segment)
            if segment["was_fused"]:
                fused[label] = segment
        segment["score"] = max(segment["score"], round(score, 6))
        query_ids[query] = segment["id"]
    return segments, query_ids


def _segment(index: int, label: int, was_fused: bool, score: float) -> dict[str, Any]:
    """What "segments_info" says of segment `index`."""
    return {
        "id": index + 1,
        "label_id": label,
        "was_fused": was_fused,
        "score": round(score, 6),
    }


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
    candidates: int | None = None,
) -> list[dict[str, Any]]:
    """Per image a dict of "segmentation" and "segments_info", one dict per instance in order of
    falling score: id (from 1), label_id, was_fused (False), score.

    The likeliest (query, label) pairs of an image are candidates: `candidates` pairs, or as many as
    there are queries. With `thing_label_ids`, pairs of other labels are then left out. A mask is
    where the mask probability is at least `mask_threshold`, a score is the class probability times
    the mean mask probability inside the mask, and an instance needs a score of at least
    `threshold`.

    "segmentation" is one of
    - an int32 map (height, width), 0 for void: a higher score covers a lower one, and an instance
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
        pairs = _candidates(class_logits, threshold, thing_label_ids, candidates)
        instances, run_lengths = _scored_instances(
            pairs, mask_logits, resizer, threshold, mask_threshold, encode=return_coco_annotation
        )
        masks = (
            resizer(mask_logits[query, None])[0].sigmoid_() >= mask_threshold
            for _, _, query in instances
        )
        if return_coco_annotation:
            segmentation: Any = [dict(run_lengths[query]) for _, _, query in instances]
        elif return_binary_maps:
            segmentation = torch.empty(
                (len(instances), *resizer.size), dtype=torch.bool, device=mask_logits.device
            )
            for plane, mask in zip(segmentation, masks, strict=True):
                plane.copy_(mask)
        else:
            segmentation = torch.full(
                resizer.size, VOID, dtype=torch.int32, device=mask_logits.device
            )
            painted = _paint(segmentation, masks, overlap_mask_area_threshold)
            instances = [instances[i] for i in painted]
        segments = [
            _segment(i, label, False, score) for i, (score, label, _) in enumerate(instances)
        ]
        results.append(SegmentationDict(segmentation=segmentation, segments_info=segments))
    return results


def _candidates(
    class_logits: Tensor,
    threshold: float,
    thing_label_ids: Collection[int] | None,
    count: int | None,
) -> list[tuple[float, int, int]]:
    """(class probability, label, query) of the best pairs that can still reach `threshold`."""
    probs = _float(class_logits).softmax(-1)[:, :-1]
    queries, classes = probs.shape
    best, pairs = probs.flatten().topk(min(count or queries, queries * classes))
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
    encode: bool,
) -> tuple[list[tuple[float, int, int]], dict[int, dict[str, Any]]]:
    """(score, label, query) of candidates with a mask and a score >= `threshold`, best first; and
    with `encode` the run lengths of the candidates' masks by query."""
    queries = sorted({query for _, _, query in candidates})
    if not queries:
        return [], {}
    sums, run_lengths = [], {}
    for query in queries:
        probs = resizer(mask_logits[query, None])[0].sigmoid_()
        inside = probs >= mask_threshold
        sums.append(torch.stack([inside.sum(), torch.where(inside, probs, 0).sum()]))
        if encode:
            run_lengths[query] = mask_to_rle(inside)
    area_and_sum = dict(zip(queries, torch.stack(sums).tolist(), strict=True))
    instances = []
    for class_prob, label, query in candidates:
        area, prob_sum = area_and_sum[query]
        if area > 0 and class_prob * prob_sum / area >= threshold:
            instances.append((class_prob * prob_sum / area, label, query))
    return sorted(instances, key=lambda instance: -instance[0]), run_lengths


def _paint(
    segmentation: Tensor, masks: Iterator[Tensor], overlap_mask_area_threshold: float
) -> list[int]:
    """Gives each mask in turn its pixels that are still void, unless they are too few.

    Writes ids from 1 into `segmentation` and returns the indices of the masks that have one.
    """
    painted: list[int] = []
    for i, mask in enumerate(masks):
        visible = mask & (segmentation == VOID)
        area, visible_area = torch.stack([mask.sum(), visible.sum()]).tolist()
        if visible_area > 0 and visible_area / area >= overlap_mask_area_threshold:
            painted.append(i)
            segmentation.masked_fill_(visible, len(painted))
    return painted


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
        resizer = MaskResizer(size_of(mask_logits), image_size, target_size)
        yield class_logits[i], mask_logits[i], resizer


def _float(logits: Tensor) -> Tensor:
    """Logits in float32 at least, whatever dtype the model ran in, for probabilities."""
    return logits if logits.dtype == torch.float64 else logits.float()
