// Taps of the separable smoothing for Gaussian widths in millimetres.
#ifndef DINOREG_SRC_TAPS_H_
#define DINOREG_SRC_TAPS_H_

#include <math.h>

#include "dinoreg/smooth.h"

DR_NAMESPACE_BEGIN

// Gaussian taps of one axis with n voxels, truncated at 2.5 standard deviations. The coarser the
// spacing of an axis, the fewer voxels it is smoothed over.
inline Taps gaussian_taps(double sigma_mm, double spacing_mm, int n) {
  const double sigma = sigma_mm / spacing_mm;
  Taps taps = {};
  if (n < 2 || sigma < 0.05) {
    taps.weight[0] = 1.0f;
    return taps;
  }
  // Limited before the cast, as the width of a wide Gaussian does not fit into an int.
  taps.radius = (int)fmin(ceil(2.5 * sigma), (double)kMaxTapRadius);
  double weight[kMaxTapRadius + 1], sum = 0.0;
  for (int t = 0; t <= taps.radius; ++t) {
    weight[t] = exp(-0.5 * t * t / (sigma * sigma));
    sum += t == 0 ? weight[t] : 2.0 * weight[t];
  }
  for (int t = 0; t <= taps.radius; ++t) taps.weight[t] = (float)(weight[t] / sum);
  return taps;
}

// The same for the three axes of a grid.
inline Taps3 gaussian_taps(double sigma_mm, const double* spacing_mm, const Shape& n) {
  return {gaussian_taps(sigma_mm, spacing_mm[0], n.z), gaussian_taps(sigma_mm, spacing_mm[1], n.y),
          gaussian_taps(sigma_mm, spacing_mm[2], n.x)};
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_TAPS_H_
