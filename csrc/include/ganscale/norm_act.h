// Normalisation by batch statistics, affine map and activation: two passes forward, two backward, each over memory
// once. The pieces are apart so that ranks can add up their statistics in between. Shapes as in api.h.
// Below z = x * scale[c] + shift[c], y = act(z), and g' = gy * act'(z) with the derivative recomputed from x.
#pragma once

#include "ganscale/api.h"

namespace ganscale {

// totals[0, c] = sum, totals[1, c] = sum of squares of x over O and I, taken about a shift inside, so that a mean far
// from 0 costs no accuracy.   x [O, C, I]; totals [2, C] float64. Workspace: norm_workspace_bytes.
Status channel_moments(const View& x, const View& totals, const Exec& exec);

// y = act(x * scale[c] + shift[c]).   x, y [O, C, I]; scale, shift [C] float32 (float64 for float64 x).
Status affine_act(const View& x, const View& scale, const View& shift, const View& y, int activation, double slope,
                  const Exec& exec);

// totals[0, c] = sum of g', totals[1, c] = sum of g' * (x - mean[c]).   gy, x [O, C, I]; scale, shift, mean [C] as above;
// totals [2, C] float64; activation linear, relu or leaky relu. Workspace: norm_workspace_bytes.
Status affine_act_backward_sums(const View& gy, const View& x, const View& scale, const View& shift, const View& mean,
                                const View& totals, int activation, double slope, const Exec& exec);

// gx = a[c] * g' + b[c] * (x - mean[c]) + k[c].   gy, x, gx [O, C, I]; all others [C] as above.
Status affine_act_backward(const View& gy, const View& x, const View& scale, const View& shift, const View& mean,
                           const View& a, const View& b, const View& k, const View& gx, int activation, double slope,
                           const Exec& exec);

// Scratch memory of the two sums, enough for either device.
int64_t norm_workspace_bytes(int64_t outer, int64_t channels, int64_t inner);

namespace cuda {
Status channel_moments(const View& x, const View& totals, const Exec& exec);
Status affine_act(const View& x, const View& scale, const View& shift, const View& y, int activation, double slope,
                  const Exec& exec);
Status affine_act_backward_sums(const View& gy, const View& x, const View& scale, const View& shift, const View& mean,
                                const View& totals, int activation, double slope, const Exec& exec);
Status affine_act_backward(const View& gy, const View& x, const View& scale, const View& shift, const View& mean,
                           const View& a, const View& b, const View& k, const View& gx, int activation, double slope,
                           const Exec& exec);
int64_t norm_workspace_bytes(int64_t outer, int64_t channels, int64_t inner);
}  // namespace cuda

}  // namespace ganscale
