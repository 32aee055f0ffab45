// The discrete search: costs of a group of shifts, and the running minimum over all shifts.
//
// The costs of one group of shifts are computed, smoothed and compared with the best so far, then
// those of the next group. If there are not too many (dr_solver_args.kept_costs_mb), the smoothed
// costs of all shifts stay in memory for the coupled rounds; otherwise each round computes them
// again.
#ifndef DINOREG_COST_H_
#define DINOREG_COST_H_

#include "dinoreg/op.h"
#include "dinoreg/trust.h"

DR_NAMESPACE_BEGIN

// All whole shifts of up to `radius` voxels along each axis. They are numbered as the voxels of an
// array: s = ((iz * count_y) + iy) * count_x + ix.
struct Shifts {
  Int3 radius;

  DR_HD int count_y() const { return 2 * radius.y + 1; }
  DR_HD int count_x() const { return 2 * radius.x + 1; }
  DR_HD int count() const { return (2 * radius.z + 1) * count_y() * count_x(); }
  DR_HD Int3 at(int s) const {
    const int plane = count_y() * count_x();
    return Int3{s / plane, s % plane / count_x(), s % count_x()} - radius;
  }
  // The shift that follows d, without the divisions of `at`.
  DR_HD Vec3 after(Vec3 d) const {
    d.x += 1.0f;
    if (d.x > (float)radius.x) {
      d.x = (float)-radius.x;
      d.y += 1.0f;
      if (d.y > (float)radius.y) {
        d.y = (float)-radius.y;
        d.z += 1.0f;
      }
    }
    return d;
  }
};

// out (shifts, Z, Y, X) = w_f (w_m t(|f(p) - m(p + d)|^2) + (1 - w_m) unrelated), where
// t(d) = d trust_of(d). Summed channel by channel, so that the rows vectorise along x.
struct ShiftCost {
  const float* fixed;  // (PZ, PY, channels, PX), with margin
  const float* fixed_weight;
  const float* moving;
  const float* moving_weight;
  Shape padded;  // (PZ, PY, PX)
  Shape shape;   // without the margin
  int channels;
  Shifts shifts;
  int first_shift = 0, shift_count = 0;
  const float* unrelated = nullptr;  // cost of unrelated features, with the same trust
  float trust_cost = 0.0f;
  float* out = nullptr;

  DR_HD int rows() const { return shift_count * shape.rows(); }
  DR_HD int width() const { return shape.x; }

  struct Lines {
    const float *f, *m, *wf, *wm;
    float* to;
  };

  // Row (z, y) of shift number first_shift + k.
  DR_HD Lines lines(int k, int z, int y) const {
    const Int3 d = shifts.at(first_shift + k);
    const Index here = (Index)(z + shifts.radius.z) * padded.y + (y + shifts.radius.y);
    const Index there = here + (Index)d.z * padded.y + d.y;
    const int x = shifts.radius.x;
    Lines l;
    l.f = fixed + here * channels * padded.x + x;
    l.m = moving + there * channels * padded.x + x + d.x;
    l.wf = fixed_weight + here * padded.x + x;
    l.wm = moving_weight + there * padded.x + x + d.x;
    l.to = out + (((Index)k * shape.z + z) * shape.y + y) * shape.x;
    return l;
  }

  DR_LANES(true)

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const int plane = row / shape.y, k = plane / shape.z;
    cost<V>(lines(k, plane - k * shape.z, row - plane * shape.y), x);
  }

  template <class V>
  DR_HD void cost(const Lines& l, int x) const {
    const V sum = squared_difference<V>(l.f + x, l.m + x, channels, padded.x);
    store(l.to + x, weighted(sum, load<V>(l.wf + x), load<V>(l.wm + x)));
  }

  template <class V>
  DR_HD V weighted(V sum, V fixed_share, V moving_share) const {
    const V cost = sum * trust_of(sum, trust_cost);
    return fixed_share * (*unrelated + moving_share * (cost - *unrelated));
  }
};

// The best shift of each voxel among [first_shift, first_shift + shift_count) and those of earlier
// groups, by cost + coupling |d - u|^2. Without u, the shorter of two equally good shifts wins (a
// millionth of the cost per squared step): where no weight meets another, all shifts cost the same,
// and the corner of the search would otherwise be smoothed into the image from there.
//
// There is no separate version for a GPU. A voxel reads 4 bytes for each shift, and for each group
// it reads 20 bytes of best and u and writes 8. That makes 7.1 bytes per voxel and shift in groups
// of 9, 4.8 in the groups of 36 that large_group (src/passes.h) makes, and 4, the least possible,
// where costs are kept and one launch takes all shifts. Smoothing in the same kernel would also
// save the first pass those 4 bytes, out of the 30 to 40 that a shift moves, but shifts could then
// not be spread over threads, and a search grid of 32 x 27 x 32 alone does not fill a large GPU.
struct KeepBest {
  const float* cost = nullptr;  // (shifts, Z, Y, X)
  const float* near = nullptr;  // u in steps of the search, (3, Z, Y, X); null without coupling
  Shape shape;
  Shifts shifts;
  int first_shift = 0, shift_count = 0;
  bool fresh = true;  // the first group: there is no best so far
  float coupling = 0.0f;
  Vec3 step;  // length of one shift along each axis, relative to the longest
  float* best_cost;
  int* best_shift;

  DR_OVER(shape)
  DR_LANES(true)

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
    Vec3Of<V> u = {};
    if (near != nullptr) u = {load<V>(near + i), load<V>(near + n + i), load<V>(near + 2 * n + i)};
    Vec3 d = to_vec3(shifts.at(first_shift));
    for (int k = 0; k < shift_count; ++k, d = shifts.after(d)) {
      V c = load<V>(cost + k * n + i);
      if (near != nullptr) {
        const V ez = (d.z - u.z) * step.z, ey = (d.y - u.y) * step.y, ex = (d.x - u.x) * step.x;
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

// Moments of the shifts that match nearly as well as the best, summed over all shifts: the weight,
// weight * d and weight * d^2 along each axis. A shift has the weight (1 - (cost - best) / reach)^2
// and none beyond the reach. The formula has no exponential, so the sums have the same bits
// everywhere. Groups of shifts are added one after the other.
struct AddSpread {
  const float* cost;  // (shifts, Z, Y, X)
  const float* best_cost;
  const float* unrelated;
  float share;  // the reach as a share of the unrelated cost
  Shape shape;
  Shifts shifts;
  int first_shift, shift_count;
  float* moments;  // (7, Z, Y, X): weight; z, y, x; their squares

  DR_OVER(shape)
  DR_LANES(false)

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const Index i = (Index)row * shape.x + x, n = shape.voxels();
    // Where no weight meets another, all costs are 0 and all shifts have the same weight.
    const float per_cost = 1.0f / (share * *unrelated + 1e-30f);
    const V best = load<V>(best_cost + i);
    V m[7];
    DR_UNROLL(7)
    for (int k = 0; k < 7; ++k) m[k] = first_shift == 0 ? V{} : load<V>(moments + k * n + i);
    Vec3 d = to_vec3(shifts.at(first_shift));
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

// The moments of AddSpread as standard deviations along each axis, (Z, Y, X, 3) in mm.
struct SpreadToField {
  const float* moments;
  Shape shape;
  Vec3 mm;
  float* out;

  DR_OVER(shape)
  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * shape.x + x, n = shape.voxels();
    const float weight = moments[i];
    float deviation[3];
    for (int axis = 0; axis < 3; ++axis) {
      const float mean = moments[(1 + axis) * n + i] / weight;
      const float variance = moments[(4 + axis) * n + i] / weight - mean * mean;
      deviation[axis] = variance > 0.0f ? sqrtf(variance) : 0.0f;
    }
    store_vec3(out + 3 * i, load_vec3(deviation) * mm);
  }
};

// The numbers of shifts as planar displacements (3, Z, Y, X) in steps of the search.
struct ShiftsToPlanes {
  const int* best_shift;
  Shape shape;
  Shifts shifts;
  float* out;

  DR_OVER(shape)
  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * shape.x + x, n = shape.voxels();
    const Vec3 d = to_vec3(shifts.at(best_shift[i]));
    out[i] = d.z;
    out[n + i] = d.y;
    out[2 * n + i] = d.x;
  }
};

// Planar displacements (3, Z, Y, X) in steps of the search as a field (Z, Y, X, 3) in mm.
struct PlanesToField {
  const float* planes;
  Shape shape;
  Vec3 mm;
  float* out;

  DR_OVER(shape)
  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * shape.x + x, n = shape.voxels();
    store_vec3(out + 3 * i, Vec3{planes[i], planes[n + i], planes[2 * n + i]} * mm);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_COST_H_
