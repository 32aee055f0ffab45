// The gradient that the refinement descends: features, local correlation, smoothness, folds.
#ifndef DINOREG_SRC_GRADIENTS_H_
#define DINOREG_SRC_GRADIENTS_H_

#include "dinoreg/correlation.h"
#include "dinoreg/regularity.h"
#include "level.h"

DR_NAMESPACE_BEGIN

// What local correlation works in.
struct CorrelationMemory {
  float* sums;             // 7 numbers a voxel
  float *fixed, *moving;  // one channel of the features as images
};

template <class Launcher>
CorrelationMemory correlation_memory(SolverContext<Launcher>& c, const Level& l) {
  const size_t n = l.shape.voxels(), of_moving = l.moving_shape.voxels();
  const bool channels = c.correlates_features();
  return {c.work.template take<float>(channels || c.intensities() ? 7 * n : 0),
          c.work.template take<float>(channels ? n : 0),
          c.work.template take<float>(channels ? of_moving : 0)};
}

// Two images on a level, and how their correlation counts.
struct Correlation {
  const float *fixed, *moving;
  bool squared;
  double weight, noise;
  const float* unit;  // weight and noise^2 are so many times as large; null: once
};

template <class Launcher>
void add_correlation(const SolverContext<Launcher>& c, const Level& l, const Correlation& what,
                     float* gradient, float* sums) {
  const Index n = l.shape.voxels();
  const double window_mm = c.args.correlation_window_mm * l.scale;
  float* weight = c.scratch;
  float* warped = c.scratch + n;
  float* tmp = c.scratch + 2 * n;
  float* product = sums + 6 * n;
  const Vec3 offset = l.offset(), index_per_mm = inverse_of(l.spacing_mm);
  c.run(WarpIntensity{l.fixed_weight, l.shape, what.moving, l.moving_weight, l.moving_shape, offset,
                      l.field, index_per_mm, warped, weight});
  const float* pairs[6][2] = {{nullptr, nullptr},       {what.fixed, nullptr}, {warped, nullptr},
                              {what.fixed, what.fixed}, {what.fixed, warped},  {warped, warped}};
  const auto window = [&](const float* in, float* out, float* through) {
    c.smooth(in, out, through, l.shape, 1, 1, window_mm, l.spacing_mm);
  };
  for (int k = 0; k < 6; ++k) {
    c.run(WeightedProduct{weight, pairs[k][0], pairs[k][1], l.shape, product});
    window(product, sums + k * n, tmp);
  }
  c.run(CorrelationFactors{sums, l.shape, (float)what.noise, what.squared, what.unit});
  for (int k = 0; k < 3; ++k) window(sums + k * n, sums + (3 + k) * n, sums + 6 * n);
  c.run(AddCorrelationGradient{what.fixed, weight, l.shape, what.moving, l.moving_shape, offset,
                               l.field, index_per_mm, sums + 3 * n, (float)what.weight, what.unit,
                               gradient});
}

// 1 - rho of each channel: its mean times 2 mean |F|^2, as the cosine, and noise as a share of the
// channels' root mean square. One channel after the other needs two images more, not two for each.
template <class Launcher>
void add_feature_correlation(const SolverContext<Launcher>& c, const Level& l, float* gradient,
                             const CorrelationMemory& memory) {
  const dr_solver_args& a = c.args;
  const double weight = 2.0 * a.feature_weight / a.channels;
  const double noise = a.correlation_noise / sqrt((double)a.channels);
  for (int channel = 0; channel < a.channels; ++channel) {
    c.run(FeatureChannel{l.fixed, l.shape, a.stride, channel, memory.fixed});
    c.run(FeatureChannel{l.moving, l.moving_shape, a.stride, channel, memory.moving});
    add_correlation(c, l, {memory.fixed, memory.moving, false, weight, noise, l.mean_square},
                    gradient, memory.sums);
  }
}

template <class Launcher>
void set_feature_gradient(const SolverContext<Launcher>& c, const Level& l, float* gradient,
                          const CorrelationMemory& memory) {
  const dr_solver_args& a = c.args;
  FeatureTerm term = feature_term(l, a.stride);
  term.gradient = gradient;
  term.scale = (float)a.feature_weight;
  term.trust_cost = (float)a.trust_cost;
  if (a.feature_weight == 0.0 || c.correlates_features()) c.zero(gradient, l.floats());
  if (a.feature_weight == 0.0) return;
  if (c.correlates_features()) return add_feature_correlation(c, l, gradient, memory);
  if (a.feature_similarity == DR_FEATURES_COSINE) return c.run(FeatureCosine{term, l.mean_square});
  c.run(FeatureDifference{term});
}

// d/du of sum w d(F, M(p+u)) / n + lambda sum |grad u|^2 / 3n + penalty / n. Constant factors do
// not change what Adam does, so n is left out everywhere.
template <class Launcher>
void add_gradients(const SolverContext<Launcher>& c, const Level& l, float* gradient,
                   const CorrelationMemory& memory, const float* fold_penalty) {
  set_feature_gradient(c, l, gradient, memory);
  if (c.intensities())
    add_correlation(c, l,
                    {l.fixed_image, l.moving_image, true, c.args.correlation_weight,
                     c.args.correlation_noise, nullptr},
                    gradient, memory.sums);
  const double* mm = l.spacing_mm;
  const double scale = 2.0 * c.args.smoothness / 3.0;
  c.run(AddSmoothnessGradient{l.field,
                              gradient,
                              l.shape,
                              {(float)(scale / (mm[0] * mm[0])), (float)(scale / (mm[1] * mm[1])),
                               (float)(scale / (mm[2] * mm[2]))}});
  if (c.args.fold_penalty <= 0.0) return;
  float* lack = c.scratch;
  c.run(FoldLack{l.field, l.shape, inverse_of(mm), (float)c.args.fold_margin, lack});
  c.run(AddFoldGradient{l.field, lack, gradient, l.shape, inverse_of(mm), fold_penalty});
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_GRADIENTS_H_
