// The grids of the mirror test, and its searches as those of the solver.
#ifndef DINOREG_SRC_MIRROR_ARGS_H_
#define DINOREG_SRC_MIRROR_ARGS_H_

#include "dinoreg.h"

// Where one image lies on the grid of the test: voxels of `factor` that begin at its multiples.
struct MirrorGrid {
  int32_t lead[3];    // voxels that are missing at the start of the first block
  int32_t offset[3];  // index of the first block
  int32_t shape[3];

  // Of arguments that need not be checked; every sum is made with 64 bits.
  MirrorGrid(const int32_t* of_shape, const int32_t* of_offset, int32_t factor) {
    const int64_t by = factor > 0 ? factor : 1;
    for (int i = 0; i < 3; ++i) {
      const int64_t first = of_offset == nullptr ? 0 : of_offset[i];
      const int64_t rest = (first % by + by) % by;
      lead[i] = static_cast<int32_t>(rest);
      offset[i] = static_cast<int32_t>((first - rest) / by);
      shape[i] = static_cast<int32_t>((of_shape[i] + rest + by - 1) / by);
    }
  }
};

// The search from the fixed image in another image on the grid of the test, without its arrays.
inline dr_solver_args mirror_search_args(const dr_mirror_args& a) {
  static const int32_t kNoIterations = 0;
  const MirrorGrid fixed(a.fixed_shape, nullptr, a.factor);
  const MirrorGrid moving(a.moving_shape, a.moving_offset, a.factor);
  dr_solver_args s = DR_INIT(dr_solver_args);
  for (int i = 0; i < 3; ++i) {
    s.fixed_shape[i] = fixed.shape[i];
    s.moving_shape[i] = moving.shape[i];
    s.moving_offset[i] = moving.offset[i];
    s.spacing_mm[i] = a.factor * a.spacing_mm[i];
    s.search_factor[i] = a.search_factor[i];
    s.search_radius[i] = a.search_radius[i];
  }
  s.stride = a.stride;
  s.channels = a.channels;
  s.search_levels = 1;
  s.cost_smoothing_mm = a.cost_smoothing_mm;
  s.field_smoothing_mm = a.field_smoothing_mm;
  s.smoothing_mm = a.smoothing_mm;
  s.coupling = a.coupling;
  s.coupling_rounds = a.coupling_rounds;
  s.kept_costs_mb = a.kept_costs_mb;
  s.iterations = &kNoIterations;
  s.levels = 1;
  s.learning_rate_mm = 1.0;
  s.feature_weight = 1.0;
  return s;
}

#endif  // DINOREG_SRC_MIRROR_ARGS_H_
