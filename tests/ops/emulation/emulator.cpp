#include "emulator.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "fiber.h"
#include "shared_memory.h"

namespace emulator {

Current current;
Statistics statistics;

namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {  // SplitMix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // Shuffles what lies from `begin` on.
  template <typename T>
  void shuffle(std::vector<T>& values, size_t begin = 0) {
    for (size_t n = values.size() - begin; n > 1; --n) {
      const size_t other = ((next() >> 32) * n) >> 32;
      std::swap(values[begin + n - 1], values[begin + other]);
    }
  }

 private:
  uint64_t state_;
};

Random random_order(0);

// ---- what is said of errors ----

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

std::string text(const Call& call) {
  const std::string_view file = call.site.file_name();
  return std::string(call.name) + " (" + std::string(file.substr(file.rfind('/') + 1)) + ":" +
         std::to_string(call.site.line()) + ")";
}

std::string name_of(uint3 thread) {
  return "thread " + text(thread) + " of block " + text(current.block) + ": ";
}

bool equal(const char* a, const char* b) {
  return a == b || std::strcmp(a, b) == 0;
}

bool same_site(const Call& a, const Call& b) {
  return a.site.line() == b.site.line() && a.site.column() == b.site.column() &&
         equal(a.name, b.name) && equal(a.site.function_name(), b.site.function_name()) &&
         equal(a.site.file_name(), b.site.file_name());
}

// ---- one block ----

struct Thread {
  uint3 index;
  bool started = false, ended = false;
  const Call* waits = nullptr;
  int source = 0;
  uint64_t value = 0, result = 0;
  Votes votes{};
};

// Lanes of a warp that came to the same call.
struct Meeting {
  Call call;
  unsigned arrived;
};

struct Warp {
  unsigned lanes = 0;  // those that exist
  std::vector<Meeting> meetings;
};

class Block {
 public:
  explicit Block(const std::function<void()>& kernel);
  void run();
  Thread& meet(const Call& call, int source, uint64_t value);
  int barrier(const Call& call, bool predicate);

 private:
  struct Abandoned {};

  static void thread_main();
  void resume(int rank);
  void wait(const Call& call);
  void release(int rank) { (eager_ ? ready_ : next_).push_back(rank); }
  void released(size_t since);
  Meeting& join(Warp& warp, const Call& call);
  void conclude(Warp& warp, Meeting& meeting);
  void abandon();
  std::string deadlock() const;
  std::string whereabouts(const Thread& thread) const;

  const std::function<void()>& kernel_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<int> ready_, next_;
  bool eager_;
  std::vector<int> at_barrier_;
  std::string failure_;
  bool abandoning_ = false;
};

Block* block = nullptr;

Fiber& fiber(size_t rank, void (*body)()) {
  static std::deque<Fiber> fibers;
  while (fibers.size() <= rank) fibers.emplace_back(body, static_cast<int>(fibers.size()));
  return fibers[rank];
}

Block::Block(const std::function<void()>& kernel) : kernel_(kernel) {
  const dim3 size = current.block_size;
  for (unsigned z = 0; z < size.z; ++z) {
    for (unsigned y = 0; y < size.y; ++y) {
      for (unsigned x = 0; x < size.x; ++x) threads_.push_back({.index = {x, y, z}});
    }
  }
  const int count = static_cast<int>(threads_.size());
  warps_.resize((count + kWarp - 1) / kWarp);
  for (int rank = 0; rank < count; ++rank) {
    warps_[rank / kWarp].lanes |= 1u << rank % kWarp;
    next_.push_back(rank);
  }
  // In one half of the blocks all threads go on evenly, in the other threads run far ahead.
  eager_ = random_order.next() & 1;
}

void Block::run() {
  block = this;
  statistics.threads += threads_.size();
  while (failure_.empty() && !(ready_.empty() && next_.empty())) {
    if (ready_.empty()) {
      ready_.swap(next_);
      random_order.shuffle(ready_);
    }
    const int rank = ready_.back();
    ready_.pop_back();
    resume(rank);
  }
  if (failure_.empty()) failure_ = deadlock();
  if (failure_.empty()) return;
  abandon();
  throw std::runtime_error(failure_);
}

void Block::resume(int rank) {
  current.rank = rank;
  current.thread = threads_[rank].index;
  threads_[rank].started = true;
  fiber(rank, &Block::thread_main).resume();
}

void Block::thread_main() {
  std::string failure;
  try {
    block->kernel_();
  } catch (const Abandoned&) {
  } catch (const Failure& error) {
    failure = error.what();
  } catch (const std::exception& error) {
    failure = name_of(current.thread) + "the kernel threw: " + error.what();
  } catch (...) {
    failure = name_of(current.thread) + "the kernel threw what is no std::exception";
  }
  if (block->failure_.empty()) block->failure_ = failure;
  block->threads_[current.rank].ended = true;
}

void Block::wait(const Call& call) {
  threads_[current.rank].waits = &call;
  if (!abandoning_) Fiber::suspend();
  if (abandoning_) throw Abandoned();
  threads_[current.rank].waits = nullptr;
}

// Lets the threads that wait unwind their stacks.
void Block::abandon() {
  abandoning_ = true;
  for (size_t rank = 0; rank < threads_.size(); ++rank) {
    if (threads_[rank].started && !threads_[rank].ended) resume(static_cast<int>(rank));
  }
}

// Those that are released last run first, where they may run ahead.
void Block::released(size_t since) {
  if (eager_) random_order.shuffle(ready_, since);
}

// ---- where threads wait for each other ----

Meeting& Block::join(Warp& warp, const Call& call) {
  for (Meeting& meeting : warp.meetings) {
    if (!same_site(meeting.call, call)) continue;
    if (meeting.call.mask == call.mask) {
      if (meeting.call.width == call.width) return meeting;
      fail(text(call) + " with another width than other lanes of its mask");
    }
    if (meeting.call.mask & call.mask) fail(text(call) + " with another mask than lanes of it");
  }
  return warp.meetings.emplace_back(call, 0u);
}

Thread& Block::meet(const Call& call, int source, uint64_t value) {
  const unsigned self = 1u << current.lane();
  if (!(call.mask & self)) fail(text(call) + " with a mask that lacks the lane itself");
  Thread& thread = threads_[current.rank];
  thread.source = source;
  thread.value = value;
  Warp& warp = warps_[current.rank / kWarp];
  if (!(call.mask & warp.lanes & 1u << source)) {
    fail(text(call) + " reads from lane " + std::to_string(source) + ", which " +
         (call.mask & 1u << source ? "the block does not have" : "is not in the mask"));
  }
  Meeting& meeting = join(warp, call);
  meeting.arrived |= self;
  if (meeting.arrived == (call.mask & warp.lanes)) conclude(warp, meeting);
  wait(call);
  return thread;
}

void Block::conclude(Warp& warp, Meeting& meeting) {
  const int base = current.rank - current.lane();
  const size_t since = ready_.size();
  Votes votes{.ballot = 0, .lanes = meeting.arrived};
  for (unsigned left = meeting.arrived; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    Thread& thread = threads_[base + lane];
    thread.result = threads_[base + thread.source].value;
    if (thread.value) votes.ballot |= 1u << lane;
    release(base + lane);
  }
  for (unsigned left = meeting.arrived; left; left &= left - 1) {
    threads_[base + std::countr_zero(left)].votes = votes;
  }
  released(since);
  std::swap(meeting, warp.meetings.back());
  warp.meetings.pop_back();
}

int Block::barrier(const Call& call, bool predicate) {
  Thread& self = threads_[current.rank];
  self.value = predicate;
  if (!at_barrier_.empty()) {
    const Thread& other = threads_[at_barrier_.front()];
    if (!same_site(*other.waits, call)) {
      fail(text(call) + " while thread " + text(other.index) + " " + whereabouts(other));
    }
  }
  at_barrier_.push_back(current.rank);
  if (at_barrier_.size() == threads_.size()) {
    const size_t since = ready_.size();
    const auto true_ones =
        std::count_if(threads_.begin(), threads_.end(), [](const Thread& t) { return t.value; });
    for (Thread& thread : threads_) thread.result = true_ones;
    for (int rank : at_barrier_) release(rank);
    released(since);
    at_barrier_.clear();
  }
  wait(call);
  return static_cast<int>(self.result);
}

std::string Block::whereabouts(const Thread& thread) const {
  return thread.ended ? "has ended" : "waits in " + text(*thread.waits);
}

// What the threads wait for that can run no more; nothing if all have ended.
std::string Block::deadlock() const {
  for (size_t i = 0; i < warps_.size(); ++i) {
    for (const Meeting& meeting : warps_[i].meetings) {
      const Thread* warp = &threads_[i * kWarp];
      const int lane = std::countr_zero(meeting.call.mask & warps_[i].lanes & ~meeting.arrived);
      return name_of(warp[std::countr_zero(meeting.arrived)].index) + text(meeting.call) +
             " waits for lane " + std::to_string(lane) + " of its mask, which " +
             whereabouts(warp[lane]);
    }
  }
  if (at_barrier_.empty()) return "";
  const Thread& waiting = threads_[at_barrier_.front()];
  const auto ended =
      std::find_if(threads_.begin(), threads_.end(), [](const Thread& t) { return t.ended; });
  return name_of(waiting.index) + text(*waiting.waits) + " waits for thread " + text(ended->index) +
         ", which has ended";
}

}  // namespace

// ---- what the headers call ----

void seed(uint64_t seed) {
  random_order = Random(seed);
}

uint64_t exchange(const Call& call, int source, uint64_t value) {
  ++statistics.shuffles;
  return block->meet(call, source, value).result;
}

Votes vote(const Call& call, bool predicate) {
  return block->meet(call, current.lane(), predicate).votes;
}

int barrier(const Call& call, bool predicate) {
  return block->barrier(call, predicate);
}

void fail(const std::string& what) {
  throw Failure(name_of(current.thread) + what);
}

void check_aligned(const char* name, const void* address, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(address) % alignment == 0) return;
  fail(std::string(name) + " at an address that is no multiple of " + std::to_string(alignment));
}

void run(dim3 grid, dim3 block_size, size_t shared, const std::function<void()>& kernel) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  current = {.block_size = block_size, .grid_size = grid};
  SharedMemory memory(shared);
  std::vector<uint32_t> order(size_t{grid.x} * grid.y * grid.z);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint32_t>(i);
  random_order.shuffle(order);
  ++statistics.launches;
  for (uint32_t i : order) {
    ++statistics.blocks;
    current.block = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    memory.fill();
    Block(kernel).run();
    if (const int at = memory.written_beyond(); at >= 0) {
      throw std::runtime_error("block " + text(current.block) + ": shared memory is written at " +
                               "byte " + std::to_string(at) + ", but the launch has only " +
                               std::to_string(shared) + " bytes");
    }
  }
}

}  // namespace emulator
