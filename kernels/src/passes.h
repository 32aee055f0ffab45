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

// For every voxel the shift with the lowest smoothed cost, coupling included.
struct SearchPass {
  ShiftCost cost;  // first_shift, shift_count and out are set by the pass
  Taps z, y, x;
  KeepBest keep;
  float *raw, *smoothed, *tmp;  // search_buffers().costs x voxels each
};

template <class Launcher>
void shift_cost_pass(const Launcher& launch, const ShiftCost& cost) {
  launch(cost);
}

// Shifts that share a launch: as many as differ in x alone, within what the workspace holds.
enum { kLargestGroup = 16 };
inline int search_group(const Shifts& shifts) { return min_int(shifts.count_x(), kLargestGroup); }

// Shifts [first, last) in groups that share a launch.
template <class Launcher>
void search_range(const Launcher& launch, SearchPass p, int first, int last, int group) {
  const int begin = first;
  for (; first < last; first += group) {
    const int count = min_int(group, last - first);
    p.cost.first_shift = p.keep.first_shift = first;
    p.cost.shift_count = p.keep.shift_count = count;
    p.cost.out = p.raw;
    p.keep.cost = p.smoothed;
    p.keep.fresh = first == begin;
    shift_cost_pass(launch, p.cost);
    smooth_pass(launch,
                SmoothPass{p.raw, p.smoothed, p.tmp, p.cost.shape, count, 1, p.z, p.y, p.x});
    launch(p.keep);
  }
}

// Buffers that a launcher's search pass works in: of one shift's costs each, and running minima.
// No launcher takes more than kLargestGroup of either, so one workspace size serves all.
struct SearchBuffers {
  int costs, minima;
};
template <class Launcher>
SearchBuffers search_buffers(const Launcher&, const Shifts& shifts) {
  return {search_group(shifts), 1};
}

template <class Launcher>
void search_pass(const Launcher& launch, const SearchPass& p) {
  search_range(launch, p, 0, p.cost.shifts.count(), search_group(p.cost.shifts));
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_PASSES_H_
