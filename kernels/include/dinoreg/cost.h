// The discrete search: costs of a group of shifts, and the running minimum over all shifts.
//
// A group of shifts is computed, smoothed and compared with the best so far, then the next. The
// smoothed costs of all shifts stay in memory for the coupled rounds where they are not too many
// (dr_solver_args.kept_costs_mb); where they are, each round computes them again.
#ifndef DINOREG_COST_H_
#define DINOREG_COST_H_

#include "dinoreg/grid.h"
#include "dinoreg/trust.h"

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
  // The shift numbered one higher than d, without the divisions of `at`.
  DR_HD Vec3 after(Vec3 d) const {
    d.x += 1.0f;
    if (d.x > (float)radius_x) {
      d.x = (float)-radius_x;
      d.y += 1.0f;
      if (d.y > (float)radius_y) {
        d.y = (float)-radius_y;
        d.z += 1.0f;
      }
    }
    return d;
  }
};

// out (shifts, Z, Y, X) = w_f (w_m t(|f(p) - m(p + d)|^2) + (1 - w_m) unrelated), t(d) = d
// trust_of(d). Built up channel by channel, so that the rows vectorise along x.
struct ShiftCost {
  enum { kRepeatable = 1 };  // computing an element twice does no harm
  const float* fixed;  // (PZ, PY, channels, PX), with margin
  const float* fixed_weight;
  const float* moving;
  const float* moving_weight;
  Shape padded;  // (PZ, PY, PX)
  Shape shape;   // without the margin
  int channels;
  Shifts shifts;
  int first_shift, shift_count;
  const float* unrelated;  // with the same trust
  float* out;
  float trust_cost;

  DR_HD int rows() const { return shift_count * shape.rows(); }
  DR_HD int width() const { return shape.x; }

  struct Lines {
    const float *f, *m, *wf, *wm;
    float* to;
  };

  // Row (z, y) of shift number first_shift + k.
  DR_HD Lines lines(int k, int z, int y) const {
    const int s = first_shift + k, plane = shifts.count_y() * shifts.count_x();
    const int dz = s / plane - shifts.radius_z, dy = s % plane / shifts.count_x() - shifts.radius_y;
    const int dx = s % shifts.count_x() - shifts.radius_x;
    const Index here = (Index)(z + shifts.radius_z) * padded.y + (y + shifts.radius_y);
    const Index there = here + (Index)dz * padded.y + dy;
    const int x = shifts.radius_x;
    return {fixed + here * channels * padded.x + x, moving + there * channels * padded.x + x + dx,
            fixed_weight + here * padded.x + x, moving_weight + there * padded.x + x + dx,
            out + (((Index)k * shape.z + z) * shape.y + y) * shape.x};
  }

  DR_HD void operator()(int row, int x) const { lanes<float>(row, x); }

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const int plane = row / shape.y, k = plane / shape.z;
    cost<V>(lines(k, plane - k * shape.z, row - plane * shape.y), x);
  }

  template <class V>
  DR_HD void cost(const Lines& l, int x) const {
    // Four sums side by side: one alone waits for each multiply-add to finish before the next.
    V part[4] = {V{}, V{}, V{}, V{}};
    int c = 0;
    for (; c + 4 <= channels; c += 4) {
      DR_UNROLL(4)
      for (int k = 0; k < 4; ++k) {
        const Index at = (Index)(c + k) * padded.x + x;
        const V d = load<V>(l.f + at) - load<V>(l.m + at);
        part[k] += d * d;
      }
    }
    for (; c < channels; ++c) {
      const V d = load<V>(l.f + (Index)c * padded.x + x) - load<V>(l.m + (Index)c * padded.x + x);
      part[0] += d * d;
    }
    const V sum = (part[0] + part[1]) + (part[2] + part[3]);
    store(l.to + x, weighted(sum, load<V>(l.wf + x), load<V>(l.wm + x)));
  }

  template <class V>
  DR_HD V weighted(V sum, V fixed_share, V moving_share) const {
    const V cost = sum * trust_of(sum, trust_cost);
    return fixed_share * (*unrelated + moving_share * (cost - *unrelated));
  }
};

// Best shift of each voxel among [first_shift, first_shift + shift_count), joined with the best of
// earlier groups: cost + coupling |d - u|^2. Without u the shorter of equally good shifts wins (a
// millionth of the cost per squared step): where no weight meets another all shifts cost the same,
// and the search's corner would be smoothed into the image from there.
//
// On a GPU no version of its own: a voxel reads 4 bytes for each shift, and for each group 20 of
// best and u and writes 8. That is 7.1 bytes for a voxel and shift in groups of 9, 4.8 in those of
// 36 that large_group (src/passes.h) makes, and 4, the least, where costs are kept and one launch
// takes all shifts. Smoothing in the same kernel would save a first pass the 4 too, of 30 to 40
// that a shift moves, but give up the shifts as threads: a lattice of 32 x 27 x 32 cells alone does
// not fill a large GPU.
struct KeepBest {
  enum { kRepeatable = 1 };  // computing an element twice does no harm
  const float* cost;  // (shifts, Z, Y, X)
  const float* near;  // u in shifts' own steps, (3, Z, Y, X); null when coupling is 0
  Shape shape;
  Shifts shifts;
  int first_shift, shift_count;
  bool fresh;  // these are the first shifts: there is no best so far
  float coupling;
  Vec3 step;  // length of one shift along each axis in units of the coarsest
  float* best_cost;
  int* best_shift;

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }

  DR_HD void operator()(int row, int x) const { lanes<float>(row, x); }

  template <class V>
  DR_HD void lanes(int row, int x) const {
    typedef typename LaneTraits<V>::Int Int;
    const Index i = (Index)row * shape.x + x, n = shape.voxels();
    V lowest = splat<V>(3.4e38f);
    Int chosen = Int{};
    if (!fresh) {
      lowest = load<V>(best_cost + i);
      chosen = load<Int>(best_shift + i);
    }
    V uz = V{}, uy = V{}, ux = V{};
    if (near != nullptr) {
      uz = load<V>(near + i);
      uy = load<V>(near + n + i);
      ux = load<V>(near + 2 * n + i);
    }
    Vec3 d = shifts.at(first_shift);
    for (int k = 0; k < shift_count; ++k, d = shifts.after(d)) {
      V c = load<V>(cost + k * n + i);
      if (near != nullptr) {
        const V ez = (d.z - uz) * step.z, ey = (d.y - uy) * step.y, ex = (d.x - ux) * step.x;
        c += coupling * (ez * ez + ey * ey + ex * ex);
      } else {
        const Vec3 e = d * step;
        c += (e.z * e.z + e.y * e.y + e.x * e.x) * (1e-6f * c + 1e-30f);
      }
      chosen = c < lowest ? Int{} + (first_shift + k) : chosen;
      lowest = min_of(c, lowest);
    }
    store(best_cost + i, lowest);
    store(best_shift + i, chosen);
  }
};

// How far apart the shifts lie that match nearly as well as the best, in three moments of each axis
// over all shifts: weight, weight d, weight d^2. A shift weighs (1 - (cost - best) / reach)^2, and
// nothing beyond the reach; no exponential, so the sums are the same to the bit everywhere. Groups
// of shifts are added one after the other.
struct AddSpread {
  enum { kRepeatable = 0 };
  const float* cost;  // (shifts, Z, Y, X)
  const float* best_cost;
  const float* unrelated;
  float share;  // reach in units of the unrelated cost
  Shape shape;
  Shifts shifts;
  int first_shift, shift_count;
  float* moments;  // (7, Z, Y, X): weight; z, y, x; their squares

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }

  DR_HD void operator()(int row, int x) const { lanes<float>(row, x); }

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const Index i = (Index)row * shape.x + x, n = shape.voxels();
    // Where no weight meets another all costs are 0 and all shifts weigh the same.
    const float per_cost = 1.0f / (share * *unrelated + 1e-30f);
    const V best = load<V>(best_cost + i);
    V m[7];
    DR_UNROLL(7)
    for (int k = 0; k < 7; ++k) m[k] = first_shift == 0 ? V{} : load<V>(moments + k * n + i);
    Vec3 d = shifts.at(first_shift);
    for (int s = 0; s < shift_count; ++s, d = shifts.after(d)) {
      const V room = splat<V>(1.0f) - per_cost * (load<V>(cost + s * n + i) - best);
      const V left = room > V{} ? room : V{};
      const V w = left * left;
      m[0] += w;
      m[1] += d.z * w;
      m[2] += d.y * w;
      m[3] += d.x * w;
      m[4] += (d.z * d.z) * w;
      m[5] += (d.y * d.y) * w;
      m[6] += (d.x * d.x) * w;
    }
    DR_UNROLL(7)
    for (int k = 0; k < 7; ++k) store(moments + k * n + i, m[k]);
  }
};

// Those moments -> standard deviation along each axis, (Z, Y, X, 3) in mm.
struct SpreadToField {
  const float* moments;
  Shape shape;
  Vec3 mm;
  float* out;

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }
  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * shape.x + x, n = shape.voxels();
    const float weight = moments[i];
    float deviation[3];
    for (int axis = 0; axis < 3; ++axis) {
      const float mean = moments[(1 + axis) * n + i] / weight;
      const float variance = moments[(4 + axis) * n + i] / weight - mean * mean;
      deviation[axis] = variance > 0.0f ? sqrtf(variance) : 0.0f;
    }
    store_vec3(out + 3 * i, Vec3{deviation[0], deviation[1], deviation[2]} * mm);
  }
};

// Shift numbers -> displacements in steps, planar: (3, Z, Y, X).
struct ShiftsToPlanes {
  const int* best_shift;
  Shape shape;
  Shifts shifts;
  float* out;

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }
  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * shape.x + x, n = shape.voxels();
    const Vec3 d = shifts.at(best_shift[i]);
    out[i] = d.z;
    out[n + i] = d.y;
    out[2 * n + i] = d.x;
  }
};

// (3, Z, Y, X) in steps -> (Z, Y, X, 3) in mm.
struct PlanesToField {
  const float* planes;
  Shape shape;
  Vec3 mm;
  float* out;

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }
  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * shape.x + x, n = shape.voxels();
    store_vec3(out + 3 * i, Vec3{planes[i], planes[n + i], planes[2 * n + i]} * mm);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_COST_H_
