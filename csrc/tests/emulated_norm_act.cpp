// The emulated kernels of batch statistics, affine map + activation and their backward against plain loops in double
// precision and against the CPU kernels.
#include "emulated.h"
#include "ganscale/norm_act.h"

using namespace ganscale;
using namespace emulated;

namespace {

constexpr double kSlope = 0.2, kEps = 1e-5;

struct Shape {
  int64_t outer, channels, inner;
};
// channels_last with whole packs, with packs over several rows, without packs; short runs; runs of one block's channel
// that packs divide or not; columns wider than a block; more rows than one band.
constexpr Shape kShapes[] = {{2, 1, 1},   {67, 40, 1}, {80, 3, 1},  {21, 5, 1},  {600, 8, 1},  {5, 7, 4},
                             {2, 70, 49}, {3, 4, 64},  {70, 3, 65}, {3, 2, 1000}, {2, 300, 9}, {1, 2, 8200}};

double activated(double z, int activation) {
  switch (activation) {
    case kRelu: return z > 0 ? z : 0;
    case kLeakyRelu: return z > 0 ? z : kSlope * z;
    case kTanh: return std::tanh(z);
    default: return z;
  }
}

double derivative(double z, int activation) {
  switch (activation) {
    case kRelu: return z > 0 ? 1 : 0;
    case kLeakyRelu: return z > 0 ? 1 : kSlope;
    case kTanh: return 1 - std::tanh(z) * std::tanh(z);
    default: return 1;
  }
}

struct Case {
  int dtype, number;
  Shape s;
  int64_t shift, count;
  std::vector<int64_t> sizes;
  Tensor x, gy, mean, scale, offset, rstd, workspace;

  // x around `center`; no z = (x - mean) * scale + offset within reach of the kink, where rounding decides.
  Case(int dtype_, const Shape& s_, int64_t shift_, double center)
      : dtype(dtype_), number(dtype_ == kF64 ? kF64 : kF32), s(s_), shift(shift_), count(s_.outer * s_.inner),
        sizes{s_.outer, s_.channels, s_.inner}, x(Tensor::random(dtype_, sizes, 1, center - 2, center + 2, shift_)),
        gy(Tensor::random(dtype_, sizes, 2, -1, 1, shift_)), mean(Tensor::random(number, {s_.channels}, 3, center - 1, center + 1)),
        scale(Tensor::random(number, {s_.channels}, 4, 0.5, 1.5)), offset(Tensor::random(number, {s_.channels}, 5)),
        rstd(Tensor::random(number, {s_.channels}, 6, 0.5, 2)),
        workspace(scratch(norm_workspace_bytes(s_.outer, s_.channels, s_.inner))) {
    for (int64_t i = 0; i < x.count(); ++i) {
      if (std::fabs(z(i)) < 1e-2) x.set(i, x.at(i) + (center > 100 ? 16 : 0.25));
    }
  }
  size_t channel(int64_t i) const { return static_cast<size_t>(i / s.inner % s.channels); }
  double z(int64_t i) const {
    const auto c = static_cast<int64_t>(channel(i));
    return (x.at(i) - mean.at(c)) * scale.at(c) + offset.at(c);
  }
};

// Sums of `count` terms of which the largest is `size`: float32 over a thread's steps (at most 64 of a run, 512 of a
// column), float64 above; terms are rounded where they are not exact.
double sum_tolerance(const Case& t, double size) {
  return t.dtype == kF64 ? 1e-12 * static_cast<double>(t.count) * size
                         : 1e-6 * std::sqrt(static_cast<double>(t.count)) * size + 1e-7 * size * static_cast<double>(t.count);
}

void expect_sums(const Tensor& totals, const std::vector<double>& expected, double tolerance) {
  for (int64_t i = 0; i < totals.count(); ++i) {
    const double want = expected[static_cast<size_t>(i)], have = totals.at(i);
    if (!(std::fabs(have - want) <= tolerance)) std::printf("sum %lld: want %.12g, got %.12g\n", static_cast<long long>(i), want, have);
    EXPECT(std::fabs(have - want) <= tolerance);
  }
  EXPECT(totals.intact());
}

void test_moments(const Case& t, double center) {
  const auto channels = static_cast<size_t>(t.s.channels);
  std::vector<long double> exact(2 * channels);
  for (int64_t i = 0; i < t.x.count(); ++i) {
    const long double x = t.x.at(i);
    exact[t.channel(i)] += x;
    exact[channels + t.channel(i)] += x * x;
  }
  const std::vector<double> expected(exact.begin(), exact.end());
  Tensor first(kF64, {2, t.s.channels});
  with_every_order([&] {
    const Tensor totals(kF64, {2, t.s.channels});
    EXPECT_OK(channel_moments(t.x.view(), totals.view(), gpu(&t.workspace)));
    const double spread = 4, about = std::fabs(center) + 2;
    // What matters is the variance they give: as accurate as if the mean were 0.
    expect_sums(totals, expected, sum_tolerance(t, spread * spread) * (1 + 2 * about));
    for (size_t c = 0; c < channels; ++c) {
      const auto n = static_cast<double>(t.count);
      const long double m = exact[c] / n;
      const auto want = static_cast<double>(exact[channels + c] / n - m * m);
      const double mean = totals.at(static_cast<int64_t>(c)) / n;
      const double got = totals.at(static_cast<int64_t>(channels + c)) / n - mean * mean;
      // 1e-9: the totals are float64, and the variance is a difference of two numbers of about the mean's square.
      EXPECT(std::fabs(got - want) <= sum_tolerance(t, spread * spread) / n + 1e-9);
    }
    EXPECT(t.workspace.intact());
    if (std::isnan(first.at(0))) first = totals.clone();
    EXPECT(totals.same_bits(first));  // sums do not depend on who comes first
  });
}

void test_batch_norm_act(const Case& t, int activation, bool affine) {
  const auto channels = static_cast<int64_t>(t.s.channels);
  const Tensor sums(kF64, {2, channels});
  Tensor totals(kF64, {2 * channels + 1});
  EXPECT_OK(channel_moments(t.x.view(), sums.view(), gpu(&t.workspace)));
  for (int64_t i = 0; i < 2 * channels; ++i) totals.set(i, sums.at(i));
  const auto n = static_cast<double>(t.count);
  totals.set(2 * channels, n);
  std::vector<double> stats(static_cast<size_t>(kStatRows * channels)), expected;
  const auto row = [&](int which, int64_t c) -> double& { return stats[static_cast<size_t>(which * channels + c)]; };
  for (int64_t c = 0; c < channels; ++c) {
    const double m = totals.at(c) / n, v = std::fmax(0, totals.at(channels + c) / n - m * m);
    Tensor rounded(t.number, {1});
    rounded.set(0, m);
    row(kMean, c) = rounded.at(0);
    row(kRstd, c) = 1 / std::sqrt(v + kEps);
    row(kScale, c) = (affine ? t.scale.at(c) : 1) * row(kRstd, c);
    row(kShift, c) = (affine ? t.offset.at(c) : 0) - (m - rounded.at(0)) * row(kScale, c);
    row(kVariance, c) = v;
    row(kUnbiased, c) = v * n / (n - 1);
  }
  double largest = 1;
  for (int64_t i = 0; i < t.x.count(); ++i) {
    const auto c = static_cast<int64_t>(t.channel(i));
    const double z = (t.x.at(i) - row(kMean, c)) * row(kScale, c) + row(kShift, c);
    largest = std::fmax(largest, std::fabs(z));
    expected.push_back(activated(z, activation));
  }
  with_every_order([&] {
    const Tensor table(t.number, {kStatRows, channels}), y(t.dtype, t.sizes, t.shift);
    EXPECT_OK(batch_norm_act(t.x.view(), totals.view(), affine ? t.scale.view() : View{},
                             affine ? t.offset.view() : View{}, kEps, table.view(), y.view(), activation, kSlope,
                             gpu(&t.workspace)));
    EXPECT_CLOSE(table, stats, 1);
    EXPECT_CLOSE(y, expected, 3 * largest);  // of scale, of the product, of the result
  });
}

void test_affine(const Case& t, int activation, bool with_mean, bool constant) {
  const auto channels = t.s.channels;
  const View mean = with_mean ? t.mean.view() : View{}, rstd = constant ? View{} : t.rstd.view();
  std::vector<double> y_expected, sums(static_cast<size_t>(2 * channels)), gradients(static_cast<size_t>(2 * channels));
  std::vector<double> slopes, gx_expected;
  double largest = 1;
  for (int64_t i = 0; i < t.x.count(); ++i) {
    const auto c = static_cast<int64_t>(t.channel(i));
    const double centred = t.x.at(i) - (with_mean ? t.mean.at(c) : 0), z = centred * t.scale.at(c) + t.offset.at(c);
    const double g = t.gy.at(i) * derivative(z, activation);
    y_expected.push_back(activated(z, activation));
    slopes.push_back(g);
    largest = std::fmax(largest, std::fabs(z));
    sums[static_cast<size_t>(c)] += g;
    sums[static_cast<size_t>(channels + c)] += g * centred;
  }
  Tensor totals(kF64, {2 * channels + 1});
  for (int64_t i = 0; i < 2 * channels; ++i) totals.set(i, sums[static_cast<size_t>(i)]);
  totals.set(2 * channels, static_cast<double>(t.count));
  for (int64_t c = 0; c < channels; ++c) {
    gradients[static_cast<size_t>(c)] = sums[static_cast<size_t>(channels + c)] * (constant ? 1 : t.rstd.at(c));
    gradients[static_cast<size_t>(channels + c)] = sums[static_cast<size_t>(c)];
  }
  for (int64_t i = 0; i < t.x.count(); ++i) {
    const auto c = static_cast<int64_t>(t.channel(i));
    const double centred = t.x.at(i) - (with_mean ? t.mean.at(c) : 0), n = static_cast<double>(t.count);
    const double pull = totals.at(c) / n + centred * t.rstd.at(c) * t.rstd.at(c) * totals.at(channels + c) / n;
    gx_expected.push_back(t.scale.at(c) * (slopes[static_cast<size_t>(i)] - (constant ? 0 : pull)));
  }
  Tensor first(kF64, {2, channels});
  with_every_order([&] {
    const Tensor y(t.dtype, t.sizes, t.shift), gx(t.dtype, t.sizes, t.shift), got(kF64, {2, channels});
    const Tensor got_gradients(t.number, {2, channels});
    EXPECT_OK(affine_act(t.x.view(), mean, t.scale.view(), t.offset.view(), y.view(), activation, kSlope,
                         gpu(&t.workspace)));
    EXPECT_CLOSE(y, y_expected, 2 * largest);
    EXPECT_OK(affine_act_backward_sums(t.gy.view(), t.x.view(), mean, t.scale.view(), t.offset.view(), rstd, got.view(),
                                       got_gradients.view(), activation, kSlope, gpu(&t.workspace)));
    const double tolerance = sum_tolerance(t, 4) * (activation == kTanh ? 4 * largest : 1);
    expect_sums(got, sums, tolerance);
    expect_sums(got_gradients, gradients, 4 * tolerance);
    if (std::isnan(first.at(0))) first = got.clone();
    EXPECT(got.same_bits(first));
    EXPECT_OK(affine_act_backward(t.gy.view(), t.x.view(), mean, t.scale.view(), t.offset.view(), rstd,
                                  constant ? View{} : totals.view(), gx.view(), activation, kSlope,
                                  gpu(&t.workspace)));
    EXPECT_CLOSE(gx, gx_expected, 8 * largest);  // a sum of three products, some of them larger than it
    EXPECT(t.workspace.intact());
  });
}

}  // namespace

int main() {
  for (const int dtype : kFloats) {
    for (const Shape& s : kShapes) {
      for (const int64_t shift : {0, 1}) {
        say("dtype %d, [%lld, %lld, %lld], %lld past alignment", dtype, static_cast<long long>(s.outer),
            static_cast<long long>(s.channels), static_cast<long long>(s.inner), static_cast<long long>(shift));
        const Case near(dtype, s, shift, 0);
        test_moments(near, 0);
        test_batch_norm_act(near, kLeakyRelu, true);
        test_batch_norm_act(near, kTanh, false);
        for (const int activation : {kLinear, kRelu, kLeakyRelu, kTanh}) {
          test_affine(near, activation, activation != kRelu, activation == kLinear);
        }
      }
      if (dtype == kF16 || dtype == kBF16) continue;  // 1000 plus a fraction is not one of their numbers
      say("dtype %d, [%lld, %lld, %lld], mean 1000", dtype, static_cast<long long>(s.outer),
          static_cast<long long>(s.channels), static_cast<long long>(s.inner));
      const Case far(dtype, s, 0, 1000);
      test_moments(far, 1000);
      test_batch_norm_act(far, kRelu, true);
      test_affine(far, kLeakyRelu, true, false);
    }
  }
  return passed("norm_act");
}
