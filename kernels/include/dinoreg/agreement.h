// How well two images agree under two fields, in parts of the body.
#ifndef DINOREG_AGREEMENT_H_
#define DINOREG_AGREEMENT_H_

#include "dinoreg/mirror.h"

DR_NAMESPACE_BEGIN

// Every `step`-th voxel of a grid along each axis.
struct Sampling {
  Shape shape;  // of the grid
  int step;

  DR_HD Shape sampled() const { return divide_up(shape, Int3{step, step, step}); }
};

// Sums of the sampled weights along x (z, y), and along z (y, x).
struct LineSums {
  const float* weight;
  Sampling sampling;
  bool along_x;
  double* out;

  DR_HD int rows() const { return along_x ? sampling.sampled().z : sampling.sampled().y; }
  DR_HD int width() const { return along_x ? sampling.sampled().y : sampling.sampled().x; }
  DR_HD void operator()(int row, int i) const {
    const Shape s = sampling.sampled();
    double sum = 0.0;
    for (int k = 0; k < (along_x ? s.x : s.z); ++k) {
      const Int3 voxel = along_x ? Int3{row, i, k} : Int3{k, row, i};
      sum += (double)weight[sampling.shape.at(sampling.step * voxel)];
    }
    out[(Index)row * width() + i] = sum;
  }
};

// The weight of each plane across z, y and x, one axis after the other.
struct PlaneSums {
  const double *along_x, *along_z;  // see LineSums
  Shape sampled;
  double* out;  // (z + y + x)

  DR_HD int rows() const { return 1; }
  DR_HD int width() const { return sampled.z + sampled.y + sampled.x; }
  DR_HD void operator()(int, int i) const {
    const int y = i - sampled.z, x = y - sampled.y;
    double sum = 0.0;
    if (y < 0)
      for (int k = 0; k < sampled.y; ++k) sum += along_x[(Index)i * sampled.y + k];
    else if (x < 0)
      for (int k = 0; k < sampled.z; ++k) sum += along_x[(Index)k * sampled.y + y];
    else
      for (int k = 0; k < sampled.y; ++k) sum += along_z[(Index)k * sampled.x + x];
    out[i] = sum;
  }
};

// Divides each axis into parts of equal weight, numbered from its start or from its end, and gives
// the number times a factor for each plane: the sum over the axes numbers the regions.
struct RegionParts {
  const double* planes;  // see PlaneSums
  Shape sampled;
  Int3 parts, factor, reversed;
  int* out;  // (z + y + x)

  DR_HD int rows() const { return 1; }
  DR_HD int width() const { return sampled.z + sampled.y + sampled.x; }
  DR_HD void operator()(int, int i) const {
    const int axis = i < sampled.z ? 0 : i < sampled.z + sampled.y ? 1 : 2;
    const int first = axis == 0 ? 0 : axis == 1 ? sampled.z : sampled.z + sampled.y;
    double before = 0.0, total = 0.0;
    for (int k = 0; k < sampled[axis]; ++k) {
      if (first + k == i) before = total;
      total += planes[first + k];
    }
    const double share = (before + planes[i] / 2.0) / some_weight(total);
    const int last = parts[axis] - 1;
    int part = share > 0.0 && share < 1.0 ? min_int((int)(parts[axis] * share), last) : 0;
    if (share >= 1.0) part = last;
    out[i] = factor[axis] * (reversed[axis] != 0 ? last - part : part);
  }
};

// The weighted feature difference and its weight with the field before and after a registration,
// and the fixed weight of each region in steps; and the joint histograms of both images before and,
// in each region, after. A voxel is compared with the one nearest to its match.
struct AgreementTerms {
  enum { kRegions = 12 };
  WeightedFeatures fixed, moving;
  const float *fixed_image, *moving_image;
  Int3 offset;  // of the moving grid's first voxel
  const float *before, *after;  // (z, y, x, 3), mm; null: 0 everywhere
  Vec3 index_per_mm;
  Sampling sampling;
  Shape shape;        // the sampled one
  const int* region;  // see RegionParts
  Count *joint_before, *joint_after;

  enum { kCount = 4 + kRegions, kSums = kCount };
  DR_HD void operator()(int row, int x, double* sums) const {
    const Int3 at = shape.voxel(row, x);
    const Int3 voxel = sampling.step * at;
    const Index i = fixed.shape.at(voxel);
    const int place = region[at.z] + region[shape.z + at.y] + region[shape.z + shape.y + at.x];
    sums[4 + place] += (double)steps_of(fixed.weight[i]);
    add(voxel, i, before, joint_before, sums);
    add(voxel, i, after, joint_after + place * kHistogram, sums + 2);
  }

 private:
  DR_HD void add(const Int3& voxel, Index i, const float* field, Count* joint, double* sums) const {
    Vec3 p = to_vec3(voxel);
    if (field != nullptr) p = p + load_vec3(field + 3 * i) * index_per_mm;
    const Int3 match = {nearest(p.z - offset.z, moving.shape.z),
                        nearest(p.y - offset.y, moving.shape.y),
                        nearest(p.x - offset.x, moving.shape.x)};
    if (match.z < 0 || match.y < 0 || match.x < 0) return;
    const Index j = moving.shape.at(match);
    const float weight = fixed.weight[i] * moving.weight[j];
    if (!(weight > 0.0f)) return;
    sums[0] += weight * voxel_difference(fixed, i, moving, j);
    sums[1] += weight;
    add_to_histogram(joint, fixed_image[i], moving_image[j], steps_of(weight));
  }

  // The nearest index, ties to even; -1 outside, and for NaN.
  static DR_HD int nearest(float index, int n) {
    const float found = rintf(clamp_float(index, -1.0f, (float)n));
    return found >= 0.0f && found <= (float)(n - 1) ? (int)found : -1;
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_AGREEMENT_H_
