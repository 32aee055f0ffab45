// The mirror test: searches in the moving image and in mirror images, and what they found.
#ifndef DINOREG_SRC_MIRROR_TEST_H_
#define DINOREG_SRC_MIRROR_TEST_H_

#include "dinoreg/mirror.h"
#include "level.h"
#include "measures.h"
#include "mirror_args.h"
#include "search.h"

DR_NAMESPACE_BEGIN

// Without a workspace in its arguments, it only counts the memory that it needs, as a solve does.
template <class Launcher>
class MirrorTest {
 public:
  MirrorTest(const Launcher& launch, const dr_mirror_args& a)
      : a_(a), of_fixed_(a.fixed_shape, nullptr, a.factor),
        of_moving_(a.moving_shape, a.moving_offset, a.factor),
        solver_args_(with_field(mirror_search_args(a), a.workspace)),
        c_(launch, none_, solver_args_), folding_(c_.work), level_(c_, 0) {}

  static size_t workspace_bytes(const dr_mirror_args& args) {
    dr_mirror_args counted = args;
    counted.workspace = nullptr;
    MirrorTest test(Launcher::counting(), counted);
    test.run();
    return test.c_.work.peak();
  }

  void run() {
    take_memory();
    const Image fixed =
        averaged(a_.fixed, a_.fixed_weight, a_.fixed_image, a_.fixed_shape, of_fixed_);
    const Image moving =
        averaged(a_.moving, a_.moving_weight, a_.moving_image, a_.moving_shape, of_moving_);
    measure_unrelated(fixed.in, moving.in);
    find_middle(moving.in.shape);
    c_.run(level_.averaging(fixed.in, {}, coarse_fixed_));
    const Int3 offset = to_int3(of_moving_.offset);
    search(fixed, {moving.in, moving.image, offset}, offsetof(dr_mirror_test, own));
    for (int axis = 0; axis < 3; ++axis) {
      if (moving.in.shape[axis] <= 1) continue;
      const Image m = mirrored(moving, axis);
      search(fixed, {m.in, m.image, offset, axis, moved_ + axis},
             offsetof(dr_mirror_test, mirrored) + axis * sizeof(dr_mirror_search));
      if (axis == a_.sides)
        search(fixed, {m.in, m.image, offset}, offsetof(dr_mirror_test, about_middle));
    }
    if (fixed.in.shape[a_.sides] <= 1) return;
    const Image m = mirrored(fixed, a_.sides);
    search(fixed, {m.in, m.image, {}}, offsetof(dr_mirror_test, itself));
  }

 private:
  struct Image {
    WeightedFeatures in;
    const float* image;
  };
  using Coarse = typename SearchLevel<Launcher>::CoarseImage;

  static dr_solver_args with_field(dr_solver_args args, void* workspace) {
    args.workspace = workspace;
    return args;
  }

  Shape fixed_shape() const { return to_int3(of_fixed_.shape); }
  template <class T>
  T* take(size_t count) {
    return c_.template take<T>(count);
  }

  void take_memory() {
    const Shape fixed = fixed_shape(), moving = to_int3(of_moving_.shape);
    const Shape whole = to_int3(a_.moving_shape);
    field_ = take<float>(3 * fixed.voxels());
    const Index groups = max_of(row_groups(fixed), row_groups(whole));
    const Index of_rows = FoundTerms::kCount * groups * kSumLanes;
    const Index of_moments = moment_count() * (Index)max_int(fixed.rows(), moving.rows());
    partial_ = take<double>(max_of(of_rows, of_moments));
    found_ = take<double>(2 * moment_count());
    moved_ = take<int>(3);
    shift_ = take<int>(3);
    const size_t largest = max_of(fixed.voxels(), moving.voxels());
    mirror_ = take<Half>(largest * a_.stride);
    mirror_weight_ = take<float>(largest);
    mirror_image_ = take<float>(largest);
    coarse_fixed_ = level_.take_padded();
    coarse_tested_ = level_.take_padded();
    if (!c_.counting()) c_.zero(a_.out, 1);
  }

  int moment_count() const { return a_.stride / kBlock * BlockMoments::kNumbers; }

  Image averaged(const uint16_t* features, const float* weight, const float* image,
                 const int32_t* shape, const MirrorGrid& grid) {
    const Shape to = to_int3(grid.shape);
    Half* out = take<Half>(to.voxels() * a_.stride);
    float* out_weight = take<float>(to.voxels());
    float* out_image = take<float>(to.voxels());
    c_.run(PoolImage{.features = {.in = {features, weight, to_int3(shape), a_.stride},
                                  .factor = {a_.factor, a_.factor, a_.factor},
                                  .offset = to_int3(grid.lead),
                                  .out = out,
                                  .out_weight = out_weight,
                                  .out_shape = to},
                     .image = image,
                     .out = out_image});
    return {{out, out_weight, to, a_.stride}, out_image};
  }

  void measure_unrelated(const WeightedFeatures& fixed, const WeightedFeatures& moving) {
    if (c_.counting()) return;
    const int count = moment_count();
    const WeightedFeatures* images[] = {&fixed, &moving};
    for (int i = 0; i < 2; ++i) {
      c_.run(BlockMoments{*images[i], partial_});
      folding_.fold(c_.launch, partial_, images[i]->shape.rows(), count, count, found_ + i * count);
    }
    c_.run(UnrelatedDifference{found_, found_ + count, a_.stride / kBlock, &a_.out->unrelated});
  }

  void find_middle(const Shape& coarse) {
    if (c_.counting()) return;
    const Shape shape = to_int3(a_.moving_shape);
    add_rows(c_.launch, folding_, ContentTerms{a_.moving_image, a_.moving_weight, shape}, partial_,
             found_);
    c_.run(MirrorShift{found_, shape, coarse, a_.factor, to_int3(of_moving_.lead), moved_});
  }

  Image mirrored(const Image& of, int axis) {
    MirrorImage op = {.in = of.in,
                      .image = of.image,
                      .axis = axis,
                      .ordered = a_.ordered,
                      .order = {},
                      .out = mirror_,
                      .out_weight = mirror_weight_,
                      .out_image = mirror_image_};
    for (int c = 0; c < a_.ordered && !c_.counting(); ++c)
      op.order[c] = a_.order[axis * a_.ordered + c];
    c_.run(op);
    return {{mirror_, mirror_weight_, of.in.shape, a_.stride}, mirror_image_};
  }

  // Searches in an image and writes what it finds to the place `at` of the results.
  void search(const Image& fixed, const TestedImage& tested, size_t at) {
    const size_t mark = c_.work.mark();
    c_.run(PoolTested{level_.averaging(tested.in, {}, coarse_tested_), tested});
    (void)level_.search(coarse_fixed_, coarse_tested_);  // nothing can cancel it
    c_.smooth({.in = c_.x, .out = field_, .tmp = c_.scratch, .shape = c_.shape, .components = 3},
              a_.smoothing_mm, solver_args_.spacing_mm);
    if (!c_.counting()) measure(fixed, tested, at);
    c_.work.release(mark);
  }

  void measure(const Image& fixed, const TestedImage& tested, size_t at) {
    dr_mirror_search& out =
        *reinterpret_cast<dr_mirror_search*>(reinterpret_cast<char*>(a_.out) + at);
    const double* spacing_mm = solver_args_.spacing_mm;
    add_rows(c_.launch, folding_,
             FoundTerms{.fixed = fixed.in,
                        .fixed_image = fixed.image,
                        .tested = tested,
                        .u = {field_, c_.shape, inverse_of(spacing_mm)},
                        .shape = c_.shape,
                        .joint = reinterpret_cast<Count*>(out.joint)},
             partial_, &out.after);
    c_.run(MeanShift{&out.after, to_vec3(spacing_mm), shift_});
    add_rows(c_.launch, folding_, InPlaceTerms{fixed.in, tested, shift_, c_.shape}, partial_,
             &out.before);
  }

  const dr_mirror_args& a_;
  const MirrorGrid of_fixed_, of_moving_;
  const dr_execution none_ = {};
  const dr_solver_args solver_args_;
  SolverContext<Launcher> c_;
  const Folding folding_;
  SearchLevel<Launcher> level_;
  float* field_ = nullptr;
  double *partial_ = nullptr, *found_ = nullptr;
  int *moved_ = nullptr, *shift_ = nullptr;
  Half* mirror_ = nullptr;
  float *mirror_weight_ = nullptr, *mirror_image_ = nullptr;
  Coarse coarse_fixed_ = {}, coarse_tested_ = {};
};

template <class Launcher>
dr_status compare_mirrored(const Launcher& launch, const dr_mirror_args& a) {
  MirrorTest<Launcher>(launch, a).run();
  return DR_OK;
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_MIRROR_TEST_H_
