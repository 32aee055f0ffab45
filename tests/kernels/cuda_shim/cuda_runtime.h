// Enough of the CUDA runtime to run launch.cuh on a host compiler: blocks and threads one after
// the other, or the threads of a block as fibres that meet at __syncthreads. It finds faults of
// indexing and barriers that not all threads reach; it cannot find races or faults of the device.
#ifndef DINOREG_TESTS_CUDA_SHIM_H_
#define DINOREG_TESTS_CUDA_SHIM_H_

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define __global__
#define __shared__ static  // blocks run one after the other
#define __grid_constant__
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorUnknown = 999 };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
typedef void* cudaStream_t;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline bool as_fibres = false;  // kernels with barriers need it; others run faster without

// The threads of one block, taken in turns from barrier to barrier.
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
    static std::vector<char> stacks;  // of every block in turn
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

inline int launches = 0;
inline cudaError_t next_error = cudaSuccess;  // what every call reports

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 g = config->gridDim, b = config->blockDim;
  const bool sound = g.x >= 1 && g.x <= 0x7fffffffu && g.y >= 1 && g.y <= 65535 && g.z == 1 &&
                     b.x >= 1 && b.y >= 1 && b.z == 1 && b.x * b.y <= 1024;
  if (!sound) return cudaErrorInvalidConfiguration;
  ++launches;
  if (next_error != cudaSuccess) return next_error;
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
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return next_error;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  memcpy(to, from, bytes);
  return next_error;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return next_error; }

#endif  // DINOREG_TESTS_CUDA_SHIM_H_
