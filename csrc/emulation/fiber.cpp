#include "fiber.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "sanitizers.h"

// swap_stacks(save, load) saves what the calling convention lets a function keep, changes stacks, restores. About 2 ns.
#if defined(__aarch64__)
extern "C" void cips3d_swap_stacks(void**, void*);
asm(R"(
.text
.p2align 4
.global cips3d_swap_stacks
.hidden cips3d_swap_stacks
.type cips3d_swap_stacks, %function
cips3d_swap_stacks:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
.size cips3d_swap_stacks, . - cips3d_swap_stacks
)");
#elif !defined(__x86_64__)
#error "the emulation switches stacks in the assembly of x86-64 and of AArch64"
#endif

namespace cips3d::emulation {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // pages that are never touched cost nothing
constexpr size_t kGuardBytes = 64 << 10;   // AArch64 may have pages as large as that

Fiber* left = nullptr;  // the fiber that the last switch came from

#if defined(__aarch64__)
constexpr int kSavedWords = 20, kEntry = 1;  // where swap_stacks finds what it returns to: x30
void swap_stacks(void** save, void* load) { cips3d_swap_stacks(save, load); }
#else
constexpr int kSavedWords = 8, kEntry = 6;  // six registers, the return address, and entry's own: none
__attribute__((naked, noipa)) void swap_stacks(void** /*save*/, void* /*load*/) {
  asm volatile(
      "pushq %%rbp\n pushq %%rbx\n pushq %%r12\n pushq %%r13\n pushq %%r14\n pushq %%r15\n"
      "movq %%rsp, (%%rdi)\n movq %%rsi, %%rsp\n"
      "popq %%r15\n popq %%r14\n popq %%r13\n popq %%r12\n popq %%rbx\n popq %%rbp\n ret" ::
          : "memory");
}
#endif

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
  top -= kSavedWords;
  std::fill_n(top, kSavedWords, nullptr);
  top[kEntry] = reinterpret_cast<void*>(entry);
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
