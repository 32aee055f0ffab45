// Checks of single values: shapes, numbers, pointers. Products and sums of arguments are computed
// in 64 bits, so that no value passes a check by overflow.
#ifndef DINOREG_SRC_CHECK_VALUES_H_
#define DINOREG_SRC_CHECK_VALUES_H_

#include "dinoreg.h"

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>

// Included by capi.cpp alone.
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

enum { kMostChannels = 32768 };  // channels times the voxels of a padded axis still fit into an int
// The kernels compute with single precision. Within these limits, neither a number nor its
// reciprocal or square becomes 0 or infinity there.
constexpr double kLargest = 1e30, kLeastPositive = 1e-15, kMostPositive = 1e15;

// A C caller may pass any number as an enum; reading it as the enum would be undefined in C++.
template <class Enum>
int32_t number_of(const Enum& value) {
  static_assert(sizeof value == sizeof(int32_t));
  int32_t number;
  std::memcpy(&number, &value, sizeof number);
  return number;
}

dr_status check_shape(const char* name, const int32_t* shape) {
  for (int i = 0; i < 3; ++i)
    REQUIRE(shape[i] >= 1 && shape[i] <= 32768, "%s = (%d, %d, %d); wanted 1..32768 on each axis",
            name, shape[0], shape[1], shape[2]);
  return DR_OK;
}

// Of a checked shape. Workspaces for arrays of up to 4 TiB are counted without overflow.
dr_status check_bytes(const char* name, const int32_t* shape, int64_t bytes_per_voxel) {
  const int64_t bytes = bytes_per_voxel * shape[0] * shape[1] * shape[2];
  REQUIRE(bytes <= INT64_C(1) << 42,
          "%s = (%d, %d, %d) with %lld bytes per voxel; wanted at most 4 TiB", name, shape[0],
          shape[1], shape[2], static_cast<long long>(bytes_per_voxel));
  return DR_OK;
}

// Of a checked shape whose arrays are smoothed: these passes count the lines of up to 16 arrays and
// the numbers of a plane, of up to three components, in 32 bits.
dr_status check_planes(const char* name, const int32_t* shape) {
  const int64_t lines = static_cast<int64_t>(shape[0]) * shape[1];
  const int64_t plane = static_cast<int64_t>(shape[1]) * shape[2];
  REQUIRE(lines <= 1 << 26 && plane <= 1 << 29,
          "%s = (%d, %d, %d); wanted at most 67108864 lines along x, and 536870912 voxels in a "
          "plane of constant z",
          name, shape[0], shape[1], shape[2]);
  return DR_OK;
}

dr_status check_numbers(const char* name, const double* values, int count) {
  for (int i = 0; i < count; ++i) {
    REQUIRE(std::isfinite(values[i]), "%s[%d] is not a finite number", name, i);
    REQUIRE(std::fabs(values[i]) <= kLargest, "%s[%d] = %g; wanted -1e30..1e30", name, i,
            values[i]);
  }
  return DR_OK;
}

dr_status check_number(const char* name, double value) {
  REQUIRE(std::isfinite(value), "%s is not a finite number", name);
  REQUIRE(std::fabs(value) <= kLargest, "%s = %g; wanted -1e30..1e30", name, value);
  return DR_OK;
}

dr_status check_positive(const char* name, const double* values, int count) {
  for (int i = 0; i < count; ++i) {
    REQUIRE(std::isfinite(values[i]) && values[i] > 0.0, "%s[%d] = %g; wanted > 0", name, i,
            values[i]);
    REQUIRE(values[i] >= kLeastPositive && values[i] <= kMostPositive,
            "%s[%d] = %g; wanted 1e-15..1e15", name, i, values[i]);
  }
  return DR_OK;
}

dr_status check_not_negative(const char* name, double value) {
  REQUIRE(std::isfinite(value) && value >= 0.0, "%s = %g; wanted >= 0", name, value);
  REQUIRE(value == 0.0 || (value >= kLeastPositive && value <= kMostPositive),
          "%s = %g; wanted 0 or 1e-15..1e15", name, value);
  return DR_OK;
}

dr_status check_int(const char* name, int32_t value, int low, int high) {
  REQUIRE(value >= low && value <= high, "%s = %d; wanted %d..%d", name, value, low, high);
  return DR_OK;
}

dr_status check_range(const char* name, const int32_t* values, int count, int low, int high) {
  for (int i = 0; i < count; ++i)
    REQUIRE(values[i] >= low && values[i] <= high, "%s[%d] = %d; wanted %d..%d", name, i, values[i],
            low, high);
  return DR_OK;
}

dr_status check_most_channels(const char* of, const char* name, int32_t value) {
  REQUIRE(value <= kMostChannels, "%s%s = %d; wanted at most %d", of, name, value, kMostChannels);
  return DR_OK;
}

dr_status check_map(const dr_point_map& map) {
  CHECK(check_numbers("map.affine", map.affine, 12));
  if (map.field == nullptr) return DR_OK;
  CHECK(check_shape("map.field_shape", map.field_shape));
  CHECK(check_numbers("map.to_field", map.to_field, 12));
  return check_numbers("map.matrix", map.matrix, 9);
}

dr_status check_aligned(const char* name, const void* pointer) {
  REQUIRE(reinterpret_cast<uintptr_t>(pointer) % 16 == 0, "%s must be 16-byte aligned", name);
  return DR_OK;
}

dr_status check_workspace(const void* workspace, size_t have, size_t need) {
  REQUIRE(workspace != nullptr, "workspace is NULL; wanted %zu bytes", need);
  CHECK(check_aligned("workspace", workspace));
  if (have < need)
    return fail(DR_ERROR_WORKSPACE_TOO_SMALL, "workspace of %zu bytes; wanted %zu", have, need);
  return DR_OK;
}

}  // namespace

#endif  // DINOREG_SRC_CHECK_VALUES_H_
