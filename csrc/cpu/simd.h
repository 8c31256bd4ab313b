// Eight floats or four doubles at a time, for whatever instruction set a kernel is compiled for.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

#include "../bilinear.h"

// One copy of a kernel for each instruction set; the loader picks one. It needs glibc's ifunc.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define MASK2FORMER_KERNEL \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else  // has no dispatch by level; these lack fused multiply-add
#define MASK2FORMER_KERNEL __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define MASK2FORMER_KERNEL
#endif

namespace mask2former {

using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;

typedef float FloatPack __attribute__((vector_size(32)));
typedef double DoublePack __attribute__((vector_size(32)));
typedef uint32_t BitsPack __attribute__((vector_size(32)));
typedef uint16_t HalfBitsPack __attribute__((vector_size(16)));

// What a storage type is accumulated in, and how many of those make a pack.
template <typename Storage>
struct Accumulation {
  using Real = float;
  using Pack = FloatPack;
};
template <>
struct Accumulation<double> {
  using Real = double;
  using Pack = DoublePack;
};
template <typename Storage>
using RealOf = typename Accumulation<Storage>::Real;
template <typename Storage>
using PackOf = typename Accumulation<Storage>::Pack;
template <typename Storage>
constexpr int64_t kLanes = sizeof(PackOf<Storage>) / sizeof(RealOf<Storage>);

MASK2FORMER_INLINE FloatPack load_pack(const float* from) {
  FloatPack pack;
  std::memcpy(&pack, from, sizeof pack);
  return pack;
}
MASK2FORMER_INLINE DoublePack load_pack(const double* from) {
  DoublePack pack;
  std::memcpy(&pack, from, sizeof pack);
  return pack;
}
MASK2FORMER_INLINE BitsPack load_half_bits(const void* from) {
  HalfBitsPack bits;
  std::memcpy(&bits, from, sizeof bits);
  return __builtin_convertvector(bits, BitsPack);
}
MASK2FORMER_INLINE FloatPack load_pack(const BFloat16* from) {
  return reinterpret_cast<FloatPack>(load_half_bits(from) << 16);
}
MASK2FORMER_INLINE FloatPack load_pack(const Half* from) {
  const BitsPack bits = load_half_bits(from);
  const BitsPack magnitude = (bits & 0x7fffu) << 13;
  // The product moves the exponent's bias from 15 to 127, subnormal numbers included.
  const FloatPack finite = reinterpret_cast<FloatPack>(magnitude) * 0x1p112f;
  const BitsPack not_finite = reinterpret_cast<BitsPack>(magnitude >= 0x0f800000u) & 0x7f800000u;
  return reinterpret_cast<FloatPack>(reinterpret_cast<BitsPack>(finite) | not_finite |
                                     (bits & 0x8000u) << 16);
}

MASK2FORMER_INLINE void store_pack(float* to, FloatPack pack) {
  std::memcpy(to, &pack, sizeof pack);
}
MASK2FORMER_INLINE void store_pack(double* to, DoublePack pack) {
  std::memcpy(to, &pack, sizeof pack);
}
template <typename Storage>
MASK2FORMER_INLINE void store_pack(Storage* to, FloatPack pack) {
  for (int i = 0; i < 8; ++i) to[i] = static_cast<Storage>(pack[i]);
}

}  // namespace mask2former
