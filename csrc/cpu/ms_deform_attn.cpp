// Multi-scale deformable attention on the CPU: arguments, kernels, registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "../bilinear.h"
#include "../checks.h"
#include "simd.h"

namespace mask2former {
namespace {

struct Level {
  int64_t start;
  Axis columns, rows;
  int64_t points;
};

struct Problem {
  int64_t images, positions, heads, channels, queries;  // N, S, M, D, Q
  int64_t samples;                                      // K, the points of all levels
  std::vector<Level> levels;
};

// A row of `value` that one query and head adds up, and its weight.
template <typename Real>
struct Tap {
  int64_t offset;
  Real weight;
};

// ---- forward --------------------------------------------------------------------------------------

template <typename Real>
MASK2FORMER_INLINE int64_t collect_taps(const Problem& problem, const Real* locations,
                                        const Real* attention, int64_t row_stride,
                                        Tap<Real>* taps) {
  int64_t count = 0;
  for (const Level& level : problem.levels) {
    for (int64_t point = 0; point < level.points; ++point, locations += 2, ++attention) {
      visit_corners(locate(level.columns, level.rows, locations), level.columns.size,
                    level.rows.size,
                    [&](int64_t position, Real weight, Real, Real) __attribute__((always_inline)) {
                      taps[count++] = {(level.start + position) * row_stride, weight * *attention};
                    });
    }
  }
  return count;
}

// The weighted sum of `Packs` packs of every tapped row.
template <int Packs, typename Storage>
MASK2FORMER_INLINE void sum_rows(const Storage* rows, const Tap<RealOf<Storage>>* taps,
                                 int64_t count, Storage* output) {
  constexpr int64_t lanes = kLanes<Storage>;
  PackOf<Storage> sums[Packs] = {};
  for (int64_t i = 0; i < count; ++i) {
    const Storage* row = rows + taps[i].offset;
    for (int pack = 0; pack < Packs; ++pack) {
      sums[pack] += taps[i].weight * load_pack(row + pack * lanes);
    }
  }
  for (int pack = 0; pack < Packs; ++pack) store_pack(output + pack * lanes, sums[pack]);
}

template <typename Storage>
MASK2FORMER_INLINE void sum_channels(const Storage* rows, const Tap<RealOf<Storage>>* taps,
                                     int64_t count, int64_t channels, Storage* output) {
  constexpr int64_t lanes = kLanes<Storage>;
  int64_t channel = 0;
  for (; channel + 4 * lanes <= channels; channel += 4 * lanes) {
    sum_rows<4>(rows + channel, taps, count, output + channel);
  }
  for (; channel + lanes <= channels; channel += lanes) {
    sum_rows<1>(rows + channel, taps, count, output + channel);
  }
  if (channel < channels && channels >= lanes) {
    // The last pack overlaps the one before it and writes the same numbers again.
    sum_rows<1>(rows + channels - lanes, taps, count, output + channels - lanes);
    return;
  }
  for (; channel < channels; ++channel) {
    RealOf<Storage> sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      sum += taps[i].weight * static_cast<RealOf<Storage>>(rows[taps[i].offset + channel]);
    }
    output[channel] = static_cast<Storage>(sum);
  }
}

// Outputs of the (image, query) pairs [begin, end).
template <typename Storage>
MASK2FORMER_KERNEL void forward_queries(const Problem& problem, const Storage* value,
                                        const RealOf<Storage>* locations,
                                        const RealOf<Storage>* attention, Storage* output,
                                        Tap<RealOf<Storage>>* taps, int64_t begin, int64_t end) {
  const int64_t heads = problem.heads, channels = problem.channels;
  for (int64_t query = begin; query < end; ++query) {
    const Storage* image = value + query / problem.queries * problem.positions * heads * channels;
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t index = query * heads + head;
      const int64_t count =
          collect_taps(problem, locations + index * problem.samples * 2,
                       attention + index * problem.samples, heads * channels, taps);
      sum_channels(image + head * channels, taps, count, channels, output + index * channels);
    }
  }
}

template <typename Storage>
void forward(const Problem& problem, const Storage* value, const RealOf<Storage>* locations,
             const RealOf<Storage>* attention, Storage* output) {
  const int64_t work = problem.heads * (problem.samples + 1) * problem.channels;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, work));
  torch::stable::parallel_for(
      0, problem.images * problem.queries, grain, [&](int64_t begin, int64_t end) {
        std::vector<Tap<RealOf<Storage>>> taps(4 * problem.samples);
        forward_queries(problem, value, locations, attention, output, taps.data(), begin, end);
      });
}

// ---- backward -------------------------------------------------------------------------------------

// Where the gradients go; null for one that is not asked for.
template <typename Storage>
struct Gradients {
  Storage* value;
  RealOf<Storage>* locations;
  RealOf<Storage>* attention;
};

// Compact copies of one head's rows, padded with zeros to whole packs: neighbouring rows share
// cache lines, half storage is converted once, and the inner loops need no remainder.
template <typename Storage>
struct HeadBuffers {
  int64_t stride;
  std::vector<RealOf<Storage>> value, grad_value, grad_output;
};

template <typename Storage>
MASK2FORMER_INLINE RealOf<Storage> dot(const RealOf<Storage>* left, const RealOf<Storage>* right,
                                       int64_t count) {
  PackOf<Storage> sums = {};
  for (int64_t i = 0; i < count; i += kLanes<Storage>) {
    sums += load_pack(left + i) * load_pack(right + i);
  }
  RealOf<Storage> total = 0;
  for (int64_t lane = 0; lane < kLanes<Storage>; ++lane) total += sums[lane];
  return total;
}

template <typename Storage>
MASK2FORMER_INLINE void add_scaled(RealOf<Storage>* to, RealOf<Storage> scale,
                                   const RealOf<Storage>* from, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<Storage>) {
    store_pack(to + i, load_pack(to + i) + scale * load_pack(from + i));
  }
}

// All queries of one (image, head): the only writer of that head's gradients, so that the sums have
// one order whatever the number of threads.
template <typename Storage>
MASK2FORMER_KERNEL void backward_head(const Problem& problem, const Storage* grad_output,
                                      const RealOf<Storage>* locations,
                                      const RealOf<Storage>* attention,
                                      const Gradients<Storage>& gradients,
                                      HeadBuffers<Storage>& buffers, int64_t image, int64_t head) {
  using Real = RealOf<Storage>;
  const int64_t stride = buffers.stride;
  const bool want_samples = gradients.locations || gradients.attention;
  const Real* value = buffers.value.data();
  Real* grad_value = buffers.grad_value.data();
  Real* grad = buffers.grad_output.data();
  for (int64_t query = 0; query < problem.queries; ++query) {
    const int64_t index = (image * problem.queries + query) * problem.heads + head;
    const Storage* grad_row = grad_output + index * problem.channels;
    for (int64_t channel = 0; channel < problem.channels; ++channel) {
      grad[channel] = static_cast<Real>(grad_row[channel]);
    }
    int64_t sample = index * problem.samples;
    for (const Level& level : problem.levels) {
      for (int64_t point = 0; point < level.points; ++point, ++sample) {
        Real grad_x = 0, grad_y = 0, grad_attention = 0;
        visit_corners(locate(level.columns, level.rows, locations + 2 * sample), level.columns.size,
                      level.rows.size,
                      [&](int64_t position, Real weight, Real slope_x, Real slope_y)
                          __attribute__((always_inline)) {
                            const int64_t row = (level.start + position) * stride;
                            if (gradients.value) {
                              add_scaled<Storage>(grad_value + row, weight * attention[sample],
                                                  grad, stride);
                            }
                            if (want_samples) {
                              const Real product = dot<Storage>(value + row, grad, stride);
                              grad_attention += weight * product;
                              grad_x += slope_x * product * attention[sample];
                              grad_y += slope_y * product * attention[sample];
                            }
                          });
        if (gradients.locations) {
          gradients.locations[2 * sample] = grad_x * static_cast<Real>(level.columns.scale);
          gradients.locations[2 * sample + 1] = grad_y * static_cast<Real>(level.rows.scale);
        }
        if (gradients.attention) gradients.attention[sample] = grad_attention;
      }
    }
  }
}

template <typename Storage>
void backward(const Problem& problem, const Storage* grad_output, const Storage* value,
              const RealOf<Storage>* locations, const RealOf<Storage>* attention,
              const Gradients<Storage>& gradients) {
  using Real = RealOf<Storage>;
  const int64_t heads = problem.heads, channels = problem.channels;
  const int64_t stride = (channels + kLanes<Storage> - 1) / kLanes<Storage> * kLanes<Storage>;
  const int64_t row_stride = heads * channels;
  torch::stable::parallel_for(0, problem.images * heads, 1, [&](int64_t begin, int64_t end) {
    const bool want_samples = gradients.locations || gradients.attention;
    const auto size = static_cast<size_t>(problem.positions * stride);
    HeadBuffers<Storage> buffers{stride, std::vector<Real>(want_samples ? size : 0),
                                 std::vector<Real>(gradients.value ? size : 0),
                                 std::vector<Real>(stride)};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / heads, head = task % heads;
      const int64_t first = image * problem.positions * row_stride + head * channels;
      if (want_samples) {
        for (int64_t position = 0; position < problem.positions; ++position) {
          std::copy_n(value + first + position * row_stride, channels,
                      buffers.value.data() + position * stride);
        }
      }
      std::fill(buffers.grad_value.begin(), buffers.grad_value.end(), Real(0));
      backward_head(problem, grad_output, locations, attention, gradients, buffers, image, head);
      if (gradients.value) {
        for (int64_t position = 0; position < problem.positions; ++position) {
          std::copy_n(buffers.grad_value.data() + position * stride, channels,
                      gradients.value + first + position * row_stride);
        }
      }
    }
  });
}

// ---- arguments ------------------------------------------------------------------------------------

using Counts = std::optional<std::vector<int64_t>>;

// Levels from their numbers: H and W of each, where each starts, how many points each has.
std::vector<Level> make_levels(int64_t size, int64_t count, const int64_t* shapes,
                               const int64_t* starts, const std::vector<int64_t>& points) {
  constexpr const char* op = "ms_deform_attn";
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
    levels.push_back({start, make_axis(static_cast<int32_t>(width), false),
                      make_axis(static_cast<int32_t>(height), false), points[i]});
  }
  if (covered != size) {
    fail(op, ": spatial_shapes must cover value's S = ", size, ", but its levels have ", covered,
         " pixels");
  }
  return levels;
}

Problem check_arguments(const Tensor& value, const Tensor& spatial_shapes,
                        const Tensor& level_start_index, const Tensor& sampling_locations,
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
      valid = valid && points >= 0;
      samples += points;
    }
    if (!valid) {
      std::string given = shape_text(*num_points);
      given.front() = '[';
      given.back() = ']';
      fail(op, ": num_points must be ", count,
           " counts, one for each row of spatial_shapes, but is ", given);
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
                                     std::pair{"attention_weights", &attention_weights},
                                     std::pair{"spatial_shapes", &spatial_shapes},
                                     std::pair{"level_start_index", &level_start_index}}) {
    check_on_cpu(op, name, *tensor, "value");
  }

  const auto points =
      num_points.value_or(std::vector<int64_t>(count, num_points ? 0 : sizes[sizes.size() - 2]));
  const Tensor shapes = torch::stable::contiguous(spatial_shapes);
  const Tensor starts = torch::stable::contiguous(level_start_index);
  return {images,
          value.size(1),
          heads,
          value.size(3),
          sampling_locations.size(1),
          std::accumulate(points.begin(), points.end(), int64_t{0}),
          make_levels(value.size(1), count, shapes.const_data_ptr<int64_t>(),
                      starts.const_data_ptr<int64_t>(), points)};
}

// ---- operators ------------------------------------------------------------------------------------

template <typename Run>
void for_storage(ScalarType dtype, Run run) {
  switch (dtype) {
    case ScalarType::Double: return run(double{});
    case ScalarType::Float: return run(float{});
    case ScalarType::Half: return run(Half{});
    default: return run(BFloat16{});  // the checks let nothing else through
  }
}

Tensor contiguous_in(const Tensor& tensor, ScalarType dtype) {
  return torch::stable::contiguous(torch::stable::to(tensor, dtype));
}

ScalarType real_of(const Tensor& value) {
  return value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor ms_deform_attn(const Tensor& value, const Tensor& spatial_shapes,
                      const Tensor& level_start_index, const Tensor& sampling_locations,
                      const Tensor& attention_weights, const Counts& num_points) {
  const Problem problem = check_arguments(value, spatial_shapes, level_start_index,
                                          sampling_locations, attention_weights, num_points);
  Tensor output = torch::stable::new_empty(
      value, {problem.images, problem.queries, problem.heads * problem.channels});
  const Tensor rows = torch::stable::contiguous(value);
  const Tensor locations = contiguous_in(sampling_locations, real_of(value));
  const Tensor attention = contiguous_in(attention_weights, real_of(value));
  for_storage(value.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    using Real = RealOf<Storage>;
    forward<Storage>(problem, static_cast<const Storage*>(rows.const_data_ptr()),
                     locations.const_data_ptr<Real>(), attention.const_data_ptr<Real>(),
                     static_cast<Storage*>(output.mutable_data_ptr()));
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
    const Tensor& level_start_index, const Tensor& sampling_locations,
    const Tensor& attention_weights, const Counts& num_points,
    const std::vector<bool>& output_mask) {
  const Problem problem = check_arguments(value, spatial_shapes, level_start_index,
                                          sampling_locations, attention_weights, num_points);
  constexpr const char* op = "ms_deform_attn_backward";
  check_dtype(op, "grad_output", grad_output, {value.scalar_type()});
  check_shape(op, "grad_output", grad_output, "(N, Q, M * D)",
              {problem.images, problem.queries, problem.heads * problem.channels});
  check_on_cpu(op, "grad_output", grad_output, "value");

  const ScalarType real = real_of(value);
  const auto gradient = [](bool wanted, const Tensor& like, ScalarType dtype) {
    const int64_t nothing = 0;
    return torch::stable::new_empty(
        like, wanted ? like.sizes() : torch::headeronly::IntHeaderOnlyArrayRef(&nothing, 1), dtype);
  };
  Tensor grad_value = gradient(output_mask[0], value, value.scalar_type());
  Tensor grad_locations = gradient(output_mask[1], sampling_locations, real);
  Tensor grad_attention = gradient(output_mask[2], attention_weights, real);
  const Tensor rows = torch::stable::contiguous(value);
  const Tensor grads = torch::stable::contiguous(grad_output);
  const Tensor locations = contiguous_in(sampling_locations, real);
  const Tensor attention = contiguous_in(attention_weights, real);
  for_storage(value.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    using Real = RealOf<Storage>;
    const Gradients<Storage> gradients{
        output_mask[0] ? static_cast<Storage*>(grad_value.mutable_data_ptr()) : nullptr,
        output_mask[1] ? grad_locations.mutable_data_ptr<Real>() : nullptr,
        output_mask[2] ? grad_attention.mutable_data_ptr<Real>() : nullptr};
    backward<Storage>(problem, static_cast<const Storage*>(grads.const_data_ptr()),
                      static_cast<const Storage*>(rows.const_data_ptr()),
                      locations.const_data_ptr<Real>(), attention.const_data_ptr<Real>(),
                      gradients);
  });
  return {grad_value, torch::stable::to(grad_locations, sampling_locations.scalar_type()),
          torch::stable::to(grad_attention, attention_weights.scalar_type())};
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former_ops, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&mask2former::ms_deform_attn));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&mask2former::ms_deform_attn_backward));
}
