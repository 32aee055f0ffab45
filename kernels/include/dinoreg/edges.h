// Smoothing of the search's displacements that yields at edges: between unlike features.
#ifndef DINOREG_EDGES_H_
#define DINOREG_EDGES_H_

#include "dinoreg/smooth.h"

DR_NAMESPACE_BEGIN

// A joint bilateral filter: out(p) is the mean of in(q), each weighed by
//   g(q - p) (w(q) + 1/1000) (1 + s / 16)^-16,   s = edges |F(q) - F(p)|^2 / unrelated,
// with g the Gaussian of the taps and w the weight of the cell, so that where nothing has weight
// all cells count alike. The last factor is exp(-s) to 2 % of 1, but for its tail, and needs no
// exponential: a division and four squares, the same everywhere. Borders are half-sample symmetric.
//
// Not separable: with a width of 0.82 cells 125 neighbours are compared, 27 ms for 32 x 27 x 32
// cells with 24 channels (one core, AVX-512), and two cells wide 729, 170 ms.
struct SmoothWithinEdges {
  enum { kRepeatable = 1 };  // computing an element twice does no harm
  const float* in;           // (3, Z, Y, X)
  const float* features;     // (PZ, PY, channels, PX), with margin
  const float* weight;       // (PZ, PY, PX)
  Shape padded, shape;
  int margin_z, margin_y, margin_x;
  int channels;
  Taps z, y, x;
  const float* unrelated;  // squared difference of unrelated cells
  float edges;
  float* out;  // (3, Z, Y, X)

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }
  // Elements of a row whose neighbours along x are all there: [margin, width - margin).
  DR_HD int margin() const { return x.radius; }

  DR_HD void operator()(int row, int x) const { lanes<float>(row, x); }

  template <class V>
  DR_HD void lanes(int row, int at) const {
    const int pz = row / shape.y, py = row - pz * shape.y;
    const float per_square = edges / (16.0f * (*unrelated + 1e-30f));
    const float* here = line(pz, py) + at;
    const Index n = shape.voxels();
    V total = V{}, sum[3] = {V{}, V{}, V{}};
    for (int dz = -z.radius; dz <= z.radius; ++dz)
      for (int dy = -y.radius; dy <= y.radius; ++dy) {
        const int qz = reflect(pz + dz, shape.z), qy = reflect(py + dy, shape.y);
        const float across = z.weight[dz < 0 ? -dz : dz] * y.weight[dy < 0 ? -dy : dy];
        const float* there = line(qz, qy);
        const float* weights =
            weight + ((Index)(qz + margin_z) * padded.y + qy + margin_y) * padded.x + margin_x;
        const float* values = in + ((Index)qz * shape.y + qy) * shape.x;
        for (int dx = -x.radius; dx <= x.radius; ++dx) {
          const int qx = reflect(at + dx, shape.x);
          V like = 1.0f / (1.0f + per_square * difference<V>(here, there + qx));
          DR_UNROLL(4)
          for (int k = 0; k < 4; ++k) like *= like;
          const V w =
              (across * x.weight[dx < 0 ? -dx : dx]) * ((load<V>(weights + qx) + 1e-3f) * like);
          total += w;
          DR_UNROLL(3)
          for (int k = 0; k < 3; ++k) sum[k] += w * load<V>(values + k * n + qx);
        }
      }
    DR_UNROLL(3)
    for (int k = 0; k < 3; ++k) store(out + k * n + (Index)row * shape.x + at, sum[k] / total);
  }

 private:
  // First cell of a row's first channel.
  DR_HD const float* line(int z, int y) const {
    const Index row = (Index)(z + margin_z) * padded.y + y + margin_y;
    return features + row * channels * padded.x + margin_x;
  }

  template <class V>
  DR_HD V difference(const float* a, const float* b) const {
    // Four sums side by side: one alone waits for each multiply-add to finish before the next.
    V part[4] = {V{}, V{}, V{}, V{}};
    int c = 0;
    for (; c + 4 <= channels; c += 4) {
      DR_UNROLL(4)
      for (int k = 0; k < 4; ++k) {
        const Index at = (Index)(c + k) * padded.x;
        const V d = load<V>(a + at) - load<V>(b + at);
        part[k] += d * d;
      }
    }
    for (; c < channels; ++c) {
      const V d = load<V>(a + (Index)c * padded.x) - load<V>(b + (Index)c * padded.x);
      part[0] += d * d;
    }
    return (part[0] + part[1]) + (part[2] + part[3]);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_EDGES_H_
