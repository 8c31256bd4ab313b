// Stands for NVIDIA's header: what the kernels use of CUDA, run by the emulator. Whatever CUDA has
// and this lacks does not compile.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <limits>
#include <source_location>
#include <type_traits>
#include <utility>

#include "../emulator.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__  // the standard library uses this name as an attribute

inline const uint3& threadIdx = emulator::current.thread;
inline const uint3& blockIdx = emulator::current.block;
inline const dim3& blockDim = emulator::current.block_size;
inline const dim3& gridDim = emulator::current.grid_size;
constexpr int warpSize = emulator::kWarp;

// ---- waiting for other threads ----

// Where a call stands in the source. Two calls differ by it.
#define EMULATOR_SITE std::source_location site = std::source_location::current()

inline void __syncthreads(EMULATOR_SITE) {
  emulator::barrier({"__syncthreads", site}, false);
}
inline int __syncthreads_count(int predicate, EMULATOR_SITE) {
  return emulator::barrier({"__syncthreads_count", site}, predicate);
}
inline int __syncthreads_or(int predicate, EMULATOR_SITE) {
  return emulator::barrier({"__syncthreads_or", site}, predicate) > 0;
}
inline int __syncthreads_and(int predicate, EMULATOR_SITE) {
  return emulator::barrier({"__syncthreads_and", site}, !predicate) == 0;
}

inline void __syncwarp(unsigned mask = ~0u, EMULATOR_SITE) {
  emulator::vote({"__syncwarp", site, mask}, false);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return emulator::vote({"__ballot_sync", site, mask}, predicate).ballot;
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return emulator::vote({"__any_sync", site, mask}, predicate).ballot != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  const auto [ballot, lanes] = emulator::vote({"__all_sync", site, mask}, predicate);
  return ballot == lanes;
}

// Blocks run one after another, so that their memory accesses are in order.
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- shuffles ----

namespace emulator {

template <typename T>
inline constexpr bool is_shuffled = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

template <typename T>
concept Shuffled = is_shuffled<T>;

// The first lane of the group that the lane is in.
inline int group_of(const Call& call) {
  if (call.width < 1 || call.width > kWarp || !std::has_single_bit(unsigned(call.width))) {
    fail(std::string(call.name) + " with a width of " + std::to_string(call.width));
  }
  return current.lane() & -call.width;
}

template <typename T>
T shuffle(const Call& call, T value, int source) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(call, source, bits);
  std::memcpy(static_cast<void*>(&value), &bits, sizeof value);
  return value;
}

}  // namespace emulator

template <emulator::Shuffled T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, EMULATOR_SITE) {
  const emulator::Call call{"__shfl_sync", site, mask, width};
  const int group = emulator::group_of(call);
  return emulator::shuffle(call, value, group + (source & (width - 1)));
}

template <emulator::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_SITE) {
  const emulator::Call call{"__shfl_up_sync", site, mask, width};
  const int group = emulator::group_of(call), self = emulator::current.lane();
  const int source = self - int(delta & 31);
  return emulator::shuffle(call, value, source < group ? self : source);
}

template <emulator::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_SITE) {
  const emulator::Call call{"__shfl_down_sync", site, mask, width};
  const int group = emulator::group_of(call), self = emulator::current.lane();
  const int source = self + int(delta & 31);
  return emulator::shuffle(call, value, source < group + width ? source : self);
}

template <emulator::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, EMULATOR_SITE) {
  const emulator::Call call{"__shfl_xor_sync", site, mask, width};
  const int group = emulator::group_of(call), self = emulator::current.lane();
  const int source = self ^ (bits & 31);
  return emulator::shuffle(call, value, source < group + width ? source : self);
}

// ---- memory ----

template <typename T>
  requires(std::is_trivially_copyable_v<T> && sizeof(T) <= 16 && std::has_single_bit(sizeof(T)))
T __ldg(const T* address) {
  emulator::check_aligned("__ldg", address, sizeof(T));
  return *address;
}

namespace emulator {

template <typename T, typename... Types>
concept OneOf = (std::same_as<T, Types> || ...);
template <typename T>
concept Word = OneOf<T, int, unsigned, unsigned long long>;
template <typename T>
concept Ordered = OneOf<T, int, unsigned, long long, unsigned long long>;

// Only one thread runs at a time.
template <typename T, typename Change>
T atomic(const char* name, T* address, Change change) {
  check_aligned(name, address, sizeof(T));
  const T old = *address;
  *address = change(old);
  return old;
}

template <typename T, typename Change>
T vector_atomic(T* address, Change change) {
  if (is_shared(address)) fail("atomicAdd of a vector in shared memory");
  return atomic("atomicAdd", address, change);
}

template <typename T>
T sum(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(std::make_unsigned_t<T>(a) + std::make_unsigned_t<T>(b));
  } else {
    return a + b;
  }
}

}  // namespace emulator

template <typename T>
  requires(emulator::Word<T> || std::floating_point<T>)
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return emulator::atomic("atomicAdd", address, [=](T old) { return emulator::sum(old, value); });
}
inline float2 atomicAdd(float2* address, float2 v) {
  return emulator::vector_atomic(address, [=](float2 o) { return float2{o.x + v.x, o.y + v.y}; });
}
inline float4 atomicAdd(float4* address, float4 v) {
  return emulator::vector_atomic(
      address, [=](float4 o) { return float4{o.x + v.x, o.y + v.y, o.z + v.z, o.w + v.w}; });
}
template <emulator::Ordered T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return emulator::atomic("atomicMax", address, [=](T old) { return std::max(old, value); });
}
template <emulator::Ordered T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return emulator::atomic("atomicMin", address, [=](T old) { return std::min(old, value); });
}
template <typename T>
  requires(emulator::Word<T> || std::same_as<T, float>)
T atomicExch(T* address, std::type_identity_t<T> value) {
  return emulator::atomic("atomicExch", address, [=](T) { return value; });
}
template <emulator::Word T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return emulator::atomic("atomicCAS", address,
                          [=](T old) { return old == expected ? value : old; });
}

// ---- numbers ----

inline float __int_as_float(int bits) {
  return std::bit_cast<float>(bits);
}
inline int __float_as_int(float value) {
  return std::bit_cast<int>(value);
}
inline float __uint_as_float(unsigned bits) {
  return std::bit_cast<float>(bits);
}
inline unsigned __float_as_uint(float value) {
  return std::bit_cast<unsigned>(value);
}
inline double __longlong_as_double(long long bits) {
  return std::bit_cast<double>(bits);
}
inline long long __double_as_longlong(double value) {
  return std::bit_cast<long long>(value);
}

// Saturates, and is 0 for NaN, as on the device.
inline int __float2int_rd(float value) {
  if (value != value) return 0;
  if (value >= 0x1p31f) return std::numeric_limits<int>::max();
  return value < -0x1p31f ? std::numeric_limits<int>::min() : static_cast<int>(floorf(value));
}

#define EMULATOR_MIN_MAX(T)   \
  constexpr T min(T a, T b) { \
    return b < a ? b : a;     \
  }                           \
  constexpr T max(T a, T b) { \
    return a < b ? b : a;     \
  }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
#undef EMULATOR_MIN_MAX
inline float min(float a, float b) {
  return fminf(a, b);
}
inline float max(float a, float b) {
  return fmaxf(a, b);
}
inline double min(double a, double b) {
  return fmin(a, b);
}
inline double max(double a, double b) {
  return fmax(a, b);
}

#include "cuda_runtime_api.h"
