// Trilinear sampling, and the map from one grid's index to another's through a displacement field.
#ifndef DINOREG_SAMPLE_H_
#define DINOREG_SAMPLE_H_

#include "dinoreg/grid.h"

DR_NAMESPACE_BEGIN

// The two neighbours along one axis and the weight of the upper one; clamped at the border.
struct Neighbours {
  int low, high;
  float weight;
};

DR_HD Neighbours neighbours(float coordinate, int n) {
  const float inside = clamp_float(coordinate, 0.0f, (float)(n - 1));
  const int low = min_int((int)inside, max_int(n - 2, 0));
  return {low, min_int(low + 1, n - 1), inside - (float)low};
}

DR_HD float lerp(float a, float b, float t) { return a + t * (b - a); }
DR_HD Vec3 lerp(const Vec3& a, const Vec3& b, float t) { return a + t * (b - a); }

// Position of a sample among the voxels of `shape`.
struct Trilinear {
  Neighbours nz, ny, nx;

  DR_HD Trilinear(const Shape& shape, const Vec3& p)
      : nz(neighbours(p.z, shape.z)), ny(neighbours(p.y, shape.y)), nx(neighbours(p.x, shape.x)) {}
};

DR_HD float sample_scalar(const float* image, const Shape& shape, const Vec3& p) {
  const Trilinear t(shape, p);
  const float* r00 = image + shape.at(t.nz.low, t.ny.low, 0);
  const float* r01 = image + shape.at(t.nz.low, t.ny.high, 0);
  const float* r10 = image + shape.at(t.nz.high, t.ny.low, 0);
  const float* r11 = image + shape.at(t.nz.high, t.ny.high, 0);
  const int a = t.nx.low, b = t.nx.high;
  const float w = t.nx.weight;
  return lerp(lerp(lerp(r00[a], r00[b], w), lerp(r01[a], r01[b], w), t.ny.weight),
              lerp(lerp(r10[a], r10[b], w), lerp(r11[a], r11[b], w), t.ny.weight), t.nz.weight);
}

// The sample and its derivative with respect to p, in index units.
DR_HD float sample_with_slope(const float* image, const Shape& shape, const Vec3& p, Vec3& slope) {
  const Trilinear t(shape, p);
  const float* r00 = image + shape.at(t.nz.low, t.ny.low, 0);
  const float* r01 = image + shape.at(t.nz.low, t.ny.high, 0);
  const float* r10 = image + shape.at(t.nz.high, t.ny.low, 0);
  const float* r11 = image + shape.at(t.nz.high, t.ny.high, 0);
  const int a = t.nx.low, b = t.nx.high;
  const float wz = t.nz.weight, wy = t.ny.weight, wx = t.nx.weight;
  const float d00 = r00[b] - r00[a], d01 = r01[b] - r01[a];
  const float d10 = r10[b] - r10[a], d11 = r11[b] - r11[a];
  const float v00 = r00[a] + wx * d00, v01 = r01[a] + wx * d01;
  const float v10 = r10[a] + wx * d10, v11 = r11[a] + wx * d11;
  const float v0 = lerp(v00, v01, wy), v1 = lerp(v10, v11, wy);
  slope = {v1 - v0, lerp(v01 - v00, v11 - v10, wz),
           lerp(lerp(d00, d01, wy), lerp(d10, d11, wy), wz)};
  return lerp(v0, v1, wz);
}

// Vector field (z, y, x, 3).
DR_HD Vec3 sample_field(const float* field, const Shape& shape, const Vec3& p) {
  const Trilinear t(shape, p);
  const float* r00 = field + 3 * shape.at(t.nz.low, t.ny.low, 0);
  const float* r01 = field + 3 * shape.at(t.nz.low, t.ny.high, 0);
  const float* r10 = field + 3 * shape.at(t.nz.high, t.ny.low, 0);
  const float* r11 = field + 3 * shape.at(t.nz.high, t.ny.high, 0);
  const int a = 3 * t.nx.low, b = 3 * t.nx.high;
  const float w = t.nx.weight;
  const Vec3 v0 = lerp(lerp(load_vec3(r00 + a), load_vec3(r00 + b), w),
                       lerp(load_vec3(r01 + a), load_vec3(r01 + b), w), t.ny.weight);
  const Vec3 v1 = lerp(lerp(load_vec3(r10 + a), load_vec3(r10 + b), w),
                       lerp(load_vec3(r11 + a), load_vec3(r11 + b), w), t.ny.weight);
  return lerp(v0, v1, t.nz.weight);
}

// Whether a continuous index lies within the voxels (not only the voxel centres) of the grid.
DR_HD bool inside_grid(const Shape& shape, const Vec3& p) {
  return p.z >= -0.5f && p.z <= shape.z - 0.5f && p.y >= -0.5f && p.y <= shape.y - 0.5f &&
         p.x >= -0.5f && p.x <= shape.x - 0.5f;
}

// The nearest voxel's value; 0 outside the grid.
DR_HD float nearest_or_zero(const float* image, const Shape& shape, const Vec3& p) {
  if (!inside_grid(shape, p)) return 0.0f;
  return image[shape.at(clamp_int((int)(p.z + 0.5f), 0, shape.z - 1),
                        clamp_int((int)(p.y + 0.5f), 0, shape.y - 1),
                        clamp_int((int)(p.x + 0.5f), 0, shape.x - 1))];
}

DR_HD bool is_whole(const Vec3& index) {
  return index.z == (int)index.z && index.y == (int)index.y && index.x == (int)index.x;
}

// index of an output voxel -> affine(index) + matrix(u(to_field(index))); `field` may be null.
struct PointMap {
  Affine affine;
  const float* field;  // (z, y, x, 3)
  Shape field_shape;
  Affine to_field;
  Matrix3 matrix;
  bool on_grid;  // the output grid is the field's: its voxels need no interpolation

  DR_HD Vec3 operator()(const Vec3& index) const {
    const Vec3 p = affine(index);
    if (field == nullptr) return p;
    if (on_grid && is_whole(index))
      return p + matrix(load_vec3(field +
                                  3 * field_shape.at((int)index.z, (int)index.y, (int)index.x)));
    return p + matrix(sample_field(field, field_shape, to_field(index)));
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_SAMPLE_H_
