// Launches on the device and the stream that torch is at.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "../tensors.h"
#include "numbers.cuh"

// A torch without CUDA lacks it, and yet loads this library. Nothing calls it there.
#pragma weak aoti_torch_get_current_cuda_stream

namespace mask2former::cuda {

// Python sees a RuntimeError, as from torch's own operators.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

class Launcher {
 public:
  // For the device that the tensor is on.
  Launcher(const char* op, const Tensor& tensor) : op_(op), guard_(tensor.get_device_index()) {
    if (!aoti_torch_get_current_cuda_stream) {
      fail(op, ": the library was linked without torch's CUDA part; build it again");
    }
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                  Arguments&&... arguments) const {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    const auto error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
    if (error != cudaSuccess) fail(op_, ": CUDA says: ", cudaGetErrorString(error));
  }

 private:
  const char* op_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// Blocks for so many tasks, each block going over as many as it must.
inline unsigned blocks_for(int64_t tasks) {
  return static_cast<unsigned>(std::clamp<int64_t>(tasks, 1, 1 << 30));
}

inline int64_t ceil_div(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

// Contiguous, and on a multiple of 16 bytes, as packs of numbers must be.
inline Tensor aligned(const Tensor& tensor) {
  const Tensor packed = torch::stable::contiguous(tensor);
  const bool fits = reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 16 == 0;
  return fits ? packed : torch::stable::clone(packed);
}

inline Numbers numbers(const Tensor& tensor, const Tensor& storage) {
  const bool wide = tensor.scalar_type() != storage.scalar_type();
  return {tensor.data_ptr(), wide};
}

}  // namespace mask2former::cuda
