// The emulated kernels of activations with masks against plain loops and, bit by bit, against the CPU kernels.
#include "emulated.h"
#include "ganscale/mask.h"

using namespace ganscale;
using namespace emulated;

namespace {

struct Shape {
  int64_t outer, channels, inner;
};
// One element, less than a word, channels_last with and without whole packs of channels, runs that packs cut or not,
// more than the packs of a block, a mask that ends within a word and within a byte.
constexpr Shape kShapes[] = {{1, 1, 1},   {3, 3, 1},  {67, 40, 1},  {25, 8, 1}, {2, 7, 49},
                             {3, 4, 64},  {9, 70, 3}, {2, 5, 1000}, {1, 1, 8199}, {40, 3, 72}};

Tensor mask_of(int64_t elements) { return Tensor(kU8, {mask_bytes(elements)}); }

void test_act_mask(int dtype, const Shape& s, bool with_bias, double slope, int64_t shift) {
  const std::vector<int64_t> sizes = {s.outer, s.channels, s.inner};
  Tensor before = Tensor::random(dtype, sizes, 1, -2, 2, shift);
  for (int64_t i = 0; i < before.count(); i += 5) before.set(i, 0);  // on the kink: the bit is 0
  const Tensor bias = Tensor::random(dtype, {s.channels}, 2);
  const View bias_view = with_bias ? bias.view() : View{};
  const Tensor twin = before.clone(), twin_mask = mask_of(before.count());
  EXPECT_OK(act_mask(twin.view(), bias_view, twin_mask.view(), slope, on_cpu()));
  std::vector<double> expected;
  for (int64_t i = 0; i < before.count(); ++i) {
    const double z = before.at(i) + (with_bias ? bias.at(i / s.inner % s.channels) : 0);
    expected.push_back(z > 0 ? z : slope * z);
  }
  with_every_order([&] {
    const Tensor x(dtype, sizes, shift), mask = mask_of(before.count());
    std::memcpy(x.data(), before.data(), before.bytes());
    EXPECT_OK(act_mask(x.view(), bias_view, mask.view(), slope, gpu()));
    EXPECT_CLOSE(x, expected, 2);  // the sum is rounded, then its product with the slope
    EXPECT(x.same_bits(twin) && mask.same_bits(twin_mask) && mask.intact());
    for (int64_t i = 0; i < before.count(); ++i) {
      const int bit = static_cast<int>(mask.at(i / 8)) >> i % 8 & 1;
      EXPECT(bit == (expected[static_cast<size_t>(i)] > 0));
    }
  });
}

void test_mask_scale(int dtype, int64_t count, double slope, int64_t shift) {
  Tensor before = Tensor::random(dtype, {1, 1, count}, 3, -2, 2, shift);
  if (slope == 0) before.set(count - 1, INFINITY);  // where the bit is 0, a slope of 0 leaves nothing of it
  Tensor mask = Tensor::random(kU8, {mask_bytes(count)}, 4, 0, 256);
  mask.set(mask.count() - 1, 0x15 >> (7 - (count - 1) % 8) & 0x7f);
  std::vector<double> expected;
  for (int64_t i = 0; i < count; ++i) {
    const bool bit = static_cast<int>(mask.at(i / 8)) >> i % 8 & 1;
    expected.push_back(bit ? before.at(i) : slope == 0 ? 0 : slope * before.at(i));
  }
  const Tensor twin = before.clone();
  EXPECT_OK(mask_scale(twin.view(), mask.view(), slope, on_cpu()));
  with_every_order([&] {
    const Tensor x(dtype, {1, 1, count}, shift);
    std::memcpy(x.data(), before.data(), before.bytes());
    EXPECT_OK(mask_scale(x.view(), mask.view(), slope, gpu()));
    if (!std::isinf(expected.back())) EXPECT_CLOSE(x, expected, 1);
    EXPECT(x.same_bits(twin) && x.intact());
  });
}

}  // namespace

int main() {
  for (const int dtype : kFloats) {
    for (const Shape& s : kShapes) {
      for (const int64_t shift : {0, 1}) {
        for (const bool bias : {false, true}) {
          for (const double slope : {0.0, 0.2}) {
            say("dtype %d, [%lld, %lld, %lld], %lld past alignment, slope %g", dtype, static_cast<long long>(s.outer),
                static_cast<long long>(s.channels), static_cast<long long>(s.inner), static_cast<long long>(shift),
                slope);
            test_act_mask(dtype, s, bias, slope, shift);
            if (bias) test_mask_scale(dtype, s.outer * s.channels * s.inner, slope, shift);
          }
        }
      }
    }
  }
  return passed("mask");
}
