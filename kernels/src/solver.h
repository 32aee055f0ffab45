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

  // in -> out through tmp; all three differ. Components stay together: inner = 3 numbers.
  void smooth(const float* in, float* out, float* tmp, const Shape& s, int batch, int components,
              double sigma_mm, const double* spacing_mm) const {
    const Taps z = gaussian_taps(sigma_mm, spacing_mm[0], s.z);
    const Taps y = gaussian_taps(sigma_mm, spacing_mm[1], s.y);
    const Taps x = gaussian_taps(sigma_mm, spacing_mm[2], s.x);
    run(Smooth{in, out, batch * s.z * s.y, s.x, components, x});
    run(Smooth{out, tmp, batch * s.z, s.y, s.x * components, y});
    run(Smooth{tmp, out, batch, s.z, s.y * s.x * components, z});
  }

  FeatureDifference difference() const {
    return {a_.fixed,
            a_.fixed_weight,
            shape_,
            a_.moving,
            a_.moving_weight,
            to_shape(a_.moving_shape),
            {(float)a_.moving_offset[0], (float)a_.moving_offset[1], (float)a_.moving_offset[2]},
            a_.channels,
            field_,
            inverse_of(a_.spacing_mm),
            nullptr,
            nullptr,
            0.0f,
            nullptr};
  }

  // Mean energy over the weight that meets moving weight; also sets overlap. Waits for the device.
  double mean_similarity() {
    FeatureDifference op = difference();
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
    run(PoolPlanar{features, weight, shape, a_.channels, a_.channels, offset[0], offset[1],
                   offset[2], a_.search_factor[0], a_.search_factor[1], a_.search_factor[2],
                   shifts_.radius_z, shifts_.radius_y, shifts_.radius_x, c.features, c.weight,
                   padded});
    return c;
  }

  bool search() {
    const Shape padded = {coarse_.z + 2 * shifts_.radius_z, coarse_.y + 2 * shifts_.radius_y,
                          coarse_.x + 2 * shifts_.radius_x};
    const int32_t origin[3] = {0, 0, 0};
    const Coarse fixed = pool(a_.fixed, a_.fixed_weight, shape_, origin, padded);
    const Coarse moving = pool(a_.moving, a_.moving_weight, to_shape(a_.moving_shape),
                               a_.moving_offset, padded);
    float* unrelated = unrelated_cost(fixed, moving, padded);
    float* forward = work_.take<float>(coarse_floats());
    float* backward = work_.take<float>(coarse_floats());
    const bool both = a_.consistency_rounds > 0;
    if (!best_field(fixed, moving, padded, unrelated, forward, 0.0f, both ? 0.5f : 1.0f))
      return false;
    if (both) {
      if (!best_field(moving, fixed, padded, unrelated, backward, 0.5f, 0.5f)) return false;
      make_consistent(forward, backward);
    }
    // Cell centres of the coarse grid lie half a cell from its corner.
    Affine to_coarse = {};
    for (int i = 0; i < 3; ++i) {
      const float f = (float)a_.search_factor[i];
      to_coarse.m[5 * i] = 1.0f / f;
      to_coarse.m[4 * i + 3] = -(f - 1.0f) / (2.0f * f);
    }
    const Matrix3 one = {{1, 0, 0, 0, 1, 0, 0, 0, 1}};
    run(MapField{x_, shape_, PointMap{Affine{}, forward, coarse_, to_coarse, one}});
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

  // Shifts are treated in groups of one (z, y) each: few enough to stay in the cache.
  bool best_field(const Coarse& fixed, const Coarse& moving, const Shape& padded,
                  const float* unrelated, float* out, float from, float share) {
    const size_t mark = work_.mark();
    const int group = shifts_.count_x();
    const size_t voxels = coarse_.voxels();
    float* cost = work_.take<float>(voxels * group);
    float* smoothed = work_.take<float>(voxels * group);
    float* tmp = work_.take<float>(voxels * (group > 3 ? group : 3));
    float* best_cost = work_.take<float>(voxels);
    int* best_shift = work_.take<int>(voxels);
    float* raw = work_.take<float>(coarse_floats());
    const double largest = fmax(cell_mm_[0], fmax(cell_mm_[1], cell_mm_[2]));
    const Vec3 step = {(float)(cell_mm_[0] / largest), (float)(cell_mm_[1] / largest),
                       (float)(cell_mm_[2] / largest)};
    for (int round = 0; round <= a_.coupling_rounds; ++round) {
      for (int s = 0; s < shifts_.count(); s += group) {
        run(ShiftCost{fixed.features, fixed.weight, moving.features, moving.weight, padded,
                      coarse_, a_.channels, shifts_, s, group, unrelated, cost});
        smooth(cost, smoothed, tmp, coarse_, group, 1, a_.cost_smoothing_mm, cell_mm_);
        run(KeepBest{smoothed, round == 0 ? nullptr : out, coarse_, shifts_, s, group,
                     round == 0 ? 0.0f : (float)a_.coupling[round - 1], step, best_cost,
                     best_shift});
      }
      run(ShiftsToField{best_shift, coarse_, shifts_, {1.0f, 1.0f, 1.0f}, raw});
      smooth(raw, out, tmp, coarse_, 1, 3, a_.field_smoothing_mm, cell_mm_);
      if (!report(DR_STAGE_SEARCH,
                  from + share * (float)(round + 1) / (float)(a_.coupling_rounds + 1)))
        return false;
    }
    scale_to_mm(out, raw);
    work_.release(mark);
    return true;
  }

  // Steps of the search -> millimetres, through a map with a diagonal matrix.
  void scale_to_mm(float* field, float* tmp) {
    if (counting()) return;
    launch_.copy(tmp, field, sizeof(float) * coarse_floats());
    const Affine same = {{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0}};
    const Matrix3 mm = {{(float)cell_mm_[0], 0, 0, 0, (float)cell_mm_[1], 0, 0, 0,
                         (float)cell_mm_[2]}};
    run(MapField{field, coarse_, PointMap{Affine{}, tmp, coarse_, same, mm}});
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
    float* gradient = work_.take<float>(field_floats());
    float* smooth_gradient = work_.take<float>(field_floats());
    float* moments[2] = {work_.take<float>(field_floats()), work_.take<float>(field_floats())};
    if (!counting())
      for (float* m : moments) launch_.zero(m, sizeof(float) * field_floats());
    const double beta1 = 0.9, beta2 = 0.999;
    for (int t = 1; t <= a_.iterations; ++t) {
      smooth(x_, field_, scratch_, shape_, 1, 3, a_.smoothing_mm, a_.spacing_mm);
      add_gradients(gradient);
      smooth(gradient, smooth_gradient, scratch_, shape_, 1, 3, a_.smoothing_mm, a_.spacing_mm);
      run(AdamStep{x_, smooth_gradient, moments[0], moments[1], shape_.rows(), 3 * shape_.x,
                   (float)beta1, (float)beta2,
                   (float)(a_.learning_rate_mm / (1.0 - pow(beta1, t))),
                   (float)(1.0 / (1.0 - pow(beta2, t))), 1e-8f});
      if (counting()) break;
      if (!report(DR_STAGE_REFINE, (float)t / (float)a_.iterations)) return false;
    }
    smooth(x_, field_, scratch_, shape_, 1, 3, a_.smoothing_mm, a_.spacing_mm);
    return true;
  }

  // d/du of sum w |M(p+u) - F|^2 / n + lambda sum |grad u|^2 / 3n + penalty / n. Constant factors
  // do not change what Adam does, so n is left out everywhere.
  void add_gradients(float* gradient) const {
    FeatureDifference data = difference();
    data.gradient = gradient;
    data.scale = 1.0f;
    run(data);
    const double* mm = a_.spacing_mm;
    const double scale = 2.0 * a_.smoothness / 3.0;
    run(AddSmoothnessGradient{field_, gradient, shape_,
                              {(float)(scale / (mm[0] * mm[0])), (float)(scale / (mm[1] * mm[1])),
                               (float)(scale / (mm[2] * mm[2]))}});
    if (a_.fold_penalty > 0.0)
      run(AddFoldGradient{field_, gradient, shape_, inverse_of(mm), (float)a_.fold_margin,
                          (float)a_.fold_penalty});
  }

  const Launcher& launch_;
  const dr_execution& execution_;
  dr_solver_args& a_;
  Workspace work_;
  Shape shape_, coarse_;
  Shifts shifts_;
  double cell_mm_[3];
  float *x_ = nullptr, *field_ = nullptr, *scratch_ = nullptr, *row_sums_ = nullptr;
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_SOLVER_H_
