// The C interface: chooses the back end and turns errors into a status and a message. The arguments
// are checked by checks.h.
#include "backend.h"
#include "check_measures.h"
#include "checks.h"
#include "sized.h"

#include <new>

#if defined(DR_HAVE_CUDA)
enum { kCudaBuilt = 1 };
#else  // without devices, the other functions of cuda/backend.cu are not reached
enum { kCudaBuilt = 0 };
int cuda_device_count() { return 0; }
const char* cuda_problem() {
  return "this libdinoreg was built without CUDA (dinoreg-kernels-cu13 has it)";
}
const char* cuda_error_text() { return ""; }
const Backend& cuda_backend() { return cpu_backend_generic(); }
Recorder* cuda_recorder(int) { return nullptr; }
#endif

// The recorder is made when it is first needed, because a session may serve a CPU alone.
struct dr_session {
  const int graphs;
  Recorder* recorder = nullptr;
  bool open = false, on_device = false;

  bool recording() const { return open && on_device && recorder->recording(); }
  ~dr_session() { delete recorder; }
};

namespace {

struct CpuBackend {
  const char* isa;
  const Backend& (*table)();
};

CpuBackend detect_cpu() {
#if defined(DR_HAVE_X86_64_V3)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512cd");
  if (v3 && v4) return {"x86-64-v4", cpu_backend_x86_64_v4};
  if (v3) return {"x86-64-v3", cpu_backend_x86_64_v3};
#endif
  return {"generic", cpu_backend_generic};
}

const CpuBackend& cpu_backend() {
  static const CpuBackend detected = detect_cpu();
  return detected;
}

dr_status choose(const dr_execution& execution, const Backend*& backend) {
  CHECK(check_int("threads", execution.threads, 0, 1024));
  const int32_t device = number_of(execution.device);
  if (device == DR_DEVICE_CPU) {
    backend = &cpu_backend().table();
    return DR_OK;
  }
  REQUIRE(device == DR_DEVICE_CUDA, "device = %d; wanted DR_DEVICE_CPU or _CUDA", device);
  if (cuda_device_count() > 0) {
    backend = &cuda_backend();
    return DR_OK;
  }
  return fail(DR_ERROR_DEVICE_UNAVAILABLE, "no CUDA: %s", dr_cuda_problem());
}

dr_status finished(const dr_execution& execution, dr_status status) {
  if (status == DR_ERROR_CANCELLED) return fail(status, "cancelled by the progress callback");
  if (status == DR_ERROR_DEVICE_FAILED && execution.device == DR_DEVICE_CUDA)
    return fail(status, "CUDA: %s", cuda_error_text());
  return status;
}

dr_status begin(dr_session& session, const dr_execution& execution, uint64_t key) {
  session.on_device = execution.device == DR_DEVICE_CUDA;
  if (session.on_device && session.recorder == nullptr) {
    session.recorder = cuda_recorder(session.graphs);
    if (session.recorder == nullptr)
      return fail(DR_ERROR_DEVICE_FAILED, "no host memory for %d graphs", session.graphs);
  }
  const dr_status begun =
      session.on_device ? session.recorder->begin(execution.stream, key) : DR_OK;
  session.open = begun == DR_OK;
  return finished(execution, begun);
}

dr_status end(dr_session& session) {
  session.open = false;
  const dr_status ended = session.on_device ? session.recorder->end() : DR_OK;
  if (ended == DR_ERROR_NOT_RECORDED)
    return fail(ended, "CUDA cannot record this work, of which nothing has run: %s",
                cuda_error_text());
  return ended == DR_OK ? DR_OK : fail(ended, "CUDA: %s", cuda_error_text());
}

// Every call: reads the structs, chooses the back end, checks the arguments and runs an operation.
template <class Args>
dr_status run(const dr_execution* given_execution, const Args* given,
              dr_status (*Backend::*operation)(const dr_execution&, const Args&)) {
  dr_execution execution;
  CHECK(read_sized("execution", given_execution, execution));
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  Args args;
  CHECK(read_sized("args", given, args));
  CHECK(check(args));
  if constexpr (requires { args.workspace; })
    CHECK(check_workspace(args.workspace, args.workspace_bytes, workspace_bytes(args)));
  return finished(execution, (backend->*operation)(execution, args));
}

// Bytes of workspace of a call, or 0 if its sizes cannot be used.
template <class Args>
size_t size_of(const Args* given) {
  Args args;
  const bool usable = read_sized("args", given, args) == DR_OK && check_sizes(args) == DR_OK;
  return usable ? workspace_bytes(args) : 0;
}

}  // namespace

extern "C" {

int32_t dr_version(void) { return DR_VERSION_MAJOR * 1000 + DR_VERSION_MINOR; }

const char* dr_status_string(dr_status status) {
  switch (number_of(status)) {
    case DR_OK: return "ok";
    case DR_ERROR_INVALID_ARGUMENT: return "invalid argument";
    case DR_ERROR_WORKSPACE_TOO_SMALL: return "workspace too small";
    case DR_ERROR_DEVICE_UNAVAILABLE: return "device unavailable";
    case DR_ERROR_DEVICE_FAILED: return "device failed";
    case DR_ERROR_CANCELLED: return "cancelled";
    case DR_ERROR_NOT_RECORDED: return "not recorded";
  }
  return "unknown status";
}

const char* dr_last_error_message(void) { return last_error; }

const char* dr_cpu_isa(void) { return cpu_backend().isa; }

int32_t dr_cuda_built(void) { return kCudaBuilt; }

int32_t dr_cuda_device_count(void) { return cuda_device_count(); }

const char* dr_cuda_problem(void) { return cuda_problem(); }

dr_status dr_image_resample(const dr_execution* execution, const dr_resample_args* args) {
  return run(execution, args, &Backend::resample_image);
}

dr_status dr_labels_resample(const dr_execution* execution, const dr_labels_args* args) {
  return run(execution, args, &Backend::resample_labels);
}

dr_status dr_tokens_sample(const dr_execution* execution, const dr_tokens_args* args) {
  return run(execution, args, &Backend::sample_tokens);
}

dr_status dr_tissue_cover(const dr_execution* execution, const dr_tissue_args* args) {
  return run(execution, args, &Backend::cover_tissue);
}

dr_status dr_features_join(const dr_execution* execution, const dr_join_args* args) {
  return run(execution, args, &Backend::join_features);
}

dr_status dr_slices_cut(const dr_execution* execution, const dr_slices_args* args) {
  return run(execution, args, &Backend::cut_slices);
}

dr_status dr_field_map(const dr_execution* execution, const dr_map_args* args) {
  return run(execution, args, &Backend::map_field);
}

dr_status dr_field_jacobian(const dr_execution* execution, const dr_jacobian_args* args) {
  return run(execution, args, &Backend::jacobian);
}

dr_status dr_field_compose(const dr_execution* execution, const dr_compose_args* args) {
  return run(execution, args, &Backend::compose);
}

dr_status dr_field_invert(const dr_execution* execution, const dr_invert_args* args) {
  return run(execution, args, &Backend::invert);
}

size_t dr_mind_workspace_bytes(const dr_mind_args* args) { return size_of(args); }

dr_status dr_mind_compute(const dr_execution* execution, const dr_mind_args* args) {
  return run(execution, args, &Backend::mind);
}

size_t dr_local_workspace_bytes(const dr_local_args* args) { return size_of(args); }

dr_status dr_local_compute(const dr_execution* execution, const dr_local_args* args) {
  return run(execution, args, &Backend::local);
}

dr_status dr_features_pool(const dr_execution* execution, const dr_pool_args* args) {
  return run(execution, args, &Backend::pool);
}

size_t dr_solver_workspace_bytes(const dr_solver_args* args) { return size_of(args); }

dr_status dr_solver_run(const dr_execution* execution, const dr_solver_args* args) {
  return run(execution, args, &Backend::solve);
}

dr_status dr_session_create(int32_t graphs, dr_session** session) {
  REQUIRE(session != nullptr, "session is NULL");
  *session = nullptr;
  CHECK(check_int("graphs", graphs, 1, 1024));
  *session = new (std::nothrow) dr_session{graphs};
  return *session != nullptr ? DR_OK : fail(DR_ERROR_DEVICE_FAILED, "no host memory");
}

dr_status dr_session_begin(dr_session* session, const dr_execution* given_execution, uint64_t key) {
  REQUIRE(session != nullptr, "session is NULL");
  REQUIRE(!session->open, "the session is recording already; end or abandon that first");
  dr_execution execution;
  CHECK(read_sized("execution", given_execution, execution));
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  return begin(*session, execution, key);
}

int32_t dr_session_recording(const dr_session* session) {
  return session != nullptr && session->recording();
}

dr_status dr_session_end(dr_session* session) {
  REQUIRE(session != nullptr, "session is NULL");
  REQUIRE(session->open, "the session has not begun");
  return end(*session);
}

dr_status dr_session_abandon(dr_session* session, int32_t* lost) {
  REQUIRE(session != nullptr, "session is NULL");
  REQUIRE(session->open, "the session has not begun");
  session->open = false;
  const bool was_lost = session->on_device && session->recorder->abandon();
  if (lost != nullptr) *lost = was_lost;
  return DR_OK;
}

dr_status dr_session_count(const dr_session* session, dr_session_counts* counts) {
  REQUIRE(session != nullptr, "session is NULL");
  REQUIRE(counts != nullptr, "counts is NULL");
  *counts = session->recorder != nullptr ? session->recorder->counts() : dr_session_counts{};
  return DR_OK;
}

void dr_session_destroy(dr_session* session) { delete session; }

dr_status dr_weights_multiply(const dr_execution* execution, const dr_multiply_args* args) {
  return run(execution, args, &Backend::multiply);
}

size_t dr_values_workspace_bytes(const dr_sums_args* args) { return size_of(args); }

dr_status dr_values_sum(const dr_execution* execution, const dr_sums_args* args) {
  return run(execution, args, &Backend::sums);
}

size_t dr_quality_workspace_bytes(const dr_quality_args* args) { return size_of(args); }

dr_status dr_quality_measure(const dr_execution* execution, const dr_quality_args* args) {
  return run(execution, args, &Backend::quality);
}

size_t dr_agreement_workspace_bytes(const dr_agreement_args* args) { return size_of(args); }

dr_status dr_agreement_measure(const dr_execution* execution, const dr_agreement_args* args) {
  return run(execution, args, &Backend::agreement);
}

size_t dr_mirror_workspace_bytes(const dr_mirror_args* args) { return size_of(args); }

dr_status dr_mirror_compare(const dr_execution* execution, const dr_mirror_args* args) {
  return run(execution, args, &Backend::mirror);
}

}  // extern "C"
