// Serial kernels for activations with bit masks, compiled once per instruction set (GS_ISA names it). Bound: memory
// bandwidth. Who owns what: a call writes the `count` elements it is given and the ceil(count / 8) bytes of their bits.
// Determinism: elementwise; every instruction set gives the same bits.
#include "mask_kernels.h"

#include "ganscale/api.h"
#include "number.h"

namespace {

using namespace ganscale;

constexpr int64_t kBlock = 64;  // elements whose comparisons are kept as bytes before they are packed

// Eight bytes that are 0 or 1 become the bits of one byte, the first the lowest: the product moves byte j to bit 56 + j.
GS_INLINE uint8_t pack8(const uint8_t* flags) {
  uint64_t bytes;
  __builtin_memcpy(&bytes, flags, 8);
  return static_cast<uint8_t>(bytes * 0x0102040810204080u >> 56);
}

// And back: byte j of the product's mask is not zero where bit j is set.
GS_INLINE void unpack8(uint8_t bits, uint8_t* flags) {
  const uint64_t spread = (bits * 0x0101010101010101u) & 0x8040201008040201u;
  const uint64_t bytes = ((spread + 0x7f7f7f7f7f7f7f7fu) | spread) >> 7 & 0x0101010101010101u;
  __builtin_memcpy(flags, &bytes, 8);
}

template <class T, class Bias>
GS_INLINE void act_block(typename T::Storage* x, int64_t count, typename T::Acc slope, uint8_t* mask, Bias bias) {
  using A = typename T::Acc;
  uint8_t flags[kBlock];
  for (int64_t i = 0; i < count; ++i) {
    const A z = T::load(x[i]) + bias(i);
    const A low = slope == 0 && !(z != z) ? A(0) : z * slope;
    x[i] = T::store(z > 0 ? z : low);
    flags[i] = z > 0;
  }
  for (int64_t i = count; i % 8; ++i) flags[i] = 0;
  for (int64_t i = 0; i < count; i += 8) mask[i / 8] = pack8(flags + i);
}

template <class T, class Bias>
GS_INLINE void act_all(void* x_, int64_t count, double slope_, uint8_t* mask, Bias bias) {
  auto* x = static_cast<typename T::Storage*>(x_);
  const auto slope = static_cast<typename T::Acc>(slope_);
  int64_t start = 0;
  for (; start + kBlock <= count; start += kBlock) {
    act_block<T>(x + start, kBlock, slope, mask + start / 8, [=](int64_t i) GS_FLAT { return bias(start + i); });
  }
  if (start < count) {
    act_block<T>(x + start, count - start, slope, mask + start / 8, [=](int64_t i) GS_FLAT { return bias(start + i); });
  }
}

template <class T>
void act_one(void* x, int64_t count, double bias, double slope, uint8_t* mask) {
  const auto b = static_cast<typename T::Acc>(bias);
  act_all<T>(x, count, slope, mask, [=](int64_t) GS_FLAT { return b; });
}

template <class T>
void pattern_act_one(void* x, const void* pattern_, int64_t count, double slope, uint8_t* mask) {
  auto* pattern = static_cast<const typename T::Acc*>(pattern_);
  act_all<T>(x, count, slope, mask, [=](int64_t i) GS_FLAT { return pattern[i]; });
}

template <class T>
GS_INLINE void scale_block(typename T::Storage* x, int64_t count, typename T::Acc slope, const uint8_t* mask) {
  using A = typename T::Acc;
  uint8_t flags[kBlock];
  for (int64_t i = 0; i < count; i += 8) unpack8(mask[i / 8], flags + i);
  for (int64_t i = 0; i < count; ++i) {
    const A v = T::load(x[i]);
    const A low = slope == 0 ? A(0) : v * slope;
    x[i] = flags[i] ? x[i] : T::store(low);
  }
}

template <class T>
void scale_one(void* x_, int64_t count, double slope_, const uint8_t* mask) {
  auto* x = static_cast<typename T::Storage*>(x_);
  const auto slope = static_cast<typename T::Acc>(slope_);
  int64_t start = 0;
  for (; start + kBlock <= count; start += kBlock) scale_block<T>(x + start, kBlock, slope, mask + start / 8);
  if (start < count) scale_block<T>(x + start, count - start, slope, mask + start / 8);
}

#define GS_EACH(fn) {fn<F32>, fn<F64>, fn<F16>, fn<BF16>}
constexpr cpu::MaskTable kTable = {GS_EACH(act_one), GS_EACH(pattern_act_one), GS_EACH(scale_one)};

}  // namespace

namespace ganscale::cpu {
#define GS_JOIN(a, b) a##b
#define GS_TABLE(isa) GS_JOIN(mask_table_, isa)
const MaskTable* GS_TABLE(GS_ISA)() { return &kTable; }
}  // namespace ganscale::cpu
