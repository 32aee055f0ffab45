// How far differences of features are believed.
#ifndef DINOREG_TRUST_H_
#define DINOREG_TRUST_H_

#include "dinoreg/portable.h"

DR_NAMESPACE_BEGIN

// What a difference d is multiplied by, so that it costs d / (1 + d / trust_cost) and what
// disagrees pulls less (Geman and McClure); trust_cost 0: d itself.
template <class V>
DR_HD V trust_of(const V& d, float trust_cost) {
  if (!(trust_cost > 0.0f)) return splat<V>(1.0f);
#if defined(__CUDA_ARCH__)
  // The exact quotient calls a routine for the rarest operands, whose registers ShiftCost lacks.
  return __fdividef(trust_cost, trust_cost + d);
#else
  return trust_cost / (trust_cost + d);
#endif
}

DR_NAMESPACE_END

#endif  // DINOREG_TRUST_H_
