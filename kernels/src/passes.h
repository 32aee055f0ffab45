// Groups of launches that belong together. The versions here work with any launcher. A back end may
// provide a tuned version of the same name (cpu/cpu_passes.h), which must give the same result.
#ifndef DINOREG_SRC_PASSES_H_
#define DINOREG_SRC_PASSES_H_

#include "dinoreg/cost.h"
#include "dinoreg/mind.h"
#include "smoothing.h"

DR_NAMESPACE_BEGIN

// Whether features are compared faster in blocks of channels (FeatureLayout).
template <class Launcher>
bool wants_blocks(const Launcher&) {
  return false;
}

// The comparison of features, with what is added to its gradient.
template <class Launcher, class Op>
void feature_pass(const Launcher& launch, const Op& op) {
  launch(op);
}

// Sums patch distances over the patch's y extent (`d.out` to `out`), and over its z extent (`in` to
// `d.out`).
inline MindBox box_y_of(const MindDistanceX& d, float* out) {
  return {.in = d.out,
          .out = out,
          .outer = d.planes * kMindImages,
          .n = d.padded_y(),
          .lines = 1,
          .x = d.padded_x(),
          .radius = d.mind.radius.y};
}
inline MindBox box_z_of(const MindDistanceX& d, const float* in) {
  return {.in = in,
          .out = d.out,
          .outer = 1,
          .n = d.planes,
          .lines = kMindImages * (d.padded_y() - 2 * d.mind.radius.y),
          .x = d.padded_x(),
          .radius = d.mind.radius.z};
}

template <class Launcher>
void mind_distance_pass(const Launcher& launch, const MindDistanceX& distance, float* out) {
  launch(distance);
  launch(box_y_of(distance, out));
}

template <class Launcher>
void mind_box_z_pass(const Launcher& launch, const MindBox& box) {
  launch(box);
}

// Patch distances summed over the whole patch, through `between` back to `distance.out`.
template <class Launcher>
void mind_sums_pass(const Launcher& launch, const MindDistanceX& distance, float* between) {
  mind_distance_pass(launch, distance, between);
  mind_box_z_pass(launch, box_z_of(distance, between));
}

// Finds the shift with the lowest smoothed cost for every voxel, coupling included.
struct SearchPass {
  ShiftCost cost;  // first_shift, shift_count and out are set by the pass
  Taps3 taps;
  KeepBest keep;
  float *raw, *tmp;  // search_buffers().costs x voxels each
  float* smoothed;  // the same size or, where costs are kept, all shifts x voxels
  bool kept;  // `smoothed` has room for all shifts
  bool known = false;  // and holds them since an earlier pass
};

template <class Launcher>
void shift_cost_pass(const Launcher& launch, const ShiftCost& cost) {
  launch(cost);
}

// The number of shifts that share a launch, in whole rows along x where these fit: sixteen, and on
// small grids up to 36 as long as there are no more than a million costs, 4 MB in each of three
// buffers. A row of 9 shifts on a grid of 32 x 27 x 32 moves 9 MB, which a large GPU can do in less
// than the few microseconds that each of its four launches takes (an estimate, not a measurement);
// the 81 rows make 21 groups.
enum { kSmallestGroup = 16, kLargestGroup = 36, kGroupCosts = 1 << 20 };
inline int large_group(const Shifts& shifts, const Shape& shape) {
  const Index fits = kGroupCosts / shape.voxels();
  const int most = fits < kSmallestGroup  ? kSmallestGroup
                   : fits < kLargestGroup ? (int)fits
                                          : kLargestGroup;
  const int row = shifts.count_x();
  return min_int(row < most ? most / row * row : most, shifts.count());
}

template <class Launcher>
int search_group(const Launcher&, const Shifts& shifts, const Shape& shape) {
  return large_group(shifts, shape);
}

// The smoothed costs of shifts [first, first + count), computed unless they are known.
template <class Launcher>
const float* smoothed_costs(const Launcher& launch, const SearchPass& p, int first, int count) {
  float* smoothed = p.smoothed + (p.kept ? first * p.cost.shape.voxels() : 0);
  if (p.known) return smoothed;
  ShiftCost cost = p.cost;
  cost.first_shift = first;
  cost.shift_count = count;
  cost.out = p.raw;
  shift_cost_pass(launch, cost);
  smooth_pass(launch, SmoothPass{.in = p.raw,
                                 .out = smoothed,
                                 .tmp = p.tmp,
                                 .shape = cost.shape,
                                 .batch = count,
                                 .taps = p.taps});
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

// How many arrays of one shift's costs and how many running minima a launcher's search pass needs.
// The CPU never needs fewer than the others, so a workspace sized for it serves all.
struct SearchBuffers {
  int costs, minima;
};
template <class Launcher>
SearchBuffers search_buffers(const Launcher&, const Shifts& shifts, const Shape& shape) {
  return {large_group(shifts, shape), 1};
}

template <class Launcher>
void search_pass(const Launcher& launch, const SearchPass& p) {
  const Shifts& shifts = p.cost.shifts;
  const int group = p.known ? shifts.count() : search_group(launch, shifts, p.cost.shape);
  search_range(launch, p, 0, shifts.count(), group);
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_PASSES_H_
