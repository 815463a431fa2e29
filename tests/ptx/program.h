// PTX as nvcc writes it, parsed into instructions that machine.cpp runs.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;
constexpr uint64_t kClusterBarrier = 1 << 16;  // the number of barrier.cluster's, beside those of bar.sync

class Warp;
struct Instruction;
struct Function;

// Runs an instruction for the lanes of a mask.
using Handler = void (*)(Warp&, const Instruction&, uint32_t lanes);

enum class Kind { kPlain, kBranch, kReturn, kBarrier, kCall, kRetry };

// A register, a constant, or an address: register plus offset.
struct Operand {
  int slot = -1;  // of the frame; -1 where `_` stands
  int64_t offset = 0;
};

// How often a warp ran it; and of memory, by how many wavefronts of shared memory or sectors of global memory, and by
// how many it could have been.
struct Counts {
  uint64_t runs, transfers, least;
};

struct Instruction {
  Kind kind = Kind::kPlain;
  Handler run = nullptr;
  std::vector<Operand> operands;          // as they are written, those in braces one after the other
  int guard = -1;                         // slot of the predicate, -1: none
  bool negated = false, negates = false;  // the guard; a predicate among the operands
  int target = 0;                         // of a branch
  int together = -1;                   // operand with the mask of lanes that execute it together, -1: each for itself
  const Function* function = nullptr;  // of a call
  int line = 0;
  std::string opcode, source;  // source: file.cu:12, or, where that was inlined, header.h:34 < file.cu:12
  mutable Counts counts = {};
};

// What the slots of a frame hold before the first instruction.
struct Preset {
  enum class Is { kConstant, kTid, kCtaid, kNtid, kNctaid, kRank, kRanks, kParameters, kShared, kLocal } is;
  int slot;
  uint64_t value;  // the constant, the axis, or the offset
};

struct Function {
  std::string name, file;  // file: the name of the source without folders and endings
  bool is_entry = false;
  std::vector<Instruction> code;
  std::vector<Preset> presets;
  std::vector<int> parameter_slots;  // of a function that is called
  size_t parameter_bytes = 0;        // of an entry
  size_t shared_bytes = 0;           // static
  size_t local_bytes = 0;            // of a thread
  int slots = 0;
};

// The entries of a file, by name. Throws std::runtime_error, with the line, where it holds something unknown.
std::map<std::string, std::unique_ptr<Function>> parse(const std::string& path);

// What runs an instruction of that name, such as "add.s32"; null where there is none.
Handler arithmetic_handler(const std::string& opcode);
Handler memory_handler(const std::string& opcode);
Handler collective_handler(const std::string& opcode);

}  // namespace ptx
