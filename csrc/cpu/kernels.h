// The table of serial CPU kernels; one table an instruction set, chosen at run time (isa.cpp).
// All of them give the same bits: vectors are 64 bytes wide in the source, whatever the registers are, and no
// multiply-add is contracted.
#pragma once

#include <cstdint>

namespace ganscale::cpu {

constexpr int kDtypes = 4;  // indexed by Dtype

struct KernelTable {
  // out = eps * real + (1 - eps) * fake
  void (*interpolate[kDtypes])(const void* real, const void* fake, void* out, int64_t count, double eps);
  void (*sum_squares[kDtypes])(const void* x, int64_t count, double* total);
  void (*sum[kDtypes])(const void* x, int64_t count, double* total);
  // totals[column] += sum over rows of x[row, column]
  void (*column_sums[kDtypes])(const void* x, int64_t rows, int64_t columns, double* totals);
  // y = act(x + bias), one bias for all elements
  void (*bias_act[kDtypes])(const void* x, void* y, int64_t count, double bias, int activation, double slope);
  // y = act(x + pattern), one bias an element; pattern is float (double for f64)
  void (*pattern_act[kDtypes])(const void* x, const void* pattern, void* y, int64_t count, int activation,
                               double slope);
  void (*act_backward[kDtypes])(const void* gy, const void* y, void* gx, int64_t count, int activation, double slope);
  // One element, for what is left after a sum: array[i] as a double, and back, rounded to its dtype.
  double (*read[kDtypes])(const void* array, int64_t i);
  void (*write[kDtypes])(void* array, int64_t i, double value);
};

const KernelTable* table_base();
const KernelTable* table_avx2();
const KernelTable* table_avx512();

// The table in use.
const KernelTable& kernels();

}  // namespace ganscale::cpu
