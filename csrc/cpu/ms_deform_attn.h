// What ms_deform_attn.cpp hands to the kernels of an instruction set.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "../dtypes.h"
#include "../ms_deform_attn.h"
#include "isa/instruction_set.h"
#include "numbers.h"

namespace mask2former {

struct AttentionProblem : AttentionSizes {
  std::vector<Level> levels;
};

// The arguments in memory, contiguous; null for a gradient that is not asked for.
template <typename Storage>
struct AttentionData {
  const Storage* value;
  Numbers locations, attention;
  Storage* output;
  const Storage* grad_output;
  Storage* grad_value;
  Numbers grad_locations, grad_attention;
};

// Samples side by side, and the rows of channels at the four corners of the cell that each lies in:
// left top, right top, left bottom and right bottom. Where a sample lies is computed in double,
// because a float column of 100.3 is only good to 4e-6 of a pixel.
template <typename Real>
class Samples {
 public:
  explicit Samples(int64_t capacity) {
    const int64_t size = (capacity / kPadding + 1) * kPadding;  // never none
    doubles_.resize(9 * size);
    reals_.resize(10 * size);
    offsets_.resize(4 * size);
    double* doubles = doubles_.data();
    for (double** array : {&width, &height, &first_byte, &row_byte_stride, &x, &y, &attention,
                           &to_right, &to_bottom}) {
      *array = std::exchange(doubles, doubles + size);
    }
    Real* reals = reals_.data();
    int64_t* offsets = offsets_.data();
    for (int corner = 0; corner < 4; ++corner) {
      weight[corner] = std::exchange(reals, reals + size);
      dot[corner] = std::exchange(reals, reals + size);
      offset[corner] = std::exchange(offsets, offsets + size);
    }
    scratch = reals;
  }

  // The map that a sample lies in: its size, the offset of its first pixel in bytes, and the bytes
  // from one of its rows to the next.
  double *width, *height, *first_byte, *row_byte_stride;
  double *x, *y, *attention;     // location in [0, 1]; attention becomes 0 far from the map
  double *to_right, *to_bottom;  // from the left top corner of the cell, in [0, 1)
  int64_t* offset[4];            // of a row of channels, in bytes
  Real* weight[4];               // bilinear weight times attention, 0 where there is no pixel
  Real* dot[4];                  // products of the corners' rows with grad_output's row
  Real* scratch;                 // two numbers for each sample

 private:
  static constexpr int64_t kPadding =
      8;  // arrays are read in whole packs of doubles, of at most eight
  std::vector<double> doubles_;
  std::vector<Real> reals_;
  std::vector<int64_t> offsets_;
};

// Consecutive positions of one level, for one head of one image.
struct Band {
  int64_t image, head, level, begin, end;
  int64_t first_point;  // of the level, among the samples of a query
};

// The kernels of one instruction set.
template <typename Storage>
struct AttentionKernels {
  using Real = RealOf<Storage>;
  void (*forward)(const AttentionProblem&, const AttentionData<Storage>&, const Storage* zeros,
                  Samples<Real>&, int64_t begin, int64_t end);
  void (*backward_samples)(const AttentionProblem&, const AttentionData<Storage>&,
                           const Storage* zeros, Samples<Real>&, int64_t begin, int64_t end);
  void (*backward_value)(const AttentionProblem&, const AttentionData<Storage>&, const Band&,
                         Samples<Real>&, int64_t capacity, Real* buffer);
};

namespace avx512 {
template <typename Storage>
AttentionKernels<Storage> attention_kernels(Set);
}
namespace avx2 {
template <typename Storage>
AttentionKernels<Storage> attention_kernels(Set);
}
namespace baseline {
template <typename Storage>
AttentionKernels<Storage> attention_kernels(Set);
}

}  // namespace mask2former
