// The CUDA back end: the same operations as the CPU's, over the CUDA launcher.
#include "backend_table.h"
#include "cuda_passes.cuh"

#include <cstdio>

namespace {
thread_local cudaError_t last_error = cudaSuccess;
thread_local char problem[256];

// Compiled for the same devices as all other kernels.
__global__ void probe() {}

const char* says(const char* text, cudaError_t error) {
  std::snprintf(problem, sizeof problem, "%s: %s (CUDA error %d)", text, cudaGetErrorString(error),
                static_cast<int>(error));
  return problem;
}
}  // namespace

DR_NAMESPACE_BEGIN

struct CudaMaker {
  using Launcher = CudaLauncher;
  static CudaLauncher make(const dr_execution& execution) {
    return CudaLauncher(static_cast<cudaStream_t>(execution.stream));
  }
  static dr_status finish(const CudaLauncher& launch) {
    if (launch.error() == cudaSuccess) return DR_OK;
    last_error = launch.error();
    // It is reported here, so the caller must not find it in the runtime's error state as well.
    (void)cudaGetLastError();
    return DR_ERROR_DEVICE_FAILED;
  }
};

DR_NAMESPACE_END

const Backend& cuda_backend() { return dr::BackendTable<dr::CudaMaker>::table(); }

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();
  return 0;
}

const char* cuda_problem() {
  int count = 0, driver = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  if (error == cudaSuccess && count > 0) {
    cudaFuncAttributes attributes;
    const cudaError_t loaded = cudaFuncGetAttributes(&attributes, probe);
    (void)cudaGetLastError();
    return loaded == cudaSuccess ? "" : says("the kernels cannot run on this CUDA device", loaded);
  }
  // Without a driver, the runtime reports one that is too old.
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
    return "there is no NVIDIA driver on this machine";
  (void)cudaGetLastError();
  if (error == cudaSuccess || error == cudaErrorNoDevice)
    return "the driver finds no CUDA device on this machine";
  return says("the CUDA devices of this machine cannot be used", error);
}

const char* cuda_error_text() { return cudaGetErrorString(last_error); }
