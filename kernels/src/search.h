// The discrete search: all whole shifts on the search grid, coupled-convex rounds and inverse
// consistency; from coarse to fine if there is more than one level.
#ifndef DINOREG_SRC_SEARCH_H_
#define DINOREG_SRC_SEARCH_H_

#include <math.h>

#include <utility>

#include "context.h"
#include "dinoreg/cost.h"
#include "dinoreg/pool.h"
#include "dinoreg/sum.h"
#include "level.h"

DR_NAMESPACE_BEGIN

// The search grid of one level. Every further level halves its voxels, to whole fixed voxels and at
// least one, and tries shifts of up to two of them: one step of the level before. Smoothing widths
// shrink with the voxels.
struct SearchGrid {
  enum { kFurtherRadius = 2 };
  Int3 factor;  // fixed voxels per search voxel
  double spacing_mm[3];
  Shape shape;
  Shifts shifts;
  Shape padded;   // with a margin as wide as the shifts reach
  double shrink;  // mean edge of a voxel relative to the first level

  SearchGrid(const dr_solver_args& a, int level)
      : factor(to_int3(a.search_factor)), shifts{to_int3(a.search_radius)} {
    double volume = 1.0;
    for (int i = 0; i < 3; ++i) {
      for (int k = 0; k < level; ++k) factor[i] = (factor[i] + 1) / 2;
      if (level > 0) shifts.radius[i] = min_int(kFurtherRadius, a.search_radius[i]);
      spacing_mm[i] = a.spacing_mm[i] * factor[i];
      volume *= (double)factor[i] / a.search_factor[i];
    }
    shape = fixed_coarsening(a, factor).shape;
    padded = shape + 2 * shifts.radius;
    shrink = cbrt(volume);
  }
};

inline dr_feature_pair features_of_search(const dr_solver_args& a, int level) {
  if (a.search_features != nullptr) return a.search_features[level];
  return {.fixed = a.fixed,
          .fixed_weight = a.fixed_weight,
          .moving = a.moving,
          .moving_weight = a.moving_weight,
          .stride = a.stride,
          .channels = a.channels};
}

// One level of the search. The first level searches for the displacement itself. Every further
// level searches between the fixed image and the moving image as warped by the levels before it;
// both directions and their consistency then work as on the first level.
template <class Launcher>
class SearchLevel {
 public:
  SearchLevel(SolverContext<Launcher>& context, int level)
      : c_(context), a_(context.args), work_(context.work), level_(level), grid_(a_, level),
        features_(features_of_search(a_, level)) {}

  // An image on the search grid, with a margin as wide as the shifts reach.
  struct CoarseImage {
    float* features;  // (PZ, PY, channels, PX)
    float* weight;
  };

  // Writes the displacement to the context's x, and its standard deviation if it is asked for.
  // False if cancelled.
  bool run() {
    const size_t mark = work_.mark();
    const dr_feature_pair& f = features_;
    const CoarseImage fixed = average({f.fixed, f.fixed_weight, c_.shape, f.stride}, {});
    const CoarseImage moving =
        level_ == 0 ? average(moving_features(), to_int3(a_.moving_offset)) : warp_moving();
    if (!search(fixed, moving)) return false;
    work_.release(mark);
    return report(1.0f);
  }

  // The same between two images that are already on the search grid.
  bool search(const CoarseImage& fixed, const CoarseImage& moving) {
    const float* unrelated = unrelated_cost(fixed, moving);
    float* forward = take(3);
    float* backward = take(3);
    // Only the first level tries all shifts.
    const bool spreads = a_.spread != nullptr && level_ == 0;
    float* spread = spreads ? take(3) : nullptr;
    float* moments = spreads ? take(7) : nullptr;
    const bool both = a_.consistency_rounds > 0;
    if (!best_field(fixed, moving, unrelated, forward, 0.0f, both ? 0.5f : 1.0f, moments))
      return false;
    if (spreads) {
      c_.run(SpreadToField{moments, grid_.shape, to_vec3(grid_.spacing_mm), spread});
      to_fixed_grid(spread, a_.spread);
    }
    if (both) {
      if (!best_field(moving, fixed, unrelated, backward, 0.5f, 0.5f)) return false;
      make_consistent(forward, backward);
    }
    add(forward);
    return true;
  }

  CoarseImage take_padded() {
    return {c_.template take<float>(grid_.padded.voxels() * features_.channels),
            c_.template take<float>(grid_.padded.voxels())};
  }

  // The op that averages an image to the search grid.
  PoolPlanar averaging(const WeightedFeatures& in, const Int3& offset, const CoarseImage& out) {
    return {.in = in,
            .channels = features_.channels,
            .factor = grid_.factor,
            .offset = offset,
            .margins = grid_.shifts.radius,
            .out = out.features,
            .out_weight = out.weight,
            .out_shape = grid_.padded};
  }

 private:
  float* take(size_t components) {
    return c_.template take<float>(components * grid_.shape.voxels());
  }

  WeightedFeatures moving_features() const {
    return {features_.moving, features_.moving_weight, to_int3(a_.moving_shape), features_.stride};
  }

  CoarseImage average(const WeightedFeatures& in, const Int3& offset) {
    const CoarseImage out = take_padded();
    c_.run(averaging(in, offset, out));
    return out;
  }

  // m(p + x(p)) on the search grid, where x is what has been found so far.
  CoarseImage warp_moving() {
    const CoarseImage out = take_padded();
    Int3 first;
    const Coarsening to_moving = moving_coarsening(a_, grid_.factor, first);
    c_.run(WarpPlanar{.in = pool_features(c_, moving_features(), to_moving),
                      .channels = features_.channels,
                      .offset = to_vec3(first),
                      .field = c_.x,
                      .field_shape = c_.shape,
                      .to_field = between_grids(grid_.factor, true),
                      .index_per_mm = inverse_of(grid_.spacing_mm),
                      .margins = grid_.shifts.radius,
                      .out = out.features,
                      .out_weight = out.weight,
                      .out_shape = grid_.padded});
    return out;
  }

  void to_fixed_grid(const float* coarse, float* out) const {
    c_.resize(coarse, grid_.shape, out, c_.shape, between_grids(grid_.factor, false));
  }

  // x(p) becomes d(p) + x(p + d(p)): d leads to a point of the warped image, and x on from there.
  void add(const float* found) {
    if (level_ == 0) return to_fixed_grid(found, c_.x);
    to_fixed_grid(found, c_.scratch);
    c_.run(Compose{.first = {c_.scratch, c_.shape, inverse_of(a_.spacing_mm)},
                   .second = c_.x,
                   .second_shape = c_.shape,
                   .to_second = identity_affine(),
                   .out = c_.field});
    c_.copy_field(c_.field, c_.x, c_.shape);
  }

  bool report(float fraction) const {
    return c_.report(DR_STAGE_SEARCH, ((float)level_ + fraction) / (float)a_.search_levels);
  }

  // The cost of unrelated features, with the same trust as the costs of shifts.
  const float* unrelated_cost(const CoarseImage& fixed, const CoarseImage& moving) {
    const int rows = grid_.padded.rows(), sums = 3 * features_.channels;
    double* moments[2];
    for (int i = 0; i < 2; ++i) {
      const CoarseImage& image = i == 0 ? fixed : moving;
      float* of_rows = c_.template take<float>((size_t)sums * rows);
      moments[i] = c_.template take<double>(sums);
      c_.run(FeatureMoments{.features = image.features,
                            .weight = image.weight,
                            .shape = grid_.padded,
                            .channels = features_.channels,
                            .out = of_rows});
      c_.run(SumInOrder<float>{of_rows, sums, rows, moments[i]});
    }
    float* cost = c_.template take<float>(1);
    c_.run(UnrelatedCost{.fixed = moments[0],
                         .moving = moments[1],
                         .channels = features_.channels,
                         .trust_cost = trust_cost(),
                         .out = cost});
    return cost;
  }

  float trust_cost() const { return (float)a_.search_trust_cost; }

  // Sets up the pass over all shifts and takes its memory.
  SearchPass search_pass_of(const CoarseImage& fixed, const CoarseImage& moving,
                            const float* unrelated) {
    const SearchBuffers wanted = search_buffers(c_.launch, grid_.shifts, grid_.shape);
    const bool kept = keeps_costs();
    float* smoothed = take(kept ? grid_.shifts.count() : wanted.costs);
    float* raw = take(wanted.costs);
    float* tmp = take(wanted.costs);
    float* best_cost = take(wanted.minima);
    int* best_shift = c_.template take<int>(grid_.shape.voxels() * wanted.minima);
    const double* mm = grid_.spacing_mm;
    const double largest = fmax(mm[0], fmax(mm[1], mm[2]));
    return {.cost = {.fixed = fixed.features,
                     .fixed_weight = fixed.weight,
                     .moving = moving.features,
                     .moving_weight = moving.weight,
                     .padded = grid_.padded,
                     .shape = grid_.shape,
                     .channels = features_.channels,
                     .shifts = grid_.shifts,
                     .unrelated = unrelated,
                     .trust_cost = trust_cost()},
            .taps = gaussian_taps(a_.cost_smoothing_mm * grid_.shrink, mm, grid_.shape),
            .keep = {.shape = grid_.shape,
                     .shifts = grid_.shifts,
                     .step = (float)(1.0 / largest) * to_vec3(mm),
                     .best_cost = best_cost,
                     .best_shift = best_shift},
            .raw = raw,
            .tmp = tmp,
            .smoothed = smoothed,
            .kept = kept};
  }

  // The coupled-convex rounds: each voxel's best shift, smoothed, attracts its next choice.
  bool best_field(const CoarseImage& fixed, const CoarseImage& moving, const float* unrelated,
                  float* out, float from, float share, float* moments = nullptr) {
    const size_t mark = work_.mark();
    SearchPass pass = search_pass_of(fixed, moving, unrelated);
    float* raw = take(3);
    float* planes = take(3);
    float* tmp = take(3);
    for (int round = 0; round <= a_.coupling_rounds && !c_.counting(); ++round) {
      search_pass(c_.launch, pass);
      pass.known = pass.kept;
      if (round == 0 && moments != nullptr) add_spread(pass, moments);
      c_.run(ShiftsToPlanes{pass.keep.best_shift, grid_.shape, grid_.shifts, raw});
      c_.smooth({.in = raw, .out = planes, .tmp = tmp, .shape = grid_.shape, .batch = 3},
                a_.field_smoothing_mm * grid_.shrink, grid_.spacing_mm);
      if (!report(from + share * (float)(round + 1) / (float)(a_.coupling_rounds + 1)))
        return false;
      pass.keep.near = planes;
      if (round < a_.coupling_rounds) pass.keep.coupling = (float)a_.coupling[round];
    }
    c_.run(PlanesToField{planes, grid_.shape, to_vec3(grid_.spacing_mm), out});
    work_.release(mark);
    return true;
  }

  // 729 shifts on a search grid of 32 x 27 x 32, that is 192 x 160 x 192 voxels of 2 mm, are 77
  // MiB. A coupled round takes 5 ms to read them and 50 ms to compute them again (one core of a
  // Xeon, AVX-512).
  bool keeps_costs() const {
    const Index bytes = (Index)sizeof(float) * grid_.shifts.count() * grid_.shape.voxels();
    return bytes <= (Index)a_.kept_costs_mb << 20;
  }

  // Goes through all costs once more, now that the best cost of each voxel is known.
  void add_spread(const SearchPass& p, float* moments) const {
    const int shifts = grid_.shifts.count();
    const int group = search_group(c_.launch, grid_.shifts, grid_.shape);
    AddSpread op = {.cost = nullptr,
                    .best_cost = p.keep.best_cost,
                    .unrelated = p.cost.unrelated,
                    .share = 0.1f,  // far above noise, far below a wrong structure
                    .shape = grid_.shape,
                    .shifts = grid_.shifts,
                    .first_shift = 0,
                    .shift_count = 0,
                    .moments = moments};
    for (; op.first_shift < shifts; op.first_shift += group) {
      op.shift_count = min_int(group, shifts - op.first_shift);
      op.cost = smoothed_costs(c_.launch, p, op.first_shift, op.shift_count);
      c_.run(op);
    }
  }

  void make_consistent(float*& forward, float*& backward) {
    float* u = take(3);
    float* v = take(3);
    const Vec3 index_per_mm = inverse_of(grid_.spacing_mm);
    for (int round = 0; round < a_.consistency_rounds; ++round) {
      c_.run(InverseConsistent{{forward, grid_.shape, index_per_mm}, backward, u});
      c_.run(InverseConsistent{{backward, grid_.shape, index_per_mm}, forward, v});
      std::swap(forward, u);
      std::swap(backward, v);
    }
  }

  SolverContext<Launcher>& c_;
  const dr_solver_args& a_;
  Workspace& work_;
  const int level_;
  const SearchGrid grid_;
  const dr_feature_pair features_;
};

// Runs all levels; with a radius of 0 along every axis there is no search. False if cancelled.
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
