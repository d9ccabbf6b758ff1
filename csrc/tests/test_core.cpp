// The core without Python: every operator against a plain loop in double precision, every refusal, several threads.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ganscale/api.h"
#include "ganscale/patches.h"

using namespace ganscale;

// Of the other files; each returns how many checks passed.
int check_generator_kernels();
int check_shared_sum();

namespace {

int checks = 0;

void expect(bool holds, const char* what, int line) {
  ++checks;
  if (!holds) {
    std::printf("line %d: %s\n", line, what);
    std::exit(1);
  }
}
#define EXPECT(condition) expect(condition, #condition, __LINE__)

struct Rows {
  std::vector<float> data;
  explicit Rows(int64_t count, unsigned seed = 1) : data(count) {
    for (float& x : data) {
      seed = seed * 1664525u + 1013904223u;
      x = static_cast<float>(seed >> 8) / (1 << 23) - 1.0f;
    }
  }
  // Allocated to the exact size: an access one element past it is seen by the address sanitizer.
  View view(std::initializer_list<int64_t> sizes) {
    View v{};
    v.data = data.data();
    v.dtype = kF32;
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
};

bool near(double a, double b, double tolerance) { return std::fabs(a - b) <= tolerance * (1 + std::fabs(b)); }

Exec cpu(int threads, std::vector<double>* workspace = nullptr) {
  Exec exec{-1, threads, nullptr, nullptr, 0};
  if (workspace) {
    exec.workspace = workspace->data();
    exec.workspace_bytes = static_cast<int64_t>(workspace->size() * sizeof(double));
  }
  return exec;
}

void test_interpolate(int64_t samples, int64_t size, int threads) {
  Rows real(samples * size, 1), fake(samples * size, 2), eps(samples, 3), out(samples * size);
  EXPECT(interpolate(real.view({samples, size}), fake.view({samples, size}), eps.view({samples}),
                     out.view({samples, size}), cpu(threads)).code == kOk);
  for (int64_t i = 0; i < samples * size; ++i) {
    const double share = eps.data[i / size];
    EXPECT(near(out.data[i], share * real.data[i] + (1 - share) * fake.data[i], 1e-6));
  }
}

void test_norms(int64_t samples, int64_t size, int threads) {
  Rows g(samples * size), squared(samples), penalty(samples), norm(samples);
  std::vector<double> workspace(sample_workspace_bytes(samples, size) / sizeof(double));
  const Exec exec = cpu(threads, &workspace);
  EXPECT(sample_norm2(g.view({samples, size}), squared.view({samples}), exec).code == kOk);
  EXPECT(gp_penalty(g.view({samples, size}), penalty.view({samples}), norm.view({samples}), 1.0, false, exec).code == kOk);
  for (int64_t n = 0; n < samples; ++n) {
    double total = 0;
    for (int64_t i = 0; i < size; ++i) total += static_cast<double>(g.data[n * size + i]) * g.data[n * size + i];
    EXPECT(near(squared.data[n], total, 1e-5));
    EXPECT(near(norm.data[n], std::sqrt(total), 1e-5));
    EXPECT(near(penalty.data[n], (std::sqrt(total) - 1) * (std::sqrt(total) - 1), 1e-5));
  }
}

void test_bias_act(int64_t outer, int64_t channels, int64_t inner, int threads) {
  const int64_t count = outer * channels * inner;
  Rows x(count), bias(channels, 5), y(count), gy(count, 7), gx(count);
  const View shape = x.view({outer, channels, inner});
  for (int activation = kLinear; activation <= kTanh; ++activation) {
    EXPECT(bias_act(shape, bias.view({channels}), y.view({outer, channels, inner}), activation, 0.2, cpu(threads)).code == kOk);
    EXPECT(act_backward(gy.view({outer, channels, inner}), y.view({outer, channels, inner}),
                        gx.view({outer, channels, inner}), activation, 0.2, cpu(threads)).code == kOk);
    for (int64_t i = 0; i < count; ++i) {
      const double z = static_cast<double>(x.data[i] + bias.data[i / inner % channels]);
      const double slope = activation == kRelu ? 0 : activation == kLeakyRelu ? 0.2 : 1;
      const double value = activation == kTanh ? std::tanh(z) : z > 0 ? z : slope * z;
      const double derivative = activation == kTanh ? 1 - value * value : z > 0 ? 1 : slope;
      EXPECT(near(y.data[i], value, 1e-6));
      EXPECT(near(gx.data[i], gy.data[i] * derivative, 1e-5));
    }
  }
}

void test_channel_sum(int64_t outer, int64_t channels, int64_t inner, int threads) {
  Rows x(outer * channels * inner), sum(channels);
  std::vector<double> workspace(channel_sum_workspace_bytes(outer, channels, inner) / sizeof(double));
  EXPECT(channel_sum(x.view({outer, channels, inner}), sum.view({channels}), cpu(threads, &workspace)).code == kOk);
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0;
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < inner; ++i) total += x.data[(o * channels + c) * inner + i];
    }
    EXPECT(near(sum.data[c], total, 1e-4));
  }
}

// Patches of an image of 2 samples against plain loops, and back: fold is the transpose of unfold.
void test_patches(const int64_t (&grid)[4], const PatchShape& s, int64_t channels, int threads) {
  const int64_t H = grid[0], W = grid[1], h = grid[2], w = grid[3], length = s.kernel[0] * s.kernel[1] * channels;
  Rows x(2 * H * W * channels), patches(2 * h * w * length, 2), back(2 * H * W * channels, 3);
  std::vector<double> sums(back.data.size());
  const View image = x.view({2, H, W, channels}), matrix = patches.view({2, h, w, length});
  EXPECT(fold(matrix, back.view({2, H, W, channels}), s, cpu(threads)).code == kOk);
  const std::vector<float> drawn = patches.data;
  EXPECT(unfold(image, matrix, s, cpu(threads)).code == kOk);
  for (int64_t i = 0; i < 2 * h * w * length; ++i) {
    const int64_t c = i % channels, kx = i / channels % s.kernel[1], ky = i / channels / s.kernel[1] % s.kernel[0];
    const int64_t place = i / length, X = place % w * s.stride[1] - s.padding[1] + kx;
    const int64_t Y = place / w % h * s.stride[0] - s.padding[0] + ky, n = place / w / h;
    const bool inside = X >= 0 && X < W && Y >= 0 && Y < H;
    const int64_t element = ((n * H + Y) * W + X) * channels + c;
    EXPECT(patches.data[i] == (inside ? x.data[element] : 0.0f));
    if (inside) sums[element] += drawn[i];
  }
  for (size_t i = 0; i < sums.size(); ++i) EXPECT(near(back.data[i], sums[i], 1e-5));
  EXPECT(unfold(image, patches.view({2, h, w, length - 1}), s, cpu(threads)).code == kBadArgument);
  EXPECT(fold(matrix, image, PatchShape{{0, 1}, {1, 1}, {0, 0}}, cpu(threads)).code == kBadArgument);
}

void test_refusals() {
  Rows g(8), out(2);
  const View no_workspace = g.view({2, 4});
  EXPECT(sample_norm2(no_workspace, out.view({2}), cpu(1)).code == kBadArgument);
  View strided = g.view({2, 2});
  strided.stride[0] = 4;
  EXPECT(interpolate(strided, strided, out.view({2}), strided, cpu(1)).code == kBadArgument);
  View null = g.view({1, 2, 4});
  null.data = nullptr;
  EXPECT(bias_act(null, View{}, g.view({1, 2, 4}), kRelu, 0, cpu(1)).code == kBadArgument);
  EXPECT(bias_act(g.view({1, 2, 4}), View{}, g.view({1, 2, 4}), kLeakyRelu, -1.0, cpu(1)).code == kBadArgument);
  EXPECT(bias_act(g.view({1, 2, 4}), out.view({1}), g.view({1, 2, 4}), kRelu, 0, cpu(1)).code == kBadArgument);
#ifndef GS_CUDA
  Exec gpu = cpu(1);
  gpu.device = 0;
  EXPECT(act_backward(g.view({1, 2, 4}), g.view({1, 2, 4}), g.view({1, 2, 4}), kRelu, 0, gpu).code != kOk);
#endif
}

}  // namespace

int main() {
  for (int threads : {1, 2, 5}) {
    for (int64_t size : {1, 31, 4096, 16385, 40000}) {
      test_interpolate(3, size, threads);
      test_norms(3, size, threads);
    }
    const int64_t shapes[][3] = {{1, 1, 1}, {5, 3, 1}, {2, 7, 49}, {3, 4, 64}, {2, 3, 1000}, {64, 700, 1}, {9, 600, 3}};
    for (const auto& s : shapes) {
      test_bias_act(s[0], s[1], s[2], threads);
      test_channel_sum(s[0], s[1], s[2], threads);
    }
    test_channel_sum(70000, 3, 1, threads);
    test_channel_sum(4097, 3, 5, threads);
    test_patches({8, 6, 4, 3}, PatchShape{{4, 4}, {2, 2}, {1, 1}}, 5, threads);
    test_patches({5, 7, 5, 7}, PatchShape{{3, 3}, {1, 1}, {1, 1}}, 3, threads);
    test_patches({3, 4, 2, 9}, PatchShape{{1, 2}, {2, 1}, {0, 3}}, 1, threads);  // some patches lie outside
  }
  test_refusals();
  checks += check_generator_kernels();
  checks += check_shared_sum();
  std::printf("%s: %d checks passed\n", active_isa(), checks);
  return 0;
}
