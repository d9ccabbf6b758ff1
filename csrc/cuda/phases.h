// Output phases of a transposed convolution. Along one axis output o = s j + d belongs to phase d < s. With r = (d + p)
// mod s and offset = (d + p) / s it gathers taps t = 0, 1, ...: kernel place r + s t at input j + offset - t. So a phase is
// an ordinary convolution over its outputs j, and no zeros are stuffed in.
#pragma once

#include "ganscale/conv_transpose.h"
#include "planes.h"

namespace ganscale::cuda {

struct PhaseAxis {
  int start;   // r: the first kernel place
  int offset;  // input place of tap 0 at j = 0
  int taps;    // 0 where the stride is larger than the kernel
  int count;   // outputs
};

__host__ __device__ __forceinline__ PhaseAxis phase_axis(int phase, int stride, int padding, int kernel, int outputs) {
  PhaseAxis axis;
  axis.start = (phase + padding) % stride;
  axis.offset = (phase + padding) / stride;
  axis.taps = axis.start < kernel ? (kernel - axis.start + stride - 1) / stride : 0;
  axis.count = phase < outputs ? (outputs - phase + stride - 1) / stride : 0;
  return axis;
}

// Sizes of a call, as kernels use them.
struct ConvSizes {
  int samples, in_channels, out_channels;
  int in[2], out[2], kernel[2], stride[2], padding[2];

  __host__ __device__ __forceinline__ PhaseAxis axis(int which, int phase) const {
    return phase_axis(phase, stride[which], padding[which], kernel[which], out[which]);
  }
  __host__ __device__ __forceinline__ int phases() const { return stride[0] * stride[1]; }
};

// Fills `sizes`; refuses what 32-bit places inside a sample or of a kernel cannot hold.
inline Status conv_sizes(const View& x, const View& weight, const View& y, const ConvShape& shape, ConvSizes* sizes) {
  const int64_t numbers[] = {x.size[0], x.size[1], x.size[2], x.size[3], y.size[1], y.size[2],
                             y.size[3], weight.size[2], weight.size[3]};
  for (const int64_t number : numbers) {
    if (number > INT32_MAX / 4) {
      return fail(kBadArgument, "sides, channels and samples must be below 2^29, got %lld", static_cast<long long>(number));
    }
  }
  sizes->samples = static_cast<int>(x.size[0]);
  sizes->in_channels = static_cast<int>(x.size[1]);
  sizes->out_channels = static_cast<int>(y.size[1]);
  for (int axis = 0; axis < 2; ++axis) {
    sizes->in[axis] = static_cast<int>(x.size[2 + axis]);
    sizes->out[axis] = static_cast<int>(y.size[2 + axis]);
    sizes->kernel[axis] = static_cast<int>(weight.size[2 + axis]);
    sizes->stride[axis] = shape.stride[axis];
    sizes->padding[axis] = shape.padding[axis];
  }
  return ok();
}

}  // namespace ganscale::cuda
