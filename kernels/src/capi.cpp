// The C interface: chooses the back end and turns errors into a status and a message. The arguments
// are checked by checks.h.
#include "backend.h"
#include "checks.h"

namespace {

enum class Isa { kGeneric, kV3, kV4 };

Isa detect_isa() {
#if defined(DR_HAVE_X86_64_V3)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512cd");
  if (v3) return v4 ? Isa::kV4 : Isa::kV3;
#endif
  return Isa::kGeneric;
}

const Backend& cpu_backend() {
#if defined(DR_HAVE_X86_64_V3)
  static const Isa isa = detect_isa();
  if (isa == Isa::kV4) return cpu_backend_x86_64_v4();
  if (isa == Isa::kV3) return cpu_backend_x86_64_v3();
#endif
  return cpu_backend_generic();
}

dr_status choose(const dr_execution* execution, const Backend*& backend) {
  REQUIRE(execution != nullptr, "execution is NULL");
  REQUIRE(execution->threads >= 0 && execution->threads <= 1024, "threads = %d; wanted 0..1024",
          execution->threads);
  if (execution->device == DR_DEVICE_CPU) {
    backend = &cpu_backend();
    return DR_OK;
  }
  REQUIRE(execution->device == DR_DEVICE_CUDA, "device = %d; wanted DR_DEVICE_CPU or _CUDA",
          static_cast<int>(execution->device));
#if defined(DR_HAVE_CUDA)
  if (cuda_device_count() > 0) {
    backend = &cuda_backend();
    return DR_OK;
  }
#endif
  return fail(DR_ERROR_DEVICE_UNAVAILABLE, "no CUDA: %s", dr_cuda_problem());
}

dr_status finished(const dr_execution* execution, dr_status status) {
  if (status == DR_ERROR_CANCELLED) return fail(status, "cancelled by the progress callback");
#if defined(DR_HAVE_CUDA)
  if (status == DR_ERROR_DEVICE_FAILED && execution->device == DR_DEVICE_CUDA)
    return fail(status, "CUDA: %s", cuda_error_text());
#else
  (void)execution;
#endif
  return status;
}

}  // namespace

extern "C" {

int32_t dr_version(void) { return DR_VERSION_MAJOR * 1000 + DR_VERSION_MINOR; }

const char* dr_status_string(dr_status status) {
  switch (status) {
    case DR_OK: return "ok";
    case DR_ERROR_INVALID_ARGUMENT: return "invalid argument";
    case DR_ERROR_WORKSPACE_TOO_SMALL: return "workspace too small";
    case DR_ERROR_DEVICE_UNAVAILABLE: return "device unavailable";
    case DR_ERROR_DEVICE_FAILED: return "device failed";
    case DR_ERROR_CANCELLED: return "cancelled";
  }
  return "unknown status";
}

const char* dr_last_error_message(void) { return last_error; }

const char* dr_cpu_isa(void) {
  switch (detect_isa()) {
    case Isa::kV4: return "x86-64-v4";
    case Isa::kV3: return "x86-64-v3";
    case Isa::kGeneric: break;
  }
  return "generic";
}

int32_t dr_cuda_built(void) {
#if defined(DR_HAVE_CUDA)
  return 1;
#else
  return 0;
#endif
}

int32_t dr_cuda_device_count(void) {
#if defined(DR_HAVE_CUDA)
  return cuda_device_count();
#else
  return 0;
#endif
}

const char* dr_cuda_problem(void) {
#if defined(DR_HAVE_CUDA)
  return cuda_problem();
#else
  return "this libdinoreg was built without CUDA (" DR_WITHOUT_CUDA ")";
#endif
}

dr_status dr_image_resample(const dr_execution* execution, const dr_resample_args* args) {
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  REQUIRE(args && (args->out || args->inside), "args and one of out and inside must not be NULL");
  REQUIRE(args->in || !args->out, "in must not be NULL when out is given");
  CHECK(check_shape("in_shape", args->in_shape));
  CHECK(check_shape("out_shape", args->out_shape));
  CHECK(check_range("samples", args->samples, 1, 64));
  CHECK(check_map(args->map));
  REQUIRE(!args->extend || !(args->inside || args->map.field),
          "extend goes neither with inside nor with a field");
  return finished(execution, backend->resample_image(*execution, *args));
}

dr_status dr_labels_resample(const dr_execution* execution, const dr_labels_args* args) {
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  REQUIRE(args && args->in && args->out, "args, in and out must not be NULL");
  CHECK(check_shape("in_shape", args->in_shape));
  CHECK(check_shape("out_shape", args->out_shape));
  CHECK(check_map(args->map));
  return finished(execution, backend->resample_labels(*execution, *args));
}

dr_status dr_slices_cut(const dr_execution* execution, const dr_slices_args* args) {
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  REQUIRE(args && args->image && args->slices && args->mean && args->std && args->out,
          "args, image, slices, mean, std and out must not be NULL");
  CHECK(check_slices(*args));
  return finished(execution, backend->cut_slices(*execution, *args));
}

dr_status dr_field_map(const dr_execution* execution, const dr_map_args* args) {
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  REQUIRE(args && args->out, "args and out must not be NULL");
  CHECK(check_shape("out_shape", args->out_shape));
  CHECK(check_map(args->map));
  return finished(execution, backend->map_field(*execution, *args));
}

dr_status dr_field_jacobian(const dr_execution* execution, const dr_jacobian_args* args) {
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  REQUIRE(args && args->field && args->out, "args, field and out must not be NULL");
  CHECK(check_shape("shape", args->shape));
  CHECK(check_numbers("index_from_unit", args->index_from_unit, 9));
  return finished(execution, backend->jacobian(*execution, *args));
}

dr_status dr_field_compose(const dr_execution* execution, const dr_compose_args* args) {
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  REQUIRE(args && args->first && args->second && args->out,
          "args, first, second and out must not be NULL");
  CHECK(check_shape("shape", args->shape));
  CHECK(check_shape("second_shape", args->second_shape));
  CHECK(check_numbers("to_second", args->to_second, 12));
  CHECK(check_positive("spacing_mm", args->spacing_mm, 3));
  return finished(execution, backend->compose(*execution, *args));
}

dr_status dr_field_invert(const dr_execution* execution, const dr_invert_args* args) {
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  REQUIRE(args && args->field && args->out, "args, field and out must not be NULL");
  CHECK(check_shape("field_shape", args->field_shape));
  CHECK(check_shape("out_shape", args->out_shape));
  CHECK(check_numbers("matrix", args->matrix, 9));
  CHECK(check_numbers("target", args->target, 12));
  CHECK(check_numbers("from_point", args->from_point, 12));
  CHECK(check_numbers("from_index", args->from_index, 12));
  CHECK(check_positive("spacing_mm", args->spacing_mm, 3));
  CHECK(check_positive("tolerance_mm", &args->tolerance_mm, 1));
  REQUIRE(args->iterations >= 1, "iterations = %d; wanted >= 1", args->iterations);
  return finished(execution, backend->invert(*execution, *args));
}

size_t dr_mind_workspace_bytes(const dr_mind_args* args) {
  return args != nullptr && check_mind(*args) == DR_OK ? mind_workspace_bytes(*args) : 0;
}

dr_status dr_mind_compute(const dr_execution* execution, const dr_mind_args* args) {
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  REQUIRE(args && args->image && args->out, "args, image and out must not be NULL");
  CHECK(check_mind(*args));
  CHECK(check_workspace(args->workspace, args->workspace_bytes, mind_workspace_bytes(*args)));
  return finished(execution, backend->mind(*execution, *args));
}

size_t dr_local_workspace_bytes(const dr_local_args* args) {
  return args != nullptr && check_local(*args) == DR_OK ? local_workspace_bytes(*args) : 0;
}

dr_status dr_local_compute(const dr_execution* execution, const dr_local_args* args) {
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  REQUIRE(args && args->image && args->out, "args, image and out must not be NULL");
  CHECK(check_local(*args));
  CHECK(check_workspace(args->workspace, args->workspace_bytes, local_workspace_bytes(*args)));
  return finished(execution, backend->local(*execution, *args));
}

dr_status dr_features_pool(const dr_execution* execution, const dr_pool_args* args) {
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  REQUIRE(args && args->features && args->weight && args->out && args->out_weight,
          "args, features, weight, out and out_weight must not be NULL");
  CHECK(check_pool(*args));
  return finished(execution, backend->pool(*execution, *args));
}

size_t dr_solver_workspace_bytes(const dr_solver_args* args) {
  return args != nullptr && check_solver_sizes(*args) == DR_OK ? solver_workspace_bytes(*args) : 0;
}

dr_status dr_solver_run(const dr_execution* execution, const dr_solver_args* args) {
  const Backend* backend = nullptr;
  CHECK(choose(execution, backend));
  REQUIRE(args != nullptr, "args is NULL");
  CHECK(check_solver(*args));
  CHECK(check_workspace(args->workspace, args->workspace_bytes, solver_workspace_bytes(*args)));
  return finished(execution, backend->solve(*execution, *args));
}

}  // extern "C"
