// The discrete search: costs of a group of shifts, and the running minimum over all shifts.
//
// The cost volume (shifts x voxels) never stands in memory: a group of shifts is computed,
// smoothed and compared with the best so far, then the next. The coupled rounds compute the costs
// again, which is cheaper than reading them back.
#ifndef DINOREG_COST_H_
#define DINOREG_COST_H_

#include "dinoreg/grid.h"

DR_NAMESPACE_BEGIN

// Shift number s = ((iz * count_y) + iy) * count_x + ix, each from -radius to radius.
struct Shifts {
  int radius_z, radius_y, radius_x;

  DR_HD int count_y() const { return 2 * radius_y + 1; }
  DR_HD int count_x() const { return 2 * radius_x + 1; }
  DR_HD int count() const { return (2 * radius_z + 1) * count_y() * count_x(); }
  DR_HD Vec3 at(int s) const {
    const int plane = count_y() * count_x();
    return {(float)(s / plane - radius_z), (float)(s % plane / count_x() - radius_y),
            (float)(s % count_x() - radius_x)};
  }
};

// out (shifts, Z, Y, X) = w_f (w_m |f(p) - m(p + d)|^2 + (1 - w_m) unrelated), built up channel by
// channel in `steps` so that the rows vectorise along x.
struct ShiftCost {
  const float* fixed;  // (PZ, PY, channels, PX), with margin
  const float* fixed_weight;
  const float* moving;
  const float* moving_weight;
  Shape padded;  // (PZ, PY, PX)
  Shape shape;   // without the margin
  int channels;
  Shifts shifts;
  int first_shift, shift_count;
  const float* unrelated;
  float* out;

  DR_HD int rows() const { return shift_count * shape.rows(); }
  DR_HD int width() const { return shape.x; }

  struct Lines {
    const float *f, *m, *wf, *wm;
    float* to;
  };

  DR_HD Lines lines(int row) const {
    const int z = row / shape.y % shape.z, y = row % shape.y;
    const int s = first_shift + row / shape.rows();
    const int plane = shifts.count_y() * shifts.count_x();
    const int dz = s / plane - shifts.radius_z, dy = s % plane / shifts.count_x() - shifts.radius_y;
    const int dx = s % shifts.count_x() - shifts.radius_x;
    const Index here = (Index)(z + shifts.radius_z) * padded.y + (y + shifts.radius_y);
    const Index there = here + (Index)dz * padded.y + dy;
    const int x = shifts.radius_x;
    return {fixed + here * channels * padded.x + x, moving + there * channels * padded.x + x + dx,
            fixed_weight + here * padded.x + x, moving_weight + there * padded.x + x + dx,
            out + (Index)row * shape.x};
  }

  DR_HD void operator()(int row, int x) const {
    const Lines l = lines(row);
    float sum = 0.0f;
    for (int c = 0; c < channels; ++c) {
      const float d = l.f[(Index)c * padded.x + x] - l.m[(Index)c * padded.x + x];
      sum += d * d;
    }
    l.to[x] = l.wf[x] * (*unrelated + l.wm[x] * (sum - *unrelated));
  }
};

// Best shift of each voxel among [first_shift, first_shift + shift_count), joined with the best of
// earlier groups: cost + coupling |d - u|^2. The first of equal costs wins.
struct KeepBest {
  const float* cost;  // (shifts, Z, Y, X)
  const float* near;  // u in shifts' own steps, (Z, Y, X, 3); null when coupling is 0
  Shape shape;
  Shifts shifts;
  int first_shift, shift_count;
  float coupling;
  Vec3 step;  // length of one shift along each axis in units of the coarsest
  float* best_cost;
  int* best_shift;

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }

  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * shape.x + x;
    float lowest = first_shift == 0 ? 3.4e38f : best_cost[i];
    int chosen = first_shift == 0 ? 0 : best_shift[i];
    for (int k = 0; k < shift_count; ++k) {
      float c = cost[(Index)k * shape.voxels() + i];
      if (near != nullptr) {
        const Vec3 d = (shifts.at(first_shift + k) - load_vec3(near + 3 * i)) * step;
        c += coupling * (d.z * d.z + d.y * d.y + d.x * d.x);
      }
      const bool better = c < lowest;
      chosen = better ? first_shift + k : chosen;
      lowest = better ? c : lowest;
    }
    best_cost[i] = lowest;
    best_shift[i] = chosen;
  }
};

// Shift numbers -> vectors: steps along each axis times `unit`.
struct ShiftsToField {
  const int* best_shift;
  Shape shape;
  Shifts shifts;
  Vec3 unit;
  float* out;  // (Z, Y, X, 3)

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }
  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * shape.x + x;
    store_vec3(out + 3 * i, shifts.at(best_shift[i]) * unit);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_COST_H_
