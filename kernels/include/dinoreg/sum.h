// Sums in a fixed order: the same bits on every back end and for any number of threads.
#ifndef DINOREG_SUM_H_
#define DINOREG_SUM_H_

#include "dinoreg/op.h"

DR_NAMESPACE_BEGIN

// out[i] is the sum of the i-th run of `length` numbers, added one after the other.
template <class T>
struct SumInOrder {
  const T* in;  // (count, length)
  int count, length;
  double* out;  // (count)

  DR_HD int rows() const { return 1; }
  DR_HD int width() const { return count; }
  DR_HD void operator()(int, int i) const {
    double sum = 0.0;
    for (int k = 0; k < length; ++k) sum += (double)in[(Index)i * length + k];
    out[i] = sum;
  }
};

// out = a / b, or 0 unless b > 0.
template <class T>
struct Quotient {
  const double *a, *b;
  T* out;

  DR_OVER_ONE
  DR_HD void operator()(int, int) const { *out = *b > 0.0 ? (T)(*a / *b) : (T)0; }
};

DR_NAMESPACE_END

#endif  // DINOREG_SUM_H_
