// Resampling and warping between arbitrary grids.
#ifndef DINOREG_RESAMPLE_H_
#define DINOREG_RESAMPLE_H_

#include "dinoreg/sample.h"

DR_NAMESPACE_BEGIN

// Linear interpolation. Every output voxel is the mean of samples.z * samples.y * samples.x points
// spread evenly over it, which is the antialiasing filter of a coarser output.
// On sm_90 it takes 76 registers, which is 38 % of the warps, and elsewhere 64. With 64 there, for
// 50 %, ptxas 13.0 would spill 20 bytes.
struct ResampleLinear {
  const float* in;  // not read without `out`
  Shape in_shape;
  float* out;  // may be null
  Shape out_shape;
  float* inside;  // share of the points within the input's field of view; may be null
  PointMap map;
  Int3 samples;
  float outside;  // value where no point is inside
  bool extend;    // points beyond the input read the value at its border

  enum { kRepeatable = 1 };
  DR_OVER(out_shape)
  DR_HD int margin() const {
    return map.fits_lanes() && fits_lanes(in_shape.voxels()) ? 0 : width();
  }

  // One voxel, as on a GPU; written in terms of `lanes<float>`, this would spill registers there.
  DR_HD void operator()(int row, int x) const {
    const int z = row / out_shape.y, y = row - z * out_shape.y;
    float sum = 0.0f;
    int count = 0;
    for (int sz = 0; sz < samples.z; ++sz)
      for (int sy = 0; sy < samples.y; ++sy) {
        DR_UNROLL(1)  // unrolling spills registers on sm_100
        for (int sx = 0; sx < samples.x; ++sx) {
          const Vec3 p = map(
              {z + spread(sz, samples.z), y + spread(sy, samples.y), x + spread(sx, samples.x)});
          if (!extend && !inside_grid(in_shape, p)) continue;
          if (out != nullptr) sum += sample<float>(in, in_shape, p);
          ++count;
        }
      }
    const Index i = out_shape.at(z, y, x);
    if (out != nullptr) out[i] = count > 0 ? sum / (float)count : outside;
    if (inside != nullptr) inside[i] = (float)count / (float)(samples.z * samples.y * samples.x);
  }

  template <class V>
  DR_HD void lanes(int row, int x) const {
    if constexpr (LaneTraits<V>::kCount == 1) return (*this)(row, x);
    const int z = row / out_shape.y, y = row - z * out_shape.y;
    const Index i = out_shape.at(z, y, x);
    V sum = V{}, count = V{};
    for (int sz = 0; sz < samples.z; ++sz)
      for (int sy = 0; sy < samples.y; ++sy) {
        for (int sx = 0; sx < samples.x; ++sx) {
          const float dz = spread(sz, samples.z), dy = spread(sy, samples.y);
          const float dx = spread(sx, samples.x);
          const Vec3Of<V> p = map.at(Vec3Of<V>{splat<V>((float)z + dz), splat<V>((float)y + dy),
                                               (lane_numbers<V>() + (float)x) + dx},
                                     dz == 0.0f && dy == 0.0f && dx == 0.0f, i);
          const auto within = inside_grid(in_shape, p) | -(int)extend;
          if (!any_of(within)) continue;
          if (out != nullptr) sum = within ? sum + CornerOf<V>(in_shape, p).sample(in, 1) : sum;
          count = within ? count + 1.0f : count;
        }
      }
    if (out != nullptr) store(out + i, count > V{} ? sum / count : splat<V>(outside));
    if (inside != nullptr) store(inside + i, count / (float)(samples.z * samples.y * samples.x));
  }

  static DR_HD float spread(int i, int n) { return ((float)i + 0.5f) / (float)n - 0.5f; }
};

// Labels. `nearest` takes that of the nearest voxel; halves round up, as in ITK. Otherwise the
// label with the largest sum of trilinear weights wins (the smaller label on a tie), which gives
// smooth borders and never invents a value.
struct ResampleLabels {
  const int* in;
  Shape in_shape;
  int* out;
  Shape out_shape;
  PointMap map;
  bool nearest;
  int outside;

  DR_OVER(out_shape)
  DR_HD void operator()(int row, int x) const {
    const Vec3 p = map(to_vec3(out_shape.voxel(row, x)));
    int label = outside;
    if (inside_grid(in_shape, p)) label = nearest ? nearest_label(p) : heaviest_label(p);
    out[(Index)row * out_shape.x + x] = label;
  }

  DR_HD int nearest_label(const Vec3& p) const {
    return in[in_shape.at(clamp_int((int)floorf(p.z + 0.5f), 0, in_shape.z - 1),
                          clamp_int((int)floorf(p.y + 0.5f), 0, in_shape.y - 1),
                          clamp_int((int)floorf(p.x + 0.5f), 0, in_shape.x - 1))];
  }

  DR_HD int heaviest_label(const Vec3& p) const {
    const Trilinear t(in_shape, p);
    int label[8];
    float weight[8];
    for (int k = 0; k < 8; ++k) {
      const bool hz = k & 4, hy = k & 2, hx = k & 1;
      label[k] = in[in_shape.at(hz ? t.nz.high : t.nz.low, hy ? t.ny.high : t.ny.low,
                                hx ? t.nx.high : t.nx.low)];
      weight[k] = (hz ? t.nz.weight : 1.0f - t.nz.weight) *
                  (hy ? t.ny.weight : 1.0f - t.ny.weight) * (hx ? t.nx.weight : 1.0f - t.nx.weight);
    }
    int best = label[0];
    float best_weight = -1.0f;
    for (int k = 0; k < 8; ++k) {
      float sum = 0.0f;
      for (int j = 0; j < 8; ++j) sum += label[j] == label[k] ? weight[j] : 0.0f;
      if (sum > best_weight || (sum == best_weight && label[k] < best)) {
        best = label[k];
        best_weight = sum;
      }
    }
    return best;
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_RESAMPLE_H_
