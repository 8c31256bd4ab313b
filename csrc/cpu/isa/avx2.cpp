// The kernels for AVX2 with FMA and F16C.
#include "instruction_set.h"

#if MASK2FORMER_X86
#define MASK2FORMER_SET avx2
#define MASK2FORMER_TARGET "avx2,fma,f16c"
#define MASK2FORMER_PACK_BYTES 32
#define MASK2FORMER_F16C 1
#include "kernels.inl"
#endif
