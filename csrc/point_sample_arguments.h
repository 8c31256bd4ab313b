// What the arguments of bilinear point sampling say, for all devices.
// mask2former_ops/point_sample.py has checked them.
#pragma once

#include <vector>

#include "bilinear.h"
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

inline PointSizes point_sizes(const Tensor& input, const Tensor& points, bool align_corners) {
  return {input.size(0),
          input.size(1),
          points.size(0),
          points.size(1) * (points.dim() == 4 ? points.size(2) : 1),
          make_axis(static_cast<int32_t>(input.size(3)), align_corners),
          make_axis(static_cast<int32_t>(input.size(2)), align_corners)};
}

// (N, C, P) or (N, C, Hg, Wg)
inline std::vector<int64_t> output_shape(const Tensor& input, const Tensor& points) {
  std::vector<int64_t> shape{input.size(0), input.size(1), points.size(1)};
  if (points.dim() == 4) shape.push_back(points.size(2));
  return shape;
}

}  // namespace mask2former
