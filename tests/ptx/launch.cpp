// Launches of the host code, compiled by a C++ compiler, of kernels that nvcc has compiled to PTX.
#include "ptx/launch.h"

#include <dlfcn.h>
#include <elf.h>

#include <cctype>
#include <fstream>
#include <mutex>
#include <stdexcept>

#include "emulation/engine.h"
#include "machine.h"

namespace ptx {
namespace {

std::map<std::string, std::map<std::string, std::unique_ptr<Function>>> functions_of_file;

// Names by address of the local and global functions of this library, each with the source file it was compiled from.
struct Symbol {
  std::string file, name;
};
std::map<uint64_t, Symbol> read_symbols(const std::string& library) {
  std::ifstream stream(library, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(stream)), {});
  const auto at = [&](size_t offset) { return bytes.data() + offset; };
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(at(0));
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(at(header->e_shoff));
  std::map<uint64_t, Symbol> symbols;
  for (int s = 0; s < header->e_shnum; s++) {
    if (sections[s].sh_type != SHT_SYMTAB) continue;
    const char* names = at(sections[sections[s].sh_link].sh_offset);
    const auto* first = reinterpret_cast<const Elf64_Sym*>(at(sections[s].sh_offset));
    std::string file;
    for (size_t i = 0; i < sections[s].sh_size / sizeof(Elf64_Sym); i++) {
      const int type = ELF64_ST_TYPE(first[i].st_info);
      if (type == STT_FILE) file = names + first[i].st_name;
      if (ELF64_ST_BIND(first[i].st_info) != STB_LOCAL) file.clear();
      if (type == STT_FUNC) symbols[first[i].st_value] = {file.substr(0, file.find('.')), names + first[i].st_name};
    }
  }
  return symbols;
}

// nvcc gives a file's anonymous namespace a name of its own, 46_GLOBAL__N__79a4370e_13_pack_field_cu_94c59a18.
std::string without_file(const std::string& name) {
  const std::string mark = "_GLOBAL__N__";
  std::string result;
  for (size_t i = 0; i < name.size();) {
    size_t digits = i;
    while (digits < name.size() && std::isdigit(static_cast<unsigned char>(name[digits]))) digits++;
    if (digits > i && name.compare(digits, mark.size(), mark) == 0) {
      result += "12_GLOBAL__N_1";
      i = digits + std::stoul(name.substr(i, digits - i));
    } else {
      const size_t end = std::max(digits, i + 1);
      result += name.substr(i, end - i);
      i = end;
    }
  }
  return result;
}

const Function& function_at(const void* kernel) {
  static std::map<const void*, const Function*> known;
  const auto found = known.find(kernel);
  if (found != known.end()) return *found->second;
  Dl_info library;
  if (dladdr(kernel, &library) == 0) throw std::runtime_error("a kernel of no library");
  static const auto symbols = read_symbols(library.dli_fname);
  const Symbol symbol = symbols.at(reinterpret_cast<uint64_t>(kernel) - reinterpret_cast<uint64_t>(library.dli_fbase));
  for (const auto& [file, functions] : functions_of_file)
    for (const auto& [name, function] : functions)
      if (function->is_entry && without_file(name) == symbol.name && (symbol.file.empty() || symbol.file == file))
        return *(known[kernel] = function.get());
  throw std::runtime_error("no PTX of " + symbol.file + ": " + symbol.name);
}

}  // namespace

void load(const std::string& path) {
  const std::string file = path.substr(path.find_last_of('/') + 1);
  functions_of_file[file.substr(0, file.find('.'))] = parse(path);
}

bool has_warpgroups() {
  for (const auto& [file, functions] : functions_of_file)
    for (const auto& [name, function] : functions)
      for (const Instruction& i : function->code)
        if (i.opcode.rfind("wgmma.", 0) == 0) return true;
  return false;
}

void count() { counting = true; }

std::vector<Counted> counted() {
  std::vector<Counted> all;
  for (const auto& [file, functions] : functions_of_file)
    for (const auto& [name, function] : functions)
      for (const Instruction& i : function->code) {
        if (i.counts.runs > 0)
          all.emplace_back(without_file(name), i.source, i.opcode, i.counts.runs, i.counts.transfers, i.counts.least);
        i.counts = {};
      }
  return all;
}

void launch(const void* kernel, unsigned cluster, dim3 grid, dim3 block, size_t shared,
            const std::vector<unsigned char>& parameters) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const Function& function = function_at(kernel);
  if (parameters.size() != function.parameter_bytes)
    throw std::runtime_error(function.name + " takes " + std::to_string(function.parameter_bytes) + " bytes, not " +
                             std::to_string(parameters.size()));
  if (shared > cips3d::emulation::shared_limit())
    throw std::runtime_error(function.name + ": " + std::to_string(shared) + " bytes of shared memory");
  if (grid.x % cluster != 0) throw std::runtime_error(function.name + ": a grid that is not made of clusters");
  Launch of = {function, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared, parameters.data(), {}};
  std::mt19937 random(static_cast<unsigned>(cips3d::emulation::schedule()));
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x += cluster) Cluster(of, cluster, {x, y, z}, random).run();
}

}  // namespace ptx
