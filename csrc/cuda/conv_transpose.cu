// Transposed convolution.
#include "ganscale/conv_transpose.h"

#include "wrap.h"

namespace ganscale::cuda {

Status conv_transpose(const View&, const View&, const View&, const View&, const View&, const View&, const ConvShape&, int, double, bool, const Exec&) { return fail(kNotBuilt, "conv_transpose is not built"); }
int64_t conv_transpose_workspace_bytes(const View&, const View&, const View&, const ConvShape&) { return 0; }

}  // namespace ganscale::cuda
