// Passes tuned for a CPU's caches; same results as src/passes.h.
#ifndef DINOREG_CPU_CPU_PASSES_H_
#define DINOREG_CPU_CPU_PASSES_H_

#include <omp.h>

#include "launch.h"
#include "passes.h"

DR_NAMESPACE_BEGIN

// One sweep over the planes: z taps read planes that are still in the second-level cache, y and x
// work on one plane in it. 96 x 80 x 96 x 3, two Zen 5 cores: three passes through memory took
// 2.4 times as long.
inline void smooth_pass(const CpuLauncher& launch, const SmoothPass& p) {
  const int planes = p.batch * p.shape.z, line = p.shape.x * p.components;
  const Index plane = (Index)p.shape.y * line;
  launch.for_each(planes, plane * planes, [&](int i) {
    const int b = i / p.shape.z, z = i - b * p.shape.z;
    float* tmp = p.tmp + plane * (launch.threads() <= planes ? omp_get_thread_num() : i);
    float* out = p.out + plane * i;
    const float* volume = p.in + plane * p.shape.z * b;
    // The op's row z of an output that starts at row 0.
    CpuLauncher::run_row(Smooth{volume, tmp - plane * z, 1, p.shape.z, (int)plane, p.z}, z,
                         (int)plane, 0);
    const Smooth along_y = {tmp, out, 1, p.shape.y, line, p.y};
    for (int y = 0; y < p.shape.y; ++y) CpuLauncher::run_row(along_y, y, line, 0);
    CpuLauncher::smooth_rows(out, p.shape.y, p.shape.x, p.components, p.x);
  });
}

// Parts of the shifts run side by side, each in its own cache with its own running minimum: one
// parallel region instead of five for every group. Minima are joined in order, so the number of
// threads changes nothing. At most this many threads help.
enum { kSearchParts = kLargestGroup };

inline SearchBuffers search_buffers(const CpuLauncher&, const Shifts&) {
  return {kSearchParts, kSearchParts};
}

inline void search_pass(const CpuLauncher& launch, const SearchPass& p) {
  const Index n = p.cost.shape.voxels();
  const int shifts = p.cost.shifts.count();
  launch.for_each(kSearchParts, n * shifts, [&](int part) {
    SearchPass mine = p;
    mine.raw += n * part;
    mine.smoothed += n * part;
    mine.tmp += n * part;
    mine.keep.best_cost += n * part;
    mine.keep.best_shift += n * part;
    const int first = (int)((Index)shifts * part / kSearchParts);
    const int last = (int)((Index)shifts * (part + 1) / kSearchParts);
    if (first == last) {
      for (Index i = 0; i < n; ++i) mine.keep.best_cost[i] = 3.4e38f;
      return;
    }
    search_range(CpuLauncher(1), mine, first, last, 1);
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
