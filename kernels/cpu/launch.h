// The parallel loop over an op's rows. A row is one vectorised loop. Rows are independent, so the
// result does not depend on the number of threads.
#ifndef DINOREG_CPU_LAUNCH_H_
#define DINOREG_CPU_LAUNCH_H_

#include <string.h>

#include <memory>

#include "dinoreg/op.h"
#include "threads.h"

DR_NAMESPACE_BEGIN

// Room for this many numbers, the calling thread's own until it asks again; aligned for vectors.
inline float* thread_memory(size_t count) {
  enum { kAlignment = 64 };
  thread_local std::unique_ptr<char[]> memory;
  thread_local size_t room = 0;
  const size_t wanted = count * sizeof(float) + kAlignment;
  if (room < wanted) {
    memory.reset(new char[wanted]);
    room = wanted;
  }
  void* start = memory.get();
  size_t left = room;
  return static_cast<float*>(std::align(kAlignment, count * sizeof(float), start, left));
}

class CpuLauncher {
 public:
  explicit CpuLauncher(int threads) : threads_(threads) {}
  // A launcher for sizing a workspace, which launches nothing.
  static CpuLauncher counting() { return CpuLauncher(1); }

  int threads() const { return threads_; }

  template <class Op>
  void operator()(const Op& op) const {
    const int rows = op.rows(), width = op.width();
    if (rows == 1)  // a reduction, with much work for each element
      return for_each(width, (Index)width * 64, [&](int x, int) { op(0, x); });
    for_each(rows, (Index)rows * width, [&](int row, int) { run_row(op, row, width); });
  }

  // Runs body(i, worker) for i in 0 ... count - 1, in parallel if the work is worth waking the
  // team. Workers are numbered from 0, and each runs one body at a time.
  template <class Body>
  void for_each(int count, Index work, const Body& body) const {
    if (threads_ == 1 || count == 1 || work < 4096) {
      for (int i = 0; i < count; ++i) body(i, 0);
      return;
    }
    // Eight pieces for each thread, because rows without weight take less time than others and a
    // core may be busy with other work.
    const int piece = max_int(1, count / (8 * threads_));
    run_job(
        threads_, count, piece,
        [](const void* shared, int first, int end, int worker) {
          for (int i = first; i < end; ++i) (*static_cast<const Body*>(shared))(i, worker);
        },
        &body);
  }

  void zero(void* to, size_t bytes) const { memset(to, 0, bytes); }

  // Runs body() and after_each() `count` times; false as soon as after_each() returns false.
  template <class Body, class AfterEach>
  bool repeat(int count, const Body& body, const AfterEach& after_each) const {
    for (int i = 0; i < count; ++i) {
      body();
      if (!after_each()) return false;
    }
    return true;
  }

  // Ops with `lanes` compute several elements at once between their margins. If an element may be
  // computed twice, the last vector of a row overlaps the one before it. The second of two ops
  // finds the row of the first in the cache.
  template <class Op>
  static void run_row(const Op& shared, int row, int width) {
    if constexpr (requires { Op::kTwo; }) {
      run_row(shared.first, row, width);
      run_row(shared.second, row, width);
    } else if constexpr (!requires { shared.template lanes<float>(row, 0); }) {
      for (int x = 0; x < width; ++x) shared(row, x);
    } else {
      const Op op = shared;  // a local copy stays in registers, as no store can alias it
      int margin = 0;
      if constexpr (requires { op.margin(); }) margin = op.margin();
      const int low = min_int(margin, width), high = max_int(width - low, low);
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
  }

 private:
  int threads_;
};

DR_NAMESPACE_END

#endif  // DINOREG_CPU_LAUNCH_H_
