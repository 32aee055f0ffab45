// The CUDA back end: the same operations as the CPU's, over the CUDA launcher.
#include "backend_table.h"
#include "cuda_passes.cuh"
#include "session.cuh"

#include <cstdio>
#include <new>

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
  static dr_status finish(const CudaLauncher& launch) { return told(launch.error()); }
  static dr_status told(cudaError_t error, dr_status status = DR_ERROR_DEVICE_FAILED) {
    if (error == cudaSuccess) return DR_OK;
    last_error = error;
    // It is reported here, so the caller must not find it in the runtime's error state as well.
    (void)cudaGetLastError();
    return status;
  }
};

class CudaRecorder final : public Recorder {
 public:
  explicit CudaRecorder(int graphs) : graphs_(graphs) {}
  bool usable() const { return graphs_.usable(); }

  dr_status begin(void* stream, uint64_t key) override {
    return CudaMaker::told(graphs_.begin(static_cast<cudaStream_t>(stream), key));
  }
  bool recording() const override { return graphs_.recording(); }
  dr_status end() override {
    if (!graphs_.recording()) return graphs_.ran_as_it_is(), DR_OK;
    const dr_status made = CudaMaker::told(graphs_.end(), DR_ERROR_NOT_RECORDED);
    return made == DR_OK ? CudaMaker::told(graphs_.launch()) : made;
  }
  bool abandon() override { return graphs_.abandon(); }
  dr_session_counts counts() const override { return graphs_.counts(); }

 private:
  GraphSession graphs_;
};

DR_NAMESPACE_END

const Backend& cuda_backend() { return dr::BackendTable<dr::CudaMaker>::table(); }

Recorder* cuda_recorder(int graphs) {
  auto* made = new (std::nothrow) dr::CudaRecorder(graphs);
  if (made != nullptr && made->usable()) return made;
  delete made;
  return nullptr;
}

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
