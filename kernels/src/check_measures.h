// The checks of the measures' arguments.
#ifndef DINOREG_SRC_CHECK_MEASURES_H_
#define DINOREG_SRC_CHECK_MEASURES_H_

#include "checks.h"
#include "mirror_args.h"

// Included by capi.cpp alone.
namespace {

constexpr int64_t kMostNumbers = INT64_C(1) << 40;  // of one array whose numbers are added

dr_status check_count(const char* name, int64_t count, int64_t most) {
  REQUIRE(count >= 1 && count <= most, "%s = %lld; wanted 1..%lld", name,
          static_cast<long long>(count), static_cast<long long>(most));
  return DR_OK;
}

dr_status check_result(const char* name, const void* pointer) {
  REQUIRE(pointer != nullptr, "%s must not be NULL", name);
  REQUIRE(reinterpret_cast<uintptr_t>(pointer) % 8 == 0, "%s must be 8-byte aligned", name);
  return DR_OK;
}

dr_status check(const dr_multiply_args& a) {
  REQUIRE(a.a && a.b && a.out, "a, b and out must not be NULL");
  CHECK(check_int("reserved", a.reserved, 0, 0));
  return check_shape("shape", a.shape);
}

dr_status check_sizes(const dr_sums_args& a) {
  CHECK(check_count("count", a.count, 16));
  REQUIRE(a.arrays != nullptr, "arrays is NULL");
  for (int64_t i = 0; i < a.count; ++i)
    CHECK(check_count("the size of an array", a.arrays[i].size, kMostNumbers));
  return DR_OK;
}

dr_status check(const dr_sums_args& a) {
  CHECK(check_sizes(a));
  for (int64_t i = 0; i < a.count; ++i)
    REQUIRE(a.arrays[i].values != nullptr, "arrays[%lld] is NULL", static_cast<long long>(i));
  return check_result("out", a.out);
}

dr_status check_sizes(const dr_quality_args& a) {
  CHECK(check_int("reserved", a.reserved, 0, 0));
  if (a.displacement != nullptr) {
    CHECK(check_shape("shape", a.shape));
    CHECK(check_numbers("index_from_unit", a.index_from_unit, 9));
  }
  if (a.field != nullptr) {
    CHECK(check_shape("field_shape", a.field_shape));
    CHECK(check_int("iterations", a.iterations, 1, 10000));
    CHECK(check_positive("spacing_mm", a.spacing_mm, 3));
    CHECK(check_positive("tolerance_mm", &a.tolerance_mm, 1));
  }
  if (a.misses == nullptr) return DR_OK;
  CHECK(check_count("miss_count", a.miss_count, kMostNumbers));
  return check_not_negative("miss_limit", a.miss_limit);
}

dr_status check(const dr_quality_args& a) {
  CHECK(check_sizes(a));
  return check_result("out", a.out);
}

// Of dr_agreement_args and dr_mirror_args, whose fields have the same names.
template <class Args>
dr_status check_pair_sizes(const Args& a) {
  CHECK(check_shape("fixed_shape", a.fixed_shape));
  CHECK(check_shape("moving_shape", a.moving_shape));
  CHECK(check_range("moving_offset", a.moving_offset, 3, -32768, 32768));
  REQUIRE(a.stride >= 8 && a.stride % 8 == 0, "stride = %d; wanted a multiple of 8", a.stride);
  CHECK(check_most_channels("", "stride", a.stride));
  CHECK(check_bytes("fixed_shape", a.fixed_shape, 2 * static_cast<int64_t>(a.stride)));
  CHECK(check_bytes("moving_shape", a.moving_shape, 2 * static_cast<int64_t>(a.stride)));
  return check_positive("spacing_mm", a.spacing_mm, 3);
}

template <class Args>
dr_status check_pair(const Args& a) {
  CHECK(check_features("", a));
  REQUIRE(a.fixed_image && a.moving_image, "fixed_image and moving_image must not be NULL");
  return check_result("out", a.out);
}

dr_status check_sizes(const dr_agreement_args& a) {
  CHECK(check_pair_sizes(a));
  CHECK(check_int("step", a.step, 1, 64));
  CHECK(check_range("parts", a.parts, 3, 1, DR_REGIONS));
  CHECK(check_range("region_factor", a.region_factor, 3, 0, DR_REGIONS));
  CHECK(check_range("reversed", a.reversed, 3, 0, 1));
  int last = 0;
  for (int i = 0; i < 3; ++i) last += (a.parts[i] - 1) * a.region_factor[i];
  REQUIRE(last < DR_REGIONS, "parts and region_factor give a region %d; wanted at most %d", last,
          DR_REGIONS - 1);
  return DR_OK;
}

dr_status check(const dr_agreement_args& a) {
  CHECK(check_sizes(a));
  REQUIRE(a.after != nullptr, "after must not be NULL");
  return check_pair(a);
}

dr_status check_sizes(const dr_mirror_args& a) {
  CHECK(check_pair_sizes(a));
  CHECK(check_int("factor", a.factor, 1, 64));
  CHECK(check_int("ordered", a.ordered, 0, 32));
  REQUIRE(a.ordered <= a.stride, "ordered = %d; wanted at most stride = %d", a.ordered, a.stride);
  CHECK(check_int("sides", a.sides, 0, 2));
  return check_sizes(mirror_search_args(a));
}

dr_status check(const dr_mirror_args& a) {
  CHECK(check_sizes(a));
  REQUIRE(a.ordered == 0 || a.order != nullptr, "order is NULL");
  CHECK(check_range("order", a.order, 3 * a.ordered, 0, a.ordered - 1));
  REQUIRE(a.coupling_rounds == 0 || a.coupling != nullptr, "coupling is NULL");
  CHECK(check_numbers("coupling", a.coupling, a.coupling_rounds));
  CHECK(check_not_negative("cost_smoothing_mm", a.cost_smoothing_mm));
  CHECK(check_not_negative("field_smoothing_mm", a.field_smoothing_mm));
  CHECK(check_not_negative("smoothing_mm", a.smoothing_mm));
  return check_pair(a);
}

}  // namespace

#endif  // DINOREG_SRC_CHECK_MEASURES_H_
