#pragma once

#include <cstddef>

namespace emulator {

// The dynamic shared memory of a launch. AddressSanitizer, where it is on, guards what lies beyond.
class SharedMemory {
 public:
  explicit SharedMemory(size_t size);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;

  // A new block finds NaN everywhere.
  void fill();
  // Where a kernel wrote beyond the size, or -1.
  int written_beyond() const;

 private:
  size_t size_;
};

}  // namespace emulator
