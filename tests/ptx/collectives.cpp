// Instructions that a warp executes together. PTX ISA, "shfl.sync", "Warp level matrix instructions", "Asynchronous
// warpgroup level matrix instructions".
#include <algorithm>

#include "machine.h"

namespace ptx {
namespace {

void all_lanes(const Warp& warp, uint32_t lanes) {
  if (lanes != ~0u) warp.fail("not all lanes of the warp are here");
}

// shfl.sync.MODE.b32 d|p, a, b, c, mask
enum class Shuffle { kUp, kDown, kButterfly, kIndex };
template <Shuffle mode>
void shuffle(Warp& warp, const Instruction& i, uint32_t lanes) {
  const bool tells = i.operands.size() == 6;  // d|p
  const auto operand = [&](int k) { return i.operands[tells ? k + 1 : k]; };
  uint32_t values[kLanes] = {};
  for_lanes(lanes, [&](int l) {
    values[l] = warp.get<uint32_t>(operand(1), l);
    const auto mask = warp.get<uint32_t>(operand(4), l);
    if ((mask & ~lanes & warp.alive) != 0 || !(mask >> l & 1)) warp.fail("not all lanes of the mask are here");
  });
  for_lanes(lanes, [&](int l) {
    const int by = static_cast<int>(warp.get<uint32_t>(operand(2), l) & 31);
    const auto c = warp.get<uint32_t>(operand(3), l);
    const int segment = static_cast<int>(c >> 8 & 31), clamp = static_cast<int>(c & 31);
    const int most = (l & segment) | (clamp & ~segment), least = l & segment;
    int from = l;
    bool there = true;
    switch (mode) {
      case Shuffle::kUp: from = l - by, there = from >= most; break;
      case Shuffle::kDown: from = l + by, there = from <= most; break;
      case Shuffle::kButterfly: from = l ^ by, there = from <= most; break;
      case Shuffle::kIndex: from = least | (by & ~segment), there = from <= most; break;
    }
    if (!there) from = l;
    if (!(lanes >> from & 1)) warp.fail("the value of a lane that is not here");
    warp.set<uint32_t>(i.operands[0], l, values[from]);
    if (tells) warp.set<uint8_t>(i.operands[1], l, there);
  });
}

// redux.sync.add.s32 d, a, mask
void add_lanes(Warp& warp, const Instruction& i, uint32_t lanes) {
  uint32_t sum = 0;
  for_lanes(lanes, [&](int l) { sum += warp.get<uint32_t>(i.operands[1], l); });
  for_lanes(lanes, [&](int l) { warp.set<uint32_t>(i.operands[0], l, sum); });
}

// vote.sync.all.pred p, q, mask
void all_hold(Warp& warp, const Instruction& i, uint32_t lanes) {
  bool all = true;
  for_lanes(lanes, [&](int l) { all &= ((warp.get<uint8_t>(i.operands[1], l) & 1) != 0) != i.negates; });
  for_lanes(lanes, [&](int l) { warp.set<uint8_t>(i.operands[0], l, all); });
}

void warp_barrier(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int l) {
    if ((warp.get<uint32_t>(i.operands[0], l) & ~lanes & warp.alive) != 0)
      warp.fail("not all lanes of the mask are here");
  });
}

const unsigned char* row_at(Warp& warp, uint64_t address) {
  if (address % 16 != 0) warp.fail("a row that is not aligned to 16 bytes");
  const unsigned char* row = warp.block.shared_at(address, 16);
  if (row == nullptr) warp.fail("shared memory out of bounds, at " + std::to_string(address));
  return row;
}

// Matrices of 8 rows of 8 elements; lane 8 m + r has the address of row r of matrix m. Lane 4 g + t is given elements
// 2 t and 2 t + 1 of row g, or, transposed, of column g.
template <int matrices, bool transposed>
void load_matrices(Warp& warp, const Instruction& i, uint32_t lanes) {
  all_lanes(warp, lanes);
  uint16_t elements[matrices][8][8];
  for (int m = 0; m < matrices; m++) {
    int of_bank[8] = {}, most = 0;  // groups of four banks: rows of 16 bytes
    std::unordered_set<uint64_t> rows;
    for (int r = 0; r < 8; r++) {
      const uint64_t address = warp.address(i.operands[matrices], 8 * m + r, false);
      std::memcpy(elements[m][r], row_at(warp, address), 16);
      if (rows.insert(address).second) most = std::max(most, ++of_bank[address / 16 % 8]);
    }
    i.counts.transfers += most, i.counts.least++;
  }
  for_lanes(lanes, [&](int l) {
    const int g = l / 4, t = l % 4;
    for (int m = 0; m < matrices; m++) {
      const auto at = [&](int k) { return transposed ? elements[m][k][g] : elements[m][g][k]; };
      warp.set<uint32_t>(i.operands[m], l, at(2 * t) | static_cast<uint32_t>(at(2 * t + 1)) << 16);
    }
  });
}

double of_half(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof value);
  return static_cast<double>(value);
}
double of_bfloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// D [16, 8] = A [16, 16] B [16, 8] + C. Of lane 4 g + t, A: (g, 2 t), (g + 8, 2 t), (g, 2 t + 8), (g + 8, 2 t + 8) and
// the element to the right of each; B: (2 t, g), (2 t + 8, g) and below; C, D: (g, 2 t), (g, 2 t + 1), and 8 rows on.
template <double (*number)(uint16_t)>
void multiply(Warp& warp, const Instruction& i, uint32_t lanes) {
  all_lanes(warp, lanes);
  double a[16][16], b[16][8], c[16][8];
  for_lanes(lanes, [&](int l) {
    const int g = l / 4, t = l % 4;
    for (int k = 0; k < 4; k++) {
      const auto two = warp.get<uint32_t>(i.operands[4 + k], l);
      for (int e = 0; e < 2; e++)
        a[g + k % 2 * 8][2 * t + k / 2 * 8 + e] = number(static_cast<uint16_t>(two >> 16 * e));
      c[g + k / 2 * 8][2 * t + k % 2] = warp.get<float>(i.operands[10 + k], l);
    }
    for (int k = 0; k < 2; k++) {
      const auto two = warp.get<uint32_t>(i.operands[8 + k], l);
      for (int e = 0; e < 2; e++) b[2 * t + 8 * k + e][g] = number(static_cast<uint16_t>(two >> 16 * e));
    }
  });
  for_lanes(lanes, [&](int l) {
    const int g = l / 4, t = l % 4;
    for (int k = 0; k < 4; k++) {
      const int row = g + k / 2 * 8, column = 2 * t + k % 2;
      double sum = c[row][column];
      for (int m = 0; m < 16; m++) sum += a[row][m] * b[m][column];
      warp.set<float>(i.operands[k], l, static_cast<float>(sum));
    }
  });
}

// wgmma: D [64, columns] (+)= A [64, 16] B [16, columns], of a group of four warps, whose registers may be A. It is
// computed when the warp waits for it, from what shared memory and registers hold then.
template <int kColumns, double (*kValue)(uint16_t) = of_half>
void start_product(Warp& warp, const Instruction& i, uint32_t lanes) {
  all_lanes(warp, lanes);
  if (warp.block.launch.block.x % 128 != 0) warp.fail("a group of fewer than four warps");
  constexpr int kA = kColumns / 2;
  const bool registers = i.together == kA + 9;  // of so many operands: four, and no word about A's transpose
  const int of_b = kA + (registers ? 4 : 1), adds = of_b + 1, signs = adds + 1, transposes = signs + 2;
  for (int k = signs; k < transposes; k++)
    if (warp.get<int32_t>(i.operands[k], 0) != 1) warp.fail("negated operands are not known");
  const auto is_transposed = [&](int k) { return warp.get<int32_t>(i.operands[transposes + k], 0) != 0; };
  const bool a_transposed = !registers && is_transposed(0), b_transposed = is_transposed(registers ? 0 : 1);
  const uint64_t a = registers ? 0 : warp.get<uint64_t>(i.operands[kA], 0);
  warp.products.push_back({&i, kValue, kColumns, registers, a_transposed, b_transposed, a,
                           warp.get<uint64_t>(i.operands[of_b], 0), (warp.get<uint8_t>(i.operands[adds], 0) & 1) != 0,
                           warp.committed_products});
}
void commit_products(Warp& warp, const Instruction&, uint32_t lanes) {
  all_lanes(warp, lanes);
  warp.committed_products++;
}

// A matrix descriptor without swizzle, rows of the sum's elements or, transposed, of the other ones: core matrices of 8
// rows of 16 bytes; 8 elements of the sum on lies the leading offset away, 8 others on the stride offset.
double element(Warp& warp, const GroupProduct& of, uint64_t descriptor, int row, int k, bool transposed) {
  if (descriptor >> 62 != 0) warp.fail("swizzled operands are not known");
  const uint64_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
                 stride = (descriptor >> 32 & 0x3fff) << 4;
  const uint64_t core = start + row / 8 * stride + k / 8 * leading + (transposed ? k : row) % 8 * 16;
  uint16_t bits;
  std::memcpy(&bits, row_at(warp, core) + (transposed ? row : k) % 8 * 2, sizeof bits);
  return of.value(bits);
}
// The warp's rows of A: as they lie in its registers, those of mma.m16n8k16.
void read_rows(Warp& warp, const GroupProduct& product, double (&a)[16][16]) {
  for (int k = 0; k < 16; k++)
    for (int row = 0; row < 16; row++) {
      if (!product.a_in_registers) {
        a[row][k] = element(warp, product, product.a, warp.index % 4 * 16 + row, k, product.a_transposed);
        continue;
      }
      const Operand pair = product.instruction->operands[product.columns / 2 + row / 8 + k / 8 * 2];
      a[row][k] = product.value(warp.get<uint32_t>(pair, row % 8 * 4 + k % 8 / 2) >> k % 2 * 16 & 0xffff);
    }
}
void compute(Warp& warp, const GroupProduct& product) {
  static double a[16][16], b[256][16];
  read_rows(warp, product, a);
  for (int k = 0; k < 16; k++)
    for (int column = 0; column < product.columns; column++)
      b[column][k] = element(warp, product, product.b, column, k, product.b_transposed);
  for (int l = 0; l < kLanes; l++) {
    const int g = l / 4, t = l % 4;
    for (int s = 0; s < product.columns / 2; s++) {
      const int row = g + s / 2 % 2 * 8, column = s / 4 * 8 + 2 * t + s % 2;
      const Operand d = product.instruction->operands[s];
      double sum = product.adds ? warp.get<float>(d, l) : 0.0;
      for (int k = 0; k < 16; k++) sum += a[row][k] * b[column][k];
      warp.set<float>(d, l, static_cast<float>(sum));
    }
  }
}
void wait_for_products(Warp& warp, const Instruction& i, uint32_t lanes) {
  all_lanes(warp, lanes);
  const int left = warp.get<int>(i.operands[0], 0);
  std::vector<GroupProduct> later;
  for (const GroupProduct& product : warp.products) {
    if (product.group < warp.committed_products - left)
      compute(warp, product);
    else
      later.push_back(product);
  }
  warp.products = later;
}
void fence_sums(Warp& warp, const Instruction&, uint32_t lanes) { all_lanes(warp, lanes); }

}  // namespace

Handler collective_handler(const std::string& opcode) {
  static const std::map<std::string, Handler> table = {
      {"shfl.sync.up.b32", shuffle<Shuffle::kUp>},
      {"shfl.sync.down.b32", shuffle<Shuffle::kDown>},
      {"shfl.sync.bfly.b32", shuffle<Shuffle::kButterfly>},
      {"shfl.sync.idx.b32", shuffle<Shuffle::kIndex>},
      {"bar.warp.sync", warp_barrier},
      {"redux.sync.add.s32", add_lanes},
      {"redux.sync.add.u32", add_lanes},
      {"vote.sync.all.pred", all_hold},
      {"ldmatrix.sync.aligned.m8n8.x2.shared.b16", load_matrices<2, false>},
      {"ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16", load_matrices<2, true>},
      {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", load_matrices<4, false>},
      {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", load_matrices<4, true>},
      {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", multiply<of_half>},
      {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", multiply<of_bfloat>},
      {"wgmma.fence.sync.aligned", fence_sums},
      {"wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16", start_product<8>},
      {"wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16", start_product<64>},
      {"wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16", start_product<128>},
      {"wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16", start_product<256>},
      {"wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16", start_product<256, of_bfloat>},
      {"wgmma.commit_group.sync.aligned", commit_products},
      {"wgmma.wait_group.sync.aligned", wait_for_products},
  };
  const auto known = table.find(opcode);
  return known != table.end() ? known->second : nullptr;
}

}  // namespace ptx
