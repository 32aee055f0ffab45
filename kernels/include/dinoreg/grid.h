// Extents and indices of arrays, small vectors and matrices, and the border rule of filters.
#ifndef DINOREG_GRID_H_
#define DINOREG_GRID_H_

#include "dinoreg/portable.h"

DR_NAMESPACE_BEGIN

// Three components, of as many neighbouring voxels as V has lanes.
template <class V>
struct Vec3Of {
  V z, y, x;
};
typedef Vec3Of<float> Vec3;

template <class V>
DR_HD Vec3Of<V> operator+(const Vec3Of<V>& a, const Vec3Of<V>& b) {
  return {a.z + b.z, a.y + b.y, a.x + b.x};
}
template <class V>
DR_HD Vec3Of<V> operator-(const Vec3Of<V>& a, const Vec3Of<V>& b) {
  return {a.z - b.z, a.y - b.y, a.x - b.x};
}
template <class V>
DR_HD Vec3Of<V> operator*(float s, const Vec3Of<V>& a) {
  return {s * a.z, s * a.y, s * a.x};
}
#if !defined(__CUDACC__)
DR_HD Vec3Of<Lanes> operator*(const Lanes& s, const Vec3Of<Lanes>& a) {
  return {s * a.z, s * a.y, s * a.x};
}
#endif
// a where the condition holds, and b elsewhere.
template <class V, class Condition>
DR_HD Vec3Of<V> select(const Condition& condition, const Vec3Of<V>& a, const Vec3Of<V>& b) {
  return {condition ? a.z : b.z, condition ? a.y : b.y, condition ? a.x : b.x};
}
DR_HD Vec3 operator*(const Vec3& a, const Vec3& b) { return {a.z * b.z, a.y * b.y, a.x * b.x}; }

// The determinant of the matrix with these rows.
template <class V>
DR_HD V determinant(const Vec3Of<V>& a, const Vec3Of<V>& b, const Vec3Of<V>& c) {
  return a.z * (b.y * c.x - b.x * c.y) - a.y * (b.z * c.x - b.x * c.z) +
         a.x * (b.z * c.y - b.y * c.z);
}

// One integer for each array axis z, y, x (x is contiguous): an index, a factor, a radius, an
// offset or, as a `Shape`, the extent of an array.
struct Int3 {
  int z, y, x;

  DR_HD int operator[](int axis) const { return axis == 0 ? z : axis == 1 ? y : x; }
  DR_HD int& operator[](int axis) { return axis == 0 ? z : axis == 1 ? y : x; }

  // As an extent: lines along x, voxels, and the place of a voxel in the array.
  DR_HD int rows() const { return z * y; }
  DR_HD Index voxels() const { return (Index)z * y * x; }
  DR_HD Index at(int iz, int iy, int ix) const { return ((Index)iz * y + iy) * x + ix; }
  DR_HD Index at(const Int3& i) const { return at(i.z, i.y, i.x); }
  // The voxel at `ix` of line `row`.
  DR_HD Int3 voxel(int row, int ix) const {
    const int iz = row / y;
    return {iz, row - iz * y, ix};
  }
};
typedef Int3 Shape;

DR_HD Int3 operator+(const Int3& a, const Int3& b) { return {a.z + b.z, a.y + b.y, a.x + b.x}; }
DR_HD Int3 operator-(const Int3& a, const Int3& b) { return {a.z - b.z, a.y - b.y, a.x - b.x}; }
DR_HD Int3 operator*(const Int3& a, const Int3& b) { return {a.z * b.z, a.y * b.y, a.x * b.x}; }
DR_HD Int3 operator*(int s, const Int3& a) { return {s * a.z, s * a.y, s * a.x}; }
DR_HD int divide_up(int n, int by) { return (n + by - 1) / by; }
DR_HD Int3 divide_up(const Int3& n, const Int3& by) {
  return {divide_up(n.z, by.z), divide_up(n.y, by.y), divide_up(n.x, by.x)};
}
DR_HD Vec3 to_vec3(const Int3& i) { return {(float)i.z, (float)i.y, (float)i.x}; }

// Read and write a field (..., 3); `p` points to the first component of the first voxel.
template <class V>
DR_HD Vec3Of<V> load_vec3_of(const float* p) {
  return {p[0], p[1], p[2]};
}
template <class V>
DR_HD void store_vec3_of(float* p, const Vec3Of<V>& v) {
  p[0] = v.z;
  p[1] = v.y;
  p[2] = v.x;
}
DR_HD Vec3 load_vec3(const float* p) { return load_vec3_of<float>(p); }
DR_HD void store_vec3(float* p, const Vec3& v) { store_vec3_of(p, v); }

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

// A 3x4 matrix with the rows z, y, x, applied to (z, y, x, 1).
struct Affine {
  float m[12];

  template <class V>
  DR_HD Vec3Of<V> operator()(const Vec3Of<V>& p) const {
    return {m[0] * p.z + m[1] * p.y + m[2] * p.x + m[3],
            m[4] * p.z + m[5] * p.y + m[6] * p.x + m[7],
            m[8] * p.z + m[9] * p.y + m[10] * p.x + m[11]};
  }
};

// A 3x3 matrix with the rows z, y, x, applied to (z, y, x).
struct Matrix3 {
  float m[9];

  template <class V>
  DR_HD Vec3Of<V> operator()(const Vec3Of<V>& v) const {
    return {m[0] * v.z + m[1] * v.y + m[2] * v.x, m[3] * v.z + m[4] * v.y + m[5] * v.x,
            m[6] * v.z + m[7] * v.y + m[8] * v.x};
  }
};

inline Affine identity_affine() { return {{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0}}; }
inline Matrix3 scaling(float s) { return {{s, 0, 0, 0, s, 0, 0, 0, s}}; }

// Half-sample symmetric continuation beyond the border (... 1 0 | 0 1 ...). It keeps constants and
// makes a symmetric filter its own transpose: one routine then serves both a smoothing and its
// gradient, and fields do not shrink towards the border.
DR_HD int reflect(int i, int n) {
  while (i < 0 || i >= n) i = i < 0 ? -1 - i : 2 * n - 1 - i;
  return i;
}

DR_NAMESPACE_END

#endif  // DINOREG_GRID_H_
