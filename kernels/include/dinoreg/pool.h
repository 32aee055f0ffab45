// From the solver's grid to the coarse grid of the discrete search.
#ifndef DINOREG_POOL_H_
#define DINOREG_POOL_H_

#include "dinoreg/sample.h"
#include "dinoreg/trust.h"

DR_NAMESPACE_BEGIN

// The cells of a coarser lattice: cell i of an axis covers the fine voxels [i * factor - offset,
// (i + 1) * factor - offset) that exist; a last cell may hold fewer.
struct CellRange {
  int from, to;

  DR_HD CellRange(int cell, int factor, int offset, int n)
      : from(max_int(cell * factor - offset, 0)), to(min_int((cell + 1) * factor - offset, n)) {}
  DR_HD int count() const { return max_int(to - from, 0); }
};

// Weighted mean over cells, channels last, for a coarser level of the refinement. `offset` is the
// fine grid's first voxel relative to the first cell's.
struct PoolFeatures {
  const Half* features;  // (z, y, x, stride)
  const float* weight;   // (z, y, x)
  Shape shape;
  int stride;
  int factor_z, factor_y, factor_x;
  int offset_z, offset_y, offset_x;
  Half* out;  // (Z, Y, X, stride)
  float* out_weight;
  Shape out_shape;

  DR_HD int rows() const { return out_shape.rows(); }
  DR_HD int width() const { return out_shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int z = row / out_shape.y, y = row - z * out_shape.y;
    const CellRange rz(z, factor_z, offset_z, shape.z), ry(y, factor_y, offset_y, shape.y);
    const CellRange rx(x, factor_x, offset_x, shape.x);
    const Index to = out_shape.at(z, y, x);
    float total = 0.0f;
    for (int iz = rz.from; iz < rz.to; ++iz)
      for (int iy = ry.from; iy < ry.to; ++iy)
        for (int ix = rx.from; ix < rx.to; ++ix) total += weight[shape.at(iz, iy, ix)];
    const int voxels = rz.count() * ry.count() * rx.count();
    out_weight[to] = voxels > 0 ? total / (float)voxels : 0.0f;
    const float scale = total > 0.0f ? 1.0f / total : 0.0f;
    for (int c0 = 0; c0 < stride; c0 += kBlock) {
      Block sum = zero_block();
      for (int iz = rz.from; iz < rz.to; ++iz)
        for (int iy = ry.from; iy < ry.to; ++iy)
          for (int ix = rx.from; ix < rx.to; ++ix) {
            const Index i = shape.at(iz, iy, ix);
            sum = sum + weight[i] * load_block(features + i * stride + c0);
          }
      store_block(out + to * stride + c0, scale * sum);
    }
  }
};

// Weighted mean over cells, written planar: out (Z, Y, channels, X), weight (Z, Y, X), on the
// coarse lattice of the fixed image extended by `margin` cells on every side, so that a shift of
// the search never leaves the array. Cells without any weight hold zeros.
struct PoolPlanar {
  const Half* features;  // (z, y, x, stride)
  const float* weight;   // (z, y, x)
  Shape shape;
  int stride, channels;
  int offset_z, offset_y, offset_x;  // first voxel on the fixed lattice
  int factor_z, factor_y, factor_x;
  int margin_z, margin_y, margin_x;
  float* out;
  float* out_weight;
  Shape out_shape;

  DR_HD int rows() const { return out_shape.rows(); }
  DR_HD int width() const { return out_shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int z = row / out_shape.y, y = row - z * out_shape.y;
    const int z0 = (z - margin_z) * factor_z - offset_z, z1 = z0 + factor_z;
    const int y0 = (y - margin_y) * factor_y - offset_y, y1 = y0 + factor_y;
    const int x0 = (x - margin_x) * factor_x - offset_x, x1 = x0 + factor_x;
    const int za = max_int(z0, 0), zb = min_int(z1, shape.z);
    const int ya = max_int(y0, 0), yb = min_int(y1, shape.y);
    const int xa = max_int(x0, 0), xb = min_int(x1, shape.x);
    float total = 0.0f;
    for (int iz = za; iz < zb; ++iz)
      for (int iy = ya; iy < yb; ++iy)
        for (int ix = xa; ix < xb; ++ix) total += weight[shape.at(iz, iy, ix)];
    const int voxels = max_int(zb - za, 0) * max_int(yb - ya, 0) * max_int(xb - xa, 0);
    out_weight[out_shape.at(z, y, x)] = voxels > 0 ? total / (float)voxels : 0.0f;
    float* to = out + (Index)row * channels * out_shape.x + x;
    const float scale = total > 0.0f ? 1.0f / total : 0.0f;
    for (int c0 = 0; c0 < channels; c0 += kBlock) {
      Block sum = zero_block();
      if (total > 0.0f)
        for (int iz = za; iz < zb; ++iz)
          for (int iy = ya; iy < yb; ++iy)
            for (int ix = xa; ix < xb; ++ix) {
              const Index i = shape.at(iz, iy, ix);
              sum = sum + weight[i] * load_block(features + i * stride + c0);
            }
      const int last = min_int(kBlock, channels - c0);
      for (int c = 0; c < last; ++c) to[(Index)(c0 + c) * out_shape.x] = sum[c] * scale;
    }
  }
};

// The moving image's cells where a displacement takes the cells of the fixed lattice, margin
// included, written as PoolPlanar does: trilinear means weighted by the cells' weights. Cells
// beyond the moving grid weigh nothing, so the weight fades out there within one cell.
struct WarpPlanar {
  const Half* features;  // (z, y, x, stride): cells of the moving grid
  const float* weight;   // (z, y, x)
  Shape shape;
  int stride, channels;
  Vec3 offset;         // its first cell on the fixed lattice of cells
  const float* field;  // (field_shape, 3), mm, continued beyond its faces as it is there
  Shape field_shape;
  Affine to_field;  // index of a cell -> index of the field
  Vec3 cells_per_mm;
  int margin_z, margin_y, margin_x;
  float* out;         // (Z, Y, channels, X)
  float* out_weight;  // (Z, Y, X)
  Shape out_shape;

  DR_HD int rows() const { return out_shape.rows(); }
  DR_HD int width() const { return out_shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int z = row / out_shape.y, y = row - z * out_shape.y;
    const Vec3 cell = {(float)(z - margin_z), (float)(y - margin_y), (float)(x - margin_x)};
    const Vec3 u = sample_field(field, field_shape, to_field(cell));
    const Vec3 p = (cell - offset) + u * cells_per_mm;
    // Clamped where nothing counts any more: no number is too large for an int.
    const float pz = clamp_float(p.z, -1.0f, (float)shape.z);
    const float py = clamp_float(p.y, -1.0f, (float)shape.y);
    const float px = clamp_float(p.x, -1.0f, (float)shape.x);
    const int iz = (int)floorf(pz), iy = (int)floorf(py), ix = (int)floorf(px);
    const float fz = pz - (float)iz, fy = py - (float)iy, fx = px - (float)ix;
    Index at[8];
    float share[8], total = 0.0f;
    for (int k = 0; k < 8; ++k) {
      const int dz = k >> 2, dy = (k >> 1) & 1, dx = k & 1;
      const int jz = iz + dz, jy = iy + dy, jx = ix + dx;
      const bool inside =
          jz >= 0 && jz < shape.z && jy >= 0 && jy < shape.y && jx >= 0 && jx < shape.x;
      at[k] = inside ? shape.at(jz, jy, jx) : 0;
      share[k] = inside ? (dz ? fz : 1.0f - fz) * (dy ? fy : 1.0f - fy) * (dx ? fx : 1.0f - fx) *
                              weight[at[k]]
                        : 0.0f;
      total += share[k];
    }
    out_weight[out_shape.at(z, y, x)] = total;
    float* to = out + (Index)row * channels * out_shape.x + x;
    const float scale = total > 0.0f ? 1.0f / total : 0.0f;
    for (int c0 = 0; c0 < channels; c0 += kBlock) {
      Block sum = zero_block();
      for (int k = 0; k < 8; ++k)
        if (share[k] > 0.0f) sum = sum + share[k] * load_block(features + at[k] * stride + c0);
      const int last = min_int(kBlock, channels - c0);
      for (int c = 0; c < last; ++c) to[(Index)(c0 + c) * out_shape.x] = sum[c] * scale;
    }
  }
};

// Per channel and row: sums of w, w f and w f^2 over the row. out: (channels, 3, rows).
struct FeatureMoments {
  const float* features;  // (Z, Y, channels, X)
  const float* weight;    // (Z, Y, X)
  int row_count, channels, x;
  float* out;

  DR_HD int rows() const { return row_count; }
  DR_HD int width() const { return channels; }

  DR_HD void operator()(int row, int c) const {
    const float* f = features + ((Index)row * channels + c) * x;
    const float* w = weight + (Index)row * x;
    float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f;
    for (int i = 0; i < x; ++i) {
      s0 += w[i];
      s1 += w[i] * f[i];
      s2 += w[i] * f[i] * f[i];
    }
    float* to = out + (Index)c * 3 * row_count + row;
    to[0] = s0;
    to[row_count] = s1;
    to[2 * (Index)row_count] = s2;
  }
};

// What two unrelated voxels cost on average: sum over channels of var f + var m + (mean f - mean
// m)^2. A voxel outside the moving image's field of view is charged this much: neither a match
// nor worse than a wrong one.
struct UnrelatedCost {
  const double* fixed;   // (channels, 3): the moments of `FeatureMoments`, summed over the rows
  const double* moving;  // (channels, 3)
  int channels;
  float* out;        // with trust, and without
  float trust_cost;  // of `trust_of`

  DR_HD int rows() const { return 1; }
  DR_HD int width() const { return 1; }

  DR_HD void operator()(int, int) const {
    double cost = 0.0;
    for (int c = 0; c < channels; ++c) {
      double mean[2];
      for (int image = 0; image < 2; ++image) {
        const double* sums = (image == 0 ? fixed : moving) + 3 * c;
        const double n = sums[0] > 0.0 ? sums[0] : 1.0;
        mean[image] = sums[1] / n;
        const double variance = sums[2] / n - mean[image] * mean[image];
        cost += variance > 0.0 ? variance : 0.0;  // rounding leaves a constant image below zero
      }
      cost += (mean[0] - mean[1]) * (mean[0] - mean[1]);
    }
    out[0] = (float)cost * trust_of((float)cost, trust_cost);
    out[1] = (float)cost;
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_POOL_H_
