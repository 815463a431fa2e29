#include "fiber.h"

#include <sys/mman.h>

#include <new>

#include "sanitizers.h"

#if !defined(__x86_64__)
#error "the emulation switches stacks in x86-64 assembly"
#endif

namespace cips3d::emulation {
namespace {

constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 4096;  // pages that are never touched cost nothing

Fiber* left = nullptr;  // the fiber that the last switch came from

// Saves what the calling convention lets a function keep, changes stacks, restores. About 2 ns.
__attribute__((naked, noipa)) void swap_stacks(void** /*save*/, void* /*load*/) {
  asm volatile(
      "pushq %%rbp\n pushq %%rbx\n pushq %%r12\n pushq %%r13\n pushq %%r14\n pushq %%r15\n"
      "movq %%rsp, (%%rdi)\n movq %%rsi, %%rsp\n"
      "popq %%r15\n popq %%r14\n popq %%r13\n popq %%r12\n popq %%rbx\n popq %%rbp\n ret" ::
          : "memory");
}

char* new_stack() {
  void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kGuardBytes, PROT_NONE);  // an overflow faults
  return static_cast<char*>(memory) + kGuardBytes;
}

}  // namespace

Fiber::~Fiber() {
  if (owns_stack_) munmap(stack_ - kGuardBytes, kStackBytes + kGuardBytes);
}

void Fiber::reset(void (*entry)(), unsigned index) {
  if (!owns_stack_) stack_ = new_stack(), bottom_ = stack_, size_ = kStackBytes, owns_stack_ = true;
  unpoison(stack_, size_);
  fake_stack_ = nullptr;
#if defined(CIPS3D_THREAD_SANITIZER)
  if (thread_) __tsan_destroy_fiber(thread_);
  thread_ = __tsan_create_fiber(0);
#endif
  constexpr size_t kLine = 64, kLines = 64, kStride = 5;
  void** top = reinterpret_cast<void**>(stack_ + size_ - (1 + index * kStride % kLines) * kLine);
  *--top = nullptr;  // entry's return address: none
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  stack_pointer_ = top;
}

void Fiber::adopt_running() {
#if defined(CIPS3D_THREAD_SANITIZER)
  thread_ = __tsan_get_current_fiber();
#endif
}

void Fiber::switch_to(Fiber& next) {
  left = this;
#if defined(CIPS3D_ADDRESS_SANITIZER)
  __sanitizer_start_switch_fiber(&fake_stack_, next.bottom_, next.size_);
#endif
#if defined(CIPS3D_THREAD_SANITIZER)
  __tsan_switch_to_fiber(next.thread_, __tsan_switch_to_fiber_no_sync);
#endif
  swap_stacks(&stack_pointer_, next.stack_pointer_);
#if defined(CIPS3D_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(fake_stack_, &left->bottom_, &left->size_);
#endif
}

void Fiber::entered() {
#if defined(CIPS3D_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(nullptr, &left->bottom_, &left->size_);
#endif
}

void Fiber::order_before([[maybe_unused]] Fiber& running) {
#if defined(CIPS3D_THREAD_SANITIZER)
  __tsan_switch_to_fiber(thread_, __tsan_switch_to_fiber_no_sync);
  __tsan_switch_to_fiber(running.thread_, 0);
#endif
}

}  // namespace cips3d::emulation
