// Trilinear sampling, and the map from one grid's index to another's through a displacement field.
#ifndef DINOREG_SAMPLE_H_
#define DINOREG_SAMPLE_H_

#include "dinoreg/corner.h"
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
template <class V>
DR_HD V within(const V& coordinate, int n) {
  return (coordinate >= 0.0f) & (coordinate <= (float)(n - 1)) ? splat<V>(1.0f) : V{};
}

// The position of a sample among the voxels of `shape`.
struct Trilinear {
  Neighbours nz, ny, nx;

  DR_HD Trilinear(const Shape& shape, const Vec3& p)
      : nz(neighbours(p.z, shape.z)), ny(neighbours(p.y, shape.y)), nx(neighbours(p.x, shape.x)) {}
};

// The voxels around a sample of an image (T is float) or of a field (z, y, x, 3) (T is Vec3).
template <class T>
struct Around : Trilinear {
  const float *r00, *r01, *r10, *r11;  // the rows around it

  DR_HD Around(const float* in, const Shape& shape, const Vec3& p) : Trilinear(shape, p) {
    r00 = in + kNumbers * shape.at(nz.low, ny.low, 0);
    r01 = in + kNumbers * shape.at(nz.low, ny.high, 0);
    r10 = in + kNumbers * shape.at(nz.high, ny.low, 0);
    r11 = in + kNumbers * shape.at(nz.high, ny.high, 0);
  }
  DR_HD T low(const float* row) const { return voxel(row + kNumbers * nx.low, T{}); }
  DR_HD T high(const float* row) const { return voxel(row + kNumbers * nx.high, T{}); }

 private:
  enum { kNumbers = sizeof(T) / sizeof(float) };
  static DR_HD float voxel(const float* p, float) { return *p; }
  static DR_HD Vec3 voxel(const float* p, Vec3) { return load_vec3(p); }
};

template <class T>
DR_HD T sample(const float* in, const Shape& shape, const Vec3& p) {
  const Around<T> t(in, shape, p);
  const float wz = t.nz.weight, wy = t.ny.weight, wx = t.nx.weight;
  const T v0 =
      lerp(lerp(t.low(t.r00), t.high(t.r00), wx), lerp(t.low(t.r01), t.high(t.r01), wx), wy);
  const T v1 =
      lerp(lerp(t.low(t.r10), t.high(t.r10), wx), lerp(t.low(t.r11), t.high(t.r11), wx), wy);
  return lerp(v0, v1, wz);
}

// Where the blocks of channels of a voxel lie: side by side, (z, y, x, channels), as callers pass
// features, or each block as an image of its own, (channels / 8, z, y, x, 8). There, the neighbours
// along x that a warp of a GPU loads together are neighbours in memory.
struct FeatureLayout {
  Index voxel, block;  // numbers from one voxel, and from one block, to the next

  DR_HD Index at(Index i, int b) const { return i * voxel + b * block; }
};
DR_HD FeatureLayout interleaved(int channels) { return {channels, kBlock}; }
DR_HD FeatureLayout in_blocks(const Shape& shape) { return {kBlock, kBlock * shape.voxels()}; }

// Features in half precision, and the weight of each voxel.
struct WeightedFeatures {
  const Half* features;
  const float* weight;
  Shape shape;
  int stride;  // stored channels
  FeatureLayout layout = interleaved(stride);

  DR_HD int blocks() const { return stride / kBlock; }
  // Channels kBlock b to kBlock (b + 1) - 1 of the voxel at i.
  DR_HD Block block(Index i, int b) const { return load_block(features + layout.at(i, b)); }
};

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

// The value of the nearest voxel; 0 outside the grid.
DR_HD float nearest_or_zero(const float* image, const Shape& shape, const Vec3& p) {
  if (!inside_grid(shape, p)) return 0.0f;
  return image[shape.at(clamp_int((int)(p.z + 0.5f), 0, shape.z - 1),
                        clamp_int((int)(p.y + 0.5f), 0, shape.y - 1),
                        clamp_int((int)(p.x + 0.5f), 0, shape.x - 1))];
}
#if !defined(__CUDACC__)
DR_HD IntLanes nearest_voxel(const Lanes& coordinate, int n) {
  return min_of(max_of(to_int(coordinate + 0.5f), IntLanes{}), IntLanes{} + (n - 1));
}
DR_HD Lanes nearest_or_zero(const float* image, const Shape& shape, const Vec3Of<Lanes>& p) {
  const IntLanes row = nearest_voxel(p.z, shape.z) * shape.y + nearest_voxel(p.y, shape.y);
  const Lanes value = gather(image, row * shape.x + nearest_voxel(p.x, shape.x));
  return inside_grid(shape, p) ? value : Lanes{};
}
#endif

DR_HD bool is_whole(const Vec3& index) {
  return index.z == (int)index.z && index.y == (int)index.y && index.x == (int)index.x;
}

// A displacement field (shape, 3) in mm along the axes of its grid.
struct Displacement {
  const float* field;
  Shape shape;
  Vec3 index_per_mm;

  DR_HD Vec3 at(int row, int x) const { return load_vec3(field + 3 * ((Index)row * shape.x + x)); }
  // The point where it takes a voxel.
  DR_HD Vec3 point(int row, int x) const {
    return to_vec3(shape.voxel(row, x)) + at(row, x) * index_per_mm;
  }
  // The same on a moving grid whose first voxel has the index `offset` here.
  DR_HD Vec3 point(int row, int x, const Vec3& offset) const {
    return (to_vec3(shape.voxel(row, x)) - offset) + at(row, x) * index_per_mm;
  }
  // The same for neighbours along x.
  template <class V>
  DR_HD Vec3Of<V> point_of(int row, int x, const Vec3& offset) const {
    const Int3 voxel = shape.voxel(row, x);
    const Vec3Of<V> mm = load_vec3_of<V>(field + 3 * ((Index)row * shape.x + x));
    return {((float)voxel.z - offset.z) + mm.z * index_per_mm.z,
            ((float)voxel.y - offset.y) + mm.y * index_per_mm.y,
            (lane_numbers<V>() + (float)x - offset.x) + mm.x * index_per_mm.x};
  }
};

// Maps the index of an output voxel to affine(index) + matrix(u(to_field(index))); without a field,
// to affine(index) alone.
struct PointMap {
  Affine affine;
  const float* field = nullptr;  // (z, y, x, 3); may be null
  Shape field_shape = {};
  Affine to_field = {};
  Matrix3 matrix = {{1, 0, 0, 0, 1, 0, 0, 0, 1}};
  bool on_grid = false;  // the output grid is that of the field, so voxels need no interpolation

  DR_HD Vec3 operator()(const Vec3& index) const {
    const Vec3 p = affine(index);
    if (field == nullptr) return p;
    if (on_grid && is_whole(index))
      return p + matrix(load_vec3(field +
                                  3 * field_shape.at((int)index.z, (int)index.y, (int)index.x)));
    return p + matrix(sample<Vec3>(field, field_shape, to_field(index)));
  }

  // The same for neighbours along x. If `whole`, they are the output voxels from number `voxel` on.
  template <class V>
  DR_HD Vec3Of<V> at(const Vec3Of<V>& index, bool whole, Index voxel) const {
    const Vec3Of<V> p = affine(index);
    if (field == nullptr) return p;
    if (on_grid && whole) return p + matrix(load_vec3_of<V>(field + 3 * voxel));
    return p + matrix(sample_field_of(field, field_shape, to_field(index)));
  }

  DR_HD Vec3 at(const Vec3& index, bool, Index) const { return (*this)(index); }

  DR_HD bool fits_lanes() const {
    return field == nullptr || dr::fits_lanes(3 * field_shape.voxels());
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_SAMPLE_H_
