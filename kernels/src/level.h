// The images and the displacement on one lattice of the refinement.
#ifndef DINOREG_SRC_LEVEL_H_
#define DINOREG_SRC_LEVEL_H_

#include <math.h>

#include "context.h"
#include "dinoreg/local_intensity.h"
#include "dinoreg/pool.h"
#include "dinoreg/similarity.h"

DR_NAMESPACE_BEGIN

struct Level {
  const Half *fixed, *moving;
  const float *fixed_weight, *moving_weight;
  const float *fixed_image, *moving_image;  // null without intensity term
  Shape shape, moving_shape;
  int moving_offset[3];
  double spacing_mm[3];
  float *x, *field;
  int factor[3];  // voxels of the finest lattice per voxel
  int scale;      // lengths of the refinement are so many times those of the finest level
  const float* mean_square;  // of the fixed features; null where nobody asked for it

  size_t floats() const { return 3 * (size_t)shape.voxels(); }
  Vec3 offset() const {
    return {(float)moving_offset[0], (float)moving_offset[1], (float)moving_offset[2]};
  }
};

template <class Launcher>
Level finest_level(const SolverContext<Launcher>& c) {
  const dr_solver_args& a = c.args;
  Level l = {a.fixed,
             a.moving,
             a.fixed_weight,
             a.moving_weight,
             a.fixed_image,
             a.moving_image,
             c.shape,
             to_shape(a.moving_shape),
             {},
             {},
             c.x,
             c.field,
             {1, 1, 1},
             1,
             nullptr};
  for (int i = 0; i < 3; ++i) {
    l.moving_offset[i] = a.moving_offset[i];
    l.spacing_mm[i] = a.spacing_mm[i];
  }
  return l;
}

// Weighted mean of |F|^2: the unit of what features cost when they are not compared by differences.
template <class Launcher>
const float* mean_square(SolverContext<Launcher>& c, const Level& l) {
  float* out = c.work.template take<float>(1);
  c.run(FeatureSquare{l.fixed, l.fixed_weight, l.shape, c.args.stride, c.scratch});
  c.mean(c.scratch, l.fixed_weight, l.shape, out);
  return out;
}

inline FeatureTerm feature_term(const Level& l, int stride) {
  return {l.fixed,        l.fixed_weight, l.shape, l.moving, l.moving_weight,
          l.moving_shape, l.offset(),     stride,  l.field,  inverse_of(l.spacing_mm),
          nullptr,        nullptr,        0.0f,    0.0f,     nullptr};
}

template <class Launcher>
const float* pool_image(SolverContext<Launcher>& c, const float* image, const Shape& shape,
                        const int* factor, const int* offset, const Shape& out_shape) {
  float* out = c.work.template take<float>(out_shape.voxels());
  c.run(PoolMoments{image, shape, factor[0], factor[1], factor[2], offset[0], offset[1], offset[2],
                    out, nullptr, out_shape});
  return out;
}

// The moving grid in cells of `factor` voxels: it starts with the cell that holds its first voxel.
struct MovingCells {
  int first[3];  // that cell on the fixed lattice of cells
  int inset[3];  // of the first voxel in it
  Shape shape;
};

inline MovingCells moving_cells(const dr_solver_args& a, const int* factor) {
  MovingCells cells = {};
  int shape[3];
  for (int i = 0; i < 3; ++i) {
    cells.first[i] = (int)floor((double)a.moving_offset[i] / factor[i]);
    cells.inset[i] = a.moving_offset[i] - cells.first[i] * factor[i];
    shape[i] = divide_up(a.moving_shape[i] + cells.inset[i], factor[i]);
  }
  cells.shape = to_shape(shape);
  return cells;
}

struct PooledFeatures {
  Half* features;
  float* weight;
};

template <class Launcher>
PooledFeatures pool_features(SolverContext<Launcher>& c, const Half* features, const float* weight,
                             int stride, const Shape& shape, const int* factor, const int* offset,
                             const Shape& out_shape) {
  const PooledFeatures out = {c.work.template take<Half>(out_shape.voxels() * stride),
                              c.work.template take<float>(out_shape.voxels())};
  c.run(PoolFeatures{features, weight, shape, stride, factor[0], factor[1], factor[2], offset[0],
                     offset[1], offset[2], out.features, out.weight, out_shape});
  return out;
}

// Voxels `scale` times as large; an axis that is coarse already is pooled less or not at all.
template <class Launcher>
Level coarser_level(SolverContext<Launcher>& c, int scale) {
  const dr_solver_args& a = c.args;
  Level l = finest_level(c);
  l.scale = scale;
  const double smallest = fmin(l.spacing_mm[0], fmin(l.spacing_mm[1], l.spacing_mm[2]));
  int shape[3];
  for (int i = 0; i < 3; ++i) {
    const int f = max_int(1, (int)(scale * smallest / l.spacing_mm[i] + 0.5));
    l.factor[i] = f;
    l.spacing_mm[i] *= f;
    shape[i] = divide_up(a.fixed_shape[i], f);
  }
  const MovingCells cells = moving_cells(a, l.factor);
  for (int i = 0; i < 3; ++i) l.moving_offset[i] = cells.first[i];
  const int none[3] = {0, 0, 0};
  const Shape whole_moving = l.moving_shape;
  l.shape = to_shape(shape);
  l.moving_shape = cells.shape;
  const PooledFeatures fixed =
      pool_features(c, a.fixed, a.fixed_weight, a.stride, c.shape, l.factor, none, l.shape);
  const PooledFeatures moving = pool_features(c, a.moving, a.moving_weight, a.stride, whole_moving,
                                              l.factor, cells.inset, l.moving_shape);
  l.fixed = fixed.features;
  l.fixed_weight = fixed.weight;
  l.moving = moving.features;
  l.moving_weight = moving.weight;
  if (c.intensities()) {
    l.fixed_image = pool_image(c, a.fixed_image, c.shape, l.factor, none, l.shape);
    l.moving_image =
        pool_image(c, a.moving_image, whole_moving, l.factor, cells.inset, l.moving_shape);
  }
  l.x = c.work.template take<float>(l.floats());
  l.field = c.work.template take<float>(l.floats());
  return l;
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_LEVEL_H_
