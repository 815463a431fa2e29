// What AddressSanitizer and ThreadSanitizer have to be told about fibers and shared memory; nothing without them. The
// emulation itself is never instrumented, only kernels are.
#pragma once
#include <cstddef>

#if defined(CIPS3D_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(CIPS3D_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

namespace cips3d::emulation {

#if defined(CIPS3D_ADDRESS_SANITIZER)
inline void poison(void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void unpoison(void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline void poison(void*, size_t) {}
inline void unpoison(void*, size_t) {}
#endif

#if defined(CIPS3D_THREAD_SANITIZER)
constexpr bool kThreadSanitizer = true;
// An edge of "happens before" from every release(p) to every later acquire(p).
inline void release(void* p) { __tsan_release(p); }
inline void acquire(void* p) { __tsan_acquire(p); }
// Makes memory new: nobody has used it.
void forget(void* p, size_t bytes);
// The same for the module's variables: a block's static shared arrays are not those of the block before.
void forget_static_variables();
// ThreadSanitizer sees memset, memcpy, new and others wherever they are called. Not those inside such a scope.
class IgnoreAccesses {
 public:
  IgnoreAccesses();
  ~IgnoreAccesses();
  IgnoreAccesses(const IgnoreAccesses&) = delete;
  IgnoreAccesses& operator=(const IgnoreAccesses&) = delete;
};
#else
constexpr bool kThreadSanitizer = false;
inline void release(void*) {}
inline void acquire(void*) {}
inline void forget(void*, size_t) {}
inline void forget_static_variables() {}
class IgnoreAccesses {
 public:
  IgnoreAccesses() {}
};
#endif

}  // namespace cips3d::emulation
