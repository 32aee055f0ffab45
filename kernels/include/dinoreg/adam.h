// One Adam step (Kingma & Ba, 2015).
#ifndef DINOREG_ADAM_H_
#define DINOREG_ADAM_H_

#include "dinoreg/grid.h"

DR_NAMESPACE_BEGIN

struct AdamStep {
  enum { kRepeatable = 0 };  // works in place
  float* value;
  const float* gradient;
  float* first_moment;
  float* second_moment;
  int row_count, x;
  float beta1, beta2;
  float step;        // learning rate / (1 - beta1^t)
  float correction;  // 1 / (1 - beta2^t)
  float epsilon;

  DR_HD int rows() const { return row_count; }
  DR_HD int width() const { return x; }

  DR_HD void operator()(int row, int i) const { lanes<float>(row, i); }

  template <class V>
  DR_HD void lanes(int row, int i) const {
    const Index at = (Index)row * x + i;
    const V g = load<V>(gradient + at);
    const V m = beta1 * load<V>(first_moment + at) + (1.0f - beta1) * g;
    const V v = beta2 * load<V>(second_moment + at) + (1.0f - beta2) * g * g;
    store(first_moment + at, m);
    store(second_moment + at, v);
    store(value + at, load<V>(value + at) - step * m / (root(v * correction) + epsilon));
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_ADAM_H_
