// The ops of include/dinoreg that have no public function of their own, with one exported call
// each, so that the tests can compare every op with the reference separately. The tests build this
// file with the system's C++ compiler for its baseline instruction set, which also covers the
// portable conversions of half precision.
#include <vector>

#include "dinoreg/adam.h"
#include "dinoreg/correlation.h"
#include "dinoreg/cost.h"
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

Int3 int3(const int* v) { return {v[0], v[1], v[2]}; }

// From the centre and one side, radius + 1 numbers.
Taps taps_of(const float* weights, int radius) {
  Taps taps = {.radius = radius, .weight = {}};
  for (int t = 0; t <= radius; ++t) taps.weight[t] = weights[t];
  return taps;
}

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

void op_exp2_negative(const float* in, float* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = exp2_negative(in[i]);
}

// One axis of an array (outer, n, inner).
void op_smooth(const float* in, float* out, int outer, int n, int inner, const float* weights,
               int radius) {
  run(Smooth{.in = in,
             .out = out,
             .outer = outer,
             .n = n,
             .inner = inner,
             .taps = taps_of(weights, radius),
             .along_row = inner <= 4});
}

void op_pool_planar(const Half* features, const float* weight, const int* shape, int channels,
                    const int* offset, const int* factor, const int* margin, float* out,
                    float* out_weight, const int* out_shape) {
  run(PoolPlanar{.in = {features, weight, int3(shape), channels},
                 .channels = channels,
                 .factor = int3(factor),
                 .offset = int3(offset),
                 .margins = int3(margin),
                 .out = out,
                 .out_weight = out_weight,
                 .out_shape = int3(out_shape)});
}

// moments: room for rows * channels * 3; sums: for 2 * channels * 3.
void op_unrelated_cost(const float* fixed, const float* fixed_weight, const float* moving,
                       const float* moving_weight, const int* shape, int channels, float* moments,
                       double* sums, float trust_cost, float* out) {
  const int rows = shape[0] * shape[1], count = 3 * channels;
  FeatureMoments op = {.features = fixed,
                       .weight = fixed_weight,
                       .shape = int3(shape),
                       .channels = channels,
                       .out = moments};
  run(op);
  run(SumInOrder<float>{moments, count, rows, sums});
  op.features = moving;
  op.weight = moving_weight;
  run(op);
  run(SumInOrder<float>{moments, count, rows, sums + count});
  run(UnrelatedCost{.fixed = sums,
                    .moving = sums + count,
                    .channels = channels,
                    .trust_cost = trust_cost,
                    .out = out});
}

void op_shift_cost(const float* fixed, const float* fixed_weight, const float* moving,
                   const float* moving_weight, const int* padded, const int* shape, int channels,
                   const int* radius, int first_shift, int shift_count, float unrelated,
                   float trust_cost, float* out) {
  run(ShiftCost{.fixed = fixed,
                .fixed_weight = fixed_weight,
                .moving = moving,
                .moving_weight = moving_weight,
                .padded = int3(padded),
                .shape = int3(shape),
                .channels = channels,
                .shifts = {int3(radius)},
                .first_shift = first_shift,
                .shift_count = shift_count,
                .unrelated = &unrelated,
                .trust_cost = trust_cost,
                .out = out});
}

// All shifts in groups of `group`, as in the solver. near: (3, Z, Y, X) or null.
void op_best_shift(const float* cost, const float* near, const int* shape, const int* radius,
                   int group, float coupling, const float* step, float* best_cost, int* best_shift,
                   float* planes, float* field) {
  const Shape s = int3(shape);
  const Shifts shifts = {int3(radius)};
  for (int first = 0; first < shifts.count(); first += group)
    run(KeepBest{.cost = cost + (Index)first * s.voxels(),
                 .near = near,
                 .shape = s,
                 .shifts = shifts,
                 .first_shift = first,
                 .shift_count = min_int(group, shifts.count() - first),
                 .fresh = first == 0,
                 .coupling = coupling,
                 .step = load_vec3(step),
                 .best_cost = best_cost,
                 .best_shift = best_shift});
  run(ShiftsToPlanes{best_shift, s, shifts, planes});
  run(PlanesToField{planes, s, {1.0f, 1.0f, 1.0f}, field});
}

void op_inverse_consistent(const float* u, const float* v, float* out, const int* shape,
                           const float* index_per_mm) {
  run(InverseConsistent{{u, int3(shape), load_vec3(index_per_mm)}, v, out});
}

// The squared difference if mean_square is 0, otherwise the cosine. blocks: both images are in
// blocks of channels. weight: what `overlap` receives, if it is known, or null.
void op_feature_term(const Half* fixed, const float* fixed_weight, const int* shape,
                     const Half* moving, const float* moving_weight, const int* moving_shape,
                     const float* moving_offset, int channels, const float* field,
                     const float* index_per_mm, float scale, float trust_cost, float mean_square,
                     int blocks, const float* weight, float* energy, float* gradient,
                     float* overlap) {
  FeatureTerm op = {.fixed = {fixed, fixed_weight, int3(shape), channels},
                    .moving = {moving, moving_weight, int3(moving_shape), channels},
                    .moving_offset = load_vec3(moving_offset),
                    .u = {field, int3(shape), load_vec3(index_per_mm)},
                    .trust_cost = trust_cost,
                    .scale = scale,
                    .energy = energy,
                    .gradient = gradient,
                    .overlap = overlap,
                    .weight = weight};
  if (blocks != 0) {
    op.fixed.layout = in_blocks(op.fixed.shape);
    op.moving.layout = in_blocks(op.moving.shape);
  }
  if (mean_square > 0.0f)
    run(FeatureCosine{op, &mean_square});
  else
    run(FeatureDifference{op});
}

void op_feature_square(const Half* features, const float* weight, const int* shape, int channels,
                       float* out) {
  run(FeatureSquare{{features, weight, int3(shape), channels}, out});
}

void op_feature_channel(const Half* features, const int* shape, int channels, int channel,
                        float* out) {
  run(FeatureChannel{{features, nullptr, int3(shape), channels}, channel, out});
}

// (z, y, x, channels) to (channels / 8, z, y, x, 8).
void op_rearrange(const Half* features, const int* shape, int channels, Half* out) {
  const Shape s = int3(shape);
  run(Rearrange{{features, nullptr, s, channels}, out, in_blocks(s)});
}

// Adds to `gradient`. weights: the window's taps along z, y and x, one after the other.
void op_correlation(const float* fixed, const float* fixed_weight, const int* shape,
                    const float* moving, const float* moving_weight, const int* moving_shape,
                    const float* moving_offset, const float* field, const float* index_per_mm,
                    const float* weights, const int* radius, float noise, int squared, float scale,
                    float* energy, float* gradient) {
  const Shape s = int3(shape);
  const Index n = s.voxels();
  std::vector<float> warped(n), weight(n), sums(6 * n), factors(3 * n), another(n);
  const ImagePair pair = {.fixed = fixed,
                          .fixed_weight = fixed_weight,
                          .moving = moving,
                          .moving_weight = moving_weight,
                          .moving_shape = int3(moving_shape),
                          .moving_offset = load_vec3(moving_offset),
                          .u = {field, s, load_vec3(index_per_mm)}};
  run(WarpIntensity{.pair = pair, .warped = warped.data(), .weight = weight.data()});
  const float* weights_x = weights + radius[0] + radius[1] + 2;
  Smoothing windows = {
      .shape = s,
      .batch = 6,
      .taps = {taps_of(weights, radius[0]), taps_of(weights + radius[0] + 1, radius[1]),
               taps_of(weights_x, radius[2])},
      .tmp = sums.data(),
      .another = another.data()};
  smooth_with_ops(CpuLauncher(1), windows, WeightedProducts{weight.data(), fixed, warped.data()},
                  CorrelationFactors{.shape = s,
                                     .noise = noise,
                                     .squared = squared != 0,
                                     .factors = factors.data(),
                                     .energy = energy});
  windows.batch = 3;
  smooth_with_ops(CpuLauncher(1), windows, FromArrays{factors.data(), n},
                  AddCorrelationGradient{
                      .pair = pair, .weight = weight.data(), .scale = scale, .gradient = gradient});
}

void op_warp_vectors(const float* vectors, const float* field, const int* shape,
                     const float* index_per_mm, float* out) {
  run(WarpVectors{vectors, {field, int3(shape), load_vec3(index_per_mm)}, out});
}

void op_correct_velocity(float* velocity, const float* wanted, const float* reached, int count) {
  run(CorrectVelocity{
      .velocity = velocity, .wanted = wanted, .reached = reached, .row_count = 1, .x = count});
}

void op_smoothness_gradient(const float* field, float* gradient, const int* shape,
                            const float* factor) {
  run(AddSmoothnessGradient{field, gradient, int3(shape), load_vec3(factor)});
}

void op_fold_gradient(const float* field, float* gradient, const int* shape,
                      const float* index_per_mm, float margin, float scale) {
  const Shape s = int3(shape);
  const Displacement u = {field, s, load_vec3(index_per_mm)};
  std::vector<float> lack(s.voxels());
  run(FoldLack{u, margin, lack.data()});
  run(AddFoldGradient{u, lack.data(), gradient, &scale});
}

void op_adam(float* value, const float* gradient, float* first, float* second, int count,
             float step, float correction, float epsilon) {
  const AdamStep sink = {.value = value,
                         .first_moment = first,
                         .second_moment = second,
                         .width = count,
                         .beta1 = 0.9f,
                         .beta2 = 0.999f,
                         .step = &step,
                         .correction = &correction,
                         .epsilon = &epsilon};
  run(PutInto<AdamStep>{gradient, count, 1, count, sink});
}

// out: (z, y, x), the squared lengths, of whose mean and `share` epsilon is made.
void op_epsilon(const float* vectors, const int* shape, float share, float* out, float* epsilon) {
  const Shape s = int3(shape);
  run(SquaredLength{vectors, s, out});
  IterationState state = {};
  for (Index i = 0; i < s.voxels(); ++i) state.mean_square += out[i] / (float)s.voxels();
  run(SetEpsilon{&state, share});
  *epsilon = state.epsilon;
}

// factors: (iterations, 3), the step, correction and fold_penalty of each iteration of a level.
void op_advance_iteration(float beta1, float beta2, float learning_rate, float fold_penalty,
                          int earlier, int all, int iterations, float* factors) {
  IterationState state = {};
  for (int t = 0; t < iterations; ++t) {
    run(AdvanceIteration{.state = &state,
                         .beta1 = beta1,
                         .beta2 = beta2,
                         .learning_rate = learning_rate,
                         .fold_penalty = fold_penalty,
                         .earlier = earlier,
                         .all = all});
    *factors++ = state.step;
    *factors++ = state.correction;
    *factors++ = state.fold_penalty;
  }
}

// The sum of an image as in the solver: rows, planes, all. partial: room for z * y + z doubles.
void op_sum(const float* values, const int* shape, double* partial, double* out) {
  const Shape s = int3(shape);
  double* planes = partial + s.rows();
  run(SumInOrder<float>{values, s.rows(), s.x, partial});
  run(SumInOrder<double>{partial, s.z, s.y, planes});
  run(SumInOrder<double>{planes, 1, s.z, out});
}

void op_quotient(const double* a, const double* b, double* out) {
  run(Quotient<double>{a, b, out});
}

}  // extern "C"
