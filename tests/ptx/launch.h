// What csrc/runtime.h calls where CIPS3D_PTX is defined: a launch runs the PTX that nvcc made of the kernel.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "emulation/types.h"

namespace ptx {

// Adds the entries of a file, NAME.ptx of NAME.cu.
void load(const std::string& path);

// Whether any of it has matrix instructions of a warpgroup.
bool has_warpgroups();

// From now on, what every instruction has done.
void count();
// kernel, source line, opcode, runs by a warp, transfers, the least they could have been; and forgets it.
using Counted = std::tuple<std::string, std::string, std::string, uint64_t, uint64_t, uint64_t>;
std::vector<Counted> counted();

// In clusters of so many blocks.
void launch(const void* kernel, unsigned cluster, dim3 grid, dim3 block, size_t shared,
            const std::vector<unsigned char>& parameters);

// The arguments of a kernel as they lie in memory.
template <class... Arguments>
std::vector<unsigned char> packed(const Arguments&... arguments) {
  std::vector<unsigned char> bytes;
  const auto add = [&](const auto& argument) {
    const size_t alignment = alignof(std::decay_t<decltype(argument)>);
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment + sizeof argument);
    std::memcpy(bytes.data() + bytes.size() - sizeof argument, &argument, sizeof argument);
  };
  (add(arguments), ...);
  return bytes;
}

}  // namespace ptx
