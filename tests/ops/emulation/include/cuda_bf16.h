// Stands for NVIDIA's header: bfloat16 numbers, to be converted only.
#pragma once

#include "cuda_runtime.h"

struct alignas(2) __nv_bfloat16 {
  __nv_bfloat16() = default;

 protected:
  unsigned short __x;
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat162() = default;
  constexpr __nv_bfloat162(const __nv_bfloat16& x, const __nv_bfloat16& y) : x(x), y(y) {}
  __nv_bfloat16 x, y;
};

inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return std::bit_cast<__nv_bfloat16>(bits);
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) {
  return std::bit_cast<unsigned short>(value);
}

inline float __bfloat162float(__nv_bfloat16 value) {
  return __uint_as_float(unsigned{__bfloat16_as_ushort(value)} << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (value != value) return __ushort_as_bfloat16(0x7fff);
  const unsigned bits = __float_as_uint(value);
  const unsigned half = 0x7fff + (bits >> 16 & 1);  // a tie goes to the even number
  return __ushort_as_bfloat16(static_cast<unsigned short>((bits + half) >> 16));
}
inline __nv_bfloat16 __float2bfloat16(float value) {
  return __float2bfloat16_rn(value);
}

inline float __low2float(__nv_bfloat162 pair) {
  return __bfloat162float(pair.x);
}
inline float __high2float(__nv_bfloat162 pair) {
  return __bfloat162float(pair.y);
}
inline float2 __bfloat1622float2(__nv_bfloat162 pair) {
  return {__low2float(pair), __high2float(pair)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 pair) {
  return __floats2bfloat162_rn(pair.x, pair.y);
}

template <>
inline constexpr bool emulator::is_shuffled<__nv_bfloat16> = true;
template <>
inline constexpr bool emulator::is_shuffled<__nv_bfloat162> = true;
