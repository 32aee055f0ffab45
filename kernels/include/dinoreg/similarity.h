// How well features agree under a displacement, and in which direction they would agree better.
#ifndef DINOREG_SIMILARITY_H_
#define DINOREG_SIMILARITY_H_

#include "dinoreg/sample.h"
#include "dinoreg/trust.h"

DR_NAMESPACE_BEGIN

// Moving features around a point. Interpolating along x, y and z in turn gives values and slopes
// together, with 8 loads and 14 operations for each block of channels.
struct FeatureSample {
  const Half *r00, *r01, *r10, *r11;
  Index low, high;
  float wz, wy, wx;

  struct Values {
    Block value, z, y, x;  // the value and its derivatives by the point, in index units
  };

  DR_HD FeatureSample(const WeightedFeatures& in, const Vec3& p) {
    const Trilinear t(in.shape, p);
    low = (Index)t.nx.low * in.stride;
    high = (Index)t.nx.high * in.stride;
    r00 = in.features + in.shape.at(t.nz.low, t.ny.low, 0) * in.stride;
    r01 = in.features + in.shape.at(t.nz.low, t.ny.high, 0) * in.stride;
    r10 = in.features + in.shape.at(t.nz.high, t.ny.low, 0) * in.stride;
    r11 = in.features + in.shape.at(t.nz.high, t.ny.high, 0) * in.stride;
    wz = t.nz.weight, wy = t.ny.weight, wx = t.nx.weight;
  }

  // Channels c to c + kBlock - 1.
  DR_HD Values at(int c) const {
    const Block a00 = load_block(r00 + low + c), a01 = load_block(r01 + low + c);
    const Block a10 = load_block(r10 + low + c), a11 = load_block(r11 + low + c);
    const Block d00 = load_block(r00 + high + c) - a00, d01 = load_block(r01 + high + c) - a01;
    const Block d10 = load_block(r10 + high + c) - a10, d11 = load_block(r11 + high + c) - a11;
    const Block v00 = a00 + wx * d00, v01 = a01 + wx * d01;
    const Block v10 = a10 + wx * d10, v11 = a11 + wx * d11;
    const Block x0 = d00 + wy * (d01 - d00), x1 = d10 + wy * (d11 - d10);
    const Block y0 = v01 - v00, y1 = v11 - v10;
    const Block v0 = v00 + wy * y0, v1 = v10 + wy * y1;
    const Block gz = v1 - v0;
    return {.value = v0 + wz * gz, .z = gz, .y = y0 + wz * (y1 - y0), .x = x0 + wz * (x1 - x0)};
  }
};

// The cost of two feature vectors at each voxel: w d(F(p), M(p + u)), where
// w = w_f(p) w_m(nearest to p + u). The gradient with respect to u treats w as a constant: a voxel
// must not be able to lower the energy by leaving the moving image. The distance d is that of one
// of the ops below.
struct FeatureTerm {
  WeightedFeatures fixed, moving;
  Vec3 moving_offset;  // see Displacement
  Displacement u;
  float trust_cost = 0.0f;    // see trust_of
  float scale = 0.0f;         // of the gradient
  float* energy = nullptr;    // (z, y, x); null: not wanted
  float* gradient = nullptr;  // (z, y, x, 3), dE/du in 1/mm; null: not wanted
  float* overlap = nullptr;   // (z, y, x): w; null: not wanted

  enum { kCopied = 1 };  // see CpuLauncher

  DR_OVER(fixed.shape)

  // distance(voxel, sample, slope) gives d and its derivative with respect to the sample's point.
  template <class Distance>
  DR_HD void evaluate(int row, int x, const Distance& distance) const {
    const Index i = (Index)row * width() + x;
    const Vec3 p = u.point(row, x, moving_offset);
    // The weight of the nearest voxel. The smallest weight of the eight voxels of a sample would
    // exclude voxels without weight altogether, but the rim of the body with them: of seven MR-CT
    // pairs, six stay as they are and the one with an empty margin falls from 0.73 to 0.66 Dice.
    const float w = fixed.weight[i] * nearest_or_zero(moving.weight, moving.shape, p);
    if (overlap != nullptr) overlap[i] = w;
    float value = 0.0f;
    Vec3 slope = {0.0f, 0.0f, 0.0f};
    if (w > 0.0f) value = distance(i, FeatureSample(moving, p), slope);
    const float trust = trust_of(value, trust_cost);
    if (energy != nullptr) energy[i] = w * trust * value;
    if (gradient != nullptr)
      store_vec3(gradient + 3 * i, (w * scale * trust * trust) * (slope * u.index_per_mm));
  }
};

// d = |M - F|^2, summed over channels.
struct FeatureDifference : FeatureTerm {
  DR_HD void operator()(int row, int x) const { evaluate(row, x, *this); }

  DR_HD float operator()(Index i, const FeatureSample& sample, Vec3& slope) const {
    Block sum = zero_block(), sz = zero_block(), sy = zero_block(), sx = zero_block();
    for (int c = 0; c < fixed.stride; c += kBlock) {
      const FeatureSample::Values m = sample.at(c);
      const Block r = m.value - fixed.block(i, c);
      sum = sum + r * r;
      sz = sz + r * m.z;
      sy = sy + r * m.y;
      sx = sx + r * m.x;
    }
    slope = {2.0f * sum_lanes(sz), 2.0f * sum_lanes(sy), 2.0f * sum_lanes(sx)};
    return sum_lanes(sum);
  }
};

// d = 2 n (1 - F.M / (|F| |M|)), where n is the mean of |F|^2. For vectors of this norm d is the
// squared difference, so that one weight serves both. A thousandth of n is added to the squared
// norms because the direction of a vector close to 0 is noise.
struct FeatureCosine : FeatureTerm {
  const float* mean_square;  // n

  DR_HD void operator()(int row, int x) const { evaluate(row, x, *this); }

  // d(F.M / |M|) = (F - (F.M / |M|^2) M) . dM / |M|. A second pass over the channels takes fewer
  // registers than nine sums in one pass.
  DR_HD float operator()(Index i, const FeatureSample& sample, Vec3& slope) const {
    Block ff = zero_block(), fm = zero_block(), mm = zero_block();
    for (int c = 0; c < fixed.stride; c += kBlock) {
      const Block a = fixed.block(i, c), b = sample.at(c).value;
      ff = ff + a * a;
      fm = fm + a * b;
      mm = mm + b * b;
    }
    const float n = *mean_square, guard = max_of(1e-3f * n, 1e-12f);
    const float product = sum_lanes(fm), square = sum_lanes(mm) + guard;
    const float share = 1.0f / sqrtf((sum_lanes(ff) + guard) * square), along = product / square;
    Block sz = zero_block(), sy = zero_block(), sx = zero_block();
    for (int c = 0; c < fixed.stride; c += kBlock) {
      const FeatureSample::Values m = sample.at(c);
      const Block across = fixed.block(i, c) - along * m.value;
      sz = sz + across * m.z;
      sy = sy + across * m.y;
      sx = sx + across * m.x;
    }
    const float unit = 2.0f * n;
    slope = (-unit * share) * Vec3{sum_lanes(sz), sum_lanes(sy), sum_lanes(sx)};
    return unit * (1.0f - share * product);
  }
};

// w |F|^2 at each voxel.
struct FeatureSquare {
  WeightedFeatures in;
  float* out;  // (z, y, x)

  DR_OVER(in.shape)
  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * width() + x;
    Block sum = zero_block();
    for (int c = 0; c < in.stride; c += kBlock) {
      const Block f = in.block(i, c);
      sum = sum + f * f;
    }
    out[i] = in.weight[i] * sum_lanes(sum);
  }
};

// One channel of the features as an image.
struct FeatureChannel {
  WeightedFeatures in;
  int channel;
  float* out;  // (z, y, x)

  DR_OVER(in.shape)
  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * width() + x;
    out[i] = half_to_float(in.features[i * in.stride + channel]);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_SIMILARITY_H_
