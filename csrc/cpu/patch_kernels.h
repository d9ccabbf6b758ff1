// The table of serial CPU kernels that add up patches; see kernels.h for what holds of every table.
#pragma once

#include <cstdint>

namespace ganscale::cpu {

constexpr int kPatchDtypes = 4;  // indexed by Dtype

struct PatchTable {
  // total[i] += x[i]; total is float (double for f64)
  void (*add[kPatchDtypes])(void* total, const void* x, int64_t count);
  // y[i] = total[i], rounded
  void (*narrow[kPatchDtypes])(const void* total, void* y, int64_t count);
};

const PatchTable* patch_table_base();
const PatchTable* patch_table_avx2();
const PatchTable* patch_table_avx512();

}  // namespace ganscale::cpu
