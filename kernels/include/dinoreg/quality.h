// What a registration measures of its own result: Jacobian, inverse consistency, misses and sums.
#ifndef DINOREG_QUALITY_H_
#define DINOREG_QUALITY_H_

#include "dinoreg/field.h"
#include "dinoreg/partial.h"

DR_NAMESPACE_BEGIN

// log(v) for v > 0 that are normal numbers, by a polynomial on sqrt(1/2)..sqrt(2); the relative
// error is below 2e-7; near v = 1, the absolute one is. The C library's logf would keep the loop
// around it from being vectorised. The coefficients are those of logf in Cephes (Moshier).
template <class V>
DR_HD V log_of(const V& v) {
  typedef typename LaneTraits<V>::Int Int;
  const Int bits = bits_as<Int>(v);
  const V half = bits_as<V>((bits & 0x007fffff) | 0x3f000000);  // 0.5 <= half < 1
  V power = to_float((bits >> 23) - 126);
  power = half < 0.707106781f ? power - 1.0f : power;
  const V x = half < 0.707106781f ? (half + half) - 1.0f : half - 1.0f;
  V p = x * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * x + 1.1676998740e-1f;
  p = p * x - 1.2420140846e-1f;
  p = p * x + 1.4249322787e-1f;
  p = p * x - 1.6668057665e-1f;
  p = p * x + 2.0000714765e-1f;
  p = p * x - 2.4999993993e-1f;
  p = p * x + 3.3333331174e-1f;
  const V square = x * x;
  return x + (p * x * square - 2.12194440e-4f * power - 0.5f * square) + 0.693359375f * power;
}

// Some rows of the determinant, counted from `first_row`.
struct JacobianRows {
  JacobianDeterminant all;  // whose `out` is not used
  int first_row, row_count;
  float* out;  // (row_count, x)

  enum { kRepeatable = 1 };
  DR_HD int rows() const { return row_count; }
  DR_HD int width() const { return all.shape.x; }
  DR_HD int margin() const { return all.margin(); }
  DR_HD void operator()(int row, int x) const {
    store(out + (Index)row * width() + x,
          all.value<float>(first_row + row, x, x > 0 ? 1 : 0, x < width() - 1 ? 1 : 0));
  }
  template <class V>
  DR_HD void lanes(int row, int x) const {
    store(out + (Index)row * width() + x, all.value<V>(first_row + row, x, 1, 1));
  }
};

// Of determinants: how many are folded (<= 0), how many are not, the sum of the logarithms of the
// latter and of their squares, both relative to the logarithm `centre`; the largest determinant,
// and the largest negative one.
struct JacobianTerms {
  // Squares of logarithms near a common value would lose the small differences between them.
  const float* centre;

  enum { kCount = 6, kSums = 4 };
  static constexpr float kLeast = 2e-9f;  // at and below it, a logarithm has no meaning

  template <class V>
  static DR_HD V log_of_determinant(const V& j) {
    return log_of<V>(max_of(j, splat<V>(kLeast)));
  }

  template <class V>
  DR_HD void add(const V& j, V* numbers) const {
    const V none = V{}, one = splat<V>(1.0f);
    const V log = log_of_determinant<V>(j) - splat<V>(*centre);
    numbers[0] = numbers[0] + (j <= none ? one : none);
    numbers[1] = numbers[1] + (j > splat<V>(kLeast) ? one : none);
    numbers[2] = numbers[2] + (j > splat<V>(kLeast) ? log : none);
    numbers[3] = numbers[3] + (j > splat<V>(kLeast) ? log * log : none);
    numbers[4] = max_of(j, numbers[4]);
    numbers[5] = max_of(none - j, numbers[5]);
  }
};

// The logarithm of the first determinant.
struct FirstLog {
  const float* determinants;
  float* out;

  DR_OVER_ONE
  DR_HD void operator()(int, int) const {
    *out = JacobianTerms::log_of_determinant<float>(*determinants);
  }
};

// Of an inverse's misses in mm, negative outside the field: how many lie inside, and how many of
// them are larger than a limit; the largest miss.
struct MissTerms {
  float limit;

  enum { kCount = 3, kSums = 2 };
  template <class V>
  DR_HD void add(const V& missed, V* numbers) const {
    const V none = V{}, one = splat<V>(1.0f);
    numbers[0] = numbers[0] + (missed < none ? none : one);
    numbers[1] = numbers[1] + (missed > splat<V>(limit) ? one : none);
    numbers[2] = max_of(missed, numbers[2]);
  }
};

// The sum of an array times 2^-40, which no finite values take beyond single precision.
struct ScaledSumTerms {
  static constexpr float kScale = 9.094947017729282e-13f;

  enum { kCount = 1, kSums = 1 };
  template <class V>
  DR_HD void add(const V& value, V* numbers) const {
    numbers[0] = numbers[0] + value * kScale;
  }
};

// |u(p) + v(p + u(p))| in mm: the sum over the voxels whose match lies on the grid, their number,
// and the largest.
struct ConsistencyTerms {
  Displacement u;
  const float* inverse;  // v, on the grid of u
  Shape shape;           // that grid

  enum { kCount = 3, kSums = 2 };
  DR_HD void operator()(int row, int x, double* numbers) const {
    const Vec3 p = u.point(row, x);
    const bool inside = within(p.z, shape.z) * within(p.y, shape.y) * within(p.x, shape.x) > 0.0f;
    if (!inside) return;
    const Vec3 loop = u.at(row, x) + sample<Vec3>(inverse, shape, p);
    const double error = (double)sqrtf(loop.z * loop.z + loop.y * loop.y + loop.x * loop.x);
    numbers[0] += error;
    numbers[1] += 1.0;
    numbers[2] = error > numbers[2] ? error : numbers[2];
  }
};

// out = a (b c): the product of several weights of each voxel.
struct MultiplyWeights {
  const float *a, *b, *c;  // c may be null
  Shape shape;
  float* out;  // may be one of them

  DR_OVER(shape)
  DR_LANES(false)
  template <class V>
  DR_HD void lanes(int row, int x) const {
    const Index i = (Index)row * width() + x;
    const V factor = c == nullptr ? load<V>(b + i) : load<V>(b + i) * load<V>(c + i);
    store(out + i, load<V>(a + i) * factor);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_QUALITY_H_
