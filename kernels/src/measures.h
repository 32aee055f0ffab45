// The measures of a result as sequences of ops: products and sums of weights, the quality of a
// field, and the agreement of two images.
#ifndef DINOREG_SRC_MEASURES_H_
#define DINOREG_SRC_MEASURES_H_

#include "convert.h"
#include "dinoreg/agreement.h"
#include "dinoreg/quality.h"
#include "workspace.h"

DR_NAMESPACE_BEGIN

// The number of parts into which each list of partial results is folded first: about the square
// root of its length, so that neither of the two chains of additions is much longer than the other.
enum { kFoldParts = 128 };

// Adds up partial results over groups of rows, or over chunks of an array.
struct Folding {
  double* between;  // (kMostNumbers, kFoldParts)
  enum { kMostNumbers = 64 };

  explicit Folding(Workspace& work)
      : between(work.take<double>((size_t)kMostNumbers * kFoldParts)) {}

  // out (count): the sums of the first `sums` lists (count, length), and the largest number of each
  // of the others. There may be any number of lists; results lie `step` numbers apart.
  template <class Launcher, class T>
  void fold(const Launcher& launch, const T* lists, Index length, int count, int sums, double* out,
            Index step = 1) const {
    for (int k = 0; k < count; k += kMostNumbers) {
      const int some = min_int(kMostNumbers, count - k), added = max_int(sums - k, 0);
      launch(
          FoldParts<T>{lists + k * length, length, some, added, kFoldParts, between, kFoldParts});
      launch(FoldParts<double>{between, kFoldParts, some, added, 1, out + k * step, step});
    }
  }
};

inline Index row_groups(const Shape& shape) { return divide_up(shape.rows(), kSumRows); }
inline Index chunks_of(Index count) { return (count + kSumChunk - 1) / kSumChunk; }

// out (kCount) = the sums and maxima of `terms` over its shape; `partial` has kCount numbers for
// each lane of row_groups().
template <class Launcher, class Terms>
void add_rows(const Launcher& launch, const Folding& folding, const Terms& terms, double* partial,
              double* out) {
  launch(PartialRows<Terms>{terms, partial});
  folding.fold(launch, partial, row_groups(terms.shape) * kSumLanes, Terms::kCount, Terms::kSums,
               out);
}

template <class Launcher>
dr_status multiply_weights(const Launcher& launch, const dr_multiply_args& a) {
  launch(MultiplyWeights{a.a, a.b, a.c, to_int3(a.shape), a.out});
  return DR_OK;
}

struct SumsMemory {
  Workspace work;
  Folding folding;
  float* partial;

  explicit SumsMemory(const dr_sums_args& a) : work(a.workspace), folding(work) {
    Index most = 1;
    for (int i = 0; i < a.count; ++i) most = a.arrays[i].size > most ? a.arrays[i].size : most;
    partial = work.take<float>(chunks_of(most) * kSumLanes);
  }
};

struct Unscale {
  double* values;
  int count;

  DR_HD int rows() const { return 1; }
  DR_HD int width() const { return count; }
  DR_HD void operator()(int, int i) const { values[i] = values[i] / ScaledSumTerms::kScale; }
};

template <class Launcher>
dr_status sum_values(const Launcher& launch, const dr_sums_args& a) {
  const SumsMemory memory(a);
  for (int i = 0; i < a.count; ++i) {
    const Index size = a.arrays[i].size;
    launch(PartialChunks<ScaledSumTerms>{{}, a.arrays[i].values, size, memory.partial});
    memory.folding.fold(launch, memory.partial, chunks_of(size) * kSumLanes, 1, 1, a.out + i);
  }
  launch(Unscale{a.out, (int)a.count});
  return DR_OK;
}

// Each part of the quality takes its memory and then measures, unless memory is only counted.
template <class Launcher>
class QualityMeasure {
 public:
  QualityMeasure(const Launcher* launch, const dr_quality_args& a)
      : launch_(launch), a_(a), work_(a.workspace), folding_(work_) {}

  static size_t workspace_bytes(const dr_quality_args& counted) {
    QualityMeasure measure(nullptr, counted);
    measure.run();
    return measure.work_.peak();
  }

  void run() {
    if (launch_ != nullptr) launch_->zero(a_.out, sizeof *a_.out);
    const size_t mark = work_.mark();
    if (a_.displacement != nullptr) measure_jacobian();
    work_.release(mark);
    if (a_.field != nullptr) measure_consistency();
    work_.release(mark);
    if (a_.misses != nullptr) measure_misses();
  }

 private:
  enum { kSlab = 1 << 20 };  // voxels whose determinants stay in the cache

  void measure_jacobian() {
    const Shape shape = to_int3(a_.shape);
    const int rows = min_int(max_int(kSlab / shape.x, 1), shape.rows());
    const int slabs = divide_up(shape.rows(), rows), count = JacobianTerms::kCount;
    const Index length = chunks_of((Index)rows * shape.x) * kSumLanes;
    float* values = work_.take<float>((size_t)rows * shape.x);
    float* partial = work_.take<float>(count * length);
    double* of_slabs = work_.take<double>((size_t)count * slabs);
    float* centre = work_.take<float>(1);
    if (launch_ == nullptr) return;
    const JacobianDeterminant all = {a_.displacement, nullptr, shape,
                                     to_matrix(a_.index_from_unit)};
    for (int slab = 0; slab < slabs; ++slab) {
      const int first = slab * rows, some = min_int(rows, shape.rows() - first);
      const Index voxels = (Index)some * shape.x;
      (*launch_)(JacobianRows{all, first, some, values});
      if (slab == 0) (*launch_)(FirstLog{values, centre});
      (*launch_)(PartialChunks<JacobianTerms>{{centre}, values, voxels, partial});
      folding_.fold(*launch_, partial, chunks_of(voxels) * kSumLanes, count, JacobianTerms::kSums,
                    of_slabs + slab, slabs);
    }
    folding_.fold(*launch_, of_slabs, slabs, count, JacobianTerms::kSums, &a_.out->folded);
  }

  void measure_consistency() {
    const Shape shape = to_int3(a_.field_shape);
    double* partial = work_.take<double>(ConsistencyTerms::kCount * row_groups(shape) * kSumLanes);
    const float* inverse = a_.inverse;
    if (inverse == nullptr) inverse = inverted(shape);
    if (launch_ == nullptr) return;
    const Displacement u = {a_.field, shape, inverse_of(a_.spacing_mm)};
    add_rows(*launch_, folding_, ConsistencyTerms{u, inverse, shape}, partial,
             &a_.out->consistency_sum);
  }

  const float* inverted(const Shape& shape) {
    float* out = work_.take<float>(3 * shape.voxels());
    if (launch_ == nullptr) return out;
    const Vec3 mm = to_vec3(a_.spacing_mm), per_mm = inverse_of(a_.spacing_mm);
    Invert op = {};
    op.field = a_.field;
    op.field_shape = op.out_shape = shape;
    op.matrix = {{per_mm.z, 0, 0, 0, per_mm.y, 0, 0, 0, per_mm.x}};
    op.target = identity_affine();
    op.from_point = {{mm.z, 0, 0, 0, 0, mm.y, 0, 0, 0, 0, mm.x, 0}};
    op.from_index = {{-mm.z, 0, 0, 0, 0, -mm.y, 0, 0, 0, 0, -mm.x, 0}};
    op.out = out;
    op.mm_per_index = mm;
    op.iterations = a_.iterations;
    op.tolerance_mm = (float)a_.tolerance_mm;
    (*launch_)(op);
    return out;
  }

  void measure_misses() {
    const Index length = chunks_of(a_.miss_count) * kSumLanes;
    float* partial = work_.take<float>(MissTerms::kCount * length);
    if (launch_ == nullptr) return;
    (*launch_)(PartialChunks<MissTerms>{{(float)a_.miss_limit}, a_.misses, a_.miss_count, partial});
    folding_.fold(*launch_, partial, length, MissTerms::kCount, MissTerms::kSums, &a_.out->inside);
  }

  const Launcher* launch_;
  const dr_quality_args& a_;
  Workspace work_;
  const Folding folding_;
};

template <class Launcher>
dr_status measure_quality(const Launcher& launch, const dr_quality_args& a) {
  QualityMeasure<Launcher>(&launch, a).run();
  return DR_OK;
}

struct AgreementMemory {
  Workspace work;
  Folding folding;
  Sampling sampling;
  Shape sampled;
  double *along_x, *along_z, *planes, *partial;
  int* region;

  explicit AgreementMemory(const dr_agreement_args& a)
      : work(a.workspace), folding(work), sampling{to_int3(a.fixed_shape), a.step},
        sampled(sampling.sampled()) {
    const size_t lines = (size_t)sampled.z + sampled.y + sampled.x;
    along_x = work.take<double>((size_t)sampled.z * sampled.y);
    along_z = work.take<double>((size_t)sampled.y * sampled.x);
    planes = work.take<double>(lines);
    region = work.take<int>(lines);
    partial = work.take<double>(AgreementTerms::kCount * row_groups(sampled) * kSumLanes);
  }
};

template <class Launcher>
dr_status measure_agreement(const Launcher& launch, const dr_agreement_args& a) {
  const AgreementMemory m(a);
  launch.zero(a.out, sizeof *a.out);
  launch(LineSums{a.fixed_weight, m.sampling, true, m.along_x});
  launch(LineSums{a.fixed_weight, m.sampling, false, m.along_z});
  launch(PlaneSums{m.along_x, m.along_z, m.sampled, m.planes});
  launch(RegionParts{m.planes, m.sampled, to_int3(a.parts), to_int3(a.region_factor),
                     to_int3(a.reversed), m.region});
  AgreementTerms terms = {};
  terms.fixed = {a.fixed, a.fixed_weight, to_int3(a.fixed_shape), a.stride};
  terms.moving = {a.moving, a.moving_weight, to_int3(a.moving_shape), a.stride};
  terms.fixed_image = a.fixed_image;
  terms.moving_image = a.moving_image;
  terms.offset = to_int3(a.moving_offset);
  terms.before = a.before;
  terms.after = a.after;
  terms.index_per_mm = inverse_of(a.spacing_mm);
  terms.sampling = m.sampling;
  terms.shape = m.sampled;
  terms.region = m.region;
  terms.joint_before = reinterpret_cast<Count*>(a.out->joint_before);
  terms.joint_after = reinterpret_cast<Count*>(a.out->joint_after);
  add_rows(launch, m.folding, terms, m.partial, &a.out->before);
  return DR_OK;
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_MEASURES_H_
