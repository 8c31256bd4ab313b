// The host's side of the emulated runtime.
#include <cstring>
#include <unordered_map>

#include "emulator.h"
#include "include/cuda_runtime_api.h"

namespace {

constexpr size_t kSharedByDefault = 48 << 10;  // what a kernel gets without asking for more
constexpr unsigned kMaxThreads = 1024;

cudaError_t last_error = cudaSuccess;
std::unordered_map<const void*, size_t> shared_limits;

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

bool is_within(dim3 size, dim3 limit) {
  return size.x && size.y && size.z && size.x <= limit.x && size.y <= limit.y && size.z <= limit.z;
}

bool is_launchable(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 block = config.blockDim;
  const auto limit = shared_limits.find(kernel);
  return is_within(config.gridDim, {0x7fffffff, 65535, 65535}) &&
         is_within(block, {kMaxThreads, kMaxThreads, 64}) &&
         block.x * block.y * block.z <= kMaxThreads && config.numAttrs == 0 &&
         config.dynamicSmemBytes <=
             (limit == shared_limits.end() ? kSharedByDefault : limit->second);
}

}  // namespace

namespace emulator {

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > kSharedMemory) return note(cudaErrorInvalidValue);
  shared_limits[kernel] = value;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   const std::function<void()>& call) {
  if (!is_launchable(config, kernel)) return note(cudaErrorInvalidConfiguration);
  run(config.gridDim, config.blockDim, config.dynamicSmemBytes, call);
  return cudaSuccess;
}

}  // namespace emulator

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  return last_error;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t size, cudaStream_t) {
  if (size) std::memset(memory, value, size);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t) {
  if (size) std::memcpy(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return note(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = kMaxThreads; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = kSharedByDefault; return cudaSuccess;
    case cudaDevAttrWarpSize: *value = emulator::kWarp; return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = 2; return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulator::kSharedMemory;
      return cudaSuccess;
  }
  return note(cudaErrorInvalidValue);
}
