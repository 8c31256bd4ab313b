// The kernels of multi-scale deformable attention (arXiv 2010.04159, equation 3).
#pragma once

#include "ms_deform_attn_samples.cuh"

namespace mask2former::cuda {

// ---- forward --------------------------------------------------------------------------------------

// A sample for which every lane loads four pixels without asking which of them exist: a missing
// pixel is replaced by one that exists, with weight 0. No other pixel is read, since it might hold
// anything.
template <typename L>
struct Blend {
  using Real = typename L::Real;
  using Offset = typename L::Offset;

  // Flags of the pixels that there are, in the low bits of the offset.
  static constexpr int kHasBeside = 1, kHasBelow = 2, kHasAny = 4;
  static_assert((kHasBeside | kHasBelow | kHasAny) <= kFlags, "flags fit below an offset");

  Offset flagged_offset;  // of the first pixel, with flags
  Real weights[4];

  __device__ __forceinline__ Blend(const Located<L>& located, const Row& row,
                                   const Strides<L>& strides) {
    const auto& [x, y, map, attention] = located;
    flagged_offset = located.offset(row, strides, x.has_from ? x.from : x.from + 1,
                                    y.has_from ? y.from : y.from + 1);
    flagged_offset += (x.has_from && x.has_next ? kHasBeside : 0) +
                      (y.has_from && y.has_next ? kHasBelow : 0) +
                      (located.has_pixels() ? kHasAny : 0);
    const Real across[] = {x.has_from ? 1 - x.beyond : 0, x.has_next ? x.beyond : 0};
    const Real down[] = {y.has_from ? attention * (1 - y.beyond) : 0,
                         y.has_next ? attention * y.beyond : 0};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      weights[corner] = across[corner % 2] * down[corner / 2];
    }
  }

  // Another lane's, of the same row.
  __device__ __forceinline__ Blend from_lane(int from) const {
    Blend other = *this;
    other.flagged_offset = __shfl_sync(kWholeWarp, flagged_offset, from, L::kLanes);
#pragma unroll
    for (Real& weight : other.weights) {
      weight = __shfl_sync(kWholeWarp, weight, from, L::kLanes);
    }
    return other;
  }

  __device__ __forceinline__ bool has_pixels() const { return flagged_offset & kHasAny; }

  // The offset of a pixel.
  __device__ __forceinline__ Offset at(int corner, Offset pixel, Offset below) const {
    return (flagged_offset & ~Offset{kFlags}) +
           (corner % 2 && flagged_offset & kHasBeside ? pixel : 0) +
           (corner / 2 && flagged_offset & kHasBelow ? below : 0);
  }
};

// Adds a sample to the sums over all samples of a row, for the channels of a lane from `channel`
// on.
template <typename L>
__device__ __forceinline__ void add_sample(const typename L::Storage* value, const Blend<L>& blend,
                                           typename L::Offset pixel, typename L::Offset below,
                                           int64_t channel, typename L::Real (&sums)[L::kWidth]) {
  Pack<typename L::Storage, L::kWidth> pixels[4];
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    pixels[corner] = load_pixel<L>(value, blend.at(corner, pixel, below), channel);
  }
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    typename L::Real numbers[L::kWidth];
    to_reals(pixels[corner], numbers);
#pragma unroll
    for (int i = 0; i < L::kWidth; ++i) sums[i] += blend.weights[corner] * numbers[i];
  }
}

// The sum over all samples of a row, for the channels of a lane from `channel` on.
template <typename L>
__device__ __forceinline__ void sum_samples(
    const AttentionArguments<typename L::Storage>& arguments, const Maps<L>& maps, const Row& row,
    int64_t channel, typename L::Real (&sums)[L::kWidth]) {
  using Index = typename L::Index;
  using Offset = typename L::Offset;
  const Strides<L> strides(arguments);
  const Index samples = static_cast<Index>(arguments.samples);
  for (Index base = 0; base < samples; base += L::kLanes) {
    const Located<L> located = locate_sample<L>(arguments, maps, row, base + row.lane);
    const Blend<L> own(located, row, strides);
    const Offset own_below = located.below(strides);
    for (int first = 0; first < L::kLanes && base + first < samples; first += L::kTogether) {
      const Offset below = __shfl_sync(kWholeWarp, own_below, first, L::kLanes);
#pragma unroll
      for (int k = 0; k < L::kTogether; ++k) {
        const Blend<L> blend = own.from_lane(first + k);
        if (!blend.has_pixels()) continue;
        add_sample(arguments.value, blend, strides.pixel, below, channel, sums);
      }
    }
  }
}

template <typename L>
__global__ void __launch_bounds__(kThreads, L::kBlocks)
    ms_deform_attn_forward_kernel(AttentionArguments<typename L::Storage> arguments) {
  const Maps<L> maps(arguments);
  constexpr int rows_in_block = kThreads / L::kLanes;
  const int64_t rows = arguments.images * arguments.queries * arguments.heads;
  for (int64_t first = int64_t{blockIdx.x} * rows_in_block; first < rows;
       first += int64_t{gridDim.x} * rows_in_block) {
    const Row row = find_row<L>(arguments, first);
    // Every lane of a warp takes part in the shuffles of all channels.
    for (int64_t base = 0; base < arguments.channels; base += L::kLanes * L::kWidth) {
      const int64_t own = base + row.lane * L::kWidth;
      const bool exists = L::kFast || own < arguments.channels;
      typename L::Real sums[L::kWidth] = {};
      sum_samples<L>(arguments, maps, row, exists ? own : 0, sums);
      if (exists && row.exists) {
        store_pack(arguments.output + row.index * arguments.channels + own, sums);
      }
      if (L::kFast) break;  // they are all
    }
    if (L::kFast) break;  // there is a block for every row
  }
}

// ---- backward -------------------------------------------------------------------------------------

// A sample and the pixels around it: 0 left above, 1 right above, 2 left below, 3 right below.
template <typename L>
struct Corners {
  using Real = typename L::Real;
  using Offset = typename L::Offset;

  // Flags of the corners that are pixels, in the low bits of the offset.
  static constexpr int kHasLeft = 1, kHasRight = 2;  // in the row above; in the row below
  static constexpr int kBelow = 4;                   // times this
  static_assert((kHasLeft | kHasRight) * (1 + kBelow) <= kFlags, "flags fit below an offset");

  Offset flagged_offset;  // of the pixel left above, with flags
  Offset below;           // from a pixel to the one below it
  Real to_right, to_bottom, attention;

  __device__ __forceinline__ bool has(int corner) const { return flagged_offset >> corner & 1; }

  __device__ __forceinline__ Offset at(int corner, Offset beside) const {
    return (flagged_offset & ~Offset{kFlags}) + (corner % 2 ? beside : 0) +
           (corner / 2 ? below : 0);
  }

  __device__ __forceinline__ Real weight(int corner) const {
    return (corner % 2 ? to_right : 1 - to_right) * (corner / 2 ? to_bottom : 1 - to_bottom);
  }

  // Another lane's, of the same row and level.
  __device__ __forceinline__ Corners from_lane(int from, Offset below_there) const {
    const auto get = [from](auto x) { return __shfl_sync(kWholeWarp, x, from, L::kLanes); };
    return {get(flagged_offset), below_there, get(to_right), get(to_bottom), get(attention)};
  }
};

template <typename L>
__device__ __forceinline__ Corners<L> make_corners(const Located<L>& located, const Row& row,
                                                   const Strides<L>& strides) {
  const auto& [x, y, map, attention] = located;
  using Found = Corners<L>;
  const int across = (x.has_from ? Found::kHasLeft : 0) + (x.has_next ? Found::kHasRight : 0);
  const int flags = (y.has_from ? across : 0) + (y.has_next ? Found::kBelow * across : 0);
  const auto flagged_offset = located.offset(row, strides, x.from, y.from) + flags;
  const auto below = located.below(strides);
  // Where there are no pixels the rest may be anything.
  if (flags == 0) return {flagged_offset, below, 0, 0, 0};
  return {flagged_offset, below, x.beyond, y.beyond, attention};
}

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

  __device__ __forceinline__ int exponent(int64_t head, int64_t count) const {
    if constexpr (std::is_same_v<Sum, Fixed>) {
      return fixed_exponent(largest[2 * head], largest[2 * head + 1], static_cast<double>(count));
    }
    return 0;
  }
};

// One sample and the channels of a lane from `channel` on: adds to the gradients of value, and
// returns the lane's share of the sample's slopes.
template <typename L, typename Sum>
__device__ __forceinline__ Slopes<typename L::Real> visit_channels(
    const typename L::Storage* value, Sum* sums, int exponent, const Corners<L>& corners,
    typename L::Offset pixel, int64_t channel, const typename L::Real (&grad)[L::kWidth],
    bool exists, bool slopes_wanted) {
  using Real = typename L::Real;
  Real dots[4] = {};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (!corners.has(corner) || !exists) continue;
    const auto at = corners.at(corner, pixel);
    if (slopes_wanted) {
      Real numbers[L::kWidth];
      to_reals(load_pixel<L>(value, at, channel), numbers);
#pragma unroll
      for (int i = 0; i < L::kWidth; ++i) dots[corner] += grad[i] * numbers[i];
    }
    if (sums) {
      const Real weight = corners.weight(corner) * corners.attention;
      Real shares[L::kWidth];
#pragma unroll
      for (int i = 0; i < L::kWidth; ++i) shares[i] = weight * grad[i];
      add(sums + static_cast<int64_t>(at / kOffsetUnit) * L::kWidth + channel, shares, exponent);
    }
  }
  const Real to_left = 1 - corners.to_right, to_top = 1 - corners.to_bottom;
  return {to_top * (to_left * dots[0] + corners.to_right * dots[1]) +
              corners.to_bottom * (to_left * dots[2] + corners.to_right * dots[3]),
          to_top * (dots[1] - dots[0]) + corners.to_bottom * (dots[3] - dots[2]),
          to_left * (dots[2] - dots[0]) + corners.to_right * (dots[3] - dots[1])};
}

template <typename L>
__device__ __forceinline__ void load_grad(const AttentionArguments<typename L::Storage>& arguments,
                                          const Row& row, int64_t channel,
                                          typename L::Real (&grad)[L::kWidth]) {
  const auto* from = arguments.grad_output + row.index * arguments.channels + channel;
  to_reals(load_pack<L::kWidth>(from), grad);
}

template <typename L>
__device__ __forceinline__ void write_slopes(
    const AttentionArguments<typename L::Storage>& arguments, const Row& row, int64_t sample,
    const Slopes<typename L::Real>& slopes, const Map<L>& map, typename L::Real attention) {
  using Storage = typename L::Storage;
  if (!row.exists || sample >= arguments.samples) return;
  const int64_t index = row.index * arguments.samples + sample;
  if (arguments.grad_locations.data) {
    write_pair<Storage>(arguments.grad_locations, index, slopes.x * attention * map.width,
                        slopes.y * attention * map.height);
  }
  if (arguments.grad_attention.data) {
    write<Storage>(arguments.grad_attention, index, slopes.attention);
  }
}

template <typename L, typename Sum>
__device__ __forceinline__ void differentiate_row(
    const AttentionArguments<typename L::Storage>& arguments,
    const ValueGradient<Sum, typename L::Real>& gradient, const Maps<L>& maps, const Row& row) {
  using Real = typename L::Real;
  using Index = typename L::Index;
  const Strides<L> strides(arguments);
  const Index samples = static_cast<Index>(arguments.samples);
  const int exponent = gradient.exponent(row.image * arguments.heads + row.head,
                                         arguments.queries * arguments.samples);
  const bool slopes_wanted = arguments.grad_locations.data || arguments.grad_attention.data;
  Real grad[L::kWidth];
  if (L::kFast) load_grad<L>(arguments, row, row.lane * L::kWidth, grad);
  for (Index base = 0; base < samples; base += L::kLanes) {
    const Located<L> located = locate_sample<L>(arguments, maps, row, base + row.lane);
    const Corners<L> own = make_corners(located, row, strides);
    Slopes<Real> result = {};
    for (int first = 0; first < L::kLanes && base + first < samples; first += L::kTogether) {
      const auto below = __shfl_sync(kWholeWarp, own.below, first, L::kLanes);
      Slopes<Real> slopes[L::kTogether] = {};
#pragma unroll
      for (int k = 0; k < L::kTogether; ++k) {
        const Corners<L> corners = own.from_lane(first + k, below);
        for (int64_t channel = row.lane * L::kWidth; channel < arguments.channels;
             channel += L::kLanes * L::kWidth) {
          if (!L::kFast) load_grad<L>(arguments, row, channel, grad);
          slopes[k] += visit_channels<L>(arguments.value, gradient.sums, exponent, corners,
                                         strides.pixel, channel, grad, row.exists, slopes_wanted);
          if (L::kFast) break;  // they are all
        }
      }
      const auto sum = sum_over_lanes<L>(slopes, row.lane);
      if (row.lane / L::kTogether == first / L::kTogether) result = sum;
    }
    write_slopes<L>(arguments, row, base + row.lane, result, located.map, own.attention);
  }
}

template <typename L, typename Sum>
__global__ void __launch_bounds__(kThreads, L::kBackwardBlocks)
    ms_deform_attn_backward_kernel(AttentionArguments<typename L::Storage> arguments,
                                   ValueGradient<Sum, typename L::Real> gradient) {
  const Maps<L> maps(arguments);
  constexpr int rows_in_block = kThreads / L::kLanes;
  const int64_t rows = arguments.images * arguments.queries * arguments.heads;
  for (int64_t first = int64_t{blockIdx.x} * rows_in_block; first < rows;
       first += int64_t{gridDim.x} * rows_in_block) {
    differentiate_row<L>(arguments, gradient, maps, find_row<L>(arguments, first));
    if (L::kFast) break;  // there is a block for every row
  }
}

// ---- backward: fixed point ------------------------------------------------------------------------

// Raises largest[2 * head] to the largest finite number of grad_output in that head of that image,
// and the one after it to the largest of attention. Block y of z takes every z-th query.
template <typename Storage>
__global__ void __launch_bounds__(kThreads)
    ms_deform_attn_largest_kernel(AttentionArguments<Storage> arguments, RealOf<Storage>* largest) {
  using Real = RealOf<Storage>;
  const int64_t heads = arguments.heads;
  for (int64_t pair = blockIdx.x; pair < arguments.images * heads; pair += gridDim.x) {
    Real grad_most = 0, attention_most = 0;
    for (int64_t query = blockIdx.y; query < arguments.queries; query += gridDim.y) {
      const int64_t row = (pair / heads * arguments.queries + query) * heads + pair % heads;
      for (int64_t i = threadIdx.x; i < arguments.channels; i += blockDim.x) {
        const Real x = fabs(to_real(arguments.grad_output[row * arguments.channels + i]));
        if (isfinite(x)) grad_most = fmax(grad_most, x);
      }
      for (int64_t i = threadIdx.x; i < arguments.samples; i += blockDim.x) {
        const Real x = fabs(read<Storage>(arguments.attention, row * arguments.samples + i));
        if (isfinite(x)) attention_most = fmax(attention_most, x);
      }
    }
    if (grad_most > 0) raise(largest + 2 * pair, grad_most);
    if (attention_most > 0) raise(largest + 2 * pair + 1, attention_most);
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
    const int exponent = gradient.exponent(head, arguments.queries * arguments.samples);
    grad_value[i] = from_real<Storage>(from_fixed<RealOf<Storage>>(gradient.sums[i], exponent));
  }
}

}  // namespace mask2former::cuda
