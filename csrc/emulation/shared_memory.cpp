#include "shared_memory.h"

#include <cstdint>
#include <cstring>
#include <cwchar>

#include "sanitizers.h"

namespace cips3d::emulation {
namespace {

constexpr size_t kAlignment = 128;      // of dynamic shared memory as a whole
constexpr size_t kArrayAlignment = 16;  // as kSharedAlignment of runtime.h

// What is in every four bytes: NaN in fp32, fp16 and bf16, and no integer that stands for "none", as 0 and ~0 may.
constexpr uint32_t kUnwritten = 0x7fff7fff;
static_assert(sizeof(wchar_t) == sizeof kUnwritten, "");

unsigned char unwritten(const char* at) { return reinterpret_cast<uintptr_t>(at) % 2 ? 0x7f : 0xff; }

void forget_values(char* begin, char* end) {
  for (; begin < end && reinterpret_cast<uintptr_t>(begin) % sizeof kUnwritten; begin++) *begin = unwritten(begin);
  const size_t words = (end - begin) / sizeof kUnwritten;
  std::wmemset(reinterpret_cast<wchar_t*>(begin), kUnwritten, words);
  for (begin += words * sizeof kUnwritten; begin < end; begin++) *begin = unwritten(begin);
}

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// The first byte in [begin, end) that has been written, or null.
const char* first_written(const char* begin, const char* end) {
  const auto written = [](const char* at) { return static_cast<unsigned char>(*at) != unwritten(at); };
  typedef uint32_t Words __attribute__((vector_size(32)));
  for (; begin < end && reinterpret_cast<uintptr_t>(begin) % sizeof kUnwritten; begin++)
    if (written(begin)) return begin;
  for (; end - begin >= 4 * 32; begin += 4 * 32) {
    Words w[4];
    std::memcpy(w, begin, sizeof w);
    const Words differing = (w[0] ^ kUnwritten) | (w[1] ^ kUnwritten) | (w[2] ^ kUnwritten) | (w[3] ^ kUnwritten);
    uint64_t any[4];
    std::memcpy(any, &differing, sizeof any);
    if (any[0] | any[1] | any[2] | any[3]) break;
  }
  for (; begin < end; begin++)
    if (written(begin)) return begin;
  return nullptr;
}

}  // namespace

void SharedMemory::allocate(size_t bytes) {
  memory_.reset();
  memory_.reset(new char[bytes + kAlignment]);
  const uintptr_t at = reinterpret_cast<uintptr_t>(memory_.get());
  arena_ = memory_.get() + (round_up(at, kAlignment) - at);
  arena_bytes_ = bytes;
  forget_values(arena_, arena_ + bytes);
}

void SharedMemory::start_grid(size_t bytes) {
  given_ = bytes;
  const size_t most = bytes + (kMostArrays + 1) * (kRedZone + 2 * kAlignment);
  if (most > arena_bytes_) allocate(most);
}

void SharedMemory::start_block() {
  count_ = 0, taken_ = 0;
  poison(arena_, arena_bytes_);
}

void* SharedMemory::array(size_t bytes, unsigned index, std::string* error) {
  if (index == count_) {
    if (index == kMostArrays) return *error = "shared memory: too many arrays", nullptr;
    const Array* before = index ? &arrays_[index - 1] : nullptr;
    // As far from a multiple of 128 bytes as it is on the device, so that alignment is no better here.
    const size_t end = before ? before->start + before->bytes : 0;
    const size_t start = round_up(end + kRedZone, kAlignment) + taken_ % kAlignment;
    taken_ += round_up(bytes, kArrayAlignment);
    if (taken_ > given_) {
      *error =
          "shared memory: arrays take " + std::to_string(taken_) + " bytes, the launch gave " + std::to_string(given_);
      return nullptr;
    }
    arrays_[count_++] = {start, bytes};
    unpoison(arena_ + start, bytes);
  }
  if (index > count_ || arrays_[index].bytes != bytes) {
    *error = "shared memory: threads disagree on array " + std::to_string(index);
    return nullptr;
  }
  return arena_ + arrays_[index].start;
}

std::string SharedMemory::end_block() {
  unpoison(arena_, arena_bytes_);
  if (count_ == 0) return "";
  const IgnoreAccesses ignore;
  std::string error;
  size_t end = 0;
  for (unsigned k = 0; k <= count_; k++) {
    const size_t start = k < count_ ? arrays_[k].start : end + kRedZone;
    if (const char* byte = first_written(arena_ + end, arena_ + start)) {
      const size_t at = static_cast<size_t>(byte - arena_);
      if (error.empty())
        error = k == 0 || start - at < at - end ? "shared memory: write out of bounds, " + std::to_string(start - at) +
                                                      " bytes before array " + std::to_string(k)
                                                : "shared memory: write out of bounds, " + std::to_string(at - end) +
                                                      " bytes past array " + std::to_string(k - 1);
      forget_values(arena_ + end, arena_ + start);
    }
    if (k == count_) break;
    end = start + arrays_[k].bytes;
    forget_values(arena_ + start, arena_ + end);
  }
  forget(arena_, round_up(end, kAlignment));
  return error;
}

void SharedMemory::copy_arrays(char* to) const {
  for (unsigned k = 0; k < count_; k++) std::memcpy(to + arrays_[k].start, arena_ + arrays_[k].start, arrays_[k].bytes);
}

bool SharedMemory::allows(const void* p, size_t bytes) const {
  if (!holds(p)) return true;
  const size_t at = place(p);
  for (unsigned k = 0; k < count_; k++)
    if (at >= arrays_[k].start && at + bytes <= arrays_[k].start + arrays_[k].bytes) return true;
  return false;
}

}  // namespace cips3d::emulation
