// Multi-scale deformable attention on the CPU: arguments, kernels, registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../checks.h"
#include "instruction_set.h"
#include "ms_deform_attn.h"
#include "tensors.h"

namespace mask2former {
namespace {

// Each thread sums up gradients of value in a band of at most this many bytes, unless a single row
// of channels is longer. Every band of a level locates all samples of it again.
constexpr int64_t kBandBytes = 4 << 20;
// Samples are located in blocks of about this many, where a query has fewer of its own.
constexpr int64_t kSamplesInBlock = 256;

template <typename Storage>
AttentionKernels<Storage> kernels() {
  switch (instruction_set()) {
#if MASK2FORMER_X86
    case InstructionSet::kAvx512: return avx512::attention_kernels<Storage>();
    case InstructionSet::kAvx2: return avx2::attention_kernels<Storage>();
#endif
    default: return baseline::attention_kernels<Storage>();
  }
}

// Calls run(samples, zeros, begin, end) in parallel for ranges of (image, query) pairs.
template <typename Storage, typename Run>
void for_queries(const AttentionProblem& problem, Run run) {
  const int64_t work = problem.heads * (problem.samples + 1) * problem.channels;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, work));
  torch::stable::parallel_for(0, problem.images * problem.queries, grain,
                              [&](int64_t begin, int64_t end) {
                                Samples<RealOf<Storage>> samples(problem.heads * problem.samples);
                                const std::vector<Storage> zeros(problem.heads * problem.channels);
                                run(samples, zeros.data(), begin, end);
                              });
}

template <typename Storage>
void forward(const AttentionProblem& problem, const AttentionData<Storage>& data) {
  const auto kernel = kernels<Storage>().forward;
  for_queries<Storage>(problem,
                       [&](auto& samples, const Storage* zeros, int64_t begin, int64_t end) {
                         kernel(problem, data, zeros, samples, begin, end);
                       });
}

template <typename Storage>
void backward_samples(const AttentionProblem& problem, const AttentionData<Storage>& data) {
  const auto kernel = kernels<Storage>().backward_samples;
  for_queries<Storage>(problem,
                       [&](auto& samples, const Storage* zeros, int64_t begin, int64_t end) {
                         kernel(problem, data, zeros, samples, begin, end);
                       });
}

// The bands of one head of one image: over all heads about one for each thread and not more,
// because with two a thread takes twice as long. A level of few pixels has as many samples as any
// other, so it is cut into as many bands.
std::vector<Band> make_bands(const AttentionProblem& problem, int64_t row_bytes) {
  const int64_t longest = std::max<int64_t>(1, kBandBytes / row_bytes);
  const int64_t tasks = problem.images * problem.heads * std::ssize(problem.levels);
  const int64_t cuts = std::max<int64_t>(1, torch::stable::get_num_threads() / tasks);
  std::vector<Band> bands;
  int64_t first_point = 0;
  for (int64_t i = 0; i < std::ssize(problem.levels); ++i) {
    const Level& level = problem.levels[i];
    const int64_t size = int64_t{level.height} * level.width;
    const int64_t step = std::min(longest, (size + cuts - 1) / cuts);
    for (int64_t begin = 0; begin < size; begin += step) {
      bands.push_back({0, 0, i, begin, std::min(size, begin + step), first_point});
    }
    first_point += level.points;
  }
  return bands;
}

template <typename Storage>
void backward_value(const AttentionProblem& problem, const AttentionData<Storage>& data) {
  using Real = RealOf<Storage>;
  const auto kernel = kernels<Storage>().backward_value;
  const std::vector<Band> bands = make_bands(problem, problem.channels * sizeof(Real));
  const int64_t count = std::ssize(bands);
  int64_t longest = 0, capacity = kSamplesInBlock;
  for (const Band& band : bands) longest = std::max(longest, band.end - band.begin);
  for (const Level& level : problem.levels) capacity = std::max(capacity, level.points);
  torch::stable::parallel_for(
      0, problem.images * problem.heads * count, 1, [&](int64_t begin, int64_t end) {
        Samples<Real> samples(capacity);
        const auto buffer = std::make_unique_for_overwrite<Real[]>(longest * problem.channels);
        for (int64_t task = begin; task < end; ++task) {
          Band band = bands[task % count];
          band.image = task / count / problem.heads;
          band.head = task / count % problem.heads;
          kernel(problem, data, band, samples, capacity, buffer.get());
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
    levels.push_back({start, points[i], static_cast<int32_t>(height), static_cast<int32_t>(width)});
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

AttentionProblem check_arguments(const Tensor& value, const Tensor& spatial_shapes,
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
                                     std::pair{"attention_weights", &attention_weights},
                                     std::pair{"spatial_shapes", &spatial_shapes},
                                     std::pair{"level_start_index", &level_start_index}}) {
    check_on_cpu(op, name, *tensor, "value");
  }

  const auto points = num_points.value_or(std::vector<int64_t>(count, sizes[sizes.size() - 2]));
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

template <typename Storage>
AttentionData<Storage> inputs(const Tensor& value, const Tensor& locations,
                              const Tensor& attention) {
  AttentionData<Storage> data{};
  data.value = static_cast<const Storage*>(value.const_data_ptr());
  data.locations = numbers(locations);
  data.attention = numbers(attention);
  return data;
}

Tensor ms_deform_attn(const Tensor& value, const Tensor& spatial_shapes,
                      const Tensor& level_start_index, const Tensor& sampling_locations,
                      const Tensor& attention_weights, const Counts& num_points) {
  const AttentionProblem problem = check_arguments(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points);
  Tensor output = torch::stable::new_empty(
      value, {problem.images, problem.queries, problem.heads * problem.channels});
  if (is_empty(output)) return output;
  if (is_empty(value)) return torch::stable::zero_(output);
  const Tensor rows = torch::stable::contiguous(value);
  const Tensor locations = torch::stable::contiguous(sampling_locations);
  const Tensor attention = torch::stable::contiguous(attention_weights);
  for_floating(value.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    AttentionData<Storage> data = inputs<Storage>(rows, locations, attention);
    data.output = static_cast<Storage*>(output.mutable_data_ptr());
    forward(problem, data);
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
    const Tensor& level_start_index, const Tensor& sampling_locations,
    const Tensor& attention_weights, const Counts& num_points,
    const std::vector<bool>& output_mask) {
  const AttentionProblem problem = check_arguments(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points);
  constexpr const char* op = "ms_deform_attn_backward";
  check_output_mask(op, output_mask, 3);
  check_dtype(op, "grad_output", grad_output, {value.scalar_type()});
  check_shape(op, "grad_output", grad_output, "(N, Q, M * D)",
              {problem.images, problem.queries, problem.heads * problem.channels});
  check_on_cpu(op, "grad_output", grad_output, "value");

  Tensor grad_value = new_gradient(output_mask[0], value);
  Tensor grad_locations = new_gradient(output_mask[1], sampling_locations);
  Tensor grad_attention = new_gradient(output_mask[2], attention_weights);
  if (is_empty(value) || is_empty(grad_output)) {
    return {torch::stable::zero_(grad_value), torch::stable::zero_(grad_locations),
            torch::stable::zero_(grad_attention)};
  }
  const Tensor rows = torch::stable::contiguous(value);
  const Tensor locations = torch::stable::contiguous(sampling_locations);
  const Tensor attention = torch::stable::contiguous(attention_weights);
  const Tensor grads = torch::stable::contiguous(grad_output);
  for_floating(value.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    AttentionData<Storage> data = inputs<Storage>(rows, locations, attention);
    data.grad_output = static_cast<const Storage*>(grads.const_data_ptr());
    data.grad_value = static_cast<Storage*>(grad_value.mutable_data_ptr());
    data.grad_locations = output_mask[1] ? numbers(grad_locations) : Numbers{};
    data.grad_attention = output_mask[2] ? numbers(grad_attention) : Numbers{};
    if (output_mask[0]) backward_value(problem, data);
    if (output_mask[1] || output_mask[2]) backward_samples(problem, data);
  });
  return {grad_value, grad_locations, grad_attention};
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former_ops, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&mask2former::ms_deform_attn));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&mask2former::ms_deform_attn_backward));
}
