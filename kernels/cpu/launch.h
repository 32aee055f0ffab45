// The OpenMP loop over an op's rows. One row is one vectorised loop; rows are independent, so the
// result does not depend on the number of threads.
#ifndef DINOREG_CPU_LAUNCH_H_
#define DINOREG_CPU_LAUNCH_H_

#include <string.h>

#include "dinoreg/smooth.h"

DR_NAMESPACE_BEGIN

class CpuLauncher {
 public:
  explicit CpuLauncher(int threads) : threads_(threads) {}
  // For sizing a workspace: launches nothing.
  static CpuLauncher counting() { return CpuLauncher(1); }

  int threads() const { return threads_; }

  template <class Op>
  void operator()(const Op& op) const {
    const int rows = op.rows(), width = op.width();
    if (rows == 1)  // a reduction: its elements are long
      return for_each(width, (Index)width * 64, [&](int x) { op(0, x); });
    for_each(rows, (Index)rows * width, [&](int row) { run_row(op, row, width, 0); });
  }

  // body(0) ... body(count - 1), side by side when the work is worth waking the team.
  template <class Body>
  void for_each(int count, Index work, const Body& body) const {
    if (threads_ == 1 || count == 1 || work < 4096) {
      for (int i = 0; i < count; ++i) body(i);
      return;
    }
#pragma omp parallel for schedule(static) num_threads(threads_)
    for (int i = 0; i < count; ++i) body(i);
  }

  void zero(void* to, size_t bytes) const { memset(to, 0, bytes); }
  void copy(void* to, const void* from, size_t bytes) const { memcpy(to, from, bytes); }
  void to_host(void* to, const void* from, size_t bytes) const { memcpy(to, from, bytes); }

  // Ops with `lanes` work on several elements at once between their margins. The last vector of a
  // row overlaps the one before it where computing an element twice does no harm.
  template <class Op>
  static auto run_row(const Op& shared, int row, int width, int)
      -> decltype(shared.template lanes<float>(row, 0), void()) {
    const Op op = shared;  // a local copy stays in registers: no store can alias it
    const int low = min_int(margin_of(op, 0), width), high = max_int(width - low, low);
    for (int x = 0; x < low; ++x) op(row, x);
    int x = low;
    for (; x + kLanes <= high; x += kLanes) op.template lanes<Lanes>(row, x);
    if (x < high && Op::kRepeatable && high - low >= kLanes) {
      op.template lanes<Lanes>(row, high - kLanes);
      x = high;
    }
    for (; x < high; ++x) op.template lanes<float>(row, x);
    for (x = high; x < width; ++x) op(row, x);
  }

  template <class Op>
  static void run_row(const Op& op, int row, int width, long) {
    for (int x = 0; x < width; ++x) op(row, x);
  }

  // Smooth along the rows themselves, in place: each row is continued beyond its ends in a buffer,
  // so that no element is a border case.
  static void smooth_rows(float* rows, int count, int n, int inner, const Taps& taps) {
    enum { kLongest = 3 * 32768 + 6 * kMaxTapRadius + kLanes };  // capi.cpp allows 32768 voxels
    if (taps.radius == 0) return;
    float buffer[kLongest];
    const int width = n * inner, margin = taps.radius * inner;
    float* line = buffer + margin;
    for (int r = 0; r < count; ++r) {
      float* row = rows + (Index)r * width;
      memcpy(line, row, sizeof(float) * width);
      for (int t = 1; t <= taps.radius; ++t)
        for (int c = 0; c < inner; ++c) {
          line[c - t * inner] = row[(Index)reflect(-t, n) * inner + c];
          line[(n - 1 + t) * inner + c] = row[(Index)reflect(n - 1 + t, n) * inner + c];
        }
      for (int x = 0; x < width; x += kLanes) {
        Lanes sum = taps.weight[0] * load<Lanes>(line + x);
        for (int t = 1; t <= taps.radius; ++t)
          sum += taps.weight[t] *
                 (load<Lanes>(line + x - t * inner) + load<Lanes>(line + x + t * inner));
        memcpy(row + x, &sum, sizeof(float) * min_int(kLanes, width - x));
      }
    }
  }

 private:
  template <class Op>
  static auto margin_of(const Op& op, int) -> decltype(op.margin()) {
    return op.margin();
  }
  template <class Op>
  static int margin_of(const Op&, long) {
    return 0;
  }

  int threads_;
};

DR_NAMESPACE_END

#endif  // DINOREG_CPU_LAUNCH_H_
