// What CUDA kernels use instead of toolkit headers' types: 16-bit floats as plain structs, 16-byte loads, shuffles,
// and the launch-side guards. Keeping it here lets the same kernels be compiled by another compiler for testing.
#pragma once

#ifdef GS_EMULATED
#include "simt.h"
#else
#include <cuda_runtime.h>

#define GS_LAUNCH(blocks, threads, shared_bytes, stream, ...) __VA_ARGS__<<<blocks, threads, shared_bytes, stream>>>
#define GS_SHARED(type, name, count) __shared__ type name[count]
#define GS_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

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

// --- one element ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
#ifdef GS_EMULATED
inline float widen(f16 x) { return simt::widen_f16(x.bits); }
inline void narrow(float x, f16& to) { to.bits = simt::narrow_f16(x); }
inline void narrow(float x, bf16& to) { to.bits = simt::narrow_bf16(x); }
#else
__device__ __forceinline__ float widen(f16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
__device__ __forceinline__ void narrow(float x, f16& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
__device__ __forceinline__ void narrow(float x, bf16& to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
#endif

// --- tensor cores and asynchronous copies (sm_80) -------------------------------------------------------------------

#ifdef GS_EMULATED
inline void cp_async16(void* shared, const void* global, bool valid, SIMT_HERE) {
  simt::copy_async(shared, global, 16, valid, where);
}
inline void cp_async_commit() { simt::commit_copies(); }
template <int pending>
void cp_async_wait() {
  simt::wait_copies(pending);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row, SIMT_HERE) {
  simt::ldmatrix(r, shared_row, false, where);
}
inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* shared_row, SIMT_HERE) {
  simt::ldmatrix(r, shared_row, true, where);
}
inline void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16, SIMT_HERE) {
  simt::mma<simt::Bf16Pair>(c, a, b, where);
}
inline void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16, SIMT_HERE) {
  simt::mma<simt::F16Pair>(c, a, b, where);
}
inline void mma_16x8x8_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_HERE) {
  simt::mma<simt::Tf32>(c, a, b, where);
}
inline uint32_t to_tf32(float x) { return simt::narrow_tf32(x); }
#else
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Starts copying 16 bytes into shared memory, or 16 zeros where not `valid` (`global` is then not read).
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's committed groups are still under way; a barrier must follow before
// other threads' copies are read.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(shared_row)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(shared_row)) : "memory");
}

// c += a b over a warp: a 16x16 row-major, b 16x8 column-major, c 16x8 float32; the type of `as` says what the bits are.
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same with 8 tf32 columns of a: a 16x8, b 8x8.
__device__ __forceinline__ void mma_16x8x8_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
#endif

// `width` elements moved by one instruction (16 bytes where width * sizeof(T) is 16).
template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
  T at[width];
};
template <class T>
constexpr int kWide = 16 / sizeof(T);

// One load from global memory that this kernel also writes; the compiler may take the copy of a struct apart there.
template <int width, class T>
__device__ __forceinline__ Pack<T, width> load_pack(const T* from) {
#ifndef GS_EMULATED
  if constexpr (sizeof(Pack<T, width>) == 16) {
    uint32_t bits[4];
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits[0]), "=r"(bits[1]), "=r"(bits[2]), "=r"(bits[3])
                 : "l"(__cvta_generic_to_global(from)) : "memory");
    Pack<T, width> pack;
    memcpy(&pack, bits, 16);
    return pack;
  }
#endif
  return *reinterpret_cast<const Pack<T, width>*>(from);
}

// One store to global memory, which may be taken apart likewise.
template <class T, int width>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, width>& pack) {
#ifndef GS_EMULATED
  if constexpr (sizeof pack == 16) {
    uint32_t bits[4];
    memcpy(bits, &pack, 16);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(bits[0]),
                 "r"(bits[1]), "r"(bits[2]), "r"(bits[3]) : "memory");
    return;
  }
#endif
  *reinterpret_cast<Pack<T, width>*>(to) = pack;
}

inline bool aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class A>
__device__ __forceinline__ A warp_sum(A value) {
  for (int step = 16; step > 0; step >>= 1) value += __shfl_down_sync(0xffffffffu, value, step);
  return value;
}

// Sum over the block, valid in thread 0; the order is fixed. Call it once a kernel: its shared memory is not reused.
template <class A>
__device__ __forceinline__ A block_sum(A value) {
  GS_SHARED(A, warps, kWarps);
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  A total = A(0);
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kWarps; ++warp) total += warps[warp];
  }
  return total;
}

// Makes `device` current for the calls of one operator, and the earlier one again afterwards. That never makes a context:
// torch has allocated results on `device` in this thread, and stays there itself where the earlier one has none.
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
