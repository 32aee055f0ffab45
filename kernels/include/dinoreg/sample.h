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
template <class V>
DR_HD V within(const V& coordinate, int n) {
  return (coordinate >= 0.0f) & (coordinate <= (float)(n - 1)) ? splat<V>(1.0f) : V{};
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
  // The same with their derivatives along the index axes, as in `sample_with_slopes`.
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

// The sample and its derivatives along the index axes, as if the voxels went on beyond the border.
template <class T>
DR_HD T sample_with_slopes(const float* in, const Shape& shape, const Vec3& p, T slopes[3]) {
  const Around<T> t(in, shape, p);
  const float wz = t.nz.weight, wy = t.ny.weight, wx = t.nx.weight;
  const T a00 = t.low(t.r00), a01 = t.low(t.r01), a10 = t.low(t.r10), a11 = t.low(t.r11);
  const T d00 = t.high(t.r00) - a00, d01 = t.high(t.r01) - a01;
  const T d10 = t.high(t.r10) - a10, d11 = t.high(t.r11) - a11;
  const T v00 = a00 + wx * d00, v01 = a01 + wx * d01;
  const T v10 = a10 + wx * d10, v11 = a11 + wx * d11;
  const T v0 = lerp(v00, v01, wy), v1 = lerp(v10, v11, wy);
  slopes[0] = v1 - v0;
  slopes[1] = lerp(v01 - v00, v11 - v10, wz);
  slopes[2] = lerp(lerp(d00, d01, wy), lerp(d10, d11, wy), wz);
  return lerp(v0, v1, wz);
}

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

// Features (z, y, x, stride) in half precision, and the weight of each voxel.
struct WeightedFeatures {
  const Half* features;
  const float* weight;
  Shape shape;
  int stride;

  // Channels c to c + kBlock - 1 of the voxel at i.
  DR_HD Block block(Index i, int c) const { return load_block(features + i * stride + c); }
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
