// A small solve that runs through the CPU's and through the CUDA launcher, for the checks of
// graphs.
#ifndef DINOREG_TESTS_CUDA_SOLVE_H_
#define DINOREG_TESTS_CUDA_SOLVE_H_

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <string>
#include <vector>

#include "cpu/cpu_passes.h"
#include "cuda/cuda_passes.cuh"
#include "solver.h"

namespace {

using dr::CpuLauncher;
using dr::CudaLauncher;
using dr::Half;

enum { Z = 9, Y = 10, X = 21, VOXELS = Z * Y * X, STRIDE = 16 };
const int32_t kIterations[] = {3, 1, 0, 4};

// The arrays and arguments of a solve. The kinds of refinement differ in a few numbers.
struct Solve {
  std::vector<dr::Block> fixed, moving, memory;
  std::vector<float> weight, fixed_image, moving_image, field, inverse;
  std::vector<double> coupling = {0.01, 0.3};
  dr_feature_distance distance = {-1.0, -1.0, -1.0};
  dr_solver_args args = {};
  int reports = 0, stop_after = 1 << 30;

  explicit Solve(const std::string& kind)
      : fixed(VOXELS * STRIDE / 8), moving(fixed.size()), weight(VOXELS, 1.0f), fixed_image(VOXELS),
        moving_image(VOXELS), field(3 * VOXELS), inverse(3 * VOXELS) {
    fill(fixed, fixed_image, 0.0f);
    fill(moving, moving_image, 1.3f);
    weight[5] = weight[700] = 0.0f;
    for (int i = 0; i < 3; ++i) {
      args.fixed_shape[i] = args.moving_shape[i] = i == 0 ? Z : i == 1 ? Y : X;
      args.spacing_mm[i] = i == 0 ? 2.5 : 2.0;
      args.search_factor[i] = 2;
    }
    args.fixed = half(fixed), args.moving = half(moving);
    args.fixed_weight = args.moving_weight = weight.data();
    args.stride = args.channels = STRIDE;
    args.search_levels = 1;
    args.cost_smoothing_mm = args.field_smoothing_mm = 4.0;
    args.coupling = coupling.data();
    args.coupling_rounds = 2;
    args.consistency_rounds = 2;
    args.iterations = kIterations;
    args.levels = 4;
    args.learning_rate_mm = 0.05;
    args.smoothing_mm = 3.0;
    args.smoothness = 0.5;
    args.feature_weight = 1.0;
    args.correlation_window_mm = 3.0;
    args.correlation_noise = 0.1;
    args.fold_penalty = 30.0;
    args.fold_margin = 0.9;
    args.field = field.data();
    args.feature_distance = &distance;
    if (kind == "search") args.search_radius[1] = args.search_radius[2] = 1;
    if (kind == "velocity") args.squarings = 4, args.inverse = inverse.data();
    if (kind == "cosine") args.feature_similarity = DR_FEATURES_COSINE;
    if (kind == "lncc") args.feature_similarity = DR_FEATURES_LNCC;
    if (kind == "images") {
      args.correlation_weight = 2.0;
      args.fixed_image = fixed_image.data();
      args.moving_image = moving_image.data();
    }
    args.workspace_bytes = dr::Solver<CpuLauncher>::workspace_bytes(args);
    if (kind == "room") args.workspace_bytes += 2 * (sizeof(Half) * VOXELS * STRIDE + 256);
    memory.resize(args.workspace_bytes / sizeof(dr::Block) + 1);
    // The previous content of the workspace must not matter.
    memset(static_cast<void*>(memory.data()), 0xff, memory.size() * sizeof(dr::Block));
    args.workspace = memory.data();
  }

  static const Half* half(const std::vector<dr::Block>& storage) {
    return reinterpret_cast<const Half*>(storage.data());
  }

  static void fill(std::vector<dr::Block>& storage, std::vector<float>& image, float shift) {
    Half* to = reinterpret_cast<Half*>(storage.data());
    for (int i = 0; i < VOXELS; ++i) {
      const float x = (float)(i % X) - shift, y = (float)(i / X % Y), z = (float)(i / (X * Y));
      image[i] = 0.5f + 0.4f * sinf(0.7f * x + 0.3f * y - 0.2f * z);
      for (int c = 0; c < STRIDE; ++c)
        to[STRIDE * i + c] = dr::float_to_half(sinf(0.5f * x + 0.1f * c * y + 0.4f * z));
    }
  }

  static int report(void* self, dr_stage stage, float) {
    Solve& s = *static_cast<Solve*>(self);
    s.reports += stage == DR_STAGE_REFINE;
    return s.reports >= s.stop_after;
  }

  template <class Launcher>
  dr_status run(const Launcher& launch, bool reporting = true) {
    dr_execution execution = {};
    execution.progress = reporting ? report : nullptr;
    execution.progress_user = this;
    if (reporting) launches = graph_launches = captures = 0;
    return dr::Solver<Launcher>(launch, execution, args).solve();
  }

  bool operator==(const Solve& other) const {
    return memcmp(field.data(), other.field.data(), field.size() * sizeof(float)) == 0 &&
           memcmp(inverse.data(), other.inverse.data(), inverse.size() * sizeof(float)) == 0 &&
           memcmp(&distance, &other.distance, sizeof distance) == 0;
  }
};

#define WANT(condition) \
  if (!(condition)) return printf("%s: wanted %s\n", kind.c_str(), #condition), false

}  // namespace

#endif  // DINOREG_TESTS_CUDA_SOLVE_H_
