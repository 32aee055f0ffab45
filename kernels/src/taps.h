// Gaussian widths in millimetres -> taps of the separable smoothing.
#ifndef DINOREG_SRC_TAPS_H_
#define DINOREG_SRC_TAPS_H_

#include <math.h>

#include "dinoreg/smooth.h"

DR_NAMESPACE_BEGIN

// Gaussian taps for a width in millimetres; an axis with coarse spacing is smoothed less.
// Beyond `reach` widths there are none.
inline Taps gaussian_taps(double sigma_mm, double spacing_mm, int n, double reach = 2.5) {
  const double sigma = sigma_mm / spacing_mm;
  Taps taps = {};
  if (n < 2 || sigma < 0.05) {
    taps.weight[0] = 1.0f;
    return taps;
  }
  const int wanted = (int)ceil(reach * sigma);
  taps.radius = wanted < kMaxTapRadius ? wanted : kMaxTapRadius;
  double weight[kMaxTapRadius + 1], sum = 0.0;
  for (int t = 0; t <= taps.radius; ++t) {
    weight[t] = exp(-0.5 * t * t / (sigma * sigma));
    sum += t == 0 ? weight[t] : 2.0 * weight[t];
  }
  for (int t = 0; t <= taps.radius; ++t) taps.weight[t] = (float)(weight[t] / sum);
  return taps;
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_TAPS_H_
