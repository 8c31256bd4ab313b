// Multi-scale deformable attention on CUDA: launches, registration.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "../dtypes.h"
#include "../ms_deform_attn_arguments.h"
#include "launch.h"
#include "ms_deform_attn.cuh"

namespace mask2former::cuda {
namespace {

constexpr const char* kOp = "ms_deform_attn";

// ---- arguments ------------------------------------------------------------------------------------

// A call: its arguments as kernels take them, the memory that they point to, and how to launch.
struct Call {
  AttentionSizes sizes;
  Launcher launch;
  LevelSource levels{};
  std::vector<Tensor> memory;

  // A contiguous tensor that lives as long as the call does.
  const Tensor& keep(Tensor tensor) { return memory.emplace_back(std::move(tensor)); }
};

// Levels `first` and after it, as many as travel with a launch.
LevelSource level_source(const AttentionSizes& sizes, const Tensor& shapes, const Tensor& starts,
                         int64_t first) {
  LevelSource source{};
  const int64_t last = std::min<int64_t>(std::ssize(sizes.points), first + kLevelsInLaunch);
  source.count = static_cast<int32_t>(last - first);
  const auto* shape = shapes.const_data_ptr<int64_t>();
  const auto* start = starts.const_data_ptr<int64_t>();
  if (shapes.is_cpu()) {
    std::copy(shape + 2 * first, shape + 2 * last, source.known_shapes);
  } else {
    source.shapes = shape + 2 * first;
  }
  if (starts.is_cpu()) {
    std::copy(start + first, start + last, source.known_starts);
  } else {
    source.starts = start + first;
  }
  const auto points = sizes.points.begin();
  int64_t end = std::accumulate(points, points + first, int64_t{0});
  for (int i = 0; i < source.count; ++i) source.ends[i] = end += sizes.points[first + i];
  return source;
}

// Levels that the host can read have been checked. The others are checked by every kernel.
void find_levels(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                 Call& call) {
  const Tensor shapes = call.keep(torch::stable::contiguous(spatial_shapes));
  const Tensor starts = call.keep(torch::stable::contiguous(level_start_index));
  call.levels = level_source(call.sizes, shapes, starts, 0);
  const int64_t count = std::ssize(call.sizes.points);
  if (count <= kLevelsInLaunch) return;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(DeviceLevel));
  const Tensor table = call.keep(torch::stable::new_empty(value, {bytes}, ScalarType::Byte));
  auto* made = static_cast<DeviceLevel*>(table.mutable_data_ptr());
  for (int64_t first = 0; first < count; first += kLevelsInLaunch) {
    call.launch(make_level_table_kernel, 1, kLevelsInLaunch, 0,
                level_source(call.sizes, shapes, starts, first), call.sizes.positions,
                made + first);
  }
  call.levels = {};
  call.levels.count = static_cast<int32_t>(count);
  call.levels.table = made;
}

Call make_call(AttentionSizes sizes, const Tensor& value, const Tensor& spatial_shapes,
               const Tensor& level_start_index) {
  Call call{std::move(sizes), Launcher(kOp, value)};
  find_levels(value, spatial_shapes, level_start_index, call);
  return call;
}

template <typename Storage>
AttentionArguments<Storage> make_arguments(const Tensor& value, const Tensor& locations,
                                           const Tensor& attention, Call& call) {
  const AttentionSizes& sizes = call.sizes;
  AttentionArguments<Storage> arguments{};
  arguments.images = sizes.images;
  arguments.positions = sizes.positions;
  arguments.heads = sizes.heads;
  arguments.channels = sizes.channels;
  arguments.queries = sizes.queries;
  arguments.samples = sizes.samples;
  arguments.levels = call.levels;
  arguments.value = static_cast<const Storage*>(call.keep(aligned(value)).const_data_ptr());
  arguments.locations = numbers(call.keep(aligned(locations)), value);
  arguments.attention = numbers(call.keep(aligned(attention)), value);
  return arguments;
}

// ---- layouts --------------------------------------------------------------------------------------

constexpr int64_t kSamplesInShared = 512;  // of a row: 8 KiB

// Whether the sizes fit a layout that counts in 32 bits and takes samples of a level together.
template <typename L>
bool fits(const AttentionSizes& sizes) {
  const bool together = std::all_of(sizes.points.begin(), sizes.points.end(),
                                    [](int64_t points) { return points % L::kTogether == 0; });
  const int64_t rows = sizes.images * sizes.queries * sizes.heads;
  const int64_t bytes = sizes.images * sizes.positions * sizes.heads * L::kLanes * kOffsetUnit;
  return together && sizes.channels == L::kLanes * L::kWidth &&
         std::ssize(sizes.points) <= kLevelsInLaunch && sizes.samples <= kSamplesInShared &&
         rows * sizes.samples < int64_t{1} << 30 && rows < int64_t{1} << 30 &&
         bytes < int64_t{1} << 32;
}

template <typename L>
size_t shared_bytes(const AttentionSizes& sizes) {
  if (L::kFast) return sizes.samples * sizeof(Map<L>);
  return std::ssize(sizes.points) <= kLevelsInLaunch ? sizes.points.size() * sizeof(DeviceLevel)
                                                     : 0;
}

template <typename Storage, typename Run>
void for_layout(const AttentionSizes& sizes, Run run) {
  if constexpr (!std::is_same_v<Storage, double>) {
    if (fits<FastLayout<Storage, 16>>(sizes)) return run(FastLayout<Storage, 16>{});
    if (fits<FastLayout<Storage, 32>>(sizes)) return run(FastLayout<Storage, 32>{});
    if (fits<FastLayout<Storage, 64>>(sizes)) return run(FastLayout<Storage, 64>{});
  }
  run(AnyLayout<Storage>{});
}

template <typename L>
dim3 blocks_for_rows(const AttentionSizes& sizes) {
  const int64_t rows = sizes.images * sizes.queries * sizes.heads;
  return blocks_for(ceil_div(rows, kThreads / L::kLanes));
}

// ---- operators ------------------------------------------------------------------------------------

Tensor ms_deform_attn(const Tensor& value, const Tensor& spatial_shapes,
                      const Tensor& level_start_index, const Tensor& sampling_locations,
                      const Tensor& attention_weights, const Counts& num_points) {
  Call call = make_call(attention_sizes(value, spatial_shapes, sampling_locations, num_points),
                        value, spatial_shapes, level_start_index);
  const AttentionSizes& sizes = call.sizes;
  Tensor output =
      torch::stable::new_empty(value, {sizes.images, sizes.queries, sizes.heads * sizes.channels});
  if (is_empty(output)) return output;
  if (is_empty(value)) return torch::stable::zero_(output);
  for_floating<__half, __nv_bfloat16>(value.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    auto arguments = make_arguments<Storage>(value, sampling_locations, attention_weights, call);
    arguments.output = static_cast<Storage*>(output.mutable_data_ptr());
    for_layout<Storage>(sizes, [&](auto layout) {
      using L = decltype(layout);
      call.launch(ms_deform_attn_forward_kernel<L>, blocks_for_rows<L>(sizes), kThreads,
                  shared_bytes<L>(sizes), arguments);
    });
  });
  return output;
}

template <typename Sum, typename Storage>
void launch_backward(const AttentionArguments<Storage>& arguments,
                     const ValueGradient<Sum, RealOf<Storage>>& gradient, const Call& call) {
  for_layout<Storage>(call.sizes, [&](auto layout) {
    using L = decltype(layout);
    call.launch(ms_deform_attn_backward_kernel<L, Sum>, blocks_for_rows<L>(call.sizes), kThreads,
                shared_bytes<L>(call.sizes), arguments, gradient);
  });
}

// Sums of value's gradients in fixed point, and of nothing else that depends on an order.
template <typename Storage>
void backward_in_fixed_point(const AttentionArguments<Storage>& arguments, Tensor& grad_value,
                             const Call& call) {
  using Real = RealOf<Storage>;
  const AttentionSizes& sizes = call.sizes;
  const int64_t heads = sizes.images * sizes.heads;
  Tensor sums = torch::stable::new_zeros(grad_value, grad_value.sizes(), ScalarType::Long);
  Tensor largest = torch::stable::new_zeros(grad_value, {2 * heads}, kDtypeOf<Real>);
  auto* most = static_cast<Real*>(largest.mutable_data_ptr());
  const dim3 grid(blocks_for(heads), std::min<int64_t>(sizes.queries, 64));
  call.launch(ms_deform_attn_largest_kernel<Storage>, grid, kThreads, 0, arguments, most);
  const ValueGradient<Fixed, Real> gradient{static_cast<Fixed*>(sums.mutable_data_ptr()), most};
  launch_backward<Fixed>(arguments, gradient, call);
  call.launch(ms_deform_attn_from_fixed_kernel<Storage>,
              blocks_for(ceil_div(grad_value.numel(), kThreads)), kThreads, 0, arguments, gradient,
              static_cast<Storage*>(grad_value.mutable_data_ptr()));
}

template <typename Storage>
void backward(const AttentionArguments<Storage>& arguments, bool value_wanted, bool deterministic,
              Tensor& grad_value, const Call& call) {
  using Real = RealOf<Storage>;
  if (!value_wanted) return launch_backward<Real>(arguments, {}, call);
  if (deterministic) return backward_in_fixed_point(arguments, grad_value, call);
  // Half storage is rounded once.
  constexpr bool in_place = std::is_same_v<Storage, Real>;
  Tensor sums = in_place
                    ? torch::stable::zero_(grad_value)
                    : torch::stable::new_zeros(grad_value, grad_value.sizes(), ScalarType::Float);
  launch_backward<Real>(arguments, {static_cast<Real*>(sums.mutable_data_ptr()), nullptr}, call);
  if (!in_place) torch::stable::copy_(grad_value, sums);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
    const Tensor& level_start_index, const Tensor& sampling_locations,
    const Tensor& attention_weights, const Counts& num_points, const std::vector<bool>& output_mask,
    bool deterministic) {
  Call call = make_call(attention_sizes(value, spatial_shapes, sampling_locations, num_points),
                        value, spatial_shapes, level_start_index);
  Tensor grad_value = new_gradient(output_mask[0], value);
  Tensor grad_locations = new_gradient(output_mask[1], sampling_locations);
  Tensor grad_attention = new_gradient(output_mask[2], attention_weights);
  if (is_empty(value) || is_empty(grad_output)) {
    return {torch::stable::zero_(grad_value), torch::stable::zero_(grad_locations),
            torch::stable::zero_(grad_attention)};
  }
  for_floating<__half, __nv_bfloat16>(value.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    auto arguments = make_arguments<Storage>(value, sampling_locations, attention_weights, call);
    arguments.grad_output =
        static_cast<const Storage*>(call.keep(aligned(grad_output)).const_data_ptr());
    if (output_mask[1]) arguments.grad_locations = numbers(grad_locations, value);
    if (output_mask[2]) arguments.grad_attention = numbers(grad_attention, value);
    backward(arguments, output_mask[0], deterministic, grad_value, call);
  });
  return {grad_value, grad_locations, grad_attention};
}

}  // namespace
}  // namespace mask2former::cuda

STABLE_TORCH_LIBRARY_IMPL(mask2former_ops, CUDA, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&mask2former::cuda::ms_deform_attn));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&mask2former::cuda::ms_deform_attn_backward));
}
