// All kernels of one instruction set. The including file defines MASK2FORMER_SET, the namespace
// that they are in, MASK2FORMER_PACK_BYTES, MASK2FORMER_F16C and, where the set is more than the
// compiler's default, MASK2FORMER_TARGET.
#include "../ms_deform_attn.inl"
#include "../point_sample.inl"
#include "../uncertain_points.inl"
