// The arguments of multi-scale deformable attention, checked for all devices.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "checks.h"
#include "ms_deform_attn.h"
#include "tensors.h"

namespace mask2former {

using Counts = std::optional<std::vector<int64_t>>;

inline AttentionSizes check_attention(const Tensor& value, const Tensor& spatial_shapes,
                                      const Tensor& level_start_index,
                                      const Tensor& sampling_locations,
                                      const Tensor& attention_weights, const Counts& num_points) {
  constexpr const char* op = "ms_deform_attn";
  check_dtype(op, "value", value,
              {ScalarType::Double, ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  check_shape(op, "value", value, "(N, S, M, D)", {kAny, kAny, kAny, kAny});
  check_dtype(op, "spatial_shapes", spatial_shapes, {ScalarType::Long});
  check_shape(op, "spatial_shapes", spatial_shapes, "(L, 2)", {kAny, 2});
  const int64_t count = spatial_shapes.size(0);
  check_dtype(op, "level_start_index", level_start_index, {ScalarType::Long});
  check_shape(op, "level_start_index", level_start_index, "(L)", {count});
  const int64_t images = value.size(0), heads = value.size(2);
  std::vector<int64_t> expected{images, kAny, heads};
  std::string layout = "(N, Q, M, ";
  if (num_points) {
    int64_t samples = 0;
    bool valid = static_cast<int64_t>(num_points->size()) == count;
    for (const int64_t points : *num_points) {
      valid = valid && points >= 0 && points <= std::numeric_limits<int64_t>::max() - samples;
      if (valid) samples += points;
    }
    if (!valid) {
      fail(op, ": num_points must be ", count,
           " counts, one for each row of spatial_shapes, but is ", list_text(*num_points));
    }
    expected.push_back(samples);
    layout += "sum(num_points)";
  } else {
    expected.insert(expected.end(), {count, kAny});
    layout += "L, P";
  }
  expected.push_back(2);
  const ScalarType either =
      value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check_dtype(op, "sampling_locations", sampling_locations, {value.scalar_type(), either});
  check_shape(op, "sampling_locations", sampling_locations, (layout + ", 2)").c_str(), expected);
  check_dtype(op, "attention_weights", attention_weights, {value.scalar_type(), either});
  const auto sizes = sampling_locations.sizes();
  expected.assign(sizes.begin(), sizes.end() - 1);
  check_shape(op, "attention_weights", attention_weights, (layout + ")").c_str(), expected);
  for (const auto& [name, tensor] : {std::pair{"sampling_locations", &sampling_locations},
                                     std::pair{"attention_weights", &attention_weights}}) {
    check_device(op, name, *tensor, "value", value);
  }
  for (const auto& [name, tensor] : {std::pair{"spatial_shapes", &spatial_shapes},
                                     std::pair{"level_start_index", &level_start_index}}) {
    if (!tensor->is_cpu()) check_device(op, name, *tensor, "value", value);
  }

  auto points = num_points.value_or(std::vector<int64_t>(count, sizes[sizes.size() - 2]));
  const int64_t samples = std::accumulate(points.begin(), points.end(), int64_t{0});
  return {images,  value.size(1),    heads, value.size(3), sampling_locations.size(1),
          samples, std::move(points)};
}

inline void check_attention_backward(const AttentionSizes& sizes, const Tensor& grad_output,
                                     const Tensor& value, const std::vector<bool>& output_mask) {
  constexpr const char* op = "ms_deform_attn_backward";
  check_output_mask(op, output_mask, 3);
  check_dtype(op, "grad_output", grad_output, {value.scalar_type()});
  check_shape(op, "grad_output", grad_output, "(N, Q, M * D)",
              {sizes.images, sizes.queries, sizes.heads * sizes.channels});
  check_device(op, "grad_output", grad_output, "value", value);
}

// The levels, from tensors that the host can read.
inline std::vector<Level> read_levels(const AttentionSizes& sizes, const Tensor& spatial_shapes,
                                      const Tensor& level_start_index) {
  constexpr const char* op = "ms_deform_attn";
  const Tensor shape_numbers = torch::stable::contiguous(spatial_shapes);
  const Tensor start_numbers = torch::stable::contiguous(level_start_index);
  const auto* shapes = shape_numbers.const_data_ptr<int64_t>();
  const auto* starts = start_numbers.const_data_ptr<int64_t>();
  const int64_t size = sizes.positions, count = std::ssize(sizes.points);
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();
  std::vector<Level> levels;
  int64_t covered = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t height = shapes[2 * i], width = shapes[2 * i + 1], start = starts[i];
    // Divides where a product might overflow.
    const bool fits = height >= 0 && height <= limit && width >= 0 && width <= limit &&
                      start >= 0 && start <= size &&
                      (height == 0 || width <= (size - start) / height);
    if (!fits) {
      fail(op, ": spatial_shapes and level_start_index must give levels inside value's S = ", size,
           ", but one is ", height, " x ", width, " and starts at ", start);
    }
    covered += height * width;
    levels.push_back(
        {start, sizes.points[i], static_cast<int32_t>(height), static_cast<int32_t>(width)});
  }
  if (covered != size) {
    fail(op, ": spatial_shapes must cover value's S = ", size, ", but its levels have ", covered,
         " pixels");
  }
  // Pixels of overlapping levels would have two writers of their gradients.
  std::vector<Level> sorted = levels;
  std::sort(sorted.begin(), sorted.end(),
            [](const Level& a, const Level& b) { return a.start < b.start; });
  int64_t end = 0;
  for (const Level& level : sorted) {
    const int64_t pixels = int64_t{level.height} * level.width;
    if (pixels && level.start < end) {
      fail(op, ": level_start_index must not let levels overlap, but is ",
           list_text(std::vector<int64_t>(starts, starts + count)));
    }
    end = std::max(end, level.start + pixels);
  }
  return levels;
}

}  // namespace mask2former
