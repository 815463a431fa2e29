// Stacks that take turns on one thread of the operating system.
#pragma once
#include <cstddef>

namespace cips3d::emulation {

class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next switch to it call entry() on an empty stack of its own. `index` staggers stacks, so that their tops
  // do not all fall into the same set of the cache.
  void reset(void (*entry)(), unsigned index);
  // Makes it stand for the stack that runs now.
  void adopt_running();
  void switch_to(Fiber& next);
  // To be called first on a new stack.
  static void entered();
  // Orders, for ThreadSanitizer, what this fiber did before what `running` does next.
  void order_before(Fiber& running);

 private:
  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;
  const void* bottom_ = nullptr;  // of the stack, for AddressSanitizer
  size_t size_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* thread_ = nullptr;      // ThreadSanitizer's
  bool owns_stack_ = false;
};

}  // namespace cips3d::emulation
