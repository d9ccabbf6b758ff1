// Tensor-core instructions on a warp of fibers, with the fragments as the PTX manual lays them out ("Matrix fragments
// for mma.m16n8k16", "for mma.m16n8k8", "ldmatrix"). Products are exact and summed in double precision, then rounded
// once: real hardware rounds more often, by an amount that depends on its generation.
#pragma once

#include "conversions.h"
#include "scheduler.h"

namespace simt {

constexpr unsigned kWholeWarp = 0xffffffffu;

struct LdMatrix {
  uint32_t* result;
  int matrices;
  bool transposed;
  const unsigned char* row;
};

inline void load_matrices(void* const (&records)[kLanes], unsigned) {
  for (int lane = 0; lane < kLanes; ++lane) {
    auto& mine = *static_cast<LdMatrix*>(records[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int m = 0; m < mine.matrices; ++m) {
      const auto element = [&](int row, int column) {
        uint16_t bits;
        std::memcpy(&bits, static_cast<LdMatrix*>(records[8 * m + row])->row + 2 * column, 2);
        return static_cast<uint32_t>(bits);
      };
      mine.result[m] = mine.transposed ? element(pair, group) | element(pair + 1, group) << 16
                                       : element(group, pair) | element(group, pair + 1) << 16;
    }
  }
}

template <int matrices>
void ldmatrix(uint32_t (&r)[matrices], const void* shared_row, bool transposed, const Where& where) {
  const bool used = lane() < 8 * matrices;  // the other lanes' addresses are not read
  if (used && !in_shared(shared_row, 16)) fault(where, "ldmatrix from outside the block's shared memory");
  if (used && reinterpret_cast<uintptr_t>(shared_row) % 16 != 0) fault(where, "ldmatrix from a misaligned row");
  LdMatrix mine{r, matrices, transposed, static_cast<const unsigned char*>(shared_row)};
  together(kWholeWarp, "ldmatrix", &mine, load_matrices, where);
}

struct Mma {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

// Value of element `half` (0 or 1) of a register of 16-bit floats, or of a register that holds one tf32.
struct Bf16Pair {
  static constexpr int kEach = 2;
  static float value(uint32_t bits, int half) { return widen_bf16(static_cast<uint16_t>(bits >> 16 * half)); }
};
struct F16Pair {
  static constexpr int kEach = 2;
  static float value(uint32_t bits, int half) { return widen_f16(static_cast<uint16_t>(bits >> 16 * half)); }
};
struct Tf32 {
  static constexpr int kEach = 1;
  static float value(uint32_t bits, int) { return bits_to_float(bits & 0xffffe000u); }  // the low 13 bits are ignored
};

// c += a b with a 16 x K, b K x 8, K = 8 kEach. Register i of a holds rows group + 8 (i % 2) and columns from
// 4 kEach (i / 2); register i of b holds rows from 4 kEach i and column group.
template <class Format>
void multiply(void* const (&records)[kLanes], unsigned) {
  constexpr int each = Format::kEach, depth = 8 * each;
  float a[16][depth], b[depth][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<Mma*>(records[lane]);
    const int group = lane / 4, in_group = lane % 4;
    for (int half = 0; half < each; ++half) {
      const int k = in_group * each + half;
      for (int i = 0; i < 4; ++i) a[group + 8 * (i % 2)][k + 4 * each * (i / 2)] = Format::value(mine.a[i], half);
      for (int i = 0; i < 2; ++i) b[k + 4 * each * i][group] = Format::value(mine.b[i], half);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<Mma*>(records[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      double sum = mine.c[i];
      for (int k = 0; k < depth; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      mine.c[i] = static_cast<float>(sum);
    }
  }
}

template <class Format>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Where& where) {
  Mma mine{c, a, b};
  together(kWholeWarp, "mma", &mine, multiply<Format>, where);
}

}  // namespace simt
