// Averaging of features to a coarser grid, and the statistics of what unrelated features cost.
#ifndef DINOREG_POOL_H_
#define DINOREG_POOL_H_

#include "dinoreg/sample.h"
#include "dinoreg/trust.h"

DR_NAMESPACE_BEGIN

// The fine voxels that one voxel of a coarser grid covers: those of [coarse * factor - offset,
// (coarse + 1) * factor - offset) that exist, so there may be fewer at the border. `offset` is the
// position of the first fine voxel, counted in fine voxels from where the coarse grid begins.
struct Covered {
  Int3 from, to;

  DR_HD Covered(const Int3& coarse, const Int3& factor, const Int3& offset, const Shape& shape) {
    const Int3 first = coarse * factor - offset, last = first + factor;
    from = {max_int(first.z, 0), max_int(first.y, 0), max_int(first.x, 0)};
    to = {min_int(last.z, shape.z), min_int(last.y, shape.y), min_int(last.x, shape.x)};
  }
  DR_HD int count() const {
    return max_int(to.z - from.z, 0) * max_int(to.y - from.y, 0) * max_int(to.x - from.x, 0);
  }
  // visit(i) for the place i of each covered voxel in an array of `shape`.
  template <class Visit>
  DR_HD void each(const Shape& shape, const Visit& visit) const {
    for (int z = from.z; z < to.z; ++z)
      for (int y = from.y; y < to.y; ++y)
        for (int x = from.x; x < to.x; ++x) visit(shape.at(z, y, x));
  }
};

// The sum of the covered weights; `mean` receives their mean.
DR_HD float total_weight(const WeightedFeatures& in, const Covered& covered, float& mean) {
  float sum = 0.0f;
  covered.each(in.shape, [&](Index i) { sum += in.weight[i]; });
  const int voxels = covered.count();
  mean = voxels > 0 ? sum / (float)voxels : 0.0f;
  return sum;
}

// The weighted sum of block b of the channels over the covered voxels.
DR_HD Block weighted_sum(const WeightedFeatures& in, const Covered& covered, int b) {
  Block sum = zero_block();
  covered.each(in.shape, [&](Index i) { sum = sum + in.weight[i] * in.block(i, b); });
  return sum;
}

// Weighted means on a coarser grid, for a coarser level of the refinement.
struct PoolFeatures {
  WeightedFeatures in;
  Int3 factor, offset;  // see Covered
  Half* out;
  float* out_weight;  // (Z, Y, X)
  Shape out_shape;
  FeatureLayout out_layout = interleaved(in.stride);

  DR_OVER(out_shape)
  DR_HD void operator()(int row, int x) const {
    const Covered covered(out_shape.voxel(row, x), factor, offset, in.shape);
    const Index to = (Index)row * out_shape.x + x;
    const float total = total_weight(in, covered, out_weight[to]);
    const float scale = total > 0.0f ? 1.0f / total : 0.0f;
    for (int b = 0; b < in.blocks(); ++b)
      store_block(out + out_layout.at(to, b), scale * weighted_sum(in, covered, b));
  }
};

// The same features in another layout.
struct Rearrange {
  WeightedFeatures in;
  Half* out;
  FeatureLayout out_layout;

  DR_OVER(in.shape)
  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * in.shape.x + x;
    for (int b = 0; b < in.blocks(); ++b) store_block(out + out_layout.at(i, b), in.block(i, b));
  }
};

// Weighted means on the search grid, planar: out (Z, Y, channels, X), weight (Z, Y, X). The grid is
// extended by a margin on every side so that no shift of the search leaves the array. Voxels
// without any weight hold zeros.
struct PoolPlanar {
  WeightedFeatures in;
  int channels;
  Int3 factor;  // fixed voxels per search voxel
  Int3 offset;  // the first voxel's index on the fixed grid
  Int3 margins;
  float* out;
  float* out_weight;
  Shape out_shape;

  DR_OVER(out_shape)
  DR_HD void operator()(int row, int x) const {
    const Covered covered(out_shape.voxel(row, x) - margins, factor, offset, in.shape);
    const float total = total_weight(in, covered, out_weight[(Index)row * out_shape.x + x]);
    float* to = out + (Index)row * channels * out_shape.x + x;
    const float scale = total > 0.0f ? 1.0f / total : 0.0f;
    for (int c0 = 0; c0 < channels; c0 += kBlock) {
      const Block sum = total > 0.0f ? weighted_sum(in, covered, c0 / kBlock) : zero_block();
      const int last = min_int(kBlock, channels - c0);
      for (int c = 0; c < last; ++c) to[(Index)(c0 + c) * out_shape.x] = sum[c] * scale;
    }
  }
};

// The moving image's coarse voxels at the points where a displacement takes the voxels of the
// search grid, margin included, in the layout of PoolPlanar: trilinear means, weighted by the
// coarse voxels' weights. Voxels beyond the moving grid have no weight, so the weight fades out
// within one voxel there.
struct WarpPlanar {
  WeightedFeatures in;  // the moving image on its own coarse grid
  int channels;
  Vec3 offset;         // index of its first voxel on the search grid
  const float* field;  // (field_shape, 3), mm; beyond its faces it keeps the value there
  Shape field_shape;
  Affine to_field;    // index on the search grid -> index of the field
  Vec3 index_per_mm;  // on the search grid
  Int3 margins;
  float* out;         // (Z, Y, channels, X)
  float* out_weight;  // (Z, Y, X)
  Shape out_shape;

  DR_OVER(out_shape)
  DR_HD void operator()(int row, int x) const {
    const Shape& shape = in.shape;
    const Vec3 voxel = to_vec3(out_shape.voxel(row, x) - margins);
    const Vec3 u = sample<Vec3>(field, field_shape, to_field(voxel));
    const Vec3 p = (voxel - offset) + u * index_per_mm;
    // Clamped to where the weight is 0 anyway, so that every number fits into an int.
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
                              in.weight[at[k]]
                        : 0.0f;
      total += share[k];
    }
    out_weight[(Index)row * out_shape.x + x] = total;
    float* to = out + (Index)row * channels * out_shape.x + x;
    const float scale = total > 0.0f ? 1.0f / total : 0.0f;
    for (int c0 = 0; c0 < channels; c0 += kBlock) {
      Block sum = zero_block();
      for (int k = 0; k < 8; ++k)
        if (share[k] > 0.0f) sum = sum + share[k] * in.block(at[k], c0 / kBlock);
      const int last = min_int(kBlock, channels - c0);
      for (int c = 0; c < last; ++c) to[(Index)(c0 + c) * out_shape.x] = sum[c] * scale;
    }
  }
};

// The sums of w, w f and w f^2 over each row of each channel. out: (channels, 3, rows).
struct FeatureMoments {
  const float* features;  // (Z, Y, channels, X)
  const float* weight;    // (Z, Y, X)
  Shape shape;
  int channels;
  float* out;

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return channels; }
  DR_HD void operator()(int row, int c) const {
    const float* f = features + ((Index)row * channels + c) * shape.x;
    const float* w = weight + (Index)row * shape.x;
    float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f;
    for (int i = 0; i < shape.x; ++i) {
      s0 += w[i];
      s1 += w[i] * f[i];
      s2 += w[i] * f[i] * f[i];
    }
    float* to = out + (Index)c * 3 * rows() + row;
    to[0] = s0;
    to[rows()] = s1;
    to[2 * (Index)rows()] = s2;
  }
};

// The mean cost of two unrelated voxels: var f + var m + (mean f - mean m)^2, summed over channels.
// A voxel outside the moving image's field of view is charged this cost, so that leaving it is
// neither a match nor worse than a wrong match.
struct UnrelatedCost {
  const double *fixed, *moving;  // (channels, 3): the sums of `FeatureMoments` over all rows
  int channels;
  float trust_cost;  // see trust_of
  float* out;

  DR_OVER_ONE
  DR_HD void operator()(int, int) const {
    double cost = 0.0;
    for (int c = 0; c < channels; ++c) {
      double mean[2];
      for (int image = 0; image < 2; ++image) {
        const double* sums = (image == 0 ? fixed : moving) + 3 * c;
        const double n = sums[0] > 0.0 ? sums[0] : 1.0;
        mean[image] = sums[1] / n;
        const double variance = sums[2] / n - mean[image] * mean[image];
        cost += variance > 0.0 ? variance : 0.0;  // rounding may leave a constant image below zero
      }
      cost += (mean[0] - mean[1]) * (mean[0] - mean[1]);
    }
    *out = (float)cost * trust_of((float)cost, trust_cost);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_POOL_H_
