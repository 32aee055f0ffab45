// The C edge: checks every argument, turns faults into status and message, picks the back end.
#include "backend.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace {

thread_local char last_error[512] = "";

__attribute__((format(printf, 2, 3))) dr_status fail(dr_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

#define REQUIRE(condition, ...) \
  if (!(condition)) return fail(DR_ERROR_INVALID_ARGUMENT, __VA_ARGS__)
#define CHECK(call) \
  if (const dr_status status_ = (call)) return status_

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
  REQUIRE(execution->threads >= 0, "threads = %d; wanted >= 0", execution->threads);
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

dr_status check_shape(const char* name, const int32_t* shape) {
  for (int i = 0; i < 3; ++i)
    REQUIRE(shape[i] >= 1 && shape[i] <= 32768, "%s = (%d, %d, %d); wanted 1..32768 on each axis",
            name, shape[0], shape[1], shape[2]);
  return DR_OK;
}

dr_status check_numbers(const char* name, const double* values, int count) {
  for (int i = 0; i < count; ++i)
    REQUIRE(std::isfinite(values[i]), "%s[%d] is not a finite number", name, i);
  return DR_OK;
}

dr_status check_positive(const char* name, const double* values, int count) {
  for (int i = 0; i < count; ++i)
    REQUIRE(std::isfinite(values[i]) && values[i] > 0.0, "%s[%d] = %g; wanted > 0", name, i,
            values[i]);
  return DR_OK;
}

dr_status check_range(const char* name, const int32_t* values, int low, int high) {
  for (int i = 0; i < 3; ++i)
    REQUIRE(values[i] >= low && values[i] <= high, "%s[%d] = %d; wanted %d..%d", name, i, values[i],
            low, high);
  return DR_OK;
}

dr_status check_map(const dr_point_map& map) {
  CHECK(check_numbers("map.affine", map.affine, 12));
  if (map.field == nullptr) return DR_OK;
  CHECK(check_shape("map.field_shape", map.field_shape));
  CHECK(check_numbers("map.to_field", map.to_field, 12));
  return check_numbers("map.matrix", map.matrix, 9);
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

dr_status check_slices(const dr_slices_args& a) {
  CHECK(check_shape("shape", a.shape));
  const int32_t out_shape[3] = {a.count, a.size[0], a.size[1]};
  CHECK(check_shape("(count, size)", out_shape));
  for (int i = 0; i < a.count; ++i)
    REQUIRE(a.slices[i] >= 0 && a.slices[i] < a.shape[0], "slices[%d] = %d; wanted 0..%d", i,
            a.slices[i], a.shape[0] - 1);
  for (int i = 0; i < 2; ++i)
    REQUIRE(a.samples[i] >= 1 && a.samples[i] <= 64, "samples[%d] = %d; wanted 1..64", i,
            a.samples[i]);
  CHECK(check_numbers("window", a.window, 2));
  REQUIRE(a.window[0] < a.window[1], "window = (%g, %g); wanted the second above the first",
          a.window[0], a.window[1]);
  REQUIRE(a.channels >= 1 && a.channels <= 4, "channels = %d; wanted 1..4", a.channels);
  CHECK(check_numbers("mean", a.mean, a.channels));
  return check_positive("std", a.std, a.channels);
}

dr_status check_workspace(const void* workspace, size_t have, size_t need) {
  REQUIRE(workspace != nullptr, "workspace is NULL; wanted %zu bytes", need);
  REQUIRE(reinterpret_cast<uintptr_t>(workspace) % 16 == 0, "workspace must be 16-byte aligned");
  if (have < need)
    return fail(DR_ERROR_WORKSPACE_TOO_SMALL, "workspace of %zu bytes; wanted %zu", have, need);
  return DR_OK;
}

dr_status check_mind(const dr_mind_args& a) {
  CHECK(check_shape("shape", a.shape));
  CHECK(check_range("radius", a.radius, 0, 64));
  CHECK(check_range("dilation", a.dilation, 1, 64));
  CHECK(check_range("pool", a.pool, 1, 64));
  REQUIRE(a.channels >= 12 && a.channels % 8 == 0,
          "channels = %d; wanted a multiple of 8, at least 12", a.channels);
  REQUIRE(std::isfinite(a.scale), "scale is not a finite number");
  return DR_OK;
}

dr_status check_local(const dr_local_args& a) {
  CHECK(check_shape("shape", a.shape));
  CHECK(check_range("pool", a.pool, 1, 64));
  CHECK(check_positive("spacing_mm", a.spacing_mm, 3));
  REQUIRE(a.windows >= 1 && a.sigma_mm != nullptr, "windows = %d; wanted >= 1, with their sigma_mm",
          a.windows);
  CHECK(check_positive("sigma_mm", a.sigma_mm, a.windows));
  REQUIRE(a.channels >= 1 && a.first_channel >= 0 && a.first_channel + a.windows <= a.channels,
          "first_channel = %d with %d windows; wanted within channels = %d", a.first_channel,
          a.windows, a.channels);
  REQUIRE(std::isfinite(a.noise) && a.noise > 0.0, "noise = %g; wanted > 0", a.noise);
  REQUIRE(std::isfinite(a.scale), "scale is not a finite number");
  return DR_OK;
}

dr_status check_solver_sizes(const dr_solver_args& a) {
  CHECK(check_shape("fixed_shape", a.fixed_shape));
  CHECK(check_shape("moving_shape", a.moving_shape));
  CHECK(check_range("moving_offset", a.moving_offset, -32768, 32768));
  REQUIRE(a.stride >= 8 && a.stride % 8 == 0, "stride = %d; wanted a multiple of 8", a.stride);
  REQUIRE(a.channels >= 1 && a.channels <= a.stride, "channels = %d; wanted 1..stride = %d",
          a.channels, a.stride);
  CHECK(check_positive("spacing_mm", a.spacing_mm, 3));
  CHECK(check_range("search_factor", a.search_factor, 1, 256));
  CHECK(check_range("search_radius", a.search_radius, 0, 64));
  REQUIRE(a.search_levels >= 1 && a.search_levels <= 4, "search_levels = %d; wanted 1..4",
          a.search_levels);
  REQUIRE(a.coupling_rounds >= 0 && a.coupling_rounds <= 64, "coupling_rounds = %d; wanted 0..64",
          a.coupling_rounds);
  REQUIRE(a.consistency_rounds >= 0, "consistency_rounds = %d; wanted >= 0", a.consistency_rounds);
  REQUIRE(a.feature_similarity >= DR_FEATURES_MSE && a.feature_similarity <= DR_FEATURES_LNCC,
          "feature_similarity = %d; wanted DR_FEATURES_MSE, _COSINE or _LNCC",
          a.feature_similarity);
  REQUIRE(a.squarings >= 0 && a.squarings <= 12, "squarings = %d; wanted 0..12", a.squarings);
  REQUIRE(a.levels >= 1 && a.levels <= 6, "levels = %d; wanted 1..6", a.levels);
  REQUIRE(a.iterations != nullptr, "iterations is NULL");
  for (int i = 0; i < a.levels; ++i)
    REQUIRE(a.iterations[i] >= 0, "iterations[%d] = %d; wanted >= 0", i, a.iterations[i]);
  return DR_OK;
}

dr_status check_solver(const dr_solver_args& a) {
  CHECK(check_solver_sizes(a));
  REQUIRE(a.fixed && a.fixed_weight && a.moving && a.moving_weight && a.field,
          "fixed, fixed_weight, moving, moving_weight and field must not be NULL");
  REQUIRE(reinterpret_cast<uintptr_t>(a.fixed) % 16 == 0 &&
              reinterpret_cast<uintptr_t>(a.moving) % 16 == 0,
          "features must be 16-byte aligned");
  REQUIRE(reinterpret_cast<uintptr_t>(a.feature_distance) % 8 == 0,
          "feature_distance must be 8-byte aligned");
  REQUIRE(a.coupling_rounds == 0 || a.coupling != nullptr, "coupling is NULL");
  CHECK(check_positive("learning_rate_mm", &a.learning_rate_mm, 1));
  const struct {
    const char* name;
    double value;
  } not_negative[] = {{"cost_smoothing_mm", a.cost_smoothing_mm},
                      {"field_smoothing_mm", a.field_smoothing_mm},
                      {"smoothing_mm", a.smoothing_mm},
                      {"adam_epsilon", a.adam_epsilon},
                      {"smoothness", a.smoothness},
                      {"fold_penalty", a.fold_penalty},
                      {"fold_margin", a.fold_margin},
                      {"feature_weight", a.feature_weight},
                      {"trust_cost", a.trust_cost},
                      {"correlation_weight", a.correlation_weight}};
  for (const auto& [name, value] : not_negative)
    REQUIRE(std::isfinite(value) && value >= 0.0, "%s = %g; wanted >= 0", name, value);
  REQUIRE(a.feature_weight > 0.0 || a.correlation_weight > 0.0,
          "feature_weight and correlation_weight are 0; wanted one above 0");
  const bool lncc = a.feature_similarity == DR_FEATURES_LNCC && a.feature_weight > 0.0;
  REQUIRE(!lncc || a.trust_cost == 0.0,
          "trust_cost = %g with DR_FEATURES_LNCC, which has no cost of single voxels; wanted 0",
          a.trust_cost);
  REQUIRE(a.correlation_weight == 0.0 || (a.fixed_image && a.moving_image),
          "fixed_image and moving_image must not be NULL with a correlation_weight");
  if (a.correlation_weight == 0.0 && !lncc) return DR_OK;
  CHECK(check_positive("correlation_window_mm", &a.correlation_window_mm, 1));
  return check_positive("correlation_noise", &a.correlation_noise, 1);
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
