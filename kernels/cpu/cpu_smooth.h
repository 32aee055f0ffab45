// Separable smoothing in one sweep, tuned for the caches of a CPU; it gives the same results as
// src/passes.h.
#ifndef DINOREG_CPU_CPU_SMOOTH_H_
#define DINOREG_CPU_CPU_SMOOTH_H_

#include <type_traits>

#include "launch.h"
#include "passes.h"

DR_NAMESPACE_BEGIN

// a * b + c, rounded once where the processor can. Of the two products in an unrolled
// w0 * a + w1 * b the compiler would be free to round either; the generic pass rounds the first.
DR_HD float multiply_add(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
DR_HD Lanes multiply_add(const Lanes& a, const Lanes& b, const Lanes& c) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// run(radius), with a small radius as a constant, so that the loop over the taps unrolls and
// weights and lines stay in registers.
template <class Run>
DR_HD void with_radius(int radius, const Run& run) {
  switch (radius) {
    case 1: return run(std::integral_constant<int, 1>());
    case 2: return run(std::integral_constant<int, 2>());
    case 3: return run(std::integral_constant<int, 3>());
    case 4: return run(std::integral_constant<int, 4>());
    case 5: return run(std::integral_constant<int, 5>());
    default: return run(radius);
  }
}

// at(V{}, x) along a row, where V is a vector or a single number. The last vector overlaps the one
// before it, so an element may be computed twice; rows shorter than a vector take single numbers.
template <class At>
DR_HD void over_row(Index width, const At& at) {
  Index x = 0;
  for (; x + kLanes <= width; x += kLanes) at(Lanes{}, x);
  if (x < width && width >= kLanes) {
    at(Lanes{}, width - kLanes);
    x = width;
  }
  for (; x < width; ++x) at(0.0f, x);
}

// The weighted sum of neighbouring lines (or planes) of `width` numbers around line i of n.
inline void smooth_across(const float* lines, Index width, int i, int n, const Taps& taps,
                          float* out) {
  with_radius(taps.radius, [&](auto radius) {
    const float* low[kMaxTapRadius + 1];
    const float* high[kMaxTapRadius + 1];
    float weight[kMaxTapRadius + 1];
    for (int t = 0; t <= radius; ++t) {
      low[t] = lines + width * reflect(i - t, n);
      high[t] = lines + width * reflect(i + t, n);
      weight[t] = taps.weight[t];
    }
    over_row(width, [&](auto zero, Index x) {
      typedef decltype(zero) V;
      V sum = weight[0] * load<V>(low[0] + x);
      for (int t = 1; t <= radius; ++t)
        sum = multiply_add(splat<V>(weight[t]), load<V>(low[t] + x) + load<V>(high[t] + x), sum);
      store(out + x, sum);
    });
  });
}

// The same along a line of n voxels of `components` numbers. The line is continued beyond its ends
// in place, so it needs room for taps.radius voxels on both sides and for one more vector, which is
// read as well and must not hold subnormal numbers.
inline void smooth_along(float* line, int n, int components, const Taps& taps, float* out) {
  const int width = n * components;
  with_radius(taps.radius, [&](auto radius) {
    for (int t = 1; t <= radius; ++t) {
      const int low = t <= n ? t - 1 : reflect(-t, n);
      const int high = t <= n ? n - t : reflect(n - 1 + t, n);
      for (int c = 0; c < components; ++c) {
        line[c - t * components] = line[low * components + c];
        line[(n - 1 + t) * components + c] = line[high * components + c];
      }
    }
    float weight[kMaxTapRadius + 1];
    for (int t = 0; t <= radius; ++t) weight[t] = taps.weight[t];
    auto at = [&](int x) {
      Lanes sum = weight[0] * load<Lanes>(line + x);
      for (int t = 1; t <= radius; ++t)
        sum = multiply_add(
            splat<Lanes>(weight[t]),
            load<Lanes>(line + x - t * components) + load<Lanes>(line + x + t * components), sum);
      return sum;
    };
    int x = 0;
    for (; x + kLanes <= width; x += kLanes) store(out + x, at(x));
    if (x == width) return;
    const Lanes last = at(x);
    memcpy(out + x, &last, sizeof(float) * (width - x));
  });
}

// One sweep over the planes: the z taps read planes that are still in the second-level cache, and y
// and x work on one plane in it. Three passes through memory took 2.4 times as long (96 x 80 x 96 x
// 3 on two Zen 5 cores).
inline void smooth_pass(const CpuLauncher& launch, const SmoothPass& p) {
  enum { kLongest = 3 * (32768 + 2 * kMaxTapRadius) + kLanes };  // capi.cpp allows 32768 voxels
  const int planes = p.batch * p.shape.z, width = p.shape.x * p.components;
  const Index plane = (Index)p.shape.y * width;
  launch.for_each(planes, plane * planes, [&](int i, int worker) {
    const int b = i / p.shape.z, z = i - b * p.shape.z;
    float* tmp = p.tmp + plane * (launch.threads() <= planes ? worker : i);
    float* out = p.out + plane * i;
    smooth_across(p.in + plane * p.shape.z * b, plane, z, p.shape.z, p.taps.z, tmp);
    float buffer[kLongest];
    float* line = buffer + kMaxTapRadius * p.components;
    // Numbers left on the stack may be subnormal. On rows of 24 voxels, where they are half of the
    // last vector, computing with them took half of the search's time.
    float* end = line + width + p.taps.x.radius * p.components;
    for (int k = 0; k < kLanes; ++k) end[k] = 0.0f;
    for (int y = 0; y < p.shape.y; ++y) {
      smooth_across(tmp, width, y, p.shape.y, p.taps.y, line);
      smooth_along(line, p.shape.x, p.components, p.taps.x, out + (Index)y * width);
    }
  });
}

DR_NAMESPACE_END

#endif  // DINOREG_CPU_CPU_SMOOTH_H_
