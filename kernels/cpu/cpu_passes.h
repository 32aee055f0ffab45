// Passes tuned for the caches of a CPU; they give the same results as src/passes.h.
#ifndef DINOREG_CPU_CPU_PASSES_H_
#define DINOREG_CPU_CPU_PASSES_H_

#include "cpu_mind.h"
#include "cpu_smooth.h"

DR_NAMESPACE_BEGIN

// The most shifts that share a buffer, for any number of threads, so that their costs stay in the
// cache.
enum { kCpuGroup = kSmallestGroup };

inline int search_group(const CpuLauncher&, const Shifts& shifts, const Shape&) {
  return min_int(shifts.count_x(), kCpuGroup);
}

// Goes row by row, with all shifts of the group on each row. All but the first of them then find
// the row in the first-level cache, instead of every shift reading the features of the whole image
// from the third-level cache. The lines of a row are not computed from its number either: a coarse
// row is only two or three vectors long, and this took as long as its arithmetic. Together 93 -> 58
// ms for 729 shifts on a search grid of 32 x 27 x 32, smoothing and minimum included.
inline void shift_cost_pass(const CpuLauncher&, const ShiftCost& shared) {
  const ShiftCost op = shared;  // a local copy stays in registers, as no store can alias it
  const int width = op.shape.x;
  ShiftCost::Lines first[kCpuGroup];
  for (int k = 0; k < op.shift_count; ++k) first[k] = op.lines(k, 0, 0);
  for (int z = 0; z < op.shape.z; ++z)
    for (int y = 0; y < op.shape.y; ++y) {
      const Index row = (Index)z * op.padded.y + y, weight = row * op.padded.x;
      const Index to = ((Index)z * op.shape.y + y) * width;
      for (int k = 0; k < op.shift_count; ++k) {
        ShiftCost::Lines l = first[k];
        l.f += weight * op.channels, l.m += weight * op.channels;
        l.wf += weight, l.wm += weight, l.to += to;
        over_row(width, [&](auto zero, Index x) { op.cost<decltype(zero)>(l, (int)x); });
      }
    }
}

// Parts of the shifts run in parallel, each with its own running minimum, which takes one parallel
// region instead of five for every group. The minima are merged in order, so the number of threads
// changes nothing. At most this many threads help; fewer take larger groups in the same memory.
enum { kSearchParts = kCpuGroup };

// As many as any launcher needs, so that one workspace size serves all.
inline SearchBuffers search_buffers(const CpuLauncher&, const Shifts& shifts, const Shape& shape) {
  return {max_int(kCpuGroup, large_group(shifts, shape)), kSearchParts};
}

inline void search_pass(const CpuLauncher& launch, const SearchPass& p) {
  const Index n = p.cost.shape.voxels();
  const int shifts = p.cost.shifts.count();
  const int group = p.known ? (int)kCpuGroup : max_int(1, kCpuGroup / launch.threads());
  launch.for_each(kSearchParts, n * shifts, [&](int part, int worker) {
    const Index buffer = n * (launch.threads() <= kSearchParts ? worker * group : part);
    SearchPass mine = p;
    mine.raw += buffer;
    mine.tmp += buffer;
    if (!p.kept) mine.smoothed += buffer;
    mine.keep.shape = {p.cost.shape.z, 1, p.cost.shape.y * p.cost.shape.x};  // long rows
    mine.keep.best_cost += n * part;
    mine.keep.best_shift += n * part;
    const int first = (int)((Index)shifts * part / kSearchParts);
    const int last = (int)((Index)shifts * (part + 1) / kSearchParts);
    if (first == last) {
      for (Index i = 0; i < n; ++i) mine.keep.best_cost[i] = 3.4e38f;
      return;
    }
    search_range(CpuLauncher(1), mine, first, last, group);
  });
  float* cost = p.keep.best_cost;
  int* shift = p.keep.best_shift;
  for (int part = 1; part < kSearchParts; ++part)
    for (Index i = 0; i < n; ++i) {
      const bool better = cost[n * part + i] < cost[i];
      shift[i] = better ? shift[n * part + i] : shift[i];
      cost[i] = better ? cost[n * part + i] : cost[i];
    }
}

DR_NAMESPACE_END

#endif  // DINOREG_CPU_CPU_PASSES_H_
