// Where packs of points lie: the twin of locate() in ../bilinear.h. In double, because a float
// column of 100.3 is only good to 4e-6 of a pixel. Compiled once for each instruction set: see
// isa/kernels.inl.
#pragma once

#include <cstdint>

#include "../bilinear.h"
#include "simd.inl"

#include "isa/begin.inl"
namespace mask2former::MASK2FORMER_SET {

constexpr int kCellLanes = kNativeLanes<double>;
using Doubles = Pack<double, kCellLanes>;
using Masks = Pack<int64_t, kCellLanes>;  // -1 for true, 0 for false

struct Cells {
  Masks near;
  Doubles left, top, to_right, to_bottom;
};

// x and y in pixels, whose centres are integers.
MASK2FORMER_INLINE Cells locate(Doubles x, Doubles y, Doubles width, Doubles height) {
  // NaN fails every comparison. Nothing out of range is ever converted to an integer.
  const Masks near = (x > -1.0) & (x < width) & (y > -1.0) & (y < height);
  x = near ? x : Doubles{};
  y = near ? y : Doubles{};
  const Doubles left = floor_pack<kCellLanes>(x), top = floor_pack<kCellLanes>(y);
  return {near, left, top, x - left, y - top};
}

}  // namespace mask2former::MASK2FORMER_SET
#include "isa/end.inl"
