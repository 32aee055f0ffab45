// Local normalised cross-correlation of two images under a displacement, with its exact gradient.
//
// Energy: sum over windows of n (1 - rho^2) or n (1 - rho), rho the correlation of fixed and warped
// values in a Gaussian window G, both weighted by w = w_f(p) w_m(nearest to p + u), n = G * w. The
// square makes it blind to the sign: a tissue may be bright in one image and dark in the other. A
// channel of features means the same in both, so its sign counts: with the square an edge would
// fit where it runs the other way. As in FeatureTerm the weight counts as a constant.
//   rho^2 = c^2 / (v_f v_m), c = G*(w F M)/n - a b, a = G*(w F)/n, b = G*(w M)/n, ...
//   dE/dM(q) = w (F (G*A) + M (G*B) + G*C), B = -A c / v_m, C = -(A a + B b),
//   A = -2 c / (v_f v_m) of the square, else -1 / sqrt(v_f v_m);
// n cancels, because a window's derivative by M(q) holds G(p - q) w(q) / n(p).
#ifndef DINOREG_CORRELATION_H_
#define DINOREG_CORRELATION_H_

#include "dinoreg/sample.h"

DR_NAMESPACE_BEGIN

// The warped moving image and the weight of each fixed voxel.
struct WarpIntensity {
  const float* fixed_weight;
  Shape shape;
  const float* moving;  // (z', y', x')
  const float* moving_weight;
  Shape moving_shape;
  Vec3 moving_offset;  // index of the moving grid's first voxel on the fixed grid
  const float* field;  // (z, y, x, 3), mm along the grid's axes
  Vec3 index_per_mm;
  float* warped;  // (z, y, x)
  float* weight;  // (z, y, x)

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int z = row / shape.y, y = row - z * shape.y;
    const Index i = (Index)row * shape.x + x;
    const Vec3 p = (Vec3{(float)z, (float)y, (float)x} - moving_offset) +
                   load_vec3(field + 3 * i) * index_per_mm;
    weight[i] = fixed_weight[i] * nearest_or_zero(moving_weight, moving_shape, p);
    warped[i] = sample_scalar(moving, moving_shape, p);
  }
};

// out = w a b; a factor that is null counts as 1.
struct WeightedProduct {
  enum { kRepeatable = 1 };  // computing an element twice does no harm
  const float* weight;
  const float* a;
  const float* b;
  Shape shape;
  float* out;

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }
  DR_HD void operator()(int row, int x) const { lanes<float>(row, x); }

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const Index i = (Index)row * shape.x + x;
    V value = load<V>(weight + i);
    if (a != nullptr) value = value * load<V>(a + i);
    if (b != nullptr) value = value * load<V>(b + i);
    store(out + i, value);
  }
};

// Window sums (6, z, y, x) of w, wF, wM, wFF, wFM, wMM -> A, B, C in the place of the first three,
// the energy in that of the fourth. rho = cov / sqrt((var F + noise^2) var M): noise beside the
// variance of the warped image, too, would pay for contrast that grows, not for a better match.
struct CorrelationFactors {
  enum { kRepeatable = 0 };  // works in place
  float* sums;
  Shape shape;
  float noise;  // variance of F below its square counts as noise
  bool squared;  // 1 - rho^2, else 1 - rho
  const float* unit;  // of the variance; null: 1

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }
  DR_HD void operator()(int row, int x) const { lanes<float>(row, x); }

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
    // A thousandth of it keeps rounding from being divided by itself.
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
  const float* fixed;  // (z, y, x)
  const float* weight;  // of WarpIntensity
  Shape shape;
  const float* moving;  // (z', y', x')
  Shape moving_shape;
  Vec3 moving_offset;
  const float* field;  // (z, y, x, 3), mm along the grid's axes
  Vec3 index_per_mm;
  const float* factors;  // (3, z, y, x): A, B, C smoothed
  float scale;
  const float* unit;  // of the scale; null: 1
  float* gradient;  // (z, y, x, 3), 1/mm

  DR_HD int rows() const { return shape.rows(); }
  DR_HD int width() const { return shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int z = row / shape.y, y = row - z * shape.y;
    const Index i = (Index)row * shape.x + x, n = shape.voxels();
    const float w = weight[i];
    if (w <= 0.0f) return;
    const Vec3 p = (Vec3{(float)z, (float)y, (float)x} - moving_offset) +
                   load_vec3(field + 3 * i) * index_per_mm;
    Vec3 slope;
    const float value = sample_with_slope(moving, moving_shape, p, slope);
    const float weighted = unit != nullptr ? scale * *unit * w : scale * w;
    const float force =
        weighted * (fixed[i] * factors[i] + value * factors[n + i] + factors[2 * n + i]);
    float* to = gradient + 3 * i;
    store_vec3(to, load_vec3(to) + force * (slope * index_per_mm));
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_CORRELATION_H_
