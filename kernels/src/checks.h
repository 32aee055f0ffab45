// The checks of arguments that precede every call of a back end.
#ifndef DINOREG_SRC_CHECKS_H_
#define DINOREG_SRC_CHECKS_H_

#include <utility>

#include "check_values.h"

// Included by capi.cpp alone.
namespace {

dr_status check(const dr_resample_args& a) {
  REQUIRE(a.out || a.inside, "one of out and inside must not be NULL");
  REQUIRE(a.in || !a.out, "in must not be NULL when out is given");
  CHECK(check_shape("in_shape", a.in_shape));
  CHECK(check_shape("out_shape", a.out_shape));
  CHECK(check_range("samples", a.samples, 3, 1, 64));
  CHECK(check_map(a.map));
  CHECK(check_int("extend", a.extend, 0, 1));
  CHECK(check_int("reserved", a.reserved, 0, 0));
  REQUIRE(!a.extend || !(a.inside || a.map.field),
          "extend cannot be combined with inside or with a field");
  return DR_OK;
}

dr_status check(const dr_labels_args& a) {
  REQUIRE(a.in && a.out, "in and out must not be NULL");
  CHECK(check_shape("in_shape", a.in_shape));
  CHECK(check_shape("out_shape", a.out_shape));
  CHECK(check_int("nearest", a.nearest, 0, 1));
  return check_map(a.map);
}

dr_status check(const dr_map_args& a) {
  REQUIRE(a.out, "out must not be NULL");
  CHECK(check_shape("out_shape", a.out_shape));
  return check_map(a.map);
}

dr_status check(const dr_jacobian_args& a) {
  REQUIRE(a.field && a.out, "field and out must not be NULL");
  CHECK(check_shape("shape", a.shape));
  return check_numbers("index_from_unit", a.index_from_unit, 9);
}

dr_status check(const dr_compose_args& a) {
  REQUIRE(a.first && a.second && a.out, "first, second and out must not be NULL");
  CHECK(check_shape("shape", a.shape));
  CHECK(check_shape("second_shape", a.second_shape));
  CHECK(check_numbers("to_second", a.to_second, 12));
  return check_positive("spacing_mm", a.spacing_mm, 3);
}

dr_status check(const dr_invert_args& a) {
  REQUIRE(a.field && a.out, "field and out must not be NULL");
  CHECK(check_shape("field_shape", a.field_shape));
  CHECK(check_shape("out_shape", a.out_shape));
  CHECK(check_numbers("matrix", a.matrix, 9));
  CHECK(check_numbers("target", a.target, 12));
  CHECK(check_numbers("from_point", a.from_point, 12));
  CHECK(check_numbers("from_index", a.from_index, 12));
  CHECK(check_positive("spacing_mm", a.spacing_mm, 3));
  CHECK(check_positive("tolerance_mm", &a.tolerance_mm, 1));
  REQUIRE(a.iterations >= 1 && a.iterations <= 10000, "iterations = %d; wanted 1..10000",
          a.iterations);
  return DR_OK;
}

dr_status check(const dr_slices_args& a) {
  REQUIRE(a.image && a.slices && a.mean && a.std && a.out,
          "image, slices, mean, std and out must not be NULL");
  CHECK(check_shape("shape", a.shape));
  const int32_t out_shape[3] = {a.count, a.size[0], a.size[1]};
  CHECK(check_shape("(count, size)", out_shape));
  CHECK(check_range("slices", a.slices, a.count, 0, a.shape[0] - 1));
  CHECK(check_range("samples", a.samples, 2, 1, 64));
  CHECK(check_numbers("window", a.window, 2));
  REQUIRE(a.window[0] < a.window[1], "window = (%g, %g); wanted the second above the first",
          a.window[0], a.window[1]);
  REQUIRE(a.window[1] - a.window[0] >= 1 / kLargest,
          "window = (%g, %g); wanted at least 1e-30 between them", a.window[0], a.window[1]);
  CHECK(check_int("channels", a.channels, 1, 4));
  CHECK(check_numbers("mean", a.mean, a.channels));
  CHECK(check_positive("std", a.std, a.channels));
  for (int c = 0; c < a.channels; ++c)
    REQUIRE(std::fabs(a.mean[c] / a.std[c]) <= kLargest,
            "mean[%d] = %g with std = %g; wanted a quotient within -1e30..1e30", c, a.mean[c],
            a.std[c]);
  return DR_OK;
}

dr_status check_sizes(const dr_mind_args& a) {
  CHECK(check_shape("shape", a.shape));
  CHECK(check_range("radius", a.radius, 3, 0, 64));
  CHECK(check_range("dilation", a.dilation, 3, 1, 64));
  CHECK(check_range("pool", a.pool, 3, 1, 64));
  REQUIRE(a.channels >= 12 && a.channels % 8 == 0,
          "channels = %d; wanted a multiple of 8, at least 12", a.channels);
  CHECK(check_most_channels("", "channels", a.channels));
  return check_number("scale", a.scale);
}

dr_status check(const dr_mind_args& a) {
  REQUIRE(a.image && a.out, "image and out must not be NULL");
  return check_sizes(a);
}

dr_status check_sizes(const dr_local_args& a) {
  CHECK(check_shape("shape", a.shape));
  CHECK(check_planes("shape", a.shape));
  CHECK(check_range("pool", a.pool, 3, 1, 64));
  CHECK(check_positive("spacing_mm", a.spacing_mm, 3));
  REQUIRE(a.windows >= 1 && a.sigma_mm != nullptr, "windows = %d; wanted >= 1, with their sigma_mm",
          a.windows);
  CHECK(check_most_channels("", "channels", a.channels));
  REQUIRE(a.channels >= 1 && a.first_channel >= 0 &&
              static_cast<int64_t>(a.first_channel) + a.windows <= a.channels,
          "first_channel = %d with %d windows; wanted within channels = %d", a.first_channel,
          a.windows, a.channels);
  CHECK(check_positive("sigma_mm", a.sigma_mm, a.windows));
  REQUIRE(std::isfinite(a.noise) && a.noise > 0.0, "noise = %g; wanted > 0", a.noise);
  CHECK(check_positive("noise", &a.noise, 1));
  return check_number("scale", a.scale);
}

dr_status check(const dr_local_args& a) {
  REQUIRE(a.image && a.out, "image and out must not be NULL");
  return check_sizes(a);
}

dr_status check(const dr_pool_args& a) {
  REQUIRE(a.features && a.weight && a.out && a.out_weight,
          "features, weight, out and out_weight must not be NULL");
  CHECK(check_shape("shape", a.shape));
  REQUIRE(a.channels >= 8 && a.channels % 8 == 0, "channels = %d; wanted a multiple of 8",
          a.channels);
  CHECK(check_most_channels("", "channels", a.channels));
  CHECK(check_range("factor", a.factor, 3, 1, 64));
  for (int i = 0; i < 3; ++i)
    REQUIRE(a.offset[i] >= 0 && a.offset[i] < a.factor[i], "offset[%d] = %d; wanted 0..%d", i,
            a.offset[i], a.factor[i] - 1);
  CHECK(check_aligned("features", a.features));
  return check_aligned("out", a.out);
}

dr_status check(const dr_tokens_args& a) {
  REQUIRE(a.tokens && a.places && a.out, "tokens, places and out must not be NULL");
  CHECK(check_shape("shape", a.shape));
  CHECK(check_int("encoded", a.encoded, 1, a.shape[0]));
  REQUIRE(a.stride >= 8 && a.stride % 8 == 0, "stride = %d; wanted a multiple of 8", a.stride);
  CHECK(check_most_channels("", "stride", a.stride));
  CHECK(check_range("samples", a.samples, 3, 1, 64));
  CHECK(check_numbers("map", a.map, 12));
  CHECK(check_shape("out_shape", a.out_shape));
  REQUIRE(a.channels >= 8 && a.channels % 8 == 0, "channels = %d; wanted a multiple of 8",
          a.channels);
  CHECK(check_most_channels("", "channels", a.channels));
  CHECK(check_int("first_channel", a.first_channel, 0, a.channels - 1));
  CHECK(check_number("factor", a.factor));
  CHECK(check_aligned("tokens", a.tokens));
  CHECK(check_aligned("offsets", a.offsets));
  return check_aligned("out", a.out);
}

dr_status check(const dr_join_args& a) {
  REQUIRE(a.features && a.out, "features and out must not be NULL");
  CHECK(check_shape("shape", a.shape));
  REQUIRE(a.stride >= 8 && a.stride % 8 == 0, "stride = %d; wanted a multiple of 8", a.stride);
  REQUIRE(a.channels >= 8 && a.channels % 8 == 0, "channels = %d; wanted a multiple of 8",
          a.channels);
  CHECK(check_most_channels("", "stride", a.stride));
  CHECK(check_most_channels("", "channels", a.channels));
  CHECK(check_int("used", a.used, 1, a.stride));
  CHECK(check_int("first_channel", a.first_channel, 0, a.channels - 1));
  CHECK(check_number("factor", a.factor));
  CHECK(check_aligned("features", a.features));
  return check_aligned("out", a.out);
}

dr_status check(const dr_tissue_args& a) {
  REQUIRE(a.image && a.out, "image and out must not be NULL");
  CHECK(check_shape("shape", a.shape));
  for (int i = 0; i < 3; ++i) {
    CHECK(check_int("first", a.first[i], 0, a.shape[i] - 1));
    CHECK(check_int("last", a.last[i], a.first[i], a.shape[i] - 1));
  }
  CHECK(check_range("samples", a.samples, 3, 1, 64));
  CHECK(check_numbers("map", a.map, 12));
  CHECK(check_shape("out_shape", a.out_shape));
  return check_number("above", a.above);
}

// The channels of dr_solver_args or of a dr_feature_pair, which lie on the solver's checked grids.
dr_status check_channels(const char* of, const dr_solver_args& a, int stride, int channels) {
  REQUIRE(stride >= 8 && stride % 8 == 0, "%sstride = %d; wanted a multiple of 8", of, stride);
  CHECK(check_most_channels(of, "stride", stride));
  REQUIRE(channels >= 1 && channels <= stride, "%schannels = %d; wanted 1..stride = %d", of,
          channels, stride);
  CHECK(check_bytes("fixed_shape", a.fixed_shape, 2 * static_cast<int64_t>(stride)));
  return check_bytes("moving_shape", a.moving_shape, 2 * static_cast<int64_t>(stride));
}

dr_status check_search_sizes(const dr_solver_args& a) {
  CHECK(check_range("search_factor", a.search_factor, 3, 1, 256));
  CHECK(check_range("search_radius", a.search_radius, 3, 0, 64));
  CHECK(check_int("search_levels", a.search_levels, 1, 4));
  CHECK(check_int("coupling_rounds", a.coupling_rounds, 0, 64));
  REQUIRE(a.kept_costs_mb >= 0, "kept_costs_mb = %d; wanted >= 0", a.kept_costs_mb);
  CHECK(check_int("consistency_rounds", a.consistency_rounds, 0, 1000));
  for (int i = 0; a.search_features != nullptr && i < a.search_levels; ++i) {
    char of[32];
    std::snprintf(of, sizeof of, "search_features[%d].", i);
    CHECK(check_channels(of, a, a.search_features[i].stride, a.search_features[i].channels));
  }
  return DR_OK;
}

// Of dr_solver_args and of dr_feature_pair, whose fields have the same names.
template <class Pair>
dr_status check_features(const char* of, const Pair& p) {
  REQUIRE(p.fixed && p.fixed_weight && p.moving && p.moving_weight,
          "%sfixed, fixed_weight, moving and moving_weight must not be NULL", of);
  REQUIRE(reinterpret_cast<uintptr_t>(p.fixed) % 16 == 0 &&
              reinterpret_cast<uintptr_t>(p.moving) % 16 == 0,
          "%sfeatures must be 16-byte aligned", of);
  return DR_OK;
}

dr_status check_sizes(const dr_solver_args& a) {
  CHECK(check_shape("fixed_shape", a.fixed_shape));
  CHECK(check_planes("fixed_shape", a.fixed_shape));
  CHECK(check_shape("moving_shape", a.moving_shape));
  CHECK(check_range("moving_offset", a.moving_offset, 3, -32768, 32768));
  CHECK(check_channels("", a, a.stride, a.channels));
  CHECK(check_positive("spacing_mm", a.spacing_mm, 3));
  CHECK(check_search_sizes(a));
  REQUIRE(a.feature_similarity >= DR_FEATURES_MSE && a.feature_similarity <= DR_FEATURES_LNCC,
          "feature_similarity = %d; wanted DR_FEATURES_MSE, _COSINE or _LNCC",
          a.feature_similarity);
  CHECK(check_int("squarings", a.squarings, 0, 12));
  CHECK(check_int("levels", a.levels, 1, 6));
  REQUIRE(a.iterations != nullptr, "iterations is NULL");
  int64_t iterations = 0;
  for (int i = 0; i < a.levels; iterations += a.iterations[i++])
    REQUIRE(a.iterations[i] >= 0, "iterations[%d] = %d; wanted >= 0", i, a.iterations[i]);
  REQUIRE(iterations <= INT32_MAX, "the sum of iterations = %lld; wanted at most %d",
          static_cast<long long>(iterations), INT32_MAX);
  return DR_OK;
}

dr_status check(const dr_solver_args& a) {
  CHECK(check_sizes(a));
  CHECK(check_features("", a));
  for (int i = 0; a.search_features != nullptr && i < a.search_levels; ++i) {
    char of[32];
    std::snprintf(of, sizeof of, "search_features[%d]: ", i);
    CHECK(check_features(of, a.search_features[i]));
  }
  REQUIRE(a.field != nullptr, "field must not be NULL");
  REQUIRE(reinterpret_cast<uintptr_t>(a.feature_distance) % 8 == 0,
          "feature_distance must be 8-byte aligned");
  REQUIRE(a.inverse == nullptr || a.squarings > 0,
          "inverse with squarings = 0, which has none; wanted NULL or squarings in 1..12");
  REQUIRE(a.coupling_rounds == 0 || a.coupling != nullptr, "coupling is NULL");
  CHECK(check_numbers("coupling", a.coupling, a.coupling_rounds));
  CHECK(check_positive("learning_rate_mm", &a.learning_rate_mm, 1));
  const std::pair<const char*, double> not_negative[] = {
      {"search_trust_cost", a.search_trust_cost},
      {"cost_smoothing_mm", a.cost_smoothing_mm},
      {"field_smoothing_mm", a.field_smoothing_mm},
      {"smoothing_mm", a.smoothing_mm},
      {"adam_epsilon", a.adam_epsilon},
      {"smoothness", a.smoothness},
      {"fold_penalty", a.fold_penalty},
      {"fold_margin", a.fold_margin},
      {"feature_weight", a.feature_weight},
      {"trust_cost", a.trust_cost},
      {"correlation_weight", a.correlation_weight}};
  for (const auto& [name, value] : not_negative) CHECK(check_not_negative(name, value));
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

#endif  // DINOREG_SRC_CHECKS_H_
