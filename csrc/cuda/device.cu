// What the machine offers: the number of usable GPUs, or why there is none.
#include "wrap.h"

namespace ganscale {

int cuda_device_count(Status* why) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  *why = error == cudaSuccess ? ok() : fail(kCudaFailure, "%s", cudaGetErrorString(error));
  cudaGetLastError();  // a failed query leaves nothing behind for the next launch check
  return error == cudaSuccess ? count : 0;
}

}  // namespace ganscale
