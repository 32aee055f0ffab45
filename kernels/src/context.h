// What all stages of one solve share: launcher, arguments, workspace, and passes over its fields.
#ifndef DINOREG_SRC_CONTEXT_H_
#define DINOREG_SRC_CONTEXT_H_

#include "convert.h"
#include "dinoreg/field.h"
#include "dinoreg/sum.h"
#include "passes.h"
#include "taps.h"
#include "workspace.h"

DR_NAMESPACE_BEGIN

// Index of a cell -> of the voxel at its centre, or back, where a cell is `factor` voxels: cell
// centres lie half a cell from its corner.
inline Affine between_cells(const int* factor, bool to_voxel) {
  Affine map = {};
  for (int i = 0; i < 3; ++i) {
    const float f = (float)factor[i];
    map.m[5 * i] = to_voxel ? f : 1.0f / f;
    map.m[4 * i + 3] = to_voxel ? (f - 1.0f) / 2.0f : (1.0f - f) / (2.0f * f);
  }
  return map;
}

// Without a workspace in its arguments a solve is only counted: stages take their memory from
// `work` as ever, and nothing is launched.
template <class Launcher>
struct SolverContext {
  const Launcher& launch;
  const dr_execution& execution;
  const dr_solver_args& args;
  Workspace work;
  const Shape shape;         // of the fixed grid, on which the result lives
  float* const field;        // (shape, 3), mm: the displacement
  float* x = nullptr;        // (shape, 3), mm: what the refinement changes
  float* scratch = nullptr;  // (shape, 3)
  double* sums = nullptr;    // two totals, and of one image each row's and each plane's

  SolverContext(const Launcher& launcher, const dr_execution& where,
                const dr_solver_args& arguments)
      : launch(launcher), execution(where), args(arguments), work(arguments.workspace),
        shape(to_shape(arguments.fixed_shape)), field(arguments.field) {
    x = work.template take<float>(field_floats());
    scratch = work.template take<float>(field_floats());
    sums = work.template take<double>(2 + shape.rows() + shape.z);
  }
  // Stages keep references to it.
  SolverContext(const SolverContext&) = delete;
  SolverContext& operator=(const SolverContext&) = delete;

  bool counting() const { return args.workspace == nullptr; }
  size_t field_floats() const { return 3 * (size_t)shape.voxels(); }
  bool intensities() const { return args.correlation_weight > 0.0; }
  bool correlates_features() const {
    return args.feature_weight > 0.0 && args.feature_similarity == DR_FEATURES_LNCC;
  }

  template <class Op>
  void run(const Op& op) const {
    if (!counting()) launch(op);
  }

  template <class T>
  void zero(T* values, size_t count) const {
    if (!counting()) launch.zero(values, sizeof(T) * count);
  }

  // out = the sum of `values` / the sum of `weights`, 0 without weight; of images no larger than
  // `shape`. Nothing waits for it: who needs it reads it where the ops run.
  template <class T>
  void mean(const float* values, const float* weights, const Shape& s, T* out) const {
    sum(values, s, sums);
    sum(weights, s, sums + 1);
    run(Quotient<T>{sums, sums + 1, out});
  }

  // False: the caller wants to stop.
  bool report(dr_stage stage, float fraction) const {
    if (counting() || execution.progress == nullptr) return true;
    return execution.progress(execution.progress_user, stage, fraction) == 0;
  }

  // in -> out through tmp; all three differ.
  void smooth(const float* in, float* out, float* tmp, const Shape& s, int batch, int components,
              double sigma_mm, const double* spacing_mm) const {
    if (counting()) return;
    smooth_pass(launch, SmoothPass{in, out, tmp, s, batch, components,
                                   gaussian_taps(sigma_mm, spacing_mm[0], s.z),
                                   gaussian_taps(sigma_mm, spacing_mm[1], s.y),
                                   gaussian_taps(sigma_mm, spacing_mm[2], s.x)});
  }

  // out = scale * in, both (s, 3).
  void copy_field(const float* in, float* out, const Shape& s, float scale = 1.0f) const {
    const Matrix3 times = {{scale, 0, 0, 0, scale, 0, 0, 0, scale}};
    run(MapField{out, s, PointMap{Affine{}, in, s, Affine{}, times, true}});
  }

  // A field on a lattice whose cells are `factor` voxels of the other.
  void resize(const float* in, const Shape& in_shape, float* out, const Shape& out_shape,
              const int* factor, bool to_coarse) const {
    const Matrix3 one = {{1, 0, 0, 0, 1, 0, 0, 0, 1}};
    const Affine map = between_cells(factor, to_coarse);
    run(MapField{out, out_shape, PointMap{Affine{}, in, in_shape, map, one, false}});
  }

 private:
  // Rows, then planes, then all: no chain of additions is longer than an axis.
  void sum(const float* values, const Shape& s, double* out) const {
    double* rows = sums + 2;
    double* planes = rows + s.rows();
    run(SumInOrder<float>{values, s.rows(), s.x, rows});
    run(SumInOrder<double>{rows, s.z, s.y, planes});
    run(SumInOrder<double>{planes, 1, s.z, out});
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_CONTEXT_H_
