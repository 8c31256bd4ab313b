// The loops of multi-scale deformable attention, compiled once for each instruction set:
// see isa/kernels.inl.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "bilinear.inl"
#include "isa/instruction_set.h"
#include "ms_deform_attn.h"
#include "numbers.h"
#include "simd.inl"

#include "isa/begin.inl"
namespace mask2former::MASK2FORMER_SET {

MASK2FORMER_INLINE const char* bytes(const void* pointer) {
  return static_cast<const char*>(pointer);
}

// ---- samples --------------------------------------------------------------------------------------

template <typename Real>
MASK2FORMER_INLINE void set_level(const Level& level, double first_byte, int64_t byte_stride,
                                  Samples<Real>& samples, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    samples.width[i] = level.width;
    samples.height[i] = level.height;
    samples.first_byte[i] = first_byte;
    samples.row_byte_stride[i] = static_cast<double>(level.width * byte_stride);
  }
}

// The levels of all samples of a query, head by head.
template <typename Real>
MASK2FORMER_INLINE void set_levels(const AttentionProblem& problem, int64_t byte_stride,
                                   Samples<Real>& samples) {
  int64_t i = 0;
  for (int64_t head = 0; head < problem.heads; ++head) {
    for (const Level& level : problem.levels) {
      set_level(level, level.start * byte_stride, byte_stride, samples, i, i + level.points);
      i += level.points;
    }
  }
}

template <typename Real>
MASK2FORMER_INLINE void read_samples(const Numbers& locations, const Numbers& attention,
                                     int64_t index, int64_t count, Samples<Real>& samples,
                                     int64_t to) {
  const Real* from = widened(locations, 2 * index, 2 * count, samples.scratch);
  split_pairs(from, count, samples.x + to, samples.y + to);
  from = widened(attention, index, count, samples.scratch);
  for (int64_t i = 0; i < count; ++i) samples.attention[to + i] = from[i];
}

// The four corners of each sample. One without a pixel gets the offset `zero_row` and no weight.
template <typename Real>
MASK2FORMER_INLINE void find_corners(Samples<Real>& samples, int64_t count, int64_t byte_stride,
                                     int64_t zero_row, bool align_corners = false) {
  constexpr int lanes = kCellLanes;
  const double border = align_corners ? 1.0 : 0.0, shift = align_corners ? 0.0 : -0.5;
  for (int64_t i = 0; i < count; i += lanes) {
    const auto load = [i](const double* from) { return load_pack<lanes>(from + i); };
    const Doubles width = load(samples.width), height = load(samples.height);
    const auto [near, left, top, to_right, to_bottom] =
        locate(load(samples.x) * (width - border) + shift,
               load(samples.y) * (height - border) + shift, width, height);
    const Doubles attention = near ? load(samples.attention) : Doubles{};
    const Doubles row_stride = load(samples.row_byte_stride);
    const Doubles first = load(samples.first_byte) + top * row_stride + left * double(byte_stride);
    const Doubles upper = attention * (1.0 - to_bottom), lower = attention * to_bottom;
    const Masks has_left = near & (left >= 0.0), has_right = near & (left + 1.0 < width);
    const Masks has_top = top >= 0.0, has_bottom = top + 1.0 < height;
    const Masks inside[4] = {has_left & has_top, has_right & has_top, has_left & has_bottom,
                             has_right & has_bottom};
    const Doubles weight[4] = {upper * (1.0 - to_right), upper * to_right, lower * (1.0 - to_right),
                               lower * to_right};
    const Doubles offset[4] = {first, first + double(byte_stride), first + row_stride,
                               first + row_stride + double(byte_stride)};
    for (int corner = 0; corner < 4; ++corner) {
      const Masks at = inside[corner] ? to_integers<lanes>(offset[corner]) : Masks{} + zero_row;
      std::memcpy(samples.offset[corner] + i, &at, sizeof at);
      narrow_store<lanes>(samples.weight[corner] + i, inside[corner] ? weight[corner] : Doubles{});
    }
    store_pack<lanes>(samples.to_right + i, to_right);
    store_pack<lanes>(samples.to_bottom + i, to_bottom);
    store_pack<lanes>(samples.attention + i, attention);
  }
}

// ---- forward --------------------------------------------------------------------------------------

// The weighted sum of `Packs` packs of the rows at all corners, for `count` samples from `first`.
template <int Lanes, int Packs, typename Storage, typename Real, typename Output>
MASK2FORMER_INLINE void sum_rows(const char* value, const Samples<Real>& samples, int64_t first,
                                 int64_t count, Output* output) {
  Pack<Real, Lanes> upper[Packs] = {}, lower[Packs] = {};
  for (int64_t i = first; i < first + count; ++i) {
    for (int corner = 0; corner < 4; ++corner) {
      const auto* row = reinterpret_cast<const Storage*>(value + samples.offset[corner][i]);
      const Real weight = samples.weight[corner][i];
      auto& sums = corner < 2 ? upper : lower;  // shorter chains of dependent additions
      for (int pack = 0; pack < Packs; ++pack) {
        sums[pack] += weight * load_pack<Lanes>(row + pack * Lanes);
      }
    }
  }
  for (int pack = 0; pack < Packs; ++pack) {
    store_pack<Lanes>(output + pack * Lanes, upper[pack] + lower[pack]);
  }
}

// Outputs of the (image, query) pairs [begin, end). `zeros` stands for the pixel that is not there:
// one row of all heads' channels.
template <typename Storage>
void forward(const AttentionProblem& problem, const AttentionData<Storage>& data,
             const Storage* zeros, Samples<RealOf<Storage>>& samples, int64_t begin, int64_t end) {
  const int64_t heads = problem.heads, channels = problem.channels, points = problem.samples;
  const int64_t byte_stride = heads * channels * sizeof(Storage);
  set_levels(problem, byte_stride, samples);
  with_lanes<RealOf<Storage>>(channels, [&](auto lanes) {
    for (int64_t query = begin; query < end; ++query) {
      const char* image =
          bytes(data.value) + query / problem.queries * problem.positions * byte_stride;
      read_samples(data.locations, data.attention, query * heads * points, heads * points, samples,
                   0);
      find_corners(samples, heads * points, byte_stride, bytes(zeros) - image);
      for (int64_t head = 0; head < heads; ++head) {
        const char* value = image + head * channels * sizeof(Storage);
        Storage* output = data.output + (query * heads + head) * channels;
        for_packs<lanes.value>(channels, [&](auto packs, int64_t channel, int overlap) {
          sum_rows<lanes.value, packs.value, Storage>(value + channel * sizeof(Storage), samples,
                                                      head * points, points, output + channel);
        });
      }
    }
  });
}

// ---- backward: locations and attention ------------------------------------------------------------

// Adds to `dot` the products of each corner's row with grad_output's row, over `Packs` packs.
template <int Lanes, int Packs, typename Storage, typename Grad, typename Real>
MASK2FORMER_INLINE void multiply_rows(const char* value, const Grad* grad, int overlap,
                                      Samples<Real>& samples, int64_t first, int64_t count) {
  Pack<Real, Lanes> grads[Packs];
  load_rest<Lanes, Packs, Grad, Real>(grad, overlap, grads);
  for (int64_t i = first; i < first + count; ++i) {
    Pack<Real, Lanes> products[4] = {};
    for (int corner = 0; corner < 4; ++corner) {
      const auto* row = reinterpret_cast<const Storage*>(value + samples.offset[corner][i]);
      for (int pack = 0; pack < Packs; ++pack) {
        products[corner] += load_pack<Lanes>(row + pack * Lanes) * grads[pack];
      }
    }
    const Pack<Real, 4> sums = sum_lanes<Real, Lanes>(products);
    for (int corner = 0; corner < 4; ++corner) samples.dot[corner][i] += sums[corner];
  }
}

// Gradients of all samples of a query from the products, left in x, y and attention.
template <typename Real>
MASK2FORMER_INLINE void finish_samples(Samples<Real>& samples, int64_t count, int64_t zero_row,
                                       bool align_corners = false) {
  constexpr int lanes = kCellLanes;
  const double border = align_corners ? 1.0 : 0.0;
  for (int64_t i = 0; i < count; i += lanes) {
    Doubles dot[4];
    for (int corner = 0; corner < 4; ++corner) {
      const auto at = load_bits<lanes, int64_t>(samples.offset[corner] + i);
      dot[corner] = at == zero_row ? Doubles{} : widen_load<lanes>(samples.dot[corner] + i);
    }
    const auto load = [i](const double* from) { return load_pack<lanes>(from + i); };
    const Doubles to_right = load(samples.to_right), to_bottom = load(samples.to_bottom);
    const Doubles to_left = 1.0 - to_right, to_top = 1.0 - to_bottom;
    const Doubles attention = load(samples.attention);
    const Doubles grad_attention = to_top * (to_left * dot[0] + to_right * dot[1]) +
                                   to_bottom * (to_left * dot[2] + to_right * dot[3]);
    const Doubles slope_x = to_top * (dot[1] - dot[0]) + to_bottom * (dot[3] - dot[2]);
    const Doubles slope_y = to_left * (dot[2] - dot[0]) + to_right * (dot[3] - dot[1]);
    store_pack<lanes>(samples.x + i, slope_x * attention * (load(samples.width) - border));
    store_pack<lanes>(samples.y + i, slope_y * attention * (load(samples.height) - border));
    store_pack<lanes>(samples.attention + i, grad_attention);
  }
}

template <typename Real>
MASK2FORMER_INLINE void write_gradients(Samples<Real>& samples, int64_t index, int64_t count,
                                        const Numbers& locations, const Numbers& attention) {
  if (locations.data) {
    for (int64_t i = 0; i < count; ++i) {
      samples.scratch[2 * i] = static_cast<Real>(samples.x[i]);
      samples.scratch[2 * i + 1] = static_cast<Real>(samples.y[i]);
    }
    write(locations, 2 * index, 2 * count, samples.scratch);
  }
  if (attention.data) {
    for (int64_t i = 0; i < count; ++i) {
      samples.scratch[i] = static_cast<Real>(samples.attention[i]);
    }
    write(attention, index, count, samples.scratch);
  }
}

// Gradients of locations and attention for the (image, query) pairs [begin, end).
template <typename Storage>
void backward_samples(const AttentionProblem& problem, const AttentionData<Storage>& data,
                      const Storage* zeros, Samples<RealOf<Storage>>& samples, int64_t begin,
                      int64_t end) {
  const int64_t heads = problem.heads, channels = problem.channels, points = problem.samples;
  const int64_t byte_stride = heads * channels * sizeof(Storage), count = heads * points;
  set_levels(problem, byte_stride, samples);
  with_lanes<RealOf<Storage>>(channels, [&](auto lanes) {
    for (int64_t query = begin; query < end; ++query) {
      const char* image =
          bytes(data.value) + query / problem.queries * problem.positions * byte_stride;
      const int64_t zero_row = bytes(zeros) - image;
      read_samples(data.locations, data.attention, query * count, count, samples, 0);
      find_corners(samples, count, byte_stride, zero_row);
      for (int corner = 0; corner < 4; ++corner) {
        std::memset(samples.dot[corner], 0, count * sizeof(RealOf<Storage>));
      }
      for (int64_t head = 0; head < heads; ++head) {
        const char* value = image + head * channels * sizeof(Storage);
        const Storage* grad = data.grad_output + (query * heads + head) * channels;
        for_packs<lanes.value>(channels, [&](auto packs, int64_t channel, int overlap) {
          multiply_rows<lanes.value, packs.value, Storage>(value + channel * sizeof(Storage),
                                                           grad + channel, overlap, samples,
                                                           head * points, points);
        });
      }
      finish_samples(samples, count, zero_row);
      write_gradients(samples, query * count, count, data.grad_locations, data.grad_attention);
    }
  });
}

// ---- backward: value ------------------------------------------------------------------------------

// Adds grad_output's row, `Packs` packs of it, to the buffer's rows at all corners.
template <int Lanes, int Packs, typename Storage, typename Real>
MASK2FORMER_INLINE void add_rows(char* buffer, const Storage* grad, int overlap,
                                 const Samples<Real>& samples, int64_t first, int64_t count,
                                 int64_t no_row) {
  Pack<Real, Lanes> grads[Packs];
  load_rest<Lanes, Packs, Storage, Real>(grad, overlap, grads);
  // Copied, because for all that the compiler knows the stores below might change the pointers.
  const int64_t* const offsets[] = {samples.offset[0], samples.offset[1], samples.offset[2],
                                    samples.offset[3]};
  const Real* const weights[] = {samples.weight[0], samples.weight[1], samples.weight[2],
                                 samples.weight[3]};
  for (int64_t i = first; i < first + count; ++i) {
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t offset = offsets[corner][i];
      if (offset == no_row) continue;
      auto* row = reinterpret_cast<Real*>(buffer + offset);
      const Real weight = weights[corner][i];
      for (int pack = 0; pack < Packs; ++pack) {
        store_pack<Lanes>(row + pack * Lanes,
                          load_pack<Lanes>(row + pack * Lanes) + weight * grads[pack]);
      }
    }
  }
}

// Corners outside of the first `size` bytes of the buffer get the offset `no_row`.
template <typename Real>
MASK2FORMER_INLINE void confine_corners(Samples<Real>& samples, int64_t count, int64_t size,
                                        int64_t no_row) {
  for (int corner = 0; corner < 4; ++corner) {
    int64_t* offset = samples.offset[corner];
    for (int64_t i = 0; i < count; ++i) {
      offset[i] =
          static_cast<uint64_t>(offset[i]) < static_cast<uint64_t>(size) ? offset[i] : no_row;
    }
  }
}

// Adds `count` queries from `begin` on to the rows of a band, which lie `byte_stride` apart.
template <int Lanes, typename Storage, typename Real>
MASK2FORMER_INLINE void add_queries(const AttentionProblem& problem,
                                    const AttentionData<Storage>& data, const Band& band,
                                    Samples<Real>& samples, int64_t begin, int64_t count,
                                    char* rows, int64_t byte_stride) {
  constexpr int64_t no_row = -1;
  const int64_t points = problem.levels[band.level].points, heads = problem.heads;
  const auto row_of = [&](int64_t i) {
    return (band.image * problem.queries + begin + i) * heads + band.head;
  };
  const auto sample_of = [&](int64_t i) { return row_of(i) * problem.samples + band.first_point; };
  for (int64_t i = 0; i < count; ++i) {
    read_samples(data.locations, data.attention, sample_of(i), points, samples, i * points);
  }
  find_corners(samples, count * points, byte_stride, no_row);
  confine_corners(samples, count * points, (band.end - band.begin) * byte_stride, no_row);
  for (int64_t i = 0; i < count; ++i) {
    // Of the next block. One head's rows are too far apart for the CPU to foresee.
    const Storage* ahead = data.grad_output + row_of(i + count) * problem.channels;
    __builtin_prefetch(ahead);
    __builtin_prefetch(ahead + 64 / sizeof(Storage));
    prefetch(data.locations, 2 * sample_of(i + count));
    prefetch(data.attention, sample_of(i + count));
    const Storage* grad = data.grad_output + row_of(i) * problem.channels;
    for_packs<Lanes>(problem.channels, [&](auto packs, int64_t channel, int overlap) {
      add_rows<Lanes, packs.value>(rows + channel * sizeof(Real), grad + channel, overlap, samples,
                                   i * points, points, no_row);
    });
  }
}

// Gradients of value in one band. They are summed up in `buffer`, where neighbouring positions
// share cache lines and half storage is rounded once, but in place if few samples would not repay
// the copy. The sums have one order, however the positions are cut into bands.
template <typename Storage>
void backward_value(const AttentionProblem& problem, const AttentionData<Storage>& data,
                    const Band& band, Samples<RealOf<Storage>>& samples, int64_t capacity,
                    RealOf<Storage>* buffer) {
  using Real = RealOf<Storage>;
  const int64_t row_bytes = problem.channels * sizeof(Real), positions = band.end - band.begin;
  const Level& level = problem.levels[band.level];
  Storage* grad_value =
      data.grad_value +
      ((band.image * problem.positions + level.start + band.begin) * problem.heads + band.head) *
          problem.channels;
  const bool in_place = std::is_same_v<Storage, Real> &&
                        4 * problem.queries * level.points < int64_t{level.height} * level.width;
  char* rows = in_place ? reinterpret_cast<char*>(grad_value) : reinterpret_cast<char*>(buffer);
  const int64_t byte_stride = in_place ? problem.heads * row_bytes : row_bytes;
  for (int64_t i = 0; i < positions; ++i) std::memset(rows + i * byte_stride, 0, row_bytes);
  set_level(level, -band.begin * byte_stride, byte_stride, samples, 0, capacity);
  const int64_t step = capacity / std::max<int64_t>(1, level.points);
  with_lanes<Real>(problem.channels, [&](auto lanes) {
    for (int64_t begin = 0; begin < problem.queries && level.points; begin += step) {
      add_queries<lanes.value>(problem, data, band, samples, begin,
                               std::min(step, problem.queries - begin), rows, byte_stride);
    }
  });
  for (int64_t i = 0; i < positions && !in_place; ++i) {
    convert(buffer + i * problem.channels, problem.channels,
            grad_value + i * problem.heads * problem.channels);
  }
}

template <typename Storage>
AttentionKernels<Storage> attention_kernels(Set) {
  return {&forward<Storage>, &backward_samples<Storage>, &backward_value<Storage>};
}

template AttentionKernels<double> attention_kernels(Set);
template AttentionKernels<float> attention_kernels(Set);
template AttentionKernels<Half> attention_kernels(Set);
template AttentionKernels<BFloat16> attention_kernels(Set);

}  // namespace mask2former::MASK2FORMER_SET
#include "isa/end.inl"
