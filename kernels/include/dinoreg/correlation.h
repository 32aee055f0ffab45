// Local normalised cross-correlation of two images under a displacement, with its exact gradient.
//
// The energy is the sum over windows of n (1 - rho^2) or n (1 - rho), where rho is the correlation
// of fixed and warped values in a Gaussian window G, both weighted by w = w_f(p) w_m(nearest to
// p + u), and n = G * w. The square ignores the sign: a tissue may be bright in one image and dark
// in the other. A channel of features has the same meaning in both images, so its sign counts;
// squared, an edge would also fit one that runs the other way. As in FeatureTerm, the weight is
// treated as a constant.
//   rho^2 = c^2 / (v_f v_m), c = G*(w F M)/n - a b, a = G*(w F)/n, b = G*(w M)/n, ...
//   dE/dM(q) = w (F (G*A) + M (G*B) + G*C), B = -A c / v_m, C = -(A a + B b),
//   A = -2 c / (v_f v_m) for the square, otherwise -1 / sqrt(v_f v_m);
// n cancels because the derivative of a window with respect to M(q) contains G(p - q) w(q) / n(p).
#ifndef DINOREG_CORRELATION_H_
#define DINOREG_CORRELATION_H_

#include "dinoreg/sample.h"

DR_NAMESPACE_BEGIN

// The warped moving image and the weight of each fixed voxel.
struct WarpIntensity {
  const float* fixed_weight;
  const float* moving;  // (z', y', x')
  const float* moving_weight;
  Shape moving_shape;
  Vec3 moving_offset;  // see Displacement
  Displacement u;
  float* warped;  // (z, y, x)
  float* weight;  // (z, y, x)

  enum { kRepeatable = 1 };
  DR_OVER(u.shape)
  DR_HD int margin() const { return fits_lanes(moving_shape.voxels()) ? 0 : width(); }

  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * width() + x;
    const Vec3 p = u.point(row, x, moving_offset);
    weight[i] = fixed_weight[i] * nearest_or_zero(moving_weight, moving_shape, p);
    warped[i] = sample<float>(moving, moving_shape, p);
  }

  template <class V>
  DR_HD void lanes(int row, int x) const {
    if constexpr (LaneTraits<V>::kCount == 1) return (*this)(row, x);
    const Index i = (Index)row * width() + x;
    const Vec3Of<V> p = u.point_of<V>(row, x, moving_offset);
    store(weight + i, load<V>(fixed_weight + i) * nearest_or_zero(moving_weight, moving_shape, p));
    store(warped + i, CornerOf<V>(moving_shape, p).sample(moving, 1));
  }
};

// out = weight * a * b; a null factor counts as 1.
struct WeightedProduct {
  const float* weight;
  const float *a, *b;
  Shape shape;
  float* out;

  DR_OVER(shape)
  DR_LANES(true)

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const Index i = (Index)row * shape.x + x;
    V value = load<V>(weight + i);
    if (a != nullptr) value = value * load<V>(a + i);
    if (b != nullptr) value = value * load<V>(b + i);
    store(out + i, value);
  }
};

// Replaces the first four window sums (6, z, y, x) of w, wF, wM, wFF, wFM, wMM by A, B, C and the
// energy. rho = cov / sqrt((var F + noise^2) var M): noise added to the variance of the warped
// image as well would reward a growing contrast instead of a better match.
struct CorrelationFactors {
  float* sums;
  Shape shape;
  float noise;                  // variance of F below its square is taken as noise
  bool squared;                 // 1 - rho^2, otherwise 1 - rho
  const float* unit = nullptr;  // of the variance; null: 1

  DR_OVER(shape)
  DR_LANES(false)

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const Index n = shape.voxels();
    float* at = sums + (Index)row * shape.x + x;
    const V total = load<V>(at);
    const V share = 1.0f / max_of(total, splat<V>(1e-12f));
    const V mean_f = share * load<V>(at + n), mean_m = share * load<V>(at + 2 * n);
    const float least = unit != nullptr ? max_of(noise * noise * *unit, 1e-12f) : noise * noise;
    const V zero = V{};
    const V var_f = max_of(share * load<V>(at + 3 * n) - mean_f * mean_f, zero) + least;
    const V cov = share * load<V>(at + 4 * n) - mean_f * mean_m;
    // A thousandth of the noise keeps rounding errors from being divided by one another.
    const V var_m = max_of(share * load<V>(at + 5 * n) - mean_m * mean_m, zero) + 1e-3f * least;
    const V by_f = squared ? -2.0f * cov / (var_f * var_m) : -1.0f / root(var_f * var_m);
    const V by_m = -by_f * cov / var_m;
    store(at, by_f);
    store(at + n, by_m);
    store(at + 2 * n, -(by_f * mean_f + by_m * mean_m));
    store(at + 3 * n, total * (1.0f + (squared ? 0.5f : 1.0f) * by_f * cov));
  }
};

// gradient += scale * dE/du.
struct AddCorrelationGradient {
  const float* fixed;   // (z, y, x)
  const float* weight;  // from WarpIntensity
  const float* moving;  // (z', y', x')
  Shape moving_shape;
  Vec3 moving_offset;
  Displacement u;
  const float* factors;  // (3, z, y, x): A, B, C smoothed
  float scale;
  const float* unit = nullptr;  // of the scale; null: 1
  float* gradient = nullptr;    // (z, y, x, 3), 1/mm

  DR_OVER(u.shape)
  DR_HD void operator()(int row, int x) const {
    const Index i = u.shape.at(u.shape.voxel(row, x)), n = u.shape.voxels();
    const float w = weight[i];
    if (w <= 0.0f) return;
    float slope[3];
    const Vec3 p = u.point(row, x, moving_offset);
    const float value = sample_with_slopes<float>(moving, moving_shape, p, slope);
    const float weighted = unit != nullptr ? scale * *unit * w : scale * w;
    const float force =
        weighted * (fixed[i] * factors[i] + value * factors[n + i] + factors[2 * n + i]);
    float* to = gradient + 3 * i;
    store_vec3(to, load_vec3(to) + force * (load_vec3(slope) * u.index_per_mm));
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_CORRELATION_H_
