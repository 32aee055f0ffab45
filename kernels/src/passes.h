// Groups of launches that belong together. The versions here are written over any launcher; a back
// end may offer a tuned one of the same name (cpu/cpu_passes.h), which has to give the same result.
#ifndef DINOREG_SRC_PASSES_H_
#define DINOREG_SRC_PASSES_H_

#include "dinoreg/cost.h"
#include "dinoreg/mind.h"
#include "dinoreg/smooth.h"

DR_NAMESPACE_BEGIN

// Separable smoothing of `batch` arrays of `shape` x `components`, in -> out. `tmp` has the size of
// `out`; all three differ.
struct SmoothPass {
  const float* in;
  float* out;
  float* tmp;
  Shape shape;
  int batch, components;
  Taps z, y, x;
};

template <class Launcher>
void smooth_pass(const Launcher& launch, const SmoothPass& p) {
  const int line = p.shape.x * p.components;
  launch(Smooth{p.in, p.out, p.batch, p.shape.z, p.shape.y * line, p.z, false});
  launch(Smooth{p.out, p.tmp, p.batch * p.shape.z, p.shape.y, line, p.y, false});
  launch(Smooth{p.tmp, p.out, p.batch * p.shape.rows(), p.shape.x, p.components, p.x, true});
}

// Patch distances summed over the patch's x and y extents, through `distance.out`, to `out`.
inline MindBoxY box_y_of(const MindDistanceX& d, float* out) {
  return {d.out,
          out,
          d.planes * kMindImages,
          d.padded_y(),
          d.shape.y + 2 * d.mind.dilation[1],
          d.padded_x(),
          d.mind.radius[1]};
}

template <class Launcher>
void mind_distance_pass(const Launcher& launch, const MindDistanceX& distance, float* out) {
  launch(distance);
  launch(box_y_of(distance, out));
}

template <class Launcher>
void mind_box_z_pass(const Launcher& launch, const MindBoxZ& box) {
  launch(box);
}

// Patch distances summed over the whole patch, through `between` back to `distance.out`: of
// distance.planes - 2 radius planes.
template <class Launcher>
void mind_sums_pass(const Launcher& launch, const MindDistanceX& distance, float* between) {
  mind_distance_pass(launch, distance, between);
  mind_box_z_pass(launch,
                  MindBoxZ{between, distance.out, distance.planes, distance.mind.radius[0],
                           kMindImages * (distance.padded_y() - 2 * distance.mind.radius[1]),
                           distance.padded_x()});
}

// For every voxel the shift with the lowest smoothed cost, coupling included.
struct SearchPass {
  ShiftCost cost;  // first_shift, shift_count and out are set by the pass
  Taps z, y, x;
  KeepBest keep;
  float *raw, *tmp;  // search_buffers().costs x voxels each
  float* smoothed;  // the same, or, where they are kept, all shifts x voxels
  bool kept;  // `smoothed` has room for all shifts,
  bool known;  // and holds them since an earlier pass
};

template <class Launcher>
void shift_cost_pass(const Launcher& launch, const ShiftCost& cost) {
  launch(cost);
}

// Shifts that share a launch, in whole rows along x where these fit: sixteen, on small lattices up
// to 36 as long as they make no more than a million costs, 4 MB in each of three buffers. A row of
// 9 shifts of 32 x 27 x 32 cells moves 9 MB, which a large GPU can do in less than the few
// microseconds that each of its four launches takes (reckoned, not measured); its 81 rows are 21
// groups.
enum { kSmallestGroup = 16, kLargestGroup = 36, kGroupCosts = 1 << 20 };
inline int large_group(const Shifts& shifts, const Shape& cells) {
  const Index fits = kGroupCosts / cells.voxels();
  const int most = fits < kSmallestGroup  ? kSmallestGroup
                   : fits < kLargestGroup ? (int)fits
                                          : kLargestGroup;
  const int row = shifts.count_x();
  return min_int(row < most ? most / row * row : most, shifts.count());
}

template <class Launcher>
int search_group(const Launcher&, const Shifts& shifts, const Shape& cells) {
  return large_group(shifts, cells);
}

// Smoothed costs of shifts [first, first + count), read where they are known.
template <class Launcher>
const float* smoothed_costs(const Launcher& launch, const SearchPass& p, int first, int count) {
  float* smoothed = p.smoothed + (p.kept ? first * p.cost.shape.voxels() : 0);
  if (p.known) return smoothed;
  ShiftCost cost = p.cost;
  cost.first_shift = first;
  cost.shift_count = count;
  cost.out = p.raw;
  shift_cost_pass(launch, cost);
  smooth_pass(launch, SmoothPass{p.raw, smoothed, p.tmp, cost.shape, count, 1, p.z, p.y, p.x});
  return smoothed;
}

// Shifts [first, last) in groups that share a launch.
template <class Launcher>
void search_range(const Launcher& launch, const SearchPass& p, int first, int last, int group) {
  KeepBest keep = p.keep;
  keep.fresh = true;
  for (; first < last; first += group, keep.fresh = false) {
    keep.first_shift = first;
    keep.shift_count = min_int(group, last - first);
    keep.cost = smoothed_costs(launch, p, first, keep.shift_count);
    launch(keep);
  }
}

// Buffers that a launcher's search pass works in: of one shift's costs each, and running minima.
// The CPU's are as many or more, so the workspace that is sized for it serves all.
struct SearchBuffers {
  int costs, minima;
};
template <class Launcher>
SearchBuffers search_buffers(const Launcher&, const Shifts& shifts, const Shape& cells) {
  return {large_group(shifts, cells), 1};
}

template <class Launcher>
void search_pass(const Launcher& launch, const SearchPass& p) {
  const Shifts& shifts = p.cost.shifts;
  const int group = p.known ? shifts.count() : search_group(launch, shifts, p.cost.shape);
  search_range(launch, p, 0, shifts.count(), group);
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_PASSES_H_
