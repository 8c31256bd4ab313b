// All that the kernels include. It comes before the instruction set of a file is widened, because
// what is compiled after that may only run where the set is there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "ms_deform_attn.h"
#include "point_sample.h"
#include "uncertain_points.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
