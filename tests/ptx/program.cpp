#include "program.h"

#include <cctype>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace ptx {
namespace {

[[noreturn]] void fail(const std::string& file, int line, const std::string& what) {
  throw std::runtime_error(file + ".ptx:" + std::to_string(line) + ": " + what);
}

struct Token {
  std::string text;
  int line;
};

// Names with dots and colons, numbers and signs are one token; anything else is one character.
std::vector<Token> tokens_of(const std::string& text) {
  const auto of_name = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || std::strchr("_.$%:@!", c); };
  std::vector<Token> tokens;
  int line = 1;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '\n') line++;
    if (std::isspace(static_cast<unsigned char>(c))) {
      i++;
    } else if (text.compare(i, 2, "//") == 0) {
      i = std::min(text.find('\n', i), text.size());
    } else if (c == '"') {
      const size_t end = text.find('"', i + 1) + 1;
      tokens.push_back({text.substr(i, end - i), line});
      i = end;
    } else {
      size_t end = i;
      while (end < text.size() && of_name(text[end])) end++;
      if (end == i && c == '-') {
        end++;
        while (end < text.size() && of_name(text[end])) end++;
      }
      if (end == i) end++;
      tokens.push_back({text.substr(i, end - i), line});
      i = end;
    }
  }
  return tokens;
}

int bytes_of_type(const std::string& type) { return type == ".pred" ? 1 : std::stoi(type.substr(2)) / 8; }

class Parser {
 public:
  Parser(std::string file, const std::string& text) : file_(std::move(file)), tokens_(tokens_of(text)) {}

  std::map<std::string, std::unique_ptr<Function>> parse() {
    try {
      parse_module();
    } catch (const std::logic_error&) {  // of std::stoi and its like
      error("a number was expected");
    }
    for (auto& [name, function] : functions_)
      for (Instruction& instruction : function->code) instruction.source = source_of(instruction.source);
    return std::move(functions_);
  }

 private:
  void parse_module() {
    while (at_ < tokens_.size()) {
      const std::string word = next();
      if (word == ".entry" || word == ".func") {
        parse_function(word == ".entry");
      } else if (word == ".extern") {  // dynamic shared memory
        std::string name;
        for (std::string part = next(); part != ";"; part = next())
          if (std::isalpha(static_cast<unsigned char>(part[0])) || part[0] == '_') name = part;
        dynamic_shared_ = name;
      } else if (word == ".file") {  // .file 1 "/folder/name"
        const int number = std::stoi(next());
        const std::string path = next();
        sources_[number] = path.substr(path.find_last_of('/') + 1, path.size() - path.find_last_of('/') - 2);
      } else if (word == ".global" || word == ".const" || word == ".shared") {
        error("a variable of the module, " + peek());
      }  // versions, targets and sizes of addresses are passed over
    }
  }

  // Files are named behind the code.
  std::string source_of(const std::string& location) {
    std::string result;
    std::stringstream places(location);
    for (std::string place; places >> place;) {
      const size_t colon = place.find(':');
      result += (result.empty() ? "" : " < ") + sources_[std::stoi(place.substr(0, colon))] + place.substr(colon);
    }
    return result;
  }

  [[noreturn]] void error(const std::string& what) { fail(file_, at_ > 0 ? tokens_[at_ - 1].line : 0, what); }
  std::string peek(size_t ahead = 0) { return at_ + ahead < tokens_.size() ? tokens_[at_ + ahead].text : ""; }
  std::string next() {
    if (at_ == tokens_.size()) error("ends too early");
    return tokens_[at_++].text;
  }
  void expect(const char* text) {
    if (next() != text) error(std::string(text) + " is missing");
  }

  void parse_function(bool is_entry) {
    const std::string name = next();
    auto& known = functions_[name];
    if (!known) known = std::make_unique<Function>();
    function_ = known.get();
    *function_ = {};
    function_->name = name, function_->file = file_, function_->is_entry = is_entry;
    scopes_.assign(1, {});
    labels_.clear(), jumps_.clear(), constants_.clear(), location_.clear();
    if (peek() == "(") parse_parameters();
    while (peek() != "{" && peek() != ";") next();  // limits of threads and registers
    if (next() == ";") return;                      // declared only
    for (;;) {
      const std::string word = peek();
      if (word == "{") {
        next(), scopes_.emplace_back();
      } else if (word == "}") {
        next();
        if (scopes_.size() == 1) break;
        scopes_.pop_back();
      } else if (word == ".reg") {
        parse_registers();
      } else if (word == ".param") {  // of a call
        next();
        next();
        declare(next());
        expect(";");
      } else if (word == ".shared" || word == ".local") {
        parse_variable(word == ".shared" ? function_->shared_bytes : function_->local_bytes,
                       word == ".shared" ? Preset::Is::kShared : Preset::Is::kLocal);
      } else if (word == ".loc") {
        parse_location();
      } else if (word == ".pragma") {
        while (next() != ";") {
        }
      } else if (word.back() == ':') {
        labels_[next().substr(0, word.size() - 1)] = static_cast<int>(function_->code.size());
      } else {
        parse_instruction();
      }
    }
    for (const auto& [index, label] : jumps_) {
      if (!labels_.count(label)) error("no label " + label);
      function_->code[index].target = labels_[label];
    }
    if (function_->code.empty() || function_->code.back().kind != Kind::kReturn) {
      function_->code.emplace_back();
      function_->code.back().kind = Kind::kReturn;
    }
  }

  // Of an entry they lie in memory, one behind the other; of a function each is a register.
  void parse_parameters() {
    next();
    for (std::string word = next(); word != ")"; word = next()) {
      if (word != ".param") continue;
      size_t alignment = 0, bytes = 0;
      word = next();
      if (word == ".align") alignment = std::stoul(next()), word = next();
      bytes = bytes_of_type(word);
      std::string name = next();
      if (name == ".ptr") {  // of something aligned to so much
        while (name[0] == '.') name = next();
        if (std::isdigit(static_cast<unsigned char>(name[0]))) name = next();
      }
      if (peek() == "[") next(), bytes *= std::stoul(next()), expect("]");
      if (alignment == 0) alignment = bytes;
      if (function_->is_entry) {
        size_t& end = function_->parameter_bytes;
        end = (end + alignment - 1) / alignment * alignment;
        function_->presets.push_back({Preset::Is::kParameters, declare(name), end});
        end += bytes;
      } else {
        function_->parameter_slots.push_back(declare(name));
      }
    }
  }

  void parse_variable(size_t& end, Preset::Is where) {  // .shared .align 4 .b8 name[32];
    next();
    size_t alignment = 4;
    std::string word = next();
    if (word == ".align") alignment = std::stoul(next()), word = next();
    size_t bytes = bytes_of_type(word);
    const std::string name = next();
    if (peek() == "[") next(), bytes *= std::stoul(next()), expect("]");
    expect(";");
    end = (end + alignment - 1) / alignment * alignment;
    function_->presets.push_back({where, declare(name), end});
    end += bytes;
  }

  void parse_registers() {  // .reg .b32 %r<12>; or .reg .pred p, q;
    next();
    next();
    for (;;) {
      const std::string name = next();
      if (peek() == "<") {
        next();
        families_[name] = std::stoi(next());
        expect(">");
      } else {
        declare(name);
      }
      if (next() == ";") return;
    }
  }

  // .loc 2 34 5, function_name $L__info_string0, inlined_at 1 12 3: files by number, lines and columns.
  void parse_location() {
    const int line = tokens_[at_].line;
    std::vector<std::string> words;
    while (at_ < tokens_.size() && tokens_[at_].line == line) words.push_back(next());
    const auto place = [&](size_t k) { return words[k] + ':' + words[k + 1]; };
    location_ = place(1);
    for (size_t k = 4; k + 2 < words.size(); k++)
      if (words[k] == "inlined_at") location_ += " " + place(k + 1);
  }

  int declare(const std::string& name) { return scopes_.back()[name] = function_->slots++; }

  int preset(Preset::Is is, uint64_t value) {
    const auto key = std::make_pair(is, value);
    const auto known = constants_.find(key);
    if (known != constants_.end()) return known->second;
    const int slot = function_->slots++;
    function_->presets.push_back({is, slot, value});
    return constants_[key] = slot;
  }

  int slot_of(const std::string& name) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto found = scope->find(name);
      if (found != scope->end()) return found->second;
    }
    if (name == dynamic_shared_) return preset(Preset::Is::kShared, UINT64_MAX);  // behind what is static
    const std::pair<const char*, Preset::Is> special[] = {{"%tid.", Preset::Is::kTid},
                                                          {"%ctaid.", Preset::Is::kCtaid},
                                                          {"%ntid.", Preset::Is::kNtid},
                                                          {"%nctaid.", Preset::Is::kNctaid},
                                                          {"%cluster_ctarank", Preset::Is::kRank},
                                                          {"%cluster_nctarank", Preset::Is::kRanks}};
    for (const auto& [start, is] : special)
      if (name.rfind(start, 0) == 0) return preset(is, name.back() - 'x');
    const size_t digits = name.find_last_not_of("0123456789") + 1;
    const auto family = families_.find(name.substr(0, digits));
    if (name[0] == '%' && family != families_.end() && digits < name.size() &&
        std::stoi(name.substr(digits)) < family->second)
      return scopes_.front()[name] = function_->slots++;
    error("unknown name " + name);
  }

  Operand operand_of(const std::string& word, const std::string& opcode) {
    if (word == "_") return {};
    if (std::isalpha(static_cast<unsigned char>(word[0])) || std::strchr("%_$", word[0])) return {slot_of(word), 0};
    if (word.rfind("0f", 0) == 0 || word.rfind("0d", 0) == 0)
      return {preset(Preset::Is::kConstant, std::stoull(word.substr(2), nullptr, 16)), 0};
    const int64_t value =
        word[0] == '-' ? std::stoll(word, nullptr, 0) : static_cast<int64_t>(std::stoull(word, nullptr, 0));
    const bool predicate = opcode.size() > 5 && opcode.compare(opcode.size() - 5, 5, ".pred") == 0;
    return {preset(Preset::Is::kConstant, predicate ? value != 0 : value), 0};
  }

  void parse_instruction() {
    Instruction instruction;
    instruction.line = tokens_[at_].line;
    std::string opcode = next();
    if (opcode[0] == '@') {
      instruction.negated = opcode[1] == '!';
      instruction.guard = slot_of(opcode.substr(instruction.negated ? 2 : 1));
      opcode = next();
    }
    instruction.opcode = opcode, instruction.source = location_;
    if (opcode == "bra" || opcode == "bra.uni") {
      instruction.kind = Kind::kBranch;
      jumps_.emplace_back(function_->code.size(), next());
      expect(";");
    } else if (opcode == "ret") {
      instruction.kind = Kind::kReturn;
      expect(";");
    } else if (opcode == "call.uni") {
      instruction.kind = Kind::kCall;
      const auto callee = functions_.find(next());
      if (callee == functions_.end()) error("a call of what is declared nowhere");
      instruction.function = callee->second.get();
      for (std::string word = next(); word != ";"; word = next())
        if (!std::strchr(",()", word[0])) instruction.operands.push_back({slot_of(word), 0});
    } else {
      const bool unpacks = peek() == "{";
      for (std::string word = next(); word != ";"; word = next()) {
        if (std::strchr(",{}|", word[0])) continue;
        if (word[0] == '!') instruction.negates = true, word.erase(0, 1);  // of a predicate
        if (word != "[") {
          instruction.operands.push_back(operand_of(word, opcode));
          continue;
        }
        Operand address = operand_of(next(), "");
        if (peek() == "+") next(), address.offset = std::stoll(next());
        expect("]");
        instruction.operands.push_back(address);
      }
      const bool of_cluster = opcode.rfind("barrier.cluster.wait", 0) == 0;
      if (of_cluster) instruction.operands.push_back({preset(Preset::Is::kConstant, kClusterBarrier), 0});
      instruction.kind = opcode == "bar.sync" || of_cluster          ? Kind::kBarrier
                         : opcode.rfind("mbarrier.try_wait", 0) == 0 ? Kind::kRetry
                                                                     : Kind::kPlain;
      // Arguments of a function are registers here, those of an entry lie in memory.
      const bool passes = opcode.rfind("st.param", 0) == 0;
      if (passes || (opcode.rfind("ld.param", 0) == 0 && !function_->is_entry)) {
        const Operand memory = instruction.operands[passes ? 0 : 1];
        if (memory.offset != 0 || instruction.operands.size() != 2) error("a part of an argument");
        opcode = "mov.b64";
      }
      if (opcode.rfind("mov.", 0) == 0 && instruction.operands.size() > 2) opcode += unpacks ? ".unpack" : ".pack";
      if (opcode.rfind("shfl.", 0) == 0 || opcode.rfind("redux.", 0) == 0 || opcode.rfind("vote.", 0) == 0 ||
          opcode == "bar.warp.sync") {
        instruction.together = static_cast<int>(instruction.operands.size()) - 1;
      } else if (opcode.find(".sync.aligned") != std::string::npos) {
        instruction.together = static_cast<int>(instruction.operands.size());
        instruction.operands.push_back({preset(Preset::Is::kConstant, ~uint64_t{0}), 0});
      }
      for (const auto handler_of : {arithmetic_handler, memory_handler, collective_handler})
        if (instruction.run == nullptr) instruction.run = handler_of(opcode);
      if (instruction.run == nullptr && instruction.kind != Kind::kBarrier) error("unknown instruction " + opcode);
    }
    function_->code.push_back(std::move(instruction));
  }

  std::string file_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  std::map<std::string, std::unique_ptr<Function>> functions_;
  std::string dynamic_shared_;
  std::map<int, std::string> sources_;
  // Of the function that is being read:
  Function* function_ = nullptr;
  std::string location_;
  std::vector<std::map<std::string, int>> scopes_;
  std::map<std::string, int> families_, labels_;
  std::vector<std::pair<size_t, std::string>> jumps_;
  std::map<std::pair<Preset::Is, uint64_t>, int> constants_;
};

}  // namespace

std::map<std::string, std::unique_ptr<Function>> parse(const std::string& path) {
  std::ifstream stream(path);
  if (!stream) throw std::runtime_error(path + " cannot be read");
  std::stringstream text;
  text << stream.rdbuf();
  std::string name = path.substr(path.find_last_of('/') + 1);
  return Parser(name.substr(0, name.find('.')), text.str()).parse();
}

}  // namespace ptx
