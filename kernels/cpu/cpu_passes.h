// Passes tuned for the caches of a CPU; they give the same results as src/passes.h.
#ifndef DINOREG_CPU_CPU_PASSES_H_
#define DINOREG_CPU_CPU_PASSES_H_

#include "cpu_smooth.h"

DR_NAMESPACE_BEGIN

// Copies elements [first, first + count) of a line of n; beyond its ends, the line keeps the values
// there.
inline void padded_line(const float* line, int n, int first, int count, float* out) {
  const int from = clamp_int(-first, 0, count), to = clamp_int(n - first, from, count);
  for (int i = 0; i < from; ++i) out[i] = line[0];
  if (to > from) memcpy(out + from, line + first + from, sizeof(float) * (to - from));
  for (int i = to; i < count; ++i) out[i] = line[n - 1];
}

// One row of patch distances. The copies of both lines are continued beyond the border: the
// elements that would need a border case, twelve of 200, took as long as all others.
inline void mind_distance_row(const MindDistanceX& op, int row, float* a, float* b) {
  const MindDistanceX::Lines l = op.lines(row);
  const int width = op.width(), first = -op.mind.dilation.x - op.mind.radius.x;
  const int count = width + 2 * op.mind.radius.x;
  padded_line(l.first, op.shape.x, first + l.first_x, count, a);
  padded_line(l.second, op.shape.x, first + l.second_x, count, b);
  float* out = op.out + (Index)row * width;
  with_radius(op.mind.radius.x, [&](auto radius) {
    over_row(width, [&](auto zero, Index x) {
      typedef decltype(zero) V;
      V sum = V{};
      for (int t = 0; t <= 2 * radius; ++t) {
        const V d = load<V>(a + x + t) - load<V>(b + x + t);
        sum = multiply_add(d, d, sum);
      }
      store(out + x, sum);
    });
  });
}

// The sum of 2 radius + 1 neighbouring lines (or planes) of `width` numbers, the first at `in`.
inline void box_across(const float* in, Index width, int radius, float* out) {
  with_radius(radius, [&](auto r) {
    over_row(width, [&](auto zero, Index x) {
      typedef decltype(zero) V;
      V sum = V{};
      for (int t = 0; t <= 2 * r; ++t) sum += load<V>(in + t * width + x);
      store(out + x, sum);
    });
  });
}

// Takes one plane of one image at a time, so that its row sums are still in the cache when they are
// added up along y.
inline void mind_distance_pass(const CpuLauncher& launch, const MindDistanceX& distance,
                               float* out) {
  enum { kLongest = 32768 + 4 * 64 };  // capi.cpp allows 32768 voxels, radius and dilation of 64
  const MindBox box = box_y_of(distance, out);
  const int in_y = box.n, out_y = box.sums(), width = box.x;
  const Index in_plane = (Index)in_y * width, out_plane = (Index)out_y * width;
  launch.for_each(box.outer, in_plane * box.outer, [&](int image, int worker) {
    float* rows = distance.out + in_plane * (launch.threads() <= box.outer ? worker : image);
    MindDistanceX mine = distance;
    mine.out = rows - in_plane * image;
    float a[kLongest], b[kLongest];
    for (int y = 0; y < in_y; ++y) mind_distance_row(mine, image * in_y + y, a, b);
    for (int y = 0; y < out_y; ++y)
      box_across(rows + (Index)y * width, width, box.radius, out + out_plane * image + y * width);
  });
}

inline void mind_box_z_pass(const CpuLauncher& launch, const MindBox& box) {
  const Index plane = (Index)box.lines * box.x;
  // In pieces of a plane, so that what the sums of the next plane read again stays in the
  // second-level cache.
  launch.for_each(box.lines, plane * box.n, [&](int row, int) {
    for (int z = 0; z < box.sums(); ++z) {
      const Index at = z * plane + (Index)row * box.x;
      with_radius(box.radius, [&](auto r) {
        over_row(box.x, [&](auto zero, Index x) {
          typedef decltype(zero) V;
          V sum = V{};
          for (int t = 0; t <= 2 * r; ++t) sum += load<V>(box.in + at + t * plane + x);
          store(box.out + at + x, sum);
        });
      });
    }
  });
}

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
