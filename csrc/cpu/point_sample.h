// What point_sample.cpp hands to the kernels of an instruction set.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../bilinear.h"
#include "../dtypes.h"
#include "isa/instruction_set.h"
#include "ms_deform_attn.h"
#include "numbers.h"

namespace mask2former {

// Points that the whole batch shares make one image of N * C planes.
struct PointProblem {
  int64_t images, planes, points;  // planes and points of each image
  Axis columns, rows;

  int64_t area() const { return int64_t{columns.size} * rows.size; }
};

// The same for maps whose channels lie side by side, pixel after pixel.
struct PixelProblem {
  int64_t images, channels, points;
  bool shared_points, align_corners;
  int64_t image_byte_stride, pixel_byte_stride;
  int32_t width, height;
};

// The arguments in memory, contiguous but for the input of a PixelProblem.
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
// four pixels and are worked on in packs. The others, and the last ones that fill no pack, are
// unpacked.
template <typename Real>
class PointBlock {
 public:
  struct Unpacked {
    int64_t index;  // in the block
    Cell<Real> cell;
    Real grad_x, grad_y;
  };

  const int64_t capacity;
  int64_t count, packed, unpacked_count;  // all points, in packs, and unpacked
  int64_t* position;                      // of the pixel left and above; 0 for an unpacked point
  Real *to_right, *to_bottom, *grad_x, *grad_y;
  Real* scratch;  // two numbers for each point
  Unpacked* unpacked;

  explicit PointBlock(int64_t points)
      : capacity(points),
        positions_(std::make_unique_for_overwrite<int64_t[]>(points)),
        reals_(std::make_unique_for_overwrite<Real[]>(6 * points)),
        unpacked_(std::make_unique_for_overwrite<Unpacked[]>(points)) {
    position = positions_.get();
    unpacked = unpacked_.get();
    Real* reals = reals_.get();
    for (Real** array : {&to_right, &to_bottom, &grad_x, &grad_y, &scratch}) {
      *array = std::exchange(reals, reals + points);
    }
  }

 private:
  std::unique_ptr<int64_t[]> positions_;
  std::unique_ptr<Real[]> reals_;
  std::unique_ptr<Unpacked[]> unpacked_;
};

// Consecutive points of a PixelProblem, and a row of channels for each of them: a sample is a sum
// of four pixels, as one of deformable attention is.
template <typename Storage>
class PixelBlock {
 public:
  using Real = RealOf<Storage>;
  // From one row to the next. Rows a power of 2 apart would share few lines of a cache.
  const int64_t stride;
  Samples<Real> samples;
  Real* rows;
  const Storage* zeros;  // the pixel that is not there

  PixelBlock(int64_t points, int64_t channels)
      : stride(channels + 64 / static_cast<int64_t>(sizeof(Real))),
        samples(points),
        rows_(points * stride),
        zeros_(channels) {
    rows = rows_.data();
    zeros = zeros_.data();
  }

 private:
  std::vector<Real> rows_;
  std::vector<Storage> zeros_;
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
  // Samples an image at `count` points from `first` on.
  void (*forward_pixels)(const PixelProblem&, const PointData<Storage>&, PixelBlock<Storage>&,
                         int64_t image, int64_t first, int64_t count);
  // Gradients of `count` points from `first` on, of one image or shared by all.
  void (*backward_pixel_points)(const PixelProblem&, const PointData<Storage>&,
                                PixelBlock<Storage>&, int64_t image, int64_t first, int64_t count);
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
