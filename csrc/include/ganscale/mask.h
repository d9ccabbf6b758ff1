// Activations that leave their derivative behind as one bit an element: what a fused gradient penalty keeps of its
// forward pass. Shapes as in api.h.
#pragma once

#include "ganscale/api.h"

namespace ganscale {

// Bytes of the mask of `elements` elements.
int64_t mask_bytes(int64_t elements);

// In place: z = x + bias[c], x = z > 0 ? z : slope * z; bit i % 8 of mask[i / 8] tells whether element i of x, in memory
// order, had z > 0.   x [O, C, I]; bias [C] of x's dtype, or data == nullptr; mask [mask_bytes] of kU8; slope >= 0.
Status act_mask(const View& x, const View& bias, const View& mask, double slope, const Exec& exec);

// In place: x = bit ? x : slope * x, where a slope of 0 gives 0 whatever x is.   x [1, 1, I]; mask as above.
Status mask_scale(const View& x, const View& mask, double slope, const Exec& exec);

namespace cuda {
Status act_mask(const View& x, const View& bias, const View& mask, double slope, const Exec& exec);
Status mask_scale(const View& x, const View& mask, double slope, const Exec& exec);
}  // namespace cuda

}  // namespace ganscale
