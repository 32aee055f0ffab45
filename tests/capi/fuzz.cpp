// Calls every exported function with a mix of sane and hostile arguments, for a given time:
//   fuzz SECONDS [SEED]
// Round k has the seed SEED + k; a failure names its own, and `fuzz 0 SEED` repeats that round
// alone. Built together with the library's sources under the address and undefined-behaviour
// sanitizers (test_fuzz.py), which end it at the first error. All buffers have exactly the promised
// size.
#include <chrono>
#include <cstdio>

#include "dinoreg.h"
#include "fuzz_values.h"

extern "C" void __sanitizer_set_death_callback(void (*callback)());

namespace {

int stop_after(void* user, dr_stage, float) { return --*static_cast<int*>(user) <= 0; }
int reports;

dr_execution execution() {
  dr_execution e = DR_INIT(dr_execution);
  const int32_t device = hostile() ? hostile_int() : 0;
  std::memcpy(&e.device, &device, sizeof device);
  e.threads = quick(1, 3, 1024);
  reports = pick(1, 60);
  e.progress = stop_after;
  e.progress_user = &reports;
  return e;
}

void fill_map(dr_point_map& map) {
  for (int i = 0; i < 12; ++i) map.affine[i] = number(-1, 2), map.to_field[i] = number(-1, 2);
  fill(map.field_shape, 1, 7);
  fill(map.matrix, -2, 2);
  map.field = optional(floats(voxels(map.field_shape, 3)));
}

int64_t calls, accepted;
void count(dr_status status) {
  ++calls;
  accepted += status == DR_OK;
  if (status < DR_OK || status > DR_ERROR_NOT_RECORDED || dr_last_error_message() == nullptr)
    std::abort();
}

template <class Args>
void call(dr_status (*function)(const dr_execution*, const Args*), const Args& args) {
  if (too_large) return;
  const dr_execution e = execution();
  count(function(one_in(500) ? nullptr : as_sent(e), one_in(500) ? nullptr : as_sent(args)));
}

void image_resample() {
  dr_resample_args a = DR_INIT(dr_resample_args);
  fill(a.in_shape, 1, 9);
  fill(a.out_shape, 1, 9);
  a.in = floats(voxels(a.in_shape));
  a.out = optional(output<float>(voxels(a.out_shape)));
  a.inside = optional(output<float>(voxels(a.out_shape)));
  fill_map(a.map);
  for (int32_t& v : a.samples) v = quick(1, 3, 64);
  a.outside = (float)number(-9, 9);
  a.extend = whole(0, 1);
  call(dr_image_resample, a);
}

void labels_resample() {
  dr_labels_args a = DR_INIT(dr_labels_args);
  fill(a.in_shape, 1, 9);
  fill(a.out_shape, 1, 9);
  a.in = output<int32_t>(voxels(a.in_shape));
  a.out = output<int32_t>(voxels(a.out_shape));
  fill_map(a.map);
  a.nearest = whole(0, 1);
  a.outside = whole(0, 3);
  call(dr_labels_resample, a);
}

void slices_cut() {
  dr_slices_args a = DR_INIT(dr_slices_args);
  fill(a.shape, 1, 9);
  const int64_t n = voxels(a.shape);
  a.image = floats(n);
  a.strides[0] = n > 1 ? a.shape[1] * a.shape[2] : 0;
  a.strides[1] = a.shape[2];
  a.strides[2] = 1;
  a.count = whole(1, 70);
  fill(a.size, 1, 9);
  for (int32_t& v : a.samples) v = quick(1, 3, 64);
  a.window[0] = number(-9, 0);
  a.window[1] = number(1, 9);
  a.channels = whole(1, 4);
  a.mean = doubles(numbers({a.channels}), 0, 1);
  a.std = doubles(numbers({a.channels}), 0.1, 1);
  const int64_t listed = numbers({a.count});
  int32_t* slices = output<int32_t>(listed);
  for (int64_t i = 0; slices && i < listed; ++i) slices[i] = whole(0, 0);
  a.slices = slices;
  a.out = output<float>(numbers({a.count, a.channels, a.size[0], a.size[1]}));
  call(dr_slices_cut, a);
}

void field_map() {
  dr_map_args a = DR_INIT(dr_map_args);
  fill(a.out_shape, 1, 9);
  a.out = output<float>(voxels(a.out_shape, 3));
  fill_map(a.map);
  call(dr_field_map, a);
}

void field_jacobian() {
  dr_jacobian_args a = DR_INIT(dr_jacobian_args);
  fill(a.shape, 1, 9);
  a.field = floats(voxels(a.shape, 3));
  a.out = output<float>(voxels(a.shape));
  fill(a.index_from_unit, -1, 1);
  call(dr_field_jacobian, a);
}

void field_compose() {
  dr_compose_args a = DR_INIT(dr_compose_args);
  fill(a.shape, 1, 9);
  fill(a.second_shape, 1, 9);
  a.first = floats(voxels(a.shape, 3));
  a.second = floats(voxels(a.second_shape, 3));
  fill(a.to_second, -1, 2);
  fill(a.spacing_mm, 0.5, 3);
  a.out = output<float>(voxels(a.shape, 3));
  call(dr_field_compose, a);
}

void field_invert() {
  dr_invert_args a = DR_INIT(dr_invert_args);
  fill(a.field_shape, 1, 7);
  fill(a.out_shape, 1, 7);
  a.field = floats(voxels(a.field_shape, 3));
  fill(a.matrix, -1, 1);
  fill(a.spacing_mm, 0.5, 3);
  fill(a.target, -1, 2);
  a.wanted = optional(floats(voxels(a.out_shape, 3)));
  fill(a.from_point, -1, 2);
  fill(a.from_index, -1, 2);
  a.out = output<float>(voxels(a.out_shape, 3));
  a.residual_mm = optional(output<float>(voxels(a.out_shape)));
  a.iterations = hostile() ? any_of<int32_t>({INT32_MIN, -1, 0, 10001, INT32_MAX}) : pick(1, 30);
  a.tolerance_mm = number(0.001, 1);
  call(dr_field_invert, a);
}

template <class Args>
void give_workspace(Args& a, size_t bytes) {
  if (bytes > (size_t)64 << 20) {
    too_large = true;
    return;
  }
  a.workspace = hostile() ? nullptr : buffer<char>((int64_t)bytes);
  a.workspace_bytes = bytes > 0 && hostile() ? (size_t)(generator() % bytes) : bytes;
}
int64_t divided(int64_t n, int64_t by) { return by >= 1 ? (n + by - 1) / by : 1; }

void mind_compute() {
  dr_mind_args a = DR_INIT(dr_mind_args);
  fill(a.shape, 1, 12);
  fill(a.radius, 0, 2);
  fill(a.dilation, 1, 3);
  fill(a.pool, 1, 3);
  a.channels = hostile() ? hostile_int() : 8 * pick(2, 3);
  a.image = floats(voxels(a.shape));
  const int64_t z = divided(a.shape[0], a.pool[0]), y = divided(a.shape[1], a.pool[1]);
  const int64_t x = divided(a.shape[2], a.pool[2]);
  a.out = output<uint16_t>(numbers({z, y, x, a.channels}));
  a.structure = optional(output<float>(numbers({z, y, x})));
  a.scale = (float)number(0, 2);
  give_workspace(a, dr_mind_workspace_bytes(one_in(500) ? nullptr : as_sent(a)));
  call(dr_mind_compute, a);
}

void local_compute() {
  dr_local_args a = DR_INIT(dr_local_args);
  fill(a.shape, 1, 12);
  fill(a.pool, 1, 3);
  fill(a.spacing_mm, 0.5, 3);
  a.windows = whole(1, 3);
  a.sigma_mm = doubles(numbers({a.windows}), 0.01, 9);
  a.channels = whole(3, 9);
  a.first_channel = whole(0, 5);
  a.noise = number(0.01, 1);
  a.scale = number(0, 2);
  a.image = floats(voxels(a.shape));
  a.out = output<uint16_t>(numbers({divided(a.shape[0], a.pool[0]), divided(a.shape[1], a.pool[1]),
                                    divided(a.shape[2], a.pool[2]), a.channels}));
  give_workspace(a, dr_local_workspace_bytes(as_sent(a)));
  call(dr_local_compute, a);
}

void features_pool() {
  dr_pool_args a = DR_INIT(dr_pool_args);
  fill(a.shape, 1, 9);
  a.channels = hostile() ? hostile_int() : 8 * pick(1, 3);
  fill(a.factor, 1, 4);
  for (int i = 0; i < 3; ++i)
    a.offset[i] = hostile() ? hostile_int() : pick(0, a.factor[i] % 64 > 1);
  a.features = halves(voxels(a.shape, a.channels));
  a.weight = floats(voxels(a.shape));
  int64_t blocks[3];
  for (int i = 0; i < 3; ++i) blocks[i] = divided((int64_t)a.shape[i] + a.offset[i], a.factor[i]);
  a.out = output<uint16_t>(numbers({blocks[0], blocks[1], blocks[2], a.channels}));
  a.out_weight = output<float>(numbers({blocks[0], blocks[1], blocks[2]}));
  call(dr_features_pool, a);
}

int multiple_of_8(int most) { return hostile() ? hostile_int() : 8 * pick(1, most); }

void tokens_sample() {
  dr_tokens_args a = DR_INIT(dr_tokens_args);
  fill(a.shape, 1, 9);
  fill(a.out_shape, 1, 9);
  a.encoded = whole(1, 3);
  a.stride = multiple_of_8(5);
  a.tokens = floats(numbers({a.encoded, a.shape[1], a.shape[2], a.stride}));
  a.offsets = optional(floats(numbers({a.encoded, a.stride})));
  a.places = floats(numbers({a.shape[0], 2}));
  for (int32_t& v : a.samples) v = quick(1, 3, 64);
  fill(a.map, -1, 2);
  a.channels = multiple_of_8(6);
  a.first_channel = whole(0, 9);
  a.factor = (float)number(-2, 2);
  a.out = output<uint16_t>(voxels(a.out_shape, a.channels));
  call(dr_tokens_sample, a);
}

void tissue_cover() {
  dr_tissue_args a = DR_INIT(dr_tissue_args);
  fill(a.shape, 1, 9);
  fill(a.out_shape, 1, 9);
  fill(a.first, 0, 2);
  fill(a.last, 0, 4);
  for (int32_t& v : a.samples) v = quick(1, 3, 64);
  fill(a.map, -1, 2);
  a.above = (float)number(-1, 1);
  a.image = floats(voxels(a.shape));
  a.out = output<float>(voxels(a.out_shape));
  call(dr_tissue_cover, a);
}

void features_join() {
  dr_join_args a = DR_INIT(dr_join_args);
  fill(a.shape, 1, 9);
  a.stride = multiple_of_8(3);
  a.used = whole(1, 16);
  a.channels = multiple_of_8(5);
  a.first_channel = whole(0, 20);
  a.factor = (float)number(-2, 2);
  a.features = halves(voxels(a.shape, a.stride));
  a.out = output<uint16_t>(voxels(a.shape, a.channels));
  call(dr_features_join, a);
}

template <class Pair>
void fill_pair(Pair& p, const int32_t* fixed_shape, const int32_t* moving_shape) {
  p.stride = hostile() ? hostile_int() : 8 * pick(1, 2);
  p.channels = whole(1, 8);
  p.fixed = halves(voxels(fixed_shape, p.stride));
  p.fixed_weight = floats(voxels(fixed_shape));
  p.moving = halves(voxels(moving_shape, p.stride));
  p.moving_weight = floats(voxels(moving_shape));
}

void fill_search(dr_solver_args& a) {
  fill(a.search_factor, 1, 4);
  for (int32_t& v : a.search_radius) v = quick(0, 2, 64);
  a.search_levels = whole(1, 3);
  a.search_trust_cost = number(0, 1);
  a.cost_smoothing_mm = number(0, 9);
  a.field_smoothing_mm = number(0, 9);
  a.coupling_rounds = whole(0, 3);
  a.coupling = doubles(numbers({a.coupling_rounds}), 0, 1);
  a.kept_costs_mb = whole(0, 1);
  a.consistency_rounds = whole(0, 3);
  if (one_in(2)) return;
  const int levels = a.search_levels >= 1 && a.search_levels <= 4 ? a.search_levels : 1;
  dr_feature_pair* pairs = buffer<dr_feature_pair>(levels);
  for (int i = 0; i < levels; ++i) fill_pair(pairs[i], a.fixed_shape, a.moving_shape);
  a.search_features = pairs;
}

void fill_refinement(dr_solver_args& a) {
  a.levels = whole(1, 3);
  const int levels = a.levels >= 1 && a.levels <= 6 ? a.levels : 1;
  int32_t* iterations = output<int32_t>(levels);
  for (int i = 0; iterations && i < levels; ++i) iterations[i] = whole(0, 4);
  a.iterations = iterations;
  a.learning_rate_mm = number(0.1, 4);
  a.adam_epsilon = number(0, 1);
  a.smoothing_mm = number(0, 9);
  a.smoothness = number(0, 2);
  a.feature_weight = number(0, 2);
  a.feature_similarity = whole(0, 2);
  a.trust_cost = one_in(2) ? 0.0 : number(0, 2);
  a.correlation_weight = one_in(2) ? 0.0 : number(0, 2);
  a.correlation_window_mm = number(0.5, 9);
  a.correlation_noise = number(0.01, 1);
  a.fold_penalty = number(0, 2);
  a.fold_margin = number(0, 1);
  a.squarings = whole(0, 3);
  a.fixed_image = floats(voxels(a.fixed_shape));
  a.moving_image = floats(voxels(a.moving_shape));
}

void solver_run() {
  dr_solver_args a = DR_INIT(dr_solver_args);
  fill(a.fixed_shape, 1, 12);
  fill(a.moving_shape, 1, 12);
  fill(a.moving_offset, -4, 4);
  fill(a.spacing_mm, 0.5, 3);
  fill_pair(a, a.fixed_shape, a.moving_shape);
  fill_search(a);
  fill_refinement(a);
  a.field = output<float>(voxels(a.fixed_shape, 3));
  if (a.squarings > 0 || hostile()) a.inverse = optional(output<float>(voxels(a.fixed_shape, 3)));
  a.spread = optional(output<float>(voxels(a.fixed_shape, 3)));
  a.feature_distance = optional(output<dr_feature_distance>(1));
  give_workspace(a, dr_solver_workspace_bytes(one_in(500) ? nullptr : as_sent(a)));
  call(dr_solver_run, a);
}

// Calls in any order, also before a beginning and after an end.
void session() {
  dr_session* session = nullptr;
  count(
      dr_session_create(hostile() ? hostile_int() : pick(1, 3), one_in(500) ? nullptr : &session));
  for (int step = pick(0, 12); step > 0; --step) {
    dr_session* const given = one_in(500) ? nullptr : session;
    const dr_execution e = execution();
    int32_t lost = 7;
    dr_session_counts found;
    switch (pick(0, 3)) {
      case 0:
        count(dr_session_begin(given, one_in(500) ? nullptr : as_sent(e), (uint64_t)pick(1, 4)));
        break;
      case 1: count(dr_session_end(given)); break;
      case 2: count(dr_session_abandon(given, optional(&lost))); break;
      default: count(dr_session_count(given, one_in(500) ? nullptr : &found));
    }
    if (dr_session_recording(given) != 0) std::abort();  // nothing is recorded on a CPU
  }
  dr_session_destroy(session);
}

void weights_multiply() {
  dr_multiply_args a = DR_INIT(dr_multiply_args);
  fill(a.shape, 1, 9);
  a.a = floats(voxels(a.shape));
  a.b = floats(voxels(a.shape));
  a.c = optional(floats(voxels(a.shape)));
  a.out = output<float>(voxels(a.shape));
  call(dr_weights_multiply, a);
}

void values_sum() {
  dr_sums_args a = DR_INIT(dr_sums_args);
  a.count = hostile() ? hostile_int() : pick(1, 4);
  const int64_t known = a.count >= 1 && a.count <= 16 ? a.count : 1;
  dr_array* arrays = buffer<dr_array>(known);
  for (int64_t i = 0; i < known; ++i) {
    arrays[i].size = hostile() ? hostile_int() : pick(1, 5000);
    if (arrays[i].size > kMostNumbers) too_large = true;
    const bool usable = arrays[i].size >= 1 && arrays[i].size <= kMostNumbers;
    arrays[i].values = floats(usable ? arrays[i].size : 1);
  }
  a.arrays = hostile() ? nullptr : arrays;
  a.out = output<double>(known);
  if (too_large) return;
  give_workspace(a, dr_values_workspace_bytes(as_sent(a)));
  call(dr_values_sum, a);
}

void quality_measure() {
  dr_quality_args a = DR_INIT(dr_quality_args);
  fill(a.shape, 1, 9);
  a.displacement = optional(floats(voxels(a.shape, 3)));
  fill(a.index_from_unit, -1, 1);
  fill(a.field_shape, 1, 9);
  a.field = optional(floats(voxels(a.field_shape, 3)));
  a.inverse = optional(floats(voxels(a.field_shape, 3)));
  a.iterations = hostile() ? any_of<int32_t>({INT32_MIN, -1, 0, 10001, INT32_MAX}) : pick(1, 30);
  fill(a.spacing_mm, 0.5, 3);
  a.tolerance_mm = number(0.001, 1);
  a.miss_count = whole(1, 99);
  if (a.miss_count > kMostNumbers) too_large = true;
  const bool usable = a.miss_count >= 1 && a.miss_count <= kMostNumbers;
  a.misses = optional(floats(usable ? a.miss_count : 1));
  a.miss_limit = number(0, 1);
  a.out = output<dr_quality>(1);
  if (too_large) return;
  give_workspace(a, dr_quality_workspace_bytes(as_sent(a)));
  call(dr_quality_measure, a);
}

template <class Args>
void fill_images(Args& a) {
  fill(a.fixed_shape, 1, 12);
  fill(a.moving_shape, 1, 12);
  fill(a.moving_offset, -4, 4);
  fill(a.spacing_mm, 0.5, 3);
  a.stride = hostile() ? hostile_int() : 8 * pick(1, 2);
  a.fixed = halves(voxels(a.fixed_shape, a.stride));
  a.fixed_weight = floats(voxels(a.fixed_shape));
  a.fixed_image = floats(voxels(a.fixed_shape));
  a.moving = halves(voxels(a.moving_shape, a.stride));
  a.moving_weight = floats(voxels(a.moving_shape));
  a.moving_image = floats(voxels(a.moving_shape));
}

void agreement_measure() {
  dr_agreement_args a = DR_INIT(dr_agreement_args);
  fill_images(a);
  a.before = optional(floats(voxels(a.fixed_shape, 3)));
  a.after = floats(voxels(a.fixed_shape, 3));
  a.step = whole(1, 3);
  fill(a.parts, 1, 2);
  fill(a.region_factor, 0, 4);
  fill(a.reversed, 0, 1);
  a.out = output<dr_agreement>(1);
  give_workspace(a, dr_agreement_workspace_bytes(as_sent(a)));
  call(dr_agreement_measure, a);
}

void mirror_compare() {
  dr_mirror_args a = DR_INIT(dr_mirror_args);
  fill_images(a);
  a.channels = whole(1, 8);
  a.factor = whole(1, 3);
  a.ordered = whole(0, 8);
  const int64_t listed = a.ordered >= 1 && a.ordered <= 32 ? 3 * a.ordered : 1;
  int32_t* order = output<int32_t>(listed);
  for (int64_t i = 0; order && i < listed; ++i)
    order[i] =
        hostile() ? hostile_int() : pick(0, a.ordered > 1 && a.ordered <= 32 ? a.ordered - 1 : 0);
  a.order = order;
  a.sides = whole(0, 2);
  fill(a.search_factor, 1, 4);
  for (int32_t& v : a.search_radius) v = quick(0, 2, 64);
  a.cost_smoothing_mm = number(0, 9);
  a.field_smoothing_mm = number(0, 9);
  a.smoothing_mm = number(0, 9);
  a.coupling_rounds = whole(0, 3);
  a.coupling = doubles(numbers({a.coupling_rounds}), 0, 1);
  a.kept_costs_mb = whole(0, 1);
  a.out = output<dr_mirror_test>(1);
  give_workspace(a, dr_mirror_workspace_bytes(one_in(500) ? nullptr : as_sent(a)));
  call(dr_mirror_compare, a);
}

void facts() {
  const int32_t number = hostile_int();
  dr_status status;
  std::memcpy(&status, &number, sizeof status);
  const char* texts[] = {dr_status_string(status), dr_cpu_isa(), dr_cuda_problem(),
                         dr_last_error_message()};
  for (const char* text : texts)
    if (text == nullptr) std::abort();
  if (dr_version() < 1 || dr_cuda_built() < 0 || dr_cuda_device_count() < 0) std::abort();
}

struct Function {
  const char* name;
  void (*run)();
  int64_t calls = 0, accepted = 0;
};
Function functions[] = {{"image_resample", image_resample},
                        {"labels_resample", labels_resample},
                        {"slices_cut", slices_cut},
                        {"field_map", field_map},
                        {"field_jacobian", field_jacobian},
                        {"field_compose", field_compose},
                        {"field_invert", field_invert},
                        {"mind_compute", mind_compute},
                        {"local_compute", local_compute},
                        {"features_pool", features_pool},
                        {"solver_run", solver_run},
                        {"tokens_sample", tokens_sample},
                        {"tissue_cover", tissue_cover},
                        {"features_join", features_join},
                        {"weights_multiply", weights_multiply},
                        {"values_sum", values_sum},
                        {"quality_measure", quality_measure},
                        {"mirror_compare", mirror_compare},
                        {"agreement_measure", agreement_measure},
                        {"session", session}};

const char* running = "";
uint64_t running_seed;
void say_where() {
  std::fprintf(stderr, "in %s; repeat it with: fuzz 0 %llu\n", running,
               (unsigned long long)running_seed);
}

void run_round(uint64_t seed) {
  running_seed = seed;
  for (Function& f : functions) {
    running = f.name;
    generator.seed(seed);
    too_large = false;
    hostility = any_of({0, 4, 20, 100, 100});
    calls = accepted = 0;
    f.run();
    f.calls += calls, f.accepted += accepted;
    buffers.clear();
  }
  running = "facts";
  facts();
}

}  // namespace

int main(int count, char** words) {
  const std::chrono::duration<double> limit(count > 1 ? std::atof(words[1]) : 5.0);
  const uint64_t seed = count > 2 ? std::strtoull(words[2], nullptr, 10) : 0;
  __sanitizer_set_death_callback(say_where);
  const auto start = std::chrono::steady_clock::now();
  uint64_t rounds = 0;
  do run_round(seed + rounds++);
  while (std::chrono::steady_clock::now() - start < limit);
  int failures = 0;
  for (const Function& f : functions) {
    std::printf("%s: %lld calls, %lld accepted\n", f.name, (long long)f.calls,
                (long long)f.accepted);
    // A fuzzer that only ever succeeds or only ever fails tests nothing.
    failures += rounds >= 100 && (f.accepted == 0 || f.accepted == f.calls);
  }
  std::printf("%llu rounds from seed %llu\n", (unsigned long long)rounds, (unsigned long long)seed);
  return failures;
}
