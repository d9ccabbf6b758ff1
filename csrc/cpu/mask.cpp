// Activations with their derivative as bits, on the CPU.
//
// [O, C, I] is walked in memory order, in tasks of whole bytes of the mask. Where a channel's run I is long and ends on a
// byte, one bias serves the run; else the biases of a stretch are laid out as a pattern first.
#include "ganscale/mask.h"

#include <algorithm>
#include <cmath>

#include "check.h"
#include "isa.h"
#include "kernels.h"
#include "mask_kernels.h"
#include "parallel.h"
#include "pattern.h"
#include "run.h"

namespace ganscale {
namespace {

constexpr int64_t kLongRun = 64;     // elements of one channel in a row, from which it is handled by itself
constexpr int64_t kStretch = 2048;  // elements of a pattern

const cpu::MaskTable& table() {
  using namespace cpu;
  static const MaskTable* (*const tables[])() = GS_TABLES(mask_table);
  return *tables[cpu::isa()]();
}

int64_t elements(const View& x) { return x.size[0] * x.size[1] * x.size[2]; }

uint8_t* bits_at(const View& mask, int64_t element) { return static_cast<uint8_t*>(mask.data) + element / 8; }

double number(const View& bias, int64_t channel) { return cpu::kernels().read[bias.dtype](bias.data, channel); }

void flat_act(const View& x, const View& mask, double slope, const Exec& exec) {
  const int64_t total = elements(x);
  cpu::parallel_for(exec.threads, ceil_div(total, kPiece), [&](int64_t task) {
    const int64_t start = task * kPiece;
    table().act[x.dtype](at(x, start), std::min(kPiece, total - start), -0.0, slope, bits_at(mask, start));
  });
}

void run_act(const View& x, const View& bias, const View& mask, double slope, const Exec& exec) {
  const int64_t channels = x.size[1], run = x.size[2], runs = x.size[0] * channels;
  const int64_t each = std::max<int64_t>(1, kPiece / run);
  cpu::parallel_for(exec.threads, ceil_div(runs, each), [&](int64_t task) {
    for (int64_t r = task * each; r < std::min(runs, (task + 1) * each); ++r) {
      table().act[x.dtype](at(x, r * run), run, number(bias, r % channels), slope, bits_at(mask, r * run));
    }
  });
}

// A stretch is a whole number of periods of the biases where those are short and fit the bytes of the mask.
template <class A>
void pattern_act(const View& x, const View& bias, const View& mask, double slope, const Exec& exec) {
  const int64_t channels = x.size[1], inner = x.size[2], period = channels * inner, total = elements(x);
  const bool repeats = period <= kStretch && kStretch / period * period % 8 == 0;
  const int64_t stretch = repeats ? kStretch / period * period : kStretch, each = kPiece / stretch * stretch;
  const auto value = [&](int64_t channel) { return number(bias, channel); };
  cpu::parallel_for(exec.threads, ceil_div(total, each), [&](int64_t task) {
    A pattern[kStretch];
    if (repeats) {
      lay_out(pattern, 0, period, channels, inner, value);
      repeat(pattern, period, stretch);
    }
    const int64_t end = std::min(total, (task + 1) * each);
    for (int64_t start = task * each; start < end; start += stretch) {
      const int64_t count = std::min(stretch, end - start);
      if (!repeats) lay_out(pattern, start, count, channels, inner, value);
      table().pattern_act[x.dtype](at(x, start), pattern, count, slope, bits_at(mask, start));
    }
  });
}

Status check_slope(double slope) {
  if (slope >= 0 && std::isfinite(slope)) return ok();
  return fail(kBadArgument, "slope must be finite and not negative, got %g", slope);
}

}  // namespace

int64_t mask_bytes(int64_t count) { return ceil_div(count, 8); }

Status act_mask(const View& x, const View& bias, const View& mask, double slope, const Exec& exec) {
  Check check(exec);
  check.dense("x", x, 3);
  if (check.passed()) check.bytes("mask", mask, mask_bytes(elements(x)));
  if (bias.data) check.dense("bias", bias, 1).dtype("bias", bias, x.dtype).size("bias", bias, 0, x.size[1]);
  if (!check.passed()) return check.status();
  if (const Status bad = check_slope(slope); bad.code != kOk) return bad;
  GS_ON_DEVICE(act_mask(x, bias, mask, slope, exec));
  if (!bias.data) flat_act(x, mask, slope, exec);
  else if (x.size[2] >= kLongRun && x.size[2] % 8 == 0) run_act(x, bias, mask, slope, exec);
  else if (x.dtype == kF64) pattern_act<double>(x, bias, mask, slope, exec);
  else pattern_act<float>(x, bias, mask, slope, exec);
  return ok();
}

Status mask_scale(const View& x, const View& mask, double slope, const Exec& exec) {
  Check check(exec);
  check.dense("x", x, 3);
  if (check.passed()) check.bytes("mask", mask, mask_bytes(elements(x)));
  if (!check.passed()) return check.status();
  if (const Status bad = check_slope(slope); bad.code != kOk) return bad;
  GS_ON_DEVICE(mask_scale(x, mask, slope, exec));
  const int64_t total = elements(x);
  cpu::parallel_for(exec.threads, ceil_div(total, kPiece), [&](int64_t task) {
    const int64_t start = task * kPiece;
    table().scale[x.dtype](at(x, start), std::min(kPiece, total - start), slope, bits_at(mask, start));
  });
  return ok();
}

}  // namespace ganscale
