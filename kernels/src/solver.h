// The one solver loop: discrete search, then refinement, with the similarity before and after.
//
// Follows the structure of Siebert, Hansen & Heinrich, "ConvexAdam" (IEEE TMI 2024), in
// millimetres per axis and with borders, voxel scaling and outside-of-view handled explicitly.
#ifndef DINOREG_SRC_SOLVER_H_
#define DINOREG_SRC_SOLVER_H_

#include "dinoreg/choose.h"
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
    dr_feature_distance* const found =
        wanted != nullptr ? wanted : c_.work.template take<dr_feature_distance>(1);
    double* const overlap_before = c_.work.template take<double>(1);
    compare(&found->before, overlap_before);
    if (!discrete_search(c_)) return DR_ERROR_CANCELLED;
    if (!Refinement<Launcher>(c_).run()) return DR_ERROR_CANCELLED;
    compare(&found->after, &found->overlap);
    if (follows_features()) keep_better(found, overlap_before);
    return DR_OK;
  }

 private:
  // Mean energy over the weight that meets moving weight, and that weight's share.
  void compare(double* out, double* overlap) {
    FeatureDifference op = {feature_term(finest_level(c_), c_.args.stride)};
    op.energy = c_.scratch;
    op.overlap = c_.scratch + c_.shape.voxels();
    c_.run(op);
    c_.mean(op.energy, op.overlap, c_.shape, out);
    c_.mean(op.overlap, c_.args.fixed_weight, c_.shape, overlap);
  }

  // Whether there is a refinement, and of what is compared.
  bool follows_features() const {
    int iterations = 0;
    for (int k = 0; k < c_.args.levels; ++k) iterations += c_.args.iterations[k];
    return iterations > 0 && c_.args.feature_weight > 0.0;
  }

  // Adam's first steps are as long however small the gradient is: what rounding and the noise of
  // the correlation leave of it moved images that matched already by a sixth of a voxel. Decided
  // where the ops run: nothing waits.
  void keep_better(dr_feature_distance* found, const double* overlap_before) {
    int* kept = c_.work.template take<int>(1);
    c_.run(BetterThanStart{&found->before, overlap_before, &found->after, &found->overlap, kept});
    c_.run(KeepField{c_.field, c_.shape.rows(), 3 * c_.shape.x, kept});
    if (c_.args.inverse != nullptr)
      c_.run(KeepField{c_.args.inverse, c_.shape.rows(), 3 * c_.shape.x, kept});
  }

  SolverContext<Launcher> c_;
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_SOLVER_H_
