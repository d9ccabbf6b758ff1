// A small emulator of CUDA's thread model, for tests only: with GS_EMULATED defined, a .cu file that keeps to wrap.h
// compiles with any C++17 compiler and runs on the CPU.
//
// A thread is a fiber. Blocks run one after another; the threads of a block run one after another too, each from one
// meeting point (barrier, warp operation) to the next, in an order that the seed chooses. So a missing barrier shows
// as a wrong result under some seed. What else is caught, and ends the process with a message:
//   - a barrier that not all threads of the block reach, or that they reach on different lines
//   - a warp operation whose mask names a lane that never comes, that has ended, or that gives another mask
//   - cp.async read before its wait (the destination is NaN until then), misaligned, or never waited for
//   - ldmatrix and cp.async on memory that is not the block's shared memory
//   - writes outside a shared array; with the address sanitizer also reads, and all accesses to global memory
// Shared memory is filled with NaN when a block starts; a bad launch configuration gives an error as CUDA does.
// Not shown: the order in which other threads see writes to memory, races between blocks, bank conflicts, registers,
// time, and instructions without a wrapper (wgmma, TMA).
//
// How a test uses it: compile csrc/emu/simt.cpp with the kernels, then for each of several seeds call
// simt::set_seed(seed) and the host function that launches, with host pointers and any stream. 0 is ascending order,
// 1 descending, others are shuffles. csrc/tests/emulated.h does this: see it for the loop over seeds.
#pragma once

#include <cstdint>
#include <tuple>
#include <type_traits>

#include "intrinsics.h"
#include "runtime.h"
#include "scheduler.h"
#include "tensor_core.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__

#define GS_LAUNCH(blocks, threads, shared_bytes, stream, ...) \
  ::simt::launch(blocks, threads, shared_bytes, stream, __VA_ARGS__)
#define GS_SHARED(type, name, count)     \
  static const char name##_site = 0;     \
  auto& name = *static_cast<type(*)[count]>( \
      ::simt::static_shared(&name##_site, #name, sizeof(type[count]), alignof(type)))
#define GS_DYNAMIC_SHARED(name) unsigned char* const name = static_cast<unsigned char*>(::simt::dynamic_shared())

namespace simt {

inline cudaError_t check_launch(const dim3& grid, const dim3& block, size_t shared_bytes, const void* kernel) {
  const uint64_t count = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (count == 0 || count > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  const auto allowed = shared_allowed.find(kernel);
  const size_t most = allowed == shared_allowed.end() ? kSharedByDefault : allowed->second;
  return shared_bytes > most && shared_bytes > kSharedByDefault ? cudaErrorInvalidValue : cudaSuccess;
}

template <class... Parameters>
class Launch {
 public:
  using Kernel = void (*)(Parameters...);
  Launch(const dim3& grid, const dim3& block, size_t shared_bytes, Kernel kernel)
      : grid_(grid), block_(block), shared_bytes_(shared_bytes), kernel_(kernel) {}

  template <class... Arguments>
  void operator()(Arguments... arguments) const {
    static_assert((std::is_trivially_copyable_v<Parameters> && ...), "parameters travel to the device as bytes");
    static_assert((sizeof(Parameters) + ... + 0) <= 4096, "the device takes 4 KiB of parameters");
    if (keep(check_launch(grid_, block_, shared_bytes_, reinterpret_cast<const void*>(kernel_))) != cudaSuccess) return;
    struct Closure {
      Kernel kernel;
      std::tuple<Parameters...> parameters;
    } closure{kernel_, {static_cast<Parameters>(arguments)...}};
    run_grid(grid_, block_, shared_bytes_,
             [](void* self) {
               const auto& call = *static_cast<Closure*>(self);
               std::apply(call.kernel, call.parameters);
             },
             &closure);
  }

 private:
  dim3 grid_, block_;
  size_t shared_bytes_;
  Kernel kernel_;
};

template <class... Parameters>
Launch<Parameters...> launch(const dim3& grid, const dim3& block, size_t shared_bytes, cudaStream_t,
                             void (*kernel)(Parameters...)) {
  return {grid, block, shared_bytes, kernel};
}

}  // namespace simt
