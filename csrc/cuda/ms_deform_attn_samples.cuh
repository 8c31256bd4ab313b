// What the kernels of multi-scale deformable attention share: how lanes share rows, and where
// samples lie.
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
// bytes of value in 32 bits; the other one goes over any number of channels, one by one.
template <typename StorageType, int Lanes, int Width>
struct Layout {
  using Storage = StorageType;
  using Real = RealOf<Storage>;
  static constexpr int kLanes = Lanes;  // of a row
  static constexpr int kWidth = Width;  // channels that a lane loads at once
  static constexpr bool kFast = Width > 1;
  static constexpr int kTogether = !kFast ? 1 : Lanes < 4 ? Lanes : 4;  // samples of one level
  // Blocks that share a multiprocessor: with more, registers would be spilled.
  static constexpr int kBlocks = kFast ? 4 : 2, kBackwardBlocks = kFast ? 3 : 2;
  using Index = std::conditional_t<kFast, int32_t, int64_t>;
  using Offset = std::conditional_t<kFast, uint32_t, int64_t>;
};

template <typename Storage>
using AnyLayout = Layout<Storage, 16, 1>;

// For heads of kChannels channels.
template <typename Storage, int kChannels>
using FastLayout =
    Layout<Storage, kChannels * sizeof(Storage) / 16, 16 / static_cast<int>(sizeof(Storage))>;

constexpr int kThreads = 256;
constexpr unsigned kWholeWarp = 0xffffffff;

// ---- rows -----------------------------------------------------------------------------------------

// One head of one query, and this lane's part in it.
struct Row {
  int64_t index, image;
  int head, lane;
  bool exists;  // else it is the last row, which another lane works on
};

template <typename L>
__device__ __forceinline__ Row find_row(const AttentionArguments<typename L::Storage>& arguments,
                                        int64_t first) {
  using Index = typename L::Index;
  const int64_t rows = arguments.images * arguments.queries * arguments.heads;
  const int64_t own = first + threadIdx.x / L::kLanes;
  const auto index = static_cast<Index>(own < rows ? own : rows - 1);
  const auto heads = static_cast<Index>(arguments.heads);
  const Index image = index / (static_cast<Index>(arguments.queries) * heads);
  return {index, image, static_cast<int>(index % heads), static_cast<int>(threadIdx.x % L::kLanes),
          own < rows};
}

// ---- samples --------------------------------------------------------------------------------------

// Offsets into value count packs of kWidth numbers, times kOffsetUnit. So in fast layouts they
// are in bytes, and in all layouts the low bits are free for flags.
constexpr int kOffsetUnit = 16;
constexpr int kFlags = kOffsetUnit - 1;

// The offsets from one head, pixel or image to the next.
template <typename L>
struct Strides {
  static_assert(!L::kFast || sizeof(Pack<typename L::Storage, L::kWidth>) == kOffsetUnit,
                "an offset of a fast layout counts bytes");
  using Offset = typename L::Offset;
  Offset head, pixel, image;

  __device__ __forceinline__ explicit Strides(
      const AttentionArguments<typename L::Storage>& arguments)
      : head(static_cast<Offset>(arguments.channels / L::kWidth * kOffsetUnit)),
        pixel(head * static_cast<Offset>(arguments.heads)),
        image(pixel * static_cast<Offset>(arguments.positions)) {}
};

// The map of a level as its samples need it. Fast layouts have one for each sample of a row, in
// shared memory; the other one makes it of the level, for any number of samples.
template <typename L>
struct Map {
  typename L::Real width, height;
  typename L::Index columns, start;

  __device__ __forceinline__ Map() : width(0), height(0), columns(0), start(0) {}
  __device__ __forceinline__ explicit Map(const DeviceLevel& level)
      : width(static_cast<typename L::Real>(level.width)),
        height(static_cast<typename L::Real>(level.height)),
        columns(level.width),
        start(static_cast<typename L::Index>(level.start)) {}
};

template <typename L>
class Maps {
 public:
  // All threads of a block come here.
  __device__ __forceinline__ explicit Maps(const AttentionArguments<typename L::Storage>& arguments)
      : count_(arguments.levels.count) {
    if constexpr (L::kFast) {
      maps_ = reinterpret_cast<Map<L>*>(shared_memory);
      for (int i = threadIdx.x; i < arguments.samples; i += blockDim.x) {
        const int level = find_level(arguments.levels, i);
        maps_[i] = Map<L>(make_level(arguments.levels, arguments.positions, level));
      }
      __syncthreads();
    } else {
      levels_ = load_levels(arguments.levels, arguments.positions,
                            reinterpret_cast<DeviceLevel*>(shared_memory));
    }
  }

  __device__ __forceinline__ Map<L> operator[](int64_t sample) const {
    if constexpr (L::kFast) {
      return maps_[sample];
    } else {
      int level = 0;
      while (level + 1 < count_ && sample >= levels_[level].end) ++level;
      return Map<L>(levels_[level]);
    }
  }

 private:
  int32_t count_;
  Map<L>* maps_;
  const DeviceLevel* levels_;
};

// A sample that this lane located; beyond the last one of a row there are some without pixels.
template <typename L>
struct Located {
  using Real = typename L::Real;
  using Offset = typename L::Offset;

  AxisPosition<Real> x, y;
  Map<L> map;
  Real attention;

  __device__ __forceinline__ bool has_pixels() const {
    return (x.has_from || x.has_next) && (y.has_from || y.has_next);
  }

  // Of a pixel of the row's head, on the map or, in numbers that wrap around, beside it.
  __device__ __forceinline__ Offset offset(const Row& row, const Strides<L>& strides,
                                           int32_t column, int32_t line) const {
    return static_cast<Offset>(row.image) * strides.image +
           static_cast<Offset>(row.head) * strides.head +
           static_cast<Offset>(map.start + map.columns * line + column) * strides.pixel;
  }

  // From a pixel to the one below it.
  __device__ __forceinline__ Offset below(const Strides<L>& strides) const {
    return static_cast<Offset>(map.columns) * strides.pixel;
  }
};

template <typename L>
__device__ __forceinline__ Located<L> locate_sample(
    const AttentionArguments<typename L::Storage>& arguments, const Maps<L>& maps, const Row& row,
    typename L::Index sample) {
  using Storage = typename L::Storage;
  using Real = typename L::Real;
  using Index = typename L::Index;
  const Index samples = static_cast<Index>(arguments.samples);
  if (sample >= samples) return {};
  const Index index = static_cast<Index>(row.index) * samples + sample;
  const auto location = read_pair<Storage>(arguments.locations, index);
  const Map<L> map = maps[sample];
  return {locate_on_axis(location.numbers[0], map.width, Real(-0.5), map.width),
          locate_on_axis(location.numbers[1], map.height, Real(-0.5), map.height), map,
          read<Storage>(arguments.attention, index)};
}

// The channels of a pixel that this lane works on, from `channel` on.
template <typename L>
__device__ __forceinline__ Pack<typename L::Storage, L::kWidth> load_pixel(
    const typename L::Storage* value, typename L::Offset offset, int64_t channel) {
  if constexpr (L::kFast) {  // an offset counts bytes
    const auto at = offset + static_cast<uint32_t>(channel * sizeof(typename L::Storage));
    const auto* bytes = reinterpret_cast<const char*>(value) + at;
    return load_pack<L::kWidth>(reinterpret_cast<const typename L::Storage*>(bytes));
  } else {
    return load_pack<L::kWidth>(value + offset / kOffsetUnit + channel);
  }
}

}  // namespace mask2former::cuda
