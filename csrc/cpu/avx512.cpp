// The kernels for AVX-512.
#include "instruction_set.h"
#include "kernel_includes.h"

#if MASK2FORMER_X86
#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define MASK2FORMER_SET avx512
#define MASK2FORMER_PACK_BYTES 64
#define MASK2FORMER_F16C 1
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
