// The kernels of a generator's blocks without Python: batch norm with its activation and transposed convolution to few
// channels against plain loops in double precision, their refusals, several threads. Buffers have their exact sizes, so
// that the address sanitizer sees one element too many.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ganscale/conv_transpose.h"
#include "ganscale/norm_act.h"

using namespace ganscale;

namespace {

int checks = 0;

void expect(bool holds, const char* what, int line) {
  ++checks;
  if (!holds) {
    std::printf("test_generator.cpp, line %d: %s\n", line, what);
    std::exit(1);
  }
}
#define EXPECT(condition) expect(condition, #condition, __LINE__)

std::vector<float> numbers(int64_t count, unsigned seed, float offset = 0) {
  std::vector<float> out(count);
  for (float& x : out) {
    seed = seed * 1664525u + 1013904223u;
    x = static_cast<float>(seed >> 8) / (1 << 23) - 1.0f + offset;
  }
  return out;
}

template <class A>
View view(std::vector<A>& data, std::initializer_list<int64_t> sizes, int dtype = sizeof(A) == 8 ? kF64 : kF32) {
  View v{};
  v.data = data.data();
  v.dtype = dtype;
  v.ndim = static_cast<int>(sizes.size());
  int axis = 0;
  for (int64_t size : sizes) v.size[axis++] = size;
  int64_t step = 1;
  for (axis = v.ndim - 1; axis >= 0; --axis) {
    v.stride[axis] = step;
    step *= v.size[axis];
  }
  return v;
}

bool near(double a, double b, double tolerance) { return std::fabs(a - b) <= tolerance * (1 + std::fabs(b)); }

struct Scratch {
  std::vector<double> memory;
  Exec exec;
  Scratch(int64_t bytes, int threads) : memory((bytes + 7) / 8), exec{-1, threads, nullptr, memory.data(), bytes} {}
};

double activate(double z, int activation, double slope) {
  if (activation == kTanh) return std::tanh(z);
  return z > 0 || activation == kLinear ? z : activation == kRelu ? 0 : slope * z;
}

double derivative(double z, int activation, double slope) {
  if (activation == kTanh) return 1 - std::tanh(z) * std::tanh(z);
  return z > 0 || activation == kLinear ? 1 : activation == kRelu ? 0 : slope;
}

void test_batch_norm(int64_t outer, int64_t channels, int64_t inner, int activation, int threads, float offset) {
  const int64_t total = outer * channels * inner;
  const double count = static_cast<double>(outer * inner), eps = 1e-5, slope = 0.2;
  auto x = numbers(total, 1, offset), gy = numbers(total, 2), gamma = numbers(channels, 3, 2), beta = numbers(channels, 4);
  std::vector<float> y(total), gx(total), stats(kStatRows * channels), gradients(2 * channels);
  std::vector<double> totals(2 * channels + 1, count), sums(2 * channels + 1, count);
  Scratch s(norm_workspace_bytes(outer, channels, inner), threads);
  const View vx = view(x, {outer, channels, inner}), vg = view(gy, {outer, channels, inner});
  const auto row = [&](int index) {
    View v = view(stats, {channels});
    v.data = stats.data() + index * channels;
    return v;
  };
  EXPECT(channel_moments(vx, view(totals, {2, channels}), s.exec).code == kOk);
  EXPECT(batch_norm_act(vx, view(totals, {2 * channels + 1}), view(gamma, {channels}), view(beta, {channels}), eps,
                        view(stats, {kStatRows, channels}), view(y, {outer, channels, inner}), activation, slope,
                        s.exec).code == kOk);
  EXPECT(affine_act_backward_sums(vg, vx, row(kMean), row(kScale), row(kShift), row(kRstd), view(sums, {2, channels}),
                                  view(gradients, {2, channels}), activation, slope, s.exec).code == kOk);
  EXPECT(affine_act_backward(vg, vx, row(kMean), row(kScale), row(kShift), row(kRstd), view(sums, {2 * channels + 1}),
                             view(gx, {outer, channels, inner}), activation, slope, s.exec).code == kOk);
  for (int64_t c = 0; c < channels; ++c) {
    const auto at = [&](int64_t o, int64_t i) { return (o * channels + c) * inner + i; };
    double mean = 0, variance = 0, of_beta = 0, of_gamma = 0;
    for (int64_t o = 0; o < outer; ++o) for (int64_t i = 0; i < inner; ++i) mean += x[at(o, i)] / count;
    for (int64_t o = 0; o < outer; ++o) for (int64_t i = 0; i < inner; ++i) variance += std::pow(x[at(o, i)] - mean, 2) / count;
    const double rstd = 1 / std::sqrt(variance + eps);
    const auto normal = [&](int64_t k) { return (x[k] - mean) * rstd; };
    const auto g = [&](int64_t k) { return gy[k] * derivative(normal(k) * gamma[c] + beta[c], activation, slope); };
    bool clear = true;  // of the kink, where float32 may take the other side
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < inner; ++i) {
        const double z = normal(at(o, i)) * gamma[c] + beta[c];
        clear = clear && (activation == kTanh || activation == kLinear || std::fabs(z) > 1e-4);
        EXPECT(near(y[at(o, i)], activate(z, activation, slope), 2e-5));
        of_beta += g(at(o, i));
        of_gamma += g(at(o, i)) * normal(at(o, i));
      }
    }
    EXPECT(near(stats[kMean * channels + c], mean, 1e-6) && near(stats[kVariance * channels + c], variance, 1e-5));
    if (!clear) continue;
    EXPECT(near(gradients[c], of_gamma, 1e-4) && near(gradients[channels + c], of_beta, 1e-4));
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < inner; ++i) {
        const int64_t k = at(o, i);
        const double exact = gamma[c] * rstd * (g(k) - of_beta / count - normal(k) * of_gamma / count);
        EXPECT(std::fabs(gx[k] - exact) <= 1e-4 * (1 + gamma[c] * rstd));
      }
    }
  }
}

struct Conv {
  int64_t ci, co, h, w;
  int kernel, stride, padding, extra;
};

// The output at one pixel, summed over the input pixels that reach it.
double plain(const Conv& c, const std::vector<float>& x, const std::vector<float>& weight, int64_t o, int64_t oy, int64_t ox) {
  double total = 0;
  for (int64_t i = 0; i < c.ci; ++i) {
    for (int64_t ky = 0; ky < c.kernel; ++ky) {
      for (int64_t kx = 0; kx < c.kernel; ++kx) {
        const int64_t fy = oy + c.padding - ky, fx = ox + c.padding - kx;
        if (fy < 0 || fx < 0 || fy % c.stride || fx % c.stride || fy / c.stride >= c.h || fx / c.stride >= c.w) continue;
        total += static_cast<double>(x[(i * c.h + fy / c.stride) * c.w + fx / c.stride]) *
                 weight[((i * c.co + o) * c.kernel + ky) * c.kernel + kx];
      }
    }
  }
  return total;
}

void test_conv(const Conv& c, bool last, bool with_bias, int threads) {
  const int64_t out_h = (c.h - 1) * c.stride - 2 * c.padding + c.kernel + c.extra;
  const int64_t out_w = (c.w - 1) * c.stride - 2 * c.padding + c.kernel + c.extra, samples = 2;
  auto image = numbers(c.ci * c.h * c.w, 1), weight = numbers(c.ci * c.co * c.kernel * c.kernel, 2), bias = numbers(c.co, 3);
  std::vector<float> x(samples * image.size()), y(samples * c.co * out_h * out_w);
  View vx = view(x, {samples, c.ci, c.h, c.w}), vy = view(y, {samples, c.co, out_h, out_w});
  if (last) {
    const auto lay = [](View& v) {
      v.stride[1] = 1, v.stride[3] = v.size[1], v.stride[2] = v.size[1] * v.size[3];
    };
    lay(vx), lay(vy);
  }
  for (int64_t n = 0; n < samples; ++n) {
    for (int64_t i = 0; i < c.ci; ++i) {
      for (int64_t k = 0; k < c.h * c.w; ++k) {
        x[n * vx.stride[0] + i * vx.stride[1] + k / c.w * vx.stride[2] + k % c.w * vx.stride[3]] =
            (n ? -1 : 1) * image[i * c.h * c.w + k];
      }
    }
  }
  const View vw = view(weight, {c.ci, c.co, c.kernel, c.kernel});
  const ConvShape shape{{c.stride, c.stride}, {c.padding, c.padding}};
  Scratch s(conv_transpose_few_workspace_bytes(vx, vw, vy, shape, Exec{-1, threads, nullptr, nullptr, 0}), threads);
  EXPECT(conv_transpose_few(vx, vw, with_bias ? view(bias, {c.co}) : View{}, vy, shape, kTanh, 0, s.exec).code == kOk);
  for (int64_t n = 0; n < samples; ++n) {
    for (int64_t o = 0; o < c.co; ++o) {
      for (int64_t k = 0; k < out_h * out_w; ++k) {
        const double z = (n ? -1 : 1) * plain(c, image, weight, o, k / out_w, k % out_w) + (with_bias ? bias[o] : 0);
        const int64_t place = n * vy.stride[0] + o * vy.stride[1] + k / out_w * vy.stride[2] + k % out_w * vy.stride[3];
        EXPECT(near(y[place], std::tanh(z), 1e-5));
      }
    }
  }
}

void test_refusals() {
  std::vector<float> x(64), weight(5 * 16 * 4), y(4096);
  const View vx = view(x, {1, 4, 4, 4}), vy = view(y, {1, 3, 8, 8});
  const ConvShape shape{{2, 2}, {1, 1}};
  Scratch s(1 << 20, 1);
  const auto code = [&](const View& a, const View& w, const View& o, const ConvShape& c, int activation = kRelu) {
    return conv_transpose_few(a, w, View{}, o, c, activation, -1.0, s.exec).code;
  };
  const View vw = view(weight, {4, 3, 4, 4});
  EXPECT(code(vx, vw, vy, shape) == kOk);
  EXPECT(code(vx, vw, vy, shape, kLeakyRelu) == kBadArgument);
  EXPECT(code(vx, vw, vy, {{0, 2}, {1, 1}}) == kBadArgument);
  EXPECT(code(vx, vw, vy, {{2, 2}, {-1, 1}}) == kBadArgument);
  EXPECT(code(vx, vw, vy, {{2, 2}, {0, 0}}) == kBadArgument);
  EXPECT(code(vx, view(weight, {3, 3, 4, 4}), vy, shape) == kBadArgument);
  EXPECT(code(vx, view(weight, {4, 5, 4, 4}), view(y, {1, 5, 8, 8}), shape) == kBadArgument);
  View strided = vx;
  strided.stride[3] = 2;
  EXPECT(code(strided, vw, vy, shape) == kBadArgument);
  s.exec.workspace_bytes = 8;
  EXPECT(code(vx, vw, vy, shape) == kBadArgument);
  View any{};
  EXPECT(conv_transpose(vx, vw, any, any, vy, any, shape, kRelu, 0, false, s.exec).code != kOk);
  std::vector<double> totals(7);
  const View planes = view(x, {2, 3, 8});
  EXPECT(channel_moments(planes, view(totals, {2, 3}), s.exec).code == kBadArgument);
  s.exec.workspace_bytes = 1 << 20;
  EXPECT(channel_moments(planes, view(totals, {2, 2}), s.exec).code == kBadArgument);
  EXPECT(affine_act(planes, any, any, any, planes, kRelu, 0, s.exec).code == kBadArgument);
  EXPECT(channel_moments(planes, view(totals, {2, 3}), s.exec).code == kOk);
}

}  // namespace

int check_generator_kernels() {
  const int64_t shapes[][3] = {{2, 1, 1}, {5, 3, 1}, {2, 7, 49}, {3, 4, 64}, {70, 33, 1}, {2, 3, 1000}, {600, 70, 1},
                               {9, 60, 3}, {33, 5, 16}, {2, 2, 5000}, {3, 600, 1}, {5, 2, 17}};
  const Conv convs[] = {{5, 3, 5, 7, 4, 2, 1, 0}, {8, 1, 3, 3, 4, 2, 0, 1}, {3, 4, 1, 9, 4, 2, 2, 1}, {4, 2, 6, 2, 5, 2, 2, 1},
                        {9, 3, 5, 4, 3, 1, 1, 0}, {2, 4, 4, 4, 3, 2, 0, 0}, {1, 3, 3, 5, 2, 3, 0, 2}, {3, 2, 4, 3, 1, 3, 0, 0},
                        {33, 3, 9, 17, 4, 2, 1, 0}};
  for (int threads : {1, 2, 5}) {
    int turn = 0;
    for (const auto& s : shapes) {
      for (int activation : {kRelu, kLeakyRelu, kLinear, kTanh}) {
        test_batch_norm(s[0], s[1], s[2], activation, threads, turn++ % 3 == 0 ? 100.0f : 0.0f);
      }
    }
    for (const Conv& c : convs) {
      for (bool last : {false, true}) test_conv(c, last, turn++ % 2 == 0, threads);
    }
  }
  test_refusals();
  return checks;
}
