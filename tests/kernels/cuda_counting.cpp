// The whole library with its CUDA back end on the host, which counts what it asks of the CUDA
// runtime and runs no kernel. gpu_budget.py loads it beside the real library.
#include "cuda_runtime.h"

struct cudaFuncAttributes {};
enum { cudaErrorNoDevice = 100 };
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in"; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}

#include "cuda/backend.cu"

extern "C" {

void count_only() { runs_work = false; }

// Launches outside of graphs, of graphs, and the nodes in these graphs.
void counted(long long numbers[3]) {
  numbers[0] = direct_launches;
  numbers[1] = graph_launches;
  numbers[2] = graph_nodes;
}

// Between both, what is asked on the stream becomes nodes of a graph, whose number is returned.
void begin_capture(void* stream) {
  (void)cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
}
long long end_capture(void* stream) {
  cudaGraph_t graph = nullptr;
  (void)cudaStreamEndCapture(stream, &graph);
  const long long nodes = (long long)graph->work.size();
  (void)cudaGraphDestroy(graph);
  return nodes;
}

void* make_stream() {
  cudaStream_t stream = nullptr;
  (void)cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  return stream;
}
}
