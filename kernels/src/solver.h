// The one solver loop: discrete search, then refinement, with the similarity before and after.
//
// Follows the structure of Siebert, Hansen & Heinrich, "ConvexAdam" (IEEE TMI 2024), in
// millimetres per axis and with borders, voxel scaling and outside-of-view handled explicitly.
#ifndef DINOREG_SRC_SOLVER_H_
#define DINOREG_SRC_SOLVER_H_

#include "refine.h"
#include "search.h"

DR_NAMESPACE_BEGIN

template <class Launcher>
class Solver {
 public:
  Solver(const Launcher& launch, const dr_execution& execution, dr_solver_args& args)
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
    c_.args.similarity[0] = mean_similarity();
    if (!discrete_search(c_)) return DR_ERROR_CANCELLED;
    if (!Refinement<Launcher>(c_).run()) return DR_ERROR_CANCELLED;
    c_.args.similarity[1] = mean_similarity();
    return DR_OK;
  }

 private:
  // Mean energy over the weight that meets moving weight; also sets overlap. Waits for the device.
  double mean_similarity() {
    if (c_.counting()) return 0.0;
    FeatureDifference op = {feature_term(finest_level(c_), c_.args.stride)};
    float* energy = c_.scratch;
    float* weight = c_.scratch + c_.shape.voxels();
    op.energy = energy;
    op.overlap = weight;
    c_.run(op);
    const double total = c_.sum(energy, c_.shape), met = c_.sum(weight, c_.shape);
    const double all = c_.sum(c_.args.fixed_weight, c_.shape);
    c_.args.overlap = all > 0.0 ? met / all : 0.0;
    return met > 0.0 ? total / met : 0.0;
  }

  SolverContext<Launcher> c_;
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_SOLVER_H_
