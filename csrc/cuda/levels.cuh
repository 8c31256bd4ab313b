// The maps that multi-scale deformable attention samples.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mask2former::cuda {

struct DeviceLevel {
  int64_t start;
  int64_t end;  // points of this level and those before it
  int32_t height, width;
};

constexpr int kLevelsInLaunch = 16;

// Where kernels find the levels. What the host knows of them travels with the launch; the rest lies
// on the device, where the host could read it only by waiting.
struct LevelSource {
  int32_t count;
  const int64_t *shapes, *starts;  // null: as follows
  int64_t known_shapes[2 * kLevelsInLaunch], known_starts[kLevelsInLaunch];
  int64_t ends[kLevelsInLaunch];
  const DeviceLevel* table;  // all levels, where there are more than travel with a launch
};

// A level that does not lie within the S positions of value has no pixels: whatever its numbers
// say, nothing outside is read or written.
__device__ __forceinline__ DeviceLevel make_level(const LevelSource& source, int64_t positions,
                                                  int i) {
  constexpr int64_t limit = INT32_MAX;
  const int64_t* shape = (source.shapes ? source.shapes : source.known_shapes) + 2 * i;
  const int64_t height = shape[0], width = shape[1];
  const int64_t start = (source.starts ? source.starts : source.known_starts)[i];
  const bool fits = height >= 0 && height <= limit && width >= 0 && width <= limit && start >= 0 &&
                    start <= positions && (height == 0 || width <= (positions - start) / height);
  if (!fits) return {0, source.ends[i], 0, 0};
  return {start, source.ends[i], static_cast<int32_t>(height), static_cast<int32_t>(width)};
}

// The level of a row's sample, where the levels travel with the launch.
__device__ __forceinline__ int find_level(const LevelSource& source, int64_t sample) {
  int level = 0;
  while (sample >= source.ends[level]) ++level;
  return level;
}

// The levels, in shared memory if there are few. All threads of a block come here.
__device__ __forceinline__ const DeviceLevel* load_levels(const LevelSource& source,
                                                          int64_t positions, DeviceLevel* shared) {
  if (source.table) return source.table;
  for (int i = threadIdx.x; i < source.count; i += blockDim.x) {
    shared[i] = make_level(source, positions, i);
  }
  __syncthreads();
  return shared;
}

// A part of the table of many levels.
__global__ void make_level_table_kernel(LevelSource source, int64_t positions, DeviceLevel* part) {
  const int i = threadIdx.x;
  if (i < source.count) part[i] = make_level(source, positions, i);
}

}  // namespace mask2former::cuda
