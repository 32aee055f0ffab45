// Sums and maxima over a whole array, and histograms. Sums are added in a fixed order, and counts
// are whole numbers, so the results do not depend on the number of threads.
#ifndef DINOREG_PARTIAL_H_
#define DINOREG_PARTIAL_H_

#include "dinoreg/op.h"

DR_NAMESPACE_BEGIN

// A partial sum is that of every 32nd element: neighbours for the threads of a warp, and vectors on
// a CPU.
enum { kSumLanes = 32, kSumRows = 8, kSumChunk = 64 * kSumLanes };

// Whole numbers may be added by several threads in any order.
typedef unsigned long long Count;
DR_HD void add_count(Count* to, Count n) {
#if defined(__CUDA_ARCH__)
  atomicAdd(to, n);
#else
  __atomic_fetch_add(to, n, __ATOMIC_RELAXED);
#endif
}

// The start of a sum, or of a maximum.
DR_HD double nothing_yet(bool is_sum) { return is_sum ? 0.0 : -1e300; }

// Partial results over groups of rows. Terms has `shape` and `kCount` numbers, of which the first
// `kSums` are sums and the others maxima; terms(row, x, numbers) adds those of a voxel.
template <class Terms>
struct PartialRows {
  Terms terms;
  double* out;  // (kCount, groups, kSumLanes)

  DR_HD int rows() const { return divide_up(terms.shape.rows(), kSumRows); }
  DR_HD int width() const { return kSumLanes; }
  DR_HD void operator()(int group, int lane) const {
    double numbers[Terms::kCount];
    for (int k = 0; k < Terms::kCount; ++k) numbers[k] = nothing_yet(k < Terms::kSums);
    const int first = group * kSumRows, last = min_int(terms.shape.rows(), first + kSumRows);
    for (int row = first; row < last; ++row)
      for (int x = lane; x < terms.shape.x; x += kSumLanes) terms(row, x, numbers);
    for (int k = 0; k < Terms::kCount; ++k)
      out[((Index)k * rows() + group) * kSumLanes + lane] = numbers[k];
  }
};

// The same over chunks of a plain array of numbers: terms.add(value, numbers) for several at once.
template <class Terms>
struct PartialChunks {
  Terms terms;
  const float* in;  // (count)
  Index count;
  float* out;  // (kCount, chunks, kSumLanes)

  enum { kRepeatable = 1 };
  DR_HD int rows() const { return (int)((count + kSumChunk - 1) / kSumChunk); }
  DR_HD int width() const { return kSumLanes; }
  DR_HD void operator()(int chunk, int lane) const { lanes<float>(chunk, lane); }

  template <class V>
  DR_HD void lanes(int chunk, int lane) const {
    const Index first = (Index)chunk * kSumChunk;
    if (LaneTraits<V>::kCount > 1 && first + kSumChunk > count) {
      for (int k = 0; k < LaneTraits<V>::kCount; ++k) lanes<float>(chunk, lane + k);
      return;
    }
    const Index last = first + kSumChunk < count ? first + kSumChunk : count;
    V numbers[Terms::kCount];
    for (int k = 0; k < Terms::kCount; ++k) numbers[k] = splat<V>(k < Terms::kSums ? 0.0f : -3e38f);
    for (Index i = first + lane; i < last; i += kSumLanes) terms.add(load<V>(in + i), numbers);
    for (int k = 0; k < Terms::kCount; ++k)
      store(out + ((Index)k * rows() + chunk) * kSumLanes + lane, numbers[k]);
  }
};

// Folds each of `count` lists of partial results into `parts` of them: sums first, then maxima.
template <class T>
struct FoldParts {
  const T* in;  // (count, length)
  Index length;
  int count, sums, parts;
  double* out;     // (parts) for each list
  Index out_step;  // from one list to the next

  DR_HD int rows() const { return count; }
  DR_HD int width() const { return parts; }
  DR_HD void operator()(int k, int part) const {
    const T* list = in + k * length;
    double found = nothing_yet(k < sums);
    for (Index i = part; i < length; i += parts) {
      const double value = (double)list[i];
      found = k < sums ? found + value : value > found ? value : found;
    }
    out[k * out_step + part] = found;
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_PARTIAL_H_
