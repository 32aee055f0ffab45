// Trilinear sampling of neighbouring points together.
#ifndef DINOREG_CORNER_H_
#define DINOREG_CORNER_H_

#include "dinoreg/gather.h"
#include "dinoreg/grid.h"

DR_NAMESPACE_BEGIN

template <class V>
DR_HD V lerp(const V& a, const V& b, const V& t) {
  return a + t * (b - a);
}
DR_HD Vec3 lerp(const Vec3& a, const Vec3& b, float t) { return a + t * (b - a); }

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

  // Samples an array (z, y, x, components): the first n components.
  template <int n>
  DR_HD void samples(const float* image, int components, V (&out)[n]) const {
    const typename LaneTraits<V>::Offset at = first * components;
    const Index z = (Index)step_z * components, y = step_y * components;
    V rows[4][n];
    along_x(image, at, components, rows[0]);
    along_x(image + y, at, components, rows[1]);
    along_x(image + z, at, components, rows[2]);
    along_x(image + (z + y), at, components, rows[3]);
    DR_UNROLL(3)
    for (int i = 0; i < n; ++i)
      out[i] = lerp(lerp(rows[0][i], rows[1][i], wy), lerp(rows[2][i], rows[3][i], wy), wz);
  }
  // The same with their derivatives along the index axes, as if the voxels went on beyond the
  // border.
  template <int n>
  DR_HD void samples(const float* image, int components, V (&out)[n], V (&slopes)[3][n]) const {
    const typename LaneTraits<V>::Offset at = first * components;
    const Index z = (Index)step_z * components, y = step_y * components;
    V rows[4][2 * n];
    pairs<n>(image, at, components, rows[0]);
    pairs<n>(image + y, at, components, rows[1]);
    pairs<n>(image + z, at, components, rows[2]);
    pairs<n>(image + (z + y), at, components, rows[3]);
    DR_UNROLL(3)
    for (int i = 0; i < n; ++i) {
      V d[4], v[4];
      DR_UNROLL(4)
      for (int r = 0; r < 4; ++r) {
        d[r] = rows[r][n + i] - rows[r][i];
        v[r] = rows[r][i] + wx * d[r];
      }
      const V v0 = lerp(v[0], v[1], wy), v1 = lerp(v[2], v[3], wy);
      slopes[0][i] = v1 - v0;
      slopes[1][i] = lerp(v[1] - v[0], v[3] - v[2], wz);
      slopes[2][i] = lerp(lerp(d[0], d[1], wy), lerp(d[2], d[3], wy), wz);
      out[i] = lerp(v0, v1, wz);
    }
  }
  // The first component alone.
  DR_HD V sample(const float* image, int components) const {
#if !defined(__CUDACC__)
    if constexpr ((int)LaneTraits<V>::kCount % (int)kBlock == 0)
      if (step_x == 1 && components == 1) return sample_pairs(image);
#endif
    V out[1];
    samples(image, components, out);
    return out[0];
  }

 private:
#if !defined(__CUDACC__)
  // An image, eight lanes at a time.
  DR_HD V sample_pairs(const float* image) const {
    enum { kCount = LaneTraits<V>::kCount };
    const float* const rows[4] = {image, image + step_y, image + step_z, image + (step_z + step_y)};
    int at[kCount];
    float weight[3][kCount], out[kCount];
    store(at, first), store(weight[0], wz), store(weight[1], wy), store(weight[2], wx);
    DR_UNROLL(2)
    for (int i = 0; i < kCount; i += kBlock) {
      Block r[kBlock];
      gather_pairs(rows, at + i, r);
      const Block z = load<Block>(weight[0] + i), y = load<Block>(weight[1] + i);
      const Block x = load<Block>(weight[2] + i);
      store(out + i, lerp(lerp(lerp(r[0], r[1], x), lerp(r[2], r[3], x), y),
                          lerp(lerp(r[4], r[5], x), lerp(r[6], r[7], x), y), z));
    }
    return load<V>(out);
  }
#endif
  // The samples of a row.
  template <int n>
  DR_HD void along_x(const float* row, const typename LaneTraits<V>::Offset& at, int components,
                     V (&out)[n]) const {
    V numbers[2 * n];
    pairs<n>(row, at, components, numbers);
    DR_UNROLL(3)
    for (int i = 0; i < n; ++i) out[i] = lerp(numbers[i], numbers[n + i], wx);
  }
  // The first n components of two neighbours in a row. They lie side by side unless some are left
  // out or there is only one voxel.
  template <int n>
  DR_HD void pairs(const float* row, const typename LaneTraits<V>::Offset& at, int components,
                   V (&numbers)[2 * n]) const {
    const int step = step_x * components;
    DR_UNROLL(3)
    for (int i = 0; i < n; ++i)
      if (step == n)
        gather_pair(row + 2 * i, at, numbers[2 * i], numbers[2 * i + 1]);
      else
        numbers[i] = gather(row + i, at), numbers[n + i] = gather(row + (step + i), at);
  }
};

// A field (z, y, x, 3).
template <class V>
DR_HD Vec3Of<V> sample_field_of(const float* field, const Shape& shape, const Vec3Of<V>& p) {
  V sampled[3];
  CornerOf<V>(shape, p).samples(field, 3, sampled);
  return {sampled[0], sampled[1], sampled[2]};
}

// The same with its derivatives along the index axes.
template <class V>
DR_HD Vec3Of<V> sample_field_of(const float* field, const Shape& shape, const Vec3Of<V>& p,
                                Vec3Of<V> (&slopes)[3]) {
  V sampled[3], along[3][3];
  CornerOf<V>(shape, p).samples(field, 3, sampled, along);
  DR_UNROLL(3)
  for (int i = 0; i < 3; ++i) slopes[i] = {along[i][0], along[i][1], along[i][2]};
  return {sampled[0], sampled[1], sampled[2]};
}

DR_NAMESPACE_END

#endif  // DINOREG_CORNER_H_
