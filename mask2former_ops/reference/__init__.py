"""The ops in pure PyTorch: the fallback and, in float64, the oracle of the tests."""

from mask2former_ops.reference.ms_deform_attn import ms_deform_attn, ms_deform_attn_backward
from mask2former_ops.reference.point_sample import point_sample, point_sample_backward
from mask2former_ops.reference.uncertain_points import uncertain_counts, uncertain_points

__all__ = [
    "ms_deform_attn",
    "ms_deform_attn_backward",
    "point_sample",
    "point_sample_backward",
    "uncertain_counts",
    "uncertain_points",
]
