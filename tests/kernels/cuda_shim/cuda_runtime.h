// Enough of the CUDA runtime to run launch.cuh on the host: blocks and threads run one after the
// other, or the threads of a block as fibres that meet at __syncthreads. This finds errors of
// indexing and barriers that not all threads reach, but neither races nor errors of the device.
// Work enqueued on a stream under capture is kept and runs when its graph is launched.
#ifndef DINOREG_TESTS_CUDA_SHIM_H_
#define DINOREG_TESTS_CUDA_SHIM_H_

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <string>
#include <vector>

#define __global__
#define __shared__ static  // blocks run one after the other
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorGraphExecUpdateFailure = 910,
  cudaErrorUnknown = 999
};
typedef void* cudaStream_t;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline bool as_fibres = false;  // needed for kernels with barriers; others run faster without it

// The threads of one block, each of which runs in turn up to the next barrier.
class Fibres {
 public:
  static void run(dim3 block, const std::function<void()>& kernel) {
    Fibres fibres(block.x * block.y, kernel);
    current_ = &fibres;
    int waiting;
    do {
      waiting = 0;
      int running = 0;
      for (unsigned t = 0; t < fibres.threads_.size(); ++t) {
        if (fibres.threads_[t].done) continue;
        ++running;
        threadIdx = dim3(t % block.x, t / block.x, 0);
        fibres.active_ = t;
        swapcontext(&fibres.main_, &fibres.threads_[t].context);
        waiting += !fibres.threads_[t].done;
      }
      if (waiting != 0 && waiting != running) fail("a barrier that not all threads reach");
      if (waiting != 0 && waiting != (int)fibres.threads_.size())
        fail("a barrier after some threads have ended");
    } while (waiting != 0);
    current_ = nullptr;
  }
  static void wait() {
    if (current_ == nullptr) fail("a barrier outside of fibres: set as_fibres");
    swapcontext(&current_->threads_[current_->active_].context, &current_->main_);
  }

 private:
  enum { kStack = 64 << 10 };
  struct Thread {
    ucontext_t context;
    bool done = false;
  };
  Fibres(unsigned count, const std::function<void()>& kernel) : kernel_(kernel), threads_(count) {
    static std::vector<char> stacks;  // shared by all blocks
    if (stacks.size() < (size_t)count * kStack) stacks.resize((size_t)count * kStack);
    for (unsigned i = 0; i < count; ++i) {
      Thread& t = threads_[i];
      getcontext(&t.context);
      t.context.uc_stack.ss_sp = stacks.data() + (size_t)i * kStack;
      t.context.uc_stack.ss_size = kStack;
      t.context.uc_link = &main_;
      makecontext(&t.context, enter, 0);
    }
  }
  static void enter() {
    current_->kernel_();
    current_->threads_[current_->active_].done = true;
  }
  static void fail(const char* what) {
    printf("%s\n", what);
    exit(1);
  }
  const std::function<void()>& kernel_;
  std::vector<Thread> threads_;
  ucontext_t main_;
  unsigned active_ = 0;
  inline static Fibres* current_ = nullptr;
};
inline void __syncthreads() { Fibres::wait(); }
inline void __syncwarp() {
  Fibres::wait();
}  // stricter than CUDA: all warps of the block must reach it

inline int launches = 0;  // kernels that were run
inline int graph_launches = 0;
inline int captures = 0;
inline int updates = 0, instantiations = 0;
inline bool runs_work = true;  // false: work is counted only
inline long long direct_launches = 0;  // of kernels and memory operations, outside of graphs
inline long long graph_nodes = 0;      // in the graphs that were launched
inline int alive = 0;  // streams, graphs and executable graphs that exist
inline cudaError_t next_error = cudaSuccess;  // the result of every call
inline const char* failing = "";  // the only call that fails, with cudaErrorUnknown

inline cudaError_t outcome(const char* call) {
  return strcmp(call, failing) == 0 ? cudaErrorUnknown : next_error;
}

enum { cudaStreamNonBlocking = 1 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2
};
#define cudaStreamLegacy ((cudaStream_t)1)
struct Graph_ {
  std::vector<std::function<void()>> work;
  std::vector<std::string> kinds;  // of the nodes, by which graphs are told apart
};
struct Stream_ {
  unsigned flags = cudaStreamNonBlocking;
  Graph_* capturing = nullptr;
  bool invalid = false;
};
typedef Graph_* cudaGraph_t;
typedef Graph_* cudaGraphExec_t;

// Runs the work, or keeps it if the stream is under capture, which an error invalidates.
inline cudaError_t enqueue(const char* call, cudaStream_t on, std::function<void()> work) {
  Stream_* stream = static_cast<Stream_*>(on);
  const cudaError_t error = outcome(call);
  const bool captured = stream != nullptr && stream->capturing != nullptr;
  if (captured && error != cudaSuccess) stream->invalid = true;
  if (error != cudaSuccess) return error;
  if (captured) {
    stream->capturing->work.push_back(work);
    stream->capturing->kinds.push_back(call);
    return cudaSuccess;
  }
  if (strcmp(call, "cudaGraphLaunch") != 0) ++direct_launches;
  if (runs_work) work();
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 g = config->gridDim, b = config->blockDim;
  const bool sound = g.x >= 1 && g.x <= 0x7fffffffu && g.y >= 1 && g.y <= 65535 && g.z == 1 &&
                     b.x >= 1 && b.y >= 1 && b.z == 1 && b.x * b.y <= 1024;
  if (!sound) return cudaErrorInvalidConfiguration;
  if (outcome("cudaLaunchKernelEx") != cudaSuccess) ++launches;
  return enqueue("cudaLaunchKernelEx", config->stream, [=] {
    ++launches;
    gridDim = g;
    blockDim = b;
    for (blockIdx.y = 0; blockIdx.y < g.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < g.x; ++blockIdx.x) {
        if (as_fibres) {
          Fibres::run(b, [&] { kernel(arguments...); });
          continue;
        }
        for (threadIdx.y = 0; threadIdx.y < b.y; ++threadIdx.y)
          for (threadIdx.x = 0; threadIdx.x < b.x; ++threadIdx.x) kernel(arguments...);
      }
  });
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return enqueue("cudaMemsetAsync", stream, [=] { memset(to, value, bytes); });
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (flags != cudaStreamNonBlocking) return cudaErrorInvalidValue;
  const cudaError_t error = outcome("cudaStreamCreateWithFlags");
  if (error != cudaSuccess) return error;
  *stream = new Stream_;
  ++alive;
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete static_cast<Stream_*>(stream);
  --alive;
  return outcome("cudaStreamDestroy");
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t on, cudaStreamCaptureMode) {
  Stream_* stream = static_cast<Stream_*>(on);
  if (stream == nullptr) return cudaErrorStreamCaptureUnsupported;  // the legacy default stream
  if (stream->capturing != nullptr) return cudaErrorInvalidValue;
  const cudaError_t error = outcome("cudaStreamBeginCapture");
  if (error != cudaSuccess) return error;
  stream->capturing = new Graph_;
  ++alive;
  ++captures;
  return cudaSuccess;
}
inline cudaError_t cudaStreamGetFlags(cudaStream_t on, unsigned* flags) {
  const bool made = on != nullptr && on != cudaStreamLegacy;
  *flags = made ? static_cast<const Stream_*>(on)->flags : 0;
  return outcome("cudaStreamGetFlags");
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t on, cudaStreamCaptureStatus* status) {
  const Stream_* stream = static_cast<const Stream_*>(on);
  *status = stream->capturing == nullptr ? cudaStreamCaptureStatusNone
            : stream->invalid            ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
  return outcome("cudaStreamIsCapturing");
}
// What an allocation or a wait in a capture does to it.
inline cudaError_t forbidden_in_a_capture(cudaStream_t on) {
  Stream_* stream = static_cast<Stream_*>(on);
  if (stream->capturing == nullptr) return cudaSuccess;
  stream->invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  --alive;
  return outcome("cudaGraphDestroy");
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t on, cudaGraph_t* graph) {
  Stream_* stream = static_cast<Stream_*>(on);
  if (stream->capturing == nullptr) return cudaErrorInvalidValue;
  cudaError_t error = stream->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
  if (error == cudaSuccess) error = outcome("cudaStreamEndCapture");
  *graph = stream->capturing;
  stream->capturing = nullptr;
  stream->invalid = false;
  if (error == cudaSuccess) return error;
  (void)cudaGraphDestroy(*graph);
  *graph = nullptr;
  return error;
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                                 unsigned long long) {
  const cudaError_t error = outcome("cudaGraphInstantiateWithFlags");
  if (error != cudaSuccess) return error;
  *executable = new Graph_(*graph);
  ++alive;
  ++instantiations;
  return cudaSuccess;
}
struct cudaGraphExecUpdateResultInfo {
  int result;
};
// As with CUDA, the functions of kernels may change, but neither number nor kinds of the nodes.
inline cudaError_t cudaGraphExecUpdate(cudaGraphExec_t executable, cudaGraph_t graph,
                                       cudaGraphExecUpdateResultInfo*) {
  const cudaError_t error = outcome("cudaGraphExecUpdate");
  if (error != cudaSuccess) return error;
  if (executable->kinds != graph->kinds) return cudaErrorGraphExecUpdateFailure;
  *executable = *graph;
  ++updates;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  graph_nodes += executable->work.size();
  if (!runs_work) ++graph_launches;
  return enqueue("cudaGraphLaunch", stream, [=] {
    ++graph_launches;
    for (const auto& work : executable->work) work();
  });
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  --alive;
  return outcome("cudaGraphExecDestroy");
}

#endif  // DINOREG_TESTS_CUDA_SHIM_H_
