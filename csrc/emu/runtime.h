// The part of the CUDA runtime's interface that launchers use, on one imaginary device.
#pragma once

#include <cstring>
#include <map>

#include "scheduler.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
using cudaStream_t = struct CUstream_st*;

namespace simt {

constexpr size_t kSharedByDefault = 48 * 1024, kSharedAtMost = 227 * 1024;
inline int devices = 1;  // what the machine has; tests may change it
inline int processors = 4;
inline int device_now = 0;
inline cudaError_t last_error = cudaSuccess;
inline std::map<const void*, size_t> shared_allowed;  // by kernel

inline cudaError_t keep(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace simt

inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
  }
  return "unknown";
}
inline const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = simt::last_error;
  simt::last_error = cudaSuccess;
  return error;
}
inline cudaError_t cudaPeekAtLastError() { return simt::last_error; }

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = simt::devices;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = simt::device_now;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= simt::devices) return simt::keep(cudaErrorInvalidDevice);
  simt::device_now = device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= simt::devices) return simt::keep(cudaErrorInvalidDevice);
  *value = attribute == cudaDevAttrMultiProcessorCount ? simt::processors : static_cast<int>(simt::kSharedAtMost);
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (value < 0 || static_cast<size_t>(value) > simt::kSharedAtMost) return simt::keep(cudaErrorInvalidValue);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    simt::shared_allowed[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(value);
  }
  return cudaSuccess;
}

// Work is done when it is asked for, so the order on a stream is kept and there is nothing to wait for.
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
