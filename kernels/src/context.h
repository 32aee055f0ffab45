// State that all stages of one solve share: launcher, arguments, workspace, passes over fields.
#ifndef DINOREG_SRC_CONTEXT_H_
#define DINOREG_SRC_CONTEXT_H_

#include "convert.h"
#include "dinoreg/field.h"
#include "dinoreg/sum.h"
#include "passes.h"
#include "taps.h"
#include "workspace.h"

DR_NAMESPACE_BEGIN

// Maps the index of a coarse voxel to that of the fine voxel at its centre, or back. A coarse voxel
// is `factor` fine voxels wide, and its centre lies half of its width from its corner.
inline Affine between_grids(const Int3& factor, bool to_fine) {
  Affine map = {};
  for (int i = 0; i < 3; ++i) {
    const float f = (float)factor[i];
    map.m[5 * i] = to_fine ? f : 1.0f / f;
    map.m[4 * i + 3] = to_fine ? (f - 1.0f) / 2.0f : (1.0f - f) / (2.0f * f);
  }
  return map;
}

// If its arguments have no workspace, a solve is only counted: the stages take their memory from
// `work` as usual, but nothing is launched.
template <class Launcher>
struct SolverContext {
  const Launcher& launch;
  const dr_execution& execution;
  const dr_solver_args& args;
  Workspace work;
  const Shape shape;         // of the fixed grid, on which the result is given
  float* const field;        // (shape, 3), mm: the displacement
  float* x = nullptr;        // (shape, 3), mm: the variable of the refinement
  float* scratch = nullptr;  // (shape, 3)
  double* sums = nullptr;    // two totals, and the sums of each row and plane of an image

  SolverContext(const Launcher& launcher, const dr_execution& where,
                const dr_solver_args& arguments)
      : launch(launcher), execution(where), args(arguments), work(arguments.workspace),
        shape(to_int3(arguments.fixed_shape)), field(arguments.field) {
    x = take<float>(field_floats());
    scratch = take<float>(field_floats());
    sums = take<double>(2 + shape.rows() + shape.z);
  }
  // The stages keep references to it.
  SolverContext(const SolverContext&) = delete;
  SolverContext& operator=(const SolverContext&) = delete;

  bool counting() const { return args.workspace == nullptr; }
  size_t field_floats() const { return 3 * (size_t)shape.voxels(); }
  bool intensities() const { return args.correlation_weight > 0.0; }
  bool correlates_features() const {
    return args.feature_weight > 0.0 && args.feature_similarity == DR_FEATURES_LNCC;
  }

  // Whether as many bytes are left beyond what the stages take.
  bool has_room(size_t bytes) const { return work.after(bytes) <= args.workspace_bytes; }

  template <class T>
  T* take(size_t count) {
    return work.take<T>(count);
  }

  template <class Op>
  void run(const Op& op) const {
    if (!counting()) launch(op);
  }

  template <class T>
  void zero(T* values, size_t count) const {
    if (!counting()) launch.zero(values, sizeof(T) * count);
  }

  // out = the sum of `values` / the sum of `weights`, or 0 without weight, for images no larger
  // than `shape`. Nothing waits for the result: it is read where the ops run.
  template <class T>
  void mean(const float* values, const float* weights, const Shape& s, T* out) const {
    sum(values, s, sums);
    sum(weights, s, sums + 1);
    run(Quotient<T>{sums, sums + 1, out});
  }

  // False if the caller asks to stop.
  bool report(dr_stage stage, float fraction) const {
    if (counting() || execution.progress == nullptr) return true;
    return execution.progress(execution.progress_user, stage, fraction) == 0;
  }

  // Runs a smoothing pass, whose taps are set here.
  void smooth(SmoothPass pass, double sigma_mm, const double* spacing_mm) const {
    if (counting()) return;
    pass.taps = gaussian_taps(sigma_mm, spacing_mm, pass.shape);
    smooth_pass(launch, pass);
  }

  // The same, from a source to a sink.
  template <class Source, class Sink>
  void smooth(Smoothing smoothing, double sigma_mm, const double* spacing_mm, const Source& source,
              const Sink& sink) const {
    if (counting()) return;
    smoothing.taps = gaussian_taps(sigma_mm, spacing_mm, smoothing.shape);
    smooth_into(launch, smoothing, source, sink);
  }

  // out = scale * in, both (s, 3).
  void copy_field(const float* in, float* out, const Shape& s, float scale = 1.0f) const {
    map_field(in, s, out, s, {.affine = {}, .matrix = scaling(scale), .on_grid = true});
  }

  // Evaluates a field at to_field(index) of another grid.
  void resize(const float* in, const Shape& in_shape, float* out, const Shape& out_shape,
              const Affine& to_field) const {
    map_field(in, in_shape, out, out_shape, {.affine = {}, .to_field = to_field});
  }

 private:
  void map_field(const float* in, const Shape& in_shape, float* out, const Shape& out_shape,
                 PointMap map) const {
    map.field = in;
    map.field_shape = in_shape;
    run(MapField{out, out_shape, map});
  }

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
