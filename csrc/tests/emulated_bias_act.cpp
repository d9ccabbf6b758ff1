// The emulated kernels of bias + activation and of sums over channels against plain loops in double precision and
// against the CPU kernels.
#include "emulated.h"

using namespace ganscale;
using namespace emulated;

namespace {

struct Shape {
  int64_t outer, channels, inner;
};
// channels_last (inner 1), odd sizes, whole packs, runs on either side of where a block takes one channel, many bands.
constexpr Shape kShapes[] = {{1, 1, 1}, {5, 3, 1},    {67, 40, 1}, {2, 7, 49},   {3, 4, 63},
                             {3, 4, 64}, {2, 3, 1000}, {9, 70, 3},  {130, 2, 65}, {300, 33, 1}};

double activated(double z, int activation, double slope) {
  switch (activation) {
    case kRelu: return z > 0 ? z : 0;
    case kLeakyRelu: return z > 0 ? z : slope * z;
    case kTanh: return std::tanh(z);
    default: return z;
  }
}

double derivative(double y, int activation, double slope) {
  switch (activation) {
    case kRelu: return y > 0 ? 1 : 0;
    case kLeakyRelu: return y > 0 ? 1 : slope;
    case kTanh: return 1 - y * y;
    default: return 1;
  }
}

void test_bias_act(int dtype, const Shape& s, int activation, bool with_bias, int64_t shift) {
  constexpr double slope = 0.2;
  const std::vector<int64_t> sizes = {s.outer, s.channels, s.inner};
  const Tensor x = Tensor::random(dtype, sizes, 1, -3, 3, shift), gy = Tensor::random(dtype, sizes, 2, -1, 1, shift);
  const Tensor bias = Tensor::random(dtype, {s.channels}, 3);
  const View bias_view = with_bias ? bias.view() : View{};
  const Tensor twin(dtype, sizes), twin_gx(dtype, sizes);
  EXPECT_OK(bias_act(x.view(), bias_view, twin.view(), activation, slope, on_cpu()));
  EXPECT_OK(act_backward(gy.view(), twin.view(), twin_gx.view(), activation, slope, on_cpu()));
  std::vector<double> expected, expected_gx;
  for (int64_t i = 0; i < x.count(); ++i) {
    const double z = x.at(i) + (with_bias ? bias.at(i / s.inner % s.channels) : 0);
    expected.push_back(activated(z, activation, slope));
    expected_gx.push_back(gy.at(i) * derivative(twin.at(i), activation, slope));
  }
  with_every_order([&] {
    const Tensor y(dtype, sizes, shift), gx(dtype, sizes, shift);
    EXPECT_OK(bias_act(x.view(), bias_view, y.view(), activation, slope, gpu()));
    EXPECT_CLOSE(y, expected, 2);  // one rounding of the sum, one of the activation
    EXPECT_CLOSE(y, values(twin), 2);
    EXPECT_OK(act_backward(gy.view(), twin.view(), gx.view(), activation, slope, gpu()));
    EXPECT_CLOSE(gx, expected_gx, 2);
    EXPECT_CLOSE(gx, values(twin_gx), 2);
  });
}

void test_channel_sum(int dtype, const Shape& s, int64_t shift) {
  const Tensor x = Tensor::random(dtype, {s.outer, s.channels, s.inner}, 4, -1, 1, shift);
  std::vector<long double> sums(static_cast<size_t>(s.channels));  // naive sums in double would be the worse ones
  for (int64_t i = 0; i < x.count(); ++i) sums[static_cast<size_t>(i / s.inner % s.channels)] += x.at(i);
  const std::vector<double> expected(sums.begin(), sums.end());
  const Tensor twin(dtype, {s.channels}), cpu_workspace = scratch(channel_sum_workspace_bytes(s.outer, s.channels, s.inner));
  EXPECT_OK(channel_sum(x.view(), twin.view(), on_cpu(&cpu_workspace)));
  // Terms of both signs: the error is relative to the terms (half of the spacing a step, the random signs of steps
  // taken as independent), not to their sum.
  const double steps = 2 + std::sqrt(static_cast<double>(s.outer * s.inner));
  Tensor first(dtype, {s.channels});
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    simt::set_seed(seed);
    const Tensor workspace = scratch(channel_sum_workspace_bytes(s.outer, s.channels, s.inner));
    const Tensor sum(dtype, {s.channels});
    EXPECT_OK(channel_sum(x.view(), sum.view(), gpu(&workspace)));
    EXPECT(workspace.intact());
    EXPECT_CLOSE(sum, expected, steps);
    EXPECT_CLOSE(sum, values(twin), 2 * steps);
    if (seed == 0) first = sum.clone();
    EXPECT(sum.same_bits(first));
  }
}

void test_kinks() {
  say("zeros, negative zeros and NaN");
  Tensor x(kF32, {1, 1, 4});
  x.set(0, 0.0);
  x.set(1, -0.0);
  x.set(2, NAN);
  x.set(3, INFINITY);
  for (const int activation : {kRelu, kLeakyRelu, kTanh}) {
    const Tensor y(kF32, {1, 1, 4}), gx(kF32, {1, 1, 4});
    Tensor gy(kF32, {1, 1, 4});
    for (int i = 0; i < 4; ++i) gy.set(i, 1);
    EXPECT_OK(bias_act(x.view(), View{}, y.view(), activation, 0.5, gpu()));
    EXPECT(y.at(0) == 0 && y.at(1) == 0 && std::isnan(y.at(2)) && y.at(3) == (activation == kTanh ? 1 : INFINITY));
    EXPECT_OK(act_backward(gy.view(), y.view(), gx.view(), activation, 0.5, gpu()));
    EXPECT(gx.at(0) == (activation == kRelu ? 0 : activation == kLeakyRelu ? 0.5 : 1));
  }
}

void test_the_same_bits_as_the_cpu() {
  say("the same bits as the CPU");  // everything but tanh and sums is one rounding of the same number
  const Tensor x = Tensor::random(kBF16, {3, 5, 16}, 1, -3, 3), bias = Tensor::random(kBF16, {5}, 2);
  const Tensor ours(kBF16, {3, 5, 16}), twin(kBF16, {3, 5, 16});
  EXPECT_OK(bias_act(x.view(), bias.view(), ours.view(), kLeakyRelu, 0.2, gpu()));
  EXPECT_OK(bias_act(x.view(), bias.view(), twin.view(), kLeakyRelu, 0.2, on_cpu()));
  EXPECT(ours.same_bits(twin));
}

}  // namespace

int main() {
  for (const int dtype : kFloats) {
    for (const Shape& shape : kShapes) {
      for (const int64_t shift : {0, 1}) {
        say("dtype %d, shape %lld x %lld x %lld, %lld past alignment", dtype, static_cast<long long>(shape.outer),
            static_cast<long long>(shape.channels), static_cast<long long>(shape.inner), static_cast<long long>(shift));
        for (const int activation : {kLinear, kRelu, kLeakyRelu, kTanh}) {
          test_bias_act(dtype, shape, activation, activation != kRelu, shift);
        }
        test_channel_sum(dtype, shape, shift);
      }
    }
  }
  say("more rows than bands");
  test_channel_sum(kF32, {5000, 3, 1}, 0);
  test_channel_sum(kF32, {4097, 3, 5}, 0);
  test_kinks();
  test_the_same_bits_as_the_cpu();
  return passed("bias_act");
}
