// The images and the displacement on one grid of the refinement.
#ifndef DINOREG_SRC_LEVEL_H_
#define DINOREG_SRC_LEVEL_H_

#include <math.h>

#include "context.h"
#include "dinoreg/local_intensity.h"
#include "dinoreg/pool.h"
#include "dinoreg/similarity.h"

DR_NAMESPACE_BEGIN

struct Level {
  WeightedFeatures fixed, moving;
  const float *fixed_image, *moving_image;  // null without an intensity term
  Shape shape;
  Int3 moving_offset;
  double spacing_mm[3];
  float *x, *field;
  Int3 factor = {1, 1, 1};             // voxels of the finest grid per voxel
  int scale = 1;  // of the refinement's lengths, relative to the finest level
  const float* mean_square = nullptr;  // of the fixed features; null where it is not needed

  size_t floats() const { return 3 * (size_t)shape.voxels(); }
  Displacement displacement(const float* u) const { return {u, shape, inverse_of(spacing_mm)}; }
};

// The layout in which a launcher compares features faster.
template <class Launcher>
FeatureLayout layout_of(const SolverContext<Launcher>& c, const Shape& shape, int stride) {
  return wants_blocks(c.launch) ? in_blocks(shape) : interleaved(stride);
}

// The same features in that layout, if the rest of the workspace has room for a copy. It is not
// counted: a CPU would have to provide it as well, and no result depends on it.
template <class Launcher>
WeightedFeatures rearranged(SolverContext<Launcher>& c, const WeightedFeatures& in) {
  const size_t numbers = in.shape.voxels() * in.stride;
  const bool other = wants_blocks(c.launch) && in.stride > kBlock && in.layout.voxel != kBlock;
  if (!other || c.counting() || !c.has_room(numbers * sizeof(Half))) return in;
  Half* features = c.template take<Half>(numbers);
  const FeatureLayout layout = layout_of(c, in.shape, in.stride);
  c.run(Rearrange{in, features, layout});
  return {features, in.weight, in.shape, in.stride, layout};
}

template <class Launcher>
Level finest_level(const SolverContext<Launcher>& c) {
  const dr_solver_args& a = c.args;
  return {.fixed = {a.fixed, a.fixed_weight, c.shape, a.stride},
          .moving = {a.moving, a.moving_weight, to_int3(a.moving_shape), a.stride},
          .fixed_image = a.fixed_image,
          .moving_image = a.moving_image,
          .shape = c.shape,
          .moving_offset = to_int3(a.moving_offset),
          .spacing_mm = {a.spacing_mm[0], a.spacing_mm[1], a.spacing_mm[2]},
          .x = c.x,
          .field = c.field};
}

// out = the field `in` of the level, smoothed.
template <class Launcher>
void smooth_field(const SolverContext<Launcher>& c, const Level& l, const float* in, float* out,
                  double sigma_mm) {
  c.smooth({.in = in, .out = out, .tmp = c.scratch, .shape = l.shape, .components = 3}, sigma_mm,
           l.spacing_mm);
}

// The weighted mean of |F|^2, the unit of the features' cost where it is not a squared difference.
template <class Launcher>
const float* mean_square(SolverContext<Launcher>& c, const Level& l) {
  float* out = c.template take<float>(1);
  c.run(FeatureSquare{l.fixed, c.scratch});
  c.mean(c.scratch, l.fixed.weight, l.shape, out);
  return out;
}

inline FeatureTerm feature_term(const Level& l) {
  return {.fixed = l.fixed,
          .moving = l.moving,
          .moving_offset = to_vec3(l.moving_offset),
          .u = l.displacement(l.field)};
}

// How one of the images is averaged to a coarser grid.
struct Coarsening {
  Int3 factor;  // fine voxels per coarse voxel
  Int3 offset;  // of the first fine voxel within the first coarse one
  Shape shape;  // of the coarse grid
};

inline Coarsening fixed_coarsening(const dr_solver_args& a, const Int3& factor) {
  return {factor, {}, divide_up(to_int3(a.fixed_shape), factor)};
}

// The moving image's coarse grid continues that of the fixed image. It starts with the coarse voxel
// that holds the first moving voxel; `first` receives its index on the fixed image's coarse grid.
inline Coarsening moving_coarsening(const dr_solver_args& a, const Int3& factor, Int3& first) {
  for (int i = 0; i < 3; ++i) first[i] = (int)floor((double)a.moving_offset[i] / factor[i]);
  const Int3 offset = to_int3(a.moving_offset) - first * factor;
  return {factor, offset, divide_up(to_int3(a.moving_shape) + offset, factor)};
}

template <class Launcher>
const float* pool_image(SolverContext<Launcher>& c, const float* image, const Shape& shape,
                        const Coarsening& to) {
  float* out = c.template take<float>(to.shape.voxels());
  c.run(PoolMoments{.image = image,
                    .shape = shape,
                    .factor = to.factor,
                    .offset = to.offset,
                    .mean = out,
                    .out_shape = to.shape});
  return out;
}

template <class Launcher>
WeightedFeatures pool_features(SolverContext<Launcher>& c, const WeightedFeatures& in,
                               const Coarsening& to) {
  Half* features = c.template take<Half>(to.shape.voxels() * in.stride);
  float* weight = c.template take<float>(to.shape.voxels());
  const FeatureLayout layout = layout_of(c, to.shape, in.stride);
  c.run(PoolFeatures{.in = in,
                     .factor = to.factor,
                     .offset = to.offset,
                     .out = features,
                     .out_weight = weight,
                     .out_shape = to.shape,
                     .out_layout = layout});
  return {features, weight, to.shape, in.stride, layout};
}

// A level with voxels `scale` times as large. An axis that is coarse already is averaged less or
// not at all.
template <class Launcher>
Level coarser_level(SolverContext<Launcher>& c, int scale) {
  const dr_solver_args& a = c.args;
  const Level finest = finest_level(c);
  Level l = finest;
  l.scale = scale;
  const double smallest = fmin(l.spacing_mm[0], fmin(l.spacing_mm[1], l.spacing_mm[2]));
  for (int i = 0; i < 3; ++i) {
    l.factor[i] = max_int(1, (int)(scale * smallest / l.spacing_mm[i] + 0.5));
    l.spacing_mm[i] *= l.factor[i];
  }
  const Coarsening to_fixed = fixed_coarsening(a, l.factor);
  const Coarsening to_moving = moving_coarsening(a, l.factor, l.moving_offset);
  l.shape = to_fixed.shape;
  l.fixed = pool_features(c, finest.fixed, to_fixed);
  l.moving = pool_features(c, finest.moving, to_moving);
  if (c.intensities()) {
    l.fixed_image = pool_image(c, a.fixed_image, finest.shape, to_fixed);
    l.moving_image = pool_image(c, a.moving_image, finest.moving.shape, to_moving);
  }
  l.x = c.template take<float>(l.floats());
  l.field = c.template take<float>(l.floats());
  return l;
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_LEVEL_H_
