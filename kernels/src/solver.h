// The one solver loop: coarse discrete search, coupled-convex rounds, inverse consistency, Adam.
//
// Follows the structure of Siebert, Hansen & Heinrich, "ConvexAdam" (IEEE TMI 2024), in
// millimetres per axis and with borders, voxel scaling and outside-of-view handled explicitly.
#ifndef DINOREG_SRC_SOLVER_H_
#define DINOREG_SRC_SOLVER_H_

#include <math.h>

#include "convert.h"
#include "dinoreg/adam.h"
#include "dinoreg/cost.h"
#include "dinoreg/field.h"
#include "dinoreg/pool.h"
#include "dinoreg/regularity.h"
#include "dinoreg/similarity.h"
#include "dinoreg/smooth.h"
#include "passes.h"

DR_NAMESPACE_BEGIN

// Hands out 256-byte aligned pieces of a workspace; without a base it only counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(size_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (count * sizeof(T) + 255) / 256 * 256;
    if (used_ > peak_) peak_ = used_;
    return piece;
  }
  // Gives back everything taken since `mark` was read: stages reuse each other's memory.
  size_t mark() const { return used_; }
  void release(size_t mark) { used_ = mark; }
  size_t peak() const { return peak_; }

 private:
  char* base_;
  size_t used_ = 0, peak_ = 0;
};

// Gaussian taps for a width in millimetres; an axis with coarse spacing is smoothed less.
inline Taps gaussian_taps(double sigma_mm, double spacing_mm, int n) {
  const double sigma = sigma_mm / spacing_mm;
  Taps taps = {};
  if (n < 2 || sigma < 0.05) {
    taps.weight[0] = 1.0f;
    return taps;
  }
  const int wanted = (int)ceil(2.5 * sigma);
  taps.radius = wanted < kMaxTapRadius ? wanted : kMaxTapRadius;
  double weight[kMaxTapRadius + 1], sum = 0.0;
  for (int t = 0; t <= taps.radius; ++t) {
    weight[t] = exp(-0.5 * t * t / (sigma * sigma));
    sum += t == 0 ? weight[t] : 2.0 * weight[t];
  }
  for (int t = 0; t <= taps.radius; ++t) taps.weight[t] = (float)(weight[t] / sum);
  return taps;
}

template <class Launcher>
class Solver {
 public:
  Solver(const Launcher& launch, const dr_execution& execution, dr_solver_args& args)
      : launch_(launch), execution_(execution), a_(args), work_(args.workspace),
        shape_(to_shape(args.fixed_shape)) {
    for (int i = 0; i < 3; ++i) cell_mm_[i] = a_.spacing_mm[i] * a_.search_factor[i];
    coarse_ = {divide_up(shape_.z, a_.search_factor[0]), divide_up(shape_.y, a_.search_factor[1]),
               divide_up(shape_.x, a_.search_factor[2])};
    shifts_ = {a_.search_radius[0], a_.search_radius[1], a_.search_radius[2]};
  }

  static size_t workspace_bytes(const dr_solver_args& args) {
    dr_solver_args counted = args;
    counted.workspace = nullptr;
    const dr_execution none = {};
    Solver solver(Launcher::counting(), none, counted);
    solver.solve();
    return solver.work_.peak();
  }

  dr_status solve() {
    x_ = work_.take<float>(field_floats());
    row_sums_ = work_.take<float>(shape_.rows());
    scratch_ = work_.take<float>(field_floats());
    field_ = a_.field;
    if (!counting()) {
      launch_.zero(field_, sizeof(float) * field_floats());
      launch_.zero(x_, sizeof(float) * field_floats());
      a_.similarity[0] = mean_similarity();
    }
    const size_t mark = work_.mark();
    if (shifts_.count() > 1) {
      if (!search()) return DR_ERROR_CANCELLED;
      work_.release(mark);
    }
    if (!refine()) return DR_ERROR_CANCELLED;
    if (!counting()) a_.similarity[1] = mean_similarity();
    return DR_OK;
  }

 private:
  bool counting() const { return a_.workspace == nullptr; }
  size_t field_floats() const { return 3 * (size_t)shape_.voxels(); }
  size_t coarse_floats() const { return 3 * (size_t)coarse_.voxels(); }

  template <class Op>
  void run(const Op& op) const {
    if (!counting()) launch_(op);
  }

  bool report(dr_stage stage, float fraction) const {
    if (counting() || execution_.progress == nullptr) return true;
    return execution_.progress(execution_.progress_user, stage, fraction) == 0;
  }

  // in -> out through tmp; all three differ.
  void smooth(const float* in, float* out, float* tmp, const Shape& s, int batch, int components,
              double sigma_mm, const double* spacing_mm) const {
    if (counting()) return;
    smooth_pass(launch_, SmoothPass{in, out, tmp, s, batch, components,
                                    gaussian_taps(sigma_mm, spacing_mm[0], s.z),
                                    gaussian_taps(sigma_mm, spacing_mm[1], s.y),
                                    gaussian_taps(sigma_mm, spacing_mm[2], s.x)});
  }

  // The images on one lattice, and the displacement there.
  struct Level {
    const Half *fixed, *moving;
    const float *fixed_weight, *moving_weight;
    Shape shape, moving_shape;
    int moving_offset[3];
    double spacing_mm[3];
    float *x, *field;
    int factor[3];  // voxels of the finest lattice per voxel

    size_t floats() const { return 3 * (size_t)shape.voxels(); }
  };

  Level finest() const {
    Level l = {a_.fixed,
               a_.moving,
               a_.fixed_weight,
               a_.moving_weight,
               shape_,
               to_shape(a_.moving_shape),
               {},
               {},
               x_,
               field_,
               {1, 1, 1}};
    for (int i = 0; i < 3; ++i) {
      l.moving_offset[i] = a_.moving_offset[i];
      l.spacing_mm[i] = a_.spacing_mm[i];
    }
    return l;
  }

  FeatureDifference difference(const Level& l) const {
    return {l.fixed,
            l.fixed_weight,
            l.shape,
            l.moving,
            l.moving_weight,
            l.moving_shape,
            {(float)l.moving_offset[0], (float)l.moving_offset[1], (float)l.moving_offset[2]},
            a_.stride,
            l.field,
            inverse_of(l.spacing_mm),
            nullptr,
            nullptr,
            0.0f,
            nullptr};
  }

  // Mean energy over the weight that meets moving weight; also sets overlap. Waits for the device.
  double mean_similarity() {
    FeatureDifference op = difference(finest());
    float* energy = scratch_;
    float* weight = scratch_ + shape_.voxels();
    op.energy = energy;
    op.overlap = weight;
    run(op);
    const double total = sum(energy), met = sum(weight), all = sum(a_.fixed_weight);
    a_.overlap = all > 0.0 ? met / all : 0.0;
    return met > 0.0 ? total / met : 0.0;
  }

  double sum(const float* values) {
    run(SumRows{values, shape_.rows(), shape_.x, row_sums_});
    double total = 0.0;
    float part[256];
    for (int row = 0; row < shape_.rows(); row += 256) {
      const int count = min_int(256, shape_.rows() - row);
      launch_.to_host(part, row_sums_ + row, sizeof(float) * count);
      for (int i = 0; i < count; ++i) total += part[i];
    }
    return total;
  }

  // ---- discrete search -------------------------------------------------------------------------

  struct Coarse {
    float* features;
    float* weight;
  };

  Coarse pool(const Half* features, const float* weight, const Shape& shape, const int32_t* offset,
              const Shape& padded) {
    const Coarse c = {work_.take<float>(padded.voxels() * a_.channels),
                      work_.take<float>(padded.voxels())};
    run(PoolPlanar{features, weight, shape, a_.stride, a_.channels, offset[0], offset[1], offset[2],
                   a_.search_factor[0], a_.search_factor[1], a_.search_factor[2], shifts_.radius_z,
                   shifts_.radius_y, shifts_.radius_x, c.features, c.weight, padded});
    return c;
  }

  bool search() {
    const Shape padded = {coarse_.z + 2 * shifts_.radius_z, coarse_.y + 2 * shifts_.radius_y,
                          coarse_.x + 2 * shifts_.radius_x};
    const int32_t origin[3] = {0, 0, 0};
    const Coarse fixed = pool(a_.fixed, a_.fixed_weight, shape_, origin, padded);
    const Coarse moving =
        pool(a_.moving, a_.moving_weight, to_shape(a_.moving_shape), a_.moving_offset, padded);
    float* unrelated = unrelated_cost(fixed, moving, padded);
    float* forward = work_.take<float>(coarse_floats());
    float* backward = work_.take<float>(coarse_floats());
    const bool both = a_.consistency_rounds > 0;
    float* spread = a_.spread == nullptr ? nullptr : work_.take<float>(coarse_floats());
    float* moments = a_.spread == nullptr ? nullptr : work_.take<float>(7 * coarse_.voxels());
    if (!best_field(fixed, moving, padded, unrelated, forward, 0.0f, both ? 0.5f : 1.0f, moments))
      return false;
    if (a_.spread != nullptr) {
      run(SpreadToField{moments, coarse_, to_vec3(cell_mm_), spread});
      resize(spread, coarse_, a_.spread, shape_, a_.search_factor, false);
    }
    if (both) {
      if (!best_field(moving, fixed, padded, unrelated, backward, 0.5f, 0.5f)) return false;
      make_consistent(forward, backward);
    }
    resize(forward, coarse_, x_, shape_, a_.search_factor, false);
    return report(DR_STAGE_SEARCH, 1.0f);
  }

  float* unrelated_cost(const Coarse& fixed, const Coarse& moving, const Shape& padded) {
    float* moments[2];
    for (int i = 0; i < 2; ++i) {
      const Coarse& image = i == 0 ? fixed : moving;
      moments[i] = work_.take<float>((size_t)padded.rows() * a_.channels * 3);
      run(FeatureMoments{image.features, image.weight, padded.rows(), a_.channels, padded.x,
                         moments[i]});
    }
    float* cost = work_.take<float>(1);
    run(UnrelatedCost{moments[0], moments[1], padded.rows(), a_.channels, cost});
    return cost;
  }

  // The coupled-convex rounds: every voxel's best shift, smoothed, pulls the next choice to itself.
  bool best_field(const Coarse& fixed, const Coarse& moving, const Shape& padded,
                  const float* unrelated, float* out, float from, float share,
                  float* moments = nullptr) {
    const size_t mark = work_.mark(), voxels = coarse_.voxels();
    const SearchBuffers wanted = search_buffers(launch_, shifts_);
    float* buffers[3];
    for (float*& buffer : buffers) buffer = work_.take<float>(voxels * wanted.costs);
    float* best_cost = work_.take<float>(voxels * wanted.minima);
    int* best_shift = work_.take<int>(voxels * wanted.minima);
    float* raw = work_.take<float>(coarse_floats());
    float* planes = work_.take<float>(coarse_floats());
    float* tmp = work_.take<float>(coarse_floats());
    const double largest = fmax(cell_mm_[0], fmax(cell_mm_[1], cell_mm_[2]));
    const Vec3 step = (float)(1.0 / largest) * to_vec3(cell_mm_);
    SearchPass pass = {
        ShiftCost{fixed.features, fixed.weight, moving.features, moving.weight, padded, coarse_,
                  a_.channels, shifts_, 0, 0, unrelated, nullptr},
        gaussian_taps(a_.cost_smoothing_mm, cell_mm_[0], coarse_.z),
        gaussian_taps(a_.cost_smoothing_mm, cell_mm_[1], coarse_.y),
        gaussian_taps(a_.cost_smoothing_mm, cell_mm_[2], coarse_.x),
        KeepBest{nullptr, nullptr, coarse_, shifts_, 0, 0, true, 0.0f, step, best_cost, best_shift},
        buffers[0],
        buffers[1],
        buffers[2]};
    for (int round = 0; round <= a_.coupling_rounds && !counting(); ++round) {
      search_pass(launch_, pass);
      if (round == 0 && moments != nullptr) add_spread(pass, moments);
      run(ShiftsToPlanes{best_shift, coarse_, shifts_, raw});
      smooth(raw, planes, tmp, coarse_, 3, 1, a_.field_smoothing_mm, cell_mm_);
      if (!report(DR_STAGE_SEARCH,
                  from + share * (float)(round + 1) / (float)(a_.coupling_rounds + 1)))
        return false;
      pass.keep.near = planes;
      if (round < a_.coupling_rounds) pass.keep.coupling = (float)a_.coupling[round];
    }
    run(PlanesToField{planes, coarse_, to_vec3(cell_mm_), out});
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
      shift_cost_pass(launch_, cost);
      smooth_pass(launch_, SmoothPass{p.raw, p.smoothed, p.tmp, coarse_, count, 1, p.z, p.y, p.x});
      // A tenth of what unrelated features cost: far above noise, far below a wrong structure.
      launch_(AddSpread{p.smoothed, p.keep.best_cost, cost.unrelated, 0.1f, coarse_, shifts_, first,
                        count, moments});
    }
  }

  void make_consistent(float*& forward, float*& backward) {
    float* u = work_.take<float>(coarse_floats());
    float* v = work_.take<float>(coarse_floats());
    const Vec3 index_per_mm = inverse_of(cell_mm_);
    for (int round = 0; round < a_.consistency_rounds; ++round) {
      run(InverseConsistent{forward, backward, u, coarse_, index_per_mm});
      run(InverseConsistent{backward, forward, v, coarse_, index_per_mm});
      float* old = forward;
      forward = u;
      u = old;
      old = backward;
      backward = v;
      v = old;
    }
  }

  // ---- refinement ------------------------------------------------------------------------------

  bool refine() {
    for (int k = 0; k < a_.levels; ++k) {
      const size_t mark = work_.mark();
      const int scale = 1 << (a_.levels - 1 - k);
      const Level level = scale == 1 ? finest() : coarser(scale);
      if (scale > 1) resize(x_, shape_, level.x, level.shape, level.factor, true);
      if (!adam(level, scale, a_.iterations[k])) return false;
      if (scale > 1) resize(level.field, level.shape, x_, shape_, level.factor, false);
      work_.release(mark);
    }
    return true;
  }

  // Voxels `scale` times as large; an axis that is coarse already is pooled less or not at all.
  Level coarser(int scale) {
    Level l = finest();
    const double smallest = fmin(l.spacing_mm[0], fmin(l.spacing_mm[1], l.spacing_mm[2]));
    int offset[3], shape[3], moving_shape[3];
    for (int i = 0; i < 3; ++i) {
      const int f = max_int(1, (int)(scale * smallest / l.spacing_mm[i] + 0.5));
      l.factor[i] = f;
      l.spacing_mm[i] *= f;
      // The moving grid starts with the cell that holds its first voxel.
      l.moving_offset[i] = (int)floor((double)a_.moving_offset[i] / f);
      offset[i] = a_.moving_offset[i] - l.moving_offset[i] * f;
      shape[i] = divide_up(a_.fixed_shape[i], f);
      moving_shape[i] = divide_up(a_.moving_shape[i] + offset[i], f);
    }
    const int none[3] = {0, 0, 0};
    l.shape = to_shape(shape);
    l.moving_shape = to_shape(moving_shape);
    pool_features(a_.fixed, a_.fixed_weight, shape_, l.factor, none, l.shape, l.fixed,
                  l.fixed_weight);
    pool_features(a_.moving, a_.moving_weight, to_shape(a_.moving_shape), l.factor, offset,
                  l.moving_shape, l.moving, l.moving_weight);
    l.x = work_.take<float>(l.floats());
    l.field = work_.take<float>(l.floats());
    return l;
  }

  void pool_features(const Half* features, const float* weight, const Shape& shape,
                     const int* factor, const int* offset, const Shape& out_shape, const Half*& out,
                     const float*& out_weight) {
    Half* to = work_.take<Half>(out_shape.voxels() * a_.stride);
    float* to_weight = work_.take<float>(out_shape.voxels());
    run(PoolFeatures{features, weight, shape, a_.stride, factor[0], factor[1], factor[2], offset[0],
                     offset[1], offset[2], to, to_weight, out_shape});
    out = to;
    out_weight = to_weight;
  }

  // A field on a lattice whose cells are `factor` voxels of the other. Cell centres lie half a cell
  // from its corner.
  void resize(const float* in, const Shape& in_shape, float* out, const Shape& out_shape,
              const int* factor, bool to_coarse) const {
    Affine map = {};
    for (int i = 0; i < 3; ++i) {
      const float f = (float)factor[i];
      map.m[5 * i] = to_coarse ? f : 1.0f / f;
      map.m[4 * i + 3] = to_coarse ? (f - 1.0f) / 2.0f : (1.0f - f) / (2.0f * f);
    }
    const Matrix3 one = {{1, 0, 0, 0, 1, 0, 0, 0, 1}};
    run(MapField{out, out_shape, PointMap{Affine{}, in, in_shape, map, one, false}});
  }

  bool adam(const Level& l, int scale, int iterations) {
    float* gradient = work_.take<float>(l.floats());
    float* moments[2] = {work_.take<float>(l.floats()), work_.take<float>(l.floats())};
    if (!counting())
      for (float* m : moments) launch_.zero(m, sizeof(float) * l.floats());
    const double beta1 = 0.9, beta2 = 0.999, sigma_mm = a_.smoothing_mm * scale;
    for (int t = 1; t <= iterations && !counting(); ++t) {
      smooth(l.x, l.field, scratch_, l.shape, 1, 3, sigma_mm, l.spacing_mm);
      // The matching goes first; at full weight from the start the penalty would bar its way.
      const double done = (double)done_ / total_iterations();
      add_gradients(l, gradient, a_.fold_penalty * done * done);
      // The displacement is not read again before it is made anew: its memory is free until then.
      smooth(gradient, l.field, scratch_, l.shape, 1, 3, sigma_mm, l.spacing_mm);
      run(AdamStep{l.x, l.field, moments[0], moments[1], l.shape.rows(), 3 * l.shape.x,
                   (float)beta1, (float)beta2,
                   (float)(a_.learning_rate_mm * scale / (1.0 - pow(beta1, t))),
                   (float)(1.0 / (1.0 - pow(beta2, t))), 1e-8f});
      ++done_;
      if (!report(DR_STAGE_REFINE, (float)done_ / (float)total_iterations())) return false;
    }
    smooth(l.x, l.field, scratch_, l.shape, 1, 3, sigma_mm, l.spacing_mm);
    return true;
  }

  int total_iterations() const {
    int all = 0;
    for (int k = 0; k < a_.levels; ++k) all += a_.iterations[k];
    return all;
  }

  // d/du of sum w |M(p+u) - F|^2 / n + lambda sum |grad u|^2 / 3n + penalty / n. Constant factors
  // do not change what Adam does, so n is left out everywhere.
  void add_gradients(const Level& l, float* gradient, double fold_penalty) const {
    FeatureDifference data = difference(l);
    data.gradient = gradient;
    data.scale = 1.0f;
    run(data);
    const double* mm = l.spacing_mm;
    const double scale = 2.0 * a_.smoothness / 3.0;
    run(AddSmoothnessGradient{l.field,
                              gradient,
                              l.shape,
                              {(float)(scale / (mm[0] * mm[0])), (float)(scale / (mm[1] * mm[1])),
                               (float)(scale / (mm[2] * mm[2]))}});
    if (fold_penalty <= 0.0) return;
    float* lack = scratch_;
    run(FoldLack{l.field, l.shape, inverse_of(mm), (float)a_.fold_margin, lack});
    run(AddFoldGradient{l.field, lack, gradient, l.shape, inverse_of(mm), (float)fold_penalty});
  }

  const Launcher& launch_;
  const dr_execution& execution_;
  dr_solver_args& a_;
  Workspace work_;
  Shape shape_, coarse_;
  Shifts shifts_;
  double cell_mm_[3];
  int done_ = 0;
  float *x_ = nullptr, *field_ = nullptr, *scratch_ = nullptr, *row_sums_ = nullptr;
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_SOLVER_H_
