// The C interface of the core: raw pointers, sizes, strides, and a stream handle. No torch, no Python, no exceptions.
//
// Every operator checks its views again (the Python layer checked them first), allocates nothing, keeps no state and
// returns a status. Shapes here are canonical: the Python layer folds the dense axes of a tensor into them.
// Legend: N samples, S elements of one sample, O outer, C channels, I inner (O * C * I elements in memory order).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ganscale {

constexpr int kMaxDims = 5;

enum Dtype : int { kF32 = 0, kF64 = 1, kF16 = 2, kBF16 = 3, kU8 = 4 };
enum Activation : int { kLinear = 0, kRelu = 1, kLeakyRelu = 2, kTanh = 3 };
enum Code : int { kOk = 0, kBadArgument = 1, kNotBuilt = 2, kCudaFailure = 3, kSystemFailure = 4, kPeerLost = 5 };

// A dense tensor: strides count elements. It does not own `data`.
struct View {
  void* data;
  int dtype;
  int ndim;
  int64_t size[kMaxDims];
  int64_t stride[kMaxDims];
};

// Where and how an operator runs. `workspace` is scratch memory on the same device, sized by the op's query.
struct Exec {
  int device;   // CUDA ordinal; -1 is the CPU
  int threads;  // CPU threads for this call
  void* stream; // cudaStream_t; ignored on the CPU
  void* workspace;
  int64_t workspace_bytes;
};

struct Status {
  int code;
  char message[240];
};

// out[n, s] = eps[n] * real[n, s] + (1 - eps[n]) * fake[n, s].   real, fake, out [N, S]; eps [N]; one dtype.
Status interpolate(const View& real, const View& fake, const View& eps, const View& out, const Exec& exec);

// squared[n] = sum_s g[n, s]^2.   g [N, S]; squared [N] float32 (float64 for float64 g).
Status sample_norm2(const View& g, const View& squared, const Exec& exec);

// norm[n] = |g[n]|_2; penalty[n] = (norm - center)^2, or max(0, norm - center)^2 where one_sided.
Status gp_penalty(const View& g, const View& penalty, const View& norm, double center, bool one_sided,
                  const Exec& exec);

// Workspace that sample_norm2 and gp_penalty need, enough for either device.
int64_t sample_workspace_bytes(int64_t samples, int64_t sample_size);

// y = act(x + bias[c]).   x, y [O, C, I]; bias [C] of x's dtype, or data == nullptr for none.
Status bias_act(const View& x, const View& bias, const View& y, int activation, double slope, const Exec& exec);

// gx = gy * act'(y), the derivative read off the output y.   All [O, C, I].
Status act_backward(const View& gy, const View& y, const View& gx, int activation, double slope, const Exec& exec);

// sum[c] = sum over O and I of x[o, c, i].   x [O, C, I]; sum [C] of x's dtype.
Status channel_sum(const View& x, const View& sum, const Exec& exec);
int64_t channel_sum_workspace_bytes(int64_t outer, int64_t channels, int64_t inner);

// What was built and what this machine can run.
const char* version();
bool built_with_cuda();
bool built_with_openmp();
const char* cuda_archs();            // as given to the build; "" without CUDA
const char* active_isa();            // the instruction set the CPU kernels use
int supported_isas(const char** names, int capacity);  // all that this CPU can run, slowest first
int cuda_device_count(Status* why);  // 0 with a reason where CUDA cannot be used

}  // namespace ganscale
