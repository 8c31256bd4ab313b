// The kernels for what every machine of an architecture has: SSE2, NEON.
#define MASK2FORMER_SET baseline
#define MASK2FORMER_PACK_BYTES 16
#define MASK2FORMER_F16C 0
#include "kernels.inl"
