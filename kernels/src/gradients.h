// The gradient that the refinement descends: features, local correlation, smoothness and folds.
#ifndef DINOREG_SRC_GRADIENTS_H_
#define DINOREG_SRC_GRADIENTS_H_

#include "dinoreg/correlation.h"
#include "dinoreg/regularity.h"
#include "level.h"

DR_NAMESPACE_BEGIN

// Memory of the local correlation.
struct CorrelationMemory {
  float* sums;     // the window sums along z, 6 numbers per voxel
  float* factors;  // 3 numbers per voxel
  float *fixed, *moving;  // one channel of the features as images
};

template <class Launcher>
CorrelationMemory correlation_memory(SolverContext<Launcher>& c, const Level& l) {
  const size_t n = l.shape.voxels(), of_moving = l.moving.shape.voxels();
  const bool channels = c.correlates_features(), any = channels || c.intensities();
  return {.sums = c.template take<float>(any ? 6 * n : 0),
          .factors = c.template take<float>(any ? 3 * n : 0),
          .fixed = c.template take<float>(channels ? n : 0),
          .moving = c.template take<float>(channels ? of_moving : 0)};
}

// Two images on a level, and how their correlation counts.
struct Correlation {
  const float *fixed, *moving;
  bool squared;
  double weight, noise;
  const float* unit = nullptr;  // factor on weight and noise^2; null: 1
};

inline Correlation correlation_of_images(const dr_solver_args& a, const Level& l) {
  return {.fixed = l.fixed_image,
          .moving = l.moving_image,
          .squared = true,
          .weight = a.correlation_weight,
          .noise = a.correlation_noise};
}

// The gradient of one level. Until it is smoothed, the context's scratch memory, three numbers per
// voxel, holds the warped image, its weight, and what the voxels lack to be free of folds.
template <class Launcher>
class Gradient {
 public:
  Gradient(const SolverContext<Launcher>& context, const Level& level,
           const CorrelationMemory& memory, float* gradient)
      : c_(context), a_(context.args), l_(level), memory_(memory), gradient_(gradient),
        warped_(context.scratch), weight_(context.scratch + level.shape.voxels()) {}

  // d/du of sum w d(F, M(p+u)) / n + lambda sum |grad u|^2 / 3n + penalty / n. The factor 1 / n is
  // left out everywhere, as Adam's steps do not depend on constant factors.
  void set(const float* fold_penalty) const {
    const FoldLack lack = {.u = l_.displacement(l_.field),
                           .margin_det = (float)a_.fold_margin,
                           .out = folds() ? weight_ + l_.shape.voxels() : nullptr};
    const Correlation images = correlation_of_images(a_, l_);
    if (c_.intensities())
      c_.run(both(warp(images), lack));
    else if (folds())
      c_.run(lack);
    set_features_and_regularity(lack.out, fold_penalty);
    if (c_.intensities()) add_windows(images);
    if (c_.correlates_features()) add_feature_correlation();
  }

 private:
  bool folds() const { return a_.fold_penalty > 0.0; }

  ImagePair pair(const Correlation& what) const {
    return {.fixed = what.fixed,
            .fixed_weight = l_.fixed.weight,
            .moving = what.moving,
            .moving_weight = l_.moving.weight,
            .moving_shape = l_.moving.shape,
            .moving_offset = to_vec3(l_.moving_offset),
            .u = l_.displacement(l_.field)};
  }

  WarpIntensity warp(const Correlation& what) const {
    return {.pair = pair(what), .warped = warped_, .weight = weight_};
  }

  // The products of a warped image are smoothed without being stored, and so are the sums and the
  // smoothed factors.
  void add_windows(const Correlation& what) const {
    Smoothing windows = {.shape = l_.shape,
                         .batch = WeightedProducts::kCount,
                         .tmp = memory_.sums,
                         .another = memory_.factors};
    const double window_mm = a_.correlation_window_mm * l_.scale;
    c_.smooth(windows, window_mm, l_.spacing_mm,
              WeightedProducts{.weight = weight_, .fixed = what.fixed, .warped = warped_},
              CorrelationFactors{.shape = l_.shape,
                                 .noise = (float)what.noise,
                                 .squared = what.squared,
                                 .unit = what.unit,
                                 .factors = memory_.factors});
    windows.batch = AddCorrelationGradient::kTogether;
    windows.another = memory_.sums + windows.batch * l_.shape.voxels();
    c_.smooth(windows, window_mm, l_.spacing_mm, FromArrays{memory_.factors, l_.shape.voxels()},
              AddCorrelationGradient{.pair = pair(what),
                                     .weight = weight_,
                                     .scale = (float)what.weight,
                                     .unit = what.unit,
                                     .gradient = gradient_});
  }

  // 1 - rho of each channel: the mean over channels times 2 mean |F|^2, as for the cosine, with
  // noise as a share of the channels' root mean square. Taking one channel after the other needs
  // two more images in all instead of two for each channel.
  void add_feature_correlation() const {
    const Correlation what = {.fixed = memory_.fixed,
                              .moving = memory_.moving,
                              .squared = false,
                              .weight = 2.0 * a_.feature_weight / a_.channels,
                              .noise = a_.correlation_noise / sqrt((double)a_.channels),
                              .unit = l_.mean_square};
    for (int channel = 0; channel < a_.channels; ++channel) {
      c_.run(FeatureChannel{l_.fixed, channel, memory_.fixed});
      c_.run(FeatureChannel{l_.moving, channel, memory_.moving});
      c_.run(warp(what));
      add_windows(what);
    }
  }

  void set_features_and_regularity(const float* lack, const float* fold_penalty) const {
    FeatureTerm term = feature_term(l_);
    term.gradient = gradient_;
    term.scale = (float)a_.feature_weight;
    term.trust_cost = (float)a_.trust_cost;
    if (c_.intensities()) term.weight = weight_;
    const double* mm = l_.spacing_mm;
    const double scale = 2.0 * a_.smoothness / 3.0;
    const Vec3 factor = {(float)(scale / (mm[0] * mm[0])), (float)(scale / (mm[1] * mm[1])),
                         (float)(scale / (mm[2] * mm[2]))};
    const auto regularity =
        both(AddSmoothnessGradient{l_.field, gradient_, l_.shape, factor},
             AddFoldGradient{l_.displacement(l_.field), lack, gradient_, fold_penalty});
    if (a_.feature_weight == 0.0 || c_.correlates_features()) {
      c_.zero(gradient_, l_.floats());
      c_.run(regularity);
    } else if (a_.feature_similarity == DR_FEATURES_COSINE) {
      compare(both(FeatureCosine{term, l_.mean_square}, regularity));
    } else {
      compare(both(FeatureDifference{term}, regularity));
    }
  }

  template <class Op>
  void compare(const Op& op) const {
    if (!c_.counting()) feature_pass(c_.launch, op);
  }

  const SolverContext<Launcher>& c_;
  const dr_solver_args& a_;
  const Level& l_;
  const CorrelationMemory& memory_;
  float* const gradient_;
  float *const warped_, *const weight_;
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_GRADIENTS_H_
