// Dynamic shared memory: every array with red zones around it, and filled with NaN at the start of a block.
#pragma once
#include <cstddef>
#include <memory>
#include <string>

namespace cips3d::emulation {

class SharedMemory {
 public:
  // For a launch that gives each block `bytes`.
  void start_grid(size_t bytes);
  void start_block();
  // Array `index`, or null with *error set where there is none of this size.
  void* array(size_t bytes, unsigned index, std::string* error);
  // Wipes the arrays; says what was written out of bounds, or nothing.
  std::string end_block();
  // Whether the bytes lie in one array or, as static arrays do, nowhere near any.
  bool allows(const void* p, size_t bytes) const;
  // Copies the arrays to where they are in `to`, which has size() bytes.
  void copy_arrays(char* to) const;
  size_t size() const { return arena_bytes_; }
  // Where an address of an array is in such a copy.
  size_t place(const void* p) const { return static_cast<const char*>(p) - arena_; }
  char* at(size_t place) const { return arena_ + place; }
  // Whether an address lies in it, in an array or between them.
  bool holds(const void* p) const { return place(p) < arena_bytes_; }

 private:
  static constexpr unsigned kMostArrays = 32;
  static constexpr size_t kRedZone = 8 << 10;
  struct Array {
    size_t start, bytes;  // start: in the arena
  };
  void allocate(size_t bytes);

  std::unique_ptr<char[]> memory_;
  char* arena_ = nullptr;  // aligned
  size_t arena_bytes_ = 0, given_ = 0, taken_ = 0;
  Array arrays_[kMostArrays];
  unsigned count_ = 0;
};

}  // namespace cips3d::emulation
