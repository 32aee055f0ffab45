// Trilinear sampling, and the map from one grid's index to another's through a displacement field.
#ifndef DINOREG_SAMPLE_H_
#define DINOREG_SAMPLE_H_

#include "dinoreg/op.h"

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

// 1 between the outer voxel centres of an axis, 0 beyond them.
DR_HD float within(float coordinate, int n) {
  return coordinate >= 0.0f && coordinate <= (float)(n - 1) ? 1.0f : 0.0f;
}

template <class V>
DR_HD V lerp(const V& a, const V& b, const V& t) {
  return a + t * (b - a);
}
DR_HD Vec3 lerp(const Vec3& a, const Vec3& b, float t) { return a + t * (b - a); }

// The position of a sample among the voxels of `shape`.
struct Trilinear {
  Neighbours nz, ny, nx;

  DR_HD Trilinear(const Shape& shape, const Vec3& p)
      : nz(neighbours(p.z, shape.z)), ny(neighbours(p.y, shape.y)), nx(neighbours(p.x, shape.x)) {}
};

// The lower neighbour of several coordinates along one axis, and the weight of the upper one.
template <class V>
DR_HD typename LaneTraits<V>::Int low_neighbour(const V& coordinate, int n, V& weight) {
  typedef typename LaneTraits<V>::Int Int;
  const V inside = min_of(max_of(coordinate, splat<V>(0.0f)), splat<V>((float)(n - 1)));
  const Int found = min_of(to_int(inside), Int{} + max_int(n - 2, 0));
  weight = inside - to_float(found);
  return found;
}

// The first of the eight voxels around each of several samples, and the weights of the others.
// These are the same number of steps away for all samples: 0 along an axis of one voxel,
// otherwise 1.
template <class V>
struct CornerOf {
  typename LaneTraits<V>::Offset first;
  int step_z, step_y, step_x;  // at most 2^30
  V wz, wy, wx;

  DR_HD CornerOf(const Shape& shape, const Vec3Of<V>& p)
      : first{}, step_z(shape.z > 1 ? shape.y * shape.x : 0), step_y(shape.y > 1 ? shape.x : 0),
        step_x(shape.x > 1 ? 1 : 0) {
    first = first + low_neighbour(p.z, shape.z, wz);
    first = first * shape.y + low_neighbour(p.y, shape.y, wy);
    first = first * shape.x + low_neighbour(p.x, shape.x, wx);
  }

  // Samples an array (z, y, x, components).
  DR_HD V sample(const float* image, int components) const {
    const typename LaneTraits<V>::Offset at = first * components;
    const Index z = (Index)step_z * components, y = step_y * components, x = step_x * components;
    return lerp(lerp(lerp(gather(image, at), gather(image + x, at), wx),
                     lerp(gather(image + y, at), gather(image + (y + x), at), wx), wy),
                lerp(lerp(gather(image + z, at), gather(image + (z + x), at), wx),
                     lerp(gather(image + (z + y), at), gather(image + (z + y + x), at), wx), wy),
                wz);
  }
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

// The sample, and as `slope` its derivative with respect to p, in index units.
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

// A sample of a vector field (z, y, x, 3).
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

// A sample of a vector field and its derivatives along the index axes. A derivative is 0 where p
// lies beyond the outer voxel centres of its axis, as the sample does not change there.
DR_HD Vec3 sample_with_slopes(const float* field, const Shape& shape, const Vec3& p,
                              Vec3 slopes[3]) {
  const Trilinear t(shape, p);
  const float* r00 = field + 3 * shape.at(t.nz.low, t.ny.low, 0);
  const float* r01 = field + 3 * shape.at(t.nz.low, t.ny.high, 0);
  const float* r10 = field + 3 * shape.at(t.nz.high, t.ny.low, 0);
  const float* r11 = field + 3 * shape.at(t.nz.high, t.ny.high, 0);
  const int a = 3 * t.nx.low, b = 3 * t.nx.high;
  const float wz = t.nz.weight, wy = t.ny.weight, wx = t.nx.weight;
  const Vec3 a00 = load_vec3(r00 + a), a01 = load_vec3(r01 + a);
  const Vec3 a10 = load_vec3(r10 + a), a11 = load_vec3(r11 + a);
  const Vec3 d00 = load_vec3(r00 + b) - a00, d01 = load_vec3(r01 + b) - a01;
  const Vec3 d10 = load_vec3(r10 + b) - a10, d11 = load_vec3(r11 + b) - a11;
  const Vec3 v00 = a00 + wx * d00, v01 = a01 + wx * d01;
  const Vec3 v10 = a10 + wx * d10, v11 = a11 + wx * d11;
  const Vec3 v0 = lerp(v00, v01, wy), v1 = lerp(v10, v11, wy);
  slopes[0] = within(p.z, shape.z) * (v1 - v0);
  slopes[1] = within(p.y, shape.y) * lerp(v01 - v00, v11 - v10, wz);
  slopes[2] = within(p.x, shape.x) * lerp(lerp(d00, d01, wy), lerp(d10, d11, wy), wz);
  return lerp(v0, v1, wz);
}

template <class V>
DR_HD Vec3Of<V> sample_field_of(const float* field, const Shape& shape, const Vec3Of<V>& p) {
  const CornerOf<V> corner(shape, p);
  return {corner.sample(field, 3), corner.sample(field + 1, 3), corner.sample(field + 2, 3)};
}

// Whether the offsets into an array of this many numbers fit into a lane.
DR_HD bool fits_lanes(Index numbers) { return numbers < 2147483647; }

// Whether a continuous index lies within the voxels of the grid, not only between their centres.
DR_HD bool inside_grid(const Shape& shape, const Vec3& p) {
  return p.z >= -0.5f && p.z <= shape.z - 0.5f && p.y >= -0.5f && p.y <= shape.y - 0.5f &&
         p.x >= -0.5f && p.x <= shape.x - 0.5f;
}
#if !defined(__CUDACC__)
DR_HD IntLanes inside_grid(const Shape& shape, const Vec3Of<Lanes>& p) {
  return (p.z >= -0.5f) & (p.z <= shape.z - 0.5f) & (p.y >= -0.5f) & (p.y <= shape.y - 0.5f) &
         (p.x >= -0.5f) & (p.x <= shape.x - 0.5f);
}
#endif
DR_HD bool inside_grid(const Shape& shape, const Vec3Of<float>& p) {
  return inside_grid(shape, Vec3{p.z, p.y, p.x});
}

// The value of the nearest voxel; 0 outside the grid.
DR_HD float nearest_or_zero(const float* image, const Shape& shape, const Vec3& p) {
  if (!inside_grid(shape, p)) return 0.0f;
  return image[shape.at(clamp_int((int)(p.z + 0.5f), 0, shape.z - 1),
                        clamp_int((int)(p.y + 0.5f), 0, shape.y - 1),
                        clamp_int((int)(p.x + 0.5f), 0, shape.x - 1))];
}

DR_HD bool is_whole(const Vec3& index) {
  return index.z == (int)index.z && index.y == (int)index.y && index.x == (int)index.x;
}

// The point of the moving grid where a displacement takes a voxel of the fixed grid.
struct MovingPoint {
  const float* field;  // (z, y, x, 3), mm along the grid's axes
  Vec3 index_per_mm;
  Vec3 offset;  // index of the moving grid's first voxel on the fixed grid

  DR_HD Vec3 operator()(const Shape& shape, int row, int x) const {
    const Index i = (Index)row * shape.x + x;
    return (to_vec3(shape.voxel(row, x)) - offset) + load_vec3(field + 3 * i) * index_per_mm;
  }
};

// Maps the index of an output voxel to affine(index) + matrix(u(to_field(index))); without a field,
// to affine(index) alone.
struct PointMap {
  Affine affine;
  const float* field;  // (z, y, x, 3); may be null
  Shape field_shape;
  Affine to_field;
  Matrix3 matrix;
  bool on_grid;  // the output grid is that of the field, so voxels need no interpolation

  DR_HD Vec3 operator()(const Vec3& index) const {
    const Vec3 p = affine(index);
    if (field == nullptr) return p;
    if (on_grid && is_whole(index))
      return p + matrix(load_vec3(field +
                                  3 * field_shape.at((int)index.z, (int)index.y, (int)index.x)));
    return p + matrix(sample_field(field, field_shape, to_field(index)));
  }

  // The same for neighbours along x. If `whole`, they are the output voxels from number `voxel` on.
  template <class V>
  DR_HD Vec3Of<V> at(const Vec3Of<V>& index, bool whole, Index voxel) const {
    const Vec3Of<V> p = affine(index);
    if (field == nullptr) return p;
    if (on_grid && whole) return p + matrix(load_vec3_of<V>(field + 3 * voxel));
    return p + matrix(sample_field_of(field, field_shape, to_field(index)));
  }

  DR_HD Vec3Of<float> at(const Vec3Of<float>& index, bool, Index) const {
    const Vec3 p = (*this)(Vec3{index.z, index.y, index.x});
    return {p.z, p.y, p.x};
  }

  DR_HD bool fits_lanes() const {
    return field == nullptr || dr::fits_lanes(3 * field_shape.voxels());
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_SAMPLE_H_
