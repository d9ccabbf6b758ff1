// What the operators' host code shares: how work is cut, and the way to the CUDA side.
#pragma once

#include "check.h"
#include "ganscale/cuda.h"

namespace ganscale {

constexpr int64_t kPiece = 16384;  // elements of one task: 64 KiB of float32

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline char* at(const View& view, int64_t element) {
  return static_cast<char*>(view.data) + element * element_size(view.dtype);
}

// Leaves the operator through its CUDA twin where the call is for a GPU.
#ifdef GS_CUDA
#define GS_ON_DEVICE(call) \
  if (exec.device >= 0) return cuda::call
#else
#define GS_ON_DEVICE(call) \
  if (exec.device >= 0) return fail(kNotBuilt, "the core was built without CUDA; rebuild it where nvcc is on PATH")
#endif

}  // namespace ganscale
