// Launches captured once as a CUDA graph, so that enqueueing them again is a single call.
#ifndef DINOREG_CUDA_GRAPH_CUH_
#define DINOREG_CUDA_GRAPH_CUH_

#include <cuda_runtime.h>

#include "dinoreg/portable.h"

DR_NAMESPACE_BEGIN

class Graph {
 public:
  Graph() = default;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  // Launches may still be running: a graph in flight is not stopped, and is freed once it has
  // completed (CUDA driver API, cuGraphExecDestroy). An error could only stem from earlier work,
  // and the stream reports that to the caller as well.
  ~Graph() { clear(); }

  // Captures what enqueue(stream) enqueues and returns the first error; nothing runs yet. The
  // capture has a stream of its own, because the caller's may be the legacy default stream, which
  // cannot be captured. It is non-blocking, so that what other threads put on the default stream
  // meanwhile does not affect it, and local to this thread, so that errors of their calls do not
  // either.
  template <class Enqueue>
  cudaError_t capture(const Enqueue& enqueue) {
    cudaStream_t stream = nullptr;
    const cudaError_t made = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (made != cudaSuccess) return made;
    const cudaError_t captured = capture_on(stream, enqueue);
    return first_of(captured, cudaStreamDestroy(stream));
  }

  // Takes over a captured graph: the executable gets its parameters if the nodes are the same ones
  // in the same order, and is replaced otherwise. Launches that are still running keep theirs.
  cudaError_t take(cudaGraph_t captured) {
    cudaGraphExecUpdateResultInfo info = {};
    updated_ =
        executable_ != nullptr && cudaGraphExecUpdate(executable_, captured, &info) == cudaSuccess;
    cudaError_t error = cudaSuccess;
    if (!updated_) {
      (void)cudaGetLastError();  // that of the refused update
      cudaGraphExec_t made = nullptr;
      error = cudaGraphInstantiateWithFlags(&made, captured, 0);
      if (error == cudaSuccess) clear();
      if (error == cudaSuccess) executable_ = made;
    }
    return first_of(error, cudaGraphDestroy(captured));
  }
  // Whether the executable was kept by the last take().
  bool updated() const { return updated_; }

  void clear() {
    if (executable_ != nullptr) (void)cudaGraphExecDestroy(executable_);
    executable_ = nullptr;
  }

  // Enqueues the graph behind what is on the stream and behind earlier launches of the same graph.
  cudaError_t launch(cudaStream_t stream) const { return cudaGraphLaunch(executable_, stream); }

 private:
  static cudaError_t first_of(cudaError_t a, cudaError_t b) { return a != cudaSuccess ? a : b; }

  template <class Enqueue>
  cudaError_t capture_on(cudaStream_t stream, const Enqueue& enqueue) {
    cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    if (error != cudaSuccess) return error;
    error = enqueue(stream);
    // A capture is ended even after an error; the graph is null if the capture failed.
    cudaGraph_t graph = nullptr;
    error = first_of(error, cudaStreamEndCapture(stream, &graph));
    if (error == cudaSuccess) return take(graph);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    return error;
  }

  cudaGraphExec_t executable_ = nullptr;
  bool updated_ = false;
};

DR_NAMESPACE_END

#endif  // DINOREG_CUDA_GRAPH_CUH_
