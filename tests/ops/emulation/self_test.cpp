// Kernels, right and wrong ones, that show what the emulator does.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "emulator_python.h"

namespace py = pybind11;

namespace mask2former {
extern __shared__ uint4 shared_memory[];
}

namespace {

using Size = std::tuple<unsigned, unsigned, unsigned>;

dim3 dim(Size size) {
  return {std::get<0>(size), std::get<1>(size), std::get<2>(size)};
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(dim3 grid, dim3 block, size_t shared, void (*kernel)(Parameters...),
                   Arguments... arguments) {
  const cudaLaunchConfig_t config{grid, block, shared, nullptr, nullptr, 0};
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <typename T>
T* shared() {
  return reinterpret_cast<T*>(mask2former::shared_memory);
}

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// ---- kernels that are right ----

__device__ __forceinline__ int warp_sum(unsigned mask, int value) {
  const int lanes = __builtin_popcount(mask);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const int lane = threadIdx.x % warpSize;
    const int other = __shfl_sync(mask, value, lane + step < lanes ? lane + step : lane);
    if (lane + step < lanes) value += other;
  }
  return value;
}

// The sum of values over a grid-stride loop, per block. Without the barrier it is a race.
template <bool kBarrier>
__global__ void __launch_bounds__(1024) block_sum(const int* values, int count, int* sums) {
  int* partial = shared<int>();
  const int rank = threadIdx.x, warps = (blockDim.x + warpSize - 1) / warpSize;
  const int lanes = min(warpSize, int(blockDim.x) - rank / warpSize * warpSize);
  int sum = 0;
  for (int i = blockIdx.x * blockDim.x + rank; i < count; i += gridDim.x * blockDim.x) {
    sum += __ldg(values + i);
  }
  sum = warp_sum(lanes == warpSize ? ~0u : (1u << lanes) - 1, sum);
  if (rank % warpSize == 0) partial[rank / warpSize] = sum;
  if constexpr (kBarrier) __syncthreads();
  if (rank != 0) return;
  sum = 0;
  for (int warp = 0; warp < warps; ++warp) sum += partial[warp];
  sums[blockIdx.x] = sum;
}

std::vector<int> block_sums(Array<int> values, unsigned blocks, unsigned threads, bool barrier) {
  std::vector<int> sums(blocks, -1);
  const auto kernel = barrier ? block_sum<true> : block_sum<false>;
  launch(blocks, threads, 32 * sizeof(int), kernel, values.data(), int(values.size()), sums.data());
  return sums;
}

// Lanes of a warp pass numbers on through shared memory.
__global__ void rotate(int* numbers, bool barrier) {
  volatile int* slots = shared<int>();
  slots[threadIdx.x] = threadIdx.x;
  if (barrier) __syncwarp();
  numbers[threadIdx.x] = slots[(threadIdx.x + 1) % warpSize];
}

std::vector<int> rotated(bool barrier) {
  std::vector<int> numbers(warpSize);
  launch(1, warpSize, warpSize * sizeof(int), rotate, numbers.data(), barrier);
  return numbers;
}

// The indices that each thread sees, in its own row.
__global__ void indices(uint3* rows) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int size = blockDim.x * blockDim.y * blockDim.z;
  rows[2 * (block * size + thread)] = blockIdx;
  rows[2 * (block * size + thread) + 1] = threadIdx;
}

py::array_t<unsigned> all_indices(Size grid, Size block) {
  const dim3 g = dim(grid), b = dim(block);
  py::array_t<unsigned> rows({g.x * g.y * g.z * b.x * b.y * b.z, 2u, 3u});
  launch(g, b, 0, indices, reinterpret_cast<uint3*>(rows.mutable_data()));
  return rows;
}

// The order in which the threads of all blocks begin.
__global__ void begin(int* order, int* count) {
  order[atomicAdd(count, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}

std::vector<int> beginning(unsigned blocks, unsigned threads) {
  std::vector<int> order(blocks * threads);
  int count = 0;
  launch(blocks, threads, 0, begin, order.data(), &count);
  return order;
}

template <typename T>
__global__ void shuffle(int kind, T* values, const int* arguments, unsigned mask, int width) {
  const int lane = threadIdx.x, argument = arguments[lane];
  if (!(mask >> lane & 1)) return;
  T value = values[lane];
  switch (kind) {
    case 0: value = __shfl_sync(mask, value, argument, width); break;
    case 1: value = __shfl_up_sync(mask, value, argument, width); break;
    case 2: value = __shfl_down_sync(mask, value, argument, width); break;
    case 3: value = __shfl_xor_sync(mask, value, argument, width); break;
  }
  values[lane] = value;
}

template <typename T>
py::array_t<T> shuffled(int kind, py::array_t<T> values, std::vector<int> arguments, unsigned mask,
                        int width) {
  py::array_t<T> result(values.size(), values.data());
  launch(1, values.size(), 0, shuffle<T>, kind, result.mutable_data(), arguments.data(), mask,
         width);
  return result;
}

__global__ void shuffle_many(int count, unsigned* sums) {
  unsigned value = threadIdx.x;
  for (int i = 0; i < count; ++i) value += __shfl_xor_sync(~0u, value, 1 + i % 31);
  sums[threadIdx.x] = value;
}

void many_shuffles(unsigned threads, int count) {
  std::vector<unsigned> sums(threads);
  launch(1, threads, 0, shuffle_many, count, sums.data());
}

// Each half of a warp votes for itself; the block then votes together.
__global__ void vote(const int* predicates, unsigned* votes) {
  const int rank = threadIdx.x, lane = rank % warpSize;
  const unsigned mask = lane < 16 ? 0xffff : 0xffff0000;
  unsigned* row = votes + rank * 6;
  row[0] = __ballot_sync(mask, predicates[rank]);
  row[1] = __any_sync(mask, predicates[rank]);
  row[2] = __all_sync(mask, predicates[rank]);
  row[3] = __syncthreads_count(predicates[rank]);
  row[4] = __syncthreads_or(predicates[rank]);
  row[5] = __syncthreads_and(predicates[rank]);
}

py::array_t<unsigned> votes(std::vector<int> predicates) {
  const unsigned threads = predicates.size();
  py::array_t<unsigned> rows({threads, 6u});
  launch(1, threads, 0, vote, predicates.data(), rows.mutable_data());
  return rows;
}

// What an atomic leaves in memory, and what it returns.
template <typename T>
__global__ void atomic(int kind, T* memory, const T* values, T* olds) {
  const T value = values[threadIdx.x];
  T& old = olds[threadIdx.x];
  if constexpr (emulator::Word<T> || std::is_floating_point_v<T>) {
    if (kind == 0) old = atomicAdd(memory, value);
  }
  if constexpr (emulator::Ordered<T>) {
    if (kind == 1) old = atomicMax(memory, value);
    if (kind == 2) old = atomicMin(memory, value);
  }
  if constexpr (emulator::Word<T> || std::is_same_v<T, float>) {
    if (kind == 3) old = atomicExch(memory, value);
  }
  if constexpr (emulator::Word<T>) {
    if (kind == 4) old = atomicCAS(memory, T(threadIdx.x), value);
  }
}

template <typename T>
auto atomics(int kind, T start, py::array_t<T> values) {
  py::array_t<T> olds(values.size());
  launch(1, values.size(), 0, atomic<T>, kind, &start, values.data(), olds.mutable_data());
  return std::pair(start, olds);
}

template <typename T>
__global__ void add_vector(float* memory, const float* values) {
  atomicAdd(reinterpret_cast<T*>(memory), *(reinterpret_cast<const T*>(values) + threadIdx.x));
}

std::vector<float> added_vectors(int width, std::vector<float> values) {
  alignas(16) float memory[4] = {};
  const auto kernel = width == 2 ? add_vector<float2> : add_vector<float4>;
  launch(1, values.size() / width, 0, kernel, memory, values.data());
  return {memory, memory + width};
}

template <typename From, typename To>
auto map(To (*function)(From)) {
  return [function](Array<From> values) {
    py::array_t<To> results(values.size());
    for (py::ssize_t i = 0; i < values.size(); ++i) {
      results.mutable_data()[i] = function(values.data()[i]);
    }
    return results;
  };
}

// ---- kernels that are wrong ----

__global__ void leave_before_barrier() {
  if (threadIdx.x == 3) return;
  __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lane_not_in_mask() {
  __syncwarp(0xfffffffe);
}

__global__ void lane_has_ended() {
  if (threadIdx.x % 32 == 7) return;
  __shfl_xor_sync(~0u, 1, 1);
}

__global__ void lane_at_other_call() {
  if (threadIdx.x == 0) {
    __shfl_sync(~0u, 1, 0);
  } else {
    __shfl_sync(~0u, 1, 0);
  }
}

__global__ void lane_at_barrier() {
  if (threadIdx.x % 32 == 5) {
    __syncthreads();
  } else {
    __any_sync(~0u, 1);
  }
}

__global__ void read_outside_mask() {
  if (threadIdx.x < 16) __shfl_down_sync(0xffff, 1, 8);
}

__global__ void read_missing_lane() {
  __shfl_xor_sync(~0u, 1, 16);
}

__global__ void masks_differ() {
  __ballot_sync(threadIdx.x % 2 ? 0xffff : 0xfffff, 1);
}

__global__ void widths_differ() {
  __shfl_sync(~0u, 1, 0, threadIdx.x % 2 ? 16 : 32);
}

__global__ void odd_width() {
  __shfl_sync(~0u, 1.0, 0, 12);
}

__global__ void throws() {
  if (blockIdx.x == 1 && threadIdx.x == 2) throw std::invalid_argument("odd");
  __syncthreads();
}

__global__ void misaligned_load(const float* memory) {
  __ldg(reinterpret_cast<const float4*>(memory + threadIdx.x));
}

__global__ void misaligned_atomic(float* memory) {
  atomicAdd(reinterpret_cast<float2*>(memory + threadIdx.x), float2{1, 1});
}

__global__ void vector_atomic_in_shared_memory() {
  atomicAdd(shared<float4>(), float4{});
}

__global__ void write_shared(int at) {
  shared<unsigned char>()[at] = 1;
}

__global__ void read_global(const int* memory, int at, int* result) {
  *result = memory[at];
}

alignas(16) float aligned_memory[64];

const std::map<std::string, std::function<void()>> faults{
    {"leave_before_barrier", [] { launch(2, 40, 0, leave_before_barrier); }},
    {"two_barriers", [] { launch(1, 64, 0, two_barriers); }},
    {"lane_not_in_mask", [] { launch(1, 32, 0, lane_not_in_mask); }},
    {"lane_has_ended", [] { launch(1, 64, 0, lane_has_ended); }},
    {"lane_at_other_call", [] { launch(1, 32, 0, lane_at_other_call); }},
    {"lane_at_barrier", [] { launch(1, 64, 0, lane_at_barrier); }},
    {"read_outside_mask", [] { launch(1, 32, 0, read_outside_mask); }},
    {"read_missing_lane", [] { launch(1, 20, 0, read_missing_lane); }},
    {"masks_differ", [] { launch(1, 16, 0, masks_differ); }},
    {"widths_differ", [] { launch(1, 32, 0, widths_differ); }},
    {"odd_width", [] { launch(1, 32, 0, odd_width); }},
    {"throws", [] { launch(3, 4, 0, throws); }},
    {"misaligned_load", [] { launch(1, 2, 0, misaligned_load, aligned_memory); }},
    {"misaligned_atomic", [] { launch(1, 2, 0, misaligned_atomic, aligned_memory); }},
    {"vector_atomic_in_shared_memory", [] { launch(1, 1, 64, vector_atomic_in_shared_memory); }},
};

// ---- the host's side ----

__global__ void nothing() {}
__global__ void nothing_with_much_memory() {}

std::string try_launch(Size grid, Size block, size_t shared) {
  return cudaGetErrorString(launch(dim(grid), dim(block), shared, nothing));
}

std::string try_much_memory(int asked, size_t shared) {
  cudaError_t error = cudaFuncSetAttribute(nothing_with_much_memory,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, asked);
  if (error == cudaSuccess) error = launch(1, 1, shared, nothing_with_much_memory);
  return cudaGetErrorString(error);
}

int read_at(Array<int> memory, int at) {
  int result = 0;
  launch(1, 1, 0, read_global, memory.data(), at, &result);
  return result;
}

std::vector<int> device_attributes() {
  std::vector<int> values;
  for (const auto attribute : {cudaDevAttrMultiProcessorCount, cudaDevAttrWarpSize,
                               cudaDevAttrMaxSharedMemoryPerBlockOptin}) {
    cudaDeviceGetAttribute(&values.emplace_back(), attribute, 0);
  }
  return values;
}

}  // namespace

PYBIND11_MODULE(emulation_self_test, module) {
  bind_emulator(module);
  module.def("block_sums", &block_sums);
  module.def("rotated", &rotated);
  module.def("all_indices", &all_indices);
  module.def("beginning", &beginning);
  module.def("shuffled", &shuffled<int>);
  module.def("shuffled", &shuffled<unsigned>);
  module.def("shuffled", &shuffled<long long>);
  module.def("shuffled", &shuffled<unsigned long long>);
  module.def("shuffled", &shuffled<float>);
  module.def("shuffled", &shuffled<double>);
  module.def("many_shuffles", &many_shuffles);
  module.def("votes", &votes);
  module.def("atomics_int", &atomics<int>);
  module.def("atomics_unsigned", &atomics<unsigned>);
  module.def("atomics_long", &atomics<long long>);
  module.def("atomics_unsigned_long", &atomics<unsigned long long>);
  module.def("atomics_float", &atomics<float>);
  module.def("atomics_double", &atomics<double>);
  module.def("added_vectors", &added_vectors);
  module.def("half_to_float", map(+[](uint16_t v) { return __half2float(__ushort_as_half(v)); }));
  module.def("float_to_half", map(+[](float v) { return __half_as_ushort(__float2half_rn(v)); }));
  module.def("bfloat16_to_float",
             map(+[](uint16_t v) { return __bfloat162float(__ushort_as_bfloat16(v)); }));
  module.def("float_to_bfloat16",
             map(+[](float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }));
  module.def("float_to_int", map(+[](float v) { return __float2int_rd(v); }));
  module.def("fault", [](const std::string& name) { faults.at(name)(); });
#ifdef __SANITIZE_ADDRESS__
  module.attr("has_address_sanitizer") = true;
#else
  module.attr("has_address_sanitizer") = false;
#endif
  module.def("write_shared", [](int at, size_t size) { launch(2, 1, size, write_shared, at); });
  module.def("read_at", &read_at);
  module.def("try_launch", &try_launch);
  module.def("try_much_memory", &try_much_memory);
  module.def("last_error", [] { return std::string(cudaGetErrorString(cudaGetLastError())); });
  module.def("device_attributes", &device_attributes);
}
