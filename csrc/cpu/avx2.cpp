// The kernels for AVX2 with FMA and F16C.
#include "instruction_set.h"
#include "kernel_includes.h"

#if MASK2FORMER_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define MASK2FORMER_SET avx2
#define MASK2FORMER_PACK_BYTES 32
#define MASK2FORMER_F16C 1
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
