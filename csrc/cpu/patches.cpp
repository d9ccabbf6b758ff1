// Patches of an image as the rows of a matrix, and back, on the CPU.
//
// In channels-last order a row of a patch is one run of memory, so unfold copies runs and fold adds runs. One task is
// one row of patches (unfold) or one row of the image (fold), which gathers from the patches in a fixed order: kernel
// row by kernel row, patch by patch. Bound: bandwidth, the patches once.
#include "ganscale/patches.h"

#include <algorithm>
#include <cstring>

#include "check.h"
#include "isa.h"
#include "parallel.h"
#include "patch_kernels.h"
#include "run.h"

namespace ganscale {
namespace {

const cpu::PatchTable& kernels() {
  static const cpu::PatchTable* (*const tables[])() = GS_TABLES(cpu::patch_table);
  return *tables[cpu::isa()]();
}

// Element of x at which the patch of grid column j begins, and the part [first, last) of its KW * C run that lies in x.
struct Run {
  int64_t begin, first, last;
};

Run run_of(const View& x, const PatchShape& shape, int64_t j) {
  const int64_t channels = x.size[3], begin = (j * shape.stride[1] - shape.padding[1]) * channels;
  const int64_t length = shape.kernel[1] * channels, row = x.size[2] * channels;
  const int64_t last = std::min(length, row - begin);
  return {begin, std::min(std::max<int64_t>(0, -begin), std::max<int64_t>(0, last)), std::max<int64_t>(0, last)};
}

Status checked(const View& x, const View& patches, const PatchShape& shape, const Exec& exec) {
  Check check(exec);
  check.dense("x", x, 4).dense("patches", patches, 4).dtype("patches", patches, x.dtype);
  if (!check.passed()) return check.status();
  int64_t length = x.size[3];
  for (int axis = 0; axis < 2; ++axis) {
    if (shape.kernel[axis] < 1 || shape.stride[axis] < 1 || shape.padding[axis] < 0) {
      return fail(kBadArgument, "a patch must have positive sides and strides and no negative padding, got %d, %d, %d",
                  shape.kernel[axis], shape.stride[axis], shape.padding[axis]);
    }
    length *= shape.kernel[axis];
  }
  check.size("patches", patches, 0, x.size[0]).size("patches", patches, 3, length);
  if (check.passed() && exec.device >= 0) return fail(kNotBuilt, "patches are for the CPU; a GPU has its own products");
  return check.status();
}

}  // namespace

Status unfold(const View& x, const View& patches, const PatchShape& shape, const Exec& exec) {
  const Status status = checked(x, patches, shape, exec);
  if (status.code != kOk) return status;
  const int64_t bytes = element_size(x.dtype), rows = patches.size[1], columns = patches.size[2];
  const int64_t row = x.size[2] * x.size[3], length = shape.kernel[1] * x.size[3];
  cpu::parallel_for(exec.threads, x.size[0] * rows, [&](int64_t task) {
    const int64_t n = task / rows, top = task % rows * shape.stride[0] - shape.padding[0];
    char* to = at(patches, task * columns * patches.size[3]);
    for (int64_t j = 0; j < columns; ++j) {
      const Run run = run_of(x, shape, j);
      for (int ky = 0; ky < shape.kernel[0]; ++ky, to += length * bytes) {
        const bool inside = top + ky >= 0 && top + ky < x.size[1];
        const int64_t first = inside ? run.first : 0, last = inside ? run.last : 0;
        std::memset(to, 0, first * bytes);
        if (last > first) {
          const char* from = at(x, (n * x.size[1] + top + ky) * row + run.begin + first);
          std::memcpy(to + first * bytes, from, (last - first) * bytes);
        }
        std::memset(to + last * bytes, 0, (length - last) * bytes);
      }
    }
  });
  return ok();
}

// Sixteen-bit rows are added up in float32 first; how many at a time, the number of tasks says.
int64_t fold_workspace_bytes(const View& x, const Exec& exec) {
  const bool narrow = x.dtype == kF16 || x.dtype == kBF16;
  return narrow ? exec.threads * x.size[2] * x.size[3] * static_cast<int64_t>(sizeof(float)) : 0;
}

Status fold(const View& patches, const View& x, const PatchShape& shape, const Exec& exec) {
  Status status = checked(x, patches, shape, exec);
  if (status.code != kOk) return status;
  const int64_t needed = fold_workspace_bytes(x, exec);
  if (needed > 0) {
    Check check(exec);
    if (!check.workspace(needed).passed()) return check.status();
  }
  const int64_t rows = x.size[0] * x.size[1], row = x.size[2] * x.size[3], columns = patches.size[2];
  const int64_t length = shape.kernel[1] * x.size[3], wide = x.dtype == kF64 ? 8 : 4;
  const int64_t bands = std::min<int64_t>(exec.threads, rows);
  cpu::parallel_for(exec.threads, bands, [&](int64_t band) {
    for (int64_t r = band * rows / bands; r < (band + 1) * rows / bands; ++r) {
      const int64_t n = r / x.size[1], y = r % x.size[1];
      char* out = at(x, r * row);
      char* total = needed > 0 ? static_cast<char*>(exec.workspace) + band * row * wide : out;
      std::memset(total, 0, row * wide);
      for (int ky = 0; ky < shape.kernel[0]; ++ky) {
        const int64_t from_top = y + shape.padding[0] - ky, i = from_top / shape.stride[0];
        if (from_top < 0 || from_top % shape.stride[0] != 0 || i >= patches.size[1]) continue;
        for (int64_t j = 0; j < columns; ++j) {
          const Run run = run_of(x, shape, j);
          if (run.last <= run.first) continue;
          const int64_t patch = ((n * patches.size[1] + i) * columns + j) * patches.size[3] + ky * length;
          kernels().add[x.dtype](total + (run.begin + run.first) * wide, at(patches, patch + run.first),
                                 run.last - run.first);
        }
      }
      if (needed > 0) kernels().narrow[x.dtype](total, out, row);
    }
  });
  return ok();
}

}  // namespace ganscale
