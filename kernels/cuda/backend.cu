// The CUDA back end: the same operations as the CPU's, over the CUDA launcher.
#include "backend_table.h"
#include "cuda_passes.cuh"

namespace {
thread_local cudaError_t last_error = cudaSuccess;
}

DR_NAMESPACE_BEGIN

struct CudaMaker {
  using Launcher = CudaLauncher;
  static CudaLauncher make(const dr_execution& execution) {
    return CudaLauncher(static_cast<cudaStream_t>(execution.stream));
  }
  static dr_status finish(const CudaLauncher& launch) {
    if (launch.error() == cudaSuccess) return DR_OK;
    last_error = launch.error();
    // Ours to report: the caller's next look at the runtime's error state should not find it.
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

const char* cuda_error_text() { return cudaGetErrorString(last_error); }
