// The CUDA loop over an op's rows: one thread for each element, with x along the threads of a warp.
//
// Kernels are launched by cudaLaunchKernelEx instead of <<<>>>, so that this file is plain C++ and
// the tests can run its index arithmetic on the host.
#ifndef DINOREG_CUDA_LAUNCH_CUH_
#define DINOREG_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include "dinoreg/op.h"
#include "graph.cuh"

DR_NAMESPACE_BEGIN

enum { kWarp = 32, kBlockThreads = 256, kMaxGridY = 65535 };
// Blocks of a tuned kernel along y, several for each multiprocessor, which take the rows in turns.
enum { kTileBlocksY = 4096 };

struct LaunchShape {
  dim3 grid, block;
};

// A warp takes 32 neighbours along x, or several rows if a row is shorter. With eight rows in a
// block the stencils find their neighbours in the L1 cache. Few rows give small blocks, which
// spread the serial sums (one row) over more multiprocessors.
inline LaunchShape launch_shape(int rows, int width) {
  int lanes = 1, lines = 1;
  while (lanes < kWarp && lanes < width) lanes *= 2;
  while (lines < kBlockThreads / lanes && lines < rows) lines *= 2;
  const int grid_x = (width - 1) / lanes + 1, grid_y = (rows - 1) / lines + 1;
  // Only x may have more than 65535 blocks; the remaining rows are taken in strides.
  return {dim3(grid_x, grid_y < kMaxGridY ? grid_y : kMaxGridY, 1), dim3(lanes, lines, 1)};
}

// Between its margins, an op with a margin needs no border case.
template <class Op>
DR_HD void run_element(const Op& op, int row, int x, int width) {
  if constexpr (requires { op.margin(); }) {
    if (x >= op.margin() && x < width - op.margin()) return op.template lanes<float>(row, x);
  }
  op(row, x);
}

// __grid_constant__ keeps the op in constant memory instead of copying it for every thread.
template <class Op>
__global__ void __launch_bounds__(kBlockThreads) run_op(const __grid_constant__ Op op) {
  const int rows = op.rows(), width = op.width();
  const unsigned x = blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= (unsigned)width) return;
  // Unsigned, because the last stride may exceed the largest int.
  const unsigned stride = gridDim.y * blockDim.y;
  for (unsigned row = blockIdx.y * blockDim.y + threadIdx.y; row < (unsigned)rows; row += stride)
    run_element(op, (int)row, (int)x, width);
}

// Enqueues on one stream of the calling thread's current device. The first error is kept and stops
// everything after it, so callers check error() once, at the end.
class CudaLauncher {
 public:
  explicit CudaLauncher(cudaStream_t stream) : stream_(stream) {}

  template <class Op>
  void operator()(const Op& op) const {
    const int rows = op.rows(), width = op.width();
    if (rows <= 0 || width <= 0 || error_ != cudaSuccess) return;
    run(run_op<Op>, launch_shape(rows, width), op);
  }

  // Launches another kernel than run_op, over a grid that is not empty.
  template <class Op>
  void run(void (*kernel)(const Op), const LaunchShape& shape, const Op& op) const {
    if (error_ != cudaSuccess) return;
    cudaLaunchConfig_t config = {};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.stream = stream_;
    error_ = cudaLaunchKernelEx(&config, kernel, op);
  }

  void zero(void* to, size_t bytes) const {
    if (error_ == cudaSuccess) error_ = cudaMemsetAsync(to, 0, bytes, stream_);
  }

  // Runs body() and after_each() `count` times; false as soon as after_each() returns false. body()
  // must enqueue the same work every time. The first time it is called as it is, which also loads
  // its kernels (loading may do what is not allowed in a capture); from the second time on, a graph
  // of it is launched. While the stream itself is captured, every body() goes into that graph.
  template <class Body, class AfterEach>
  bool repeat(int count, const Body& body, const AfterEach& after_each) const {
    Graph graph;
    const bool captured = is_captured();
    for (int i = 0; i < count && error_ == cudaSuccess; ++i) {
      if (i == 0 || captured) body();
      if (i == 1 && !captured) capture(graph, body);
      if (i > 0 && !captured && error_ == cudaSuccess) error_ = graph.launch(stream_);
      if (error_ == cudaSuccess && !after_each()) return false;
    }
    return true;
  }

  cudaError_t error() const { return error_; }

 private:
  // The legacy default stream, which cannot be captured, must not be asked: that is an error while
  // another thread captures a blocking stream.
  bool is_captured() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (stream_ == nullptr || stream_ == cudaStreamLegacy || error_ != cudaSuccess) return false;
    error_ = cudaStreamIsCapturing(stream_, &status);
    return status != cudaStreamCaptureStatusNone;
  }

  template <class Body>
  void capture(Graph& graph, const Body& body) const {
    const cudaStream_t own = stream_;
    error_ = graph.capture([&](cudaStream_t stream) {
      stream_ = stream;
      body();
      return error_;
    });
    stream_ = own;
  }

  mutable cudaStream_t stream_;
  mutable cudaError_t error_ = cudaSuccess;
};

DR_NAMESPACE_END

#endif  // DINOREG_CUDA_LAUNCH_CUH_
