// Joint histograms of the intensities of two images.
#ifndef DINOREG_HISTOGRAM_H_
#define DINOREG_HISTOGRAM_H_

#include "dinoreg/partial.h"

DR_NAMESPACE_BEGIN

// Bins of each image, and the steps in which weights are counted.
enum { kBins = 32, kHistogram = kBins * kBins, kWeightSteps = 255 };

// The bin of an intensity in 0..1; the outer bins hold what lies beyond, and NaN.
DR_HD int bin_of(float intensity) {
  return (int)clamp_float(intensity * (float)kBins, 0.0f, (float)(kBins - 1));
}

// A weight in whole steps, ties to even. Weights beyond 2^31 steps count as 2^31.
DR_HD Count steps_of(float weight) {
  return (Count)rintf(clamp_float(weight * (float)kWeightSteps, 0.0f, 2147483648.0f));
}

DR_HD void add_to_histogram(Count* joint, float first, float second, Count steps) {
  if (steps > 0) add_count(joint + bin_of(first) * kBins + bin_of(second), steps);
}

DR_NAMESPACE_END

#endif  // DINOREG_HISTOGRAM_H_
