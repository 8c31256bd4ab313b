// Bilinear point sampling on CUDA: launches, registration.
#include "point_sample.cuh"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../dtypes.h"
#include "../point_sample_arguments.h"
#include "launch.h"

namespace mask2former::cuda {
namespace {

// ---- arguments ------------------------------------------------------------------------------------

template <typename Real>
RealAxis<Real> make_real(const Axis& axis) {
  return {axis.size, static_cast<Real>(axis.scale), static_cast<Real>(axis.shift)};
}

// `where` holds the points, aligned.
template <typename Storage>
PointArguments<Storage> make_arguments(const PointSizes& sizes, const Tensor& input,
                                       const Tensor& where) {
  using Real = RealOf<Storage>;
  PointArguments<Storage> arguments{};
  arguments.images = sizes.images;
  arguments.channels = sizes.channels;
  arguments.sets = sizes.sets;
  arguments.planes = sizes.images * sizes.channels / sizes.sets;
  arguments.count = sizes.count;
  arguments.columns = make_real<Real>(sizes.columns);
  arguments.rows = make_real<Real>(sizes.rows);
  arguments.image_stride = input.stride(0);
  arguments.channel_stride = input.stride(1);
  arguments.row_stride = input.stride(2);
  arguments.column_stride = input.stride(3);
  arguments.input = static_cast<const Storage*>(input.const_data_ptr());
  arguments.points = numbers(where, input);
  return arguments;
}

// ---- launches -------------------------------------------------------------------------------------

template <typename Storage>
void forward(const PointArguments<Storage>& arguments, const Launcher& launch) {
  if (arguments.channel_stride == 1 && arguments.channels > 1) {
    const int64_t tasks =
        arguments.images * ceil_div(arguments.channels, kTile) * ceil_div(arguments.count, kTile);
    const size_t tile = kTile * (kTile + 1) * sizeof(RealOf<Storage>);
    return launch(point_sample_forward_by_channels_kernel<Storage>, blocks_for(tasks),
                  dim3(kTile, kTileRows), tile, arguments, tasks);
  }
  const int64_t tasks = arguments.sets * ceil_div(arguments.planes, kPlanesOfThread) *
                        ceil_div(arguments.count, kPointThreads);
  launch(point_sample_forward_kernel<Storage>, blocks_for(tasks), kPointThreads, 0, arguments,
         tasks);
}

template <typename Sum, typename Storage>
void launch_backward_input(const PointArguments<Storage>& arguments, Tensor& sums,
                           const RealOf<Storage>* largest, const Launcher& launch) {
  const int64_t tasks = arguments.sets * ceil_div(arguments.planes, kPlanesOfThread) *
                        ceil_div(arguments.count, kPointThreads);
  launch(point_sample_backward_input_kernel<Storage, Sum>, blocks_for(tasks), kPointThreads, 0,
         arguments, tasks, static_cast<Sum*>(sums.mutable_data_ptr()), largest);
}

// Sums in fixed point do not depend on their order.
template <typename Storage>
void backward_input_in_fixed_point(const PointArguments<Storage>& arguments, Tensor& grad_input,
                                   const Launcher& launch) {
  using Real = RealOf<Storage>;
  const int64_t planes = arguments.images * arguments.channels;
  Tensor sums = torch::stable::new_zeros(grad_input, grad_input.sizes(), ScalarType::Long);
  Tensor largest = torch::stable::new_zeros(grad_input, {planes}, kDtypeOf<Real>);
  auto* most = static_cast<Real*>(largest.mutable_data_ptr());
  launch(point_sample_largest_kernel<Storage>, blocks_for(planes), kPointThreads, 0, arguments,
         most);
  launch_backward_input<Fixed>(arguments, sums, most, launch);
  launch(point_sample_from_fixed_kernel<Storage>, blocks_for(ceil_div(sums.numel(), kPointThreads)),
         kPointThreads, 0, arguments, static_cast<const Fixed*>(sums.const_data_ptr()), most,
         static_cast<Storage*>(grad_input.mutable_data_ptr()));
}

template <typename Storage>
void backward_input(const PointArguments<Storage>& arguments, bool deterministic,
                    Tensor& grad_input, const Launcher& launch) {
  using Real = RealOf<Storage>;
  if (deterministic) return backward_input_in_fixed_point(arguments, grad_input, launch);
  // Half storage is rounded once.
  constexpr bool in_place = std::is_same_v<Storage, Real>;
  Tensor sums = in_place
                    ? torch::stable::zero_(grad_input)
                    : torch::stable::new_zeros(grad_input, grad_input.sizes(), ScalarType::Float);
  launch_backward_input<Real>(arguments, sums, nullptr, launch);
  if (!in_place) torch::stable::copy_(grad_input, sums);
}

template <typename Storage>
void backward_points(const PointArguments<Storage>& arguments, const Launcher& launch) {
  const int64_t tasks = arguments.sets * ceil_div(arguments.count, kTile);
  launch(point_sample_backward_points_kernel<Storage>, blocks_for(tasks), dim3(kTile, kTileRows),
         kTile * kTileRows * 2 * sizeof(RealOf<Storage>), arguments, tasks);
}

// ---- operators ------------------------------------------------------------------------------------

Tensor point_sample(const Tensor& input, const Tensor& points, bool align_corners) {
  const PointSizes sizes = point_sizes(input, points, align_corners);
  Tensor output = torch::stable::new_empty(input, output_shape(input, points), output_dtype(input));
  if (is_empty(output)) return output;
  if (is_empty(input)) return torch::stable::zero_(output);
  const Launcher launch("point_sample", input);
  const Tensor where = aligned(points);
  for_storage<__half, __nv_bfloat16>(input.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    auto arguments = make_arguments<Storage>(sizes, input, where);
    arguments.output = static_cast<OutputOf<Storage>*>(output.mutable_data_ptr());
    forward(arguments, launch);
  });
  return output;
}

std::tuple<Tensor, Tensor> point_sample_backward(const Tensor& grad_output, const Tensor& input,
                                                 const Tensor& points, bool align_corners,
                                                 const std::vector<bool>& output_mask,
                                                 bool deterministic) {
  const PointSizes sizes = point_sizes(input, points, align_corners);
  Tensor grad_input = new_gradient(output_mask[0], input);
  Tensor grad_points = new_gradient(output_mask[1], points);
  if (is_empty(input) || is_empty(grad_output)) {
    return {torch::stable::zero_(grad_input), torch::stable::zero_(grad_points)};
  }
  const Launcher launch("point_sample_backward", input);
  const Tensor where = aligned(points), grads = torch::stable::contiguous(grad_output);
  for_storage<__half, __nv_bfloat16>(input.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    auto arguments = make_arguments<Storage>(sizes, input, where);
    arguments.grad_output = static_cast<const OutputOf<Storage>*>(grads.const_data_ptr());
    if constexpr (!std::is_same_v<Storage, uint8_t>) {
      if (output_mask[0]) backward_input(arguments, deterministic, grad_input, launch);
    }
    if (output_mask[1]) {
      arguments.grad_points = numbers(grad_points, input);
      backward_points(arguments, launch);
    }
  });
  return {grad_input, grad_points};
}

}  // namespace
}  // namespace mask2former::cuda

STABLE_TORCH_LIBRARY_IMPL(mask2former_ops, CUDA, library) {
  library.impl("point_sample", TORCH_BOX(&mask2former::cuda::point_sample));
  library.impl("point_sample_backward", TORCH_BOX(&mask2former::cuda::point_sample_backward));
}
