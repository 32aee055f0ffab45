// The refinement: Adam from coarse to fine, on a displacement or a stationary velocity.
#ifndef DINOREG_SRC_REFINE_H_
#define DINOREG_SRC_REFINE_H_

#include <math.h>

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

  // From the context's x to its field, and to the inverse of a velocity. False: stopped.
  bool run() {
    if (velocity_) take_logarithm(c_, finest_level(c_));
    for (int k = 0; k < a_.levels; ++k) {
      const size_t mark = c_.work.mark();
      const int scale = 1 << (a_.levels - 1 - k);
      Level l = scale == 1 ? finest_level(c_) : coarser_level(c_, scale);
      if (a_.feature_similarity != DR_FEATURES_MSE && a_.iterations[k] > 0)
        l.mean_square = mean_square(c_, l);
      if (scale > 1) c_.resize(c_.x, c_.shape, l.x, l.shape, l.factor, true);
      if (!adam(l, a_.iterations[k])) return false;
      if (scale > 1) c_.resize(l.field, l.shape, c_.x, c_.shape, l.factor, false);
      if (scale == 1 && velocity_) to_displacement(l);
      c_.work.release(mark);
    }
    return true;
  }

 private:
  bool adam(const Level& l, int iterations) {
    Workspace& work = c_.work;
    float* gradient = work.template take<float>(l.floats());
    float* moments[2];
    for (float*& m : moments) {
      m = work.template take<float>(l.floats());
      c_.zero(m, l.floats());
    }
    float* half_way = work.template take<float>(velocity_ ? l.floats() : 0);
    const CorrelationMemory memory = correlation_memory(c_, l);
    const double beta1 = 0.9, beta2 = 0.999, sigma_mm = a_.smoothing_mm * l.scale;
    for (int t = 1; t <= iterations && !c_.counting(); ++t) {
      c_.smooth(l.x, l.field, c_.scratch, l.shape, 1, 3, sigma_mm, l.spacing_mm);
      if (velocity_) {
        c_.copy_field(l.field, gradient, l.shape);
        exponentiate(c_, gradient, l.field, l, 1.0f);
      }
      // The matching goes first; at full weight from the start the penalty would bar its way.
      const double done = (double)done_ / all_iterations_;
      add_gradients(c_, l, gradient, memory, a_.fold_penalty * done * done);
      // The displacement is not read again before it is made anew: its memory is free until then.
      if (velocity_) to_half_way(c_, l, gradient, half_way, sigma_mm);
      c_.smooth(gradient, l.field, c_.scratch, l.shape, 1, 3, sigma_mm, l.spacing_mm);
      c_.run(AdamStep{l.x, l.field, moments[0], moments[1], l.shape.rows(), 3 * l.shape.x,
                      (float)beta1, (float)beta2,
                      (float)(a_.learning_rate_mm * l.scale / (1.0 - pow(beta1, t))),
                      (float)(1.0 / (1.0 - pow(beta2, t))), 1e-8f});
      ++done_;
      if (!c_.report(DR_STAGE_REFINE, (float)done_ / (float)all_iterations_)) return false;
    }
    c_.smooth(l.x, l.field, c_.scratch, l.shape, 1, 3, sigma_mm, l.spacing_mm);
    return true;
  }

  // The finest level's field is the velocity until here.
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
