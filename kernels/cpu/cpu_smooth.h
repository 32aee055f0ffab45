// Separable smoothing in one sweep, tuned for the caches of a CPU; it gives the same results as
// src/smoothing.h.
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

// For a lambda that the compiler might otherwise call, with its vectors in memory.
#define DR_INLINE __attribute__((always_inline))

// The radius of an unrolled loop, or the largest of the others: the room that it needs.
template <class Radius>
constexpr int largest_of() {
  if constexpr (std::is_same_v<Radius, int>) {
    return kMaxTapRadius;
  } else {
    return Radius::value;
  }
}

// run(k) with the constants 0 ... count - 1.
template <int count, class Run>
DR_HD void with_each(const Run& run) {
  if constexpr (count > 0) {
    with_each<count - 1>(run);
    run(std::integral_constant<int, count - 1>());
  }
}

// Neighbouring sums that share what they load: 4 + 2 r numbers for four sums of radius r, where
// each of them alone would load 2 r + 1.
enum { kShared = 4 };

// Lines (or planes) of an array, which begin at these places.
template <class Array>
struct Lines {
  Array numbers;
  const Index* starts;

  template <class V>
  DR_HD V at(int line, Index x) const {
    return numbers.template at<V>(starts[line] + x);
  }
};

// kShared weighted sums of neighbouring lines of `width` numbers, to out[0 ... kShared - 1]; line
// `radius` is the first sum's own. A function of its own, so that all sweeps share its code.
template <class Array>
void smooth_across(const Taps& taps, Index width, const Lines<Array> lines, float* const* out) {
  with_radius(taps.radius, [&](auto radius) {
    constexpr int kLargest = largest_of<decltype(radius)>();
    float weight[kLargest + 1];
    for (int t = 0; t <= radius; ++t) weight[t] = taps.weight[t];
    over_row(width, [&, lines](auto zero, Index x) DR_INLINE {
      typedef decltype(zero) V;
      if constexpr (std::is_same_v<decltype(radius), int>) {
        for (int i = 0; i < kShared; ++i) {
          const auto at = [&](int t) { return lines.template at<V>(i + radius + t, x); };
          V sum = weight[0] * at(0);
          for (int t = 1; t <= radius; ++t)
            sum = multiply_add(splat<V>(weight[t]), at(-t) + at(t), sum);
          store(out[i] + x, sum);
        }
      } else {
        V near[(int)kShared + 2 * kLargest];
        with_each<kShared + 2 * kLargest>([&](auto j)
                                              DR_INLINE { near[j] = lines.template at<V>(j, x); });
        with_each<kShared>([&](auto i) DR_INLINE {
          V sum = weight[0] * near[i + kLargest];
          with_each<kLargest>([&](auto before) DR_INLINE {
            constexpr int t = before + 1, own = i + kLargest;
            sum = multiply_add(splat<V>(weight[t]), near[own - t] + near[own + t], sum);
          });
          store(out[i] + x, sum);
        });
      }
    });
  });
}

// Continues a line of n voxels of `components` numbers beyond its ends, in place.
template <class Radius, class Components>
DR_HD void continue_line(float* line, int n, Components components, Radius radius) {
  for (int t = 1; t <= radius; ++t) {
    const int low = t <= n ? t - 1 : reflect(-t, n);
    const int high = t <= n ? n - t : reflect(n - 1 + t, n);
    for (int c = 0; c < components; ++c) {
      line[c - t * components] = line[low * components + c];
      line[(n - 1 + t) * components + c] = line[high * components + c];
    }
  }
}

// The numbers at p + offset, where p is aligned. A load across two cache lines takes twice as long;
// where every such load of a vector is one, they are made of the two aligned vectors that hold
// them.
template <int offset>
DR_HD Lanes load_beside(const float* p) {
  constexpr int rest = (offset % kLanes + kLanes) % kLanes;
  if constexpr (kLanes < 16 || rest == 0) return load<Lanes>(p + offset);
  const float* const first = p + (offset - rest);
  IntLanes from;
  for (int i = 0; i < kLanes; ++i) from[i] = i + rest;
  return __builtin_shuffle(load<Lanes>(first), load<Lanes>(first + kLanes), from);
}

// The weighted sums of numbers `components` apart, from p on.
template <class Radius, class Components>
DR_HD Lanes sum_along(const float* p, const float* weight, Radius radius, Components components) {
  Lanes sum = weight[0] * load<Lanes>(p);
  if constexpr (std::is_same_v<Radius, int> || std::is_same_v<Components, int>) {
    for (int t = 1; t <= radius; ++t)
      sum = multiply_add(splat<Lanes>(weight[t]),
                         load<Lanes>(p - t * components) + load<Lanes>(p + t * components), sum);
  } else {
    with_each<Radius::value>([&](auto before) DR_INLINE {
      constexpr int t = before + 1, offset = t * Components::value;
      sum = multiply_add(splat<Lanes>(weight[t]), load_beside<-offset>(p) + load_beside<offset>(p),
                         sum);
    });
  }
  return sum;
}

// One sweep over the planes, kShared at a time. Their sums along z go row by row into a ring of
// rows, which stays in the second-level cache, as soon as the sums along y need them; the sums
// along y of kShared rows go into lines in the first-level cache, and those along x to the sink.
// Three passes through memory took 2.4 times as long (96 x 80 x 96 x 3 on two Zen 5 cores).
template <class Source, class Sink>
class Sweep {
 public:
  Sweep(const Smoothing& smoothing, const Source& source, const Sink& sink)
      : s_(smoothing), source_(source), sink_(sink), width_(smoothing.width()),
        stride_(whole(width_)), before_(whole(s_.taps.x.radius * s_.components)),
        line_(2 * before_ + stride_ + kLanes),
        ring_(min_int(s_.shape.y, 2 * (kShared + s_.taps.y.radius))) {}

  // Planes z ... z + kShared - 1, as far as they exist, of array b and those taken with it.
  void operator()(int b, int z) const {
    float* const rows = thread_memory((size_t)kTogether * kShared * (ring_ * stride_ + line_));
    float* const lines = rows + kTogether * kShared * ring_ * stride_;
    // What is read beyond a line must not be a subnormal number. On rows of 24 voxels, where this
    // was half of the last vector, computing with them took half of the search's time.
    memset(lines, 0, sizeof(float) * kTogether * kShared * line_);
    Index planes[kShared + 2 * kMaxTapRadius];
    for (int j = 0; j < kShared + 2 * s_.taps.z.radius; ++j)
      planes[j] = (Index)reflect(z - s_.taps.z.radius + j, s_.shape.z) * s_.plane();
    int ready = 0;
    for (int y = 0; y < s_.shape.y; y += kShared) {
      const int wanted = min_int(y + kShared + s_.taps.y.radius, s_.shape.y);
      for (; ready < wanted; ++ready) sum_along_z(b, planes, ready, rows);
      for (int i = 0; i < kShared && z + i < s_.shape.z; ++i) {
        sum_along_y(rows + i * ring_ * stride_, y, lines);
        for (int q = 0; q < kShared && y + q < s_.shape.y; ++q)
          sum_along_x(lines + q * line_, (b / kTogether * s_.shape.z + z + i) * s_.shape.y + y + q);
      }
    }
  }

 private:
  static constexpr int kTogether = Sink::kTogether;

  static int whole(int numbers) { return (numbers + kLanes - 1) / kLanes * kLanes; }

  // Row y of kShared planes, to the ring (kTogether, kShared, rows).
  void sum_along_z(int b, const Index* planes, int y, float* rows) const {
    Index starts[kShared + 2 * kMaxTapRadius];
    for (int j = 0; j < kShared + 2 * s_.taps.z.radius; ++j)
      starts[j] = planes[j] + (Index)y * width_;
    for (int k = 0; k < kTogether; ++k) {
      float* out[kShared];
      for (int i = 0; i < kShared; ++i)
        out[i] = rows + ((Index)(k * kShared + i) * ring_ + y % ring_) * stride_;
      source_.with_array(b + k, [&](const auto& numbers) {
        smooth_across(s_.taps.z, width_, Lines<std::decay_t<decltype(numbers)>>{numbers, starts},
                      out);
      });
    }
  }

  // Rows y ... y + kShared - 1 of a plane, to lines (kTogether, kShared).
  void sum_along_y(const float* rows, int y, float* lines) const {
    Index starts[kShared + 2 * kMaxTapRadius];
    for (int j = 0; j < kShared + 2 * s_.taps.y.radius; ++j)
      starts[j] = (Index)(reflect(y - s_.taps.y.radius + j, s_.shape.y) % ring_) * stride_;
    for (int k = 0; k < kTogether; ++k) {
      float* out[kShared];
      for (int q = 0; q < kShared; ++q) out[q] = lines + (k * kShared + q) * line_ + before_;
      const Stored array = {rows + (Index)k * kShared * ring_ * stride_};
      smooth_across(s_.taps.y, width_, Lines<Stored>{array, starts}, out);
    }
  }

  // One line of each array, to the sink.
  void sum_along_x(float* lines, int row) const {
    switch (s_.components) {
      case 1: return sum_along_x(lines, row, std::integral_constant<int, 1>());
      case 3: return sum_along_x(lines, row, std::integral_constant<int, 3>());
      default: return sum_along_x(lines, row, s_.components);
    }
  }
  template <class Components>
  void sum_along_x(float* lines, int row, Components components) const {
    const Sink sink = sink_;  // a local copy stays in registers, as no store can alias it
    const Taps taps = s_.taps.x;
    const int n = s_.shape.x, width = width_;
    with_radius(taps.radius, [&](auto radius) {
      float* line[kTogether];
      for (int k = 0; k < kTogether; ++k) {
        line[k] = lines + k * kShared * line_ + before_;
        continue_line(line[k], n, components, radius);
      }
      float weight[largest_of<decltype(radius)>() + 1];
      for (int t = 0; t <= radius; ++t) weight[t] = taps.weight[t];
      for (int x = 0; x < width; x += kLanes) {
        Lanes sums[kTogether];
        for (int k = 0; k < kTogether; ++k)
          sums[k] = sum_along(line[k] + x, weight, radius, components);
        put(sink, row, x, width, sums);
      }
    });
  }

  static DR_HD void put(const Sink& sink, int row, int x, int width, const Lanes* sums) {
    if (x + kLanes <= width && sink.fits()) return sink.put(row, x, sums);
    for (int i = 0; i < kLanes && x + i < width; ++i) {
      float single[kTogether];
      for (int k = 0; k < kTogether; ++k) single[k] = sums[k][i];
      sink.put(row, x + i, single);
    }
  }

  const Smoothing s_;
  const Source source_;
  const Sink sink_;
  const int width_, stride_, before_, line_, ring_;
};

template <class Source, class Sink>
void smooth_into(const CpuLauncher& launch, const Smoothing& s, const Source& source,
                 const Sink& sink) {
  const Sweep<Source, Sink> sweep(s, source, sink);
  const int parts = divide_up(s.shape.z, kShared), groups = s.batch / Sink::kTogether;
  launch.for_each(groups * parts, s.batch * s.size(),
                  [&](int i, int) { sweep(i / parts * Sink::kTogether, i % parts * kShared); });
}

inline void smooth_pass(const CpuLauncher& launch, const SmoothPass& p) {
  const Smoothing s = smoothing_of(p);
  smooth_into(launch, s, FromArrays{p.in, s.size()}, ToArrays{p.out, s.width()});
}

DR_NAMESPACE_END

#endif  // DINOREG_CPU_CPU_SMOOTH_H_
