#include "sanitizers.h"

#if defined(CIPS3D_THREAD_SANITIZER)
#include <link.h>

#include <cstdint>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
// Meant for a managed heap: there, allocation tells ThreadSanitizer that memory begins anew.
void __tsan_java_alloc(uintptr_t address, uintptr_t bytes);
void __tsan_java_free(uintptr_t address, uintptr_t bytes);
}

namespace cips3d::emulation {
namespace {

constexpr uintptr_t kGranule = 8;  // of ThreadSanitizer's shadow memory

struct Range {
  uintptr_t begin = 0, end = 0;
};

// The writable segment of the shared object that this variable is in.
Range find_static_variables() {
  static char inside;
  Range range{reinterpret_cast<uintptr_t>(&inside), 0};
  dl_iterate_phdr(
      [](dl_phdr_info* object, size_t, void* result) {
        Range& found = *static_cast<Range*>(result);
        for (int i = 0; i < object->dlpi_phnum; i++) {
          const auto& segment = object->dlpi_phdr[i];
          const uintptr_t begin = object->dlpi_addr + segment.p_vaddr, end = begin + segment.p_memsz;
          if (segment.p_type != PT_LOAD || !(segment.p_flags & PF_W) || found.begin < begin || found.begin >= end)
            continue;
          found = {(begin + kGranule - 1) / kGranule * kGranule, end / kGranule * kGranule};
          return 1;
        }
        return 0;
      },
      &range);
  return range;
}

}  // namespace

void forget(void* p, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  __tsan_java_alloc(address, bytes);
  __tsan_java_free(address, bytes);
}

void forget_static_variables() {
  static const Range range = find_static_variables();
  forget(reinterpret_cast<void*>(range.begin), range.end - range.begin);
}

IgnoreAccesses::IgnoreAccesses() {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}

IgnoreAccesses::~IgnoreAccesses() {
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}

}  // namespace cips3d::emulation
#endif
