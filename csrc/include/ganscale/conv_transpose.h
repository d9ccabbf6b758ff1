// Transposed convolution, as a generator's up-sampling block needs it. Images are four-axis views with strides: NCHW
// or channels_last, dense. The output's size says which output_padding was asked for.
// Legend: N samples, CI and CO channels in and out, h, w input sides, H, W output sides, K kernel sides.
#pragma once

#include "ganscale/api.h"

namespace ganscale {

struct ConvShape {
  int stride[2];
  int padding[2];
  bool tf32 = false;  // conv_transpose_few may round float32 to tf32 where that is faster (on a GPU)
};

// y = act(convT(x, weight) + bias[c]) for at most kFewChannels output channels, which a matrix product serves badly.
// x [N, CI, h, w]; weight [CI, CO, KH, KW] contiguous; bias [CO] of x's dtype, or data == nullptr; y [N, CO, H, W] in
// the layout of x. Groups 1, dilation 1.
constexpr int kFewChannels = 4;
Status conv_transpose_few(const View& x, const View& weight, const View& bias, const View& y, const ConvShape& shape,
                          int activation, double slope, const Exec& exec);
int64_t conv_transpose_few_workspace_bytes(const View& x, const View& weight, const View& y, const ConvShape& shape,
                                           const Exec& exec);

// GPU only: y = act(convT(x, weight) * scale[c] + shift[c]) for any number of channels, by one matrix product an output
// phase (y, x) mod stride, without zeros stuffed in between. x, y channels_last; weight as above; scale, shift [CO]
// float32, or data == nullptr for 1 and 0. Where `totals` is given, [2, CO] float64, it receives the sum and the sum of
// squares of convT(x, weight) over N, H, W (no activation is applied then, and scale and shift must be absent).
// x float16 or bfloat16 on tensor cores; float32 as tf32 where `tf32`, else in IEEE float32.
Status conv_transpose(const View& x, const View& weight, const View& scale, const View& shift, const View& y,
                      const View& totals, const ConvShape& shape, int activation, double slope, bool tf32,
                      const Exec& exec);
int64_t conv_transpose_workspace_bytes(const View& x, const View& weight, const View& y, const ConvShape& shape,
                                       const Exec& exec);

namespace cuda {
Status conv_transpose_few(const View& x, const View& weight, const View& bias, const View& y, const ConvShape& shape,
                          int activation, double slope, const Exec& exec);
int64_t conv_transpose_few_workspace_bytes(const View& x, const View& weight, const View& y, const ConvShape& shape);
Status conv_transpose(const View& x, const View& weight, const View& scale, const View& shift, const View& y,
                      const View& totals, const ConvShape& shape, int activation, double slope, bool tf32,
                      const Exec& exec);
int64_t conv_transpose_workspace_bytes(const View& x, const View& weight, const View& y, const ConvShape& shape);
}  // namespace cuda

}  // namespace ganscale
