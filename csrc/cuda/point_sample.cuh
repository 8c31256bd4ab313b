// The kernels of bilinear point sampling (PointRend, arXiv 1912.08193, section 3.1).
//
// Neighbouring threads take neighbouring points of one plane. A thread locates its point once for
// several planes. Where channels lie side by side in memory, neighbouring threads take channels.
#pragma once

#include "../bilinear.h"
#include "numbers.cuh"

namespace mask2former::cuda {

// An axis in the numbers that a kernel computes in.
template <typename Real>
struct RealAxis {
  int32_t size;
  Real scale, shift;
};

// The input has any strides; the rest is contiguous. Points that the whole batch shares make one
// set for the planes of all images.
template <typename Storage>
struct PointArguments {
  using Real = RealOf<Storage>;
  int64_t images, channels;     // N, C
  int64_t sets, planes, count;  // of points, of planes and points in each set
  RealAxis<Real> columns, rows;
  int64_t image_stride, channel_stride, row_stride, column_stride;
  const Storage* input;
  Numbers points;
  OutputOf<Storage>* output;
  const OutputOf<Storage>* grad_output;
  Numbers grad_points;

  __device__ __forceinline__ int64_t area() const { return int64_t{columns.size} * rows.size; }
};

constexpr int kPointThreads = 128;
constexpr int kPlanesOfThread = 8;  // that share the arithmetic of a point
constexpr int kTile = 32;           // points and channels that a block transposes
constexpr int kTileRows = 8;        // threads above each other in such a block

// ---- points ---------------------------------------------------------------------------------------

template <typename Storage>
__device__ __forceinline__ Cell<RealOf<Storage>> locate_point(
    const PointArguments<Storage>& arguments, int64_t set, int64_t point) {
  using Real = RealOf<Storage>;
  const auto location = read_pair<Storage>(arguments.points, set * arguments.count + point);
  const auto& columns = arguments.columns;
  const auto& rows = arguments.rows;
  const auto x =
      locate_on_axis(location.numbers[0], columns.scale, columns.shift, Real(columns.size));
  const auto y = locate_on_axis(location.numbers[1], rows.scale, rows.shift, Real(rows.size));
  const bool near = (x.has_from || x.has_next) && (y.has_from || y.has_next);
  return {near, x.from, y.from, x.beyond, y.beyond};
}

// Calls visit(row, column, weight, slope_x, slope_y) for the pixels of a cell that exist.
template <typename Storage, typename Visit>
__device__ __forceinline__ void visit_pixels(const PointArguments<Storage>& arguments,
                                             const Cell<RealOf<Storage>>& cell, Visit visit) {
  using Real = RealOf<Storage>;
  if (!cell.near) return;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const int right = corner % 2, below = corner / 2;
    const int column = cell.left + right, row = cell.top + below;
    if (column < 0 || column >= arguments.columns.size) continue;
    if (row < 0 || row >= arguments.rows.size) continue;
    const Real across = right ? cell.to_right : 1 - cell.to_right;
    const Real down = below ? cell.to_bottom : 1 - cell.to_bottom;
    visit(int64_t{row}, int64_t{column}, across * down, right ? down : -down,
          below ? across : -across);
  }
}

template <typename Storage>
__device__ __forceinline__ RealOf<Storage> sample(const PointArguments<Storage>& arguments,
                                                  const Cell<RealOf<Storage>>& cell,
                                                  const Storage* plane) {
  using Real = RealOf<Storage>;
  Real sum = 0;
  visit_pixels(arguments, cell, [&](int64_t row, int64_t column, Real weight, Real, Real) {
    sum += weight * to_real(plane[row * arguments.row_stride + column * arguments.column_stride]);
  });
  return sum;
}

// A plane of the input. Walking from one to the next takes no division.
template <typename Storage>
struct Plane {
  int64_t index, image, channel;

  __device__ __forceinline__ Plane(const PointArguments<Storage>& arguments, int64_t i)
      : index(i), image(i / arguments.channels), channel(i % arguments.channels) {}

  __device__ __forceinline__ void walk(const PointArguments<Storage>& arguments, int64_t step) {
    index += step;
    channel += step;
    while (channel >= arguments.channels) {
      channel -= arguments.channels;
      ++image;
    }
  }

  __device__ __forceinline__ const Storage* pixels(const PointArguments<Storage>& arguments) const {
    return arguments.input + image * arguments.image_stride + channel * arguments.channel_stride;
  }
};

// What a block of threads side by side works on: kPointThreads points of kPlanesOfThread planes.
struct PointTask {
  int64_t set, point, begin, end;  // planes from begin to end
};

template <typename Storage>
__device__ __forceinline__ PointTask find_task(const PointArguments<Storage>& arguments,
                                               int64_t index) {
  const int64_t blocks = (arguments.count + kPointThreads - 1) / kPointThreads;
  const int64_t planes = arguments.planes;
  const int64_t groups = (planes + kPlanesOfThread - 1) / kPlanesOfThread;
  const int64_t set = index / (blocks * groups);
  const int64_t begin = index / blocks % groups * kPlanesOfThread;
  const int64_t end = begin + kPlanesOfThread < planes ? begin + kPlanesOfThread : planes;
  return {set, index % blocks * kPointThreads + threadIdx.x, set * planes + begin,
          set * planes + end};
}

// ---- forward --------------------------------------------------------------------------------------

template <typename Storage>
__global__ void __launch_bounds__(kPointThreads, 8)
    point_sample_forward_kernel(PointArguments<Storage> arguments, int64_t tasks) {
  for (int64_t index = blockIdx.x; index < tasks; index += gridDim.x) {
    const PointTask task = find_task(arguments, index);
    if (task.point >= arguments.count) continue;
    const auto cell = locate_point(arguments, task.set, task.point);
#pragma unroll 2
    for (Plane<Storage> plane(arguments, task.begin); plane.index < task.end;
         plane.walk(arguments, 1)) {
      arguments.output[plane.index * arguments.count + task.point] =
          from_real<OutputOf<Storage>>(sample(arguments, cell, plane.pixels(arguments)));
    }
  }
}

// For channels side by side. Threads take channels while they read and points while they write, so
// that both are in the order of memory; in between the samples lie in shared memory.
template <typename Storage>
__global__ void __launch_bounds__(kTile* kTileRows)
    point_sample_forward_by_channels_kernel(PointArguments<Storage> arguments, int64_t tasks) {
  using Real = RealOf<Storage>;
  auto tile = reinterpret_cast<Real(*)[kTile + 1]>(shared_memory);  // a column more: other banks
  const int64_t point_tiles = (arguments.count + kTile - 1) / kTile;
  const int64_t channel_tiles = (arguments.channels + kTile - 1) / kTile;
  for (int64_t index = blockIdx.x; index < tasks; index += gridDim.x) {
    const int64_t image = index / (point_tiles * channel_tiles);
    const int64_t channel = index / point_tiles % channel_tiles * kTile;
    const int64_t point = index % point_tiles * kTile;
    const int64_t set = arguments.sets == 1 ? 0 : image;
    if (channel + threadIdx.x < arguments.channels) {
      const Storage* plane = arguments.input + image * arguments.image_stride +
                             (channel + threadIdx.x) * arguments.channel_stride;
      for (int i = threadIdx.y; i < kTile && point + i < arguments.count; i += kTileRows) {
        const auto cell = locate_point(arguments, set, point + i);
        tile[i][threadIdx.x] = sample(arguments, cell, plane);
      }
    }
    __syncthreads();
    if (point + threadIdx.x < arguments.count) {
      for (int i = threadIdx.y; i < kTile && channel + i < arguments.channels; i += kTileRows) {
        const int64_t plane = image * arguments.channels + channel + i;
        arguments.output[plane * arguments.count + point + threadIdx.x] =
            from_real<OutputOf<Storage>>(tile[threadIdx.x][i]);
      }
    }
    __syncthreads();
  }
}

// ---- backward: input ------------------------------------------------------------------------------

// Adds to the gradients of the input, which are contiguous. `largest` has the largest number of
// each plane of grad_output, for Fixed sums.
template <typename Storage, typename Sum>
__global__ void __launch_bounds__(kPointThreads)
    point_sample_backward_input_kernel(PointArguments<Storage> arguments, int64_t tasks, Sum* sums,
                                       const RealOf<Storage>* largest) {
  using Real = RealOf<Storage>;
  for (int64_t index = blockIdx.x; index < tasks; index += gridDim.x) {
    const PointTask task = find_task(arguments, index);
    if (task.point >= arguments.count) continue;
    const auto cell = locate_point(arguments, task.set, task.point);
    for (int64_t plane = task.begin; plane < task.end; ++plane) {
      const Real grad = to_real(arguments.grad_output[plane * arguments.count + task.point]);
      int exponent = 0;
      if constexpr (std::is_same_v<Sum, Fixed>) {
        exponent = fixed_exponent(largest[plane], 1, static_cast<double>(arguments.count));
      }
      visit_pixels(arguments, cell, [&](int64_t row, int64_t column, Real weight, Real, Real) {
        const Real share[] = {weight * grad};
        add(sums + plane * arguments.area() + row * arguments.columns.size + column, share,
            exponent);
      });
    }
  }
}

// The largest finite number of each plane of grad_output.
template <typename Storage>
__global__ void __launch_bounds__(kPointThreads)
    point_sample_largest_kernel(PointArguments<Storage> arguments, RealOf<Storage>* largest) {
  using Real = RealOf<Storage>;
  const int64_t planes = arguments.images * arguments.channels;
  for (int64_t plane = blockIdx.x; plane < planes; plane += gridDim.x) {
    Real most = 0;
    for (int64_t i = threadIdx.x; i < arguments.count; i += blockDim.x) {
      const Real x = fabs(to_real(arguments.grad_output[plane * arguments.count + i]));
      if (isfinite(x)) most = fmax(most, x);
    }
    if (most > 0) raise(largest + plane, most);
  }
}

// The finished sums as numbers of the input's dtype.
template <typename Storage>
__global__ void __launch_bounds__(kPointThreads)
    point_sample_from_fixed_kernel(PointArguments<Storage> arguments, const Fixed* sums,
                                   const RealOf<Storage>* largest, Storage* grad_input) {
  const int64_t size = arguments.images * arguments.channels * arguments.area();
  for (int64_t i = int64_t{blockIdx.x} * kPointThreads + threadIdx.x; i < size;
       i += int64_t{gridDim.x} * kPointThreads) {
    const int exponent =
        fixed_exponent(largest[i / arguments.area()], 1, static_cast<double>(arguments.count));
    grad_input[i] = from_real<Storage>(from_fixed<RealOf<Storage>>(sums[i], exponent));
  }
}

// ---- backward: points -----------------------------------------------------------------------------

// Threads above each other share a point: each takes every kTileRows-th plane, and the first one
// adds up what all have found, always in the same order.
template <typename Storage>
__global__ void __launch_bounds__(kTile* kTileRows)
    point_sample_backward_points_kernel(PointArguments<Storage> arguments, int64_t tasks) {
  using Real = RealOf<Storage>;
  auto parts = reinterpret_cast<Real(*)[kTile][2]>(shared_memory);
  const int64_t tiles = (arguments.count + kTile - 1) / kTile;
  for (int64_t index = blockIdx.x; index < tasks; index += gridDim.x) {
    const int64_t set = index / tiles, point = index % tiles * kTile + threadIdx.x;
    const bool exists = point < arguments.count;
    const auto cell = locate_point(arguments, set, exists ? point : 0);
    Real sum_x = 0, sum_y = 0;
    const int64_t end = exists ? (set + 1) * arguments.planes : 0;
    for (Plane<Storage> plane(arguments, set * arguments.planes + threadIdx.y); plane.index < end;
         plane.walk(arguments, kTileRows)) {
      const Storage* pixels = plane.pixels(arguments);
      const Real grad = to_real(arguments.grad_output[plane.index * arguments.count + point]);
      visit_pixels(
          arguments, cell, [&](int64_t row, int64_t column, Real, Real slope_x, Real slope_y) {
            const Real pixel =
                to_real(pixels[row * arguments.row_stride + column * arguments.column_stride]);
            sum_x += slope_x * grad * pixel;
            sum_y += slope_y * grad * pixel;
          });
    }
    parts[threadIdx.y][threadIdx.x][0] = sum_x;
    parts[threadIdx.y][threadIdx.x][1] = sum_y;
    __syncthreads();
    if (threadIdx.y == 0 && exists) {
      sum_x = sum_y = 0;
      for (int i = 0; i < kTileRows; ++i) {
        sum_x += parts[i][threadIdx.x][0];
        sum_y += parts[i][threadIdx.x][1];
      }
      write_pair<OutputOf<Storage>>(arguments.grad_points, set * arguments.count + point,
                                    sum_x * arguments.columns.scale, sum_y * arguments.rows.scale);
    }
    __syncthreads();
  }
}

}  // namespace mask2former::cuda
