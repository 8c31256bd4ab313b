// The loops that choose uncertain points, compiled once for each instruction set:
// see isa/kernels.inl.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "isa/instruction_set.h"
#include "numbers.h"
#include "point_sample.inl"
#include "simd.inl"
#include "uncertain_points.h"

#include "isa/begin.inl"
namespace mask2former::MASK2FORMER_SET {

// ---- random points --------------------------------------------------------------------------------

using Words = Pack<uint64_t, 8>;  // of 32 bits each, whatever the instruction set

// Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3") of eight
// counters side by side: four words of each.
MASK2FORMER_INLINE void philox(Words (&words)[4], uint64_t seed) {
  constexpr uint64_t low = 0xffffffff;
  uint64_t key0 = seed & low, key1 = seed >> 32;
  for (int round = 0; round < 10; ++round) {
    const Words product0 = words[0] * 0xD2511F53u, product1 = words[2] * 0xCD9E8D57u;
    words[0] = (product1 >> 32) ^ words[1] ^ key0;
    words[1] = product1 & low;
    words[2] = (product0 >> 32) ^ words[3] ^ key1;
    words[3] = product0 & low;
    key0 = (key0 + 0x9E3779B9u) & low;
    key1 = (key1 + 0xBB67AE85u) & low;
  }
}

// 32 numbers in [0, 1), of 24 bits.
MASK2FORMER_INLINE void store_uniform(const Words (&words)[4], float* numbers) {
  for (int k = 0; k < 4; ++k) {
    const auto bits = __builtin_convertvector(words[k] >> 8, Pack<int32_t, 8>);
    store_pack<8>(numbers + 8 * k, __builtin_convertvector(bits, Pack<float, 8>) * 0x1p-24f);
  }
}

// 16 numbers in [0, 1), of 53 bits.
MASK2FORMER_INLINE void store_uniform(const Words (&words)[4], double* numbers) {
  for (int k = 0; k < 2; ++k) {
    const auto high = __builtin_convertvector(words[2 * k] >> 5, Pack<int64_t, 8>);
    const auto low = __builtin_convertvector(words[2 * k + 1] >> 6, Pack<int64_t, 8>);
    store_pack<8>(numbers + 8 * k, (__builtin_convertvector(high, Pack<double, 8>) * 0x1p26 +
                                    __builtin_convertvector(low, Pack<double, 8>)) *
                                       0x1p-53);
  }
}

// Uniform points of a mask, in whole draws, which are counted from `first` on.
template <typename Real>
MASK2FORMER_INLINE void draw_points(const UncertainProblem& problem, int64_t mask, int64_t first,
                                    int64_t points, Real* to) {
  constexpr int64_t numbers = std::is_same_v<Real, float> ? 32 : 16;
  const Words lanes{0, 1, 2, 3, 4, 5, 6, 7};
  for (int64_t i = 0; i < 2 * points; i += numbers) {
    const uint64_t counter = 8 * (first + i / numbers);
    const Words index = lanes + counter;
    const Words mask_number = Words{} + uint64_t(mask);
    Words words[4] = {index & 0xffffffff, index >> 32, mask_number & 0xffffffff, mask_number >> 32};
    philox(words, problem.seed);
    store_uniform(words, to + i);
  }
}

// ---- the least certain ----------------------------------------------------------------------------

// Bits of a number's absolute value, moved on so that NaN comes before 0 and not after infinity: as
// integers they have the order of the numbers, and NaN is the least certain.
MASK2FORMER_INLINE uint32_t magnitude(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return (bits + 0x007fffffu) & 0x7fffffffu;
}

MASK2FORMER_INLINE uint64_t magnitude(double number) {
  uint64_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return (bits + 0x000fffffffffffffu) & 0x7fffffffffffffffu;
}

// The last one among the `chosen` of the smallest magnitude; of equal ones the first are taken.
template <typename Storage>
MASK2FORMER_INLINE int64_t last_chosen(const UncertainProblem& problem,
                                       Candidates<Storage>& scratch) {
  using Real = RealOf<Storage>;
  constexpr int kBins = 2048, kShift = 8 * sizeof(Real) - 12;
  const auto key = [&](int64_t i) { return magnitude(static_cast<Real>(scratch.logits[i])); };
  int32_t bins[kBins] = {};
  for (int64_t i = 0; i < problem.candidates; ++i) ++bins[key(i) >> kShift];
  int64_t wanted = problem.chosen - 1;  // the rank of the last one within its bin
  int bin = 0;
  while (wanted >= bins[bin]) wanted -= bins[bin++];
  auto& undecided = scratch.undecided;
  undecided.clear();
  for (int64_t i = 0; i < problem.candidates; ++i) {
    if (int64_t(key(i) >> kShift) == bin) undecided.push_back(i);
  }
  std::nth_element(undecided.begin(), undecided.begin() + wanted, undecided.end(),
                   [&](int64_t a, int64_t b) {
                     const auto key_a = key(a), key_b = key(b);
                     return key_a < key_b || (key_a == key_b && a < b);
                   });
  return undecided[wanted];
}

template <typename Storage>
void choose(const UncertainProblem& problem, const Storage* logits, int64_t mask,
            Candidates<Storage>& scratch, RealOf<Storage>* points) {
  using Real = RealOf<Storage>;
  const int64_t draws = whole_draws(problem.candidates);
  Real* drawn = scratch.points.get();
  if (problem.chosen > 0) {
    draw_points(problem, mask, 0, draws, drawn);
    const PointProblem sampling{1, 1, problem.candidates, problem.columns, problem.rows};
    PointData<Storage> data{};
    data.input = logits;
    data.points = {drawn, kDtypeOf<Real>};
    data.output = scratch.logits.get();
    if (problem.area() == 0) std::fill_n(data.output, problem.candidates, Storage(0));
    for (int64_t first = 0; problem.area() > 0 && first < problem.candidates;
         first += scratch.block.capacity) {
      const int64_t count = std::min(scratch.block.capacity, problem.candidates - first);
      forward(sampling, data, scratch.block, 0, 0, 1, first, count);
    }
    const int64_t last = last_chosen(problem, scratch);
    const auto limit = magnitude(static_cast<Real>(scratch.logits[last]));
    Real* to = points;
    const Real* const end = points + 2 * problem.chosen;
    for (int64_t i = 0; to < end; ++i) {
      const auto own = magnitude(static_cast<Real>(scratch.logits[i]));
      const bool kept = (own < limit) | ((own == limit) & (i <= last));
      std::memcpy(to, drawn + 2 * i,
                  2 * sizeof(Real));  // whether or not the next one overwrites it
      to += 2 * kept;
    }
  }
  const int64_t others = problem.points - problem.chosen;
  draw_points(problem, mask, draws / (std::is_same_v<Real, double> ? 8 : 16), whole_draws(others),
              drawn);
  std::memcpy(points + 2 * problem.chosen, drawn, 2 * others * sizeof(Real));
}

template <typename Storage>
UncertainKernels<Storage> uncertain_kernels(Set) {
  return {&choose<Storage>};
}

template UncertainKernels<double> uncertain_kernels(Set);
template UncertainKernels<float> uncertain_kernels(Set);
template UncertainKernels<Half> uncertain_kernels(Set);
template UncertainKernels<BFloat16> uncertain_kernels(Set);

}  // namespace mask2former::MASK2FORMER_SET
#include "isa/end.inl"
