// Bilinear point sampling on the CPU: arguments, kernels, registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
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

int64_t ceil_div(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

// Points that share a block, in at least `parts` blocks where there are enough: many where planes
// share it too, because with small blocks a plane would leave the cache from one to the next. Whole
// packs, so that the same points are unpacked wherever the blocks end, and no sum depends on that.
int64_t points_in_block(const PointProblem& problem, int64_t parts) {
  constexpr int64_t least = 1024;
  const int64_t share = ceil_div(ceil_div(problem.points, parts), 8) * 8;
  return std::clamp<int64_t>(share, least, problem.planes == 1 ? least : 16384);
}

// Pieces that each of `count` tasks has to be cut into, for every thread to have one.
int64_t pieces_per_task(int64_t count) {
  return ceil_div(torch::stable::get_num_threads(), std::max<int64_t>(1, count));
}

// Planes that share the arithmetic of a block of points, few enough for every thread to have some.
int64_t planes_in_group(const PointProblem& problem) {
  const int64_t share = ceil_div(problem.images * problem.planes, torch::stable::get_num_threads());
  return std::clamp<int64_t>(share, 1, 64);
}

template <typename Storage>
void forward(const PointProblem& problem, const PointData<Storage>& data) {
  const auto kernel = kernels<Storage>().forward;
  const int64_t size = planes_in_group(problem);
  const int64_t groups = ceil_div(problem.planes, size);
  const int64_t capacity = points_in_block(problem, pieces_per_task(problem.images * groups));
  const int64_t blocks = ceil_div(problem.points, capacity);
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
  const int64_t groups = ceil_div(problem.planes, size);
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
  const int64_t capacity = points_in_block(problem, pieces_per_task(problem.images));
  const int64_t blocks = ceil_div(problem.points, capacity);
  torch::stable::parallel_for(0, problem.images * blocks, 1, [&](int64_t begin, int64_t end) {
    PointBlock<RealOf<Storage>> block(std::min(capacity, problem.points));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t point = task % blocks * capacity;
      kernel(problem, data, block, task / blocks, point,
             std::min(capacity, problem.points - point));
    }
  });
}

// Points whose pixels and channels stay in the first-level cache.
constexpr int64_t kPixelPoints = 32;

// Calls run(block, image, first, count) for the points of each of `images`, a block at a time.
template <typename Storage, typename Run>
void for_pixel_blocks(const PixelProblem& problem, int64_t images, Run run) {
  const int64_t blocks = ceil_div(problem.points, kPixelPoints);
  torch::stable::parallel_for(0, images * blocks, 1, [&](int64_t begin, int64_t end) {
    PixelBlock<Storage> block(std::min(kPixelPoints, problem.points), problem.channels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * kPixelPoints;
      run(block, task / blocks, first, std::min(kPixelPoints, problem.points - first));
    }
  });
}

template <typename Storage>
void forward_pixels(const PixelProblem& problem, const PointData<Storage>& data) {
  const auto kernel = kernels<Storage>().forward_pixels;
  for_pixel_blocks<Storage>(problem, problem.images,
                            [&](auto& block, int64_t image, int64_t first, int64_t count) {
                              kernel(problem, data, block, image, first, count);
                            });
}

template <typename Storage>
void backward_pixel_points(const PixelProblem& problem, const PointData<Storage>& data) {
  const auto kernel = kernels<Storage>().backward_pixel_points;
  for_pixel_blocks<Storage>(problem, problem.shared_points ? 1 : problem.images,
                            [&](auto& block, int64_t image, int64_t first, int64_t count) {
                              kernel(problem, data, block, image, first, count);
                            });
}

// Whether pixels lie one after the other, each a row of channels: channels_last maps do.
bool has_pixel_rows(const Tensor& input) {
  return input.size(1) > 1 && input.stride(1) == 1 &&
         input.stride(2) == input.size(3) * input.stride(3);
}

PixelProblem pixel_problem(const PointSizes& sizes, const Tensor& input, bool align_corners) {
  const auto size = static_cast<int64_t>(input.element_size());
  return {sizes.images,           sizes.channels,     sizes.count,
          sizes.sets == 1,        align_corners,      input.stride(0) * size,
          input.stride(3) * size, sizes.columns.size, sizes.rows.size};
}

PointProblem point_problem(const PointSizes& sizes) {
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
  const PointSizes sizes = point_sizes(input, points, align_corners);
  Tensor output = torch::stable::new_empty(input, output_shape(input, points), output_dtype(input));
  if (is_empty(output)) return output;
  if (is_empty(input)) return torch::stable::zero_(output);
  const bool pixel_rows = has_pixel_rows(input);
  const Tensor pixels = pixel_rows ? input : torch::stable::contiguous(input);
  const Tensor where = torch::stable::contiguous(points);
  for_storage<Half, BFloat16>(input.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    PointData<Storage> data = inputs<Storage>(pixels, where);
    data.output = static_cast<OutputOf<Storage>*>(output.mutable_data_ptr());
    pixel_rows ? forward_pixels(pixel_problem(sizes, input, align_corners), data)
               : forward(point_problem(sizes), data);
  });
  return output;
}

std::tuple<Tensor, Tensor> point_sample_backward(const Tensor& grad_output, const Tensor& input,
                                                 const Tensor& points, bool align_corners,
                                                 const std::vector<bool>& output_mask,
                                                 bool /*deterministic: it always is*/) {
  const PointSizes sizes = point_sizes(input, points, align_corners);
  Tensor grad_input = new_gradient(output_mask[0], input);
  Tensor grad_points = new_gradient(output_mask[1], points);
  if (is_empty(input) || is_empty(grad_output)) {
    return {torch::stable::zero_(grad_input), torch::stable::zero_(grad_points)};
  }
  const bool pixel_rows = has_pixel_rows(input);
  // Only the points' gradient looks at them.
  const bool as_it_lies = pixel_rows || !output_mask[1];
  const Tensor pixels = as_it_lies ? input : torch::stable::contiguous(input);
  const Tensor where = torch::stable::contiguous(points);
  const Tensor grads = torch::stable::contiguous(grad_output);
  for_storage<Half, BFloat16>(input.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    PointData<Storage> data = inputs<Storage>(pixels, where);
    data.grad_output = static_cast<const OutputOf<Storage>*>(grads.const_data_ptr());
    if constexpr (!std::is_same_v<Storage, uint8_t>) {
      data.grad_input = static_cast<Storage*>(grad_input.mutable_data_ptr());
      if (output_mask[0]) backward_input(point_problem(sizes), data);
    }
    data.grad_points = numbers(grad_points);
    if (!output_mask[1]) return;
    pixel_rows ? backward_pixel_points(pixel_problem(sizes, input, align_corners), data)
               : backward_points(point_problem(sizes), data);
  });
  return {grad_input, grad_points};
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former_ops, CPU, library) {
  library.impl("point_sample", TORCH_BOX(&mask2former::point_sample));
  library.impl("point_sample_backward", TORCH_BOX(&mask2former::point_sample_backward));
}
