// Separable smoothing with symmetric taps and half-sample symmetric borders: along one axis, and
// where a smoothing along all three takes its numbers from and what becomes of them.
#ifndef DINOREG_SMOOTH_H_
#define DINOREG_SMOOTH_H_

#include "dinoreg/op.h"

DR_NAMESPACE_BEGIN

enum { kMaxTapRadius = 16 };  // fits a Gaussian of up to 6.4 voxels; wider ones are truncated

// weight[0] + 2 * (weight[1] + ... + weight[radius]) = 1.
struct Taps {
  int radius;
  float weight[kMaxTapRadius + 1];
};
struct Taps3 {
  Taps z, y, x;
};

// An array of numbers in memory.
struct Stored {
  const float* numbers;

  template <class V>
  DR_HD V at(Index i) const {
    return load<V>(numbers + i);
  }
};

// A source calls use(array) with one of several arrays of the same size, of which at<V>(i) gives
// number i. This one reads them; others compute them (correlation.h), possibly all from the same
// numbers.
struct FromArrays {
  const float* arrays;
  Index size;  // of each

  enum { kSameNumbers = 0 };

  template <class Use>
  DR_HD void with_array(int array, const Use& use) const {
    use(Stored{arrays + array * size});
  }
};

// A sink receives number `i` of a row of smoothed arrays, as many at once as it takes together.
// Rows are numbered through the arrays if it takes one at a time. This one stores the numbers;
// others use them without (correlation.h, adam.h).
struct ToArrays {
  float* arrays;
  int width;  // of a row

  enum { kTogether = 1 };
  DR_HD bool fits() const { return true; }  // whether it may be given several neighbours at once

  template <class V>
  DR_HD void put(int row, int i, const V* values) const {
    store(arrays + (Index)row * width + i, values[0]);
  }
};

// Smooths an array (outer, n, inner) along n. For the x axis of a field (z, y, x, 3), inner is 3.
struct Smooth {
  const float* in;
  float* out;
  int outer, n, inner;
  Taps taps;
  bool along_row;  // a row spans n * inner elements (the x axis), otherwise inner

  enum { kRepeatable = 1 };
  DR_HD int rows() const { return along_row ? outer : outer * n; }
  DR_HD int width() const { return along_row ? n * inner : inner; }
  DR_HD int margin() const { return along_row ? taps.radius * inner : 0; }

  DR_HD void operator()(int row, int x) const {
    if (x >= margin() && x < width() - margin()) return lanes<float>(row, x);
    const int i = x / inner, c = x - i * inner;
    const float* line = in + (Index)row * n * inner + c;
    float sum = taps.weight[0] * line[(Index)i * inner];
    for (int t = 1; t <= taps.radius; ++t)
      sum += taps.weight[t] *
             (line[(Index)reflect(i - t, n) * inner] + line[(Index)reflect(i + t, n) * inner]);
    out[(Index)row * n * inner + x] = sum;
  }

  template <class V>
  DR_HD void lanes(int row, int x) const {
    if (along_row) {
      const float* at = in + (Index)row * n * inner + x;
      V sum = taps.weight[0] * load<V>(at);
      for (int t = 1; t <= taps.radius; ++t)
        sum += taps.weight[t] * (load<V>(at - t * inner) + load<V>(at + t * inner));
      store(out + (Index)row * width() + x, sum);
    } else {
      const int o = row / n, i = row - o * n;
      const float* plane = in + (Index)o * n * inner + x;
      V sum = taps.weight[0] * load<V>(plane + (Index)i * inner);
      for (int t = 1; t <= taps.radius; ++t)
        sum += taps.weight[t] * (load<V>(plane + (Index)reflect(i - t, n) * inner) +
                                 load<V>(plane + (Index)reflect(i + t, n) * inner));
      store(out + (Index)row * width() + x, sum);
    }
  }
};

// Smooths an array of a source along z, across its n planes.
template <class Source>
struct SmoothFrom {
  Source source;
  int array;
  float* out;
  int n, plane;  // planes, and the numbers of each
  Taps taps;

  DR_HD int rows() const { return n; }
  DR_HD int width() const { return plane; }
  DR_LANES(true)

  template <class V>
  DR_HD void lanes(int z, int i) const {
    source.with_array(array, [&](const auto& numbers) {
      const auto at = [&](int k) {
        return numbers.template at<V>((Index)reflect(k, n) * plane + i);
      };
      V sum = taps.weight[0] * at(z);
      for (int t = 1; t <= taps.radius; ++t) sum += taps.weight[t] * (at(z - t) + at(z + t));
      store(out + (Index)z * plane + i, sum);
    });
  }
};

// Passes smoothed arrays to a sink.
template <class Sink>
struct PutInto {
  const float* arrays;
  Index size;  // of each
  int row_count, x;
  Sink sink;

  enum { kRepeatable = 0 };
  DR_HD int rows() const { return row_count; }
  DR_HD int width() const { return x; }
  DR_HD int margin() const { return sink.fits() ? 0 : x; }
  DR_HD void operator()(int row, int i) const { lanes<float>(row, i); }

  template <class V>
  DR_HD void lanes(int row, int i) const {
    V values[Sink::kTogether];
    DR_UNROLL(6)
    for (int k = 0; k < Sink::kTogether; ++k)
      values[k] = load<V>(arrays + k * size + (Index)row * x + i);
    sink.put(row, i, values);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_SMOOTH_H_
