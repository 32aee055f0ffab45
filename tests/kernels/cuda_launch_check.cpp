// Runs launch.cuh on the host through cuda_shim and compares it with the CPU launcher. Each name on
// the command line is a check; test_cuda_launch.py lists them.
#include <stdio.h>
#include <string.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "cpu/launch.h"
#include "cuda/launch.cuh"
#include "dinoreg/cost.h"
#include "dinoreg/correlation.h"
#include "dinoreg/local_intensity.h"
#include "dinoreg/mind.h"
#include "dinoreg/regularity.h"
#include "dinoreg/similarity.h"
#include "dinoreg/slices.h"
#include "dinoreg/smooth.h"
#include "dinoreg/token_sampling.h"

namespace {

using dr::Block;
using dr::CpuLauncher;
using dr::CudaLauncher;
using dr::Half;
using dr::Shape;

// Counts visits: 1 for an element that may lie at the border, 100 for one between the margins.
struct Count {
  int row_count, x;
  unsigned char* visits;
  int rows() const { return row_count; }
  int width() const { return x; }
  void operator()(int row, int i) const { visits[(size_t)row * x + i] += 1; }
};

struct CountMargin : Count {
  enum { kRepeatable = 0 };
  int border;
  int margin() const { return border; }
  template <class V>
  void lanes(int row, int i) const {
    for (int k = 0; k < dr::LaneTraits<V>::kCount; ++k) visits[(size_t)row * x + i + k] += 100;
  }
};

bool once(int rows, int width) {
  std::vector<unsigned char> visits((size_t)rows * width);
  const CudaLauncher launch(nullptr);
  launch(Count{rows, width, visits.data()});
  size_t wrong = 0;
  for (unsigned char v : visits) wrong += v != 1;
  if (wrong || launch.error() != cudaSuccess)
    printf("%d x %d: %zu elements not visited once, error %d\n", rows, width, wrong,
           (int)launch.error());
  return wrong == 0 && launch.error() == cudaSuccess;
}

bool every_element_once() {
  bool good = true;
  for (int rows : {1, 2, 7, 8, 9, 255, 257})
    for (int width : {1, 2, 3, 16, 31, 32, 33, 64, 100, 1000}) good &= once(rows, width);
  return good;
}

// More than 65535 blocks of rows, and more than 65535 blocks along x.
bool large_counts() {
  return once(600000, 33) && once(17000000, 1) && once(3, 2200000) && once(1, 5000000);
}

bool margins() {
  bool good = true;
  for (int rows : {2, 5})  // one row is a reduction to the CPU launcher
    for (int width : {1, 4, 7, 32, 70})
      for (int border : {0, 1, 3, 4, 40, 1000}) {
        std::vector<unsigned char> cpu(rows * width), cuda(rows * width);
        CpuLauncher{1}(CountMargin{{rows, width, cpu.data()}, border});
        CudaLauncher(nullptr)(CountMargin{{rows, width, cuda.data()}, border});
        good &= cpu == cuda;
        if (cpu != cuda) printf("%d x %d, margin %d differs\n", rows, width, border);
      }
  return good;
}

bool empty_launches_nothing() {
  launches = 0;
  CudaLauncher launch(nullptr);
  launch(Count{0, 5, nullptr});
  launch(Count{5, 0, nullptr});
  return launches == 0 && launch.error() == cudaSuccess;
}

bool first_error_is_kept() {
  const CudaLauncher launch(nullptr);
  float values[2] = {1.0f, 2.0f};
  launches = 0;
  next_error = cudaErrorUnknown;
  launch(Count{1, 1, nullptr});
  next_error = cudaSuccess;
  launch(Count{1, 1, nullptr});
  launch.zero(values, sizeof values);
  // Nothing ran after the error.
  return launch.error() == cudaErrorUnknown && launches == 1 && values[0] == 1.0f;
}

std::vector<float> noise(size_t count) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> values(count);
  for (float& v : values) v = uniform(random);
  return values;
}

// Calls `run(launch, out)` with both launchers, from the same start, and expects the same bits.
template <class Run>
bool same_bits(const char* name, size_t count, const Run& run) {
  std::vector<float> cpu = noise(count), cuda = cpu;
  const std::vector<float> start = cpu;
  const CpuLauncher on_cpu(1);
  const CudaLauncher on_cuda(nullptr);
  run(on_cpu, cpu.data());
  run(on_cuda, cuda.data());
  const bool same = memcmp(cpu.data(), cuda.data(), count * sizeof(float)) == 0;
  const bool changed = memcmp(cpu.data(), start.data(), count * sizeof(float)) != 0;
  if (!same || !changed) printf("%s: %s\n", name, same ? "wrote nothing" : "differs from the CPU");
  return same && changed;
}

bool same_as_cpu() {
  const Shape shape = {5, 7, 37};
  const size_t n = shape.voxels();
  const std::vector<float> field = noise(3 * n), weight(n, 1.0f);
  const std::vector<float> many = noise(6 * n);
  const float* in = field.data();
  const dr::Taps taps = {2, {0.4f, 0.2f, 0.1f}};
  const dr::MindParameters mind = {{1, 1, 1}, {2, 2, 2}};
  dr::MindDistanceX distance = {
      .image = in, .shape = shape, .mind = mind, .first_plane = -3, .planes = 11};
  // Aligned as the library requires.
  std::vector<Block> storage(2 * n);
  Half* features = reinterpret_cast<Half*>(storage.data());
  for (size_t i = 0; i < 16 * n; ++i) features[i] = dr::float_to_half(in[i % (3 * n)]);

  const float scale = 2.0f;
  const dr::Vec3 unit = {1.0f, 1.0f, 1.0f};
  const dr::Displacement u = {in, shape, unit};
  const dr::Vec3 offset = {0.5f, 0.0f, 1.0f};
  const dr::WeightedFeatures weighted = {features, weight.data(), shape, 16};
  bool good = true;
  // Along x, y and z.
  const int views[3][3] = {{35, 37, 3}, {5, 7, 111}, {1, 5, 777}};
  for (const int (&v)[3] : views)
    good &= same_bits("Smooth", 3 * n, [&](const auto& launch, float* out) {
      launch(dr::Smooth{.in = in,
                        .out = out,
                        .outer = v[0],
                        .n = v[1],
                        .inner = v[2],
                        .taps = taps,
                        .along_row = v[2] <= 4});
    });
  good &= same_bits("AddSmoothnessGradient", 3 * n, [&](const auto& launch, float* out) {
    launch(dr::AddSmoothnessGradient{in, out, shape, {1.0f, 2.0f, 3.0f}});
  });
  good &= same_bits("FoldLack", n,
                    [&](const auto& launch, float* out) { launch(dr::FoldLack{u, 0.3f, out}); });
  good &= same_bits("AddFoldGradient", 3 * n, [&](const auto& launch, float* out) {
    launch(dr::AddFoldGradient{u, in + n, out, &scale});
  });
  const size_t distances = (size_t)distance.rows() * distance.width();
  good &= same_bits("MindDistanceX", distances, [&](const auto& launch, float* out) {
    distance.out = out;
    launch(distance);
  });
  const Shape coarse = {3, 4, 13};
  good &= same_bits("PoolMoments", 2 * coarse.voxels(), [&](const auto& launch, float* out) {
    launch(dr::PoolMoments{.image = in,
                           .shape = shape,
                           .factor = {2, 2, 3},
                           .offset = {1, 0, 1},
                           .mean = out,
                           .mean_square = out + coarse.voxels(),
                           .out_shape = coarse});
  });
  const dr::Shape padded = {4, 5, 21};
  const size_t weights_at = 16 * padded.voxels();
  good &=
      same_bits("WarpPlanar", weights_at + padded.voxels(), [&](const auto& launch, float* out) {
        launch(dr::WarpPlanar{.in = weighted,
                              .channels = 16,
                              .offset = {-1.0f, 0.0f, 1.0f},
                              .field = in,
                              .field_shape = shape,
                              .to_field = {{2, 0, 0, 0.5f, 0, 2, 0, 0.5f, 0, 0, 2, 0.5f}},
                              .index_per_mm = {1.0f, 0.5f, 2.0f},
                              .margins = {1, 1, 1},
                              .out = out,
                              .out_weight = out + weights_at,
                              .out_shape = padded});
      });
  good &= same_bits("WarpVectors", 3 * n, [&](const auto& launch, float* out) {
    launch(dr::WarpVectors{in, {in, shape, {1.0f, 0.5f, 2.0f}}, out});
  });
  good &= same_bits("CorrectVelocity", 3 * n, [&](const auto& launch, float* out) {
    launch(dr::CorrectVelocity{.velocity = out,
                               .wanted = in,
                               .reached = in + 3,
                               .row_count = shape.rows() - 1,
                               .x = 3 * shape.x});
  });
  const dr::ImagePair pair = {.fixed = in,
                              .fixed_weight = weight.data(),
                              .moving = in + n,
                              .moving_weight = weight.data(),
                              .moving_shape = shape,
                              .moving_offset = offset,
                              .u = u};
  const auto warp = [&](float* out) {
    return dr::WarpIntensity{.pair = pair, .warped = out, .weight = out + n};
  };
  good &=
      same_bits("WarpIntensity", 2 * n, [&](const auto& launch, float* out) { launch(warp(out)); });
  good &= same_bits("two ops", 3 * n, [&](const auto& launch, float* out) {
    launch(dr::both(warp(out), dr::FoldLack{u, 0.3f, out + 2 * n}));
  });
  const int rows = shape.rows();
  for (const float* const of : {(const float*)nullptr, &scale})
    good &= same_bits("CorrelationFactors", 4 * n, [&](const auto& launch, float* out) {
      const dr::CorrelationFactors sink = {.shape = shape,
                                           .noise = 0.1f,
                                           .squared = of == nullptr,
                                           .unit = of,
                                           .factors = out,
                                           .energy = out + 3 * n};
      launch(dr::PutInto<dr::CorrelationFactors>{many.data(), (long long)n, rows, 37, sink});
    });
  good &= same_bits("AddCorrelationGradient", 3 * n, [&](const auto& launch, float* out) {
    const dr::AddCorrelationGradient sink = {
        .pair = pair, .weight = weight.data(), .scale = 2.0f, .unit = &scale, .gradient = out};
    launch(dr::PutInto<dr::AddCorrelationGradient>{in, (long long)n, rows, 37, sink});
  });
  good &= same_bits("Rearrange", 8 * n, [&](const auto& launch, float* out) {
    launch(dr::Rearrange{weighted, reinterpret_cast<Half*>(out), dr::in_blocks(shape)});
  });
  // From an array of columns, with rows in reverse order; larger along rows, smaller along columns.
  good &= same_bits("CutSlices", 2 * 3 * 9 * 21, [&](const auto& launch, float* out) {
    dr::CutSlices op = {};
    op.image = in + 4;
    op.strides = {shape.y * shape.x, -1, shape.x};
    op.y_axis = {
        .voxels = 5, .pixels = 9, .samples = 1, .step = 5.0f / 9.0f, .first = -2.0f / 9.0f};
    op.x_axis = {
        .voxels = 7, .pixels = 21, .samples = 2, .step = 1.0f / 3.0f, .first = -1.0f / 3.0f};
    op.low = -0.5f, op.per_range = 1.0f;
    op.channels = 3;
    op.factor[0] = 1.0f, op.factor[1] = 2.0f, op.factor[2] = 3.0f, op.shift[2] = -1.0f;
    op.out = out;
    op.count = 2, op.slices[0] = 3;
    launch(op);
  });
  // Four encoded slices of seven, on a turned grid, to 20 of 24 channels behind the first three.
  const std::vector<float> places = {0, 0, 0, 0.5f, 1, 0, 2, 0, 2, 0.3f, 2, 0.7f, 3, 0};
  const dr::Affine turn = {{0.8f, 0.2f, 0.0f, 1.0f, -0.2f, 0.5f, 0.0f, 1.0f, 0.0f, 0.1f, 0.1f}};
  good &= same_bits("SampleTokens", 12 * n, [&](const auto& launch, float* out) {
    launch(dr::SampleTokens{.in = {.tokens = in,
                                   .offsets = in,
                                   .places = places.data(),
                                   .encoded = 4,
                                   .stride = 24,
                                   .grid = {7, 5, 6}},
                            .map = turn,
                            .samples = {1, 2, 1},
                            .factor = 0.5f,
                            .out = reinterpret_cast<Half*>(out),
                            .channels = 24,
                            .first = 3,
                            .out_shape = shape});
  });
  good &= same_bits("TissueCover", n, [&](const auto& launch, float* out) {
    launch(dr::TissueCover{.image = in,
                           .shape = {7, 5, 6},
                           .above = 0.5f,
                           .first = {1, 0, 0},
                           .last = {4, 4, 5},
                           .map = turn,
                           .samples = {1, 2, 1},
                           .out = out,
                           .out_shape = shape});
  });
  good &= same_bits("JoinFeatures", 12 * n, [&](const auto& launch, float* out) {
    launch(dr::JoinFeatures{.features = features,
                            .stride = 16,
                            .used = 12,
                            .out = reinterpret_cast<Half*>(out),
                            .channels = 24,
                            .first = 8,
                            .factor = 0.7f,
                            .shape = shape});
  });
  // The costs of five shifts, their minimum and the cost of unrelated features.
  const std::vector<float> costs = noise(5 * n), best(n, -1.0f);
  const float unrelated = 30.0f;
  const dr::Shifts shifts = {{0, 0, 2}};
  good &= same_bits("AddSpread", 7 * n, [&](const auto& launch, float* out) {
    launch(dr::AddSpread{.cost = costs.data(),
                         .best_cost = best.data(),
                         .unrelated = &unrelated,
                         .share = 0.1f,
                         .shape = shape,
                         .shifts = shifts,
                         .first_shift = 0,
                         .shift_count = 5,
                         .moments = out});
  });
  good &= same_bits("SpreadToField", 3 * n, [&](const auto& launch, float* out) {
    launch(dr::SpreadToField{costs.data(), {2, 7, 37}, {1.0f, 2.0f, 3.0f}, out});
  });
  const auto term = [&](float* out) {
    return dr::FeatureTerm{.fixed = weighted,
                           .moving = weighted,
                           .moving_offset = {},
                           .u = u,
                           .scale = 1.0f,
                           .gradient = out};
  };
  good &= same_bits("FeatureDifference", 3 * n, [&](const auto& launch, float* out) {
    launch(dr::FeatureDifference{term(out)});
  });
  good &= same_bits("FeatureCosine", 3 * n, [&](const auto& launch, float* out) {
    launch(dr::FeatureCosine{term(out), &scale});
  });
  good &= same_bits("FeatureSquare", n, [&](const auto& launch, float* out) {
    launch(dr::FeatureSquare{weighted, out});
  });
  good &= same_bits("FeatureChannel", n, [&](const auto& launch, float* out) {
    launch(dr::FeatureChannel{weighted, 5, out});
  });
  return good;
}

}  // namespace

int main(int count, char** names) {
  const std::map<std::string, bool (*)()> checks = {
      {"every_element_once", every_element_once},
      {"large_counts", large_counts},
      {"margins", margins},
      {"empty_launches_nothing", empty_launches_nothing},
      {"first_error_is_kept", first_error_is_kept},
      {"same_as_cpu", same_as_cpu},
  };
  for (int i = 1; i < count; ++i) {
    const auto check = checks.find(names[i]);
    if (check == checks.end()) return printf("no check %s\n", names[i]), 2;
    if (!check->second()) return printf("%s failed\n", names[i]), 1;
  }
  return 0;
}
