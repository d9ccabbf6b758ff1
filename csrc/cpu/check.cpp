#include "check.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace ganscale {

Status ok() { return Status{kOk, ""}; }

Status fail(int code, const char* format, ...) {
  Status status{code, ""};
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(status.message, sizeof status.message, format, arguments);
  va_end(arguments);
  return status;
}

int element_size(int dtype) {
  constexpr int sizes[] = {4, 8, 2, 2, 1};
  return dtype >= 0 && dtype < 5 ? sizes[dtype] : 0;
}

int accumulation_dtype(int dtype) { return dtype == kF64 ? kF64 : kF32; }

Check::Check(const Exec& exec) : exec_(exec), status_(ok()) {
  if (exec.device < -1) status_ = fail(kBadArgument, "device must be -1 (the CPU) or a CUDA ordinal, got %d", exec.device);
  if (exec.device < 0 && exec.threads < 1) status_ = fail(kBadArgument, "threads must be positive, got %d", exec.threads);
}

Check& Check::dense(const char* name, const View& view, int ndim) {
  if (passed() && (view.dtype < kF32 || view.dtype > kBF16)) {
    status_ = fail(kBadArgument, "%s must have dtype code 0..3, got %d", name, view.dtype);
  }
  return packed(name, view, ndim);
}

Check& Check::packed(const char* name, const View& view, int ndim) {
  if (!passed()) return *this;
  const int bytes = element_size(view.dtype);
  if (bytes == 0) {
    status_ = fail(kBadArgument, "%s must have dtype code 0..4, got %d", name, view.dtype);
  } else if (view.ndim != ndim) {
    status_ = fail(kBadArgument, "%s must have %d axes, got %d", name, ndim, view.ndim);
  } else if (view.data == nullptr || reinterpret_cast<uintptr_t>(view.data) % bytes != 0) {
    status_ = fail(kBadArgument, "%s must point at an element, got address %p", name, view.data);
  }
  int64_t expected = 1, total = bytes;
  for (int axis = ndim - 1; passed() && axis >= 0; --axis) {
    if (view.size[axis] < 1 || __builtin_mul_overflow(total, view.size[axis], &total)) {
      status_ = fail(kBadArgument, "%s must have positive sizes that fit in memory, got %lld on axis %d", name,
                     static_cast<long long>(view.size[axis]), axis);
    } else if (view.size[axis] > 1 && view.stride[axis] != expected) {
      status_ = fail(kBadArgument, "%s must be dense (stride %lld on axis %d), got %lld", name,
                     static_cast<long long>(expected), axis, static_cast<long long>(view.stride[axis]));
    } else {
      expected *= view.size[axis];
    }
  }
  return *this;
}

Check& Check::bytes(const char* name, const View& view, int64_t count) {
  return dtype(name, view, kU8).packed(name, view, 1).size(name, view, 0, count);
}

Check& Check::dtype(const char* name, const View& view, int dtype) {
  if (passed() && view.dtype != dtype) {
    status_ = fail(kBadArgument, "%s must have dtype code %d, got %d", name, dtype, view.dtype);
  }
  return *this;
}

Check& Check::size(const char* name, const View& view, int axis, int64_t expected) {
  if (passed() && view.size[axis] != expected) {
    status_ = fail(kBadArgument, "%s must have size %lld on axis %d, got %lld", name, static_cast<long long>(expected),
                   axis, static_cast<long long>(view.size[axis]));
  }
  return *this;
}

Check& Check::same_shape(const char* name, const View& view, const View& like) {
  dense(name, view, like.ndim).dtype(name, view, like.dtype);
  for (int axis = 0; axis < like.ndim; ++axis) size(name, view, axis, like.size[axis]);
  return *this;
}

Check& Check::workspace(int64_t bytes) {
  if (passed() && (exec_.workspace == nullptr || exec_.workspace_bytes < bytes ||
                   reinterpret_cast<uintptr_t>(exec_.workspace) % 8 != 0)) {
    status_ = fail(kBadArgument, "workspace must hold %lld bytes aligned to 8, got %lld at %p",
                   static_cast<long long>(bytes), static_cast<long long>(exec_.workspace_bytes), exec_.workspace);
  }
  return *this;
}

Check& Check::activation(int activation, double slope) {
  if (passed() && (activation < kLinear || activation > kTanh)) {
    status_ = fail(kBadArgument, "activation must be code 0..3, got %d", activation);
  } else if (passed() && activation == kLeakyRelu && !(slope >= 0 && std::isfinite(slope))) {
    status_ = fail(kBadArgument, "negative_slope must be finite and not negative, got %g", slope);
  }
  return *this;
}

}  // namespace ganscale
