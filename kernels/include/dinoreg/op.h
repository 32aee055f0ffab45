// The form of an op, the unit of work that the launchers run.
//
// An op is a struct that holds pointers and extents by value. `rows()` and `width()` give the
// extent of its output, and operator()(row, x) computes element x of a row. The launchers
// (cpu/launch.h, cuda/launch.cuh) contain only the loop.
//
// An op with `lanes<V>(row, x)` computes as many neighbouring elements as V has lanes. Its
// `kRepeatable` says whether an element may be computed twice, so that the last vector of a row can
// overlap the one before it; it is 0 for an op that works in place. `margin()`, if present, is the
// number of elements at both ends of a row that are left to operator() because the neighbours that
// `lanes` reads are missing there.
#ifndef DINOREG_OP_H_
#define DINOREG_OP_H_

#include "dinoreg/grid.h"

// One output element for each voxel of `shape`.
#define DR_OVER(shape)                              \
  DR_HD int rows() const { return (shape).rows(); } \
  DR_HD int width() const { return (shape).x; }
// One output element in all.
#define DR_OVER_ONE                    \
  DR_HD int rows() const { return 1; } \
  DR_HD int width() const { return 1; }
// `lanes` computes every element; single ones are lanes of one.
#define DR_LANES(repeatable)           \
  enum { kRepeatable = (repeatable) }; \
  DR_HD void operator()(int row, int x) const { lanes<float>(row, x); }

DR_NAMESPACE_BEGIN

// Two ops over the same elements in one launch. The second may read what the first has written of
// the same element, and no other.
template <class First, class Second>
struct Both {
  First first;
  Second second;

  enum { kTwo = 1 };  // see CpuLauncher
  DR_HD int rows() const { return first.rows(); }
  DR_HD int width() const { return first.width(); }
  DR_HD void operator()(int row, int x) const {
    first(row, x);
    second(row, x);
  }
};
template <class First, class Second>
Both<First, Second> both(const First& first, const Second& second) {
  return {first, second};
}

DR_NAMESPACE_END

#endif  // DINOREG_OP_H_
