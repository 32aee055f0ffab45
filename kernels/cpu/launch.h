// The OpenMP loop over an op's rows. One row is one vectorised loop; rows are independent, so the
// result does not depend on the number of threads.
#ifndef DINOREG_CPU_LAUNCH_H_
#define DINOREG_CPU_LAUNCH_H_

#include <string.h>

#include "dinoreg/portable.h"

DR_NAMESPACE_BEGIN

class CpuLauncher {
 public:
  explicit CpuLauncher(int threads) : threads_(threads) {}
  // For sizing a workspace: launches nothing.
  static CpuLauncher counting() { return CpuLauncher(1); }

  template <class Op>
  void operator()(const Op& op) const {
    const int rows = op.rows(), width = op.width();
    // Waking the team costs some microseconds: not for a few thousand elements.
    const bool serial = threads_ == 1 || (Index)rows * width < 2048 || rows == 1;
    if (rows == 1 && threads_ > 1) {
#pragma omp parallel for schedule(static) num_threads(threads_)
      for (int x = 0; x < width; ++x) op(0, x);
      return;
    }
#pragma omp parallel for schedule(static) num_threads(threads_) if (!serial)
    for (int row = 0; row < rows; ++row) run_row(op, row, width, 0);
  }

  void zero(void* to, size_t bytes) const { memset(to, 0, bytes); }
  void copy(void* to, const void* from, size_t bytes) const { memcpy(to, from, bytes); }
  void to_host(void* to, const void* from, size_t bytes) const { memcpy(to, from, bytes); }

 private:
  // Ops with an `interior` need no border case between their margins.
  template <class Op>
  static auto run_row(const Op& op, int row, int width, int)
      -> decltype(op.interior(row, 0), void()) {
    const int low = op.margin() < width ? op.margin() : width;
    const int high = width - op.margin() > low ? width - op.margin() : low;
    for (int x = 0; x < low; ++x) op(row, x);
#pragma omp simd
    for (int x = low; x < high; ++x) op.interior(row, x);
    for (int x = high; x < width; ++x) op(row, x);
  }

  template <class Op>
  static void run_row(const Op& op, int row, int width, long) {
#pragma omp simd
    for (int x = 0; x < width; ++x) op(row, x);
  }

  int threads_;
};

DR_NAMESPACE_END

#endif  // DINOREG_CPU_LAUNCH_H_
