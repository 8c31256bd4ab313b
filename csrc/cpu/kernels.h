// The kernels of one instruction set. The including file defines MASK2FORMER_SET, the namespace
// that they are in, MASK2FORMER_PACK_BYTES and MASK2FORMER_F16C. There are no include guards.
#include "simd.h"  // before what is written in it

#include "cells.h"

#include "ms_deform_attn_kernels.h"
#include "point_sample_kernels.h"
#include "uncertain_points_kernels.h"
