// The table of serial kernels of batch statistics, affine map and activation; one table an instruction set, all with
// the same bits. Two ways to read [O, C, I]: "columns", rows of `stride` elements with parameters an element (small I,
// channels_last included), and "runs", I elements of one channel in a row with parameters a channel.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace ganscale::cpu {

// Parameters are rows of numbers (float32, float64 for float64), `stride` or `channels` long each.
enum NormParameter : int { kParMean = 0, kParScale, kParShift, kParSlopeOfX, kParOffset, kParameters };
enum NormMode : int { kForward = 0, kBackwardConstant, kBackwardBatch };

struct NormTable {
  // totals[column], totals[stride + column] += sum, sum of squares of the `live` first columns of `rows` rows.
  void (*column_moments[kDtypes])(const void* x, int64_t rows, int64_t stride, int64_t live, double* totals);
  void (*run_moments[kDtypes])(const void* x, int64_t outer, int64_t channels, int64_t inner, double* totals);
  // The same of g' and g' * (x - mean).
  void (*column_sums[kDtypes])(const void* gy, const void* x, int64_t rows, int64_t stride, int64_t live,
                               const void* parameters, double* totals, int activation, double slope);
  void (*run_sums[kDtypes])(const void* gy, const void* x, int64_t outer, int64_t channels, int64_t inner,
                            const void* parameters, double* totals, int activation, double slope);
  // kForward: out = act(z). Else out = scale * g' (constant statistics), or scale * (g' - offset - (x - mean) * b) with
  // b in row kParSlopeOfX. Runs are numbered through samples and channels.
  void (*column_map[kDtypes])(const void* gy, const void* x, void* out, int64_t rows, int64_t stride, int64_t live,
                              const void* parameters, int mode, int activation, double slope);
  void (*run_map[kDtypes])(const void* gy, const void* x, void* out, int64_t first, int64_t last, int64_t channels,
                           int64_t inner, const void* parameters, int mode, int activation, double slope);
};

const NormTable* norm_table_base();
const NormTable* norm_table_avx2();
const NormTable* norm_table_avx512();

}  // namespace ganscale::cpu
