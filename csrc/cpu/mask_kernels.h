// The table of serial CPU kernels for activations with bit masks; see kernels.h for what holds of every table.
#pragma once

#include <cstdint>

namespace ganscale::cpu {

constexpr int kMaskDtypes = 4;  // indexed by Dtype

struct MaskTable {
  // In place: z = x + bias (one bias for all), x = z > 0 ? z : slope * z; the bits are written from mask[0] on.
  void (*act[kMaskDtypes])(void* x, int64_t count, double bias, double slope, uint8_t* mask);
  // The same with one bias an element; pattern is float (double for f64).
  void (*pattern_act[kMaskDtypes])(void* x, const void* pattern, int64_t count, double slope, uint8_t* mask);
  // In place: x = bit ? x : slope * x.
  void (*scale[kMaskDtypes])(void* x, int64_t count, double slope, const uint8_t* mask);
};

const MaskTable* mask_table_base();
const MaskTable* mask_table_avx2();
const MaskTable* mask_table_avx512();

}  // namespace ganscale::cpu
