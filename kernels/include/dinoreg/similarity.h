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
  Index next, block;  // from the lower to the higher neighbour along x, and to the next block
  float wz, wy, wx;

  struct Values {
    Block value, z, y, x;  // the value and its derivatives by the point, in index units
  };

  // Around the point of one lane of `corner`.
  template <class V>
  DR_HD FeatureSample(const WeightedFeatures& in, const CornerOf<V>& corner, int lane) {
    const Index y = corner.step_y * in.layout.voxel, z = corner.step_z * in.layout.voxel;
    next = corner.step_x * in.layout.voxel;
    block = in.layout.block;
    r00 = in.features + lane_of(corner.first, lane) * in.layout.voxel;
    r01 = r00 + y, r10 = r00 + z, r11 = r10 + y;
    wz = lane_of(corner.wz, lane), wy = lane_of(corner.wy, lane), wx = lane_of(corner.wx, lane);
  }

  // Block b of the channels.
  DR_HD Values at(int b) const {
    const Index low = b * block, high = low + next;
    const Block a00 = load_block(r00 + low), a01 = load_block(r01 + low);
    const Block a10 = load_block(r10 + low), a11 = load_block(r11 + low);
    const Block d00 = load_block(r00 + high) - a00, d01 = load_block(r01 + high) - a01;
    const Block d10 = load_block(r10 + high) - a10, d11 = load_block(r11 + high) - a11;
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
  const float* weight = nullptr;  // (z, y, x): w, if it is known

  enum { kRepeatable = 1 };
  DR_OVER(fixed.shape)
  DR_HD int margin() const { return fits_lanes(moving.shape.voxels()) ? 0 : width(); }

  // distance(voxel, sample, slope) gives d and its derivative with respect to the sample's point.
  template <class V, class Distance>
  DR_HD void evaluate(int row, int x, const Distance& distance) const {
    enum { kCount = LaneTraits<V>::kCount };
    const Index i = (Index)row * width() + x;
    V w = load<V>((weight != nullptr ? weight : fixed.weight) + i), value = {};
    Vec3Of<V> slope = {};
    // Most voxels of a body's surroundings have no weight.
    if (any_of(w > V{})) {
      const Vec3Of<V> p = u.point_of<V>(row, x, moving_offset);
      // The weight of the nearest voxel. The smallest weight of the eight voxels of a sample would
      // exclude voxels without weight altogether, but the rim of the body with them: of seven MR-CT
      // pairs, six stay as they are and the one with an empty margin falls from 0.73 to 0.66 Dice.
      if (weight == nullptr) w = w * nearest_or_zero(moving.weight, moving.shape, p);
      const CornerOf<V> corner(moving.shape, p);
      float distances[kCount] = {}, z[kCount] = {}, y[kCount] = {}, x_[kCount] = {};
      for (int k = 0; k < kCount; ++k) {
        if (!(lane_of(w, k) > 0.0f)) continue;
        Vec3 of_lane;
        distances[k] = distance(i + k, FeatureSample(moving, corner, k), of_lane);
        z[k] = of_lane.z, y[k] = of_lane.y, x_[k] = of_lane.x;
      }
      value = load<V>(distances);
      slope = {load<V>(z), load<V>(y), load<V>(x_)};
    }
    const V trust = trust_of(value, trust_cost);
    if (overlap != nullptr) store(overlap + i, w);
    if (energy != nullptr) store(energy + i, w * trust * value);
    if (gradient == nullptr) return;
    const V force = w * scale * trust * trust;
    const Vec3& per_mm = u.index_per_mm;
    store_vec3_of<V>(gradient + 3 * i, {force * (slope.z * per_mm.z), force * (slope.y * per_mm.y),
                                        force * (slope.x * per_mm.x)});
  }
};

// d = |M - F|^2, summed over channels.
struct FeatureDifference : FeatureTerm {
  DR_HD void operator()(int row, int x) const { lanes<float>(row, x); }
  template <class V>
  DR_HD void lanes(int row, int x) const {
    evaluate<V>(row, x, *this);
  }

  DR_HD float operator()(Index i, const FeatureSample& sample, Vec3& slope) const {
    ChannelSum sum = {}, sz = {}, sy = {}, sx = {};
    for (int b = 0; b < fixed.blocks(); ++b) {
      const FeatureSample::Values m = sample.at(b);
      const Block r = m.value - fixed.block(i, b);
      add_products(sum, r, r);
      add_products(sz, r, m.z);
      add_products(sy, r, m.y);
      add_products(sx, r, m.x);
    }
    slope = {2.0f * total(sz), 2.0f * total(sy), 2.0f * total(sx)};
    return total(sum);
  }
};

// d = 2 n (1 - F.M / (|F| |M|)), where n is the mean of |F|^2. For vectors of this norm d is the
// squared difference, so that one weight serves both. A thousandth of n is added to the squared
// norms because the direction of a vector close to 0 is noise.
struct FeatureCosine : FeatureTerm {
  const float* mean_square;  // n

  DR_HD void operator()(int row, int x) const { lanes<float>(row, x); }
  template <class V>
  DR_HD void lanes(int row, int x) const {
    evaluate<V>(row, x, *this);
  }

  // d(F.M / |M|) = (F - (F.M / |M|^2) M) . dM / |M|. A second pass over the channels takes fewer
  // registers than nine sums in one pass.
  DR_HD float operator()(Index i, const FeatureSample& sample, Vec3& slope) const {
    ChannelSum ff = {}, fm = {}, mm = {};
    for (int k = 0; k < fixed.blocks(); ++k) {
      const Block a = fixed.block(i, k), b = sample.at(k).value;
      add_products(ff, a, a);
      add_products(fm, a, b);
      add_products(mm, b, b);
    }
    const float n = *mean_square, guard = max_of(1e-3f * n, 1e-12f);
    const float product = total(fm), square = total(mm) + guard;
    const float share = 1.0f / sqrtf((total(ff) + guard) * square), along = product / square;
    ChannelSum sz = {}, sy = {}, sx = {};
    for (int k = 0; k < fixed.blocks(); ++k) {
      const FeatureSample::Values m = sample.at(k);
      const Block across = fixed.block(i, k) - along * m.value;
      add_products(sz, across, m.z);
      add_products(sy, across, m.y);
      add_products(sx, across, m.x);
    }
    const float unit = 2.0f * n;
    slope = (-unit * share) * Vec3{total(sz), total(sy), total(sx)};
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
    ChannelSum sum = {};
    for (int b = 0; b < in.blocks(); ++b) {
      const Block f = in.block(i, b);
      add_products(sum, f, f);
    }
    out[i] = in.weight[i] * total(sum);
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
    out[i] = half_to_float(in.features[in.layout.at(i, channel / kBlock) + channel % kBlock]);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_SIMILARITY_H_
