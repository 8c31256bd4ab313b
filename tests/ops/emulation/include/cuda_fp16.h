// Stands for NVIDIA's header: half precision numbers, to be converted only.
#pragma once

#include "cuda_runtime.h"

struct alignas(2) __half {
  __half() = default;

 protected:
  unsigned short __x;
};

struct alignas(4) __half2 {
  __half2() = default;
  constexpr __half2(const __half& x, const __half& y) : x(x), y(y) {}
  __half x, y;
};

inline __half __ushort_as_half(unsigned short bits) {
  return std::bit_cast<__half>(bits);
}
inline unsigned short __half_as_ushort(__half value) {
  return std::bit_cast<unsigned short>(value);
}

// Every NaN becomes the one that CUDA gives.
inline float __half2float(__half value) {
  const float wide = std::bit_cast<_Float16>(value);
  return wide != wide ? __uint_as_float(0x7fffffff) : wide;
}
inline __half __float2half_rn(float value) {
  return value != value ? __ushort_as_half(0x7fff)
                        : std::bit_cast<__half>(static_cast<_Float16>(value));
}
inline __half __float2half(float value) {
  return __float2half_rn(value);
}

inline float __low2float(__half2 pair) {
  return __half2float(pair.x);
}
inline float __high2float(__half2 pair) {
  return __half2float(pair.y);
}
inline float2 __half22float2(__half2 pair) {
  return {__low2float(pair), __high2float(pair)};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
inline __half2 __float22half2_rn(float2 pair) {
  return __floats2half2_rn(pair.x, pair.y);
}

template <>
inline constexpr bool emulator::is_shuffled<__half> = true;
template <>
inline constexpr bool emulator::is_shuffled<__half2> = true;
