// Packs of numbers, compiled once for each instruction set: see isa/kernels.inl.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../bilinear.h"
#include "numbers.h"

#include "isa/begin.inl"
namespace mask2former::MASK2FORMER_SET {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "halves of a number are told apart by shifts");

// `Lanes` numbers of a type in one variable.
template <typename Number, int Lanes>
struct PackType {
  typedef Number type __attribute__((vector_size(Lanes * sizeof(Number))));
};
template <typename Number>
struct PackType<Number, 1> {
  using type = Number;
};
template <typename Number, int Lanes>
using Pack = typename PackType<Number, Lanes>::type;

template <typename Real>
constexpr int kNativeLanes = MASK2FORMER_PACK_BYTES / sizeof(Real);

template <int Lanes, typename Number>
MASK2FORMER_INLINE Pack<Number, Lanes> load_bits(const void* from) {
  Pack<Number, Lanes> pack;
  std::memcpy(&pack, from, sizeof pack);
  return pack;
}

// ---- loads, which widen half storage --------------------------------------------------------------

template <int Lanes>
MASK2FORMER_INLINE Pack<uint32_t, Lanes> widen_bits(const void* from) {
#if MASK2FORMER_PACK_BYTES == 64
  if constexpr (Lanes == 16) {
    return reinterpret_cast<Pack<uint32_t, Lanes>>(
        _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(from))));
  }
#endif
#if MASK2FORMER_F16C
  if constexpr (Lanes == 8) {
    return reinterpret_cast<Pack<uint32_t, Lanes>>(
        _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from))));
  }
#endif
#if defined(__aarch64__)
  if constexpr (Lanes == 4) {  // below, GCC 12 widens number by number
    const auto bits = reinterpret_cast<uint16x4_t>(load_bits<Lanes, uint16_t>(from));
    return reinterpret_cast<Pack<uint32_t, Lanes>>(vmovl_u16(bits));
  }
#endif
  return __builtin_convertvector((load_bits<Lanes, uint16_t>(from)), Pack<uint32_t, Lanes>);
}

template <int Lanes>
MASK2FORMER_INLINE Pack<float, Lanes> load_pack(const float* from) {
  return load_bits<Lanes, float>(from);
}

template <int Lanes>
MASK2FORMER_INLINE Pack<double, Lanes> load_pack(const double* from) {
  return load_bits<Lanes, double>(from);
}

// Floats from half numbers in the low halves of 32 bits.
template <typename HalfType, int Lanes>
MASK2FORMER_INLINE Pack<float, Lanes> widen_pack(Pack<uint32_t, Lanes> bits) {
  using Bits = Pack<uint32_t, Lanes>;
  using Floats = Pack<float, Lanes>;
  if constexpr (std::is_same_v<HalfType, BFloat16>) {
    return reinterpret_cast<Floats>(bits << 16);
#if defined(__aarch64__)
  } else if constexpr (Lanes % 4 == 0) {
    Floats floats;
    for (int lane = 0; lane < Lanes; lane += 4) {
      const auto half = vmovn_u32(vld1q_u32(reinterpret_cast<const uint32_t*>(&bits) + lane));
      vst1q_f32(reinterpret_cast<float*>(&floats) + lane, vcvt_f32_f16(vreinterpret_f16_u16(half)));
    }
    return floats;
#endif
  } else {
    const Bits magnitude = (bits & 0x7fffu) << 13;
    const Bits normal = magnitude + 0x38000000u;  // the exponent's bias is 15 there and 127 here
    // Exact, and no operand is a subnormal float, which the CPU may be set to take as 0.
    const Floats subnormal = reinterpret_cast<Floats>(magnitude | 0x38800000u) - 0x1p-14f;
    const Bits finite = magnitude < 0x00800000u ? reinterpret_cast<Bits>(subnormal) : normal;
    const Bits not_finite = reinterpret_cast<Bits>(magnitude >= 0x0f800000u) & 0x7f800000u;
    return reinterpret_cast<Floats>(finite | not_finite | (bits & 0x8000u) << 16);
  }
}

template <int Lanes>
MASK2FORMER_INLINE Pack<float, Lanes> load_pack(const BFloat16* from) {
  if constexpr (Lanes == 1) {
    return static_cast<float>(*from);
  } else {
    return widen_pack<BFloat16, Lanes>(widen_bits<Lanes>(from));
  }
}

template <int Lanes>
MASK2FORMER_INLINE Pack<float, Lanes> load_pack(const Half* from) {
  if constexpr (Lanes == 1) {
    return static_cast<float>(*from);
#if MASK2FORMER_F16C
  } else if constexpr (Lanes == 4) {
    return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  } else if constexpr (Lanes == 8) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#endif
#if MASK2FORMER_PACK_BYTES == 64
  } else if constexpr (Lanes == 16) {
    return _mm512_maskz_cvtph_ps(0xffff,
                                 _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#endif
  } else {
    return widen_pack<Half, Lanes>(widen_bits<Lanes>(from));
  }
}

template <int Lanes>
MASK2FORMER_INLINE Pack<float, Lanes> load_pack(const uint8_t* from) {
  if constexpr (Lanes == 1) {
    return *from;
  } else {
    const auto wide =
        __builtin_convertvector((load_bits<Lanes, uint8_t>(from)), Pack<int32_t, Lanes>);
    return __builtin_convertvector(wide, Pack<float, Lanes>);
  }
}

// ---- stores, which round to half storage ----------------------------------------------------------

template <int Lanes>
MASK2FORMER_INLINE void store_pack(float* to, Pack<float, Lanes> pack) {
  std::memcpy(to, &pack, sizeof pack);
}

template <int Lanes>
MASK2FORMER_INLINE void store_pack(double* to, Pack<double, Lanes> pack) {
  std::memcpy(to, &pack, sizeof pack);
}

template <int Lanes>
MASK2FORMER_INLINE void store_pack(BFloat16* to, Pack<float, Lanes> pack) {
  if constexpr (Lanes == 1) {
    *to = static_cast<BFloat16>(pack);
  } else {
    using Bits = Pack<uint32_t, Lanes>;
    const Bits bits = reinterpret_cast<Bits>(pack);
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const Bits is_nan = reinterpret_cast<Bits>(pack != pack);
    const auto half =
        __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0u), Pack<uint16_t, Lanes>);
    std::memcpy(to, &half, sizeof half);
  }
}

template <int Lanes>
MASK2FORMER_INLINE void store_pack(Half* to, Pack<float, Lanes> pack) {
#if MASK2FORMER_F16C
  if constexpr (Lanes == 4) {
    const auto half = _mm_cvtps_ph(pack, _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &half, 8);
    return;
  } else if constexpr (Lanes == 8) {
    const auto half = _mm256_cvtps_ph(pack, _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &half, sizeof half);
    return;
  }
#endif
#if MASK2FORMER_PACK_BYTES == 64
  if constexpr (Lanes == 16) {
    const auto half = _mm512_maskz_cvtps_ph(0xffff, pack, _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &half, sizeof half);
    return;
  }
#endif
#if defined(__aarch64__)
  if constexpr (Lanes % 4 == 0) {
    for (int lane = 0; lane < Lanes; lane += 4) {
      const auto half = vcvt_f16_f32(vld1q_f32(reinterpret_cast<const float*>(&pack) + lane));
      std::memcpy(to + lane, &half, sizeof half);
    }
    return;
  }
#endif
  if constexpr (Lanes == 1) {
    *to = static_cast<Half>(pack);
  } else {
    for (int lane = 0; lane < Lanes; ++lane) to[lane] = static_cast<Half>(pack[lane]);
  }
}

// ---- arithmetic -----------------------------------------------------------------------------------

// The largest integers that are not above the numbers, which must fit into 32 bits.
template <int Lanes>
MASK2FORMER_INLINE Pack<double, Lanes> floor_pack(Pack<double, Lanes> pack) {
  using Doubles = Pack<double, Lanes>;
  const auto truncated =
      __builtin_convertvector(__builtin_convertvector(pack, Pack<int32_t, Lanes>), Doubles);
  return truncated - (truncated > pack ? Doubles{} + 1.0 : Doubles{});
}

// Integers from doubles that hold integers below 2^51: the sum has the integer in its low bits.
template <int Lanes>
MASK2FORMER_INLINE Pack<int64_t, Lanes> to_integers(Pack<double, Lanes> pack) {
  using Integers = Pack<int64_t, Lanes>;
  const Pack<double, Lanes> magic = Pack<double, Lanes>{} + 0x1.8p52;
  return reinterpret_cast<Integers>(pack + magic) - reinterpret_cast<Integers>(magic);
}

template <int Lanes>
MASK2FORMER_INLINE void narrow_store(float* to, Pack<double, Lanes> pack) {
  store_pack<Lanes>(to, __builtin_convertvector(pack, Pack<float, Lanes>));
}
template <int Lanes>
MASK2FORMER_INLINE void narrow_store(double* to, Pack<double, Lanes> pack) {
  store_pack<Lanes>(to, pack);
}

template <int Lanes>
MASK2FORMER_INLINE Pack<double, Lanes> widen_load(const float* from) {
  return __builtin_convertvector(load_pack<Lanes>(from), Pack<double, Lanes>);
}
template <int Lanes>
MASK2FORMER_INLINE Pack<double, Lanes> widen_load(const double* from) {
  return load_pack<Lanes>(from);
}

template <int... Lane, typename Vector>
MASK2FORMER_INLINE Vector shuffle(Vector left, Vector right) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(left, right, Lane...);
#else
  using Index = std::conditional_t<sizeof(left[0]) == 8, int64_t, int32_t>;
  return __builtin_shuffle(left, right, Pack<Index, sizeof...(Lane)>{Lane...});
#endif
}

// Pairs (x, y) to the doubles of each.
MASK2FORMER_INLINE void split_pairs(const float* pairs, int64_t count, double* x, double* y) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const auto first = load_pack<4>(pairs + 2 * i), second = load_pack<4>(pairs + 2 * i + 4);
    store_pack<4>(x + i,
                  __builtin_convertvector((shuffle<0, 2, 4, 6>(first, second)), Pack<double, 4>));
    store_pack<4>(y + i,
                  __builtin_convertvector((shuffle<1, 3, 5, 7>(first, second)), Pack<double, 4>));
  }
  for (; i < count; ++i) {
    x[i] = pairs[2 * i];
    y[i] = pairs[2 * i + 1];
  }
}
MASK2FORMER_INLINE void split_pairs(const double* pairs, int64_t count, double* x, double* y) {
  for (int64_t i = 0; i < count; ++i) {
    x[i] = pairs[2 * i];
    y[i] = pairs[2 * i + 1];
  }
}

// The sums of the lanes of four packs.
template <typename Real, int Lanes>
MASK2FORMER_INLINE Pack<Real, 4> sum_lanes(const Pack<Real, Lanes>* packs) {
  if constexpr (Lanes == 1) {
    return Pack<Real, 4>{packs[0], packs[1], packs[2], packs[3]};
  } else if constexpr (Lanes == 2) {
    return Pack<Real, 4>{packs[0][0] + packs[0][1], packs[1][0] + packs[1][1],
                         packs[2][0] + packs[2][1], packs[3][0] + packs[3][1]};
  } else {
    Pack<Real, 4> quarter[4] = {};
    for (int i = 0; i < 4; ++i) {
      for (int part = 0; part < Lanes / 4; ++part) {
        quarter[i] += load_bits<4, Real>(reinterpret_cast<const Real*>(&packs[i]) + 4 * part);
      }
    }
    const auto left =
        shuffle<0, 4, 1, 5>(quarter[0], quarter[1]) + shuffle<2, 6, 3, 7>(quarter[0], quarter[1]);
    const auto right =
        shuffle<0, 4, 1, 5>(quarter[2], quarter[3]) + shuffle<2, 6, 3, 7>(quarter[2], quarter[3]);
    return shuffle<0, 1, 4, 5>(left, right) + shuffle<2, 3, 6, 7>(left, right);
  }
}

// ---- channels --------------------------------------------------------------------------------------

// Calls run(lanes) with the longest pack that fits into `channels` numbers.
template <typename Real, typename Run>
MASK2FORMER_INLINE void with_lanes(int64_t channels, Run run) {
  constexpr int native = kNativeLanes<Real>;
  if (channels >= native) return run(std::integral_constant<int, native>{});
  if constexpr (native > 8) {
    if (channels >= 8) return run(std::integral_constant<int, 8>{});
  }
  if constexpr (native > 4) {
    if (channels >= 4) return run(std::integral_constant<int, 4>{});
  }
  run(std::integral_constant<int, 1>{});
}

// Calls run(packs, channel, overlap) for chunks of at most four packs that cover `channels` >=
// Lanes numbers. The last pack may have to reach back: its first `overlap` lanes have had their
// turn.
template <int Lanes, typename Run>
MASK2FORMER_INLINE void for_packs(int64_t channels, Run run) {
  int64_t channel = 0;
  for (; channel + 4 * Lanes <= channels; channel += 4 * Lanes) {
    run(std::integral_constant<int, 4>{}, channel, 0);
  }
  if (channel + 2 * Lanes <= channels) {
    run(std::integral_constant<int, 2>{}, channel, 0);
    channel += 2 * Lanes;
  }
  if (channel + Lanes <= channels) {
    run(std::integral_constant<int, 1>{}, channel, 0);
    channel += Lanes;
  }
  const int overlap = static_cast<int>(channel + Lanes - channels);
  if (overlap < Lanes) run(std::integral_constant<int, 1>{}, channels - Lanes, overlap);
}

// Packs of a row; lanes that have had their turn are 0.
template <int Lanes, int Packs, typename Storage, typename Real>
MASK2FORMER_INLINE void load_rest(const Storage* from, int overlap, Pack<Real, Lanes>* packs) {
  for (int pack = 0; pack < Packs; ++pack) packs[pack] = load_pack<Lanes>(from + pack * Lanes);
  if constexpr (Packs == 1 && Lanes > 1) {
    for (int lane = 0; lane < overlap; ++lane) packs[0][lane] = 0;
  }
}

// ---- numbers of any dtype -------------------------------------------------------------------------

// Copies `count` numbers; to or from half precision they are widened or rounded.
template <typename From, typename To>
MASK2FORMER_INLINE void convert(const From* from, int64_t count, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, count * sizeof(To));
  } else {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) store_pack<8>(to + i, load_pack<8>(from + i));
    for (; i < count; ++i) store_pack<1>(to + i, load_pack<1>(from + i));
  }
}

MASK2FORMER_INLINE void prefetch(const Numbers& numbers, int64_t index) {
  const int size = numbers.dtype == ScalarType::Double  ? 8
                   : numbers.dtype == ScalarType::Float ? 4
                                                        : 2;
  __builtin_prefetch(static_cast<const char*>(numbers.data) + index * size);
}

// `count` numbers from `index` on: in place, or from half precision into `scratch`.
MASK2FORMER_INLINE const double* widened(const Numbers& numbers, int64_t index, int64_t, double*) {
  return static_cast<const double*>(numbers.data) + index;
}
MASK2FORMER_INLINE const float* widened(const Numbers& numbers, int64_t index, int64_t count,
                                        float* scratch) {
  switch (numbers.dtype) {
    case ScalarType::Half:
      convert(static_cast<const Half*>(numbers.data) + index, count, scratch);
      return scratch;
    case ScalarType::BFloat16:
      convert(static_cast<const BFloat16*>(numbers.data) + index, count, scratch);
      return scratch;
    default: return static_cast<const float*>(numbers.data) + index;
  }
}

MASK2FORMER_INLINE void write(const Numbers& numbers, int64_t index, int64_t count,
                              const double* from) {
  std::memcpy(static_cast<double*>(numbers.data) + index, from, count * sizeof(double));
}
MASK2FORMER_INLINE void write(const Numbers& numbers, int64_t index, int64_t count,
                              const float* from) {
  switch (numbers.dtype) {
    case ScalarType::Half: return convert(from, count, static_cast<Half*>(numbers.data) + index);
    case ScalarType::BFloat16:
      return convert(from, count, static_cast<BFloat16*>(numbers.data) + index);
    default: std::memcpy(static_cast<float*>(numbers.data) + index, from, count * sizeof(float));
  }
}

}  // namespace mask2former::MASK2FORMER_SET
#include "isa/end.inl"
