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
      : c_(launch, execution, args), row_sums_(c_.work.template take<float>(c_.shape.rows())) {}

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
    FeatureDifference op = feature_difference(finest_level(c_), c_.args.stride);
    float* energy = c_.scratch;
    float* weight = c_.scratch + c_.shape.voxels();
    op.energy = energy;
    op.overlap = weight;
    c_.run(op);
    const double total = sum(energy), met = sum(weight), all = sum(c_.args.fixed_weight);
    c_.args.overlap = all > 0.0 ? met / all : 0.0;
    return met > 0.0 ? total / met : 0.0;
  }

  double sum(const float* values) {
    const int rows = c_.shape.rows();
    c_.run(SumRows{values, rows, c_.shape.x, row_sums_});
    double total = 0.0;
    float part[256];
    for (int row = 0; row < rows; row += 256) {
      const int count = min_int(256, rows - row);
      c_.launch.to_host(part, row_sums_ + row, sizeof(float) * count);
      for (int i = 0; i < count; ++i) total += part[i];
    }
    return total;
  }

  SolverContext<Launcher> c_;
  float* row_sums_;
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_SOLVER_H_
