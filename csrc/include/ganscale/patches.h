// The patches of an image as the rows of a matrix, and back: with a matrix product between, a convolution, its
// transpose, or the gradient of its weights. For small images with many channels this beats a direct convolution by far.
// CPU only. Legend: N samples, H, W image sides, C channels, h, w sides of the grid of patches, K = KH * KW * C.
#pragma once

#include "ganscale/api.h"

namespace ganscale {

struct PatchShape {
  int kernel[2];
  int stride[2];
  int padding[2];
};

// patches[n, i, j, (ky, kx, c)] = x[n, i * stride - padding + ky, j * stride - padding + kx, c], and 0 outside of x.
// x [N, H, W, C]; patches [N, h, w, K] of the same dtype.
Status unfold(const View& x, const View& patches, const PatchShape& shape, const Exec& exec);

// Its transpose: every element of x is the sum of all places of `patches` that unfold would fill with it, added up in a
// fixed order, in float32 (float64 for float64).   patches [N, h, w, K]; x [N, H, W, C].
// Workspace: fold_workspace_bytes.
Status fold(const View& patches, const View& x, const PatchShape& shape, const Exec& exec);
int64_t fold_workspace_bytes(const View& x, const Exec& exec);

}  // namespace ganscale
