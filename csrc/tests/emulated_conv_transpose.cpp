// The emulated kernels of transposed convolutions against plain loops in double precision.
#include <algorithm>

#include "emulated.h"
#include "ganscale/conv_transpose.h"

using namespace ganscale;
using namespace emulated;

namespace {

constexpr double kSlope = 0.2;

struct Case {
  int64_t samples, in, out, height, width;
  int kernel[2], stride[2], padding[2], extra[2];  // extra: output_padding
};

int64_t side(int64_t input, int kernel, int stride, int padding, int extra) {
  return (input - 1) * stride - 2 * padding + kernel + extra;
}

enum Layout { kPlanes, kLast };

// The memory of `tensor` under other sizes, which it need not hold: nothing is read here.
View laid_out(const Tensor& tensor, int64_t n, int64_t c, int64_t h, int64_t w, Layout layout) {
  View view = tensor.view();
  view.ndim = 4;
  const int64_t sizes[] = {n, c, h, w}, strides[] = {c * h * w, h * w, w, 1};
  std::copy(sizes, sizes + 4, view.size);
  std::copy(strides, strides + 4, view.stride);
  if (layout == kPlanes) return view;
  view.stride[0] = h * w * c;
  view.stride[1] = 1;
  view.stride[2] = w * c;
  view.stride[3] = c;
  return view;
}

int64_t place(const View& view, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * view.stride[0] + c * view.stride[1] + h * view.stride[2] + w * view.stride[3];
}

// A problem with its answer in float64: `raw` in the memory order of y, `size` the sums of the terms' absolute values.
struct Problem {
  Case k;
  int dtype, number;
  Layout layout;
  int64_t height, width;
  ConvShape shape;
  Tensor x, weight, bias;
  View x_view, y_like;
  std::vector<double> raw, size;

  Problem(const Case& c, int dtype_, Layout layout_, int64_t shift)
      : k(c), dtype(dtype_), number(dtype_ == kF64 ? kF64 : kF32), layout(layout_),
        height(side(c.height, c.kernel[0], c.stride[0], c.padding[0], c.extra[0])),
        width(side(c.width, c.kernel[1], c.stride[1], c.padding[1], c.extra[1])),
        shape{{c.stride[0], c.stride[1]}, {c.padding[0], c.padding[1]}},
        x(Tensor::random(dtype, {c.samples * c.in * c.height * c.width}, 1, -1, 1, shift)),
        weight(Tensor::random(dtype, {c.in, c.out, c.kernel[0], c.kernel[1]}, 2, -1, 1, shift)),
        bias(Tensor::random(dtype, {c.out}, 3)), x_view(laid_out(x, c.samples, c.in, c.height, c.width, layout)),
        y_like(laid_out(Tensor(dtype, {c.samples * c.out * height * width}), c.samples, c.out, height, width, layout)),
        raw(static_cast<size_t>(c.samples * c.out * height * width)), size(raw.size()) {
    for (int64_t n = 0; n < k.samples; ++n) {
      for (int64_t ci = 0; ci < k.in; ++ci) {
        for (int64_t i = 0; i < k.height * k.width; ++i) scatter(n, ci, i / k.width, i % k.width);
      }
    }
    say("dtype %d %s, %lldx%lldx%lldx%lld to %lld, kernel %dx%d stride %dx%d padding %dx%d, %lld past alignment", dtype,
        layout == kLast ? "channels_last" : "NCHW", static_cast<long long>(k.samples), static_cast<long long>(k.in),
        static_cast<long long>(k.height), static_cast<long long>(k.width), static_cast<long long>(k.out), k.kernel[0],
        k.kernel[1], k.stride[0], k.stride[1], k.padding[0], k.padding[1], static_cast<long long>(shift));
  }

  void scatter(int64_t n, int64_t ci, int64_t h, int64_t w) {
    const double v = x.at(place(x_view, n, ci, h, w));
    for (int64_t co = 0; co < k.out; ++co) {
      for (int ky = 0; ky < k.kernel[0]; ++ky) {
        for (int kx = 0; kx < k.kernel[1]; ++kx) {
          const int64_t oy = h * k.stride[0] - k.padding[0] + ky, ox = w * k.stride[1] - k.padding[1] + kx;
          if (oy < 0 || oy >= height || ox < 0 || ox >= width) continue;
          const double term = v * weight.at(((ci * k.out + co) * k.kernel[0] + ky) * k.kernel[1] + kx);
          const auto at = static_cast<size_t>(place(y_like, n, co, oy, ox));
          raw[at] += term;
          size[at] += std::fabs(term);
        }
      }
    }
  }
  size_t channel(size_t at) const {
    return layout == kLast ? at % static_cast<size_t>(k.out)
                           : at / static_cast<size_t>(height * width) % static_cast<size_t>(k.out);
  }
  Tensor output(int64_t shift = 0) const { return Tensor(dtype, {static_cast<int64_t>(raw.size())}, shift); }
  View view(const Tensor& y) const {
    View like = y_like;
    like.data = y.data();
    return like;
  }
};

double activated(double z, int activation) {
  switch (activation) {
    case kRelu: return z > 0 ? z : 0;
    case kLeakyRelu: return z > 0 ? z : kSlope * z;
    case kTanh: return std::tanh(z);
    default: return z;
  }
}

// Terms are rounded to `precision` each, and a sum of n of them loses at most about sqrt(n) roundings of float32 to
// chance; the result is rounded to its dtype.
void expect_result(const Problem& p, const Tensor& y, const std::vector<double>& expected, double gain,
                   double precision) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const double want = expected[i], have = y.at(static_cast<int64_t>(i));
    const double limit = precision * gain * (p.size[i] + 1) + spacing(p.dtype) * (std::fabs(want) + gain * 1e-3);
    if (!(std::fabs(have - want) <= limit)) {
      std::printf("element %zu: want %.9g, got %.9g, limit %.3g\n", i, want, have, limit);
    }
    EXPECT(std::fabs(have - want) <= limit);
  }
  EXPECT(y.intact());
}

// --- few channels ---------------------------------------------------------------------------------------------------

void test_few(const Case& c, int dtype, Layout layout, int activation, int64_t shift, unsigned seeds,
              bool tf32 = false) {
  Problem p(c, dtype, layout, shift);
  p.shape.tf32 = tf32;
  const bool with_bias = activation != kLinear;
  std::vector<double> expected(p.raw.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    expected[i] = activated(p.raw[i] + (with_bias ? p.bias.at(static_cast<int64_t>(p.channel(i))) : 0), activation);
  }
  Tensor first = p.output();
  for (unsigned seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const Tensor y = p.output(shift);
    const View y_view = p.view(y), bias = with_bias ? p.bias.view() : View{};
    const Tensor workspace =
        scratch(conv_transpose_few_workspace_bytes(p.x_view, p.weight.view(), y_view, p.shape, gpu()));
    EXPECT_OK(conv_transpose_few(p.x_view, p.weight.view(), bias, y_view, p.shape, activation, kSlope,
                                 gpu(&workspace)));
    expect_result(p, y, expected, 1, dtype == kF64 ? 1e-15 : tf32 ? 1e-3 : 4e-7);  // tf32: as below
    if (seed == 0) first = y.clone();
    EXPECT(y.same_bits(first));
  }
}

constexpr Case kFew[] = {
    {1, 1, 1, 1, 1, {4, 4}, {1, 1}, {0, 0}, {0, 0}},    // the first layer of a tiny generator
    {3, 20, 3, 5, 4, {4, 4}, {2, 2}, {1, 1}, {0, 0}},   // DCGAN's
    {1, 3, 2, 4, 5, {5, 5}, {2, 2}, {2, 2}, {1, 1}},    // phases of 3 and 2 taps
    {1, 64, 3, 3, 3, {3, 3}, {1, 1}, {1, 1}, {0, 0}},   // one phase
    {1, 20, 4, 4, 3, {3, 3}, {2, 2}, {1, 1}, {1, 1}},
    {2, 8, 3, 4, 6, {3, 5}, {2, 3}, {1, 2}, {0, 1}},    // sides apart
    {1, 9, 3, 3, 5, {1, 1}, {2, 2}, {0, 0}, {1, 1}},    // phases without a tap
    {1, 3, 1, 2, 35, {4, 4}, {2, 2}, {1, 1}, {0, 0}},   // more than one tile across
    {1, 1, 2, 70, 2, {4, 2}, {2, 1}, {1, 0}, {0, 0}},   // and down
    {1, 2, 3, 20, 20, {9, 9}, {1, 1}, {4, 4}, {0, 0}},  // many taps
    // What tensor cores take in 16 bits: tiles that the image cuts both ways, more channels than a stage, half a step
    {2, 24, 3, 17, 16, {4, 4}, {2, 2}, {1, 1}, {0, 0}},
    {1, 72, 4, 3, 18, {5, 5}, {2, 2}, {2, 2}, {1, 1}},
    {1, 16, 3, 9, 33, {3, 3}, {1, 1}, {1, 1}, {0, 0}},
    {1, 64, 1, 1, 1, {4, 4}, {1, 1}, {0, 0}, {0, 0}},
    {1, 16, 2, 5, 6, {3, 3}, {2, 2}, {1, 1}, {0, 0}},  // an odd picture: rows that begin between pairs
};

void test_all_few() {
  for (const Case& c : kFew) {
    for (const int dtype : kFloats) {
      for (const Layout layout : {kPlanes, kLast}) {
        const bool small = c.in * c.height * c.width < 2000;
        test_few(c, dtype, layout, kTanh, 0, small ? kSeeds : 2);
        test_few(c, dtype, layout, kLeakyRelu, 1, 1);
        test_few(c, dtype, layout, kLinear, 0, 1);
        if (dtype == kF32) test_few(c, dtype, layout, kTanh, 0, small ? kSeeds : 1, true);
      }
    }
  }
}

// --- many channels --------------------------------------------------------------------------------------------------

enum Ending { kStored, kAffine, kStatistics };

void expect_totals(const Problem& p, const Tensor& y, const Tensor& totals) {
  const auto channels = static_cast<size_t>(p.k.out);
  std::vector<long double> sum(channels), squares(channels), size(channels);
  for (size_t i = 0; i < p.raw.size(); ++i) {
    const long double v = y.at(static_cast<int64_t>(i));  // statistics are those of what is stored
    sum[p.channel(i)] += v;
    squares[p.channel(i)] += v * v;
    size[p.channel(i)] += std::fabs(v);
  }
  const double count = static_cast<double>(p.raw.size()) / static_cast<double>(channels);
  for (size_t c = 0; c < channels; ++c) {
    const auto at = static_cast<int64_t>(c);
    // float32 within a band of at most 128 rows, about one of its values; float64 from there on.
    EXPECT(std::fabs(totals.at(at) - static_cast<double>(sum[c])) <= 1e-5 * static_cast<double>(size[c]) + 1e-12);
    const auto mean = static_cast<double>(sum[c]) / count, got = totals.at(at) / count;
    const double variance = static_cast<double>(squares[c]) / count - mean * mean;
    EXPECT(std::fabs(totals.at(at + p.k.out) / count - got * got - variance) <= 1e-5 * variance + 1e-12);
  }
}

void test_gemm(const Case& c, int dtype, bool tf32, Ending ending, int64_t shift, unsigned seeds) {
  const Problem p(c, dtype, kLast, shift);
  const Tensor scale = Tensor::random(kF32, {c.out}, 5, 0.5, 1.5), offset = Tensor::random(kF32, {c.out}, 6);
  const int activation = ending == kAffine ? (c.in % 2 ? kTanh : kLeakyRelu) : kLinear;
  std::vector<double> expected = p.raw;
  for (size_t i = 0; ending == kAffine && i < expected.size(); ++i) {
    const auto channel = static_cast<int64_t>(p.channel(i));
    expected[i] = activated(p.raw[i] * scale.at(channel) + offset.at(channel), activation);
  }
  Tensor first = p.output();
  for (unsigned seed = 0; seed < seeds; ++seed) {
    simt::set_seed(seed);
    const Tensor y = p.output(shift), totals(kF64, {2, c.out});
    const View y_view = p.view(y);
    const Tensor workspace =
        scratch(conv_transpose_workspace_bytes(p.x_view, p.weight.view(), y_view, p.shape, gpu()));
    EXPECT_OK(conv_transpose(p.x_view, p.weight.view(), ending == kAffine ? scale.view() : View{},
                             ending == kAffine ? offset.view() : View{}, y_view,
                             ending == kStatistics ? totals.view() : View{}, p.shape, activation, kSlope, tf32,
                             gpu(&workspace)));
    // tf32 keeps 10 bits of a fraction: each factor is off by up to 2^-11 of it.
    expect_result(p, y, expected, ending == kAffine ? 1.5 : 1, tf32 && dtype == kF32 ? 1e-3 : 4e-7);
    EXPECT(workspace.intact());
    if (ending == kStatistics) expect_totals(p, y, totals);
    if (seed == 0) first = y.clone();
    EXPECT(y.same_bits(first));
  }
}

constexpr Case kMany[] = {
    {1, 1, 1, 1, 1, {4, 4}, {1, 1}, {0, 0}, {0, 0}},
    {3, 64, 5, 4, 4, {4, 4}, {2, 2}, {1, 1}, {0, 0}},    // DCGAN's; a tap is whole stages
    {1, 20, 40, 5, 3, {5, 5}, {2, 2}, {2, 2}, {1, 1}},   // phases of 4, 6 and 9 taps; padded channels
    {3, 3, 3, 6, 7, {3, 3}, {1, 1}, {1, 1}, {0, 0}},     // several taps within a copy
    {1, 64, 130, 3, 3, {3, 3}, {2, 2}, {1, 1}, {1, 1}},  // columns past whole tiles
    {2, 8, 4, 4, 6, {3, 5}, {2, 3}, {1, 2}, {0, 1}},     // sides apart, phases of different sizes
    {1, 9, 8, 3, 5, {1, 1}, {2, 2}, {0, 0}, {1, 1}},     // phases without a tap
    {3, 40, 1, 9, 9, {2, 2}, {1, 1}, {0, 0}, {0, 0}},    // rows past a tile; one output channel
};
constexpr Case kLargeTiles[] = {
    {3, 20, 130, 33, 33, {3, 3}, {2, 2}, {1, 1}, {1, 1}},  // 128 x 128
    {1, 8, 40, 39, 40, {4, 4}, {4, 4}, {0, 0}, {0, 0}},    // 128 x 64
};

void test_all_gemm(const Case& c, bool large) {
  for (const int dtype : {kF32, kF16, kBF16}) {
    for (const bool tf32 : {false, true}) {
      if (dtype != kF32 && tf32) continue;
      test_gemm(c, dtype, tf32, kStatistics, 0, large ? 1 : kSeeds);
      test_gemm(c, dtype, tf32, kAffine, 1, 1);
      if (!large) test_gemm(c, dtype, tf32, kStored, 0, 1);
    }
  }
}

void test_refusals() {
  say("refusals");
  const Problem p(kMany[1], kF64, kLast, 0);
  const Tensor workspace = scratch(1 << 20);
  const auto run = [&](const Problem& of, const Tensor* scratch) {
    const Tensor y = of.output();
    return conv_transpose(of.x_view, of.weight.view(), View{}, View{}, of.view(y), View{}, of.shape, kLinear, kSlope,
                          false, gpu(scratch));
  };
  Status status = run(p, &workspace);
  EXPECT(status.code == kBadArgument && std::strstr(status.message, "float64") != nullptr);
  const Tensor little(kF64, {2});
  status = run(Problem(kMany[1], kF32, kLast, 0), &little);
  EXPECT(status.code == kBadArgument && std::strstr(status.message, "workspace") != nullptr);
  // More than 32-bit places hold: refused before anything is read. 80000 x 80000 pixels; 2^28 pictures of 9 phases.
  const Tensor weight = Tensor::random(kF32, {8, 16, 2, 2}, 1), narrow = Tensor::random(kF32, {8, 1, 3, 3}, 1);
  const View wide_x = laid_out(weight, 1, 8, 40000, 40000, kLast), wide_y = laid_out(weight, 1, 16, 80000, 80000, kLast);
  status = conv_transpose(wide_x, weight.view(), View{}, View{}, wide_y, View{}, {{2, 2}, {0, 0}}, kLinear, kSlope, false,
                          gpu(&workspace));
  EXPECT(status.code == kBadArgument && std::strstr(status.message, "2^31 pixels") != nullptr);
  EXPECT(conv_transpose_workspace_bytes(wide_x, weight.view(), wide_y, {{2, 2}, {0, 0}}, gpu()) == 0);
  const int64_t many = int64_t{1} << 28;
  status = conv_transpose_few(laid_out(weight, many, 8, 1, 1, kPlanes), narrow.view(), View{},
                              laid_out(weight, many, 1, 3, 3, kPlanes), {{3, 3}, {0, 0}}, kLinear, kSlope,
                              gpu(&workspace));
  EXPECT(status.code == kBadArgument && std::strstr(status.message, "2^31 blocks") != nullptr);
}

}  // namespace

int main() {
  test_all_few();
  for (const Case& c : kMany) test_all_gemm(c, false);
  for (const Case& c : kLargeTiles) test_all_gemm(c, true);
  test_refusals();
  return passed("conv_transpose");
}
