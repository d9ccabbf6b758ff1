// The emulated kernels of the gradient penalty against plain loops in double precision and against the CPU kernels.
#include "emulated.h"

using namespace ganscale;
using namespace emulated;

namespace {

// Rows of one element, of less than a pack, of a pack and a bit, around a block of packs, around a partial sum.
constexpr int64_t kSizes[] = {1, 3, 8, 31, 1024, 2049, 16384, 16391, 32776};

void test_interpolate(int dtype, int64_t samples, int64_t size, int64_t shift) {
  const Tensor real = Tensor::random(dtype, {samples, size}, 1, -2, 2, shift);
  const Tensor fake = Tensor::random(dtype, {samples, size}, 2, -2, 2, shift);
  const Tensor eps = Tensor::random(dtype, {samples}, 3, 0, 1);
  std::vector<double> expected;
  for (int64_t i = 0; i < samples * size; ++i) {
    const double share = eps.at(i / size);
    expected.push_back(share * real.at(i) + (1 - share) * fake.at(i));
  }
  const Tensor twin(dtype, {samples, size});
  EXPECT_OK(interpolate(real.view(), fake.view(), eps.view(), twin.view(), on_cpu()));
  with_every_order([&] {
    const Tensor out(dtype, {samples, size}, shift);
    EXPECT_OK(interpolate(real.view(), fake.view(), eps.view(), out.view(), gpu()));
    EXPECT_CLOSE(out, expected, 2);  // two products and a sum of numbers up to 2, rounded once more to the dtype
    EXPECT_CLOSE(out, values(twin), 2);
  });
}

void test_norms(int dtype, int64_t samples, int64_t size, int64_t shift) {
  const Tensor g = Tensor::random(dtype, {samples, size}, 4, -1, 1, shift);
  const int sum_dtype = dtype == kF64 ? kF64 : kF32;
  std::vector<long double> sums(static_cast<size_t>(samples));  // a naive sum in double would be the worse one
  for (int64_t i = 0; i < g.count(); ++i) sums[static_cast<size_t>(i / size)] += g.at(i) * g.at(i);
  const std::vector<double> squares(sums.begin(), sums.end());
  std::vector<double> norms, penalties, one_sided;
  const double center = std::sqrt(size / 3.0);  // near the norms, so that both sides of it occur
  for (const double square : squares) {
    const double excess = std::sqrt(square) - center;
    norms.push_back(std::sqrt(square));
    penalties.push_back(excess * excess);
    one_sided.push_back(excess > 0 ? excess * excess : 0);
  }
  // A thread adds at most 64 squares, a block 256 such sums in a tree: about 72 roundings of terms of one sign.
  constexpr double steps = 72;
  Tensor first(sum_dtype, {samples});
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    simt::set_seed(seed);
    const Tensor workspace = scratch(sample_workspace_bytes(samples, size));
    const Tensor squared(sum_dtype, {samples}), penalty(sum_dtype, {samples}), norm(sum_dtype, {samples});
    EXPECT_OK(sample_norm2(g.view(), squared.view(), gpu(&workspace)));
    EXPECT_CLOSE(squared, squares, steps);
    for (const bool side : {false, true}) {
      EXPECT_OK(gp_penalty(g.view(), penalty.view(), norm.view(), center, side, gpu(&workspace)));
      EXPECT_CLOSE(norm, norms, steps);
      EXPECT_CLOSE(penalty, side ? one_sided : penalties, steps * (1 + center));  // the error of the norm, times it
    }
    EXPECT(workspace.intact());
    if (seed == 0) first = squared.clone();
    EXPECT(squared.same_bits(first));  // sums do not depend on who comes first
  }
}

void test_extremes() {
  say("extreme samples");
  constexpr int64_t size = 70;
  Tensor g(kF32, {4, size});
  for (int64_t i = 0; i < size; ++i) {
    g.set(i, 0);
    g.set(size + i, 1e18);
    g.set(2 * size + i, 1e-20);
    g.set(3 * size + i, i == 5 ? NAN : 1);
  }
  const Tensor workspace = scratch(sample_workspace_bytes(4, size)), penalty(kF32, {4}), norm(kF32, {4});
  EXPECT_OK(gp_penalty(g.view(), penalty.view(), norm.view(), 1, false, gpu(&workspace)));
  EXPECT(norm.at(0) == 0 && penalty.at(0) == 1);
  EXPECT(std::fabs(norm.at(1) / (1e18 * std::sqrt(size)) - 1) < 1e-5);
  EXPECT(norm.at(2) < 1e-18);
  EXPECT(std::isnan(norm.at(3)) && std::isnan(penalty.at(3)));
}

void test_refusals() {
  say("refusals");
  const Tensor g = Tensor::random(kF32, {2, 8}, 1), norm(kF32, {2}), penalty(kF32, {2});
  EXPECT(gp_penalty(g.view(), penalty.view(), norm.view(), 1, false, gpu()).code == kBadArgument);  // no workspace
  const Tensor workspace = scratch(sample_workspace_bytes(2, 8));
  Exec elsewhere = gpu(&workspace);
  elsewhere.device = 7;
  const Status status = gp_penalty(g.view(), penalty.view(), norm.view(), 1, false, elsewhere);
  EXPECT(status.code == kCudaFailure && std::strstr(status.message, "cudaErrorInvalidDevice") != nullptr);
  EXPECT(cudaGetLastError() == cudaErrorInvalidDevice);
}

}  // namespace

int main() {
  for (const int dtype : kFloats) {
    for (const int64_t size : kSizes) {
      const int64_t samples = size < 100 ? 5 : 2;
      for (const int64_t shift : {0, 1}) {
        say("dtype %d, %lld samples of %lld, %lld past alignment", dtype, static_cast<long long>(samples),
            static_cast<long long>(size), static_cast<long long>(shift));
        test_interpolate(dtype, samples, size, shift);
        test_norms(dtype, samples, size, shift);
      }
    }
  }
  say("more samples than the threads of a block");
  test_norms(kF32, 300, 4, 0);
  test_extremes();
  test_refusals();
  return passed("gp");
}
