// The solver: discrete search, then refinement, and the feature distance before and after them.
//
// It follows the structure of Siebert, Hansen & Heinrich, "ConvexAdam" (IEEE TMI 2024), but works
// in millimetres along each axis and treats borders, voxel sizes and points outside the field of
// view explicitly.
#ifndef DINOREG_SRC_SOLVER_H_
#define DINOREG_SRC_SOLVER_H_

#include "refine.h"
#include "search.h"

DR_NAMESPACE_BEGIN

template <class Launcher>
class Solver {
 public:
  Solver(const Launcher& launch, const dr_execution& execution, const dr_solver_args& args)
      : c_(launch, execution, args) {}

  static size_t workspace_bytes(const dr_solver_args& args) {
    dr_solver_args counted = args;
    counted.workspace = nullptr;
    const dr_execution none = {};
    const Launcher launch = Launcher::counting();
    Solver solver(launch, none, counted);
    solver.solve();
    return solver.c_.work.peak();
  }

  dr_status solve() {
    c_.zero(c_.field, c_.field_floats());
    c_.zero(c_.x, c_.field_floats());
    dr_feature_distance* const wanted = c_.args.feature_distance;
    if (wanted != nullptr) mean_distance(&wanted->before);
    if (!discrete_search(c_)) return DR_ERROR_CANCELLED;
    if (!Refinement<Launcher>(c_).run()) return DR_ERROR_CANCELLED;
    if (wanted != nullptr) {
      const float* met = mean_distance(&wanted->after);
      c_.mean(met, c_.args.fixed_weight, c_.shape, &wanted->overlap);
    }
    return DR_OK;
  }

 private:
  // Writes the mean feature distance, weighted by the part of the fixed weight that meets moving
  // weight, and returns those weights (fixed shape).
  const float* mean_distance(double* out) {
    FeatureDifference op = {feature_term(finest_level(c_))};
    op.energy = c_.scratch;
    op.overlap = c_.scratch + c_.shape.voxels();
    c_.run(op);
    c_.mean(op.energy, op.overlap, c_.shape, out);
    return op.overlap;
  }

  SolverContext<Launcher> c_;
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_SOLVER_H_
