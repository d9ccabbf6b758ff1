// What the tests of the emulated CUDA kernels share: tensors of every dtype between guards, tolerances, the seeds.
//
// A test calls an operator of the C interface with gpu() or on_cpu(): the operators are linked with the emulated
// kernels in the place of the GPU's, so both sides pass the same argument checks. Outputs and workspaces begin as NaN.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "ganscale/api.h"
#include "simt.h"

namespace emulated {

using ganscale::View;

constexpr int kSeeds = 8;  // orders of threads that every test sees
constexpr int kFloats[] = {ganscale::kF32, ganscale::kF64, ganscale::kF16, ganscale::kBF16};

// --- saying what failed ---------------------------------------------------------------------------------------------

inline int checks = 0;
inline std::string context;  // of the checks that follow

inline void say(const char* format, ...) __attribute__((format(printf, 1, 2)));
inline void say(const char* format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  context = text;
}

inline void expect(bool holds, const char* what, const char* file, int line) {
  ++checks;
  if (holds) return;
  std::printf("%s:%d: %s [%s]\n", file, line, what, context.c_str());
  std::exit(1);
}
#define EXPECT(condition) emulated::expect(condition, #condition, __FILE__, __LINE__)
#define EXPECT_OK(call)                                                   \
  do {                                                                    \
    const ganscale::Status status_ = (call);                              \
    const std::string what_ = std::string(#call ": ") + status_.message;  \
    emulated::expect(status_.code == ganscale::kOk, what_.c_str(), __FILE__, __LINE__); \
  } while (false)

// --- tensors --------------------------------------------------------------------------------------------------------

inline size_t bytes_of(int dtype) {
  constexpr size_t bytes[] = {4, 8, 2, 2, 1};
  return bytes[dtype];
}

class Tensor {
 public:
  // `shift` elements past an address aligned to 16 bytes.
  Tensor(int dtype, std::vector<int64_t> sizes, int64_t shift = 0) : dtype_(dtype), sizes_(std::move(sizes)) {
    for (const int64_t size : sizes_) count_ *= size;
    const size_t bytes = static_cast<size_t>(count_) * bytes_of(dtype), skip = static_cast<size_t>(shift) * bytes_of(dtype);
    total_ = kGuard + skip + bytes + kTail;
    memory_.reset(static_cast<unsigned char*>(std::malloc(total_)));  // aligned to 16
    std::memset(memory_.get(), kGuardByte, total_);
    data_ = memory_.get() + kGuard + skip;
    simt::poison(data_, bytes);
  }

  // Values in [low, high), the same for every dtype up to rounding.
  static Tensor random(int dtype, std::vector<int64_t> sizes, uint32_t seed, double low = -1, double high = 1,
                       int64_t shift = 0) {
    Tensor tensor(dtype, std::move(sizes), shift);
    uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int64_t i = 0; i < tensor.count_; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      tensor.set(i, low + (high - low) * static_cast<double>(state >> 11) * 0x1p-53);
    }
    return tensor;
  }

  double at(int64_t i) const {
    switch (dtype_) {
      case ganscale::kF32: return get<float>(i);
      case ganscale::kF64: return get<double>(i);
      case ganscale::kF16: return simt::widen_f16(get<uint16_t>(i));
      case ganscale::kBF16: return simt::widen_bf16(get<uint16_t>(i));
      default: return get<uint8_t>(i);
    }
  }
  void set(int64_t i, double value) {
    switch (dtype_) {
      case ganscale::kF32: put(i, static_cast<float>(value)); break;
      case ganscale::kF64: put(i, value); break;
      case ganscale::kF16: put(i, simt::narrow_f16(static_cast<float>(value))); break;
      case ganscale::kBF16: put(i, simt::narrow_bf16(static_cast<float>(value))); break;
      default: put(i, static_cast<uint8_t>(value));
    }
  }

  View view() const {
    View view{};
    view.data = data_;
    view.dtype = dtype_;
    view.ndim = static_cast<int>(sizes_.size());
    int64_t step = 1;
    for (int axis = view.ndim - 1; axis >= 0; --axis) {
      view.size[axis] = sizes_[static_cast<size_t>(axis)];
      view.stride[axis] = step;
      step *= view.size[axis];
    }
    return view;
  }
  // The same memory with other sizes.
  View view(std::vector<int64_t> sizes) const {
    Tensor shape(dtype_, std::move(sizes));
    View view = shape.view();
    view.data = data_;
    return view;
  }
  Tensor clone() const {
    Tensor copy(dtype_, sizes_);
    std::memcpy(copy.data_, data_, bytes());
    return copy;
  }

  int dtype() const { return dtype_; }
  int64_t count() const { return count_; }
  size_t bytes() const { return static_cast<size_t>(count_) * bytes_of(dtype_); }
  void* data() const { return data_; }
  bool same_bits(const Tensor& other) const {
    return bytes() == other.bytes() && std::memcmp(data_, other.data_, bytes()) == 0;
  }
  // Nothing was written before or past the tensor. With the address sanitizer memory ends where the tensor does.
  bool intact() const {
    const auto* begin = memory_.get();
    for (const unsigned char* p = begin; p < begin + total_; ++p) {
      if (p == data_) p += bytes();
      if (p < begin + total_ && *p != kGuardByte) return false;
    }
    return true;
  }

 private:
#ifdef SIMT_ASAN
  static constexpr size_t kTail = 0;
#else
  static constexpr size_t kTail = 64;
#endif
  static constexpr size_t kGuard = 64;
  static constexpr unsigned char kGuardByte = 0xff;  // NaN, so that reading it shows

  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  template <class T>
  T get(int64_t i) const {
    T value;
    std::memcpy(&value, data_ + static_cast<size_t>(i) * sizeof value, sizeof value);
    return value;
  }
  template <class T>
  void put(int64_t i, T value) {
    std::memcpy(data_ + static_cast<size_t>(i) * sizeof value, &value, sizeof value);
  }

  int dtype_;
  std::vector<int64_t> sizes_;
  int64_t count_ = 1;
  size_t total_ = 0;
  std::unique_ptr<unsigned char[], Free> memory_;
  unsigned char* data_ = nullptr;
};

// --- running --------------------------------------------------------------------------------------------------------

inline ganscale::Exec gpu(const Tensor* workspace = nullptr) {
  return {0, 1, nullptr, workspace ? workspace->data() : nullptr,
          workspace ? static_cast<int64_t>(workspace->bytes()) : 0};
}
inline ganscale::Exec on_cpu(const Tensor* workspace = nullptr) {
  ganscale::Exec exec = gpu(workspace);
  exec.device = -1;
  return exec;
}
// Scratch memory of at least `bytes`, which may be 0.
inline Tensor scratch(int64_t bytes) { return Tensor(ganscale::kF64, {bytes / 8 + 1}); }

// Calls f once for every order of threads.
template <class F>
void with_every_order(F f) {
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    simt::set_seed(seed);
    f();
  }
}

// --- comparing ------------------------------------------------------------------------------------------------------

// The spacing of the dtype's numbers near 1: what one rounding of a result may cost is half of it.
inline double spacing(int dtype) {
  constexpr double values[] = {0x1p-23, 0x1p-52, 0x1p-10, 0x1p-7};
  return values[dtype];
}

// Each element within `steps` spacings of its dtype of the expected one, relative to 1 + |expected|.
inline void expect_close(const Tensor& got, const std::vector<double>& expected, double steps, const char* file,
                         int line) {
  expect(got.count() == static_cast<int64_t>(expected.size()), "as many elements as expected", file, line);
  for (int64_t i = 0; i < got.count(); ++i) {
    const double want = expected[static_cast<size_t>(i)], have = got.at(i);
    if (std::fabs(have - want) <= steps * spacing(got.dtype()) * (1 + std::fabs(want))) continue;
    char what[160];
    std::snprintf(what, sizeof what, "element %lld must be %.9g, got %.9g", static_cast<long long>(i), want, have);
    expect(false, what, file, line);
  }
  expect(got.intact(), "nothing is written outside the output", file, line);
}
#define EXPECT_CLOSE(got, expected, steps) emulated::expect_close(got, expected, steps, __FILE__, __LINE__)

inline std::vector<double> values(const Tensor& tensor) {
  std::vector<double> all(static_cast<size_t>(tensor.count()));
  for (int64_t i = 0; i < tensor.count(); ++i) all[static_cast<size_t>(i)] = tensor.at(i);
  return all;
}

inline int passed(const char* family) {
  std::printf("%s: %d checks passed\n", family, checks);
  return 0;
}

}  // namespace emulated
