#pragma once

#include <cstddef>

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT 0
#elif !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT 1
#endif

#if EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace emulator {

// A stack on which `body` runs, from its start again after it returned. It lives as long as the
// process, so that no launch has to wait for new ones.
class Fiber {
 public:
  Fiber(void (*body)(), int index);
  Fiber(const Fiber&) = delete;

  // Runs the fiber until it suspends itself or its body returns.
  void resume();
  static void suspend();

 private:
  [[noreturn]] static void run();
  void switch_in();
  void switch_out();

  void (*body_)();
  char* stack_;
#if EMULATOR_UCONTEXT
  ucontext_t context_, caller_;
#else
  void* context_;
  void* caller_;
#endif
  void* sanitizer_stack_ = nullptr;
};

}  // namespace emulator
