// Intensities relative to their neighbourhood: where both images show the same contrast, their
// squared difference is local normalised cross-correlation as a feature.
#ifndef DINOREG_LOCAL_INTENSITY_H_
#define DINOREG_LOCAL_INTENSITY_H_

#include "dinoreg/pool.h"

DR_NAMESPACE_BEGIN

// Mean and mean square of an image over the cells of a coarser lattice; `offset` is the image's
// first voxel relative to the first cell's.
struct PoolMoments {
  const float* image;  // (z, y, x)
  Shape shape;
  int factor_z, factor_y, factor_x;
  int offset_z, offset_y, offset_x;
  float* mean;         // (Z, Y, X)
  float* mean_square;  // (Z, Y, X); may be null
  Shape out_shape;

  DR_HD int rows() const { return out_shape.rows(); }
  DR_HD int width() const { return out_shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int z = row / out_shape.y, y = row - z * out_shape.y;
    const CellRange rz(z, factor_z, offset_z, shape.z), ry(y, factor_y, offset_y, shape.y);
    const CellRange rx(x, factor_x, offset_x, shape.x);
    float sum = 0.0f, square = 0.0f;
    for (int iz = rz.from; iz < rz.to; ++iz)
      for (int iy = ry.from; iy < ry.to; ++iy)
        for (int ix = rx.from; ix < rx.to; ++ix) {
          const float v = image[shape.at(iz, iy, ix)];
          sum += v;
          square += v * v;
        }
    const float share = 1.0f / (float)(rz.count() * ry.count() * rx.count());
    const Index i = (Index)row * out_shape.x + x;
    mean[i] = share * sum;
    if (mean_square != nullptr) mean_square[i] = share * square;
  }
};

// One channel of the features: scale * (mean - local mean) / sqrt(local variance + noise^2), the
// local ones over a window around the cell.
struct LocalNormalise {
  const float* mean;   // (Z, Y, X)
  const float* local;  // (2, Z, Y, X): mean and mean square over the window
  Shape shape;
  float noise;
  float scale;
  Half* out;  // (Z, Y, X, stride)
  int stride, channel;

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }

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
