// The result of a solve, or its start where that matches as well.
#ifndef DINOREG_CHOOSE_H_
#define DINOREG_CHOOSE_H_

#include "dinoreg/grid.h"

DR_NAMESPACE_BEGIN

// *kept = 1 where features differ less than at the start, else 0, and the numbers become the
// start's. A start that meets less of the moving image is no rival: its mean is that of a part.
struct BetterThanStart {
  const double *before, *overlap_before;
  double *after, *overlap;
  int* kept;

  DR_HD int rows() const { return 1; }
  DR_HD int width() const { return 1; }

  DR_HD void operator()(int, int) const {
    const bool rival = *overlap_before > 0.0 && *overlap_before >= 0.95 * *overlap;
    *kept = rival && *after >= *before ? 0 : 1;  // NaN is no better and no worse
    if (*kept != 0) return;
    *after = *before;
    *overlap = *overlap_before;
  }
};

// Zero everywhere unless *kept.
struct KeepField {
  float* field;
  int row_count, x;
  const int* kept;

  DR_HD int rows() const { return row_count; }
  DR_HD int width() const { return x; }
  DR_HD void operator()(int row, int i) const {
    if (*kept == 0) field[(Index)row * x + i] = 0.0f;
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_CHOOSE_H_
