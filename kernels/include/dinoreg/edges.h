// Smoothing of the search's displacements that stops at edges, that is between unlike features.
#ifndef DINOREG_EDGES_H_
#define DINOREG_EDGES_H_

#include "dinoreg/smooth.h"
#include "dinoreg/trust.h"

DR_NAMESPACE_BEGIN

// A joint bilateral filter: out(p) is the mean of in(q), each with the weight
//   g(q - p) (w(q) + 1/1000) (1 + s / 16)^-16,   s = edges |F(q) - F(p)|^2 / unrelated,
// where g is the Gaussian of the taps and w the weight of the voxel; where nothing has weight, all
// voxels count alike. The last factor is exp(-s) within 2 % of 1, except in its tail, without an
// exponential: a division and four squares, the same everywhere. Borders are half-sample symmetric.
//
// The filter is not separable. A Gaussian of 0.82 search voxels compares 125 neighbours, which
// takes 27 ms for 32 x 27 x 32 voxels with 24 channels (one core, AVX-512); one of two search
// voxels compares 729 and takes 170 ms.
struct SmoothWithinEdges {
  const float* in;        // (3, Z, Y, X)
  const float* features;  // (PZ, PY, channels, PX), with margin
  const float* weight;    // (PZ, PY, PX)
  Shape padded, shape;
  Int3 margins;
  int channels;
  Taps3 taps;
  const float* unrelated;  // squared difference of unrelated voxels
  float edges;
  float* out;  // (3, Z, Y, X)

  DR_OVER(shape)
  DR_HD int margin() const { return taps.x.radius; }
  DR_LANES(true)

  template <class V>
  DR_HD void lanes(int row, int at) const {
    const int pz = row / shape.y, py = row - pz * shape.y;
    const float per_square = edges / (16.0f * (*unrelated + 1e-30f));
    const float* here = line(pz, py) + at;
    const Index n = shape.voxels();
    V total = V{}, sum[3] = {V{}, V{}, V{}};
    for (int dz = -taps.z.radius; dz <= taps.z.radius; ++dz)
      for (int dy = -taps.y.radius; dy <= taps.y.radius; ++dy) {
        const int qz = reflect(pz + dz, shape.z), qy = reflect(py + dy, shape.y);
        const float across = taps.z.weight[dz < 0 ? -dz : dz] * taps.y.weight[dy < 0 ? -dy : dy];
        const float* there = line(qz, qy);
        const float* weights = weight + padded.at(Int3{qz, qy, 0} + margins);
        const float* values = in + shape.at(qz, qy, 0);
        for (int dx = -taps.x.radius; dx <= taps.x.radius; ++dx) {
          const int qx = reflect(at + dx, shape.x);
          const V square = squared_difference<V>(here, there + qx, channels, padded.x);
          V like = 1.0f / (1.0f + per_square * square);
          DR_UNROLL(4)
          for (int k = 0; k < 4; ++k) like *= like;
          const V w = (across * taps.x.weight[dx < 0 ? -dx : dx]) *
                      ((load<V>(weights + qx) + 1e-3f) * like);
          total += w;
          DR_UNROLL(3)
          for (int k = 0; k < 3; ++k) sum[k] += w * load<V>(values + k * n + qx);
        }
      }
    DR_UNROLL(3)
    for (int k = 0; k < 3; ++k) store(out + k * n + (Index)row * shape.x + at, sum[k] / total);
  }

 private:
  // The first voxel of a row in the first channel.
  DR_HD const float* line(int z, int y) const {
    const Index row = (Index)(z + margins.z) * padded.y + y + margins.y;
    return features + row * channels * padded.x + margins.x;
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_EDGES_H_
