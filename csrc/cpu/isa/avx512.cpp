// The kernels for AVX-512.
#include "instruction_set.h"

#if MASK2FORMER_X86
#define MASK2FORMER_SET avx512
#define MASK2FORMER_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#define MASK2FORMER_PACK_BYTES 64
#define MASK2FORMER_F16C 1
#include "kernels.inl"
#endif
