// Every public operation as a sequence of ops, written once for any launcher (CPU or CUDA).
// capi.cpp has checked the arguments.
#ifndef DINOREG_SRC_OPERATIONS_H_
#define DINOREG_SRC_OPERATIONS_H_

#include "convert.h"
#include "dinoreg/field.h"
#include "dinoreg/local_intensity.h"
#include "dinoreg/pool.h"
#include "dinoreg/resample.h"
#include "dinoreg/slices.h"
#include "dinoreg/sum.h"
#include "dinoreg/token_sampling.h"
#include "mind_pass.h"
#include "solver.h"
#include "taps.h"
#include "workspace.h"

DR_NAMESPACE_BEGIN

// Whether the points that each output voxel averages are exactly the input voxels it covers.
inline bool averages_voxels(const dr_resample_args& a) {
  if (a.out == nullptr || a.inside != nullptr || a.map.field != nullptr) return false;
  for (int i = 0; i < 3; ++i) {
    if (a.out_shape[i] != divide_up(a.in_shape[i], a.samples[i])) return false;
    for (int j = 0; j < 4; ++j) {
      const double wanted = j == 3 ? 0.5 * (a.samples[i] - 1) : (i == j ? a.samples[i] : 0.0);
      if (a.map.affine[4 * i + j] != wanted) return false;
    }
  }
  return true;
}

template <class Launcher>
dr_status resample_image(const Launcher& launch, const dr_resample_args& a) {
  if (averages_voxels(a))  // nothing to interpolate
    launch(PoolMoments{.image = a.in,
                       .shape = to_int3(a.in_shape),
                       .factor = to_int3(a.samples),
                       .offset = {},
                       .mean = a.out,
                       .out_shape = to_int3(a.out_shape)});
  else
    launch(ResampleLinear{.in = a.in,
                          .in_shape = to_int3(a.in_shape),
                          .out = a.out,
                          .out_shape = to_int3(a.out_shape),
                          .inside = a.inside,
                          .map = to_point_map(a.map, a.out_shape),
                          .samples = to_int3(a.samples),
                          .outside = a.outside,
                          .extend = a.extend != 0});
  return DR_OK;
}

template <class Launcher>
dr_status resample_labels(const Launcher& launch, const dr_labels_args& a) {
  launch(ResampleLabels{.in = a.in,
                        .in_shape = to_int3(a.in_shape),
                        .out = a.out,
                        .out_shape = to_int3(a.out_shape),
                        .map = to_point_map(a.map, a.out_shape),
                        .nearest = a.nearest != 0,
                        .outside = a.outside});
  return DR_OK;
}

inline ResizedAxis resized_axis(int voxels, int pixels, int samples) {
  const double step = (double)voxels / pixels;
  return {.voxels = voxels,
          .pixels = pixels,
          .samples = samples,
          .step = (float)step,
          .first = (float)(0.5 * step - 0.5)};
}

template <class Launcher>
dr_status cut_slices(const Launcher& launch, const dr_slices_args& a) {
  CutSlices op = {};
  op.image = a.image;
  op.strides = to_int3(a.strides);
  op.y_axis = resized_axis(a.shape[1], a.size[0], a.samples[0]);
  op.x_axis = resized_axis(a.shape[2], a.size[1], a.samples[1]);
  op.low = (float)a.window[0];
  op.per_range = (float)(1.0 / (a.window[1] - a.window[0]));
  op.channels = a.channels;
  for (int c = 0; c < a.channels; ++c) {
    op.factor[c] = (float)(1.0 / a.std[c]);
    op.shift[c] = (float)(-a.mean[c] / a.std[c]);
  }
  for (int first = 0; first < a.count; first += op.count) {
    op.count = min_int(a.count - first, CutSlices::kMostSlices);
    for (int i = 0; i < op.count; ++i) op.slices[i] = a.slices[first + i];
    op.out = a.out + (Index)first * a.channels * a.size[0] * a.size[1];
    launch(op);
  }
  return DR_OK;
}

template <class Launcher>
dr_status map_field(const Launcher& launch, const dr_map_args& a) {
  launch(MapField{a.out, to_int3(a.out_shape), to_point_map(a.map, a.out_shape)});
  return DR_OK;
}

template <class Launcher>
dr_status jacobian(const Launcher& launch, const dr_jacobian_args& a) {
  launch(JacobianDeterminant{a.field, a.out, to_int3(a.shape), to_matrix(a.index_from_unit)});
  return DR_OK;
}

template <class Launcher>
dr_status compose(const Launcher& launch, const dr_compose_args& a) {
  launch(Compose{.first = {a.first, to_int3(a.shape), inverse_of(a.spacing_mm)},
                 .second = a.second,
                 .second_shape = to_int3(a.second_shape),
                 .to_second = to_affine(a.to_second),
                 .out = a.out});
  return DR_OK;
}

template <class Launcher>
dr_status invert(const Launcher& launch, const dr_invert_args& a) {
  launch(Invert{.field = a.field,
                .field_shape = to_int3(a.field_shape),
                .matrix = to_matrix(a.matrix),
                .target = to_affine(a.target),
                .wanted = a.wanted,
                .from_point = to_affine(a.from_point),
                .from_index = to_affine(a.from_index),
                .out = a.out,
                .residual_mm = a.residual_mm,
                .out_shape = to_int3(a.out_shape),
                .mm_per_index = to_vec3(a.spacing_mm),
                .iterations = a.iterations,
                .tolerance_mm = (float)a.tolerance_mm});
  return DR_OK;
}

inline MindParameters mind_parameters(const dr_mind_args& a) {
  return {to_int3(a.radius), to_int3(a.dilation)};
}

// The memory of MIND-SSC: that of the floor, and what is left for the pass.
struct MindMemory {
  Workspace work;
  float *row_noise, *floor_value;
  double* plane_noise;

  explicit MindMemory(const dr_mind_args& a) : work(a.workspace) {
    row_noise = work.take<float>((size_t)to_int3(a.shape).rows());
    plane_noise = work.take<double>((size_t)a.shape[0]);
    floor_value = work.take<float>(1);
  }
};

template <class Launcher>
dr_status mind(const Launcher& launch, const dr_mind_args& a) {
  MindMemory memory(a);
  const Shape shape = to_int3(a.shape);
  const Int3 pool = to_int3(a.pool);
  const MindParameters mind = mind_parameters(a);
  launch(MindNoise{a.image, shape, mind, memory.row_noise});
  launch(SumInOrder<float>{memory.row_noise, shape.z, shape.y, memory.plane_noise});
  // Below a thousandth of the mean patch distance a patch is flat and its differences are noise.
  launch(MindFloor{memory.plane_noise, shape.z, 1e-3 / shape.rows(), memory.floor_value});
  const size_t floats = (a.workspace_bytes - memory.work.peak()) / sizeof(float);
  mind_pass(launch, MindPass{.image = a.image,
                             .mind = mind,
                             .blocks = {.shape = shape,
                                        .pool = pool,
                                        .scale = a.scale,
                                        .out = a.out,
                                        .stride = a.channels,
                                        .structure = a.structure,
                                        .out_shape = divide_up(shape, pool)},
                             .floor_value = memory.floor_value,
                             .memory = memory.work.take<float>(floats),
                             .floats = floats});
  return DR_OK;
}

template <class Launcher>
dr_status pool(const Launcher& launch, const dr_pool_args& a) {
  const Int3 factor = to_int3(a.factor), offset = to_int3(a.offset);
  launch(PoolFeatures{.in = {a.features, a.weight, to_int3(a.shape), a.channels},
                      .factor = factor,
                      .offset = offset,
                      .out = a.out,
                      .out_weight = a.out_weight,
                      .out_shape = divide_up(to_int3(a.shape) + offset, factor)});
  return DR_OK;
}

inline Shape out_shape_of(const dr_local_args& a) {
  return divide_up(to_int3(a.shape), to_int3(a.pool));
}

// The windows are taken over the moments of the output voxels: an eighth of the input voxels if
// they are averaged by two along each axis.
template <class Launcher>
dr_status local_intensity(const Launcher& launch, const dr_local_args& a) {
  const Shape shape = out_shape_of(a);
  const size_t n = shape.voxels();
  float* moments = static_cast<float*>(a.workspace);
  float* local = moments + 2 * n;
  launch(PoolMoments{.image = a.image,
                     .shape = to_int3(a.shape),
                     .factor = to_int3(a.pool),
                     .offset = {},
                     .mean = moments,
                     .mean_square = moments + n,
                     .out_shape = shape});
  double spacing_mm[3];
  for (int i = 0; i < 3; ++i) spacing_mm[i] = a.spacing_mm[i] * a.pool[i];
  for (int w = 0; w < a.windows; ++w) {
    smooth_pass(launch, SmoothPass{.in = moments,
                                   .out = local,
                                   .tmp = local + 2 * n,
                                   .shape = shape,
                                   .batch = 2,
                                   .taps = gaussian_taps(a.sigma_mm[w], spacing_mm, shape)});
    launch(LocalNormalise{.mean = moments,
                          .local = local,
                          .shape = shape,
                          .noise = (float)a.noise,
                          .scale = (float)a.scale,
                          .out = a.out,
                          .stride = a.channels,
                          .channel = a.first_channel + w});
  }
  return DR_OK;
}

template <class Launcher>
dr_status sample_tokens(const Launcher& launch, const dr_tokens_args& a) {
  launch(SampleTokens{.in = {.tokens = a.tokens,
                             .offsets = a.offsets,
                             .places = a.places,
                             .encoded = a.encoded,
                             .stride = a.stride,
                             .grid = to_int3(a.shape)},
                      .map = to_affine(a.map),
                      .samples = to_int3(a.samples),
                      .factor = a.factor,
                      .out = a.out,
                      .channels = a.channels,
                      .first = a.first_channel,
                      .out_shape = to_int3(a.out_shape)});
  return DR_OK;
}

template <class Launcher>
dr_status join_features(const Launcher& launch, const dr_join_args& a) {
  launch(JoinFeatures{.features = a.features,
                      .stride = a.stride,
                      .used = a.used,
                      .out = a.out,
                      .channels = a.channels,
                      .first = a.first_channel,
                      .factor = a.factor,
                      .shape = to_int3(a.shape)});
  return DR_OK;
}

template <class Launcher>
dr_status cover_tissue(const Launcher& launch, const dr_tissue_args& a) {
  launch(TissueCover{.image = a.image,
                     .shape = to_int3(a.shape),
                     .above = a.above,
                     .first = to_int3(a.first),
                     .last = to_int3(a.last),
                     .map = to_affine(a.map),
                     .samples = to_int3(a.samples),
                     .out = a.out,
                     .out_shape = to_int3(a.out_shape)});
  return DR_OK;
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_OPERATIONS_H_
