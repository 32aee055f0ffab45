// Array shapes and how an index behaves beyond the border.
#ifndef DINOREG_GRID_H_
#define DINOREG_GRID_H_

#include "dinoreg/portable.h"

DR_NAMESPACE_BEGIN

// Number of voxels along the array axes z, y, x (x is contiguous).
struct Shape {
  int z, y, x;

  DR_HD int rows() const { return z * y; }
  DR_HD Index voxels() const { return (Index)z * y * x; }
  DR_HD Index at(int iz, int iy, int ix) const { return ((Index)iz * y + iy) * x + ix; }
};

struct Vec3 {
  float z, y, x;
};

DR_HD Vec3 operator+(const Vec3& a, const Vec3& b) { return {a.z + b.z, a.y + b.y, a.x + b.x}; }
DR_HD Vec3 operator-(const Vec3& a, const Vec3& b) { return {a.z - b.z, a.y - b.y, a.x - b.x}; }
DR_HD Vec3 operator*(const Vec3& a, const Vec3& b) { return {a.z * b.z, a.y * b.y, a.x * b.x}; }
DR_HD Vec3 operator*(float s, const Vec3& a) { return {s * a.z, s * a.y, s * a.x}; }

// Three components of as many neighbouring voxels as V has lanes.
template <class V>
struct Vec3Of {
  V z, y, x;
};
template <class V>
DR_HD Vec3Of<V> operator-(const Vec3Of<V>& a, const Vec3Of<V>& b) {
  return {a.z - b.z, a.y - b.y, a.x - b.x};
}
template <class V>
DR_HD Vec3Of<V> operator+(const Vec3Of<V>& a, const Vec3Of<V>& b) {
  return {a.z + b.z, a.y + b.y, a.x + b.x};
}
template <class V>
DR_HD Vec3Of<V> operator*(float s, const Vec3Of<V>& a) {
  return {s * a.z, s * a.y, s * a.x};
}
template <class V>
DR_HD V determinant(const Vec3Of<V>& a, const Vec3Of<V>& b, const Vec3Of<V>& c) {
  return a.z * (b.y * c.x - b.x * c.y) - a.y * (b.z * c.x - b.x * c.z) +
         a.x * (b.z * c.y - b.y * c.z);
}

// From a field (..., 3): `p` is the first component of the first voxel.
template <class V>
DR_HD Vec3Of<V> load_vec3_of(const float* p) {
  return {p[0], p[1], p[2]};
}
#if !defined(__CUDACC__)
template <>
DR_HD Vec3Of<Lanes> load_vec3_of<Lanes>(const float* p) {
  const Lanes a = load<Lanes>(p), b = load<Lanes>(p + kLanes), c = load<Lanes>(p + 2 * kLanes);
  Vec3Of<Lanes> v;
  Lanes* parts[3] = {&v.z, &v.y, &v.x};
  DR_UNROLL(3)
  for (int k = 0; k < 3; ++k) {
    IntLanes from_ab, from_c;
    for (int i = 0; i < kLanes; ++i) {
      const int at = 3 * i + k;
      from_ab[i] = at < 2 * kLanes ? at : 0;
      from_c[i] = at < 2 * kLanes ? i : at - kLanes;
    }
    *parts[k] = __builtin_shuffle(__builtin_shuffle(a, b, from_ab), c, from_c);
  }
  return v;
}
#endif

// And back.
template <class V>
DR_HD void store_vec3_of(float* p, const Vec3Of<V>& v) {
  p[0] = v.z;
  p[1] = v.y;
  p[2] = v.x;
}
#if !defined(__CUDACC__)
template <>
DR_HD void store_vec3_of<Lanes>(float* p, const Vec3Of<Lanes>& v) {
  DR_UNROLL(3)
  for (int k = 0; k < 3; ++k) {
    IntLanes from_zy, from_x;
    for (int i = 0; i < kLanes; ++i) {
      const int at = k * kLanes + i, component = at % 3, lane = at / 3;
      from_zy[i] = component == 1 ? kLanes + lane : lane;
      from_x[i] = component == 2 ? kLanes + lane : i;
    }
    store(p + k * kLanes, __builtin_shuffle(__builtin_shuffle(v.z, v.y, from_zy), v.x, from_x));
  }
}
#endif

DR_HD Vec3 load_vec3(const float* p) { return {p[0], p[1], p[2]}; }
DR_HD void store_vec3(float* p, const Vec3& v) {
  p[0] = v.z;
  p[1] = v.y;
  p[2] = v.x;
}

// y = matrix (3x4, rows z, y, x) applied to (z, y, x, 1).
struct Affine {
  float m[12];

  DR_HD Vec3 operator()(const Vec3& p) const {
    return {m[0] * p.z + m[1] * p.y + m[2] * p.x + m[3],
            m[4] * p.z + m[5] * p.y + m[6] * p.x + m[7],
            m[8] * p.z + m[9] * p.y + m[10] * p.x + m[11]};
  }
  template <class V>
  DR_HD Vec3Of<V> operator()(const Vec3Of<V>& p) const {
    return {m[0] * p.z + m[1] * p.y + m[2] * p.x + m[3],
            m[4] * p.z + m[5] * p.y + m[6] * p.x + m[7],
            m[8] * p.z + m[9] * p.y + m[10] * p.x + m[11]};
  }
};

// y = matrix (3x3, rows z, y, x) applied to (z, y, x).
struct Matrix3 {
  float m[9];

  DR_HD Vec3 operator()(const Vec3& v) const {
    return {m[0] * v.z + m[1] * v.y + m[2] * v.x, m[3] * v.z + m[4] * v.y + m[5] * v.x,
            m[6] * v.z + m[7] * v.y + m[8] * v.x};
  }
  template <class V>
  DR_HD Vec3Of<V> operator()(const Vec3Of<V>& v) const {
    return {m[0] * v.z + m[1] * v.y + m[2] * v.x, m[3] * v.z + m[4] * v.y + m[5] * v.x,
            m[6] * v.z + m[7] * v.y + m[8] * v.x};
  }
};

// Half-sample symmetric continuation (... 1 0 | 0 1 ...): a symmetric filter stays its own
// transpose and keeps constants, so that one routine serves a smoothing and its gradient and a
// field does not shrink towards the border.
DR_HD int reflect(int i, int n) {
  while (i < 0 || i >= n) i = i < 0 ? -1 - i : 2 * n - 1 - i;
  return i;
}

DR_NAMESPACE_END

#endif  // DINOREG_GRID_H_
