// The refinement: Adam from coarse to fine, on a displacement or on a stationary velocity.
#ifndef DINOREG_SRC_REFINE_H_
#define DINOREG_SRC_REFINE_H_

#include "dinoreg/adam.h"
#include "gradients.h"
#include "velocity.h"

DR_NAMESPACE_BEGIN

template <class Launcher>
class Refinement {
 public:
  explicit Refinement(SolverContext<Launcher>& context)
      : c_(context), a_(context.args), velocity_(a_.squarings > 0) {
    for (int k = 0; k < a_.levels; ++k) all_iterations_ += a_.iterations[k];
  }

  // From the context's x to its field, and to the inverse if x is a velocity. False if cancelled.
  bool run() {
    if (velocity_) take_logarithm(c_, finest_level(c_));
    for (int k = 0; k < a_.levels; ++k) {
      const size_t mark = c_.work.mark();
      const int scale = 1 << (a_.levels - 1 - k);
      Level l = scale == 1 ? finest_level(c_) : coarser_level(c_, scale);
      if (a_.feature_similarity != DR_FEATURES_MSE && a_.iterations[k] > 0)
        l.mean_square = mean_square(c_, l);
      if (scale > 1) c_.resize(c_.x, c_.shape, l.x, l.shape, between_grids(l.factor, true));
      if (!adam(l, a_.iterations[k])) return false;
      if (scale > 1) c_.resize(l.field, l.shape, c_.x, c_.shape, between_grids(l.factor, false));
      if (scale == 1 && velocity_) to_displacement(l);
      c_.work.release(mark);
    }
    return true;
  }

 private:
  // Memory of the iterations of one level.
  struct Memory {
    float *gradient, *first_moment, *second_moment, *half_way;
    CorrelationMemory correlation;
    IterationState* state;
  };

  Memory take_memory(const Level& l) {
    const size_t n = l.floats();
    const Memory m = {.gradient = c_.template take<float>(n),
                      .first_moment = c_.template take<float>(n),
                      .second_moment = c_.template take<float>(n),
                      .half_way = c_.template take<float>(velocity_ ? n : 0),
                      .correlation = correlation_memory(c_, l),
                      .state = c_.template take<IterationState>(1)};
    c_.zero(m.first_moment, n);
    c_.zero(m.second_moment, n);
    c_.zero(m.state, 1);
    return m;
  }

  // Every iteration consists of the same launches, so that a back end can record one and replay it.
  bool adam(const Level& level, int iterations) {
    Level l = level;
    const Memory memory = take_memory(l);
    if (iterations > 0 && !c_.correlates_features()) {  // which reads every channel once
      l.fixed = rearranged(c_, l.fixed);
      l.moving = rearranged(c_, l.moving);
    }
    const double sigma_mm = a_.smoothing_mm * l.scale;
    const int earlier = done_;
    const auto report = [&] {
      ++done_;
      return c_.report(DR_STAGE_REFINE, (float)done_ / (float)all_iterations_);
    };
    if (iterations > 0 && !c_.counting()) set_epsilon(l, memory, sigma_mm);
    const bool going_on = c_.launch.repeat(
        c_.counting() ? 0 : iterations, [&] { iterate(l, memory, sigma_mm, earlier); }, report);
    if (!going_on) return false;
    smooth_field(c_, l, l.x, l.field, sigma_mm);
    return true;
  }

  void iterate(const Level& l, const Memory& m, double sigma_mm, int earlier) {
    const double beta1 = 0.9, beta2 = 0.999;
    // The fold penalty grows from 0: at full weight from the start it would prevent matching.
    c_.run(AdvanceIteration{.state = m.state,
                            .beta1 = beta1,
                            .beta2 = beta2,
                            .learning_rate = a_.learning_rate_mm * l.scale,
                            .fold_penalty = a_.fold_penalty,
                            .earlier = earlier,
                            .all = all_iterations_});
    set_gradient(l, m, sigma_mm);
    smooth_gradient(l, m, sigma_mm,
                    AdamStep{.value = l.x,
                             .first_moment = m.first_moment,
                             .second_moment = m.second_moment,
                             .width = 3 * l.shape.x,
                             .beta1 = (float)beta1,
                             .beta2 = (float)beta2,
                             .step = &m.state->step,
                             .correction = &m.state->correction,
                             .epsilon = &m.state->epsilon});
  }

  // The gradient with respect to the level's smoothed x.
  void set_gradient(const Level& l, const Memory& m, double sigma_mm) {
    smooth_field(c_, l, l.x, l.field, sigma_mm);
    if (velocity_) {
      c_.copy_field(l.field, m.gradient, l.shape);
      exponentiate(c_, m.gradient, l.field, l, 1.0f);
    }
    Gradient<Launcher>(c_, l, m.correlation, m.gradient).set(&m.state->fold_penalty);
    if (velocity_) to_half_way(c_, l, m.gradient, m.half_way, sigma_mm);
  }

  // The gradient with respect to x itself. The displacement is not read again before it is
  // recomputed, so its memory is free until then.
  template <class Sink>
  void smooth_gradient(const Level& l, const Memory& m, double sigma_mm, const Sink& sink) {
    c_.smooth({.shape = l.shape, .components = 3, .tmp = c_.scratch, .another = l.field}, sigma_mm,
              l.spacing_mm, FromArrays{m.gradient, (Index)l.floats()}, sink);
  }

  void set_epsilon(const Level& l, const Memory& m, double sigma_mm) {
    if (a_.adam_epsilon > 0.0) {
      Level off = l;
      off.moving_offset = l.moving_offset - Int3{1, 1, 1};
      set_gradient(off, m, sigma_mm);
      smooth_field(c_, l, m.gradient, l.field, sigma_mm);
      c_.run(SquaredLength{l.field, l.shape, c_.scratch});
      c_.mean(c_.scratch, l.fixed.weight, l.shape, &m.state->mean_square);
    }
    c_.run(SetEpsilon{m.state, a_.adam_epsilon});
  }

  // Up to here, the field of the finest level is the velocity.
  void to_displacement(const Level& l) {
    if (a_.inverse != nullptr) exponentiate(c_, c_.field, a_.inverse, l, -1.0f);
    c_.copy_field(c_.field, c_.x, l.shape);
    exponentiate(c_, c_.x, c_.field, l, 1.0f);
  }

  SolverContext<Launcher>& c_;
  const dr_solver_args& a_;
  const bool velocity_;
  int all_iterations_ = 0, done_ = 0;
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_REFINE_H_
