// The gradient that the refinement descends: features, local correlation, smoothness and folds.
#ifndef DINOREG_SRC_GRADIENTS_H_
#define DINOREG_SRC_GRADIENTS_H_

#include "dinoreg/correlation.h"
#include "dinoreg/regularity.h"
#include "level.h"

DR_NAMESPACE_BEGIN

// Memory of the local correlation.
struct CorrelationMemory {
  float* sums;             // 7 numbers per voxel
  float *fixed, *moving;  // one channel of the features as images
};

template <class Launcher>
CorrelationMemory correlation_memory(SolverContext<Launcher>& c, const Level& l) {
  const size_t n = l.shape.voxels(), of_moving = l.moving.shape.voxels();
  const bool channels = c.correlates_features();
  return {c.template take<float>(channels || c.intensities() ? 7 * n : 0),
          c.template take<float>(channels ? n : 0),
          c.template take<float>(channels ? of_moving : 0)};
}

// Two images on a level, and how their correlation counts.
struct Correlation {
  const float *fixed, *moving;
  bool squared;
  double weight, noise;
  const float* unit = nullptr;  // factor on weight and noise^2; null: 1
};

template <class Launcher>
void add_correlation(const SolverContext<Launcher>& c, const Level& l, const Correlation& what,
                     float* gradient, float* sums) {
  const Index n = l.shape.voxels();
  float* weight = c.scratch;
  float* warped = c.scratch + n;
  float* tmp = c.scratch + 2 * n;
  float* product = sums + 6 * n;
  const Vec3 offset = to_vec3(l.moving_offset);
  c.run(WarpIntensity{.fixed_weight = l.fixed.weight,
                      .moving = what.moving,
                      .moving_weight = l.moving.weight,
                      .moving_shape = l.moving.shape,
                      .moving_offset = offset,
                      .u = l.displacement(l.field),
                      .warped = warped,
                      .weight = weight});
  const float* pairs[6][2] = {{nullptr, nullptr},       {what.fixed, nullptr}, {warped, nullptr},
                              {what.fixed, what.fixed}, {what.fixed, warped},  {warped, warped}};
  const auto window = [&](const float* in, float* out, float* through) {
    c.smooth({.in = in, .out = out, .tmp = through, .shape = l.shape},
             c.args.correlation_window_mm * l.scale, l.spacing_mm);
  };
  for (int k = 0; k < 6; ++k) {
    c.run(WeightedProduct{
        .weight = weight, .a = pairs[k][0], .b = pairs[k][1], .shape = l.shape, .out = product});
    window(product, sums + k * n, tmp);
  }
  c.run(CorrelationFactors{.sums = sums,
                           .shape = l.shape,
                           .noise = (float)what.noise,
                           .squared = what.squared,
                           .unit = what.unit});
  for (int k = 0; k < 3; ++k) window(sums + k * n, sums + (3 + k) * n, sums + 6 * n);
  c.run(AddCorrelationGradient{.fixed = what.fixed,
                               .weight = weight,
                               .moving = what.moving,
                               .moving_shape = l.moving.shape,
                               .moving_offset = offset,
                               .u = l.displacement(l.field),
                               .factors = sums + 3 * n,
                               .scale = (float)what.weight,
                               .unit = what.unit,
                               .gradient = gradient});
}

// 1 - rho of each channel: the mean over channels times 2 mean |F|^2, as for the cosine, with noise
// as a share of the channels' root mean square. Taking one channel after the other needs two more
// images in all instead of two for each channel.
template <class Launcher>
void add_feature_correlation(const SolverContext<Launcher>& c, const Level& l, float* gradient,
                             const CorrelationMemory& memory) {
  const dr_solver_args& a = c.args;
  const Correlation what = {.fixed = memory.fixed,
                            .moving = memory.moving,
                            .squared = false,
                            .weight = 2.0 * a.feature_weight / a.channels,
                            .noise = a.correlation_noise / sqrt((double)a.channels),
                            .unit = l.mean_square};
  for (int channel = 0; channel < a.channels; ++channel) {
    c.run(FeatureChannel{l.fixed, channel, memory.fixed});
    c.run(FeatureChannel{l.moving, channel, memory.moving});
    add_correlation(c, l, what, gradient, memory.sums);
  }
}

template <class Launcher>
void set_feature_gradient(const SolverContext<Launcher>& c, const Level& l, float* gradient,
                          const CorrelationMemory& memory) {
  const dr_solver_args& a = c.args;
  FeatureTerm term = feature_term(l);
  term.gradient = gradient;
  term.scale = (float)a.feature_weight;
  term.trust_cost = (float)a.trust_cost;
  if (a.feature_weight == 0.0 || c.correlates_features()) c.zero(gradient, l.floats());
  if (a.feature_weight == 0.0) return;
  if (c.correlates_features()) return add_feature_correlation(c, l, gradient, memory);
  if (a.feature_similarity == DR_FEATURES_COSINE) return c.run(FeatureCosine{term, l.mean_square});
  c.run(FeatureDifference{term});
}

// d/du of sum w d(F, M(p+u)) / n + lambda sum |grad u|^2 / 3n + penalty / n. The factor 1 / n is
// left out everywhere, as Adam's steps do not depend on constant factors.
template <class Launcher>
void add_gradients(const SolverContext<Launcher>& c, const Level& l, float* gradient,
                   const CorrelationMemory& memory, const float* fold_penalty) {
  const dr_solver_args& a = c.args;
  set_feature_gradient(c, l, gradient, memory);
  if (c.intensities())
    add_correlation(c, l,
                    {.fixed = l.fixed_image,
                     .moving = l.moving_image,
                     .squared = true,
                     .weight = a.correlation_weight,
                     .noise = a.correlation_noise},
                    gradient, memory.sums);
  const double* mm = l.spacing_mm;
  const double scale = 2.0 * a.smoothness / 3.0;
  const Vec3 factor = {(float)(scale / (mm[0] * mm[0])), (float)(scale / (mm[1] * mm[1])),
                       (float)(scale / (mm[2] * mm[2]))};
  c.run(AddSmoothnessGradient{l.field, gradient, l.shape, factor});
  if (a.fold_penalty <= 0.0) return;
  float* lack = c.scratch;
  c.run(FoldLack{l.displacement(l.field), (float)a.fold_margin, lack});
  c.run(AddFoldGradient{l.displacement(l.field), lack, gradient, fold_penalty});
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_GRADIENTS_H_
