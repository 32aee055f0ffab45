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
#include "dinoreg/smooth.h"

DR_NAMESPACE_BEGIN

// Two images in register or on the way there, on the grids of the fixed and the moving image.
struct ImagePair {
  const float *fixed, *fixed_weight;    // (z, y, x)
  const float *moving, *moving_weight;  // (z', y', x')
  Shape moving_shape;
  Vec3 moving_offset;  // see Displacement
  Displacement u;

  DR_HD bool fits() const { return fits_lanes(moving_shape.voxels()); }
  template <class V>
  DR_HD Vec3Of<V> point(int row, int x) const {
    return u.point_of<V>(row, x, moving_offset);
  }
};

// The warped moving image and the weight of each fixed voxel; both are 0 where the fixed image has
// no weight.
struct WarpIntensity {
  ImagePair pair;
  float* warped;  // (z, y, x)
  float* weight;  // (z, y, x)

  enum { kRepeatable = 1 };
  DR_OVER(pair.u.shape)
  DR_HD int margin() const { return pair.fits() ? 0 : width(); }
  DR_HD void operator()(int row, int x) const { lanes<float>(row, x); }

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const Index i = (Index)row * width() + x;
    V w = load<V>(pair.fixed_weight + i), value = {};
    if (any_of(w > V{})) {
      const Vec3Of<V> p = pair.point<V>(row, x);
      w = w * nearest_or_zero(pair.moving_weight, pair.moving_shape, p);
      value = CornerOf<V>(pair.moving_shape, p).sample(pair.moving, 1);
    }
    store(weight + i, w);
    store(warped + i, value);
  }
};

// A weight times `factors` images.
template <int factors>
struct WeightedProduct {
  const float *weight, *first, *second;

  template <class V>
  DR_HD V at(Index i) const {
    V value = load<V>(weight + i);
    if constexpr (factors > 0) value = value * load<V>(first + i);
    if constexpr (factors > 1) value = value * load<V>(second + i);
    return value;
  }
};

// The source of the windows: w, wF, wM, wFF, wFM and wMM.
struct WeightedProducts {
  const float *weight, *fixed, *warped;  // (z, y, x)

  enum { kCount = 6, kSameNumbers = 1 };

  template <class Use>
  DR_HD void with_array(int array, const Use& use) const {
    const float* const first = array == 2 || array == 5 ? warped : fixed;
    const float* const second = array == 3 ? fixed : warped;
    if (array == 0) return use(WeightedProduct<0>{weight, first, second});
    if (array < 3) return use(WeightedProduct<1>{weight, first, second});
    use(WeightedProduct<2>{weight, first, second});
  }
};

// Makes A, B, C and the energy of the window sums of WeightedProducts. rho =
// cov / sqrt((var F + noise^2) var M): noise added to the variance of the warped image as well
// would reward a growing contrast instead of a better match.
struct CorrelationFactors {
  Shape shape;
  float noise;                  // variance of F below its square is taken as noise
  bool squared;                 // 1 - rho^2, otherwise 1 - rho
  const float* unit = nullptr;  // of the variance; null: 1
  float* factors = nullptr;     // (3, z, y, x)
  float* energy = nullptr;      // (z, y, x); null: not wanted

  enum { kTogether = WeightedProducts::kCount };
  DR_HD bool fits() const { return true; }

  template <class V>
  DR_HD void put(int row, int x, const V* sums) const {
    const Index n = shape.voxels(), i = (Index)row * shape.x + x;
    const V total = sums[0];
    const V share = 1.0f / max_of(total, splat<V>(1e-12f));
    const V mean_f = share * sums[1], mean_m = share * sums[2];
    const float least = unit != nullptr ? max_of(noise * noise * *unit, 1e-12f) : noise * noise;
    const V zero = V{};
    const V var_f = max_of(share * sums[3] - mean_f * mean_f, zero) + least;
    const V cov = share * sums[4] - mean_f * mean_m;
    // A thousandth of the noise keeps rounding errors from being divided by one another.
    const V var_m = max_of(share * sums[5] - mean_m * mean_m, zero) + 1e-3f * least;
    const V by_f = squared ? -2.0f * cov / (var_f * var_m) : -1.0f / root(var_f * var_m);
    const V by_m = -by_f * cov / var_m;
    store(factors + i, by_f);
    store(factors + n + i, by_m);
    store(factors + 2 * n + i, -(by_f * mean_f + by_m * mean_m));
    if (energy != nullptr) store(energy + i, total * (1.0f + (squared ? 0.5f : 1.0f) * by_f * cov));
  }
};

// gradient += scale * dE/du, of A, B and C smoothed.
struct AddCorrelationGradient {
  ImagePair pair;
  const float* weight;  // from WarpIntensity
  float scale;
  const float* unit = nullptr;  // of the scale; null: 1
  float* gradient = nullptr;    // (z, y, x, 3), 1/mm

  enum { kTogether = 3 };
  DR_HD bool fits() const { return pair.fits(); }

  template <class V>
  DR_HD void put(int row, int x, const V* factors) const {
    const Index i = (Index)row * pair.u.shape.x + x;
    const V w = load<V>(weight + i), zero = {};
    if (!any_of(w > zero)) return;
    V value[1], slope[3][1];
    CornerOf<V>(pair.moving_shape, pair.point<V>(row, x)).samples(pair.moving, 1, value, slope);
    const V weighted = unit != nullptr ? scale * *unit * w : scale * w;
    const V force =
        weighted * (load<V>(pair.fixed + i) * factors[0] + value[0] * factors[1] + factors[2]);
    const Vec3& per_mm = pair.u.index_per_mm;
    float* to = gradient + 3 * i;
    const Vec3Of<V> before = load_vec3_of<V>(to);
    // What lies under no weight may be anything, even NaN.
    store_vec3_of<V>(to, {before.z + (w > zero ? force * (slope[0][0] * per_mm.z) : zero),
                          before.y + (w > zero ? force * (slope[1][0] * per_mm.y) : zero),
                          before.x + (w > zero ? force * (slope[2][0] * per_mm.x) : zero)});
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_CORRELATION_H_
