"""Metrics: each takes predictions and truths one image at a time and gives figures at the end."""

from mask2former.evaluation.average_precision import AveragePrecision
from mask2former.evaluation.mean_iou import MeanIoU
from mask2former.evaluation.panoptic_quality import PanopticQuality

__all__ = ["AveragePrecision", "MeanIoU", "PanopticQuality"]
