// Biases of a stretch of [O, C, I], element by element, for kernels that walk memory in order.
#pragma once

#include <cstdint>

namespace ganscale {

// Fills `pattern` with value(channel) of the elements from `start` on.
template <class A, class F>
void lay_out(A* pattern, int64_t start, int64_t count, int64_t channels, int64_t inner, const F& value) {
  int64_t channel = start / inner % channels, left = inner - start % inner;
  A one = static_cast<A>(value(channel));
  for (int64_t i = 0; i < count; ++i) {
    pattern[i] = one;
    if (--left == 0 && i + 1 < count) {
      left = inner;
      channel = channel + 1 == channels ? 0 : channel + 1;
      one = static_cast<A>(value(channel));
    }
  }
}

// Copies the first `period` elements over and over, up to `count`.
template <class A>
void repeat(A* pattern, int64_t period, int64_t count) {
  for (int64_t i = period; i < count; ++i) pattern[i] = pattern[i - period];
}

}  // namespace ganscale
