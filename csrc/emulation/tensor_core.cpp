#include "tensor_core.h"

namespace cips3d::emulation {
namespace {

constexpr int kLanes = 32;

// Eight numbers at once, on any x86-64 processor.
typedef uint32_t Bits __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));

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

// Fragment layouts of the PTX ISA, "Matrix fragments for mma.m16n8k16", lane = 4 * group + member. The products are
// exact in fp32; they are added up in the order of k, then c.
template <class Elements>
void mma(void** by_lane, uint32_t) {
  Mma** lanes = reinterpret_cast<Mma**>(by_lane);
  uint32_t a_words[16][8], b_words[8][8];  // [m][k / 2], [n][k / 2]
  for (int lane = 0; lane < kLanes; lane++) {
    const int group = lane / 4, member = lane % 4;
    for (int r = 0; r < 4; r++) a_words[group + r % 2 * 8][member + r / 2 * 4] = lanes[lane]->a[r];
    for (int r = 0; r < 2; r++) b_words[group][member + r * 4] = lanes[lane]->b[r];
  }
  float a[16][16], column[16];
  Floats b[16];  // [k][n]
  for (int m = 0; m < 16; m++) unpack<Elements>(a_words[m], a[m]);
  for (int n = 0; n < 8; n++) {
    unpack<Elements>(b_words[n], column);
    for (int k = 0; k < 16; k++) b[k][n] = column[k];
  }
  float d[16][8];
  for (int m = 0; m < 16; m += 4) {  // four sums at a time hide the latency of an addition
    Floats sums[4] = {};
    for (int k = 0; k < 16; k++)
      for (int i = 0; i < 4; i++) sums[i] += a[m + i][k] * b[k];
    std::memcpy(d[m], sums, sizeof sums);
  }
  for (int lane = 0; lane < kLanes; lane++) {
    const int group = lane / 4, member = lane % 4 * 2;
    for (int r = 0; r < 4; r++) lanes[lane]->d[r] = lanes[lane]->c[r] + d[group + r / 2 * 8][member + r % 2];
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
