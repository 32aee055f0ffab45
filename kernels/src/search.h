// The discrete search: all shifts of whole cells, coupled-convex rounds, inverse consistency; from
// coarse to fine where more than one level is asked for.
#ifndef DINOREG_SRC_SEARCH_H_
#define DINOREG_SRC_SEARCH_H_

#include <math.h>

#include "context.h"
#include "dinoreg/cost.h"
#include "dinoreg/edges.h"
#include "dinoreg/pool.h"
#include "dinoreg/sum.h"
#include "level.h"

DR_NAMESPACE_BEGIN

// The lattice of one level. Every further level halves the cells, to whole voxels and at least one,
// and reaches two of them: one step of the level before. Smoothing widths shrink with the cells.
struct SearchGrid {
  enum { kFurtherRadius = 2 };
  int factor[3];  // voxels of the fixed grid per cell
  double cell_mm[3];
  Shape cells;
  Shifts shifts;
  Shape padded;   // with a margin as wide as the shifts reach
  double shrink;  // mean edge of a cell in units of the first level's

  SearchGrid(const dr_solver_args& a, int level) {
    int radius[3];
    double volume = 1.0;
    for (int i = 0; i < 3; ++i) {
      factor[i] = a.search_factor[i];
      for (int k = 0; k < level; ++k) factor[i] = (factor[i] + 1) / 2;
      radius[i] = level == 0 ? a.search_radius[i] : min_int(kFurtherRadius, a.search_radius[i]);
      cell_mm[i] = a.spacing_mm[i] * factor[i];
      volume *= (double)factor[i] / a.search_factor[i];
    }
    cells = {divide_up(a.fixed_shape[0], factor[0]), divide_up(a.fixed_shape[1], factor[1]),
             divide_up(a.fixed_shape[2], factor[2])};
    shifts = {radius[0], radius[1], radius[2]};
    padded = {cells.z + 2 * radius[0], cells.y + 2 * radius[1], cells.x + 2 * radius[2]};
    shrink = cbrt(volume);
  }
};

inline dr_feature_pair features_of_search(const dr_solver_args& a, int level) {
  if (a.search_features != nullptr) return a.search_features[level];
  return {a.fixed, a.fixed_weight, a.moving, a.moving_weight, a.stride, a.channels};
}

// One level. The first searches for the displacement itself; every further one between the fixed
// image and the moving image as the levels before have warped it, so that both directions and their
// consistency are those of the first.
template <class Launcher>
class SearchLevel {
 public:
  SearchLevel(SolverContext<Launcher>& context, int level)
      : c_(context), a_(context.args), work_(context.work), level_(level), grid_(a_, level),
        features_(features_of_search(a_, level)) {}

  // The displacement to the context's x, and its spread where it is asked for. False: stopped.
  bool run() {
    const size_t mark = work_.mark();
    const Cells fixed = pool_fixed();
    const Cells moving = level_ == 0 ? pool_moving() : warp_moving();
    const float* unrelated = unrelated_cost(fixed, moving);
    float* forward = take(3);
    float* backward = take(3);
    // Of the first level: only there all shifts are tried.
    const bool spreads = a_.spread != nullptr && level_ == 0;
    float* spread = spreads ? take(3) : nullptr;
    float* moments = spreads ? take(7) : nullptr;
    const bool both = a_.consistency_rounds > 0;
    if (!best_field(fixed, moving, unrelated, forward, 0.0f, both ? 0.5f : 1.0f, moments))
      return false;
    if (spreads) {
      c_.run(SpreadToField{moments, grid_.cells, to_vec3(grid_.cell_mm), spread});
      to_voxels(spread, a_.spread);
    }
    if (both) {
      if (!best_field(moving, fixed, unrelated, backward, 0.5f, 0.5f)) return false;
      make_consistent(forward, backward);
    }
    add(forward);
    work_.release(mark);
    return report(1.0f);
  }

 private:
  // An image on the cells and a margin as wide as the search reaches.
  struct Cells {
    float* features;  // (PZ, PY, channels, PX)
    float* weight;
  };

  float* take(size_t components) {
    return work_.template take<float>(components * grid_.cells.voxels());
  }

  Cells take_padded() {
    return {work_.template take<float>(grid_.padded.voxels() * features_.channels),
            work_.template take<float>(grid_.padded.voxels())};
  }

  Cells pool_fixed() {
    const int32_t origin[3] = {0, 0, 0};
    return pool(features_.fixed, features_.fixed_weight, c_.shape, origin);
  }

  Cells pool_moving() {
    return pool(features_.moving, features_.moving_weight, to_shape(a_.moving_shape),
                a_.moving_offset);
  }

  Cells pool(const Half* features, const float* weight, const Shape& shape, const int32_t* offset) {
    const Cells out = take_padded();
    const int* f = grid_.factor;
    const Shifts& r = grid_.shifts;
    c_.run(PoolPlanar{features, weight, shape, features_.stride, features_.channels, offset[0],
                      offset[1], offset[2], f[0], f[1], f[2], r.radius_z, r.radius_y, r.radius_x,
                      out.features, out.weight, grid_.padded});
    return out;
  }

  // m(p + x(p)) on the cells, from what was found so far.
  Cells warp_moving() {
    const Cells out = take_padded();
    const int* f = grid_.factor;
    const MovingCells cells = moving_cells(a_, f);
    const PooledFeatures moving =
        pool_features(c_, features_.moving, features_.moving_weight, features_.stride,
                      to_shape(a_.moving_shape), f, cells.inset, cells.shape);
    const Vec3 first = {(float)cells.first[0], (float)cells.first[1], (float)cells.first[2]};
    const Shifts& r = grid_.shifts;
    c_.run(WarpPlanar{moving.features, moving.weight, cells.shape, features_.stride,
                      features_.channels, first, c_.x, c_.shape, between_cells(f, true),
                      inverse_of(grid_.cell_mm), r.radius_z, r.radius_y, r.radius_x, out.features,
                      out.weight, grid_.padded});
    return out;
  }

  void to_voxels(const float* cells, float* out) const {
    c_.resize(cells, grid_.cells, out, c_.shape, grid_.factor, false);
  }

  // x(p) becomes d(p) + x(p + d(p)): d leads to a point of the warped image, x on from there.
  void add(const float* found) {
    if (level_ == 0) return to_voxels(found, c_.x);
    to_voxels(found, c_.scratch);
    const Affine same = {{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0}};
    c_.run(
        Compose{c_.scratch, c_.shape, c_.x, c_.shape, same, inverse_of(a_.spacing_mm), c_.field});
    c_.copy_field(c_.field, c_.x, c_.shape);
  }

  bool report(float fraction) const {
    return c_.report(DR_STAGE_SEARCH, ((float)level_ + fraction) / (float)a_.search_levels);
  }

  // With trust, as costs are, and without.
  const float* unrelated_cost(const Cells& fixed, const Cells& moving) {
    const int rows = grid_.padded.rows(), sums = 3 * features_.channels;
    double* moments[2];
    for (int i = 0; i < 2; ++i) {
      const Cells& image = i == 0 ? fixed : moving;
      float* of_rows = work_.template take<float>((size_t)sums * rows);
      moments[i] = work_.template take<double>(sums);
      c_.run(FeatureMoments{image.features, image.weight, rows, features_.channels, grid_.padded.x,
                            of_rows});
      c_.run(SumInOrder<float>{of_rows, sums, rows, moments[i]});
    }
    float* cost = work_.template take<float>(2);
    c_.run(UnrelatedCost{moments[0], moments[1], features_.channels, cost, trust_cost()});
    return cost;
  }

  float trust_cost() const { return (float)a_.search_trust_cost; }

  Taps cost_taps(int axis, int n) const {
    return gaussian_taps(a_.cost_smoothing_mm * grid_.shrink, grid_.cell_mm[axis], n);
  }

  // The coupled-convex rounds: every voxel's best shift, smoothed, pulls the next choice to itself.
  bool best_field(const Cells& fixed, const Cells& moving, const float* unrelated, float* out,
                  float from, float share, float* moments = nullptr) {
    const size_t mark = work_.mark(), voxels = grid_.cells.voxels();
    const SearchBuffers wanted = search_buffers(c_.launch, grid_.shifts, grid_.cells);
    const bool kept = keeps_costs();
    float* smoothed = take(kept ? grid_.shifts.count() : wanted.costs);
    float* raw_costs = take(wanted.costs);
    float* between = take(wanted.costs);
    float* best_cost = take(wanted.minima);
    int* best_shift = work_.template take<int>(voxels * wanted.minima);
    float* raw = take(3);
    float* planes = take(3);
    float* tmp = take(3);
    const double largest = fmax(grid_.cell_mm[0], fmax(grid_.cell_mm[1], grid_.cell_mm[2]));
    const Vec3 step = (float)(1.0 / largest) * to_vec3(grid_.cell_mm);
    SearchPass pass = {ShiftCost{fixed.features, fixed.weight, moving.features, moving.weight,
                                 grid_.padded, grid_.cells, features_.channels, grid_.shifts, 0, 0,
                                 unrelated, nullptr, trust_cost()},
                       cost_taps(0, grid_.cells.z),
                       cost_taps(1, grid_.cells.y),
                       cost_taps(2, grid_.cells.x),
                       KeepBest{nullptr, nullptr, grid_.cells, grid_.shifts, 0, 0, true, 0.0f, step,
                                best_cost, best_shift},
                       raw_costs,
                       between,
                       smoothed,
                       kept,
                       false};
    for (int round = 0; round <= a_.coupling_rounds && !c_.counting(); ++round) {
      search_pass(c_.launch, pass);
      pass.known = kept;
      if (round == 0 && moments != nullptr) add_spread(pass, moments);
      c_.run(ShiftsToPlanes{best_shift, grid_.cells, grid_.shifts, raw});
      smooth_planes(fixed, unrelated, raw, planes, tmp);
      if (!report(from + share * (float)(round + 1) / (float)(a_.coupling_rounds + 1)))
        return false;
      pass.keep.near = planes;
      if (round < a_.coupling_rounds) pass.keep.coupling = (float)a_.coupling[round];
    }
    c_.run(PlanesToField{planes, grid_.cells, to_vec3(grid_.cell_mm), out});
    work_.release(mark);
    return true;
  }

  // Displacements in -> out, all three different; with search_edges as far as `image` stays alike.
  void smooth_planes(const Cells& image, const float* unrelated, const float* in, float* out,
                     float* tmp) const {
    const double sigma = a_.field_smoothing_mm * grid_.shrink;
    if (a_.search_edges == 0.0)
      return c_.smooth(in, out, tmp, grid_.cells, 3, 1, sigma, grid_.cell_mm);
    const Shape& n = grid_.cells;
    const Shifts& r = grid_.shifts;
    const double* mm = grid_.cell_mm;
    // Few neighbours: each costs a comparison of all channels.
    const double reach = 2.0;
    c_.run(SmoothWithinEdges{
        in, image.features, image.weight, grid_.padded, n, r.radius_z, r.radius_y, r.radius_x,
        features_.channels, gaussian_taps(sigma, mm[0], n.z, reach),
        gaussian_taps(sigma, mm[1], n.y, reach), gaussian_taps(sigma, mm[2], n.x, reach),
        unrelated + 1, (float)a_.search_edges, out});
  }

  // 729 shifts of 32 x 27 x 32 cells, that is 192 x 160 x 192 voxels of 2 mm, are 77 MiB. A coupled
  // round takes 5 ms to read them and 50 to compute them again (one core of a Xeon, AVX-512).
  bool keeps_costs() const {
    const Index bytes = (Index)sizeof(float) * grid_.shifts.count() * grid_.cells.voxels();
    return bytes <= (Index)a_.kept_costs_mb << 20;
  }

  // All costs once more, now that the best of each voxel is known. Only when asked for.
  void add_spread(const SearchPass& p, float* moments) const {
    const int shifts = grid_.shifts.count();
    const int group = search_group(c_.launch, grid_.shifts, grid_.cells);
    for (int first = 0; first < shifts; first += group) {
      const int count = min_int(group, shifts - first);
      const float* cost = smoothed_costs(c_.launch, p, first, count);
      // A tenth of what unrelated features cost: far above noise, far below a wrong structure.
      c_.run(AddSpread{cost, p.keep.best_cost, p.cost.unrelated, 0.1f, grid_.cells, grid_.shifts,
                       first, count, moments});
    }
  }

  void make_consistent(float*& forward, float*& backward) {
    float* u = take(3);
    float* v = take(3);
    const Vec3 index_per_mm = inverse_of(grid_.cell_mm);
    for (int round = 0; round < a_.consistency_rounds; ++round) {
      c_.run(InverseConsistent{forward, backward, u, grid_.cells, index_per_mm});
      c_.run(InverseConsistent{backward, forward, v, grid_.cells, index_per_mm});
      float* old = forward;
      forward = u;
      u = old;
      old = backward;
      backward = v;
      v = old;
    }
  }

  SolverContext<Launcher>& c_;
  const dr_solver_args& a_;
  Workspace& work_;
  const int level_;
  const SearchGrid grid_;
  const dr_feature_pair features_;
};

// All levels; without a radius nothing is searched for. False: stopped.
template <class Launcher>
bool discrete_search(SolverContext<Launcher>& c) {
  const int32_t* r = c.args.search_radius;
  if (r[0] == 0 && r[1] == 0 && r[2] == 0) return true;
  for (int level = 0; level < c.args.search_levels; ++level)
    if (!SearchLevel<Launcher>(c, level).run()) return false;
  return true;
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_SEARCH_H_
