// Intensities relative to their neighbourhood. Where both images show the same contrast, the
// squared difference of such features is local normalised cross-correlation.
#ifndef DINOREG_LOCAL_INTENSITY_H_
#define DINOREG_LOCAL_INTENSITY_H_

#include "dinoreg/pool.h"

DR_NAMESPACE_BEGIN

// The mean and the mean square of an image on a coarser grid.
struct PoolMoments {
  const float* image;  // (z, y, x)
  Shape shape;
  Int3 factor, offset;           // see Covered
  float* mean;                   // (Z, Y, X)
  float* mean_square = nullptr;  // (Z, Y, X); null: not wanted
  Shape out_shape;

  DR_OVER(out_shape)
  DR_HD void operator()(int row, int x) const {
    const Covered covered(out_shape.voxel(row, x), factor, offset, shape);
    float sum = 0.0f, square = 0.0f;
    covered.each(shape, [&](Index i) {
      const float v = image[i];
      sum += v;
      square += v * v;
    });
    const float share = 1.0f / (float)covered.count();
    const Index i = (Index)row * out_shape.x + x;
    mean[i] = share * sum;
    if (mean_square != nullptr) mean_square[i] = share * square;
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
