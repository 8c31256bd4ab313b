// The sampling arithmetic, for host and device code, without torch types.
// mask2former_ops/reference/bilinear.py is its twin.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MASK2FORMER_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Not merely a hint: only code inlined into a kernel is compiled for each of its instruction sets.
#define MASK2FORMER_INLINE inline __attribute__((always_inline))
#else
#define MASK2FORMER_INLINE inline
#endif

namespace mask2former {

// The columns or the rows of a map. A location in [0, 1] lies at location * scale + shift, pixel
// centres being integers.
struct Axis {
  int32_t size;
  double scale, shift;
};

MASK2FORMER_INLINE Axis make_axis(int32_t size, bool align_corners) {
  return align_corners ? Axis{size, size - 1.0, 0.0} : Axis{size, 1.0 * size, -0.5};
}

// Between which two pixel centres of an axis a location lies.
template <typename Real>
struct AxisPosition {
  int32_t from;  // the pixel before it, from -1 on; the other one comes next
  Real beyond;   // the distance from there, in [0, 1]
  bool has_from,
      has_next;  // both false for a location that is not finite, or a pixel or more outside
};

// `size` pixels. Nothing out of range is ever converted to an integer; NaN fails every comparison.
MASK2FORMER_INLINE AxisPosition<double> locate_on_axis(double location, double scale, double shift,
                                                       double size) {
  double x = location * scale + shift;
  const bool near = (x > -1) & (x < size);
  x = near ? x : 0;
  const double from = std::floor(x);
  return {static_cast<int32_t>(from), x - from, near && from >= 0, near && from + 1 < size};
}

// A float column of 100.3 is only good to 4e-6 of a pixel. The distance from the pixel before it is
// rounded but once, so it is as good as in double, on maps of up to 2^23 columns.
MASK2FORMER_INLINE AxisPosition<float> locate_on_axis(float location, float scale, float shift,
                                                      float size) {
  // Of a NaN, fmax and fmin take the other number; then the distance is a NaN.
  const float x = std::fmin(std::fmax(std::fma(location, scale, shift), -1.0f), size);
  float from = std::floor(x);
  float beyond = std::fma(location, scale, shift - from);
  const bool too_far = beyond < 0;  // x was rounded up to a whole number, or raised to -1
  from -= too_far ? 1.0f : 0.0f;
  beyond += too_far ? 1.0f : 0.0f;
  const bool inside = from >= 0 || (from == -1 && beyond > 0);
  return {static_cast<int32_t>(from), beyond, from >= 0 && from < size, inside && from + 1 < size};
}

// The square between four pixel centres that a point lies in, and where in it.
template <typename Real>
struct Cell {
  bool near;
  int32_t left, top;
  Real to_right, to_bottom;  // distances from the left column and the top row, in [0, 1]
};

// In double, which is as fast on a CPU.
template <typename Real>
MASK2FORMER_INLINE Cell<Real> locate(const Axis& columns, const Axis& rows, const Real* location) {
  const auto x = locate_on_axis(double{location[0]}, columns.scale, columns.shift, columns.size);
  const auto y = locate_on_axis(double{location[1]}, rows.scale, rows.shift, rows.size);
  const bool near = (x.has_from || x.has_next) && (y.has_from || y.has_next);
  return {near, x.from, y.from, static_cast<Real>(x.beyond), static_cast<Real>(y.beyond)};
}

// Calls visit(position, weight, slope_x, slope_y) for the up to four pixels of the cell that exist:
// position is row * width + column, the slopes are derivatives of the bilinear weight by x and y.
template <typename Real, typename Visit>
MASK2FORMER_INLINE void visit_corners(const Cell<Real>& cell, int32_t width, int32_t height,
                                      Visit visit) {
  if (!cell.near) return;
  const Real to_left = 1 - cell.to_right, to_top = 1 - cell.to_bottom;
  const bool has_left = cell.left >= 0, has_right = cell.left + 1 < width;
  const int64_t position = int64_t{cell.top} * width + cell.left;
  if (cell.top >= 0) {
    if (has_left) visit(position, to_left * to_top, -to_top, -to_left);
    if (has_right) visit(position + 1, cell.to_right * to_top, to_top, -cell.to_right);
  }
  if (cell.top + 1 < height) {
    if (has_left) visit(position + width, to_left * cell.to_bottom, -cell.to_bottom, to_left);
    if (has_right) {
      visit(position + width + 1, cell.to_right * cell.to_bottom, cell.to_bottom, cell.to_right);
    }
  }
}

}  // namespace mask2former
