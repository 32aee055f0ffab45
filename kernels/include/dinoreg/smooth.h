// Separable smoothing along one axis with symmetric taps and half-sample symmetric borders.
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

DR_NAMESPACE_END

#endif  // DINOREG_SMOOTH_H_
