// Transposed convolution to few channels on the CPU: what is checked, and how output rows are cut into tasks.
//
// A unit of work is a band of output rows of one sample; bands overlap in the input rows they read, not in what they
// write, and give the same bits wherever they are cut. Each task takes a share of the units with scratch of its own.
#include "ganscale/conv_transpose.h"

#include <algorithm>

#include "conv_transpose_kernels.h"
#include "isa.h"
#include "parallel.h"
#include "run.h"

namespace ganscale {
namespace {

using cpu::FewShape;

const cpu::FewTable& kernels() {
  static const cpu::FewTable* (*const tables[])() = GS_TABLES(cpu::few_table);
  return *tables[cpu::isa()]();
}

int64_t to_lanes(int64_t count) { return ceil_div(count, 16) * 16; }

FewShape shape_of(const View& x, const View& weight, const View& y, const ConvShape& c) {
  FewShape s{};
  s.ci = x.size[1], s.h = x.size[2], s.w = x.size[3];
  s.co = y.size[1], s.out_h = y.size[2], s.out_w = y.size[3];
  s.kh = weight.size[2], s.kw = weight.size[3];
  s.stride_h = c.stride[0], s.stride_w = c.stride[1], s.padding_h = c.padding[0], s.padding_w = c.padding[1];
  s.x_c = x.stride[1], s.x_h = x.stride[2], s.x_w = x.stride[3];
  s.y_c = y.stride[1], s.y_h = y.stride[2], s.y_w = y.stride[3];
  s.halves = s.kh == 4 && s.kw == 4 && s.stride_h == 2 && s.stride_w == 2;
  s.columns = to_lanes(s.kh * s.kw * s.co);
  s.line = std::max((s.w - 1) * s.stride_w + s.kw, s.out_w + s.padding_w);
  const int64_t sums = s.halves ? 2 * (s.w + 1) * 8 * s.co : s.kh * s.line * s.co;
  s.products_at = s.row_at + to_lanes(x.dtype == kF16 || x.dtype == kBF16 ? s.ci * s.w : 0);
  s.sums_at = s.products_at + s.w * s.columns;
  s.line_at = s.sums_at + to_lanes(sums);
  s.scratch = s.line_at + to_lanes(s.line * s.co);
  return s;
}

// The workspace: weights, a row of biases, then each task's scratch.
struct Plan {
  FewShape shape;
  int64_t number, packed, bias, bands, rows, units, tasks, bytes;
};

Plan plan(const View& x, const View& weight, const View& y, const ConvShape& conv, const Exec& exec) {
  Plan p{shape_of(x, weight, y, conv), element_size(accumulation_dtype(x.dtype)), 0, 0, 1, 0, 0, 0, 0};
  const int64_t threads = std::max(1, exec.threads), samples = x.size[0];
  p.packed = p.shape.ci * p.shape.columns;
  p.bias = to_lanes(p.shape.out_w * p.shape.co);
  if (samples < 4 * threads && threads > 1) p.bands = std::min(ceil_div(4 * threads, samples), ceil_div(p.shape.out_h, 8));
  p.rows = ceil_div(p.shape.out_h, p.bands);
  p.bands = ceil_div(p.shape.out_h, p.rows);
  p.units = samples * p.bands;
  p.tasks = std::min(threads, p.units);
  p.bytes = (p.packed + p.bias + p.tasks * p.shape.scratch) * p.number;
  return p;
}

View channels_last(const View& view) {
  View other = view;
  for (int axis = 1; axis < 4; ++axis) {
    other.size[axis] = view.size[axis == 3 ? 1 : axis + 1];
    other.stride[axis] = view.stride[axis == 3 ? 1 : axis + 1];
  }
  return other;
}

void check_image(Check& check, const Exec& exec, const char* name, const View& view) {
  if (!check.passed()) return;
  if (view.ndim == 4 && Check(exec).dense(name, channels_last(view), 4).passed()) return;
  check.dense(name, view, 4);
}

bool fits(int64_t in, int64_t out, int64_t kernel, int stride, int padding) {
  const int64_t least = (in - 1) * stride - 2 * static_cast<int64_t>(padding) + kernel;
  return out >= least && out < least + stride;
}

Status check_conv(const View& x, const View& weight, const View& y, const ConvShape& c, const Exec& exec) {
  constexpr int kMost = 1 << 20;  // keeps sizes far from overflow
  Check check(exec);
  check_image(check, exec, "x", x);
  check_image(check, exec, "y", y);
  check.dense("weight", weight, 4).dtype("weight", weight, x.dtype).dtype("y", y, x.dtype);
  if (check.passed()) check.size("weight", weight, 0, x.size[1]).size("y", y, 0, x.size[0]);
  if (check.passed()) check.size("y", y, 1, weight.size[1]);
  if (!check.passed()) return check.status();
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t in = x.size[2 + axis], out = y.size[2 + axis], kernel = weight.size[2 + axis];
    if (c.stride[axis] < 1 || c.stride[axis] > kMost || c.padding[axis] < 0 || c.padding[axis] > kMost ||
        in > kMost || kernel > kMost || !fits(in, out, kernel, c.stride[axis], c.padding[axis])) {
      return fail(kBadArgument, "y must have a size that kernel %lld, stride %d and padding %d give from %lld, got %lld",
                  static_cast<long long>(kernel), c.stride[axis], c.padding[axis], static_cast<long long>(in),
                  static_cast<long long>(out));
    }
  }
  return ok();
}

}  // namespace

int64_t conv_transpose_few_workspace_bytes(const View& x, const View& weight, const View& y, const ConvShape& shape,
                                           const Exec& exec) {
  if (check_conv(x, weight, y, shape, exec).code != kOk) return 0;  // the operator itself says what is wrong
#ifdef GS_CUDA
  if (exec.device >= 0) return cuda::conv_transpose_few_workspace_bytes(x, weight, y, shape);
#endif
  return plan(x, weight, y, shape, exec).bytes;
}

Status conv_transpose_few(const View& x, const View& weight, const View& bias, const View& y, const ConvShape& shape,
                          int activation, double slope, const Exec& exec) {
  const Status sizes = check_conv(x, weight, y, shape, exec);
  if (sizes.code != kOk) return sizes;
  Check check(exec);
  check.activation(activation, slope);
  if (bias.data) check.dense("bias", bias, 1).dtype("bias", bias, x.dtype).size("bias", bias, 0, weight.size[1]);
  if (!check.passed()) return check.status();
  if (weight.size[1] > kFewChannels) {
    return fail(kBadArgument, "weight must have at most %d output channels, got %lld", kFewChannels,
                static_cast<long long>(weight.size[1]));
  }
  GS_ON_DEVICE(conv_transpose_few(x, weight, bias, y, shape, activation, slope, exec));
  const Plan p = plan(x, weight, y, shape, exec);
  check.workspace(p.bytes);
  if (!check.passed()) return check.status();
  const FewShape& s = p.shape;
  char* packed = static_cast<char*>(exec.workspace);
  char* biases = packed + p.packed * p.number;
  kernels().pack[x.dtype](s, weight.data, packed);
  for (int64_t i = 0; i < s.out_w * s.co; ++i) {
    const double value = bias.data ? cpu::kernels().read[x.dtype](bias.data, i % s.co) : -0.0;
    cpu::kernels().write[accumulation_dtype(x.dtype)](biases, i, value);
  }
  cpu::parallel_for(exec.threads, p.tasks, [&](int64_t task) {
    char* scratch = biases + (p.bias + task * s.scratch) * p.number;
    for (int64_t unit = task * p.units / p.tasks; unit < (task + 1) * p.units / p.tasks; ++unit) {
      const int64_t sample = unit / p.bands, first = unit % p.bands * p.rows;
      kernels().rows[x.dtype](s, at(x, sample * x.stride[0]), packed, biases, at(y, sample * y.stride[0]), scratch,
                              first, std::min(s.out_h, first + p.rows), activation, slope);
    }
  });
  return ok();
}

int64_t conv_transpose_workspace_bytes([[maybe_unused]] const View& x, [[maybe_unused]] const View& weight,
                                       [[maybe_unused]] const View& y, [[maybe_unused]] const ConvShape& shape,
                                       [[maybe_unused]] const Exec& exec) {
#ifdef GS_CUDA
  if (exec.device >= 0) return cuda::conv_transpose_workspace_bytes(x, weight, y, shape);
#endif
  return 0;
}

Status conv_transpose(const View& x, const View& weight, const View& scale, const View& shift, const View& y,
                      const View& totals, const ConvShape& shape, int activation, double slope,
                      [[maybe_unused]] bool tf32, const Exec& exec) {
  const Status sizes = check_conv(x, weight, y, shape, exec);
  if (sizes.code != kOk) return sizes;
  Check check(exec);
  check.dense("x in the order N, H, W, C", channels_last(x), 4).dense("y in the order N, H, W, C", channels_last(y), 4);
  check.activation(activation, slope);
  if (scale.data) check.dense("scale", scale, 1).dtype("scale", scale, kF32).size("scale", scale, 0, weight.size[1]);
  if (shift.data) check.dense("shift", shift, 1).dtype("shift", shift, kF32).size("shift", shift, 0, weight.size[1]);
  if (totals.data) {
    check.dense("totals", totals, 2).dtype("totals", totals, kF64).size("totals", totals, 0, 2);
    check.size("totals", totals, 1, weight.size[1]);
  }
  if (!check.passed()) return check.status();
  if (totals.data && (scale.data || shift.data || activation != kLinear)) {
    return fail(kBadArgument, "totals must come without scale, shift and activation");
  }
  GS_ON_DEVICE(conv_transpose(x, weight, scale, shift, y, totals, shape, activation, slope, tf32, exec));
  return fail(kNotBuilt, "conv_transpose has kernels for GPUs alone; on the CPU use torch's and affine_act");
}

}  // namespace ganscale
