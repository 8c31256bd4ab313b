// Multi-scale deformable attention on the CPU: arguments, kernels, registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "../dtypes.h"
#include "../ms_deform_attn_arguments.h"
#include "isa/instruction_set.h"
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
  return with_instruction_set([](auto set) { return attention_kernels<Storage>(set); });
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

std::vector<Level> read_levels(const AttentionSizes& sizes, const Tensor& spatial_shapes,
                               const Tensor& level_start_index) {
  const Tensor shape_numbers = torch::stable::contiguous(spatial_shapes);
  const Tensor start_numbers = torch::stable::contiguous(level_start_index);
  const auto* shapes = shape_numbers.const_data_ptr<int64_t>();
  const auto* starts = start_numbers.const_data_ptr<int64_t>();
  std::vector<Level> levels;
  for (int64_t i = 0; i < std::ssize(sizes.points); ++i) {
    levels.push_back({starts[i], sizes.points[i], static_cast<int32_t>(shapes[2 * i]),
                      static_cast<int32_t>(shapes[2 * i + 1])});
  }
  return levels;
}

AttentionProblem make_problem(const Tensor& value, const Tensor& spatial_shapes,
                              const Tensor& level_start_index, const Tensor& sampling_locations,
                              const Counts& num_points) {
  const AttentionSizes sizes =
      attention_sizes(value, spatial_shapes, sampling_locations, num_points);
  return {sizes, read_levels(sizes, spatial_shapes, level_start_index)};
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
  const AttentionProblem problem =
      make_problem(value, spatial_shapes, level_start_index, sampling_locations, num_points);
  Tensor output = torch::stable::new_empty(
      value, {problem.images, problem.queries, problem.heads * problem.channels});
  if (is_empty(output)) return output;
  if (is_empty(value)) return torch::stable::zero_(output);
  const Tensor rows = torch::stable::contiguous(value);
  const Tensor locations = torch::stable::contiguous(sampling_locations);
  const Tensor attention = torch::stable::contiguous(attention_weights);
  for_floating<Half, BFloat16>(value.scalar_type(), [&](auto storage) {
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
    const Tensor& attention_weights, const Counts& num_points, const std::vector<bool>& output_mask,
    bool /*deterministic: it always is*/) {
  const AttentionProblem problem =
      make_problem(value, spatial_shapes, level_start_index, sampling_locations, num_points);
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
  for_floating<Half, BFloat16>(value.scalar_type(), [&](auto storage) {
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
