// The arguments of bilinear point sampling, checked for all devices.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "bilinear.h"
#include "checks.h"
#include "tensors.h"

namespace mask2former {

struct PointSizes {
  int64_t images, channels;  // N, C
  int64_t sets, count;       // of points: N, or 1 for all images; P
  Axis columns, rows;
};

inline bool is_mask(const Tensor& input) {
  return input.scalar_type() == ScalarType::Byte || input.scalar_type() == ScalarType::Bool;
}

inline ScalarType output_dtype(const Tensor& input) {
  return is_mask(input) ? ScalarType::Float : input.scalar_type();
}

inline ScalarType real_of(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline PointSizes check_points(const Tensor& input, const Tensor& points, bool align_corners) {
  constexpr const char* op = "point_sample";
  check_dtype(op, "input", input,
              {ScalarType::Double, ScalarType::Float, ScalarType::Half, ScalarType::BFloat16,
               ScalarType::Byte, ScalarType::Bool});
  check_shape(op, "input", input, "(N, C, H, W)", {kAny, kAny, kAny, kAny});
  check_dtype(op, "points", points, {output_dtype(input), real_of(input)});
  if (points.dim() == 4) {
    check_shape(op, "points", points, "(N or 1, Hg, Wg, 2)", {kAny, kAny, kAny, 2});
  } else {
    check_shape(op, "points", points, "(N or 1, P, 2)", {kAny, kAny, 2});
  }
  const int64_t batch = input.size(0), sets = points.size(0);
  if (sets != 1 && sets != batch) {
    fail(op, ": points must have a first size of 1 or input's N = ", batch, ", but has ", sets);
  }
  check_device(op, "points", points, "input", input);
  const int64_t height = input.size(2), width = input.size(3);
  if (std::max(height, width) > std::numeric_limits<int32_t>::max()) {
    fail(op, ": input must have fewer than 2^31 rows and columns, but has ", height, " x ", width);
  }
  const int64_t count = points.size(1) * (points.dim() == 4 ? points.size(2) : 1);
  return {batch,
          input.size(1),
          sets,
          count,
          make_axis(static_cast<int32_t>(width), align_corners),
          make_axis(static_cast<int32_t>(height), align_corners)};
}

// (N, C, P) or (N, C, Hg, Wg)
inline std::vector<int64_t> output_shape(const Tensor& input, const Tensor& points) {
  std::vector<int64_t> shape{input.size(0), input.size(1), points.size(1)};
  if (points.dim() == 4) shape.push_back(points.size(2));
  return shape;
}

inline void check_points_backward(const Tensor& grad_output, const Tensor& input,
                                  const Tensor& points, const std::vector<bool>& output_mask) {
  constexpr const char* op = "point_sample_backward";
  check_output_mask(op, output_mask, 2);
  if (output_mask[0] && is_mask(input)) {
    fail(op, ": input has no gradient, because it is ", dtype_name(input.scalar_type()));
  }
  check_dtype(op, "grad_output", grad_output, {output_dtype(input)});
  check_shape(op, "grad_output", grad_output, points.dim() == 4 ? "(N, C, Hg, Wg)" : "(N, C, P)",
              output_shape(input, points));
  check_device(op, "grad_output", grad_output, "input", input);
}

}  // namespace mask2former
