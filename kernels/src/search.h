// The discrete search: all shifts of whole cells, coupled-convex rounds, inverse consistency.
#ifndef DINOREG_SRC_SEARCH_H_
#define DINOREG_SRC_SEARCH_H_

#include <math.h>

#include "context.h"
#include "dinoreg/cost.h"
#include "dinoreg/pool.h"

DR_NAMESPACE_BEGIN

template <class Launcher>
class DiscreteSearch {
 public:
  explicit DiscreteSearch(SolverContext<Launcher>& context)
      : c_(context), a_(context.args), work_(context.work),
        cells_{divide_up(c_.shape.z, a_.search_factor[0]),
               divide_up(c_.shape.y, a_.search_factor[1]),
               divide_up(c_.shape.x, a_.search_factor[2])},
        shifts_{a_.search_radius[0], a_.search_radius[1], a_.search_radius[2]},
        padded_{cells_.z + 2 * shifts_.radius_z, cells_.y + 2 * shifts_.radius_y,
                cells_.x + 2 * shifts_.radius_x} {
    for (int i = 0; i < 3; ++i) cell_mm_[i] = a_.spacing_mm[i] * a_.search_factor[i];
  }

  // The displacement to the context's x, and its spread where it is asked for. False: stopped.
  bool run() {
    if (shifts_.count() == 1) return true;
    const size_t mark = work_.mark();
    const int32_t origin[3] = {0, 0, 0};
    const Cells fixed = pool(a_.fixed, a_.fixed_weight, c_.shape, origin);
    const Cells moving =
        pool(a_.moving, a_.moving_weight, to_shape(a_.moving_shape), a_.moving_offset);
    const float* unrelated = unrelated_cost(fixed, moving);
    float* forward = take(3);
    float* backward = take(3);
    float* spread = a_.spread == nullptr ? nullptr : take(3);
    float* moments = a_.spread == nullptr ? nullptr : take(7);
    const bool both = a_.consistency_rounds > 0;
    if (!best_field(fixed, moving, unrelated, forward, 0.0f, both ? 0.5f : 1.0f, moments))
      return false;
    if (a_.spread != nullptr) {
      c_.run(SpreadToField{moments, cells_, to_vec3(cell_mm_), spread});
      c_.resize(spread, cells_, a_.spread, c_.shape, a_.search_factor, false);
    }
    if (both) {
      if (!best_field(moving, fixed, unrelated, backward, 0.5f, 0.5f)) return false;
      make_consistent(forward, backward);
    }
    c_.resize(forward, cells_, c_.x, c_.shape, a_.search_factor, false);
    work_.release(mark);
    return c_.report(DR_STAGE_SEARCH, 1.0f);
  }

 private:
  // An image on the cells and a margin as wide as the search reaches.
  struct Cells {
    float* features;  // (PZ, PY, channels, PX)
    float* weight;
  };

  float* take(size_t components) {
    return work_.template take<float>(components * cells_.voxels());
  }

  Cells pool(const Half* features, const float* weight, const Shape& shape, const int32_t* offset) {
    const Cells out = {work_.template take<float>(padded_.voxels() * a_.channels),
                       work_.template take<float>(padded_.voxels())};
    c_.run(PoolPlanar{features, weight, shape, a_.stride, a_.channels, offset[0], offset[1],
                      offset[2], a_.search_factor[0], a_.search_factor[1], a_.search_factor[2],
                      shifts_.radius_z, shifts_.radius_y, shifts_.radius_x, out.features,
                      out.weight, padded_});
    return out;
  }

  const float* unrelated_cost(const Cells& fixed, const Cells& moving) {
    float* moments[2];
    for (int i = 0; i < 2; ++i) {
      const Cells& image = i == 0 ? fixed : moving;
      moments[i] = work_.template take<float>((size_t)padded_.rows() * a_.channels * 3);
      c_.run(FeatureMoments{image.features, image.weight, padded_.rows(), a_.channels, padded_.x,
                            moments[i]});
    }
    float* cost = work_.template take<float>(1);
    c_.run(UnrelatedCost{moments[0], moments[1], padded_.rows(), a_.channels, cost});
    return cost;
  }

  Taps cost_taps(int axis, int n) const {
    return gaussian_taps(a_.cost_smoothing_mm, cell_mm_[axis], n);
  }

  // The coupled-convex rounds: every voxel's best shift, smoothed, pulls the next choice to itself.
  bool best_field(const Cells& fixed, const Cells& moving, const float* unrelated, float* out,
                  float from, float share, float* moments = nullptr) {
    const size_t mark = work_.mark(), voxels = cells_.voxels();
    const SearchBuffers wanted = search_buffers(c_.launch, shifts_);
    float* buffers[3];
    for (float*& buffer : buffers) buffer = take(wanted.costs);
    float* best_cost = take(wanted.minima);
    int* best_shift = work_.template take<int>(voxels * wanted.minima);
    float* raw = take(3);
    float* planes = take(3);
    float* tmp = take(3);
    const double largest = fmax(cell_mm_[0], fmax(cell_mm_[1], cell_mm_[2]));
    const Vec3 step = (float)(1.0 / largest) * to_vec3(cell_mm_);
    SearchPass pass = {
        ShiftCost{fixed.features, fixed.weight, moving.features, moving.weight, padded_, cells_,
                  a_.channels, shifts_, 0, 0, unrelated, nullptr},
        cost_taps(0, cells_.z),
        cost_taps(1, cells_.y),
        cost_taps(2, cells_.x),
        KeepBest{nullptr, nullptr, cells_, shifts_, 0, 0, true, 0.0f, step, best_cost, best_shift},
        buffers[0],
        buffers[1],
        buffers[2]};
    for (int round = 0; round <= a_.coupling_rounds && !c_.counting(); ++round) {
      search_pass(c_.launch, pass);
      if (round == 0 && moments != nullptr) add_spread(pass, moments);
      c_.run(ShiftsToPlanes{best_shift, cells_, shifts_, raw});
      c_.smooth(raw, planes, tmp, cells_, 3, 1, a_.field_smoothing_mm, cell_mm_);
      if (!c_.report(DR_STAGE_SEARCH,
                     from + share * (float)(round + 1) / (float)(a_.coupling_rounds + 1)))
        return false;
      pass.keep.near = planes;
      if (round < a_.coupling_rounds) pass.keep.coupling = (float)a_.coupling[round];
    }
    c_.run(PlanesToField{planes, cells_, to_vec3(cell_mm_), out});
    work_.release(mark);
    return true;
  }

  // The costs once more, now that the best of each voxel is known. Only when asked for.
  void add_spread(const SearchPass& p, float* moments) const {
    const int group = search_group(shifts_);
    for (int first = 0; first < shifts_.count(); first += group) {
      const int count = min_int(group, shifts_.count() - first);
      ShiftCost cost = p.cost;
      cost.first_shift = first;
      cost.shift_count = count;
      cost.out = p.raw;
      shift_cost_pass(c_.launch, cost);
      smooth_pass(c_.launch, SmoothPass{p.raw, p.smoothed, p.tmp, cells_, count, 1, p.z, p.y, p.x});
      // A tenth of what unrelated features cost: far above noise, far below a wrong structure.
      c_.run(AddSpread{p.smoothed, p.keep.best_cost, cost.unrelated, 0.1f, cells_, shifts_, first,
                       count, moments});
    }
  }

  void make_consistent(float*& forward, float*& backward) {
    float* u = take(3);
    float* v = take(3);
    const Vec3 index_per_mm = inverse_of(cell_mm_);
    for (int round = 0; round < a_.consistency_rounds; ++round) {
      c_.run(InverseConsistent{forward, backward, u, cells_, index_per_mm});
      c_.run(InverseConsistent{backward, forward, v, cells_, index_per_mm});
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
  const Shape cells_;
  const Shifts shifts_;
  const Shape padded_;
  double cell_mm_[3];
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_SEARCH_H_
