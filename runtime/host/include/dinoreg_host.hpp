// libdinoreg_host for C++20: owners of the handles of dinoreg_host.h, spans, and exceptions.
//
//   dinoreg::Registrar registrar({.options = "preset = 'mind'"});
//   dinoreg::Arguments arguments(fixed, moving);
//   arguments.displacement(field);
//   const dinoreg::Result result = registrar.run(arguments);
//
// dinoreg_host.h describes memory, threads and the interpreter.
#ifndef DINOREG_HOST_HPP_
#define DINOREG_HOST_HPP_

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "dinoreg_host.h"

namespace dinoreg {

// An error of libdinoreg_host.
class HostError : public std::runtime_error {
 public:
  HostError(dr_host_status status, const char* text) : std::runtime_error(text), status_(status) {}
  dr_host_status status() const { return status_; }

 private:
  dr_host_status status_;
};

inline void check_host(dr_host_status status) {
  if (status != DR_HOST_OK) throw HostError(status, dr_host_last_error());
}

template <class Voxel>
constexpr dr_voxel_type voxel_type() {
  if constexpr (std::is_same_v<Voxel, float>)
    return DR_VOXEL_FLOAT32;
  else if constexpr (std::is_same_v<Voxel, double>)
    return DR_VOXEL_FLOAT64;
  else if constexpr (std::is_same_v<Voxel, std::int8_t>)
    return DR_VOXEL_INT8;
  else if constexpr (std::is_same_v<Voxel, std::uint8_t>)
    return DR_VOXEL_UINT8;
  else if constexpr (std::is_same_v<Voxel, std::int16_t>)
    return DR_VOXEL_INT16;
  else if constexpr (std::is_same_v<Voxel, std::uint16_t>)
    return DR_VOXEL_UINT16;
  else if constexpr (std::is_same_v<Voxel, std::int32_t>)
    return DR_VOXEL_INT32;
  else {
    static_assert(std::is_same_v<Voxel, std::uint32_t>, "voxels of this type are not supported");
    return DR_VOXEL_UINT32;
  }
}

// The grid of an image: numbers in the order x, y, z, in LPS mm as in ITK.
struct Grid {
  std::array<std::int64_t, 3> size{};
  std::array<double, 3> spacing{1, 1, 1};
  std::array<double, 3> origin{};
  std::array<double, 9> direction{1, 0, 0, 0, 1, 0, 0, 0, 1};

  std::int64_t voxels() const { return size[0] * size[1] * size[2]; }
};

// A view of the voxels of an image in host memory, x fastest, and its grid.
class VolumeView {
 public:
  template <class Voxel>
  VolumeView(std::span<Voxel> voxels, const Grid& grid) : grid_(grid) {
    if ((std::int64_t)voxels.size() != grid.voxels())
      throw std::invalid_argument("the grid has another number of voxels than the image");
    volume_.voxels = voxels.data();
    volume_.voxel_type = voxel_type<std::remove_cv_t<Voxel>>();
    for (int i = 0; i < 3; ++i) {
      volume_.size[i] = grid.size[i];
      volume_.spacing[i] = grid.spacing[i];
      volume_.origin[i] = grid.origin[i];
    }
    for (int i = 0; i < 9; ++i) volume_.direction[i] = grid.direction[i];
  }

  const dr_volume& get() const { return volume_; }
  const Grid& grid() const { return grid_; }

 private:
  dr_volume volume_ = DR_VOLUME_INIT;
  Grid grid_;
};

// What to register and where the results go. Images and buffers must outlive the registration.
class Arguments {
 public:
  Arguments(const VolumeView& fixed, const VolumeView& moving) : fixed_(fixed), moving_(moving) {}

  void fixed_mask(const VolumeView& mask) { masks_[0] = std::make_unique<VolumeView>(mask); }
  void moving_mask(const VolumeView& mask) { masks_[1] = std::make_unique<VolumeView>(mask); }
  void weights(const VolumeView& weights) { masks_[2] = std::make_unique<VolumeView>(weights); }
  void labels(const VolumeView& labels, std::span<std::int32_t> warped) {
    masks_[3] = std::make_unique<VolumeView>(labels);
    args_.warped_labels = sized(warped, fixed_.grid().voxels()).data();
  }
  // Rows of a 3 x 4 matrix that maps fixed to moving points, in mm.
  void initial(const std::array<double, 12>& affine) { initial_ = affine, has_initial_ = true; }
  void displacement(std::span<float> out) {
    args_.displacement = sized(out, 3 * fixed_.grid().voxels()).data();
  }
  void inverse(std::span<float> out) {
    args_.inverse = sized(out, 3 * moving_.grid().voxels()).data();
  }
  void warped(std::span<float> out) { args_.warped = sized(out, fixed_.grid().voxels()).data(); }
  void progress(dr_host_progress call, void* user) { args_.progress = call, args_.user = user; }
  // The user pointer is shared with `progress`.
  void log(dr_host_log call, void* user) { args_.log = call, args_.user = user; }

  // Valid as long as this object lives and is not changed.
  dr_registration_args get() const {
    dr_registration_args args = args_;
    args.fixed = &fixed_.get();
    args.moving = &moving_.get();
    const dr_volume** const optional[] = {&args.fixed_mask, &args.moving_mask, &args.weights,
                                          &args.labels};
    for (int i = 0; i < 4; ++i) *optional[i] = masks_[i] ? &masks_[i]->get() : nullptr;
    args.initial = has_initial_ ? initial_.data() : nullptr;
    return args;
  }

 private:
  template <class T>
  static std::span<T> sized(std::span<T> out, std::int64_t wanted) {
    if ((std::int64_t)out.size() != wanted)
      throw std::invalid_argument("an output has " + std::to_string(out.size()) +
                                  " elements; wanted " + std::to_string(wanted));
    return out;
  }

  dr_registration_args args_ = DR_REGISTRATION_ARGS_INIT;
  VolumeView fixed_, moving_;
  std::unique_ptr<VolumeView> masks_[4];
  std::array<double, 12> initial_{};
  bool has_initial_ = false;
};

// The outcome of a registration; the arrays are where `Arguments` said.
struct Result {
  bool trusted = false;
  std::array<double, 12> initial{};  // fixed to moving points
  std::string report;                // JSON

  static Result take(dr_registration_result& made) {
    Result result;
    result.trusted = made.trusted != 0;
    for (int i = 0; i < 12; ++i) result.initial[i] = made.initial[i];
    if (made.report) result.report = made.report;
    dr_registration_result_free(&made);
    return result;
  }
};

// A registration that was submitted. Its destructor cancels it and waits for its end.
class Registration {
 public:
  explicit Registration(dr_registration* handle) : handle_(handle) {}
  Result wait() {
    dr_registration_result made = DR_REGISTRATION_RESULT_INIT;
    check_host(dr_registration_wait(handle_.get(), &made));
    return Result::take(made);
  }
  void cancel() { check_host(dr_registration_cancel(handle_.get())); }

 private:
  struct Destroy {
    void operator()(dr_registration* handle) const { dr_registration_destroy(handle); }
  };
  std::unique_ptr<dr_registration, Destroy> handle_;
};

struct RegistrarOptions {
  std::string python = {};   // "": see dinoreg_host.h
  std::string options = {};  // TOML
  int workers = 1;
};

// Registers many pairs with one configuration. Several threads may use it at once.
class Registrar {
 public:
  explicit Registrar(const RegistrarOptions& options = {}) {
    dr_registrar_args args = DR_REGISTRAR_ARGS_INIT;
    args.python = options.python.empty() ? nullptr : options.python.c_str();
    args.options = options.options.c_str();
    args.workers = options.workers;
    dr_registrar* handle = nullptr;
    check_host(dr_registrar_create(&args, &handle));
    handle_.reset(handle);
  }

  void warm_up(const VolumeView& fixed, const VolumeView& moving) {
    check_host(dr_registrar_warm_up(handle_.get(), &fixed.get(), &moving.get()));
  }
  Result run(const Arguments& arguments) {
    const dr_registration_args args = arguments.get();
    dr_registration_result made = DR_REGISTRATION_RESULT_INIT;
    check_host(dr_registrar_run(handle_.get(), &args, &made));
    return Result::take(made);
  }
  Registration submit(const Arguments& arguments) {
    const dr_registration_args args = arguments.get();
    dr_registration* registration = nullptr;
    check_host(dr_registrar_submit(handle_.get(), &args, &registration));
    return Registration(registration);
  }

 private:
  struct Destroy {
    void operator()(dr_registrar* handle) const { dr_registrar_destroy(handle); }
  };
  std::unique_ptr<dr_registrar, Destroy> handle_;
};

}  // namespace dinoreg

#endif  // DINOREG_HOST_HPP_
