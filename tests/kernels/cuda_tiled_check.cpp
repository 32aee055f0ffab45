// The tuned kernels of cuda/ on the host, threads as fibres, against the ops they stand for.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <random>
#include <vector>

#include "cpu/launch.h"
#include "cuda/launch.cuh"

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

// Shifts [first, first + count) of all; what lies beyond the output must stay as it was.
bool same_costs(Shape shape, int channels, dr::Shifts shifts, int first, int count) {
  const Shape padded = {shape.z + 2 * shifts.radius_z, shape.y + 2 * shifts.radius_y,
                        shape.x + 2 * shifts.radius_x};
  const auto fixed = noise(channels * padded.voxels(), 1), moving = noise(fixed.size(), 2);
  const auto fixed_weight = noise(padded.voxels(), 3), moving_weight = noise(padded.voxels(), 4);
  const float unrelated = 0.37f;
  const size_t size = (size_t)count * shape.voxels(), margin = 64;
  std::vector<float> expected(size + 2 * margin, -7.0f), tiled = expected;
  const auto op = [&](std::vector<float>& out) {
    return ShiftCost{fixed.data(),  fixed_weight.data(),
                     moving.data(), moving_weight.data(),
                     padded,        shape,
                     channels,      shifts,
                     first,         count,
                     &unrelated,    out.data() + margin};
  };
  dr::CpuLauncher{1}(op(expected));
  launches = 0;
  const dr::CudaLauncher launch(nullptr);
  launch(op(tiled));
  const bool same = memcmp(expected.data(), tiled.data(), tiled.size() * sizeof(float)) == 0;
  const bool good = same && launches == 1 && launch.error() == cudaSuccess;
  if (!good)
    printf("%d x %d x %d, %d channels, radius %d %d %d, shifts %d + %d: %s\n", shape.z, shape.y,
           shape.x, channels, shifts.radius_z, shifts.radius_y, shifts.radius_x, first, count,
           same ? "launch failed" : "differs from the op");
  return good;
}

}  // namespace

int main() {
  bool good = true;
  as_fibres = true;
  for (int radius : {1, 2, 3, 4})
    for (int width : {1, 127, 128, 129})
      for (int channels : {1, 7, 8, 12, 19}) {
        const dr::Shifts shifts = {1, 0, radius};
        good &= same_costs({2, 2, width}, channels, shifts, 0, shifts.count());
      }
  // Groups that begin and end within a row of shifts, as the solver's do.
  const dr::Shifts shifts = {1, 2, 4};
  for (int first : {0, 1, 8, 9, 40})
    for (int count : {1, 8, 9, 10, 31}) good &= same_costs({1, 2, 20}, 6, shifts, first, count);
  // More rows than the grid has blocks along y.
  good &= same_costs({5, 1000, 1}, 1, {0, 0, 1}, 0, 3);
  // No kernel was made for these: the op itself runs.
  as_fibres = false;
  good &= same_costs({2, 3, 20}, 5, {1, 1, 0}, 0, 9);
  good &= same_costs({2, 3, 20}, 5, {0, 1, 5}, 0, 33);
  return good ? 0 : 1;
}
