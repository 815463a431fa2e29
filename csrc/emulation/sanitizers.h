// What AddressSanitizer and ThreadSanitizer have to be told about fibers and shared memory; nothing without them.
#pragma once
#include <cstddef>

#if defined(CIPS3D_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(CIPS3D_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void __tsan_write_range(void* address, unsigned long size);
}
#endif

namespace cips3d::emulation {

#if defined(CIPS3D_ADDRESS_SANITIZER)
inline void poison(void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void unpoison(void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline void poison(void*, size_t) {}
inline void unpoison(void*, size_t) {}
#endif

// An edge of "happens before" from every release(p) to every later acquire(p).
#if defined(CIPS3D_THREAD_SANITIZER)
constexpr bool kThreadSanitizer = true;
inline void release(void* p) { __tsan_release(p); }
inline void acquire(void* p) { __tsan_acquire(p); }
class IgnoreAccesses {  // memset, new and others are seen by ThreadSanitizer wherever they are called
 public:
  IgnoreAccesses() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__), AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~IgnoreAccesses() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__), AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
  IgnoreAccesses(const IgnoreAccesses&) = delete;
  IgnoreAccesses& operator=(const IgnoreAccesses&) = delete;
};
#else
constexpr bool kThreadSanitizer = false;
inline void release(void*) {}
inline void acquire(void*) {}
class IgnoreAccesses {
 public:
  IgnoreAccesses() {}
};
#endif

}  // namespace cips3d::emulation
