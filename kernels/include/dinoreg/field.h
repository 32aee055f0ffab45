// Displacement fields: evaluation on another grid, Jacobian, composition, inversion.
#ifndef DINOREG_FIELD_H_
#define DINOREG_FIELD_H_

#include "dinoreg/sample.h"

DR_NAMESPACE_BEGIN

// out (z, y, x, 3) = map(index): a field on another grid, an affine turned into a field, or both.
struct MapField {
  float* out;
  Shape out_shape;
  PointMap map;

  DR_HD int rows() const { return out_shape.rows(); }
  DR_HD int width() const { return out_shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int z = row / out_shape.y, y = row - z * out_shape.y;
    store_vec3(out + 3 * out_shape.at(z, y, x), map({(float)z, (float)y, (float)x}));
  }
};

DR_HD float determinant(const Vec3& a, const Vec3& b, const Vec3& c) {
  return a.z * (b.y * c.x - b.x * c.y) - a.y * (b.z * c.x - b.x * c.z) +
         a.x * (b.z * c.y - b.y * c.z);
}

// det(I + du/dp), central differences (one-sided at the border).
struct JacobianDeterminant {
  const float* field;  // (z, y, x, 3), any units and component order
  float* out;
  Shape shape;
  Matrix3 index_from_unit;  // index axes (z, y, x) per unit of the field's components, in order

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int z = row / shape.y, y = row - z * shape.y;
    const Vec3 dz = difference(z, y, x, 0), dy = difference(z, y, x, 1);
    const Vec3 dx = difference(z, y, x, 2);
    const float* q = index_from_unit.m;
    // Column j of du/dp is the sum over index axes a of (du/da) q[a][j].
    Vec3 column[3];
    for (int j = 0; j < 3; ++j) column[j] = q[j] * dz + (q[3 + j] * dy + q[6 + j] * dx);
    column[0].z += 1.0f;
    column[1].y += 1.0f;
    column[2].x += 1.0f;
    out[shape.at(z, y, x)] = determinant(column[0], column[1], column[2]);
  }

  DR_HD Vec3 difference(int z, int y, int x, int axis) const {
    const int n = axis == 0 ? shape.z : axis == 1 ? shape.y : shape.x;
    const int i = axis == 0 ? z : axis == 1 ? y : x;
    const int low = max_int(i - 1, 0), high = min_int(i + 1, n - 1);
    if (high == low) return {0.0f, 0.0f, 0.0f};
    const Index stride = axis == 0 ? (Index)shape.y * shape.x : axis == 1 ? shape.x : 1;
    const float* at = field + 3 * shape.at(z, y, x);
    const Vec3 d = load_vec3(at + 3 * (high - i) * stride) - load_vec3(at + 3 * (low - i) * stride);
    return (1.0f / (float)(high - low)) * d;
  }
};

// out = scale * (u(p) - v(p + u(p))), all on one grid, in its axes' millimetres.
// With scale 1/2 it is one half of an inverse-consistency round.
struct InverseConsistent {
  const float* u;
  const float* v;
  float* out;
  Shape shape;
  Vec3 index_per_mm;

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int z = row / shape.y, y = row - z * shape.y;
    const Index i = 3 * shape.at(z, y, x);
    const Vec3 here = load_vec3(u + i);
    const Vec3 there = Vec3{(float)z, (float)y, (float)x} + here * index_per_mm;
    store_vec3(out + i, 0.5f * (here - sample_field(v, shape, there)));
  }
};

// out = first(p) + second(p + first(p)) on the grid of `first`, all in its axes' millimetres.
struct Compose {
  const float* first;
  Shape shape;
  const float* second;
  Shape second_shape;
  Affine to_second;  // index of the first grid -> index of the second
  Vec3 index_per_mm;
  float* out;

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int z = row / shape.y, y = row - z * shape.y;
    const Index i = 3 * shape.at(z, y, x);
    const Vec3 here = load_vec3(first + i);
    const Vec3 there = Vec3{(float)z, (float)y, (float)x} + here * index_per_mm;
    store_vec3(out + i, here + sample_field(second, second_shape, to_second(there)));
  }
};

// Solves p + matrix(u(p)) = q by fixed-point iteration, q = target(output index), in index
// coordinates of the field; out = from_point(p) + from_index(output index).
struct Invert {
  const float* field;
  Shape field_shape;
  Matrix3 matrix;  // millimetres of the field's axes -> index
  Affine target;
  Affine from_point;
  Affine from_index;
  float* out;
  float* residual_mm;  // (z, y, x); may be null
  Shape out_shape;
  Vec3 mm_per_index;
  int iterations;
  float tolerance_mm;

  DR_HD int rows() const { return out_shape.rows(); }
  DR_HD int width() const { return out_shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int z = row / out_shape.y, y = row - z * out_shape.y;
    const Vec3 index = {(float)z, (float)y, (float)x};
    const Vec3 q = target(index);
    Vec3 p = q;
    float error = 0.0f;
    for (int k = 0; k < iterations; ++k) {
      const Vec3 miss = (p + matrix(sample_field(field, field_shape, p))) - q;
      const Vec3 miss_mm = miss * mm_per_index;
      error = sqrtf(miss_mm.z * miss_mm.z + miss_mm.y * miss_mm.y + miss_mm.x * miss_mm.x);
      if (error <= tolerance_mm) break;
      p = p - miss;
    }
    const Index i = out_shape.at(z, y, x);
    store_vec3(out + 3 * i, from_point(p) + from_index(index));
    if (residual_mm != nullptr) residual_mm[i] = error;
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_FIELD_H_
