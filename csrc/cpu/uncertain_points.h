// What uncertain_points.cpp hands to the kernels of an instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "../bilinear.h"
#include "../dtypes.h"
#include "isa/instruction_set.h"
#include "point_sample.h"

namespace mask2former {

// Points that are random numbers are drawn in blocks of this many.
constexpr int64_t kDrawnPoints = 16;

inline int64_t whole_draws(int64_t points) {
  return (points + kDrawnPoints - 1) / kDrawnPoints * kDrawnPoints;
}

// For each mask `candidates` are drawn, of which the `chosen` least certain are kept, and so many
// others as make it `points`.
struct UncertainProblem {
  int64_t masks, candidates, chosen, points;
  uint64_t seed;
  Axis columns, rows;

  int64_t area() const { return int64_t{columns.size} * rows.size; }
};

// What a thread needs to choose the points of a mask.
template <typename Storage>
class Candidates {
 public:
  using Real = RealOf<Storage>;

  std::unique_ptr<Real[]> points;
  std::unique_ptr<Storage[]> logits;
  std::vector<int64_t> undecided;
  PointBlock<Real> block;

  explicit Candidates(const UncertainProblem& problem)
      : points(std::make_unique_for_overwrite<Real[]>(
            2 * whole_draws(std::max(problem.candidates, problem.points - problem.chosen)))),
        logits(std::make_unique_for_overwrite<Storage[]>(problem.candidates)),
        block(std::min<int64_t>(1024, problem.candidates)) {}
};

// The kernels of one instruction set.
template <typename Storage>
struct UncertainKernels {
  // Chooses the points of a mask, (points, 2), from its logits.
  void (*choose)(const UncertainProblem&, const Storage* logits, int64_t mask, Candidates<Storage>&,
                 RealOf<Storage>* points);
};

namespace avx512 {
template <typename Storage>
UncertainKernels<Storage> uncertain_kernels(Set);
}
namespace avx2 {
template <typename Storage>
UncertainKernels<Storage> uncertain_kernels(Set);
}
namespace baseline {
template <typename Storage>
UncertainKernels<Storage> uncertain_kernels(Set);
}

}  // namespace mask2former
