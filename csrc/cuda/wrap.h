// What CUDA kernels use instead of toolkit headers' types: 16-bit floats as plain structs, 16-byte loads, shuffles,
// and the launch-side guards. Keeping it here lets the same kernels be compiled by another compiler for testing.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "check.h"
#include "ganscale/cuda.h"

namespace ganscale::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

template <class T>
struct Number {
  using Acc = T;
};
template <>
struct Number<f16> {
  using Acc = float;
};
template <>
struct Number<bf16> {
  using Acc = float;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float widen(f16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}

__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, f16& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
__device__ __forceinline__ void narrow(float x, bf16& to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }

// `width` elements moved by one instruction (16 bytes where width * sizeof(T) is 16).
template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
  T at[width];
};
template <class T>
constexpr int kWide = 16 / sizeof(T);

inline bool aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class A>
__device__ __forceinline__ A warp_sum(A value) {
  for (int step = 16; step > 0; step >>= 1) value += __shfl_down_sync(0xffffffffu, value, step);
  return value;
}

// Sum over the block, valid in thread 0; the order is fixed. Call it once a kernel: its shared memory is not reused.
template <class A>
__device__ __forceinline__ A block_sum(A value) {
  __shared__ A warps[kWarps];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  A total = A(0);
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kWarps; ++warp) total += warps[warp];
  }
  return total;
}

// Makes `device` current for the calls of one operator, and the earlier one again afterwards.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device) {
      error_ = cudaSetDevice(device);
      moved_ = error_ == cudaSuccess;
    }
  }
  ~OnDevice() {
    if (moved_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool moved_ = false;
  cudaError_t error_ = cudaSuccess;
};

inline Status from(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return ok();
  return fail(kCudaFailure, "%s failed on the GPU: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

// The result of the launch just made; every launch is followed by it.
inline Status launched(const char* what) { return from(cudaGetLastError(), what); }

inline cudaStream_t stream_of(const Exec& exec) { return static_cast<cudaStream_t>(exec.stream); }

// Blocks of a one-dimensional launch; gridDim.x holds up to 2^31 - 1 of them.
inline bool fits_grid(int64_t blocks) { return blocks > 0 && blocks <= INT32_MAX; }

// Calls f with a null pointer of the element type of `dtype`.
template <class F>
Status with_dtype(int dtype, F f) {
  switch (dtype) {
    case kF32: return f(static_cast<float*>(nullptr));
    case kF64: return f(static_cast<double*>(nullptr));
    case kF16: return f(static_cast<f16*>(nullptr));
    default: return f(static_cast<bf16*>(nullptr));
  }
}

}  // namespace ganscale::cuda
