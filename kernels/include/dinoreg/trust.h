// How far differences of features are believed.
#ifndef DINOREG_TRUST_H_
#define DINOREG_TRUST_H_

#include "dinoreg/portable.h"

DR_NAMESPACE_BEGIN

// What a difference d is multiplied by, so that it costs d / (1 + d / trust_cost) and what
// disagrees pulls less (Geman and McClure); trust_cost 0: d itself.
template <class V>
DR_HD V trust_of(const V& d, float trust_cost) {
  if (trust_cost > 0.0f) return trust_cost / (trust_cost + d);
  return splat<V>(1.0f);
}

DR_NAMESPACE_END

#endif  // DINOREG_TRUST_H_
