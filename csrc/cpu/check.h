// Argument checks shared by all operators. Each returns false after it has written what is wrong into the status.
#pragma once

#include "ganscale/api.h"

namespace ganscale {

Status ok();
Status fail(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Collects the first broken rule; later checks are skipped once one has failed.
class Check {
 public:
  explicit Check(const Exec& exec);
  // Floats; dense row-major, positive sizes whose bytes fit in int64, a non-null pointer aligned to its element.
  Check& dense(const char* name, const View& view, int ndim);
  // Exactly `count` bytes.
  Check& bytes(const char* name, const View& view, int64_t count);
  Check& dtype(const char* name, const View& view, int dtype);
  Check& size(const char* name, const View& view, int axis, int64_t expected);
  Check& same_shape(const char* name, const View& view, const View& like);
  Check& workspace(int64_t bytes);
  Check& activation(int activation, double slope);
  bool passed() const { return status_.code == kOk; }
  const Status& status() const { return status_; }

 private:
  Check& packed(const char* name, const View& view, int ndim);  // `dense`, of any element

  const Exec& exec_;
  Status status_;
};

int element_size(int dtype);
int accumulation_dtype(int dtype);  // float32, or float64 for float64

}  // namespace ganscale
