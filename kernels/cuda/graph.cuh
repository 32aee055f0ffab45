// Launches captured once as a CUDA graph: what they enqueue is then one call, again and again.
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
  // Launches may still be running: a graph in flight is not stopped and goes once it has completed
  // (CUDA driver API, cuGraphExecDestroy). Its error could only be that of earlier work, which the
  // caller's next look at the stream reports as well.
  ~Graph() {
    if (executable_ != nullptr) (void)cudaGraphExecDestroy(executable_);
  }

  // enqueue(stream) gives its first error. Nothing runs yet. The stream of the capture is our own:
  // the caller's may be the legacy default stream, which cannot be captured, and a non-blocking one
  // is not touched by what other threads put on that stream meanwhile. Errors of other threads'
  // calls are theirs: the capture is local to this thread.
  template <class Enqueue>
  cudaError_t capture(const Enqueue& enqueue) {
    cudaStream_t stream = nullptr;
    const cudaError_t made = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (made != cudaSuccess) return made;
    const cudaError_t captured = capture_on(stream, enqueue);
    return first_of(captured, cudaStreamDestroy(stream));
  }

  // Behind what is on the stream, and behind earlier launches of the same graph.
  cudaError_t launch(cudaStream_t stream) const { return cudaGraphLaunch(executable_, stream); }

 private:
  static cudaError_t first_of(cudaError_t a, cudaError_t b) { return a != cudaSuccess ? a : b; }

  template <class Enqueue>
  cudaError_t capture_on(cudaStream_t stream, const Enqueue& enqueue) {
    cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    if (error != cudaSuccess) return error;
    error = enqueue(stream);
    // What was begun is ended, after an error too; the graph is null where the capture failed.
    cudaGraph_t graph = nullptr;
    error = first_of(error, cudaStreamEndCapture(stream, &graph));
    if (error == cudaSuccess) error = cudaGraphInstantiateWithFlags(&executable_, graph, 0);
    if (graph != nullptr) error = first_of(error, cudaGraphDestroy(graph));
    return error;
  }

  cudaGraphExec_t executable_ = nullptr;
};

DR_NAMESPACE_END

#endif  // DINOREG_CUDA_GRAPH_CUH_
