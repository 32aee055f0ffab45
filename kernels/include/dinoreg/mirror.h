// The mirror test: images on its grid, mirrored images, and what a search in one of them found.
#ifndef DINOREG_MIRROR_H_
#define DINOREG_MIRROR_H_

#include "dinoreg/histogram.h"
#include "dinoreg/pool.h"
#include "dinoreg/similarity.h"

DR_NAMESPACE_BEGIN

// The least weight by which sums are divided.
DR_HD double some_weight(double weight) { return weight > 1e-6 ? weight : 1e-6; }

// Features, weight and intensities, averaged with their weights to a coarser grid.
struct PoolImage {
  PoolFeatures features;
  const float* image;  // (z, y, x)
  float* out;          // (Z, Y, X)

  DR_OVER(features.out_shape)
  DR_HD void operator()(int row, int x) const {
    features(row, x);
    const WeightedFeatures& in = features.in;
    const Covered covered(features.out_shape.voxel(row, x), features.factor, features.offset,
                          in.shape);
    float sum = 0.0f;
    covered.each(in.shape, [&](Index i) { sum += image[i] * in.weight[i]; });
    const Index to = (Index)row * width() + x;
    out[to] = sum / (float)max_int(covered.count(), 1) / max_of(features.out_weight[to], 1e-6f);
  }
};

// An image mirrored along one axis. Channel c of the result is channel order[c].
struct MirrorImage {
  enum { kMostOrdered = 32 };
  WeightedFeatures in;
  const float* image;
  int axis;
  int ordered;  // channels that are ordered; the others stay as they are
  int order[kMostOrdered];
  Half* out;  // (z, y, x, stride)
  float *out_weight, *out_image;

  DR_OVER(in.shape)
  DR_HD void operator()(int row, int x) const {
    const Int3 voxel = in.shape.voxel(row, x);
    Int3 source = voxel;
    source[axis] = in.shape[axis] - 1 - voxel[axis];
    const Index from = in.shape.at(source), to = (Index)row * width() + x;
    for (int c = 0; c < in.stride; ++c)
      out[to * in.stride + c] = in.features[from * in.stride + (c < ordered ? order[c] : c)];
    out_weight[to] = in.weight[from];
    out_image[to] = image[from];
  }
};

// Sums over an image: its content, and that times the index along each axis.
struct ContentTerms {
  const float *image, *weight;
  Shape shape;

  enum { kCount = 4, kSums = 4 };
  DR_HD void operator()(int row, int x, double* sums) const {
    const Index i = (Index)row * shape.x + x;
    const Int3 voxel = shape.voxel(row, x);
    const double content = (double)(image[i] * weight[i]);
    sums[0] += content;
    for (int axis = 0; axis < 3; ++axis) sums[1 + axis] += content * voxel[axis];
  }
};

// How far a mirror image about the centroid of the content lies from one about the middle of the
// grid, in whole voxels of the coarser grid. Without content both are the same.
struct MirrorShift {
  const double* sums;  // those of ContentTerms
  Shape shape, coarse;
  int factor;
  Int3 offset;  // of the first fine voxel within the first coarse one
  int* out;     // (3)

  DR_HD int rows() const { return 1; }
  DR_HD int width() const { return 3; }
  DR_HD void operator()(int, int axis) const {
    const int last = shape[axis] - 1;
    double middle = sums[1 + axis] / sums[0];
    if (!(sums[0] > 0.0 && middle >= 0.0 && middle <= last)) middle = last / 2.0;
    const double index = (middle + offset[axis] - (factor - 1) / 2.0) / factor;
    out[axis] = (int)rint(2.0 * index) - (coarse[axis] - 1);
  }
};

// An image that is searched. `moved`, on the device, is added to the offset along `axis`.
struct TestedImage {
  WeightedFeatures in;
  const float* image;
  Int3 offset;  // of its first voxel on the fixed grid
  int axis = 0;
  const int* moved = nullptr;

  DR_HD Int3 first() const {
    Int3 index = offset;
    if (moved != nullptr) index[axis] += *moved;
    return index;
  }
};

// PoolPlanar of a tested image.
struct PoolTested {
  PoolPlanar pool;
  TestedImage tested;

  DR_OVER(pool.out_shape)
  DR_HD void operator()(int row, int x) const {
    PoolPlanar placed = pool;
    placed.offset = tested.first();
    placed(row, x);
  }
};

// |F - M|^2 between a voxel and a voxel of another image.
DR_HD float voxel_difference(const WeightedFeatures& fixed, Index i, const WeightedFeatures& moving,
                             Index j) {
  Block sum = zero_block();
  for (int b = 0; b < fixed.blocks(); ++b) {
    const Block r = moving.block(j, b) - fixed.block(i, b);
    sum = sum + r * r;
  }
  return sum_lanes(sum);
}

// |F - M|^2 between a voxel and a sample of another image.
DR_HD float sample_difference(const WeightedFeatures& fixed, Index i, const FeatureSample& m) {
  Block sum = zero_block();
  for (int b = 0; b < fixed.blocks(); ++b) {
    const Block r = m.at(b).value - fixed.block(i, b);
    sum = sum + r * r;
  }
  return sum_lanes(sum);
}

// After a search: the weighted feature difference and its weight, the fixed weight, the weight of
// warped voxels and their displacement; and the joint histogram of the fixed and the warped image.
struct FoundTerms {
  WeightedFeatures fixed;
  const float* fixed_image;
  TestedImage tested;
  Displacement u;
  Shape shape;  // the fixed one
  Count* joint;

  enum { kCount = 7, kSums = 7 };
  DR_HD void operator()(int row, int x, double* sums) const {
    const Index i = (Index)row * shape.x + x;
    const WeightedFeatures& moving = tested.in;
    const Vec3 p = u.point(row, x, to_vec3(tested.first()));
    const float weight = fixed.weight[i];
    sums[2] += weight;
    if (!(weight > 0.0f) || !inside_grid(moving.shape, p)) return;
    const float met = weight * nearest_or_zero(moving.weight, moving.shape, p);
    if (met > 0.0f) {
      const CornerOf<float> corner(moving.shape, p);
      sums[0] += met * sample_difference(fixed, i, FeatureSample(moving, corner, 0));
      sums[1] += met;
    }
    const float seen = sample<float>(moving.weight, moving.shape, p) * weight;
    const Vec3 mm = u.at(row, x);
    sums[3] += seen;
    sums[4] += mm.z * seen;
    sums[5] += mm.y * seen;
    sums[6] += mm.x * seen;
    const Count steps = steps_of(seen);
    if (steps > 0)
      add_to_histogram(joint, fixed_image[i], sample<float>(tested.image, moving.shape, p), steps);
  }
};

// The mean displacement of warped voxels in whole voxels.
struct MeanShift {
  const double* sums;  // those of FoundTerms
  Vec3 spacing_mm;
  int* out;  // (3)

  DR_HD int rows() const { return 1; }
  DR_HD int width() const { return 3; }
  DR_HD void operator()(int, int axis) const {
    const float mm = axis == 0 ? spacing_mm.z : axis == 1 ? spacing_mm.y : spacing_mm.x;
    const double shift = sums[4 + axis] / some_weight(sums[3]) / mm;
    out[axis] = shift > -32768.0 && shift < 32768.0 ? (int)rint(shift) : 0;
  }
};

// The weighted feature difference and its weight, where the images lie and after a shift of whole
// voxels.
struct InPlaceTerms {
  WeightedFeatures fixed;
  TestedImage tested;
  const int* shift;  // (3)
  Shape shape;       // the fixed one

  enum { kCount = 4, kSums = 4 };
  DR_HD void operator()(int row, int x, double* sums) const {
    const Int3 here = shape.voxel(row, x) - tested.first();
    add((Index)row * shape.x + x, here, sums);
    add((Index)row * shape.x + x, here + Int3{shift[0], shift[1], shift[2]}, sums + 2);
  }

 private:
  DR_HD void add(Index i, const Int3& at, double* sums) const {
    const Shape& s = tested.in.shape;
    if (at.z < 0 || at.z >= s.z || at.y < 0 || at.y >= s.y || at.x < 0 || at.x >= s.x) return;
    const Index j = s.at(at);
    const float weight = fixed.weight[i] * tested.in.weight[j];
    if (!(weight > 0.0f)) return;
    sums[0] += weight * voxel_difference(fixed, i, tested.in, j);
    sums[1] += weight;
  }
};

// For each row and block of channels, the sum of the weights, and the weighted sums of the eight
// channels and of their squares. out: (blocks, 17, rows).
struct BlockMoments {
  enum { kNumbers = 1 + 2 * kBlock };
  WeightedFeatures in;
  double* out;

  DR_HD int rows() const { return in.shape.rows(); }
  DR_HD int width() const { return in.stride / kBlock; }
  DR_HD void operator()(int row, int block) const {
    float weight = 0.0f;
    Block mean = zero_block(), square = zero_block();
    for (int x = 0; x < in.shape.x; ++x) {
      const Index i = (Index)row * in.shape.x + x;
      const Block f = in.block(i, block), weighted = in.weight[i] * f;
      weight += in.weight[i];
      mean = mean + weighted;
      square = square + weighted * f;
    }
    double* to = out + (Index)block * kNumbers * rows() + row;
    to[0] = weight;
    for (int c = 0; c < kBlock; ++c) {
      to[(Index)(1 + c) * rows()] = mean[c];
      to[(Index)(1 + kBlock + c) * rows()] = square[c];
    }
  }
};

// The mean squared difference of independent voxels, E|f|^2 + E|m|^2 - 2 Ef Em.
struct UnrelatedDifference {
  const double *fixed, *moving;  // (blocks, 17): the sums of BlockMoments
  int blocks;
  double* out;

  DR_OVER_ONE
  DR_HD void operator()(int, int) const {
    double sum = 0.0;
    for (int block = 0; block < blocks; ++block) {
      const double* f = fixed + block * BlockMoments::kNumbers;
      const double* m = moving + block * BlockMoments::kNumbers;
      const double per_f = 1.0 / some_weight(f[0]), per_m = 1.0 / some_weight(m[0]);
      for (int c = 1; c <= kBlock; ++c)
        sum += per_f * f[kBlock + c] + per_m * m[kBlock + c] - 2.0 * per_f * f[c] * per_m * m[c];
    }
    *out = sum;
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_MIRROR_H_
