// Runs the tuned kernels of cuda/ on the host, with fibres as threads, and compares them with the
// ops they replace.
#include <stdio.h>
#include <string.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "cpu/cpu_passes.h"
#include "cuda/cuda_passes.cuh"
#include "dinoreg/adam.h"
#include "dinoreg/correlation.h"

namespace {

using dr::Shape;
using dr::ShiftCost;

std::vector<float> noise(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  std::vector<float> values(count);
  for (float& v : values) v = uniform(random);
  return values;
}

// Shifts [first, first + count); nothing beyond the output may change.
bool same_costs(Shape shape, int channels, dr::Shifts shifts, int first, int count,
                float trust_cost = 0.0f) {
  const Shape padded = shape + 2 * shifts.radius;
  const auto fixed = noise(channels * padded.voxels(), 1), moving = noise(fixed.size(), 2);
  const auto fixed_weight = noise(padded.voxels(), 3), moving_weight = noise(padded.voxels(), 4);
  const float unrelated = 0.37f;
  const size_t size = (size_t)count * shape.voxels(), margin = 64;
  std::vector<float> expected(size + 2 * margin, -7.0f), tiled = expected;
  const auto op = [&](std::vector<float>& out) {
    return ShiftCost{.fixed = fixed.data(),
                     .fixed_weight = fixed_weight.data(),
                     .moving = moving.data(),
                     .moving_weight = moving_weight.data(),
                     .padded = padded,
                     .shape = shape,
                     .channels = channels,
                     .shifts = shifts,
                     .first_shift = first,
                     .shift_count = count,
                     .unrelated = &unrelated,
                     .trust_cost = trust_cost,
                     .out = out.data() + margin};
  };
  dr::CpuLauncher{1}(op(expected));
  launches = 0;
  const dr::CudaLauncher launch(nullptr);
  dr::shift_cost_pass(launch, op(tiled));
  const bool same = memcmp(expected.data(), tiled.data(), tiled.size() * sizeof(float)) == 0;
  const bool good = same && launches == 1 && launch.error() == cudaSuccess;
  if (!good)
    printf("costs: %d x %d x %d, %d channels, radius %d %d %d, shifts %d + %d: %s\n", shape.z,
           shape.y, shape.x, channels, shifts.radius.z, shifts.radius.y, shifts.radius.x, first,
           count, same ? "launch failed" : "differs from the op");
  return good;
}

// Runs the version made of ops and the tuned one from the same start. Each writes `count` numbers,
// and nothing in a margin around them may change.
template <class Plain, class Tuned>
bool same_pass(const char* name, size_t count, int expected_launches, const Plain& plain,
               const Tuned& tuned) {
  const size_t margin = 64;
  std::vector<float> expected(count + 2 * margin, -7.0f), found = expected;
  plain(dr::CpuLauncher(1), expected.data() + margin);
  launches = 0;
  const dr::CudaLauncher launch(nullptr);
  tuned(launch, found.data() + margin);
  const bool same = memcmp(expected.data(), found.data(), found.size() * sizeof(float)) == 0;
  const bool good = same && launches == expected_launches && launch.error() == cudaSuccess;
  if (!good)
    printf("%s: %s, %d launches, error %d\n", name, same ? "same bits" : "differs from the ops",
           launches, (int)launch.error());
  return good;
}

dr::Taps some_taps(int radius) {
  dr::Taps taps = {radius, {}};
  for (int t = 0; t <= radius; ++t) taps.weight[t] = 0.3f / (1.0f + 0.7f * t);
  return taps;
}

bool same_smoothing(Shape shape, int batch, int components, dr::Int3 radius,
                    int expected_launches) {
  const size_t count = (size_t)batch * components * shape.voxels();
  const auto in = noise(count, 5);
  std::vector<float> tmp(count);
  const auto pass = [&](float* out) {
    return dr::SmoothPass{.in = in.data(),
                          .out = out,
                          .tmp = tmp.data(),
                          .shape = shape,
                          .batch = batch,
                          .components = components,
                          .taps = {some_taps(radius.z), some_taps(radius.y), some_taps(radius.x)}};
  };
  char name[128];
  snprintf(name, sizeof name, "smoothing: %d x (%d x %d x %d x %d), radius %d %d %d", batch,
           shape.z, shape.y, shape.x, components, radius.z, radius.y, radius.x);
  return same_pass(
      name, count, expected_launches,
      [&](const auto& launch, float* out) { dr::smooth_pass<dr::CpuLauncher>(launch, pass(out)); },
      [&](const auto& launch, float* out) { dr::smooth_pass(launch, pass(out)); });
}

// A sink of a whole iteration: the products of two images to factors, those to a gradient, and that
// to a step. The ops, the CPU's sweep and the kernels must agree in every bit.
bool same_correlation(Shape shape, dr::Int3 radius, int expected_launches) {
  const size_t n = shape.voxels();
  const auto images = noise(2 * n, 11), weights = noise(2 * n, 12), field = noise(3 * n, 13);
  const dr::ImagePair pair = {.fixed = images.data(),
                              .fixed_weight = weights.data(),
                              .moving = images.data() + n,
                              .moving_weight = weights.data() + n,
                              .moving_shape = shape,
                              .moving_offset = {0.3f, 0.0f, -0.2f},
                              .u = {field.data(), shape, {1.0f, 0.5f, 2.0f}}};
  const float step = 0.1f, correction = 1.1f, epsilon = 1e-3f;
  // Out: 3 factors, gradient (3), value (3), moments (6).
  const auto run = [&](const auto& launch, float* out, const auto& smooth) {
    std::vector<float> sums(6 * n), another(3 * n);
    dr::Smoothing s = {.shape = shape,
                       .batch = 6,
                       .taps = {some_taps(radius.z), some_taps(radius.y), some_taps(radius.x)},
                       .tmp = sums.data(),
                       .another = another.data()};
    smooth(launch, s, dr::WeightedProducts{weights.data(), pair.fixed, pair.moving},
           dr::CorrelationFactors{.shape = shape, .noise = 0.1f, .squared = true, .factors = out});
    for (size_t i = 3 * n; i < 15 * n; ++i) out[i] = 0.01f * (float)(i % 97);
    s.batch = 3;
    smooth(launch, s, dr::FromArrays{out, (dr::Index)n},
           dr::AddCorrelationGradient{
               .pair = pair, .weight = weights.data(), .scale = 2.0f, .gradient = out + 3 * n});
    s.batch = 1, s.components = 3;
    smooth(launch, s, dr::FromArrays{out + 3 * n, (dr::Index)(3 * n)},
           dr::AdamStep{.value = out + 6 * n,
                        .first_moment = out + 9 * n,
                        .second_moment = out + 12 * n,
                        .width = 3 * shape.x,
                        .beta1 = 0.9f,
                        .beta2 = 0.999f,
                        .step = &step,
                        .correction = &correction,
                        .epsilon = &epsilon});
  };
  const auto ops = [](const auto& launch, const auto& s, const auto& source, const auto& sink) {
    dr::smooth_with_ops(launch, s, source, sink);
  };
  const auto tuned = [](const auto& launch, const auto& s, const auto& source, const auto& sink) {
    smooth_into(launch, s, source, sink);
  };
  char name[128];
  snprintf(name, sizeof name, "correlation: %d x %d x %d, radius %d %d %d", shape.z, shape.y,
           shape.x, radius.z, radius.y, radius.x);
  const auto plain = [&](const auto& launch, float* out) { run(launch, out, ops); };
  const auto best = [&](const auto& launch, float* out) { run(launch, out, tuned); };
  std::vector<float> expected(15 * n, -7.0f), swept = expected;
  plain(dr::CpuLauncher(1), expected.data());
  best(dr::CpuLauncher(1), swept.data());
  const bool same = memcmp(expected.data(), swept.data(), 15 * n * sizeof(float)) == 0;
  if (!same) printf("%s: the CPU's sweep differs from the ops\n", name);
  return same && same_pass(name, 15 * n, expected_launches, plain, best);
}

bool same_mind(Shape shape, dr::MindParameters mind, int first_plane, int planes,
               int expected_launches) {
  const auto image = noise(shape.voxels(), 6);
  const int tall = planes + 2 * mind.radius.z;
  const dr::MindDistanceX op = {.image = image.data(),
                                .shape = shape,
                                .mind = mind,
                                .first_plane = first_plane,
                                .planes = tall};
  const size_t row = (size_t)dr::kMindImages * op.padded_x();
  // The ops go back and forth between two buffers, and the first op writes more than is left at the
  // end.
  std::vector<float> work(tall * row * op.padded_y()), between(work.size());
  const size_t count = planes * row * (op.padded_y() - 2 * mind.radius.y);
  const auto run = [&](const auto& launch, float* out, const auto& pass) {
    dr::MindDistanceX mine = op;
    mine.out = work.data();
    pass(launch, mine, between.data());
    memcpy(out, work.data(), count * sizeof(float));
  };
  char name[160];
  snprintf(name, sizeof name, "patch distances: %d x %d x %d, radius %d %d %d, planes %d + %d",
           shape.z, shape.y, shape.x, mind.radius.z, mind.radius.y, mind.radius.x, first_plane,
           planes);
  return same_pass(
      name, count, expected_launches,
      [&](const auto& launch, float* out) {
        run(launch, out, [](const auto& l, const auto& distance, float* through) {
          dr::mind_sums_pass<dr::CpuLauncher>(l, distance, through);
        });
      },
      [&](const auto& launch, float* out) {
        run(launch, out, [](const auto& l, const auto& distance, float* through) {
          dr::mind_sums_pass(l, distance, through);
        });
      });
}

// Compares all of MIND-SSC from the floor on: the sweep of a CPU with one thread and with several,
// and the ops with a CUDA launcher and memory for slabs of `planes`.
bool same_mind_features(Shape shape, dr::MindParameters mind, dr::Int3 pool, int stride, int planes,
                        int expected_launches) {
  const auto image = noise(shape.voxels(), 11);
  const Shape out_shape = dr::divide_up(shape, pool);
  const float floor_value = 1e-4f;
  const dr::MindTile tile(shape, mind, pool);
  const dr::MindSlab slab = {shape, mind};
  struct Result {
    std::vector<dr::Half> features;
    std::vector<float> structure;
  };
  const auto run = [&](const auto& launch, size_t floats) {
    Result r = {std::vector<dr::Half>(out_shape.voxels() * stride, 1),
                std::vector<float>(out_shape.voxels(), -7.0f)};
    std::vector<float> memory(floats);
    dr::mind_pass(launch, dr::MindPass{.image = image.data(),
                                       .mind = mind,
                                       .blocks = {.shape = shape,
                                                  .pool = pool,
                                                  .scale = 0.75f,
                                                  .out = r.features.data(),
                                                  .stride = stride,
                                                  .structure = r.structure.data(),
                                                  .out_shape = out_shape},
                                       .floor_value = &floor_value,
                                       .memory = memory.data(),
                                       .floats = memory.size()});
    return r;
  };
  const auto same = [](const Result& a, const Result& b) {
    return a.features == b.features && a.structure == b.structure;
  };
  const Result one = run(dr::CpuLauncher(1), tile.needed);
  const Result several = run(dr::CpuLauncher(5), tile.needed * tile.workers());
  launches = 0;
  const dr::CudaLauncher launch(nullptr);
  const Result cuda = run(launch, slab.plane_floats() * (planes + slab.reach()));
  const bool good = same(one, several) && same(one, cuda) && launches == expected_launches &&
                    launch.error() == cudaSuccess;
  if (!good)
    printf("MIND-SSC: %d x %d x %d, pool %d %d %d: threads %s, CUDA %s, %d launches\n", shape.z,
           shape.y, shape.x, pool.z, pool.y, pool.x, same(one, several) ? "same" : "differ",
           same(one, cuda) ? "same" : "differs", launches);
  return good;
}

bool costs() {
  bool good = true;
  for (int radius : {1, 2, 3, 4})
    for (int width : {1, 31, 32, 33, 70})
      for (int channels : {1, 7, 8, 12, 19}) {
        const dr::Shifts shifts = {{1, 0, radius}};
        good &= same_costs({2, 3, width}, channels, shifts, 0, shifts.count());
      }
  // Groups that begin and end within a row of shifts, as in the solver.
  const dr::Shifts shifts = {{1, 2, 4}};
  for (int first : {0, 1, 8, 9, 40})
    for (int count : {1, 8, 9, 10, 31}) good &= same_costs({1, 2, 20}, 6, shifts, first, count);
  // More rows than the grid has blocks along y.
  good &= same_costs({2, 3, 20}, 6, {{1, 2, 4}}, 0, 135, 0.6f);
  good &= same_costs({17, 1000, 1}, 1, {{0, 0, 1}}, 0, 3);
  // There is no tuned kernel for these, so the op itself runs.
  good &= same_costs({2, 3, 20}, 5, {{1, 1, 0}}, 0, 9);
  good &= same_costs({2, 3, 20}, 5, {{0, 1, 5}}, 0, 33);
  return good;
}

bool smoothing() {
  bool good = true;
  // Every radius, with less and more than whole tiles of 64 numbers, 32 rows and 4 planes.
  for (int radius = 0; radius <= dr::kColumnRadius; ++radius)
    for (int components : {1, 3}) {
      good &= same_smoothing({9, 35, 67}, 1, components, {radius, radius, radius}, 2);
      good &= same_smoothing({3, 5, 7}, 2, components, {radius, radius, radius}, 2);
    }
  for (int length : {1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65})
    for (int components : {1, 3}) {
      good &= same_smoothing({length, 2, 3}, 3, components, {3, 1, 2}, 2);
      good &= same_smoothing({2, length, 3}, 2, components, {0, 6, 1}, 2);
      good &= same_smoothing({1, 2, length}, 2, components, {1, 0, 6}, 2);
    }
  // More planes than the grid has blocks along y.
  good &= same_smoothing({4100, 2, 9}, 1, 1, {2, 1, 1}, 2);
  good &= same_mind({6, 9, 20}, {{0, 1, 1}, {1, 2, 2}}, -2, 4, 1);
  // The ops take these.
  good &= same_smoothing({5, 6, 40}, 2, 3, {7, 1, 1}, 3);
  good &= same_smoothing({5, 6, 40}, 2, 1, {1, 7, 16}, 3);
  good &= same_smoothing({5, 6, 40}, 1, 4, {2, 2, 2}, 3);
  return good;
}

bool correlation() {
  bool good = true;
  for (int radius : {0, 1, 2, 3, 4, 5, 6})
    good &= same_correlation({9, 19, 35}, {radius, radius, radius}, 6);
  for (int length : {1, 2, 3, 4, 5, 16, 17, 33, 64, 65}) {
    good &= same_correlation({length, 5, 3}, {3, 1, 2}, 6);
    good &= same_correlation({2, length, 3}, {1, 5, 1}, 6);
    good &= same_correlation({3, 2, length}, {1, 0, 4}, 6);
  }
  // The ops take these: three launches for each of ten arrays, and three sinks.
  good &= same_correlation({5, 6, 40}, {1, 7, 1}, 33);
  return good;
}

bool patch_distances() {
  bool good = true;
  for (int radius : {1, 2, 3})
    for (int x : {1, 28, 33})
      for (int y : {1, 13, 30}) {
        const dr::MindParameters mind = {{radius, radius, radius}, {2, 2, 2}};
        good &= same_mind({7, y, x}, mind, -2 - radius, 5, 1);
      }
  good &= same_mind({6, 20, 40}, {{1, 3, 2}, {1, 2, 3}}, 2, 7, 1);
  good &= same_mind({6, 20, 40}, {{2, 0, 4}, {1, 2, 3}}, 1, 1, 1);
  good &= same_mind({6, 9, 20}, {{0, 1, 1}, {1, 2, 2}}, -2, 4, 1);
  // The ops take these.
  good &= same_mind({6, 9, 20}, {{4, 1, 1}, {2, 2, 2}}, -2, 4, 3);
  good &= same_mind({6, 9, 20}, {{1, 4, 1}, {2, 2, 2}}, -3, 4, 3);
  return good;
}

bool mind_features() {
  bool good = true;
  // One slab, and two and four of them, with whole blocks and with smaller ones at the border.
  good &= same_mind_features({24, 20, 33}, {{2, 2, 2}, {2, 2, 2}}, {2, 2, 2}, 16, 24, 2);
  good &= same_mind_features({25, 21, 35}, {{2, 2, 2}, {2, 2, 2}}, {2, 2, 2}, 24, 14, 4);
  good &= same_mind_features({25, 9, 40}, {{1, 1, 1}, {2, 2, 2}}, {3, 2, 4}, 16, 8, 10);
  good &= same_mind_features({40, 9, 5}, {{0, 1, 3}, {1, 3, 2}}, {1, 1, 1}, 16, 40, 2);
  // Several tiles along x, and a radius beyond the lanes of any vector.
  good &= same_mind_features({5, 3, 300}, {{1, 0, 9}, {1, 1, 5}}, {2, 5, 3}, 16, 6, 2);
  good &= same_mind_features({1, 1, 1}, {{2, 1, 1}, {3, 2, 2}}, {2, 2, 2}, 16, 2, 2);
  return good;
}

// Compares all shifts, in groups that do not divide them, with the minima of the CPU's parts. Runs
// two passes, the second with the costs of the first where they are kept.
bool whole_search() {
  const Shape shape = {36, 33, 37};
  const dr::Shifts shifts = {{1, 2, 2}};
  const Shape padded = shape + 2 * shifts.radius;
  const int channels = 3;
  const auto fixed = noise(channels * padded.voxels(), 7), moving = noise(fixed.size(), 8);
  const auto weight = noise(padded.voxels(), 9), near = noise(3 * shape.voxels(), 10);
  const float unrelated = 0.4f;
  const size_t n = shape.voxels();
  const auto best = [&](const auto& launch, bool kept) {
    const dr::SearchBuffers wanted = dr::search_buffers(launch, shifts, shape);
    std::vector<float> raw(n * wanted.costs), tmp(n * wanted.costs), cost(n * wanted.minima);
    std::vector<float> smoothed(n * (kept ? shifts.count() : wanted.costs));
    std::vector<int> shift(n * wanted.minima);
    const dr::Taps taps = some_taps(3);
    dr::SearchPass pass = {.cost = {.fixed = fixed.data(),
                                    .fixed_weight = weight.data(),
                                    .moving = moving.data(),
                                    .moving_weight = weight.data(),
                                    .padded = padded,
                                    .shape = shape,
                                    .channels = channels,
                                    .shifts = shifts,
                                    .unrelated = &unrelated,
                                    .trust_cost = 0.6f},
                           .taps = {taps, taps, taps},
                           .keep = {.near = near.data(),
                                    .shape = shape,
                                    .shifts = shifts,
                                    .step = {1.0f, 0.5f, 1.0f},
                                    .best_cost = cost.data(),
                                    .best_shift = shift.data()},
                           .raw = raw.data(),
                           .tmp = tmp.data(),
                           .smoothed = smoothed.data(),
                           .kept = kept};
    std::vector<int> found;
    for (const float coupling : {0.1f, 0.4f}) {
      pass.keep.coupling = coupling;
      dr::search_pass(launch, pass);
      pass.known = kept;
      found.insert(found.end(), shift.begin(), shift.begin() + n);
    }
    return found;
  };
  const dr::CudaLauncher launch(nullptr);
  const int group = dr::search_group(launch, shifts, shape);
  const std::vector<int> expected = best(dr::CpuLauncher(1), false);
  bool good = group == 20 && best(dr::CpuLauncher(1), true) == expected;
  for (const bool kept : {false, true}) {
    launches = 0;
    const bool same = best(launch, kept) == expected;
    // Four launches for a group: costs, smoothing along z, smoothing along y and x, minimum. Kept
    // costs need only one launch in the second pass.
    const int wanted = 4 * 4 + (kept ? 1 : 4 * 4);
    good = good && same && launches == wanted && launch.error() == cudaSuccess;
    if (!good)
      printf("search, %s: %s, groups of %d, %d launches\n", kept ? "kept" : "not kept",
             same ? "same shifts" : "differs", group, launches);
  }
  return good;
}

}  // namespace

int main(int count, char** names) {
  as_fibres = true;
  const std::map<std::string, bool (*)()> checks = {{"costs", costs},
                                                    {"smoothing", smoothing},
                                                    {"correlation", correlation},
                                                    {"patch_distances", patch_distances},
                                                    {"mind_features", mind_features},
                                                    {"whole_search", whole_search}};
  for (int i = 1; i < count; ++i) {
    const auto check = checks.find(names[i]);
    if (check == checks.end()) return printf("no check %s\n", names[i]), 2;
    if (!check->second()) return printf("%s failed\n", names[i]), 1;
  }
  return 0;
}
