"""What transformers 5.23 computes, bit-identical: the processor's `hf_compat=True`.

This file is for comparisons, not for use. Every function has a counterpart that is right, in
rules.py and the files it names, and the docstrings say what differs. The floating-point operations
have transformers' order, so results are equal and not merely close. See docs/transformers.md.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mask2former.images.resize import Size, next_multiple, size_of
from mask2former.images.rules import Rules

# The size every mask is first resized to, whatever the image was (transformers#44901).
WORKING_SIZE = (384, 384)


def _resize(values: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of (N, C, H, W)."""
    return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)


def semantic_segmentation(outputs: Any, target_sizes: Sequence[Size] | None = None) -> list[Tensor]:
    """Works at 384x384 and does not crop padding."""
    class_probs = outputs.class_queries_logits.softmax(-1)[..., :-1]
    mask_probs = _resize(outputs.masks_queries_logits, WORKING_SIZE).sigmoid()
    scores = torch.einsum("bqc, bqhw -> bchw", class_probs, mask_probs)
    if target_sizes is None:
        return list(scores.argmax(1))
    if len(target_sizes) != len(scores):
        raise ValueError(f"Got {len(target_sizes)} target sizes for a batch of {len(scores)}.")
    resized = (_resize(s[None], size)[0] for s, size in zip(scores, target_sizes, strict=True))
    return [s.argmax(0) for s in resized]


def instance_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    target_sizes: Sequence[Size] | None = None,
    *,
    return_coco_annotation: bool = False,
    return_binary_maps: bool = False,
    thing_label_ids: Collection[int] | None = None,
) -> list[dict[str, Any]]:
    """Works at 384x384, resizes binary masks by nearest, paints in no order of score, and returns
    float maps on the CPU. `mask_threshold`, `overlap_mask_area_threshold` and `thing_label_ids`
    have no effect, and the run lengths are not COCO's."""
    if return_coco_annotation and return_binary_maps:
        raise ValueError(
            "return_coco_annotation and return_binary_maps exclude each other; set only one."
        )
    mask_logits = _resize(outputs.masks_queries_logits, WORKING_SIZE)
    results = []
    for i, class_logits in enumerate(outputs.class_queries_logits):
        scores, labels, masks = _scored_masks(class_logits, mask_logits[i])
        size = WORKING_SIZE
        if target_sizes is not None:
            size = tuple(target_sizes[i])
            masks = F.interpolate(masks[None], size=size, mode="nearest")[0]
        segmentation: Any = torch.full(size, -1.0)
        segments, kept = [], []
        for score, label, mask in zip(scores.tolist(), labels.tolist(), masks, strict=True):
            if score < threshold or not mask.any():
                continue
            segmentation[mask.cpu() == 1] = len(segments)
            segments.append(
                {
                    "id": len(segments),
                    "label_id": label,
                    "was_fused": False,
                    "score": round(score, 6),
                }
            )
            kept.append(mask)
        if return_coco_annotation:
            segmentation = [_run_lengths(segmentation == i) for i in segmentation.unique()]
        elif return_binary_maps and kept:
            segmentation = torch.stack(kept)
        results.append({"segmentation": segmentation, "segments_info": segments})
    return results


def _scored_masks(class_logits: Tensor, mask_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score, label and float mask of the Q best (query, label) pairs, in the order topk gives."""
    queries, labels = class_logits.shape[0], class_logits.shape[1] - 1
    probs = class_logits.softmax(-1)[:, :-1]
    class_scores, pairs = probs.flatten().topk(queries, sorted=False)
    logits = mask_logits[pairs // labels]
    masks = (logits > 0).float()
    inside = (logits.sigmoid().flatten(1) * masks.flatten(1)).sum(1)
    mask_scores = inside / (masks.flatten(1).sum(1) + 1e-6)
    return class_scores * mask_scores, pairs % labels, masks


def _run_lengths(mask: Tensor) -> list[int]:
    """Start (from 1) and length of every run of a mask read along its rows."""
    edge = torch.zeros(1, dtype=torch.bool)
    pixels = torch.cat([edge, mask.flatten(), edge])
    runs = (pixels[1:] != pixels[:-1]).nonzero()[:, 0] + 1
    runs[1::2] -= runs[::2].clone()
    return runs.tolist()


def panoptic_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int] = (),
    target_sizes: Sequence[Size] | None = None,
) -> list[dict[str, Any]]:
    """Works at 384x384, resizes probabilities, tests areas on score-weighted probabilities, keeps
    pixels under the mask threshold, repeats ids and entries after fusing, and an empty result is
    a float map of -1."""
    mask_probs = _resize(outputs.masks_queries_logits, WORKING_SIZE).sigmoid()
    all_scores, all_labels = outputs.class_queries_logits.softmax(-1).max(-1)
    no_object = outputs.class_queries_logits.shape[-1] - 1
    results = []
    for i, (scores, labels) in enumerate(zip(all_scores, all_labels, strict=True)):
        size = WORKING_SIZE if target_sizes is None else tuple(target_sizes[i])
        keep = labels.ne(no_object) & (scores > threshold)
        if not keep.any():
            results.append({"segmentation": torch.full(size, -1.0), "segments_info": []})
            continue
        probs = mask_probs[i][keep]
        if target_sizes is not None:
            probs = _resize(probs[None], size)[0]
        probs = probs * scores[keep].view(-1, 1, 1)
        segmentation, segments = _fused_segments(
            probs,
            scores[keep].tolist(),
            labels[keep].tolist(),
            mask_threshold,
            overlap_mask_area_threshold,
            label_ids_to_fuse,
        )
        results.append({"segmentation": segmentation, "segments_info": segments})
    return results


def _fused_segments(
    probs: Tensor,
    scores: list[float],
    labels: list[int],
    mask_threshold: float,
    overlap_mask_area_threshold: float,
    label_ids_to_fuse: Collection[int],
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The map and segments of one image from score-weighted probabilities (queries, H, W)."""
    winner = probs.argmax(0)
    segmentation = torch.zeros(probs.shape[1:], dtype=torch.int32, device=probs.device)
    segments: list[dict[str, Any]] = []
    fused_ids: dict[int, int] = {}
    current = 0
    for query, (score, label) in enumerate(zip(scores, labels, strict=True)):
        won = winner == query
        area, own_area = won.sum(), (probs[query] >= mask_threshold).sum()
        if area == 0 or own_area == 0:
            continue
        # a float32 ratio against a float64 threshold, so equality is not what it seems
        if not (area / own_area).item() > overlap_mask_area_threshold:
            continue
        # going back to an earlier id is why later segments repeat ids
        current = fused_ids.get(label, current + 1)
        segmentation[won] = current
        fuse = label in label_ids_to_fuse
        segments.append(
            {"id": current, "label_id": label, "was_fused": fuse, "score": round(score, 6)}
        )
        if fuse:
            fused_ids[label] = current
    return segmentation, segments


def shortest_edge_size(size: Size, shortest_edge: int, longest_edge: int | None = None) -> Size:
    """(height, width) with the shortest edge of the given length, or, if that would make the other
    longer than `longest_edge`, with the longest of that length; the other edge is truncated.

    Source: `get_size_with_aspect_ratio` of transformers.
    """
    height, width = size
    short, long = min(size), max(size)
    exact: float = shortest_edge
    if longest_edge is not None and long / short * shortest_edge > longest_edge:
        exact = longest_edge * short / long
    new_short = round(exact)
    if new_short == short:
        return size
    if width < height:
        return int(exact * height / width), new_short
    return new_short, int(exact * width / height)


# What transformers asks torchvision for. Tensors cannot be resized by BOX and HAMMING there.
RESIZE_MODES = {
    Image.Resampling.NEAREST: "nearest-exact",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
    Image.Resampling.LANCZOS: "lanczos",
}


def resized_image(image: Tensor, size: Size, resample: int) -> Tensor:
    """(3, H, W) resized as torchvision does it: bytes by the CPU's kernels for bytes, or else in
    float32, clamped and rounded. On other devices, and before torch 2.12, LANCZOS is BICUBIC."""
    if resample not in RESIZE_MODES:
        raise ValueError(
            f"transformers cannot resize tensors by {Image.Resampling(resample).name}; with "
            f"hf_compat choose {', '.join(mode.name for mode in RESIZE_MODES)}."
        )
    mode, on_cpu = RESIZE_MODES[Image.Resampling(resample)], image.device.type == "cpu"
    if size_of(image) == size:
        return image
    if mode == "nearest-exact":
        return F.interpolate(image[None], size=size, mode=mode)[0]
    if mode == "lanczos" and (not on_cpu or torch.__version__ < "2.12"):
        mode = "bicubic"
    as_bytes = on_cpu and (mode != "bilinear" or _has_fast_bilinear_bytes())
    if image.dtype != torch.uint8 or as_bytes:
        return F.interpolate(image[None], size=size, mode=mode, antialias=True)[0]
    values = F.interpolate(image[None].float(), size=size, mode=mode, antialias=True)[0]
    return values.clamp(0, 255).round().to(torch.uint8)


def _has_fast_bilinear_bytes() -> bool:
    """torchvision's rule for when to resize bytes bilinearly as bytes."""
    vectors = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return vectors or platform.machine() in ("aarch64", "arm64")


def resized_map(values: Tensor, size: Size) -> Tensor:
    """An id map (H, W) resized by nearest in float32, which rounds ids above 2**24 and, at a tie
    between two pixels, may take the other one."""
    return F.interpolate(values[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()


def masks_and_labels(
    ids: Tensor,
    instance_id_to_semantic_id: Mapping[int, int] | None,
    ignore_index: int | None,
    do_reduce_labels: bool,
    index: int,
) -> tuple[Tensor, Tensor]:
    """float32 masks (labels, H, W) and int64 labels of an id map (H, W). An instance whose reduced
    id happens to be `ignore_index` is lost. `index` is the map's number in the batch."""
    if do_reduce_labels:
        if ignore_index is None:
            raise ValueError(
                f"Reducing the labels of map {index} with hf_compat needs an ignore_index."
            )
        ids = torch.where(ids == 0, ignore_index, ids - 1)
    kept = ids.unique()
    if ignore_index is not None:
        kept = kept[kept != ignore_index]
    masks = (ids == kept[:, None, None]).float()
    if instance_id_to_semantic_id is None:
        return masks, kept
    shift = int(do_reduce_labels)
    labels = [instance_id_to_semantic_id[i + shift] - shift for i in kept.tolist()]
    return masks, torch.tensor(labels, dtype=torch.int64, device=ids.device)


class TransformersRules(Rules):
    """The rules of transformers 5.23."""

    pair_keys = ("height", "width")

    shortest_edge_size = staticmethod(shortest_edge_size)
    resized_image = staticmethod(resized_image)
    resized_map = staticmethod(resized_map)
    masks_and_labels = staticmethod(masks_and_labels)

    def stretched_size(self, size: Size, divisor: int) -> Size:
        """Images are stretched to multiples of `divisor`."""
        return next_multiple(size, divisor)

    def crops(self, do_center_crop: bool) -> bool:
        """`do_center_crop` has no effect."""
        return False

    def pads(self, do_pad: bool) -> bool:
        """`do_pad` has no effect."""
        return True

    def padded_size(self, largest: Size, divisor: int) -> Size:
        return largest

    def mask_padding(self, ignore_index: int | None) -> int:
        return ignore_index or 0

    semantic_segmentation = staticmethod(semantic_segmentation)
    panoptic_segmentation = staticmethod(panoptic_segmentation)
    instance_segmentation = staticmethod(instance_segmentation)

    def labels_to_fuse(self, labels: int, thing_label_ids: Collection[int] | None) -> set[int]:
        """Nothing is fused unless told."""
        return set()
