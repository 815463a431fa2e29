// Instructions between registers. PTX ISA, "Integer arithmetic", "Floating point", "Comparison and selection",
// "Logic and shift" and "Data movement and conversion".
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>
#include <type_traits>

#include "machine.h"

namespace ptx {
namespace {

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

using f32 = float;
using f64 = double;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;

// d = f(a...), each lane for itself.
template <class To, class From, auto f>
void unary(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) { warp.set<To>(i.operands[0], l, f(warp.get<From>(i.operands[1], l))); });
}
template <class To, class From, auto f>
void binary(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    warp.set<To>(i.operands[0], l, f(warp.get<From>(i.operands[1], l), warp.get<From>(i.operands[2], l)));
  });
}
template <class T, auto f>
void ternary(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    warp.set<T>(i.operands[0], l,
                f(warp.get<T>(i.operands[1], l), warp.get<T>(i.operands[2], l), warp.get<T>(i.operands[3], l)));
  });
}
template <class T>
void shift_left(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    const u32 by = warp.get<u32>(i.operands[2], l);
    warp.set<T>(i.operands[0], l, by < 8 * sizeof(T) ? warp.get<T>(i.operands[1], l) << by : T{0});
  });
}
template <class T>
void shift_right(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    const u32 by = warp.get<u32>(i.operands[2], l);
    const T a = warp.get<T>(i.operands[1], l);
    const T gone = a < 0 ? static_cast<T>(-1) : T{0};
    warp.set<T>(i.operands[0], l, by < 8 * sizeof(T) ? static_cast<T>(a >> by) : gone);
  });
}
template <class T>
void select(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    warp.set<T>(i.operands[0], l, warp.get<T>(i.operands[warp.get<uint8_t>(i.operands[3], l) & 1 ? 1 : 2], l));
  });
}
template <class T>
void insert_bits(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    const T a = warp.get<T>(i.operands[1], l), b = warp.get<T>(i.operands[2], l);
    const u32 position = warp.get<u32>(i.operands[3], l) & 255, length = warp.get<u32>(i.operands[4], l) & 255;
    T d = b;
    for (u32 k = 0; k < length && position + k < 8 * sizeof(T); k++) {
      const T one = T{1} << (position + k);
      d = a >> k & 1 ? d | one : d & ~one;
    }
    warp.set<T>(i.operands[0], l, d);
  });
}
template <class T>
void extract_bits(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    const T a = warp.get<T>(i.operands[1], l);
    const u32 position = warp.get<u32>(i.operands[2], l) & 255, length = warp.get<u32>(i.operands[3], l) & 255;
    const u32 most = 8 * sizeof(T) - 1;
    const T sign = length == 0 || std::is_unsigned_v<T> ? 0 : a >> std::min(position + length - 1, most) & 1;
    T d = 0;
    for (u32 k = 0; k <= most; k++) d |= (k < length && position + k <= most ? a >> (position + k) & 1 : sign) << k;
    warp.set<T>(i.operands[0], l, d);
  });
}
void permute(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    const u64 bytes = warp.get<u32>(i.operands[1], l) | static_cast<u64>(warp.get<u32>(i.operands[2], l)) << 32;
    const u32 selectors = warp.get<u32>(i.operands[3], l);
    u32 d = 0;
    for (int k = 0; k < 4; k++) {
      const u32 selector = selectors >> 4 * k & 15;
      u32 byte = bytes >> 8 * (selector & 7) & 255;
      if (selector & 8) byte = byte & 128 ? 255 : 0;  // its sign
      d |= byte << 8 * k;
    }
    warp.set<u32>(i.operands[0], l, d);
  });
}
template <class Whole, class Part>
void pack(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    Whole d = 0;
    for (size_t k = 1; k < i.operands.size(); k++)
      d |= static_cast<Whole>(warp.get<Part>(i.operands[k], l)) << 8 * sizeof(Part) * (k - 1);
    warp.set<Whole>(i.operands[0], l, d);
  });
}
template <class Whole, class Part>
void unpack(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    const Whole a = warp.get<Whole>(i.operands.back(), l);
    for (size_t k = 0; k + 1 < i.operands.size(); k++)
      warp.set<Part>(i.operands[k], l, static_cast<Part>(a >> 8 * sizeof(Part) * k));
  });
}

u16 half_of(f32 x) { return bits_as<u16>(static_cast<_Float16>(x)); }
f32 of_half(u16 bits) { return static_cast<f32>(bits_as<_Float16>(bits)); }
u16 bfloat_of(f32 x) {  // to nearest, ties to even
  if (x != x) return 0x7fff;
  const u32 bits = bits_as<u32>(x);
  return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
f32 of_bfloat(u16 bits) { return bits_as<f32>(static_cast<u32>(bits) << 16); }
template <u16 (*narrow)(f32)>
u32 two(f32 high, f32 low) {
  return static_cast<u32>(narrow(high)) << 16 | narrow(low);
}
// Of both halves of a register.
template <f32 (*of)(f32, f32)>
u32 halves(u32 a, u32 b) {
  const auto one = [](u32 x, u32 y) { return half_of(of(of_half(static_cast<u16>(x)), of_half(static_cast<u16>(y)))); };
  return static_cast<u32>(one(a >> 16, b >> 16)) << 16 | one(a, b);
}
f32 flushed(f32 x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
// In another direction than to nearest. Volatile: computed here, not before or behind.
template <int mode>
f32 fused_toward(f32 a, f32 b, f32 c) {
  volatile f32 x = a, y = b, z = c;
  std::fesetround(mode);
  volatile f32 result = std::fmaf(x, y, z);
  std::fesetround(FE_TONEAREST);
  return result;
}
f32 add_toward_zero(f32 a, f32 b) { return fused_toward<FE_TOWARDZERO>(a, 1.0f, b); }

template <class T>
T minimum(T a, T b) {
  return a < b ? a : b;
}
template <class T>
T maximum(T a, T b) {
  return a > b ? a : b;
}
template <class T>
T quotient(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && b == static_cast<T>(-1))
    return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
  return a / b;
}
template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return a % b;
}

// Comparisons with a u hold where an operand is NaN, the others do not.
template <class T>
Handler comparison(const std::string& how) {
#define CIPS3D_COMPARE(name, expression) \
  if (how == name) return binary<uint8_t, T, ([](T a, T b) { return static_cast<uint8_t>(expression); })>;
  CIPS3D_COMPARE("eq", a == b)
  CIPS3D_COMPARE("ne", a < b || a > b)
  CIPS3D_COMPARE("lt", a < b)
  CIPS3D_COMPARE("le", a <= b)
  CIPS3D_COMPARE("gt", a > b)
  CIPS3D_COMPARE("ge", a >= b)
  CIPS3D_COMPARE("neu", a != b)
  CIPS3D_COMPARE("ltu", !(a >= b))
  CIPS3D_COMPARE("leu", !(a > b))
  CIPS3D_COMPARE("gtu", !(a <= b))
  CIPS3D_COMPARE("geu", !(a < b))
#undef CIPS3D_COMPARE
  return nullptr;
}

template <class T>
void add_integers(std::map<std::string, Handler>& table, const std::string& type) {
  using U = std::make_unsigned_t<T>;
  table["add." + type] = binary<U, U, [](U a, U b) { return static_cast<U>(a + b); }>;
  table["sub." + type] = binary<U, U, [](U a, U b) { return static_cast<U>(a - b); }>;
  table["mul.lo." + type] = binary<U, U, [](U a, U b) { return static_cast<U>(static_cast<u64>(a) * b); }>;
  table["mad.lo." + type] = ternary<U, [](U a, U b, U c) { return static_cast<U>(static_cast<u64>(a) * b + c); }>;
  table["neg." + type] = unary<U, U, [](U a) { return static_cast<U>(0 - a); }>;
  table["abs." + type] = unary<T, T, ([](T a) { return a < 0 ? static_cast<T>(0 - static_cast<U>(a)) : a; })>;
  table["div." + type] = binary<T, T, quotient<T>>;
  table["rem." + type] = binary<T, T, remainder<T>>;
  table["min." + type] = binary<T, T, minimum<T>>;
  table["max." + type] = binary<T, T, maximum<T>>;
  table["shr." + type] = shift_right<T>;
  table["selp." + type] = select<T>;
}
template <class T, class Wide>
void add_wide(std::map<std::string, Handler>& table, const std::string& type) {
  table["mul.wide." + type] = binary<Wide, T, [](T a, T b) { return static_cast<Wide>(Wide{a} * Wide{b}); }>;
  table["mul.hi." + type] = binary<T, T, ([](T a, T b) { return static_cast<T>(Wide{a} * Wide{b} >> 8 * sizeof(T)); })>;
  table["mad.wide." + type] = [](Warp& warp, const Instruction& i, uint32_t lanes) {
    for_lanes(lanes, [&](int l) {
      warp.set<Wide>(
          i.operands[0], l,
          Wide{warp.get<T>(i.operands[1], l)} * Wide{warp.get<T>(i.operands[2], l)} + warp.get<Wide>(i.operands[3], l));
    });
  };
}
template <class U>
void add_bits(std::map<std::string, Handler>& table, const std::string& type) {
  table["and" + type] = binary<U, U, [](U a, U b) { return static_cast<U>(a & b); }>;
  table["or" + type] = binary<U, U, [](U a, U b) { return static_cast<U>(a | b); }>;
  table["xor" + type] = binary<U, U, [](U a, U b) { return static_cast<U>(a ^ b); }>;
  table["not" + type] = unary<U, U, [](U a) { return static_cast<U>(~a); }>;
  table["shl" + type] = shift_left<U>;
  table["bfi" + type] = insert_bits<U>;
}
template <class U>
void add_moves(std::map<std::string, Handler>& table, const std::string& bits) {
  for (const char* kind : {"b", "u", "s", "f"}) {
    table["mov." + (kind + bits)] = unary<U, U, [](U a) { return a; }>;
    table["selp." + (kind + bits)] = select<U>;
  }
}

// cvt between integers: cut off, or extended by what it is read as.
template <class To, class... From>
void add_conversions(std::map<std::string, Handler>& table, const std::string& to, From...) {
  const auto name = [](auto of) {
    return (std::is_signed_v<decltype(of)> ? "s" : "u") + std::to_string(8 * sizeof of);
  };
  using Held = std::conditional_t<std::is_signed_v<To>, s64, u64>;  // registers may be wider than what is asked for
  ((table["cvt." + to + "." + name(From{})] =
        unary<Held, From, [](From a) { return static_cast<Held>(static_cast<To>(a)); }>),
   ...);
}

std::map<std::string, Handler> make_table() {
  std::map<std::string, Handler> table;
  add_integers<s16>(table, "s16"), add_integers<s32>(table, "s32"), add_integers<s64>(table, "s64");
  add_integers<u16>(table, "u16"), add_integers<u32>(table, "u32"), add_integers<u64>(table, "u64");
  add_wide<s16, s32>(table, "s16"), add_wide<u16, u32>(table, "u16");
  add_wide<s32, s64>(table, "s32"), add_wide<u32, u64>(table, "u32");
  const auto convert = [&](const std::string& to, auto of) {
    add_conversions<decltype(of)>(table, to, int8_t{}, uint8_t{}, s16{}, u16{}, s32{}, u32{}, s64{}, u64{});
  };
  convert("s8", int8_t{}), convert("s16", s16{}), convert("s32", s32{}), convert("s64", s64{});
  convert("u8", uint8_t{}), convert("u16", u16{}), convert("u32", u32{}), convert("u64", u64{});
  add_bits<u16>(table, ".b16"), add_bits<u32>(table, ".b32"), add_bits<u64>(table, ".b64");
  add_moves<u16>(table, "16"), add_moves<u32>(table, "32"), add_moves<u64>(table, "64");
  table["not.pred"] = unary<uint8_t, uint8_t, [](uint8_t a) { return static_cast<uint8_t>(!(a & 1)); }>;
  table["mov.pred"] = unary<uint8_t, uint8_t, [](uint8_t a) { return a; }>;
  table["and.pred"] = binary<uint8_t, uint8_t, [](uint8_t a, uint8_t b) { return static_cast<uint8_t>(a & b); }>;
  table["or.pred"] = binary<uint8_t, uint8_t, [](uint8_t a, uint8_t b) { return static_cast<uint8_t>(a | b); }>;
  table["xor.pred"] = binary<uint8_t, uint8_t, [](uint8_t a, uint8_t b) { return static_cast<uint8_t>(a ^ b); }>;
  table["bfe.u32"] = extract_bits<u32>, table["bfe.u64"] = extract_bits<u64>;
  table["prmt.b32"] = permute;
  table["mov.b32.pack"] = pack<u32, u16>, table["mov.b32.unpack"] = unpack<u32, u16>;
  table["mov.b64.pack"] = pack<u64, u32>, table["mov.b64.unpack"] = unpack<u64, u32>;

  table["add.f32"] = binary<f32, f32, [](f32 a, f32 b) { return a + b; }>;
  table["sub.f32"] = binary<f32, f32, [](f32 a, f32 b) { return a - b; }>;
  table["mul.f32"] = binary<f32, f32, [](f32 a, f32 b) { return a * b; }>;
  table["add.f64"] = binary<f64, f64, [](f64 a, f64 b) { return a + b; }>;
  table["sub.f64"] = binary<f64, f64, [](f64 a, f64 b) { return a - b; }>;
  table["mul.f64"] = binary<f64, f64, [](f64 a, f64 b) { return a * b; }>;
  table["add.rz.f32"] = binary<f32, f32, add_toward_zero>;
  table["fma.rn.f32"] = ternary<f32, [](f32 a, f32 b, f32 c) { return std::fmaf(a, b, c); }>;
  table["fma.rm.f32"] = ternary<f32, fused_toward<FE_DOWNWARD>>;
  table["fma.rn.f64"] = ternary<f64, [](f64 a, f64 b, f64 c) { return std::fma(a, b, c); }>;
  table["div.rn.f32"] = binary<f32, f32, [](f32 a, f32 b) { return a / b; }>;
  table["rcp.rn.f32"] = unary<f32, f32, [](f32 a) { return 1.0f / a; }>;
  table["sqrt.rn.f32"] = unary<f32, f32, [](f32 a) { return std::sqrt(a); }>;
  table["neg.f32"] = unary<f32, f32, [](f32 a) { return -a; }>;
  table["abs.f32"] = unary<f32, f32, [](f32 a) { return std::fabs(a); }>;
  table["min.f32"] = binary<f32, f32, [](f32 a, f32 b) { return std::fmin(a, b); }>;
  table["max.f32"] = binary<f32, f32, [](f32 a, f32 b) { return std::fmax(a, b); }>;
  table["min.f16x2"] = binary<u32, u32, halves<std::fmin>>;
  table["max.f16x2"] = binary<u32, u32, halves<std::fmax>>;
  // Approximations, whose errors (below 2^-20 of sin and cos, 2^-22 of ex2, two units of div) are left out.
  table["div.approx.f32"] = binary<f32, f32, [](f32 a, f32 b) { return a / b; }>;
  table["sin.approx.f32"] = unary<f32, f32, [](f32 a) { return static_cast<f32>(std::sin(f64{a})); }>;
  table["cos.approx.f32"] = unary<f32, f32, [](f32 a) { return static_cast<f32>(std::cos(f64{a})); }>;
  table["ex2.approx.ftz.f32"] =
      unary<f32, f32, [](f32 a) { return flushed(static_cast<f32>(std::exp2(f64{flushed(a)}))); }>;

  table["cvt.rni.f32.f32"] = unary<f32, f32, [](f32 a) { return std::rint(a); }>;
  table["cvt.rni.f64.f64"] = unary<f64, f64, [](f64 a) { return std::rint(a); }>;
  table["cvt.sat.f32.f32"] = unary<f32, f32, ([](f32 a) { return a > 0.0f ? std::fmin(a, 1.0f) : 0.0f; })>;
  table["cvt.f64.f32"] = unary<f64, f32, [](f32 a) { return f64{a}; }>;
  table["cvt.rn.f32.f64"] = unary<f32, f64, [](f64 a) { return static_cast<f32>(a); }>;
  table["cvt.rn.f32.s32"] = unary<f32, s32, [](s32 a) { return static_cast<f32>(a); }>;
  table["cvt.rn.f32.u32"] = unary<f32, u32, [](u32 a) { return static_cast<f32>(a); }>;
  table["cvt.f32.f16"] = unary<f32, u16, of_half>;
  table["cvt.f32.bf16"] = unary<f32, u16, of_bfloat>;
  table["cvt.rn.f16.f32"] = unary<u16, f32, half_of>;
  table["cvt.rn.bf16.f32"] = unary<u16, f32, bfloat_of>;
  table["cvt.rn.f16x2.f32"] = binary<u32, f32, two<half_of>>;
  table["cvt.rn.bf16x2.f32"] = binary<u32, f32, two<bfloat_of>>;
  return table;
}

}  // namespace

Handler arithmetic_handler(const std::string& opcode) {
  static const auto table = make_table();
  const auto known = table.find(opcode);
  if (known != table.end()) return known->second;
  if (opcode.rfind("setp.", 0) != 0) return nullptr;
  const size_t dot = opcode.find('.', 5);
  const std::string how = opcode.substr(5, dot - 5), type = opcode.substr(dot + 1);
  if (type == "f32") return comparison<f32>(how);
  if (type == "f64") return comparison<f64>(how);
  if (type == "s16") return comparison<s16>(how);
  if (type == "s32") return comparison<s32>(how);
  if (type == "s64") return comparison<s64>(how);
  if (type == "u16" || type == "b16") return comparison<u16>(how);
  if (type == "u32" || type == "b32") return comparison<u32>(how);
  if (type == "u64" || type == "b64") return comparison<u64>(how);
  return nullptr;
}

}  // namespace ptx
