// The sizes of multi-scale deformable attention, without torch types.
#pragma once

#include <cstdint>
#include <vector>

namespace mask2former {

struct Level {
  int64_t start, points;
  int32_t height, width;
};

struct AttentionSizes {
  int64_t images, positions, heads, channels, queries;  // N, S, M, D, Q
  int64_t samples;                                      // K, the points of all levels
  std::vector<int64_t> points;                          // of each level
};

}  // namespace mask2former
