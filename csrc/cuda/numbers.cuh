// Numbers in device memory: half types, loads of 16 bytes, atomic sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../dtypes.h"

namespace mask2former {

extern __shared__ uint4 shared_memory[];  // of a block, as large as its launch asks for

}  // namespace mask2former

namespace mask2former::cuda {

__device__ __forceinline__ double to_real(double x) {
  return x;
}
__device__ __forceinline__ float to_real(float x) {
  return x;
}
__device__ __forceinline__ float to_real(uint8_t x) {
  return x;
}
__device__ __forceinline__ float to_real(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float to_real(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename Storage>
__device__ __forceinline__ Storage from_real(RealOf<Storage> x) {
  if constexpr (std::is_same_v<Storage, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<Storage, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// Neighbouring numbers, which one instruction loads or stores: they lie on a multiple of their
// size.
template <typename Storage, int kWidth>
struct alignas(sizeof(Storage) * kWidth) Pack {
  Storage numbers[kWidth];
};

template <int kWidth, typename Storage>
__device__ __forceinline__ Pack<Storage, kWidth> load_pack(const Storage* from) {
  return *reinterpret_cast<const Pack<Storage, kWidth>*>(from);
}

template <typename Storage, int kWidth>
__device__ __forceinline__ void to_reals(const Pack<Storage, kWidth>& pack,
                                         RealOf<Storage> (&reals)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) reals[i] = to_real(pack.numbers[i]);
}

// A bfloat16 is the upper half of a float. Two at a time take one instruction each.
template <int kWidth>
__device__ __forceinline__ void to_reals(const Pack<__nv_bfloat16, kWidth>& pack,
                                         float (&reals)[kWidth]) {
  if constexpr (kWidth % 2) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) reals[i] = to_real(pack.numbers[i]);
  } else {
    uint32_t pairs[kWidth / 2];
    memcpy(pairs, &pack, sizeof pack);
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) {
      reals[2 * i] = __uint_as_float(pairs[i] << 16);
      reals[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
  }
}

template <typename Storage, int kWidth>
__device__ __forceinline__ void store_pack(Storage* to, const RealOf<Storage> (&numbers)[kWidth]) {
  Pack<Storage, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) pack.numbers[i] = from_real<Storage>(numbers[i]);
  *reinterpret_cast<Pack<Storage, kWidth>*>(to) = pack;
}

// Numbers of the storage type, or of the type that arithmetic is done in: half values may come with
// float32 locations.
struct Numbers {
  void* data;  // null where nobody wants them
  bool wide;
};

template <typename Storage>
__device__ __forceinline__ RealOf<Storage> read(const Numbers& numbers, int64_t index) {
  return numbers.wide ? static_cast<const RealOf<Storage>*>(numbers.data)[index]
                      : to_real(static_cast<const Storage*>(numbers.data)[index]);
}

template <typename Storage>
__device__ __forceinline__ void write(const Numbers& numbers, int64_t index, RealOf<Storage> x) {
  if (numbers.wide) {
    static_cast<RealOf<Storage>*>(numbers.data)[index] = x;
  } else {
    static_cast<Storage*>(numbers.data)[index] = from_real<Storage>(x);
  }
}

// A location: its column and its row.
template <typename Storage>
__device__ __forceinline__ Pack<RealOf<Storage>, 2> read_pair(const Numbers& numbers,
                                                              int64_t index) {
  using Real = RealOf<Storage>;
  if (numbers.wide) return load_pack<2>(static_cast<const Real*>(numbers.data) + 2 * index);
  Pack<Real, 2> pair;
  to_reals(load_pack<2>(static_cast<const Storage*>(numbers.data) + 2 * index), pair.numbers);
  return pair;
}

template <typename Storage>
__device__ __forceinline__ void write_pair(const Numbers& numbers, int64_t index, RealOf<Storage> x,
                                           RealOf<Storage> y) {
  const RealOf<Storage> pair[] = {x, y};
  if (numbers.wide) {
    store_pack(static_cast<RealOf<Storage>*>(numbers.data) + 2 * index, pair);
  } else {
    store_pack(static_cast<Storage*>(numbers.data) + 2 * index, pair);
  }
}

// ---- sums that several threads add to --------------------------------------------------------------

// In the order in which the threads come.
template <int kWidth, typename Real>
__device__ __forceinline__ void add(Real* to, const Real (&numbers)[kWidth], int) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  constexpr bool has_vectors = false;
#else
  constexpr bool has_vectors = true;
#endif
  if constexpr (has_vectors && std::is_same_v<Real, float> && kWidth % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWidth; i += 4) {
      atomicAdd(reinterpret_cast<float4*>(to + i),
                make_float4(numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) atomicAdd(to + i, numbers[i]);
  }
}

// In fixed point, where no order makes a difference: times a power of two that keeps the sum of all
// finite numbers below 2^60, so that a sum of 2^61 and above means that a number was not finite.
using Fixed = long long;
constexpr Fixed kNotFinite = 1ll << 62;

template <int kWidth, typename Real>
__device__ __forceinline__ void add(Fixed* to, const Real (&numbers)[kWidth], int exponent) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (isfinite(numbers[i])) {
      const long long fixed = llrint(scalbn(static_cast<double>(numbers[i]), exponent));
      atomicAdd(reinterpret_cast<unsigned long long*>(to + i),
                static_cast<unsigned long long>(fixed));
    } else {
      atomicMax(to + i, kNotFinite);
    }
  }
}

// For `count` numbers, each the product of one of at most `bound` and one of at most `other`.
__device__ __forceinline__ int fixed_exponent(double bound, double other, double count) {
  if (bound == 0 || other == 0) return 0;
  return 57 - ilogb(bound) - ilogb(other) - ilogb(count);
}

template <typename Real>
__device__ __forceinline__ Real from_fixed(Fixed sum, int exponent) {
  const bool finite = sum < kNotFinite / 2 && sum > -kNotFinite / 2;
  return static_cast<Real>(finite ? scalbn(static_cast<double>(sum), -exponent) : nan(""));
}

// The bits of a number that is not negative are ordered as the number is.
__device__ __forceinline__ void raise(float* to, float x) {
  atomicMax(reinterpret_cast<int*>(to), __float_as_int(x));
}
__device__ __forceinline__ void raise(double* to, double x) {
  atomicMax(reinterpret_cast<long long*>(to), __double_as_longlong(x));
}

}  // namespace mask2former::cuda
