// What the arguments of multi-scale deformable attention say, for all devices.
// mask2former_ops/ms_deform_attn.py has checked them.
#pragma once

#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "ms_deform_attn.h"
#include "tensors.h"

namespace mask2former {

using Counts = std::optional<std::vector<int64_t>>;

inline AttentionSizes attention_sizes(const Tensor& value, const Tensor& spatial_shapes,
                                      const Tensor& sampling_locations, const Counts& num_points) {
  const int64_t points_per_level = sampling_locations.size(sampling_locations.dim() - 2);
  auto points = num_points.value_or(std::vector<int64_t>(spatial_shapes.size(0), points_per_level));
  const int64_t samples = std::accumulate(points.begin(), points.end(), int64_t{0});
  return {value.size(0), value.size(1),    value.size(2), value.size(3), sampling_locations.size(1),
          samples,       std::move(points)};
}

}  // namespace mask2former
