// The kernels of multi-scale deformable attention (arXiv 2010.04159, equation 3).
//
// A few neighbouring lanes of a warp work on one row: one head of one query. Each lane locates
// every kLanes-th sample of it and shares what it found by shuffles; then each adds up its own
// channels of the four pixels around every sample.
#pragma once

#include "../bilinear.h"
#include "levels.cuh"
#include "numbers.cuh"

namespace mask2former::cuda {

// The arguments, contiguous.
template <typename Storage>
struct AttentionArguments {
  int64_t images, positions, heads, channels, queries, samples;  // N, S, M, D, Q, K
  LevelSource levels;
  const Storage* value;
  Numbers locations, attention;
  Storage* output;
  const Storage* grad_output;
  Numbers grad_locations, grad_attention;
};

// How lanes share a row. Fast layouts hold all channels of it, 16 bytes in each lane, and count
// packs of 16 bytes in 32 bits; the other one goes over any number of channels, one by one.
template <typename StorageType, int Lanes, int Width>
struct Layout {
  using Storage = StorageType;
  using Real = RealOf<Storage>;
  static constexpr int kLanes = Lanes;  // of a row
  static constexpr int kWidth = Width;  // channels that a lane loads at once
  static constexpr bool kFast = Width > 1;
  static constexpr int kTogether = !kFast ? 1 : Lanes < 4 ? Lanes : 4;  // samples of one level
  // Samples whose loads the forward pass has in flight: more would not fit into the registers.
  static constexpr int kUnroll = Width == 8 ? 1 : 2;
  static constexpr int kBlocks = kFast ? 4 : 2;  // that share a multiprocessor
  using Index = std::conditional_t<kFast, int32_t, int64_t>;
};

template <typename Storage>
using AnyLayout = Layout<Storage, 16, 1>;

// For heads of kChannels channels.
template <typename Storage, int kChannels>
using FastLayout =
    Layout<Storage, kChannels * sizeof(Storage) / 16, 16 / static_cast<int>(sizeof(Storage))>;

constexpr int kThreads = 256;
constexpr unsigned kWholeWarp = 0xffffffff;

template <typename Real>
struct Dimensions {
  Real width, height;
};

// A sample as the lane that located it knows it, and as the others do.
template <typename L>
struct Tap {
  using Real = typename L::Real;
  using Index = typename L::Index;

  // Of the pixel left above, in packs, times 16, plus a bit for each of the four pixels around the
  // sample that exist: left above, right above, left below, right below.
  Index place;
  Index below;  // packs from a pixel to the one below
  Real to_right, to_bottom, attention;

  __device__ __forceinline__ bool has(int corner) const { return place >> corner & 1; }

  __device__ __forceinline__ Index at(int corner, Index beside) const {
    return (place >> 4) + (corner % 2 ? beside : 0) + (corner / 2 ? below : 0);
  }

  __device__ __forceinline__ Real weight(int corner) const {
    return (corner % 2 ? to_right : 1 - to_right) * (corner / 2 ? to_bottom : 1 - to_bottom);
  }
};

// What a row of samples lies in.
template <typename L>
struct Row {
  int64_t index;  // of the row, of its image and of its head
  int64_t image;
  int head;
  bool exists;
  int lane;
};

template <typename L, typename Storage>
__device__ __forceinline__ Row<L> find_row(const AttentionArguments<Storage>& arguments,
                                           int64_t first) {
  const int64_t rows = arguments.images * arguments.queries * arguments.heads;
  const int64_t own = first + threadIdx.x / L::kLanes;
  const int64_t index = own < rows ? own : rows - 1;
  const int lane = threadIdx.x % L::kLanes;
  using Index = typename L::Index;
  const Index heads = static_cast<Index>(arguments.heads);
  const Index in_image = static_cast<Index>(arguments.queries) * heads;
  const Index i = static_cast<Index>(index);
  return {index, i / in_image, static_cast<int>(i % heads), own < rows, lane};
}

// The level of a sample.
__device__ __forceinline__ const Level& find_level(const LevelSource& source, const Level* levels,
                                                   int64_t sample) {
  int level = 0;
#pragma unroll 1
  for (int i = 0; i + 1 < source.count; ++i) level += sample >= levels[i].points;
  return levels[level];
}

// The sample of a row that this lane locates; beyond the last one there is one without pixels.
template <typename L, typename Storage>
__device__ __forceinline__ Tap<L> locate_sample(const AttentionArguments<Storage>& arguments,
                                                const Level* levels, const Row<L>& row,
                                                int64_t sample,
                                                Dimensions<typename L::Real>& size) {
  using Real = typename L::Real;
  using Index = typename L::Index;
  size = {};
  if (sample >= arguments.samples) return {};
  const Level level = find_level(arguments.levels, levels, sample);
  const int64_t index = row.index * arguments.samples + sample;
  size = {static_cast<Real>(level.width), static_cast<Real>(level.height)};
  const auto location = read_pair<Storage>(arguments.locations, index);
  const auto x = place(location.numbers[0], size.width, Real(-0.5), level.width);
  const auto y = place(location.numbers[1], size.height, Real(-0.5), level.height);
  const Real attention = read<Storage>(arguments.attention, index);
  const Index beside = static_cast<Index>(arguments.heads * arguments.channels / L::kWidth);
  const Index under = static_cast<Index>(level.width) * beside;
  if (!(x.near && y.near)) return {0, under, 0, 0, 0};
  const bool left = x.from >= 0, right = x.from + 1 < level.width;
  const bool above = y.from >= 0, below = y.from + 1 < level.height;
  const int corners =
      (above && left) | (above && right) << 1 | (below && left) << 2 | (below && right) << 3;
  const Index position =
      static_cast<Index>(level.start) + static_cast<Index>(level.width) * y.from + x.from;
  return {position * beside * 16 + corners, under, x.beyond, y.beyond, attention};
}

template <typename L>
__device__ __forceinline__ Tap<L> share(const Tap<L>& own, int lane, typename L::Index below) {
  const auto from = [lane](auto number) {
    return __shfl_sync(kWholeWarp, number, lane, L::kLanes);
  };
  return {from(own.place), below, from(own.to_right), from(own.to_bottom), from(own.attention)};
}

// Calls visit(tap, k) for samples first .. first + kTogether - 1 of those that the lanes hold.
template <int Unroll, typename L, typename Visit>
__device__ __forceinline__ void visit_together(const Tap<L>& own, int first, Visit visit) {
  const auto below = __shfl_sync(kWholeWarp, own.below, first, L::kLanes);
#pragma unroll Unroll
  for (int k = 0; k < L::kTogether; ++k) visit(share(own, first + k, below), k);
}

// Channels of a pixel that may not exist.
template <typename L>
__device__ __forceinline__ Pack<typename L::Storage, L::kWidth> load_pixel(
    const typename L::Storage* value, const Tap<L>& tap, int corner, typename L::Index beside) {
  if (!tap.has(corner)) return {};
  return load_pack<L::kWidth>(value + int64_t{tap.at(corner, beside)} * L::kWidth);
}

// ---- forward --------------------------------------------------------------------------------------

// The sum over all samples of a row, for the channels of a lane from `channel` on.
template <typename L>
__device__ __forceinline__ void sum_samples(
    const AttentionArguments<typename L::Storage>& arguments, const Level* levels,
    const Row<L>& row, int64_t channel, typename L::Real (&sums)[L::kWidth]) {
  const auto beside =
      static_cast<typename L::Index>(arguments.heads * arguments.channels / L::kWidth);
  const auto* value =
      arguments.value +
      (row.image * arguments.positions * arguments.heads + row.head) * arguments.channels + channel;
  for (int64_t base = 0; base < arguments.samples; base += L::kLanes) {
    Dimensions<typename L::Real> size;
    const Tap<L> own = locate_sample(arguments, levels, row, base + row.lane, size);
    for (int first = 0; first < L::kLanes && base + first < arguments.samples;
         first += L::kTogether) {
      visit_together<L::kUnroll>(own, first, [&](const Tap<L>& tap, int) {
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const auto pixel = load_pixel<L>(value, tap, corner, beside);
          const auto weight = tap.weight(corner) * tap.attention;
#pragma unroll
          for (int i = 0; i < L::kWidth; ++i) sums[i] += weight * to_real(pixel.numbers[i]);
        }
      });
    }
  }
}

template <typename L>
__global__ void __launch_bounds__(kThreads, L::kBlocks)
    ms_deform_attn_forward_kernel(AttentionArguments<typename L::Storage> arguments) {
  const Level* levels =
      load_levels(arguments.levels, arguments.positions, reinterpret_cast<Level*>(shared_memory));
  constexpr int rows_in_block = kThreads / L::kLanes;
  const int64_t rows = arguments.images * arguments.queries * arguments.heads;
  for (int64_t first = int64_t{blockIdx.x} * rows_in_block; first < rows;
       first += int64_t{gridDim.x} * rows_in_block) {
    const Row<L> row = find_row<L>(arguments, first);
    // Every lane of a warp takes part in the shuffles of all channels.
    for (int64_t base = 0; base < arguments.channels; base += L::kLanes * L::kWidth) {
      const int64_t own = base + row.lane * L::kWidth;
      const bool exists = row.exists && own < arguments.channels;
      typename L::Real sums[L::kWidth] = {};
      sum_samples<L>(arguments, levels, row, own < arguments.channels ? own : 0, sums);
      if (exists) {
        store_pack(arguments.output + row.index * arguments.channels + own, sums);
      }
      if (L::kFast) break;  // they are all
    }
    if (L::kFast) break;  // a block for all rows
  }
}

// ---- backward -------------------------------------------------------------------------------------

// What a sample adds to the loss for each unit of its attention, and of its column and row.
template <typename Real>
struct Slopes {
  Real attention, x, y;

  __device__ __forceinline__ void operator+=(const Slopes& other) {
    attention += other.attention;
    x += other.x;
    y += other.y;
  }

  __device__ __forceinline__ Slopes from_lane(int distance) const {
    return {__shfl_xor_sync(kWholeWarp, attention, distance),
            __shfl_xor_sync(kWholeWarp, x, distance), __shfl_xor_sync(kWholeWarp, y, distance)};
  }
};

// Sums over the lanes of a row. Every lane gives slopes of kTogether samples and gets the sum of
// sample lane % kTogether: by halves, so that all samples take hardly more shuffles than one.
template <typename L>
__device__ __forceinline__ Slopes<typename L::Real> sum_over_lanes(
    Slopes<typename L::Real> (&slopes)[L::kTogether], int lane) {
#pragma unroll
  for (int half = L::kTogether / 2; half > 0; half /= 2) {
    const bool upper = lane & half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const auto given = upper ? slopes[i] : slopes[i + half];
      slopes[i] = upper ? slopes[i + half] : slopes[i];
      slopes[i] += given.from_lane(half);
    }
  }
#pragma unroll
  for (int distance = L::kTogether; distance < L::kLanes; distance *= 2) {
    slopes[0] += slopes[0].from_lane(distance);
  }
  return slopes[0];
}

// Where gradients of value are summed up, and for Fixed sums the largest numbers of each head of
// each image.
template <typename Sum, typename Real>
struct ValueGradient {
  Sum* sums;  // null where nobody wants them
  const Real* largest;

  __device__ __forceinline__ double scale(int64_t head, int64_t count) const {
    if constexpr (std::is_same_v<Sum, Fixed>) {
      return fixed_scale(double{largest[2 * head]} * double{largest[2 * head + 1]},
                         static_cast<double>(count));
    }
    return 1;
  }
};

// One sample and the channels of a lane from `channel` on: adds to the gradients of value, and
// returns the lane's share of the sample's slopes.
template <typename L, typename Sum>
__device__ __forceinline__ Slopes<typename L::Real> visit_channels(
    const typename L::Storage* value, Sum* sums, double scale, const Tap<L>& tap,
    typename L::Index beside, const typename L::Real (&grad)[L::kWidth], bool exists,
    bool slopes_wanted) {
  using Real = typename L::Real;
  Real dots[4] = {};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (!tap.has(corner) || !exists) continue;
    if (slopes_wanted) {
      const auto pixel = load_pixel<L>(value, tap, corner, beside);
#pragma unroll
      for (int i = 0; i < L::kWidth; ++i) dots[corner] += grad[i] * to_real(pixel.numbers[i]);
    }
    if (sums) {
      const Real weight = tap.weight(corner) * tap.attention;
      Real shares[L::kWidth];
#pragma unroll
      for (int i = 0; i < L::kWidth; ++i) shares[i] = weight * grad[i];
      add(sums + int64_t{tap.at(corner, beside)} * L::kWidth, shares, scale);
    }
  }
  const Real to_left = 1 - tap.to_right, to_top = 1 - tap.to_bottom;
  return {to_top * (to_left * dots[0] + tap.to_right * dots[1]) +
              tap.to_bottom * (to_left * dots[2] + tap.to_right * dots[3]),
          to_top * (dots[1] - dots[0]) + tap.to_bottom * (dots[3] - dots[2]),
          to_left * (dots[2] - dots[0]) + tap.to_right * (dots[3] - dots[1])};
}

template <typename L>
__device__ __forceinline__ void load_grad(const AttentionArguments<typename L::Storage>& arguments,
                                          const Row<L>& row, int64_t channel,
                                          typename L::Real (&grad)[L::kWidth]) {
  const auto pack =
      load_pack<L::kWidth>(arguments.grad_output + row.index * arguments.channels + channel);
#pragma unroll
  for (int i = 0; i < L::kWidth; ++i) grad[i] = to_real(pack.numbers[i]);
}

template <typename L>
__device__ __forceinline__ void write_slopes(
    const AttentionArguments<typename L::Storage>& arguments, const Row<L>& row, int64_t sample,
    const Slopes<typename L::Real>& slopes, typename L::Real attention,
    const Dimensions<typename L::Real>& size) {
  using Storage = typename L::Storage;
  if (!row.exists || sample >= arguments.samples) return;
  const int64_t index = row.index * arguments.samples + sample;
  if (arguments.grad_locations.data) {
    write_pair<Storage>(arguments.grad_locations, index, slopes.x * attention * size.width,
                        slopes.y * attention * size.height);
  }
  if (arguments.grad_attention.data) {
    write<Storage>(arguments.grad_attention, index, slopes.attention);
  }
}

template <typename L, typename Sum>
__device__ __forceinline__ void differentiate_row(
    const AttentionArguments<typename L::Storage>& arguments,
    const ValueGradient<Sum, typename L::Real>& gradient, const Level* levels, const Row<L>& row) {
  using Real = typename L::Real;
  const auto beside =
      static_cast<typename L::Index>(arguments.heads * arguments.channels / L::kWidth);
  const int64_t corner =
      (row.image * arguments.positions * arguments.heads + row.head) * arguments.channels;
  const double scale =
      gradient.scale(row.image * arguments.heads + row.head, arguments.queries * arguments.samples);
  const bool slopes_wanted = arguments.grad_locations.data || arguments.grad_attention.data;
  const int64_t step = L::kLanes * L::kWidth;
  Real grad[L::kWidth];
  if (L::kFast) load_grad<L>(arguments, row, row.lane * L::kWidth, grad);
  for (int64_t base = 0; base < arguments.samples; base += L::kLanes) {
    Dimensions<Real> size;
    const Tap<L> own = locate_sample(arguments, levels, row, base + row.lane, size);
    Slopes<Real> result = {};
    for (int first = 0; first < L::kLanes && base + first < arguments.samples;
         first += L::kTogether) {
      Slopes<Real> slopes[L::kTogether] = {};
      visit_together<L::kTogether>(own, first, [&](const Tap<L>& tap, int k) {
        for (int64_t channel = row.lane * L::kWidth; channel < arguments.channels;
             channel += step) {
          if (!L::kFast) load_grad<L>(arguments, row, channel, grad);
          slopes[k] += visit_channels<L>(arguments.value + corner + channel,
                                         gradient.sums ? gradient.sums + corner + channel : nullptr,
                                         scale, tap, beside, grad, row.exists, slopes_wanted);
          if (L::kFast) break;
        }
      });
      const auto sum = sum_over_lanes<L>(slopes, row.lane);
      if (row.lane / L::kTogether == first / L::kTogether) result = sum;
    }
    write_slopes<L>(arguments, row, base + row.lane, result, own.attention, size);
  }
}

template <typename L, typename Sum>
__global__ void __launch_bounds__(kThreads, L::kBlocks)
    ms_deform_attn_backward_kernel(AttentionArguments<typename L::Storage> arguments,
                                   ValueGradient<Sum, typename L::Real> gradient) {
  const Level* levels =
      load_levels(arguments.levels, arguments.positions, reinterpret_cast<Level*>(shared_memory));
  constexpr int rows_in_block = kThreads / L::kLanes;
  const int64_t rows = arguments.images * arguments.queries * arguments.heads;
  for (int64_t first = int64_t{blockIdx.x} * rows_in_block; first < rows;
       first += int64_t{gridDim.x} * rows_in_block) {
    differentiate_row<L>(arguments, gradient, levels, find_row<L>(arguments, first));
    if (L::kFast) break;  // a block for all rows
  }
}

// ---- backward: fixed point ------------------------------------------------------------------------

// Raises largest[2 * head] to the largest finite number of grad_output in that head of that image,
// and the one after it to that of attention. Block y of z takes every z-th query.
template <typename Storage>
__global__ void __launch_bounds__(kThreads)
    ms_deform_attn_largest_kernel(AttentionArguments<Storage> arguments, RealOf<Storage>* largest) {
  using Real = RealOf<Storage>;
  const int64_t heads = arguments.heads;
  for (int64_t pair = blockIdx.x; pair < arguments.images * heads; pair += gridDim.x) {
    Real of_grad = 0, of_attention = 0;
    for (int64_t query = blockIdx.y; query < arguments.queries; query += gridDim.y) {
      const int64_t row = (pair / heads * arguments.queries + query) * heads + pair % heads;
      for (int64_t i = threadIdx.x; i < arguments.channels; i += blockDim.x) {
        const Real x = fabs(to_real(arguments.grad_output[row * arguments.channels + i]));
        if (isfinite(x)) of_grad = fmax(of_grad, x);
      }
      for (int64_t i = threadIdx.x; i < arguments.samples; i += blockDim.x) {
        const Real x = fabs(read<Storage>(arguments.attention, row * arguments.samples + i));
        if (isfinite(x)) of_attention = fmax(of_attention, x);
      }
    }
    if (of_grad > 0) raise(largest + 2 * pair, of_grad);
    if (of_attention > 0) raise(largest + 2 * pair + 1, of_attention);
  }
}

// The finished sums as numbers of value's dtype.
template <typename Storage>
__global__ void __launch_bounds__(kThreads)
    ms_deform_attn_from_fixed_kernel(AttentionArguments<Storage> arguments,
                                     ValueGradient<Fixed, RealOf<Storage>> gradient,
                                     Storage* grad_value) {
  const int64_t row = arguments.heads * arguments.channels, in_image = arguments.positions * row;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < arguments.images * in_image;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t head = i / in_image * arguments.heads + i % row / arguments.channels;
    const double scale = gradient.scale(head, arguments.queries * arguments.samples);
    grad_value[i] = from_real<Storage>(from_fixed<RealOf<Storage>>(gradient.sums[i], scale));
  }
}

}  // namespace mask2former::cuda
