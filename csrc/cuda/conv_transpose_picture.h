// The picture's layer on tensor cores: 16-bit floats or tf32, channels_last, stride 1 or 2. See conv_transpose_picture.cu.
#pragma once

#include "phases.h"

namespace ganscale::cuda {

struct PicturePlan {
  ConvSizes sizes;
  int low[2];     // least input place of a tap, relative to an output's own place j
  int shifts[2];  // input places from there on that some phase reaches
  int tile[2], tiles[2], patch[2];
  int chunks;  // of 128 bytes of input channels
  int shared_bytes;
  int64_t blocks, workspace_bytes;
};

// Whether the kernel takes these, and how.
bool plan_picture(const View& x, const View& weight, const View& y, const ConvShape& shape, PicturePlan* plan);

Status run_picture(const View& x, const View& weight, const View& bias, const View& y, const PicturePlan& plan,
                   int activation, double slope, const Exec& exec);

}  // namespace ganscale::cuda
