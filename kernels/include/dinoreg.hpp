// dinoreg.h for C++20: errors as exceptions, memory that frees itself, arrays as spans.
//
// Every function of dinoreg.h that takes arguments is `dinoreg::run(args, execution)`. The helpers
// below it fill the arguments of the usual calls; all other fields can be set as in C.
#ifndef DINOREG_HPP_
#define DINOREG_HPP_

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dinoreg.h"

namespace dinoreg {

// A status other than DR_OK, with the library's message.
class Error : public std::runtime_error {
 public:
  explicit Error(dr_status status)
      : std::runtime_error(std::string(dr_status_string(status)) + ": " + dr_last_error_message()),
        status_(status) {}
  dr_status status() const noexcept { return status_; }

 private:
  dr_status status_;
};

inline void check(dr_status status) {
  if (status != DR_OK) throw Error(status);
}

// Where a call runs: on the CPU, or on a stream of the current CUDA device.
class Execution {
 public:
  // Receives the stage and the fraction of it that is done; false cancels the solve, and an
  // exception leaves `run`.
  using Progress = std::function<bool(dr_stage, float)>;

  static Execution cpu(int threads = 0, Progress progress = {}) {
    return Execution(DR_DEVICE_CPU, threads, nullptr, std::move(progress));
  }
  static Execution cuda(void* stream, Progress progress = {}) {
    return Execution(DR_DEVICE_CUDA, 0, stream, std::move(progress));
  }
  bool on_cpu() const { return device_ == DR_DEVICE_CPU; }

  // Calls `function` with this as a dr_execution.
  template <class Function>
  void call(Function function) const {
    Report report{progress_, nullptr};
    dr_execution execution = DR_INIT(dr_execution);
    execution.device = device_;
    execution.threads = threads_;
    execution.stream = stream_;
    if (progress_) execution.progress = &Report::receive;
    execution.progress_user = &report;
    const dr_status status = function(&execution);
    if (report.error) std::rethrow_exception(report.error);
    check(status);
  }

 private:
  // Exceptions must not pass through the library's frames.
  struct Report {
    const Progress& progress;
    std::exception_ptr error;
    static int receive(void* user, dr_stage stage, float fraction) {
      Report& self = *static_cast<Report*>(user);
      try {
        return self.progress(stage, fraction) ? 0 : 1;
      } catch (...) {
        self.error = std::current_exception();
        return 1;
      }
    }
  };

  Execution(dr_device device, int threads, void* stream, Progress progress)
      : device_(device), threads_(threads), stream_(stream), progress_(std::move(progress)) {}

  dr_device device_;
  int threads_;
  void* stream_;
  Progress progress_;
};

namespace detail {

// The function of each argument struct.
template <class Args>
constexpr std::nullptr_t kFunction = nullptr;
template <>
inline constexpr auto kFunction<dr_resample_args> = &dr_image_resample;
template <>
inline constexpr auto kFunction<dr_labels_args> = &dr_labels_resample;
template <>
inline constexpr auto kFunction<dr_slices_args> = &dr_slices_cut;
template <>
inline constexpr auto kFunction<dr_map_args> = &dr_field_map;
template <>
inline constexpr auto kFunction<dr_jacobian_args> = &dr_field_jacobian;
template <>
inline constexpr auto kFunction<dr_compose_args> = &dr_field_compose;
template <>
inline constexpr auto kFunction<dr_invert_args> = &dr_field_invert;
template <>
inline constexpr auto kFunction<dr_mind_args> = &dr_mind_compute;
template <>
inline constexpr auto kFunction<dr_local_args> = &dr_local_compute;
template <>
inline constexpr auto kFunction<dr_pool_args> = &dr_features_pool;
template <>
inline constexpr auto kFunction<dr_solver_args> = &dr_solver_run;
template <>
inline constexpr auto kFunction<dr_multiply_args> = &dr_weights_multiply;
template <>
inline constexpr auto kFunction<dr_sums_args> = &dr_values_sum;
template <>
inline constexpr auto kFunction<dr_quality_args> = &dr_quality_measure;
template <>
inline constexpr auto kFunction<dr_agreement_args> = &dr_agreement_measure;
template <>
inline constexpr auto kFunction<dr_mirror_args> = &dr_mirror_compare;
template <>
inline constexpr auto kFunction<dr_tokens_args> = &dr_tokens_sample;
template <>
inline constexpr auto kFunction<dr_tissue_args> = &dr_tissue_cover;
template <>
inline constexpr auto kFunction<dr_join_args> = &dr_features_join;

}  // namespace detail

inline std::size_t workspace_bytes(const dr_mind_args& args) {
  return dr_mind_workspace_bytes(&args);
}
inline std::size_t workspace_bytes(const dr_local_args& args) {
  return dr_local_workspace_bytes(&args);
}
inline std::size_t workspace_bytes(const dr_solver_args& args) {
  return dr_solver_workspace_bytes(&args);
}
inline std::size_t workspace_bytes(const dr_sums_args& args) {
  return dr_values_workspace_bytes(&args);
}
inline std::size_t workspace_bytes(const dr_quality_args& args) {
  return dr_quality_workspace_bytes(&args);
}
inline std::size_t workspace_bytes(const dr_agreement_args& args) {
  return dr_agreement_workspace_bytes(&args);
}
inline std::size_t workspace_bytes(const dr_mirror_args& args) {
  return dr_mirror_workspace_bytes(&args);
}

// Calls the function that takes these arguments. On the CPU, a workspace that is not given is
// allocated for the call. Throws Error.
template <class Args>
void run(Args args, const Execution& execution = Execution::cpu()) {
  std::vector<std::byte> memory;
  if constexpr (requires { args.workspace; }) {
    static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= 16);
    if (args.workspace == nullptr && execution.on_cpu()) {
      memory.resize(workspace_bytes(args));
      args.workspace = memory.data();
      args.workspace_bytes = memory.size();
    }
  }
  execution.call([&](const dr_execution* run) { return detail::kFunction<Args>(run, &args); });
}

// Keeps work that is queued again and again as CUDA graphs; see dr_session.
class Session {
 public:
  // Keeps up to `graphs` graphs. Throws Error.
  explicit Session(std::int32_t graphs = 32) { check(dr_session_create(graphs, &session_)); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() { dr_session_destroy(session_); }

  // Calls work(), which queues on the execution's stream, and launches what it has queued. Work of
  // the same kind has the same key. If something cannot be recorded, such as an allocation of
  // memory, nothing has run, and work() is called again without being recorded.
  template <class Work>
  void run(std::uint64_t key, const Execution& execution, Work work) {
    execution.call([&](const dr_execution* to) { return dr_session_begin(session_, to, key); });
    try {
      work();
    } catch (...) {
      std::int32_t lost = 0;
      check(dr_session_abandon(session_, &lost));
      if (lost == 0) throw;
      return work();
    }
    const dr_status ended = dr_session_end(session_);
    if (ended == DR_ERROR_NOT_RECORDED) return work();
    check(ended);
  }

  dr_session_counts counts() const {
    dr_session_counts found{};
    check(dr_session_count(session_, &found));
    return found;
  }

 private:
  dr_session* session_ = nullptr;
};

using Shape = std::array<std::int32_t, 3>;  // z, y, x
using Spacing = std::array<double, 3>;      // z, y, x, in mm

inline std::size_t voxels(const Shape& shape) {
  std::size_t count = 1;
  for (const std::int32_t n : shape) count *= n > 0 ? static_cast<std::size_t>(n) : 0;
  return count;
}

// A span over a whole grid, with so many numbers for each voxel. Throws std::invalid_argument if
// the span has another length.
template <class T, std::size_t kEach = 1>
class Grid {
 public:
  Grid(std::span<T> values, const Shape& shape) : values_(values), shape_(shape) {
    if (values.size() != kEach * voxels(shape))
      throw std::invalid_argument("an array has " + std::to_string(values.size()) +
                                  " numbers; its shape wants " +
                                  std::to_string(kEach * voxels(shape)));
  }
  T* data() const { return values_.data(); }
  const Shape& shape() const { return shape_; }
  void shape_to(std::int32_t (&to)[3]) const {
    for (int axis = 0; axis < 3; ++axis) to[axis] = shape_[static_cast<std::size_t>(axis)];
  }

 private:
  std::span<T> values_;
  Shape shape_;
};
using Image = Grid<const float>;
using Field = Grid<const float, 3>;  // displacements in mm along the axes of their grid

// Features of an image in half precision, with `stride` numbers for each voxel.
struct Features {
  std::vector<std::uint16_t> values;
  Shape shape;
  std::int32_t stride = 16;
  std::int32_t channels = 12;
};

// MIND-SSC features, one for each voxel.
inline Features mind(const Image& image, int radius = 1, int dilation = 2,
                     const Execution& execution = Execution::cpu()) {
  Features features{{}, image.shape()};
  features.values.resize(voxels(features.shape) * static_cast<std::size_t>(features.stride));
  dr_mind_args args = DR_INIT(dr_mind_args);
  args.image = image.data();
  image.shape_to(args.shape);
  for (int axis = 0; axis < 3; ++axis) {
    args.radius[axis] = radius;
    args.dilation[axis] = dilation;
    args.pool[axis] = 1;
  }
  args.out = features.values.data();
  args.channels = features.stride;
  args.scale = 1.0f;
  run(args, execution);
  return features;
}

// The arrays and grids of a solve on one grid; the search, the refinement, `field` and the rest are
// left to set. The arguments point into the features and weights.
inline dr_solver_args solver_args(const Features& fixed, const Image& fixed_weight,
                                  const Features& moving, const Image& moving_weight,
                                  const Spacing& spacing_mm) {
  dr_solver_args args = DR_INIT(dr_solver_args);
  args.fixed = fixed.values.data();
  args.moving = moving.values.data();
  args.fixed_weight = fixed_weight.data();
  args.moving_weight = moving_weight.data();
  if (fixed.shape != fixed_weight.shape() || moving.shape != moving_weight.shape() ||
      fixed.stride != moving.stride)
    throw std::invalid_argument("features and weights have different shapes or strides");
  fixed_weight.shape_to(args.fixed_shape);
  moving_weight.shape_to(args.moving_shape);
  args.stride = fixed.stride;
  args.channels = fixed.channels;
  for (int axis = 0; axis < 3; ++axis)
    args.spacing_mm[axis] = spacing_mm[static_cast<std::size_t>(axis)];
  return args;
}

// The moving image on the grid of the field, which is the moving image's own grid.
inline std::vector<float> warp(const Image& moving, const Field& field, const Spacing& spacing_mm,
                               float outside = 0.0f,
                               const Execution& execution = Execution::cpu()) {
  std::vector<float> warped(voxels(field.shape()));
  dr_resample_args args = DR_INIT(dr_resample_args);
  args.in = moving.data();
  args.out = warped.data();
  args.map.field = field.data();
  args.outside = outside;
  moving.shape_to(args.in_shape);
  field.shape_to(args.out_shape);
  field.shape_to(args.map.field_shape);
  for (int axis = 0; axis < 3; ++axis) {
    args.samples[axis] = 1;
    args.map.affine[5 * axis] = args.map.to_field[5 * axis] = 1.0;
    args.map.matrix[4 * axis] = 1.0 / spacing_mm[static_cast<std::size_t>(axis)];
  }
  run(args, execution);
  return warped;
}

// det(I + du/dp) of each voxel; a fold where it is negative.
inline std::vector<float> jacobian(const Field& field, const Spacing& spacing_mm,
                                   const Execution& execution = Execution::cpu()) {
  std::vector<float> determinant(voxels(field.shape()));
  dr_jacobian_args args = DR_INIT(dr_jacobian_args);
  args.field = field.data();
  args.out = determinant.data();
  field.shape_to(args.shape);
  for (int axis = 0; axis < 3; ++axis)
    args.index_from_unit[4 * axis] = 1.0 / spacing_mm[static_cast<std::size_t>(axis)];
  run(args, execution);
  return determinant;
}

}  // namespace dinoreg

#endif  // DINOREG_HPP_
