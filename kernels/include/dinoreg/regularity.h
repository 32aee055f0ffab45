// The terms of the energy that keep a field smooth and free of folds, as gradients.
#ifndef DINOREG_REGULARITY_H_
#define DINOREG_REGULARITY_H_

#include "dinoreg/field.h"

DR_NAMESPACE_BEGIN

// Adds the gradient of scale * sum |forward difference of u / spacing|^2 over all axes.
struct AddSmoothnessGradient {
  const float* field;  // (z, y, x, 3), mm along the grid's axes
  float* gradient;
  Shape shape;
  Vec3 factor;  // 2 * scale / spacing^2 along each axis

  enum { kRepeatable = 0 };
  DR_OVER(shape)
  DR_HD int margin() const { return 1; }

  DR_HD void operator()(int row, int x) const {
    add<float>(row, x, x > 0 ? 3 : 0, x < shape.x - 1 ? 3 : 0);
  }
  template <class V>
  DR_HD void lanes(int row, int x) const {
    add<V>(row, x, 3, 3);
  }

  // The three components are treated alike, so that the numbers of neighbours need not be sorted.
  template <class V>
  DR_HD void add(int row, int x, int left, int right) const {
    const int z = row / shape.y, y = row - z * shape.y;
    const Index line = 3 * (Index)shape.x, plane = line * shape.y;
    const Index above = z > 0 ? plane : 0, below = z < shape.z - 1 ? plane : 0;
    const Index before = y > 0 ? line : 0, after = y < shape.y - 1 ? line : 0;
    DR_UNROLL(3)
    for (int k = 0; k < 3; ++k) {
      const Index i = row * line + 3 * x + k * LaneTraits<V>::kCount;
      const float* at = field + i;
      const V here = load<V>(at);
      store(gradient + i,
            load<V>(gradient + i) +
                factor.z * ((here - load<V>(at - above)) + (here - load<V>(at + below))) +
                factor.y * ((here - load<V>(at - before)) + (here - load<V>(at + after))) +
                factor.x * ((here - load<V>(at - left)) + (here - load<V>(at + right))));
    }
  }
};

// out = max(0, margin - det J) at every voxel, where J is made of forward differences (none at the
// far border): 0 where the field keeps its orientation with room to spare.
struct FoldLack {
  Displacement u;
  float margin_det;
  float* out;  // (z, y, x); null: not wanted

  enum { kRepeatable = 1 };
  DR_OVER(u.shape)
  DR_HD int margin() const { return 1; }  // the last voxel has no neighbour along x

  DR_HD void operator()(int row, int x) const { lack<float>(row, x, x < width() - 1 ? 3 : 0); }
  template <class V>
  DR_HD void lanes(int row, int x) const {
    lack<V>(row, x, 3);
  }

  template <class V>
  DR_HD void lack(int row, int x, int right) const {
    if (out == nullptr) return;
    const Shape& shape = u.shape;
    const Vec3& index_per_mm = u.index_per_mm;
    const int z = row / shape.y, y = row - z * shape.y;
    const Index line = 3 * (Index)shape.x, plane = line * shape.y;
    const float* at = u.field + row * line + 3 * x;
    const Vec3Of<V> here = load_vec3_of<V>(at);
    Vec3Of<V> dz = index_per_mm.z * (load_vec3_of<V>(at + (z < shape.z - 1 ? plane : 0)) - here);
    Vec3Of<V> dy = index_per_mm.y * (load_vec3_of<V>(at + (y < shape.y - 1 ? line : 0)) - here);
    Vec3Of<V> dx = index_per_mm.x * (load_vec3_of<V>(at + right) - here);
    dz.z = dz.z + 1.0f;
    dy.y = dy.y + 1.0f;
    dx.x = dx.x + 1.0f;
    store(out + (Index)row * shape.x + x, max_of(margin_det - determinant(dz, dy, dx), V{}));
  }
};

// Adds the gradient of scale * sum FoldLack^2, a force that grows where the field is about to fold.
// A voxel enters its own Jacobian and, as the far neighbour, three others. Few of them lack
// anything, so looking that up first is 4 times as fast as computing all four again.
struct AddFoldGradient {
  Displacement u;
  const float* lack;  // (z, y, x); null: no force
  float* gradient;
  const float* scale;

  DR_OVER(u.shape)

  // The rows of the transposed Jacobian: dp'/dz, dp'/dy, dp'/dx.
  struct Jacobian {
    Vec3 along_z, along_y, along_x;
  };

  DR_HD Jacobian jacobian(int z, int y, int x) const {
    const Shape& shape = u.shape;
    const float* at = u.field + 3 * shape.at(z, y, x);
    const Vec3 here = load_vec3(at);
    const Index line = 3 * (Index)shape.x, plane = line * shape.y;
    Jacobian j = {{1.0f, 0.0f, 0.0f}, {0.0f, 1.0f, 0.0f}, {0.0f, 0.0f, 1.0f}};
    if (z < shape.z - 1) j.along_z = j.along_z + u.index_per_mm.z * (load_vec3(at + plane) - here);
    if (y < shape.y - 1) j.along_y = j.along_y + u.index_per_mm.y * (load_vec3(at + line) - here);
    if (x < shape.x - 1) j.along_x = j.along_x + u.index_per_mm.x * (load_vec3(at + 3) - here);
    return j;
  }

  static DR_HD Vec3 cross(const Vec3& a, const Vec3& b) {
    return {a.y * b.x - a.x * b.y, a.x * b.z - a.z * b.x, a.z * b.y - a.y * b.z};
  }

  // d lack^2 / d(along_*), summed with the signs with which the voxel enters.
  DR_HD Vec3 push(float missing, int z, int y, int x, float sz, float sy, float sx) const {
    if (missing <= 0.0f) return {0.0f, 0.0f, 0.0f};
    const Shape& shape = u.shape;
    const Jacobian j = jacobian(z, y, x);
    Vec3 g = {0.0f, 0.0f, 0.0f};
    if (z < shape.z - 1) g = g + (sz * u.index_per_mm.z) * cross(j.along_y, j.along_x);
    if (y < shape.y - 1) g = g + (sy * u.index_per_mm.y) * cross(j.along_x, j.along_z);
    if (x < shape.x - 1) g = g + (sx * u.index_per_mm.x) * cross(j.along_z, j.along_y);
    return (-2.0f * missing) * g;
  }

  enum { kRepeatable = 0 };
  DR_HD int margin() const { return 1; }

  DR_HD void operator()(int row, int x) const {
    if (lack == nullptr) return;
    const Shape& shape = u.shape;
    const int z = row / shape.y, y = row - z * shape.y;
    const Index i = (Index)row * shape.x + x;
    const float own = lack[i], above = z > 0 ? lack[i - shape.y * (Index)shape.x] : 0.0f;
    const float before = y > 0 ? lack[i - shape.x] : 0.0f, left = x > 0 ? lack[i - 1] : 0.0f;
    if (own + above + before + left <= 0.0f || *scale <= 0.0f) return;
    Vec3 g = push(own, z, y, x, -1.0f, -1.0f, -1.0f);
    g = g + push(above, z - 1, y, x, 1.0f, 0.0f, 0.0f);
    g = g + push(before, z, y - 1, x, 0.0f, 1.0f, 0.0f);
    g = g + push(left, z, y, x - 1, 0.0f, 0.0f, 1.0f);
    float* to = gradient + 3 * i;
    store_vec3(to, load_vec3(to) + *scale * g);
  }

  // Several voxels at once are looked up, not computed.
  template <class V>
  DR_HD void lanes(int row, int x) const {
    if constexpr (LaneTraits<V>::kCount > 1) {
      if (lack == nullptr) return;
      const Shape& shape = u.shape;
      const float* at = lack + (Index)row * shape.x + x;
      const V zero = {};
      const V above = row >= shape.y ? load<V>(at - shape.y * (Index)shape.x) : zero;
      const V before = row % shape.y > 0 ? load<V>(at - shape.x) : zero;
      if (!any_of(load<V>(at) + above + before + load<V>(at - 1) > zero)) return;
    }
    for (int k = 0; k < LaneTraits<V>::kCount; ++k) (*this)(row, x + k);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_REGULARITY_H_
