#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

constexpr size_t kStack = 256 << 10;  // only what is touched takes memory

Fiber* running = nullptr;

// The stack of the thread that resumes the fibers, as AddressSanitizer told it.
const void* caller_bottom = nullptr;
size_t caller_size = 0;

void before_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* bottom,
                   [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(save, bottom, size);
#endif
}

void after_switch([[maybe_unused]] void* saved, [[maybe_unused]] const void** bottom,
                  [[maybe_unused]] size_t* size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(saved, bottom, size);
#endif
}

char* new_stack() {
  const size_t page = sysconf(_SC_PAGESIZE);
  void* memory = mmap(nullptr, page + kStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);  // an overflow shall crash
  return static_cast<char*>(memory) + page;
}

}  // namespace

#if EMULATOR_UCONTEXT

Fiber::Fiber(void (*body)(), int) : body_(body), stack_(new_stack()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStack;
  makecontext(&context_, &Fiber::run, 0);
}

void Fiber::switch_in() {
  swapcontext(&caller_, &context_);
}
void Fiber::switch_out() {
  swapcontext(&context_, &caller_);
}

#else

// swapcontext asks the kernel for the signal mask at every switch, which takes most of its time.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, . - emulator_switch
)");

Fiber::Fiber(void (*body)(), int index) : body_(body), stack_(new_stack()) {
  // Stacks that all begin at the same offset of a page would compete for few lines of the cache.
  const size_t offset = index % 32 * 192;
  auto* top = reinterpret_cast<uint64_t*>(stack_ + kStack - offset - 64);
  *top = reinterpret_cast<uint64_t>(&Fiber::run);  // above six registers, below no return address
  context_ = top - 6;
}

void Fiber::switch_in() {
  emulator_switch(&caller_, context_);
}
void Fiber::switch_out() {
  emulator_switch(&context_, caller_);
}

#endif

void Fiber::run() {
  after_switch(nullptr, &caller_bottom, &caller_size);
  for (;;) {
    running->body_();
    suspend();
  }
}

void Fiber::resume() {
  running = this;
  void* saved = nullptr;
  before_switch(&saved, stack_, kStack);
  switch_in();
  after_switch(saved, nullptr, nullptr);
}

void Fiber::suspend() {
  Fiber* self = running;
  before_switch(&self->sanitizer_stack_, caller_bottom, caller_size);
  self->switch_out();
  after_switch(self->sanitizer_stack_, &caller_bottom, &caller_size);
}

}  // namespace emulator
