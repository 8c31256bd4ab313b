"""Multi-scale deformable attention and point sampling: compiled kernels, or pure PyTorch."""

from mask2former_ops._extension import FallbackWarning
from mask2former_ops.ms_deform_attn import ms_deform_attn
from mask2former_ops.point_sample import point_sample
from mask2former_ops.uncertain_points import uncertain_points

__version__ = "0.1.0"

__all__ = [
    "FallbackWarning",
    "__version__",
    "ms_deform_attn",
    "point_sample",
    "uncertain_points",
]
