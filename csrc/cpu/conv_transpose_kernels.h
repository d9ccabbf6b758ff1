// The table of serial kernels of transposed convolution to few channels; one table an instruction set.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace ganscale::cpu {

// Sizes and strides in elements; offsets into a task's scratch memory in numbers of the accumulation type.
struct FewShape {
  int64_t ci, h, w, co, out_h, out_w, kh, kw, stride_h, stride_w, padding_h, padding_w;
  int64_t x_c, x_h, x_w, y_c, y_h, y_w;
  bool halves;            // kernel 4, stride 2: every output pixel gets two halves of a product
  int64_t columns;        // of the weight matrix [CI, columns]: KH * KW * CO, to a multiple of 16
  int64_t line;           // pixels of an uncropped output row
  int64_t row_at, products_at, sums_at, line_at, scratch;
};

struct FewTable {
  // weight [CI, CO, KH, KW] -> [CI, columns]: [KH, KW, CO], or [half of KW, KH, KW / 2, CO] where `halves`.
  void (*pack[kDtypes])(const FewShape& shape, const void* weight, void* packed);
  // Rows [first, last) of one sample's output. `bias` holds a number for every element of a row [W, CO].
  void (*rows[kDtypes])(const FewShape& shape, const void* x, const void* packed, const void* bias, void* y,
                        void* scratch, int64_t first, int64_t last, int activation, double slope);
};

const FewTable* few_table_base();
const FewTable* few_table_avx2();
const FewTable* few_table_avx512();

}  // namespace ganscale::cpu
