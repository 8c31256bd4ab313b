// What point_sample.cpp hands to the kernels of an instruction set.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "../bilinear.h"
#include "../dtypes.h"
#include "isa/instruction_set.h"
#include "numbers.h"

namespace mask2former {

// Points that the whole batch shares make one image of N * C planes.
struct PointProblem {
  int64_t images, planes, points;  // planes and points of each image
  Axis columns, rows;

  int64_t area() const { return int64_t{columns.size} * rows.size; }
};

// The arguments in memory, contiguous.
template <typename Storage>
struct PointData {
  const Storage* input;
  Numbers points;
  OutputOf<Storage>* output;
  const OutputOf<Storage>* grad_output;
  Storage* grad_input;
  Numbers grad_points;
};

// Consecutive points, whose arithmetic is done once for all planes. Nearly all of them lie between
// four pixels and are worked on in packs; the others, and those that fill no pack, are listed
// apart.
template <typename Real>
class PointBlock {
 public:
  struct Apart {
    int64_t index;  // in the block
    Cell<Real> cell;
    Real grad_x, grad_y;
  };

  const int64_t capacity;
  int64_t count, packed, apart_count;  // all points, those in packs, those apart
  int64_t* position;                   // of the pixel left and above; 0 for a point that is apart
  Real *to_right, *to_bottom, *grad_x, *grad_y;
  Real* spare;  // two numbers for each point
  Apart* apart;

  explicit PointBlock(int64_t points)
      : capacity(points),
        positions_(std::make_unique_for_overwrite<int64_t[]>(points)),
        reals_(std::make_unique_for_overwrite<Real[]>(6 * points)),
        apart_(std::make_unique_for_overwrite<Apart[]>(points)) {
    position = positions_.get();
    apart = apart_.get();
    Real* reals = reals_.get();
    for (Real** array : {&to_right, &to_bottom, &grad_x, &grad_y, &spare}) {
      *array = std::exchange(reals, reals + points);
    }
  }

 private:
  std::unique_ptr<int64_t[]> positions_;
  std::unique_ptr<Real[]> reals_;
  std::unique_ptr<Apart[]> apart_;
};

// Consecutive rows of a plane.
struct Rows {
  int64_t begin, end;
};

// The kernels of one instruction set.
template <typename Storage>
struct PointKernels {
  using Block = PointBlock<RealOf<Storage>>;
  // Samples planes [begin, end) of an image at `count` points from `first` on.
  void (*forward)(const PointProblem&, const PointData<Storage>&, Block&, int64_t image,
                  int64_t begin, int64_t end, int64_t first, int64_t count);
  // Gradients of planes [begin, end), of float32 and float64.
  void (*backward_input)(const PointProblem&, const PointData<Storage>&, Block&, int64_t image,
                         int64_t begin, int64_t end);
  // The same of half planes, through a buffer for `buffer_rows` rows of them.
  void (*backward_half_input)(const PointProblem&, const PointData<Storage>&, Block&, int64_t image,
                              int64_t begin, int64_t end, float* buffer, int64_t buffer_rows);
  // Gradients of `count` points from `first` on.
  void (*backward_points)(const PointProblem&, const PointData<Storage>&, Block&, int64_t image,
                          int64_t first, int64_t count);
};

namespace avx512 {
template <typename Storage>
PointKernels<Storage> point_kernels(Set);
}
namespace avx2 {
template <typename Storage>
PointKernels<Storage> point_kernels(Set);
}
namespace baseline {
template <typename Storage>
PointKernels<Storage> point_kernels(Set);
}

}  // namespace mask2former
