// The emulator itself and the wrappers of wrap.h: warp operations, fragments of tensor cores as the PTX manual draws
// them, conversions, asynchronous copies, launches. With an argument the program commits that mistake, which must end
// it with a message (see tests/ops/test_emulator.py).
#include "emulated.h"
#include "wrap.h"

namespace ganscale {
int cuda_device_count(Status* why);
}

using namespace ganscale;
using namespace ganscale::cuda;
using namespace emulated;

namespace {

// --- warps ----------------------------------------------------------------------------------------------------------

__global__ void warp_kernel(int* out) {  // [9][64]
  const int i = static_cast<int>(threadIdx.x);
  const unsigned all = 0xffffffffu;
  out[0 * 64 + i] = __shfl_sync(all, i, 5);
  out[1 * 64 + i] = __shfl_sync(all, i, 9, 8);
  out[2 * 64 + i] = __shfl_down_sync(all, i, 3);
  out[3 * 64 + i] = __shfl_up_sync(all, i, 3, 16);
  out[4 * 64 + i] = __shfl_xor_sync(all, i, 17);
  out[5 * 64 + i] = static_cast<int>(__ballot_sync(all, i % 3 == 0));
  if (i % 2 == 0) {
    out[6 * 64 + i] = __shfl_xor_sync(0x55555555u, i, 2);
  } else {
    out[6 * 64 + i] = __any_sync(0xaaaaaaaau, i == 33) * 100 + __all_sync(0xaaaaaaaau, i != 33);
  }
  out[7 * 64 + i] = __syncthreads_count(i < 40);
  out[8 * 64 + i] = static_cast<int>(warp_sum(static_cast<float>(i)));
}

void test_warps() {
  say("warps");
  std::vector<int> out(9 * 64, -1);
  GS_LAUNCH(1, 64, 0, nullptr, warp_kernel)(out.data());
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32, warp = i - lane;
    EXPECT(out[0 * 64 + i] == warp + 5);
    EXPECT(out[1 * 64 + i] == i / 8 * 8 + 1);
    EXPECT(out[2 * 64 + i] == (lane + 3 < 32 ? i + 3 : i));
    EXPECT(out[3 * 64 + i] == (i % 16 >= 3 ? i - 3 : i));
    EXPECT(out[4 * 64 + i] == warp + (lane ^ 17));
    unsigned ballot = 0;
    for (int j = 0; j < 32; ++j) ballot |= static_cast<unsigned>((warp + j) % 3 == 0) << j;
    EXPECT(static_cast<unsigned>(out[5 * 64 + i]) == ballot);
    EXPECT(out[6 * 64 + i] == (i % 2 == 0 ? warp + (lane ^ 2) : warp == 32 ? 100 : 1));
    EXPECT(out[7 * 64 + i] == 40);
    if (lane == 0) EXPECT(out[8 * 64 + i] == warp * 32 + 496);
  }
}

// --- tensor cores ---------------------------------------------------------------------------------------------------

// Each register of each lane as the manual's tables name it: the row and column of matrix a, b or c it holds.
void expect_fragment(const float (&c)[32][4], const std::vector<double>& product, const char* what) {
  for (int lane = 0; lane < 32; ++lane) {
    const int rows[4] = {lane / 4, lane / 4, lane / 4 + 8, lane / 4 + 8};
    const int columns[4] = {lane % 4 * 2, lane % 4 * 2 + 1, lane % 4 * 2, lane % 4 * 2 + 1};
    for (int i = 0; i < 4; ++i) {
      say("%s, lane %d, register %d", what, lane, i);
      EXPECT(c[lane][i] == static_cast<float>(product[static_cast<size_t>(rows[i] * 8 + columns[i])]));
    }
  }
}

template <class T>
__global__ void mma16_kernel(const T* a, const T* b, float (*c)[4]) {  // a [16, 16], b [16, 8], row-major
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, pair = lane % 4 * 2;
  const auto both = [](T low, T high) { return low.bits | static_cast<uint32_t>(high.bits) << 16; };
  const uint32_t ra[4] = {both(a[group * 16 + pair], a[group * 16 + pair + 1]),
                          both(a[(group + 8) * 16 + pair], a[(group + 8) * 16 + pair + 1]),
                          both(a[group * 16 + pair + 8], a[group * 16 + pair + 9]),
                          both(a[(group + 8) * 16 + pair + 8], a[(group + 8) * 16 + pair + 9])};
  const uint32_t rb[2] = {both(b[pair * 8 + group], b[(pair + 1) * 8 + group]),
                          both(b[(pair + 8) * 8 + group], b[(pair + 9) * 8 + group])};
  for (int i = 0; i < 4; ++i) c[lane][i] = 100;
  mma_16x8x16(c[lane], ra, rb, T{});
}

// The same product with the fragments read from shared memory as kernels do it.
template <class T>
__global__ void ldmatrix_kernel(const T* a, const T* b, float (*c)[4]) {
  using Row = Pack<T, 8>;
  GS_SHARED(Row, tile_a, 16 * 2);
  GS_SHARED(Row, tile_b, 16);
  const int lane = static_cast<int>(threadIdx.x);
  cp_async16(&tile_a[lane], a + lane * 8, true);
  if (lane < 16) cp_async16(&tile_b[lane], b + lane * 8, true);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  uint32_t ra[4], rb4[4];
  ldmatrix_x4(ra, &tile_a[lane % 16 * 2 + lane / 16]);
  ldmatrix_x4_transposed(rb4, &tile_b[lane % 16]);  // lanes 16.. load both halves once more
  const uint32_t rb[2] = {rb4[0], rb4[1]};
  for (int i = 0; i < 4; ++i) c[lane][i] = 100;
  mma_16x8x16(c[lane], ra, rb, T{});
}

__global__ void mma8_kernel(const float* a, const float* b, float (*c)[4]) {  // a [16, 8], b [8, 8]
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, in = lane % 4;
  const uint32_t ra[4] = {to_tf32(a[group * 8 + in]), to_tf32(a[(group + 8) * 8 + in]), to_tf32(a[group * 8 + in + 4]),
                          to_tf32(a[(group + 8) * 8 + in + 4])};
  const uint32_t rb[2] = {to_tf32(b[in * 8 + group]), to_tf32(b[(in + 4) * 8 + group])};
  for (int i = 0; i < 4; ++i) c[lane][i] = 100;
  mma_16x8x8_tf32(c[lane], ra, rb);
}

std::vector<double> product(const Tensor& a, const Tensor& b, int depth) {
  std::vector<double> c(16 * 8, 100);
  for (int i = 0; i < 16 * 8; ++i) {
    for (int k = 0; k < depth; ++k) c[static_cast<size_t>(i)] += a.at(i / 8 * depth + k) * b.at(k * 8 + i % 8);
  }
  return c;
}

template <class T>
void test_mma16(int dtype) {
  const Tensor a = Tensor::random(dtype, {16, 16}, 1), b = Tensor::random(dtype, {16, 8}, 2);
  float c[32][4];
  const auto *pa = static_cast<const T*>(a.data()), *pb = static_cast<const T*>(b.data());
  GS_LAUNCH(1, 32, 0, nullptr, mma16_kernel<T>)(pa, pb, c);
  expect_fragment(c, product(a, b, 16), "mma");
  GS_LAUNCH(1, 32, 0, nullptr, ldmatrix_kernel<T>)(pa, pb, c);
  expect_fragment(c, product(a, b, 16), "ldmatrix");
}

void test_mma8() {
  Tensor a = Tensor::random(kF32, {16, 8}, 1), b = Tensor::random(kF32, {8, 8}, 2);
  float c[32][4];
  GS_LAUNCH(1, 32, 0, nullptr, mma8_kernel)(static_cast<const float*>(a.data()), static_cast<const float*>(b.data()), c);
  const auto round = [](Tensor& t) {
    for (int64_t i = 0; i < t.count(); ++i) t.set(i, simt::bits_to_float(to_tf32(static_cast<float>(t.at(i)))));
  };
  round(a);
  round(b);
  expect_fragment(c, product(a, b, 8), "tf32");
}

// --- conversions ----------------------------------------------------------------------------------------------------

// Every 16-bit float goes through float32 and back; midpoints go to the even neighbour.
void test_conversions() {
  say("conversions");
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const f16 half{static_cast<uint16_t>(bits)};
    const bf16 brain{static_cast<uint16_t>(bits)};
    f16 half_again;
    bf16 brain_again;
    narrow(widen(half), half_again);
    narrow(widen(brain), brain_again);
    EXPECT(half_again.bits == bits || (std::isnan(widen(half)) && half_again.bits == 0x7fff));
    EXPECT(brain_again.bits == bits || (std::isnan(widen(brain)) && brain_again.bits == 0x7fff));
    if (bits % 0x8000 >= 0x7bff) continue;
    const float middle = (widen(half) + widen(f16{static_cast<uint16_t>(bits + 1)})) / 2;
    narrow(middle, half_again);
    EXPECT(half_again.bits == bits + bits % 2);
  }
  f16 half;
  narrow(65519.9f, half);
  EXPECT(half.bits == 0x7bff);
  narrow(65520.0f, half);
  EXPECT(half.bits == 0x7c00);
  narrow(-0x1p-26f, half);
  EXPECT(half.bits == 0x8000);
  EXPECT(widen(f16{0x3555}) == 0.333251953125f && widen(f16{1}) == 0x1p-24f && widen(bf16{0x3f80}) == 1);
  bf16 brain;
  narrow(1 + 0x1p-8f, brain);
  EXPECT(brain.bits == 0x3f80);  // a tie, to even
  EXPECT(to_tf32(1 + 0x1p-11f) == 0x3f802000u && to_tf32(1 + 0x1.ffcp-12f) == 0x3f800000u);  // a tie, away from zero
}

// --- launches -------------------------------------------------------------------------------------------------------

__global__ void where_kernel(int* visits, bool* clean) {
  GS_SHARED(float, once, 1);
  GS_DYNAMIC_SHARED(bytes);
  const auto* words = reinterpret_cast<const float*>(bytes);
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const bool poisoned = std::isnan(once[0]) && std::isnan(words[3]);
  __syncthreads();
  once[0] = 1;
  reinterpret_cast<float*>(bytes)[3] = 1;
  *clean = *clean && poisoned;
  ++visits[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

void test_launches() {
  say("launches");
  std::vector<int> visits(2 * 3 * 4 * 5 * 6 * 2, 0);
  bool clean = true;
  GS_LAUNCH(dim3(2, 3, 4), dim3(5, 6, 2), 16, nullptr, where_kernel)(visits.data(), &clean);
  EXPECT(launched("x").code == kOk);
  for (const int count : visits) EXPECT(count == 1);
  EXPECT(clean);
  const auto refused = [&](dim3 grid, dim3 block, size_t bytes) {
    GS_LAUNCH(grid, block, bytes, nullptr, where_kernel)(visits.data(), &clean);
    return launched("x").code == kCudaFailure && launched("x").code == kOk;
  };
  EXPECT(refused(1, 1025, 16) && refused(0, 1, 16) && refused(dim3(1, 65536), 1, 16) && refused(1, 0, 16));
  EXPECT(refused(1, 1, 49 * 1024));
  EXPECT(cudaFuncSetAttribute(where_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 50 * 1024) == cudaSuccess);
  EXPECT(!refused(1, 1, 49 * 1024) && refused(1, 1, 51 * 1024));
}

void test_devices() {
  say("devices");
  Status why;
  EXPECT(cuda_device_count(&why) == 1 && why.code == kOk);
  simt::devices = 2;
  int now = -1;
  {
    OnDevice guard(1);
    EXPECT(guard.error() == cudaSuccess && cudaGetDevice(&now) == cudaSuccess && now == 1);
  }
  EXPECT(cudaGetDevice(&now) == cudaSuccess && now == 0);
  EXPECT(OnDevice(2).error() == cudaErrorInvalidDevice && cudaGetLastError() != cudaSuccess);
  simt::devices = 1;
}

// --- mistakes -------------------------------------------------------------------------------------------------------

__global__ void mistaken_kernel(const char* mistake, float* out) {
  const auto is = [&](const char* name) { return std::strcmp(mistake, name) == 0; };
  const int i = static_cast<int>(threadIdx.x);
  using Row = Pack<float, 4>;
  GS_SHARED(Row, tile, 16);
  if (is("barrier-in-a-branch") && i < 5) __syncthreads();
  if (is("two-barriers") && i % 2 == 0) __syncthreads();
  if (is("two-barriers") && i % 2 == 1) __syncthreads();
  if (is("lane-outside-mask")) out[i] = __shfl_sync(0xffffu, 1.0f, 0);
  if (is("lane-never-comes") && i != 7) out[i] = warp_sum(1.0f);
  if (is("masks-differ")) __syncwarp(i < 16 ? 0xffffffffu : 0xffff0000u);
  if (is("shared-overrun")) tile[16 + i % 2].at[0] = 1;
  if (is("copy-unwaited")) {
    cp_async16(&tile[i % 16], out, true);
    cp_async_commit();
  }
  if (is("copy-misaligned")) cp_async16(&tile[1].at[1], out, true);
  if (is("copy-to-global")) cp_async16(out, out, true);
  uint32_t r[4];
  if (is("ldmatrix-of-global")) ldmatrix_x4(r, out);
  if (is("ldmatrix-misaligned")) ldmatrix_x4(r, &tile[2].at[3]);
  if (is("ldmatrix-in-a-branch") && i < 16) ldmatrix_x4(r, tile);
}

int commit(const char* mistake) {
  alignas(16) static float out[64];
  GS_LAUNCH(1, 32, 0, nullptr, mistaken_kernel)(mistake, out);
  std::printf("%s: nothing was noticed\n", mistake);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) return commit(arguments[1]);
  with_every_order([] {
    test_warps();
    test_mma16<f16>(kF16);
    test_mma16<bf16>(kBF16);
    test_mma8();
  });
  test_launches();
  test_conversions();
  test_devices();
  return passed("device");
}
