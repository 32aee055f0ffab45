// One Adam step (Kingma & Ba, 2015).
#ifndef DINOREG_ADAM_H_
#define DINOREG_ADAM_H_

#include "dinoreg/grid.h"

DR_NAMESPACE_BEGIN

struct AdamStep {
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

  DR_HD void operator()(int row, int i) const {
    const Index at = (Index)row * x + i;
    const float g = gradient[at];
    const float m = beta1 * first_moment[at] + (1.0f - beta1) * g;
    const float v = beta2 * second_moment[at] + (1.0f - beta2) * g * g;
    first_moment[at] = m;
    second_moment[at] = v;
    value[at] -= step * m / (sqrtf(v * correction) + epsilon);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_ADAM_H_
