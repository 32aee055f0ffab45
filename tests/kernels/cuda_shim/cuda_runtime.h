// Enough of the CUDA runtime to run launch.cuh on a host compiler: blocks and threads one after
// the other. It finds faults of indexing; it cannot find races or faults of the device.
#ifndef DINOREG_TESTS_CUDA_SHIM_H_
#define DINOREG_TESTS_CUDA_SHIM_H_

#include <stddef.h>
#include <string.h>

#define __global__
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
    for (blockIdx.x = 0; blockIdx.x < g.x; ++blockIdx.x)
      for (threadIdx.y = 0; threadIdx.y < b.y; ++threadIdx.y)
        for (threadIdx.x = 0; threadIdx.x < b.x; ++threadIdx.x) kernel(arguments...);
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
