// The gradient that the refinement descends: features, local correlation, smoothness, folds.
#ifndef DINOREG_SRC_GRADIENTS_H_
#define DINOREG_SRC_GRADIENTS_H_

#include "dinoreg/correlation.h"
#include "dinoreg/regularity.h"
#include "level.h"

DR_NAMESPACE_BEGIN

// Local correlation; `sums` holds 7 numbers a voxel.
template <class Launcher>
void add_correlation(const SolverContext<Launcher>& c, const Level& l, float* gradient,
                     float* sums) {
  const Index n = l.shape.voxels();
  const double window_mm = c.args.correlation_window_mm * l.scale;
  float* weight = c.scratch;
  float* warped = c.scratch + n;
  float* tmp = c.scratch + 2 * n;
  float* product = sums + 6 * n;
  const Vec3 offset = l.offset(), index_per_mm = inverse_of(l.spacing_mm);
  c.run(WarpIntensity{l.fixed_weight, l.shape, l.moving_image, l.moving_weight, l.moving_shape,
                      offset, l.field, index_per_mm, warped, weight});
  const float* pairs[6][2] = {{nullptr, nullptr},      {l.fixed_image, nullptr},
                              {warped, nullptr},       {l.fixed_image, l.fixed_image},
                              {l.fixed_image, warped}, {warped, warped}};
  const auto window = [&](const float* in, float* out, float* through) {
    c.smooth(in, out, through, l.shape, 1, 1, window_mm, l.spacing_mm);
  };
  for (int k = 0; k < 6; ++k) {
    c.run(WeightedProduct{weight, pairs[k][0], pairs[k][1], l.shape, product});
    window(product, sums + k * n, tmp);
  }
  c.run(CorrelationFactors{sums, l.shape, (float)c.args.correlation_noise});
  for (int k = 0; k < 3; ++k) window(sums + k * n, sums + (3 + k) * n, sums + 6 * n);
  c.run(AddCorrelationGradient{l.fixed_image, weight, l.shape, l.moving_image, l.moving_shape,
                               offset, l.field, index_per_mm, sums + 3 * n,
                               (float)c.args.correlation_weight, gradient});
}

// d/du of sum w |M(p+u) - F|^2 / n + lambda sum |grad u|^2 / 3n + penalty / n. Constant factors
// do not change what Adam does, so n is left out everywhere.
template <class Launcher>
void add_gradients(const SolverContext<Launcher>& c, const Level& l, float* gradient, float* sums,
                   double fold_penalty) {
  if (c.args.feature_weight > 0.0) {
    FeatureDifference data = feature_difference(l, c.args.stride);
    data.gradient = gradient;
    data.scale = (float)c.args.feature_weight;
    data.trust_cost = (float)c.args.trust_cost;
    c.run(data);
  } else {
    c.zero(gradient, l.floats());
  }
  if (c.intensities()) add_correlation(c, l, gradient, sums);
  const double* mm = l.spacing_mm;
  const double scale = 2.0 * c.args.smoothness / 3.0;
  c.run(AddSmoothnessGradient{l.field,
                              gradient,
                              l.shape,
                              {(float)(scale / (mm[0] * mm[0])), (float)(scale / (mm[1] * mm[1])),
                               (float)(scale / (mm[2] * mm[2]))}});
  if (fold_penalty <= 0.0) return;
  float* lack = c.scratch;
  c.run(FoldLack{l.field, l.shape, inverse_of(mm), (float)c.args.fold_margin, lack});
  c.run(AddFoldGradient{l.field, lack, gradient, l.shape, inverse_of(mm), (float)fold_penalty});
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_GRADIENTS_H_
