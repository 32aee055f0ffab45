// Displacement fields: evaluation on another grid, Jacobian, composition, inversion.
#ifndef DINOREG_FIELD_H_
#define DINOREG_FIELD_H_

#include "dinoreg/sample.h"

DR_NAMESPACE_BEGIN

// out (z, y, x, 3) = map(index): a field on another grid, an affine as a field, or both.
struct MapField {
  float* out;
  Shape out_shape;
  PointMap map;

  DR_OVER(out_shape)
  DR_HD int margin() const { return map.fits_lanes() ? 0 : width(); }
  DR_LANES(false)  // may work in place

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const Int3 voxel = out_shape.voxel(row, x);
    const Index i = out_shape.at(voxel);
    const Vec3Of<V> index = {splat<V>((float)voxel.z), splat<V>((float)voxel.y),
                             lane_numbers<V>() + (float)x};
    store_vec3_of(out + 3 * i, map.at(index, true, i));
  }
};

// det(I + du/dp) by central differences, one-sided at the border.
struct JacobianDeterminant {
  const float* field;  // (z, y, x, 3), any units and component order
  float* out;
  Shape shape;
  Matrix3 index_from_unit;  // index (z, y, x) per unit of the field's components, in their order

  enum { kRepeatable = 1 };
  DR_OVER(shape)
  DR_HD int margin() const { return 1; }
  DR_HD void operator()(int row, int x) const {
    store(out + (Index)row * shape.x + x,
          value<float>(row, x, x > 0 ? 1 : 0, x < shape.x - 1 ? 1 : 0));
  }
  template <class V>
  DR_HD void lanes(int row, int x) const {
    store(out + (Index)row * shape.x + x, value<V>(row, x, 1, 1));
  }

  template <class V>
  DR_HD V value(int row, int x, int left, int right) const {
    const int z = row / shape.y, y = row - z * shape.y;
    const Index line = 3 * (Index)shape.x, plane = line * shape.y;
    const float* here = field + row * line + 3 * x;
    const Vec3Of<V> dz = difference<V>(here, plane, z > 0, z < shape.z - 1);
    const Vec3Of<V> dy = difference<V>(here, line, y > 0, y < shape.y - 1);
    const Vec3Of<V> dx = difference<V>(here, 3, left, right);
    const float* q = index_from_unit.m;
    // Column j of du/dp is the sum over index axes a of (du/da) q[a][j].
    Vec3Of<V> column[3];
    DR_UNROLL(3)
    for (int j = 0; j < 3; ++j)
      column[j] = {q[j] * dz.z + (q[3 + j] * dy.z + q[6 + j] * dx.z),
                   q[j] * dz.y + (q[3 + j] * dy.y + q[6 + j] * dx.y),
                   q[j] * dz.x + (q[3 + j] * dy.x + q[6 + j] * dx.x)};
    column[0].z = column[0].z + 1.0f;
    column[1].y = column[1].y + 1.0f;
    column[2].x = column[2].x + 1.0f;
    return determinant(column[0], column[1], column[2]);
  }

  // Half the difference of two neighbours, the whole difference to a single one, 0 without any.
  template <class V>
  DR_HD Vec3Of<V> difference(const float* here, Index step, int before, int after) const {
    const float share = before + after == 2 ? 0.5f : 1.0f;
    return share * (load_vec3_of<V>(here + after * step) - load_vec3_of<V>(here - before * step));
  }
};

// out = (u(p) - v(p + u(p))) / 2, one direction of an inverse-consistency round. v is in mm on the
// grid of u.
struct InverseConsistent {
  Displacement u;
  const float* v;
  float* out;

  DR_OVER(u.shape)
  DR_HD void operator()(int row, int x) const {
    const Vec3 there = sample<Vec3>(v, u.shape, u.point(row, x));
    store_vec3(out + 3 * ((Index)row * width() + x), 0.5f * (u.at(row, x) - there));
  }
};

// out = vectors(p + u(p)), all on the grid of u.
struct WarpVectors {
  const float* vectors;  // (z, y, x, 3)
  Displacement u;
  float* out;

  DR_OVER(u.shape)
  DR_HD void operator()(int row, int x) const {
    const Vec3 there = sample<Vec3>(vectors, u.shape, u.point(row, x));
    store_vec3(out + 3 * ((Index)row * width() + x), there);
  }
};

// velocity += wanted - reached: a step towards the velocity whose exponential is `wanted`.
struct CorrectVelocity {
  float* velocity;
  const float *wanted, *reached;
  int row_count, x;

  DR_HD int rows() const { return row_count; }
  DR_HD int width() const { return x; }
  DR_LANES(false)

  template <class V>
  DR_HD void lanes(int row, int i) const {
    const Index at = (Index)row * x + i;
    store(velocity + at, load<V>(velocity + at) + (load<V>(wanted + at) - load<V>(reached + at)));
  }
};

// out = first(p) + second(p + first(p)) on the grid of `first`, in mm along its axes.
struct Compose {
  Displacement first;
  const float* second;
  Shape second_shape;
  Affine to_second;  // index of the first grid -> index of the second
  float* out;

  DR_OVER(first.shape)
  DR_HD int margin() const { return fits_lanes(3 * second_shape.voxels()) ? 0 : width(); }
  DR_LANES(false)  // `out` may be the first field

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const Index i = 3 * ((Index)row * width() + x);
    const Vec3Of<V> here = load_vec3_of<V>(first.field + i);
    const Vec3Of<V> there = to_second(first.point_of<V>(row, x, {}));
    store_vec3_of(out + i, here + sample_field_of(second, second_shape, there));
  }
};

// Solves p + matrix(u(p)) = q for p in index coordinates of the field, where q is
// target(output index) or given. Starts at p = q with a plain step, p -= miss, and goes on with
// damped Newton steps. out = from_point(p) + from_index(output index).
//
// Plain steps alone converge only where the gradient of u is below 1; that of a field that does not
// fold may be larger.
struct Invert {
  const float* field;
  Shape field_shape;
  Matrix3 matrix;  // the field's vectors -> index
  Affine target;
  const float* wanted;  // q (z, y, x, 3) instead of target; may be null
  Affine from_point;
  Affine from_index;
  float* out;
  float* residual_mm;  // (z, y, x), negative where p lies outside the field; may be null
  Shape out_shape;
  Vec3 mm_per_index;
  int iterations;
  float tolerance_mm;

  DR_OVER(out_shape)
  DR_HD int margin() const { return fits_lanes(3 * field_shape.voxels()) ? 0 : width(); }
  DR_LANES(false)  // `out` may be `wanted`

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const Int3 voxel = out_shape.voxel(row, x);
    const Index i = out_shape.at(voxel);
    const Vec3Of<V> index = {splat<V>((float)voxel.z), splat<V>((float)voxel.y),
                             lane_numbers<V>() + (float)x};
    const Vec3Of<V> q = wanted != nullptr ? load_vec3_of<V>(wanted + 3 * i) : target(index);
    V least;
    Vec3Of<V> best = nearest_point(q, least);
    const auto missing = least != least;
    best = select(missing, {least, least, least}, best);
    store_vec3_of(out + 3 * i, from_point(best) + from_index(index));
    if (residual_mm != nullptr)
      store(residual_mm + i, inside_grid(field_shape, best) ? least : -(least + kTiny));
  }

 private:
  static constexpr float kFar = 3e38f;        // longer than any miss
  static constexpr float kTiny = 1e-30f;      // makes a miss of zero negative
  static constexpr float kStuck = 0.1f;       // the smallest damping
  static constexpr float kSingular = 0.02f;   // a smaller determinant makes useless steps

  // The point with the smallest miss, and that miss. Lanes that have finished go on with the
  // others, but keep their result.
  template <class V>
  DR_HD Vec3Of<V> nearest_point(const Vec3Of<V>& q, V& least) const {
    // `p` is the start of `step`, and `trial` the point at which the field is read.
    Vec3Of<V> best = q, p = q, trial = q, step = {};
    V error = splat<V>(kFar), damping = splat<V>(1.0f);
    least = error;
    auto active = error == error;
    for (int k = 0; k < iterations; ++k) {
      // The first step is plain: its slopes would cost more than they save (a seventh of the time).
      Vec3Of<V> slopes[3] = {};
      const Vec3Of<V> u = k == 0 ? sample_field_of(field, field_shape, trial)
                                 : sample_field_of(field, field_shape, trial, slopes);
      // Beyond the outer voxel centres of an axis the sample does not change.
      slopes[0] = within(trial.z, field_shape.z) * slopes[0];
      slopes[1] = within(trial.y, field_shape.y) * slopes[1];
      slopes[2] = within(trial.x, field_shape.x) * slopes[2];
      const Vec3Of<V> miss = (trial + matrix(u)) - q;
      const V missed = length_mm(miss);
      const auto better = active & ((missed < least) | -(int)(k == 0));
      least = better ? missed : least;
      best = select(better, trial, best);
      active = active & (least > tolerance_mm);  // 0 also where the field is NaN at q
      if (!any_of(active)) break;
      const auto nearer = missed < error;
      p = select(nearer, trial, p);
      error = nearer ? missed : error;
      step = select(nearer, newton_step(miss, slopes), step);
      damping = nearer ? min_of(2.0f * damping, splat<V>(1.0f)) : 0.5f * damping;
      // At a fold: continue from wherever a plain step leads.
      const auto stuck = damping < kStuck;
      error = stuck ? splat<V>(kFar) : error;
      damping = stuck ? splat<V>(1.0f) : damping;
      trial = select(stuck, trial - miss, p - damping * step);
    }
    return best;
  }

  template <class V>
  DR_HD V length_mm(const Vec3Of<V>& v) const {
    const V z = v.z * mm_per_index.z, y = v.y * mm_per_index.y, x = v.x * mm_per_index.x;
    return root(z * z + y * y + x * x);
  }

  // The solution of (I + matrix du/dp) step = miss.
  template <class V>
  DR_HD Vec3Of<V> newton_step(const Vec3Of<V>& miss, const Vec3Of<V> (&slopes)[3]) const {
    Vec3Of<V> a = matrix(slopes[0]), b = matrix(slopes[1]), c = matrix(slopes[2]);
    a.z += 1.0f;
    b.y += 1.0f;
    c.x += 1.0f;
    const V whole = determinant(a, b, c);
    const V inverse = 1.0f / whole;
    return select(whole > kSingular,
                  inverse * Vec3Of<V>{determinant(miss, b, c), determinant(a, miss, c),
                                      determinant(a, b, miss)},
                  miss);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_FIELD_H_
