// A small pair to register, and what a process uses, for the programs of the tests.
#ifndef DINOREG_TESTS_HOST_PAIR_H_
#define DINOREG_TESTS_HOST_PAIR_H_

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "dinoreg_host.hpp"

// Two balls of different size with an off-centre core, the second moved by 3 voxels along x.
struct Pair {
  static constexpr int n = 48;
  std::vector<float> fixed, moving;
  dinoreg::Grid grid;

  Pair() : fixed(n * n * n), moving(n * n * n) {
    grid.size = {n, n, n};
    for (int z = 0, i = 0; z < n; ++z)
      for (int y = 0; y < n; ++y)
        for (int x = 0; x < n; ++x, ++i) {
          fixed[i] = tissue(x, y, z);
          moving[i] = tissue(x - 3, y, z);
        }
  }
  static float tissue(double x, double y, double z) {
    const auto within = [&](double cx, double cy, double cz, double r) {
      return (x - cx) * (x - cx) + (y - cy) * (y - cy) + (z - cz) * (z - cz) < r * r;
    };
    return (within(22, 24, 24, 15) ? 100.f : 0.f) + (within(18, 20, 26, 5) ? 60.f : 0.f) +
           (within(27, 28, 20, 4) ? -40.f : 0.f) + (float)((int)(x * 7 + y * 3 + z) % 5);
  }
  dinoreg::VolumeView first() const { return {std::span<const float>(fixed), grid}; }
  dinoreg::VolumeView second() const { return {std::span<const float>(moving), grid}; }
};

inline const char* const kOptions = "initial = 'none'\nthreads = 2\niterations = [20]\n";

// A number of /proc/self/status, such as VmRSS (kB) or Threads.
inline long of_this_process(const std::string& name) {
  std::ifstream file("/proc/self/status");
  std::string word;
  long value = 0;
  while (file >> word)
    if (word == name + ":" && file >> value) return value;
  return 0;
}

inline long open_files() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return std::distance(begin(all), end(all));
}

#endif  // DINOREG_TESTS_HOST_PAIR_H_
