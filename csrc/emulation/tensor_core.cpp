#include "tensor_core.h"

namespace cips3d::emulation {
namespace {

constexpr int kLanes = 32;

// Eight numbers at once, on any processor.
typedef uint32_t Bits __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));
typedef int64_t Longs __attribute__((vector_size(64)));
typedef double Doubles __attribute__((vector_size(64)));

struct HalfElements {
  static Floats values(Bits half) {  // as half_value
    const Bits magnitude = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
    const Floats smallest_normal = reinterpret_cast<Floats>(Bits{} + (113u << 23));
    const Bits subnormal = reinterpret_cast<Bits>(reinterpret_cast<Floats>(magnitude + (113u << 23)) - smallest_normal);
    const Bits special = reinterpret_cast<Bits>(magnitude >= (0x7c00u << 13)) & 112u << 23;  // infinity, NaN
    const Bits bits = magnitude < (1u << 23) ? subnormal : magnitude + (112u << 23) + special;
    return reinterpret_cast<Floats>(bits | sign);
  }
};

struct BFloat16Elements {
  static Floats values(Bits bfloat16) { return reinterpret_cast<Floats>(bfloat16 << 16); }
};

// The fp32 values of 16 elements in 8 words, the lower half of a word first.
template <class Elements>
void unpack(const uint32_t* words, float* values) {
  Bits bits;
  std::memcpy(&bits, words, sizeof bits);
  const Floats low = Elements::values(bits & 0xffffu), high = Elements::values(bits >> 16);
  for (int i = 0; i < 8; i++) values[2 * i] = low[i], values[2 * i + 1] = high[i];
}

struct Mma {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  const float* c;
};

// Exponents of numbers; of 0 one that no product with it is aligned by. Of infinity and NaN it is kOfSpecial.
constexpr int kOfZero = -1000, kOfSpecial = 128, kLeastExponent = -133;

Ints exponents(Floats values) {
  const Ints of_numbers = (reinterpret_cast<Ints>(values) >> 23 & 255) - 127;
  return values == 0.0f ? Ints{} + kOfZero : of_numbers;
}

Floats powers_of_two(Ints exponents, Floats) { return reinterpret_cast<Floats>((exponents + 127) << 23); }
Doubles powers_of_two(Ints exponents, Doubles) {
  return reinterpret_cast<Doubles>(__builtin_convertvector(exponents + 1023, Longs) << 52);
}

// Eight sums c + Σ a[k] b[k] as a Hopper GPU adds up (arXiv 2512.07004): everything below 2^-25 of the largest of these
// 17 numbers is cut off (of a product's exponent: the sum of its factors'), the sum of the rest is exact, and what
// fp32 does not hold of it is cut off too. Products are exact in `Wide`.
template <class Wide>
Floats add_products(const Floats (&a)[16], const Floats (&b)[16], Floats c, Ints largest) {
  constexpr int kLastBit = 25;
  const Wide to_integers = powers_of_two(kLastBit - largest, Wide{});
  const auto cut_off = [&](Wide x) { return __builtin_convertvector(x * to_integers, Ints); };
  Ints sums[2] = {cut_off(__builtin_convertvector(c, Wide)), {}};  // one might overflow
  for (int k = 0; k < 16; k++)
    sums[k % 2] += cut_off(__builtin_convertvector(a[k], Wide) * __builtin_convertvector(b[k], Wide));
  const Doubles sum = (__builtin_convertvector(sums[0], Doubles) + __builtin_convertvector(sums[1], Doubles)) *
                      powers_of_two(largest - kLastBit, Doubles{});
  const Longs without_29_bits = reinterpret_cast<Longs>(sum) & -(int64_t{1} << 29);
  return __builtin_convertvector(reinterpret_cast<Doubles>(without_29_bits), Floats);
}

bool any(Ints mask) {
  int64_t words[4];
  std::memcpy(words, &mask, sizeof words);
  return (words[0] | words[1] | words[2] | words[3]) != 0;
}
// Numbers, 0 aside, whose products and the integers made of them might not be in fp32's range.
Ints near_the_ends(Ints exponents) { return ((exponents < -48) | (exponents > 48)) & (exponents != kOfZero); }

// d[m][n] += Σ_k a[m][k] b[n][k] for 16 x 8 numbers; a and b hold pairs of k.
template <class Elements>
void multiply_tile(const uint32_t (&a_words)[16][8], const uint32_t (&b_words)[8][8], Floats (&d)[16]) {
  float values[16];
  Floats b[16];  // [k][n]
  for (int n = 0; n < 8; n++) {
    unpack<Elements>(b_words[n], values);
    for (int k = 0; k < 16; k++) b[k][n] = values[k];
  }
  Ints of_b[16], b_special = {}, b_wide = {};
  for (int k = 0; k < 16; k++) {
    of_b[k] = exponents(b[k]);
    b_special |= of_b[k] == kOfSpecial, b_wide |= near_the_ends(of_b[k]);
  }
  for (int m = 0; m < 16; m++) {
    unpack<Elements>(a_words[m], values);
    Floats halves_of_a[2], a[16];
    std::memcpy(halves_of_a, values, sizeof values);
    const Ints of_a[2] = {exponents(halves_of_a[0]), exponents(halves_of_a[1])}, of_c = exponents(d[m]);
    Ints largest = of_c;
    for (int k = 0; k < 16; k++) {
      const Ints of_product = of_a[k / 8][k % 8] + of_b[k];
      largest = of_product > largest ? of_product : largest;
      a[k] = Floats{} + values[k];
    }
    if (any(b_special | (of_a[0] == kOfSpecial) | (of_a[1] == kOfSpecial) | (of_c == kOfSpecial))) {
      for (int k = 0; k < 16; k++) d[m] += a[k] * b[k];
    } else if (any(b_wide | near_the_ends(of_a[0]) | near_the_ends(of_a[1]) | near_the_ends(of_c))) {
      largest = largest < kLeastExponent ? Ints{} + kLeastExponent : largest;
      d[m] = add_products<Doubles>(a, b, d[m], largest);
    } else {
      largest = largest < kOfZero / 2 ? Ints{} : largest;
      d[m] = add_products<Floats>(a, b, d[m], largest);
    }
  }
}

// Fragment layouts of the PTX ISA, "Matrix fragments for mma.m16n8k16", lane = 4 * group + member.
template <class Elements>
void mma(void** by_lane, uint32_t) {
  Mma** lanes = reinterpret_cast<Mma**>(by_lane);
  uint32_t a_words[16][8], b_words[8][8];  // [m][k / 2], [n][k / 2]
  Floats d[16];
  for (int lane = 0; lane < kLanes; lane++) {
    const int group = lane / 4, member = lane % 4;
    for (int r = 0; r < 4; r++) a_words[group + r % 2 * 8][member + r / 2 * 4] = lanes[lane]->a[r];
    for (int r = 0; r < 2; r++) b_words[group][member + r * 4] = lanes[lane]->b[r];
    for (int r = 0; r < 4; r++) d[group + r / 2 * 8][2 * member + r % 2] = lanes[lane]->c[r];
  }
  multiply_tile<Elements>(a_words, b_words, d);
  for (int lane = 0; lane < kLanes; lane++) {
    const int group = lane / 4, member = lane % 4 * 2;
    for (int r = 0; r < 4; r++) lanes[lane]->d[r] = d[group + r / 2 * 8][member + r % 2];
  }
}

struct Rows {
  const void* row;
  const uint16_t** sources;
};

// Lane 8 * m + i brings row i of matrix m; lane 4 * i + j gets its elements 2j and 2j + 1, or those of the transpose.
template <int kMatrices, bool kTransposed>
void find_elements(void** by_lane, uint32_t) {
  Rows** lanes = reinterpret_cast<Rows**>(by_lane);
  for (int lane = 0; lane < kLanes; lane++)
    for (int m = 0; m < kMatrices; m++)
      for (int h = 0; h < 2; h++) {
        const int i = lane / 4, j = lane % 4 * 2 + h;
        const int row = kTransposed ? j : i, column = kTransposed ? i : j;
        lanes[lane]->sources[2 * m + h] = static_cast<const uint16_t*>(lanes[8 * m + row]->row) + column;
      }
}

}  // namespace

void multiply_elements(Element element, const uint32_t (&a)[16][8], const uint32_t (&b)[8][8], float (&d)[16][8]) {
  Floats sums[16];
  static_assert(sizeof sums == sizeof d, "");
  std::memcpy(sums, d, sizeof sums);
  if (element == Element::kHalf)
    multiply_tile<HalfElements>(a, b, sums);
  else
    multiply_tile<BFloat16Elements>(a, b, sums);
  std::memcpy(d, sums, sizeof sums);
}

void mma_m16n8k16(Element element, float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site) {
  static constexpr Operation kHalf{"mma_m16n8k16_f16", true, false}, kBFloat16{"mma_m16n8k16_bf16", true, false};
  float result[4];  // d may be c, which the other lanes' turn may still need
  Mma arguments{result, a, b, c};
  if (element == Element::kHalf)
    collective(kHalf, ~0u, &arguments, mma<HalfElements>, site);
  else
    collective(kBFloat16, ~0u, &arguments, mma<BFloat16Elements>, site);
  std::memcpy(d, result, sizeof result);
}

void exchange_rows(const Operation& operation, const void* row, int matrices, bool transposed, const uint16_t** sources,
                   Site site) {
  if (lane_index() < static_cast<unsigned>(8 * matrices)) check_shared(row, 16, operation.name, site);
  Rows arguments{row, sources};
  const auto find = matrices == 4 ? (transposed ? find_elements<4, true> : find_elements<4, false>)
                                  : (transposed ? find_elements<2, true> : find_elements<2, false>);
  collective(operation, ~0u, &arguments, find, site);
}

}  // namespace cips3d::emulation
