// Intensities relative to their neighbourhood. Where both images show the same contrast, the
// squared difference of such features is local normalised cross-correlation.
#ifndef DINOREG_LOCAL_INTENSITY_H_
#define DINOREG_LOCAL_INTENSITY_H_

#include "dinoreg/pool.h"

DR_NAMESPACE_BEGIN

// Every n-th number from p on: the first column of neighbouring blocks of n, the second and so on.
template <class V>
DR_HD void load_columns(const float* p, int n, V (&columns)[3]) {
  if constexpr (LaneTraits<V>::kCount == 1) {
    for (int k = 0; k < n; ++k) columns[k] = p[k];
#if !defined(__CUDACC__)
  } else if (n == 1) {
    columns[0] = load<V>(p);
  } else if (n == 2) {
    const V a = load<V>(p), b = load<V>(p + kLanes);
    columns[0] = every_second(a, b, 0);
    columns[1] = every_second(a, b, 1);
  } else {
    const Vec3Of<V> all = load_vec3_of<V>(p);
    columns[0] = all.z, columns[1] = all.y, columns[2] = all.x;
#endif
  }
}

// The mean and the mean square of an image on a coarser grid. Each block adds up its voxels along
// z, then y, then x.
struct PoolMoments {
  const float* image;  // (z, y, x)
  Shape shape;
  Int3 factor, offset;           // see Covered
  float* mean;                   // (Z, Y, X)
  float* mean_square = nullptr;  // (Z, Y, X); null: not wanted
  Shape out_shape;

  enum { kRepeatable = 1, kMostColumns = 3 };
  DR_OVER(out_shape)
  // Only the first and the last block of a row may hold fewer columns than the others.
  DR_HD int margin() const {
    if (factor.x > kMostColumns) return width();
    return offset.x > 0 || out_shape.x * factor.x != shape.x ? 1 : 0;
  }

  DR_HD void operator()(int row, int x) const {
    const Covered covered(out_shape.voxel(row, x), factor, offset, shape);
    float sum = 0.0f, square = 0.0f;
    for (int ix = covered.from.x; ix < covered.to.x; ++ix) {
      float column = 0.0f, squares = 0.0f;
      for (int z = covered.from.z; z < covered.to.z; ++z)
        for (int y = covered.from.y; y < covered.to.y; ++y) {
          const float v = image[shape.at(z, y, ix)];
          column += v;
          squares += v * v;
        }
      sum += column;
      square += squares;
    }
    write(row, x, covered, sum, square);
  }

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const Covered covered(out_shape.voxel(row, x), factor, offset, shape);
    V column[kMostColumns] = {}, squares[kMostColumns] = {}, sum = V{}, square = V{};
    for (int z = covered.from.z; z < covered.to.z; ++z)
      for (int y = covered.from.y; y < covered.to.y; ++y) {
        V v[kMostColumns] = {};
        load_columns(image + shape.at(z, y, covered.from.x), factor.x, v);
        DR_UNROLL(3)
        for (int k = 0; k < kMostColumns; ++k) {
          column[k] += v[k];
          squares[k] += v[k] * v[k];
        }
      }
    DR_UNROLL(3)
    for (int k = 0; k < kMostColumns; ++k) {  // those beyond the factor are 0
      sum += column[k];
      square += squares[k];
    }
    write(row, x, covered, sum, square);
  }

 private:
  template <class V>
  DR_HD void write(int row, int x, const Covered& covered, const V& sum, const V& square) const {
    const float share = 1.0f / (float)covered.count();
    const Index i = (Index)row * out_shape.x + x;
    store(mean + i, share * sum);
    if (mean_square != nullptr) store(mean_square + i, share * square);
  }
};

// One channel of the features: scale * (mean - local mean) / sqrt(local variance + noise^2), where
// the local moments are those of a window around the voxel.
struct LocalNormalise {
  const float* mean;   // (Z, Y, X)
  const float* local;  // (2, Z, Y, X): mean and mean square over the window
  Shape shape;
  float noise;
  float scale;
  Half* out;  // (Z, Y, X, stride)
  int stride, channel;

  DR_OVER(shape)
  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * shape.x + x;
    const float middle = local[i];
    const float variance = max_of(local[shape.voxels() + i] - middle * middle, 0.0f);
    out[i * stride + channel] =
        float_to_half(scale * (mean[i] - middle) / sqrtf(variance + noise * noise));
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_LOCAL_INTENSITY_H_
