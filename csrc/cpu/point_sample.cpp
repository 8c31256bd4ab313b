// Bilinear point sampling on the CPU: arguments, kernels, registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../dtypes.h"
#include "../point_sample_arguments.h"
#include "isa/instruction_set.h"
#include "point_sample.h"
#include "tensors.h"

namespace mask2former {
namespace {

template <typename Storage>
PointKernels<Storage> kernels() {
  return with_instruction_set([](auto set) { return point_kernels<Storage>(set); });
}

// Each thread sums up gradients of half planes in a band of at most this many bytes, unless a
// single row is longer. Every band visits all points.
constexpr int64_t kBandBytes = 4 << 20;

int64_t parts_of(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

// Points that share a block, in at least `parts` blocks where there are enough: many where planes
// share it too, because with small blocks a plane would leave the cache from one to the next. Whole
// packs, so that the last points are apart wherever the blocks end, and no sum depends on that.
int64_t points_in_block(const PointProblem& problem, int64_t parts) {
  constexpr int64_t least = 1024;
  const int64_t share = parts_of(parts_of(problem.points, parts), 8) * 8;
  return std::clamp<int64_t>(share, least, problem.planes == 1 ? least : 16384);
}

// Pieces that each of `count` tasks has to be cut into, for every thread to have one.
int64_t cuts_of(int64_t count) {
  return parts_of(torch::stable::get_num_threads(), std::max<int64_t>(1, count));
}

// Planes that share the arithmetic of a block of points, few enough for every thread to have some.
int64_t planes_in_group(const PointProblem& problem) {
  const int64_t share = parts_of(problem.images * problem.planes, torch::stable::get_num_threads());
  return std::clamp<int64_t>(share, 1, 64);
}

template <typename Storage>
void forward(const PointProblem& problem, const PointData<Storage>& data) {
  const auto kernel = kernels<Storage>().forward;
  const int64_t size = planes_in_group(problem);
  const int64_t groups = parts_of(problem.planes, size);
  const int64_t capacity = points_in_block(problem, cuts_of(problem.images * groups));
  const int64_t blocks = parts_of(problem.points, capacity);
  torch::stable::parallel_for(
      0, problem.images * groups * blocks, 1, [&](int64_t begin, int64_t end) {
        PointBlock<RealOf<Storage>> block(std::min(capacity, problem.points));
        for (int64_t task = begin; task < end; ++task) {
          const int64_t plane = task / blocks % groups * size, point = task % blocks * capacity;
          kernel(problem, data, block, task / (groups * blocks), plane,
                 std::min(plane + size, problem.planes), point,
                 std::min(capacity, problem.points - point));
        }
      });
}

template <typename Storage>
void backward_input(const PointProblem& problem, const PointData<Storage>& data) {
  using Real = RealOf<Storage>;
  constexpr bool in_place = std::is_same_v<Storage, Real>;
  const auto kernels = mask2former::kernels<Storage>();
  const int64_t capacity = std::min(points_in_block(problem, 1), problem.points);
  const int64_t size = planes_in_group(problem);
  const int64_t groups = parts_of(problem.planes, size);
  const int64_t row = problem.columns.size;
  const int64_t buffer_rows =
      std::clamp<int64_t>(kBandBytes / (row * sizeof(Real)), 1, problem.rows.size);
  torch::stable::parallel_for(0, problem.images * groups, 1, [&](int64_t begin, int64_t end) {
    PointBlock<Real> block(capacity);
    std::unique_ptr<Real[]> buffer;
    if (!in_place) buffer = std::make_unique_for_overwrite<Real[]>(buffer_rows * row);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / groups, plane = task % groups * size;
      const int64_t last = std::min(plane + size, problem.planes);
      if constexpr (in_place) {
        kernels.backward_input(problem, data, block, image, plane, last);
      } else {
        kernels.backward_half_input(problem, data, block, image, plane, last, buffer.get(),
                                    buffer_rows);
      }
    }
  });
}

template <typename Storage>
void backward_points(const PointProblem& problem, const PointData<Storage>& data) {
  const auto kernel = kernels<Storage>().backward_points;
  const int64_t capacity = points_in_block(problem, cuts_of(problem.images));
  const int64_t blocks = parts_of(problem.points, capacity);
  torch::stable::parallel_for(0, problem.images * blocks, 1, [&](int64_t begin, int64_t end) {
    PointBlock<RealOf<Storage>> block(std::min(capacity, problem.points));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t point = task % blocks * capacity;
      kernel(problem, data, block, task / blocks, point,
             std::min(capacity, problem.points - point));
    }
  });
}

PointProblem check_arguments(const Tensor& input, const Tensor& points, bool align_corners) {
  const PointSizes sizes = check_points(input, points, align_corners);
  const bool shared = sizes.sets == 1;
  return {shared ? 1 : sizes.images, shared ? sizes.images * sizes.channels : sizes.channels,
          sizes.count, sizes.columns, sizes.rows};
}

// ---- operators ------------------------------------------------------------------------------------

template <typename Storage>
PointData<Storage> inputs(const Tensor& input, const Tensor& points) {
  PointData<Storage> data{};
  data.input = static_cast<const Storage*>(input.const_data_ptr());
  data.points = numbers(points);
  return data;
}

Tensor point_sample(const Tensor& input, const Tensor& points, bool align_corners) {
  const PointProblem problem = check_arguments(input, points, align_corners);
  Tensor output = torch::stable::new_empty(input, output_shape(input, points), output_dtype(input));
  if (is_empty(output)) return output;
  if (problem.area() == 0) return torch::stable::zero_(output);
  const Tensor pixels = torch::stable::contiguous(input);
  const Tensor where = torch::stable::contiguous(points);
  for_storage<Half, BFloat16>(input.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    PointData<Storage> data = inputs<Storage>(pixels, where);
    data.output = static_cast<OutputOf<Storage>*>(output.mutable_data_ptr());
    forward(problem, data);
  });
  return output;
}

std::tuple<Tensor, Tensor> point_sample_backward(const Tensor& grad_output, const Tensor& input,
                                                 const Tensor& points, bool align_corners,
                                                 const std::vector<bool>& output_mask,
                                                 bool /*deterministic: it always is*/) {
  const PointProblem problem = check_arguments(input, points, align_corners);
  check_points_backward(grad_output, input, points, output_mask);
  Tensor grad_input = new_gradient(output_mask[0], input);
  Tensor grad_points = new_gradient(output_mask[1], points);
  if (is_empty(input) || is_empty(grad_output)) {
    return {torch::stable::zero_(grad_input), torch::stable::zero_(grad_points)};
  }
  // Only the points' gradient looks at them.
  const Tensor pixels = output_mask[1] ? torch::stable::contiguous(input) : input;
  const Tensor where = torch::stable::contiguous(points);
  const Tensor grads = torch::stable::contiguous(grad_output);
  for_storage<Half, BFloat16>(input.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    PointData<Storage> data = inputs<Storage>(pixels, where);
    data.grad_output = static_cast<const OutputOf<Storage>*>(grads.const_data_ptr());
    if constexpr (!std::is_same_v<Storage, uint8_t>) {
      data.grad_input = static_cast<Storage*>(grad_input.mutable_data_ptr());
      if (output_mask[0]) backward_input(problem, data);
    }
    data.grad_points = numbers(grad_points);
    if (output_mask[1]) backward_points(problem, data);
  });
  return {grad_input, grad_points};
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former_ops, CPU, library) {
  library.impl("point_sample", TORCH_BOX(&mask2former::point_sample));
  library.impl("point_sample_backward", TORCH_BOX(&mask2former::point_sample_backward));
}
