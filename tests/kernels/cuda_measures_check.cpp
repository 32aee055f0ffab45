// Runs the measures of measures.h and mirror_test.h on the host through cuda_shim, and compares
// them bit by bit with the CPU launcher. Each name on the command line is a check;
// test_cuda_measures.py lists them.
#include <stdio.h>
#include <string.h>

#include <random>
#include <string>
#include <vector>

#include "cpu/launch.h"
#include "cuda/launch.cuh"
#include "measures.h"
#include "mirror_test.h"

namespace {

using dr::CpuLauncher;
using dr::CudaLauncher;

std::vector<float> noise(size_t count) {
  static std::mt19937 generator(1);
  std::uniform_real_distribution<float> values(0.0f, 1.0f);
  std::vector<float> numbers(count);
  for (float& v : numbers) v = values(generator);
  return numbers;
}

// Memory with the alignment that the library requires.
struct Memory {
  std::vector<dr::Block> blocks;
  explicit Memory(size_t bytes) : blocks(bytes / sizeof(dr::Block) + 1) {}
  void* get() { return blocks.data(); }
};

template <class Result, class Run>
bool same_bits(const char* name, size_t workspace, const Run& run) {
  std::vector<Result> results(2);
  Memory first(workspace), second(workspace);
  const CudaLauncher cuda(nullptr);
  run(CpuLauncher(2), &results[0], first.get());
  run(cuda, &results[1], second.get());
  const bool same = memcmp(&results[0], &results[1], sizeof(Result)) == 0;
  const Result nothing = {};
  const bool empty = memcmp(&results[0], &nothing, sizeof(Result)) == 0;
  if (!same || empty || cuda.error() != cudaSuccess)
    printf("%s: %s, error %d\n", name, empty ? "nothing measured" : "different bits",
           (int)cuda.error());
  return same && !empty && cuda.error() == cudaSuccess;
}

struct Images {
  enum { kStride = 16 };
  const int32_t fixed_shape[3] = {11, 13, 37}, moving_shape[3] = {12, 10, 40};
  const size_t fixed_voxels = 11 * 13 * 37, moving_voxels = 12 * 10 * 40;
  std::vector<float> weight = noise(moving_voxels + fixed_voxels), image = noise(weight.size());
  std::vector<float> field = noise(3 * fixed_voxels);
  Memory fixed = features(fixed_voxels), moving = features(moving_voxels);

  static Memory features(size_t voxels) {
    Memory memory(2 * kStride * voxels);
    dr::Half* to = static_cast<dr::Half*>(memory.get());
    const std::vector<float> values = noise(kStride * voxels);
    for (size_t i = 0; i < values.size(); ++i) to[i] = dr::float_to_half(values[i]);
    return memory;
  }

  template <class Args>
  Args args() {
    Args a = DR_INIT(Args);
    a.fixed = static_cast<const uint16_t*>(fixed.get());
    a.moving = static_cast<const uint16_t*>(moving.get());
    a.fixed_weight = weight.data();
    a.moving_weight = weight.data() + fixed_voxels;
    a.fixed_image = image.data();
    a.moving_image = image.data() + fixed_voxels;
    for (int i = 0; i < 3; ++i) {
      a.fixed_shape[i] = fixed_shape[i];
      a.moving_shape[i] = moving_shape[i];
      a.moving_offset[i] = i - 1;
      a.spacing_mm[i] = 1.5 + i;
    }
    a.stride = kStride;
    return a;
  }
};

bool sums() {
  const std::vector<float> values = noise(10001);
  struct Sums {
    double values[2];
  };
  const dr_array arrays[2] = {{values.data(), 10001}, {values.data() + 1, 31}};
  dr_sums_args a = DR_INIT(dr_sums_args);
  a.arrays = arrays;
  a.count = 2;
  const size_t bytes = dr::SumsMemory(a).work.peak();
  return same_bits<Sums>("sums", bytes, [&](const auto& launch, Sums* out, void* workspace) {
    dr_sums_args given = a;
    given.out = out->values;
    given.workspace = workspace;
    dr::sum_values(launch, given);
  });
}

bool quality() {
  Images images;
  dr_quality_args a = DR_INIT(dr_quality_args);
  a.displacement = a.field = images.field.data();
  a.misses = images.weight.data();
  a.miss_count = (int64_t)images.weight.size();
  a.miss_limit = 0.5;
  a.iterations = 20;
  a.tolerance_mm = 0.01;
  for (int i = 0; i < 3; ++i) {
    a.shape[i] = a.field_shape[i] = images.fixed_shape[i];
    a.index_from_unit[4 * i] = 0.4;
    a.spacing_mm[i] = 2.0;
  }
  const size_t bytes = dr::QualityMeasure<CpuLauncher>::workspace_bytes(a);
  return same_bits<dr_quality>("quality", bytes,
                               [&](const auto& launch, dr_quality* out, void* workspace) {
                                 dr_quality_args given = a;
                                 given.out = out;
                                 given.workspace = workspace;
                                 dr::measure_quality(launch, given);
                               });
}

bool agreement() {
  Images images;
  dr_agreement_args a = images.args<dr_agreement_args>();
  a.after = images.field.data();
  a.step = 2;
  const int32_t parts[3] = {3, 2, 2}, factors[3] = {1, 3, 6};
  for (int i = 0; i < 3; ++i) {
    a.parts[i] = parts[i];
    a.region_factor[i] = factors[i];
    a.reversed[i] = i % 2;
  }
  const size_t bytes = dr::AgreementMemory(a).work.peak();
  return same_bits<dr_agreement>("agreement", bytes,
                                 [&](const auto& launch, dr_agreement* out, void* workspace) {
                                   dr_agreement_args given = a;
                                   given.out = out;
                                   given.workspace = workspace;
                                   dr::measure_agreement(launch, given);
                                 });
}

bool mirror_test() {
  Images images;
  dr_mirror_args a = images.args<dr_mirror_args>();
  const int32_t order[6] = {1, 0, 0, 1, 1, 0};
  const double coupling[1] = {0.1};
  a.channels = 12;
  a.factor = 2;
  a.order = order;
  a.ordered = 2;
  a.sides = 2;
  a.coupling = coupling;
  a.coupling_rounds = 1;
  a.cost_smoothing_mm = a.field_smoothing_mm = a.smoothing_mm = 4.0;
  for (int i = 0; i < 3; ++i) a.search_factor[i] = a.search_radius[i] = 1;
  const size_t bytes = dr::MirrorTest<CpuLauncher>::workspace_bytes(a);
  return same_bits<dr_mirror_test>("mirror test", bytes,
                                   [&](const auto& launch, dr_mirror_test* out, void* workspace) {
                                     dr_mirror_args given = a;
                                     given.out = out;
                                     given.workspace = workspace;
                                     dr::compare_mirrored(launch, given);
                                   });
}

}  // namespace

int main(int count, char** names) {
  const std::pair<const char*, bool (*)()> checks[] = {
      {"sums", sums}, {"quality", quality}, {"agreement", agreement}, {"mirror_test", mirror_test}};
  bool good = count > 1;
  for (int i = 1; i < count; ++i) {
    bool found = false;
    for (const auto& [name, check] : checks)
      if (std::string(names[i]) == name) found = true, good &= check();
    good &= found;
  }
  return good ? 0 : 1;
}
