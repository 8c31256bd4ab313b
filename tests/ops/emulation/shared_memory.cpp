#include "shared_memory.h"

#include <algorithm>
#include <cstring>

#include "emulator.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace mask2former {
// Under the name that the kernels give it.
alignas(128) uint4 shared_memory[emulator::kSharedMemory / sizeof(uint4)];
}  // namespace mask2former

namespace emulator {
namespace {

unsigned char* const begin = reinterpret_cast<unsigned char*>(mask2former::shared_memory);
unsigned char* const end = begin + kSharedMemory;

}  // namespace

bool is_shared(const void* address) {
  const auto* byte = static_cast<const unsigned char*>(address);
  return byte >= begin && byte < end;
}

void SharedMemory::fill() {
  std::memset(begin, 0xff, size_);
}

#ifdef __SANITIZE_ADDRESS__

SharedMemory::SharedMemory(size_t size) : size_(size) {
  __asan_poison_memory_region(begin + size, kSharedMemory - size);
}

SharedMemory::~SharedMemory() {
  __asan_unpoison_memory_region(begin, kSharedMemory);
}

int SharedMemory::written_beyond() const {
  return -1;
}

#else

constexpr unsigned char kCanary = 0xa5;

SharedMemory::SharedMemory(size_t size) : size_(size) {
  std::memset(begin + size, kCanary, kSharedMemory - size);
}

SharedMemory::~SharedMemory() = default;

int SharedMemory::written_beyond() const {
  const unsigned char* from = begin + size_;
  // Much faster than a loop: the first byte is right, and every one is as the one before.
  if (from == end || (*from == kCanary && !std::memcmp(from, from + 1, end - from - 1))) return -1;
  const auto* hit = std::find_if(from, static_cast<const unsigned char*>(end),
                                 [](unsigned char byte) { return byte != kCanary; });
  return static_cast<int>(hit - begin);
}

#endif

}  // namespace emulator
