// What the emulated CUDA headers need of the emulator: blocks run one after another, the threads of
// a block in turn, each until it waits for others. Only one runs at any time. Every error is a
// std::runtime_error out of the launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

#include "include/vector_types.h"

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kSharedMemory = 227 << 10;

// The thread that runs.
struct Current {
  uint3 thread{}, block{};
  dim3 block_size, grid_size;
  int rank = 0;  // of the thread in its block
  int lane() const { return rank % kWarp; }
};
extern Current current;

struct Statistics {
  uint64_t launches = 0, blocks = 0, threads = 0, shuffles = 0;
};
extern Statistics statistics;

// The order of blocks and threads follows from the seed and the launches since.
void seed(uint64_t seed);

// A call in which threads wait for each other.
struct Call {
  const char* name;
  std::source_location site;
  unsigned mask = ~0u;
  int width = kWarp;
};

// The value that the lane `source` brought. All lanes of the mask must come.
uint64_t exchange(const Call& call, int source, uint64_t value);
// The lanes whose predicate is true, and how many came in all.
struct Votes {
  unsigned ballot, lanes;
};
Votes vote(const Call& call, bool predicate);
// How many threads of the block brought a true predicate.
int barrier(const Call& call, bool predicate);

[[noreturn]] void fail(const std::string& what);
void check_aligned(const char* name, const void* address, size_t alignment);
bool is_shared(const void* address);

void run(dim3 grid, dim3 block, size_t shared, const std::function<void()>& kernel);

}  // namespace emulator
