// Ops of include/dinoreg that have no public function of their own, one exported call each, so that
// the tests compare every op with the reference separately. Built by the tests with the system's
// C++ compiler for its baseline instruction set, which also covers the portable half precision.
#include <vector>

#include "dinoreg/adam.h"
#include "dinoreg/correlation.h"
#include "dinoreg/cost.h"
#include "dinoreg/edges.h"
#include "dinoreg/field.h"
#include "dinoreg/pool.h"
#include "dinoreg/regularity.h"
#include "dinoreg/similarity.h"
#include "dinoreg/smooth.h"
#include "dinoreg/sum.h"
#include "launch.h"
#include "passes.h"
#include "taps.h"

using namespace dr;

namespace {

Shape shape_of(const int* s) { return {s[0], s[1], s[2]}; }
Vec3 vec3_of(const float* v) { return {v[0], v[1], v[2]}; }
Shifts shifts_of(const int* r) { return {r[0], r[1], r[2]}; }

template <class Op>
void run(const Op& op) {
  CpuLauncher launch(1);
  launch(op);
}

}  // namespace

extern "C" {

void op_half_to_float(const unsigned short* in, float* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = half_to_float(in[i]);
}

void op_float_to_half(const float* in, unsigned short* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = float_to_half(in[i]);
}

void op_exp_negative(const float* in, float* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = exp_negative(in[i]);
}

// One axis of an array (outer, n, inner); weights: the centre and one side, radius + 1 numbers.
void op_smooth(const float* in, float* out, int outer, int n, int inner, const float* weights,
               int radius) {
  Taps taps = {};
  taps.radius = radius;
  for (int t = 0; t <= radius; ++t) taps.weight[t] = weights[t];
  run(Smooth{in, out, outer, n, inner, taps, inner <= 4});
}

void op_pool_planar(const Half* features, const float* weight, const int* shape, int channels,
                    const int* offset, const int* factor, const int* margin, float* out,
                    float* out_weight, const int* out_shape) {
  PoolPlanar op = {};
  op.features = features;
  op.weight = weight;
  op.shape = shape_of(shape);
  op.stride = op.channels = channels;
  op.offset_z = offset[0], op.offset_y = offset[1], op.offset_x = offset[2];
  op.factor_z = factor[0], op.factor_y = factor[1], op.factor_x = factor[2];
  op.margin_z = margin[0], op.margin_y = margin[1], op.margin_x = margin[2];
  op.out = out;
  op.out_weight = out_weight;
  op.out_shape = shape_of(out_shape);
  run(op);
}

// moments: room for rows * channels * 3; sums: for 2 * channels * 3.
void op_unrelated_cost(const float* fixed, const float* fixed_weight, const float* moving,
                       const float* moving_weight, const int* shape, int channels, float* moments,
                       double* sums, float trust_cost, float* out) {
  const int rows = shape[0] * shape[1], count = 3 * channels;
  run(FeatureMoments{fixed, fixed_weight, rows, channels, shape[2], moments});
  run(SumInOrder<float>{moments, count, rows, sums});
  run(FeatureMoments{moving, moving_weight, rows, channels, shape[2], moments});
  run(SumInOrder<float>{moments, count, rows, sums + count});
  run(UnrelatedCost{sums, sums + count, channels, out, trust_cost});
}

void op_shift_cost(const float* fixed, const float* fixed_weight, const float* moving,
                   const float* moving_weight, const int* padded, const int* shape, int channels,
                   const int* radius, int first_shift, int shift_count, float unrelated,
                   float trust_cost, float* out) {
  ShiftCost op = {};
  op.fixed = fixed;
  op.fixed_weight = fixed_weight;
  op.moving = moving;
  op.moving_weight = moving_weight;
  op.padded = shape_of(padded);
  op.shape = shape_of(shape);
  op.channels = channels;
  op.shifts = shifts_of(radius);
  op.first_shift = first_shift;
  op.shift_count = shift_count;
  op.unrelated = &unrelated;
  op.trust_cost = trust_cost;
  op.out = out;
  run(op);
}

// in and out: (3, Z, Y, X); features: (PZ, PY, channels, PX).
void op_smooth_within_edges(const float* in, const float* features, const float* weight,
                            const int* padded, const int* shape, const int* margin, int channels,
                            const float* sigma, float unrelated, float edges, float* out) {
  SmoothWithinEdges op = {};
  op.in = in;
  op.features = features;
  op.weight = weight;
  op.padded = shape_of(padded);
  op.shape = shape_of(shape);
  op.margin_z = margin[0], op.margin_y = margin[1], op.margin_x = margin[2];
  op.channels = channels;
  op.z = gaussian_taps(sigma[0], 1.0, shape[0], 2.0);
  op.y = gaussian_taps(sigma[1], 1.0, shape[1], 2.0);
  op.x = gaussian_taps(sigma[2], 1.0, shape[2], 2.0);
  op.unrelated = &unrelated;
  op.edges = edges;
  op.out = out;
  run(op);
}

// All shifts in groups of `group`, as the solver walks them. near: (3, Z, Y, X) or null.
void op_best_shift(const float* cost, const float* near, const int* shape, const int* radius,
                   int group, float coupling, const float* step, float* best_cost, int* best_shift,
                   float* planes, float* field) {
  const Shape s = shape_of(shape);
  const Shifts shifts = shifts_of(radius);
  for (int first = 0; first < shifts.count(); first += group) {
    KeepBest op = {};
    op.cost = cost + (Index)first * s.voxels();
    op.near = near;
    op.shape = s;
    op.shifts = shifts;
    op.first_shift = first;
    op.shift_count = min_int(group, shifts.count() - first);
    op.fresh = first == 0;
    op.coupling = coupling;
    op.step = vec3_of(step);
    op.best_cost = best_cost;
    op.best_shift = best_shift;
    run(op);
  }
  run(ShiftsToPlanes{best_shift, s, shifts, planes});
  run(PlanesToField{planes, s, {1.0f, 1.0f, 1.0f}, field});
}

void op_inverse_consistent(const float* u, const float* v, float* out, const int* shape,
                           const float* index_per_mm) {
  run(InverseConsistent{u, v, out, shape_of(shape), vec3_of(index_per_mm)});
}

// mean_square: 0 takes the squared difference, else the cosine.
void op_feature_term(const Half* fixed, const float* fixed_weight, const int* shape,
                     const Half* moving, const float* moving_weight, const int* moving_shape,
                     const float* moving_offset, int channels, const float* field,
                     const float* index_per_mm, float scale, float trust_cost, float mean_square,
                     float* energy, float* gradient, float* overlap) {
  FeatureTerm op = {};
  op.fixed = fixed;
  op.fixed_weight = fixed_weight;
  op.shape = shape_of(shape);
  op.moving = moving;
  op.moving_weight = moving_weight;
  op.moving_shape = shape_of(moving_shape);
  op.moving_offset = vec3_of(moving_offset);
  op.stride = channels;
  op.field = field;
  op.index_per_mm = vec3_of(index_per_mm);
  op.energy = energy;
  op.gradient = gradient;
  op.scale = scale;
  op.trust_cost = trust_cost;
  op.overlap = overlap;
  if (mean_square > 0.0f)
    run(FeatureCosine{op, &mean_square});
  else
    run(FeatureDifference{op});
}

void op_feature_square(const Half* features, const float* weight, const int* shape, int channels,
                       float* out) {
  run(FeatureSquare{features, weight, shape_of(shape), channels, out});
}

void op_feature_channel(const Half* features, const int* shape, int channels, int channel,
                        float* out) {
  run(FeatureChannel{features, shape_of(shape), channels, channel, out});
}

// gradient: added to. weights: of the window, the centre and one side, radius + 1 for each of z, y,
// x.
void op_correlation(const float* fixed, const float* fixed_weight, const int* shape,
                    const float* moving, const float* moving_weight, const int* moving_shape,
                    const float* moving_offset, const float* field, const float* index_per_mm,
                    const float* weights, const int* radius, float noise, int squared, float scale,
                    float* energy, float* gradient) {
  const Shape s = shape_of(shape);
  const Index n = s.voxels();
  std::vector<float> warped(n), weight(n), sums(6 * n), smoothed(6 * n), tmp(6 * n);
  const Vec3 offset = vec3_of(moving_offset), unit = vec3_of(index_per_mm);
  run(WarpIntensity{fixed_weight, s, moving, moving_weight, shape_of(moving_shape), offset, field,
                    unit, warped.data(), weight.data()});
  const float* m = warped.data();
  const float* pairs[6][2] = {{nullptr, nullptr}, {fixed, nullptr}, {m, nullptr},
                              {fixed, fixed},     {fixed, m},       {m, m}};
  for (int k = 0; k < 6; ++k)
    run(WeightedProduct{weight.data(), pairs[k][0], pairs[k][1], s, sums.data() + k * n});
  Taps taps[3] = {};
  for (int axis = 0; axis < 3; ++axis) {
    taps[axis].radius = radius[axis];
    for (int t = 0; t <= radius[axis]; ++t) taps[axis].weight[t] = *weights++;
  }
  const CpuLauncher launch(1);
  smooth_pass<CpuLauncher>(launch, SmoothPass{sums.data(), smoothed.data(), tmp.data(), s, 6, 1,
                                              taps[0], taps[1], taps[2]});
  run(CorrelationFactors{smoothed.data(), s, noise, squared != 0, nullptr});
  for (Index i = 0; i < n; ++i) energy[i] = smoothed[3 * n + i];
  smooth_pass<CpuLauncher>(launch, SmoothPass{smoothed.data(), sums.data(), tmp.data(), s, 3, 1,
                                              taps[0], taps[1], taps[2]});
  run(AddCorrelationGradient{fixed, weight.data(), s, moving, shape_of(moving_shape), offset, field,
                             unit, sums.data(), scale, nullptr, gradient});
}

void op_warp_vectors(const float* vectors, const float* field, const int* shape,
                     const float* index_per_mm, float* out) {
  run(WarpVectors{vectors, field, shape_of(shape), vec3_of(index_per_mm), out});
}

void op_correct_velocity(float* velocity, const float* wanted, const float* reached, int count) {
  run(CorrectVelocity{velocity, wanted, reached, 1, count});
}

void op_smoothness_gradient(const float* field, float* gradient, const int* shape,
                            const float* factor) {
  run(AddSmoothnessGradient{field, gradient, shape_of(shape), vec3_of(factor)});
}

void op_fold_gradient(const float* field, float* gradient, const int* shape,
                      const float* index_per_mm, float margin, float scale) {
  const Shape s = shape_of(shape);
  std::vector<float> lack(s.voxels());
  run(FoldLack{field, s, vec3_of(index_per_mm), margin, lack.data()});
  run(AddFoldGradient{field, lack.data(), gradient, s, vec3_of(index_per_mm), &scale});
}

void op_adam(float* value, const float* gradient, float* first, float* second, int count,
             float step, float correction, float epsilon) {
  run(AdamStep{value, gradient, first, second, 1, count, 0.9f, 0.999f, &step, &correction,
               &epsilon});
}

// out: (z, y, x). epsilon: from their mean and the share.
void op_epsilon(const float* vectors, const int* shape, float share, float* out, float* epsilon) {
  const Shape s = shape_of(shape);
  run(SquaredLength{vectors, s, out});
  IterationState state = {};
  for (Index i = 0; i < s.voxels(); ++i) state.mean_square += out[i] / (float)s.voxels();
  run(SetEpsilon{&state, share});
  *epsilon = state.epsilon;
}

// factors: (iterations, 3): step, correction, fold_penalty of each iteration of a level.
void op_advance_iteration(float beta1, float beta2, float learning_rate, float fold_penalty,
                          int earlier, int all, int iterations, float* factors) {
  IterationState state = {};
  for (int t = 0; t < iterations; ++t) {
    run(AdvanceIteration{&state, beta1, beta2, learning_rate, fold_penalty, earlier, all});
    *factors++ = state.step;
    *factors++ = state.correction;
    *factors++ = state.fold_penalty;
  }
}

// As the solver adds up an image: rows, planes, all. partial: room for z * y + z doubles.
void op_sum(const float* values, const int* shape, double* partial, double* out) {
  const Shape s = shape_of(shape);
  double* planes = partial + s.rows();
  run(SumInOrder<float>{values, s.rows(), s.x, partial});
  run(SumInOrder<double>{partial, s.z, s.y, planes});
  run(SumInOrder<double>{planes, 1, s.z, out});
}

void op_quotient(const double* a, const double* b, double* out) {
  run(Quotient<double>{a, b, out});
}

}  // extern "C"
