// Every public operation as a sequence of ops, written once over a launcher (CPU or CUDA).
// Arguments have been checked by capi.cpp.
#ifndef DINOREG_SRC_OPERATIONS_H_
#define DINOREG_SRC_OPERATIONS_H_

#include "convert.h"
#include "dinoreg/field.h"
#include "dinoreg/local_intensity.h"
#include "dinoreg/mind.h"
#include "dinoreg/pool.h"
#include "dinoreg/resample.h"
#include "dinoreg/slices.h"
#include "dinoreg/sum.h"
#include "solver.h"
#include "taps.h"
#include "workspace.h"

DR_NAMESPACE_BEGIN

// Whether the points that each output voxel averages are just the input voxels of a cell.
inline bool averages_cells(const dr_resample_args& a) {
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
  if (averages_cells(a)) {  // nothing to interpolate
    launch(PoolMoments{a.in, to_shape(a.in_shape), a.samples[0], a.samples[1], a.samples[2], 0, 0,
                       0, a.out, nullptr, to_shape(a.out_shape)});
    return DR_OK;
  }
  launch(ResampleLinear{a.in, to_shape(a.in_shape), a.out, to_shape(a.out_shape), a.inside,
                        to_point_map(a.map, a.out_shape), a.samples[0], a.samples[1], a.samples[2],
                        a.outside, a.extend != 0});
  return DR_OK;
}

template <class Launcher>
dr_status resample_labels(const Launcher& launch, const dr_labels_args& a) {
  launch(ResampleLabels{a.in, to_shape(a.in_shape), a.out, to_shape(a.out_shape),
                        to_point_map(a.map, a.out_shape), a.nearest != 0, a.outside});
  return DR_OK;
}

inline ResizedAxis resized_axis(int voxels, int pixels, int samples) {
  const double step = (double)voxels / pixels;
  return {voxels, pixels, samples, (float)step, (float)(0.5 * step - 0.5)};
}

template <class Launcher>
dr_status cut_slices(const Launcher& launch, const dr_slices_args& a) {
  CutSlices op = {};
  op.image = a.image;
  op.stride_z = a.strides[0], op.stride_y = a.strides[1], op.stride_x = a.strides[2];
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
  launch(MapField{a.out, to_shape(a.out_shape), to_point_map(a.map, a.out_shape)});
  return DR_OK;
}

template <class Launcher>
dr_status jacobian(const Launcher& launch, const dr_jacobian_args& a) {
  launch(JacobianDeterminant{a.field, a.out, to_shape(a.shape), to_matrix(a.index_from_unit)});
  return DR_OK;
}

template <class Launcher>
dr_status compose(const Launcher& launch, const dr_compose_args& a) {
  launch(Compose{a.first, to_shape(a.shape), a.second, to_shape(a.second_shape),
                 to_affine(a.to_second), inverse_of(a.spacing_mm), a.out});
  return DR_OK;
}

template <class Launcher>
dr_status invert(const Launcher& launch, const dr_invert_args& a) {
  launch(Invert{a.field, to_shape(a.field_shape), to_matrix(a.matrix), to_affine(a.target),
                a.wanted, to_affine(a.from_point), to_affine(a.from_index), a.out, a.residual_mm,
                to_shape(a.out_shape), to_vec3(a.spacing_mm), a.iterations, (float)a.tolerance_mm});
  return DR_OK;
}

// Slabs of whole output cells keep the intermediate images in the cache and the memory bounded.
struct MindPlan {
  Shape shape, cells;
  MindParameters mind;
  int slab_cells;
  size_t distance_floats, descriptor_floats;

  explicit MindPlan(const dr_mind_args& a)
      : shape(to_shape(a.shape)),
        cells{divide_up(shape.z, a.pool[0]), divide_up(shape.y, a.pool[1]),
              divide_up(shape.x, a.pool[2])},
        mind{{a.radius[0], a.radius[1], a.radius[2]},
             {a.dilation[0], a.dilation[1], a.dilation[2]}} {
    slab_cells = min_int(max_int(32 / a.pool[0], 1), cells.z);
    const size_t planes = (size_t)slab_cells * a.pool[0] + 2 * (mind.dilation[0] + mind.radius[0]);
    distance_floats = planes * kMindImages *
                      (size_t)(shape.y + 2 * mind.dilation[1] + 2 * mind.radius[1]) *
                      (size_t)(shape.x + 2 * mind.dilation[2]);
    descriptor_floats =
        (size_t)slab_cells * a.pool[0] * kMindChannels * (size_t)shape.y * (size_t)shape.x;
  }

  size_t workspace_bytes() const;

  // Of each of the two buffers that the slabs go back and forth between.
  size_t buffer_floats() const {
    return distance_floats > descriptor_floats ? distance_floats : descriptor_floats;
  }
};

struct MindBuffers {
  float *first, *second;  // the slabs go back and forth between them
  float* row_noise;
  double* plane_noise;
  float* floor_value;

  MindBuffers(const MindPlan& plan, Workspace& work)
      : first(work.take<float>(plan.buffer_floats())),
        second(work.take<float>(plan.buffer_floats())),
        row_noise(work.take<float>((size_t)plan.shape.rows())),
        plane_noise(work.take<double>((size_t)plan.shape.z)), floor_value(work.take<float>(1)) {}
};

inline size_t MindPlan::workspace_bytes() const {
  Workspace work(nullptr);
  MindBuffers(*this, work);
  return work.peak();
}

template <class Launcher>
dr_status mind(const Launcher& launch, const dr_mind_args& a) {
  const MindPlan plan(a);
  Workspace work(a.workspace);
  const MindBuffers buffers(plan, work);
  float *first = buffers.first, *second = buffers.second;
  const Shape shape = plan.shape;
  const MindParameters& mind = plan.mind;
  launch(MindNoise{a.image, shape, mind, buffers.row_noise});
  launch(SumInOrder<float>{buffers.row_noise, shape.z, shape.y, buffers.plane_noise});
  // A thousandth of the mean patch distance: below it a patch is flat and its differences noise.
  launch(MindFloor{buffers.plane_noise, shape.z, 1e-3 / shape.rows(), buffers.floor_value});

  const int dz = mind.dilation[0];
  const float patch =
      (float)((2 * mind.radius[0] + 1) * (2 * mind.radius[1] + 1) * (2 * mind.radius[2] + 1));
  for (int cell = 0; cell < plan.cells.z; cell += plan.slab_cells) {
    const int cells = min_int(plan.slab_cells, plan.cells.z - cell);
    const int z0 = cell * a.pool[0], planes = min_int(cells * a.pool[0], shape.z - z0);
    const int tall = planes + 2 * (dz + mind.radius[0]);
    const MindDistanceX distance = {a.image, shape, mind, z0 - dz - mind.radius[0], tall, first};
    mind_sums_pass(launch, distance, second);
    launch(MindDescriptor{first, second, planes, shape, mind, buffers.floor_value, 1.0f / patch});
    launch(MindPoolZY{second, first, planes, shape.y, shape.x, plan.cells.y, a.pool[0], a.pool[1]});
    launch(MindPool{first, shape, planes, a.out, plan.cells, a.structure, a.channels, cell, cells,
                    a.pool[0], a.pool[1], a.pool[2], a.scale});
  }
  return DR_OK;
}

template <class Launcher>
dr_status pool(const Launcher& launch, const dr_pool_args& a) {
  const Shape cells = {divide_up(a.shape[0] + a.offset[0], a.factor[0]),
                       divide_up(a.shape[1] + a.offset[1], a.factor[1]),
                       divide_up(a.shape[2] + a.offset[2], a.factor[2])};
  launch(PoolFeatures{a.features, a.weight, to_shape(a.shape), a.channels, a.factor[0], a.factor[1],
                      a.factor[2], a.offset[0], a.offset[1], a.offset[2], a.out, a.out_weight,
                      cells});
  return DR_OK;
}

inline Shape cells_of(const dr_local_args& a) {
  return {divide_up(a.shape[0], a.pool[0]), divide_up(a.shape[1], a.pool[1]),
          divide_up(a.shape[2], a.pool[2])};
}

// Windows are taken over the cells' moments: an eighth of the voxels for cells of two per axis.
template <class Launcher>
dr_status local_intensity(const Launcher& launch, const dr_local_args& a) {
  const Shape cells = cells_of(a);
  const size_t n = cells.voxels();
  float* moments = static_cast<float*>(a.workspace);
  float* local = moments + 2 * n;
  float* tmp = local + 2 * n;
  launch(PoolMoments{a.image, to_shape(a.shape), a.pool[0], a.pool[1], a.pool[2], 0, 0, 0, moments,
                     moments + n, cells});
  for (int w = 0; w < a.windows; ++w) {
    const auto taps = [&](int axis, int count) {
      return gaussian_taps(a.sigma_mm[w], a.spacing_mm[axis] * a.pool[axis], count);
    };
    smooth_pass(launch, SmoothPass{moments, local, tmp, cells, 2, 1, taps(0, cells.z),
                                   taps(1, cells.y), taps(2, cells.x)});
    launch(LocalNormalise{moments, local, cells, (float)a.noise, (float)a.scale, a.out, a.channels,
                          a.first_channel + w});
  }
  return DR_OK;
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_OPERATIONS_H_
