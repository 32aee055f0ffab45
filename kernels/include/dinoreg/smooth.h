// Separable smoothing along one axis with symmetric taps and half-sample symmetric borders.
#ifndef DINOREG_SMOOTH_H_
#define DINOREG_SMOOTH_H_

#include "dinoreg/grid.h"

DR_NAMESPACE_BEGIN

enum { kMaxTapRadius = 16 };  // a Gaussian of up to 6.4 voxels; wider ones are cut off

// weight[0] + 2 * (weight[1] + ... + weight[radius]) = 1.
struct Taps {
  int radius;
  float weight[kMaxTapRadius + 1];
};

// The array is seen as (outer, n, inner) and smoothed along n. Smoothing the x axis of a field
// (z, y, x, 3) has inner = 3.
struct Smooth {
  enum { kRepeatable = 1 };  // computing an element twice does no harm
  const float* in;
  float* out;
  int outer, n, inner;
  Taps taps;
  bool along_row;  // rows run over n * inner elements (the x axis), else over inner

  DR_HD int rows() const { return along_row ? outer : outer * n; }
  DR_HD int width() const { return along_row ? n * inner : inner; }
  // Elements of a row that need no look at the border: [margin, width - margin).
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

DR_NAMESPACE_END

#endif  // DINOREG_SMOOTH_H_
