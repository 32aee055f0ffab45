// Differences of features, and how far they are trusted.
#ifndef DINOREG_TRUST_H_
#define DINOREG_TRUST_H_

#include "dinoreg/portable.h"

DR_NAMESPACE_BEGIN

// The factor on a difference d that makes it cost d / (1 + d / trust_cost), so that features that
// disagree pull less (Geman and McClure). With trust_cost 0 it costs d itself.
template <class V>
DR_HD V trust_of(const V& d, float trust_cost) {
  if (!(trust_cost > 0.0f)) return splat<V>(1.0f);
#if defined(__CUDA_ARCH__)
  // The exact quotient calls a routine for rare operands, which takes registers ShiftCost lacks.
  return __fdividef(trust_cost, trust_cost + d);
#else
  return trust_cost / (trust_cost + d);
#endif
}

// |a - b|^2 summed over channels that lie `step` numbers apart.
template <class V>
DR_HD V squared_difference(const float* a, const float* b, int channels, int step) {
  // Four sums side by side: in a single one, each multiply-add would wait for the one before it.
  V part[4] = {V{}, V{}, V{}, V{}};
  int c = 0;
  for (; c + 4 <= channels; c += 4) {
    DR_UNROLL(4)
    for (int k = 0; k < 4; ++k) {
      const Index at = (Index)(c + k) * step;
      const V d = load<V>(a + at) - load<V>(b + at);
      part[k] += d * d;
    }
  }
  for (; c < channels; ++c) {
    const V d = load<V>(a + (Index)c * step) - load<V>(b + (Index)c * step);
    part[0] += d * d;
  }
  return (part[0] + part[1]) + (part[2] + part[3]);
}

DR_NAMESPACE_END

#endif  // DINOREG_TRUST_H_
