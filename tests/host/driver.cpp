// A host program for the tests of libdinoreg_host: `driver TASK ...` prints what it finds.
#include <dirent.h>
#include <locale.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "pair.h"

extern char** environ;

namespace {

using dinoreg::Arguments;
using dinoreg::Grid;
using dinoreg::Registrar;
using dinoreg::Result;
using dinoreg::VolumeView;

template <class T>
std::vector<T> read_raw(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  std::vector<T> values((size_t)file.tellg() / sizeof(T));
  file.seekg(0);
  file.read((char*)values.data(), (std::streamsize)(values.size() * sizeof(T)));
  return values;
}

template <class T>
void write_raw(const std::string& path, const std::vector<T>& values) {
  std::ofstream file(path, std::ios::binary);
  file.write((const char*)values.data(), (std::streamsize)(values.size() * sizeof(T)));
}

// A file of numbers: size, spacing, origin, direction.
Grid read_grid(const std::string& path) {
  std::ifstream file(path);
  Grid grid;
  for (auto& n : grid.size) file >> n;
  for (auto& n : grid.spacing) file >> n;
  for (auto& n : grid.origin) file >> n;
  for (auto& n : grid.direction) file >> n;
  return grid;
}

// The raw images in a folder and where they lie.
struct Images {
  explicit Images(const std::string& folder)
      : fixed(read_raw<float>(folder + "/fixed.raw")),
        moving(read_raw<std::int16_t>(folder + "/moving.raw")),
        one(read_grid(folder + "/fixed.txt")), other(read_grid(folder + "/moving.txt")),
        displacement(3 * fixed.size()), warped(fixed.size()) {}

  Arguments arguments() {
    Arguments arguments({std::span(fixed), one}, {std::span(moving), other});
    arguments.displacement(displacement);
    arguments.warped(warped);
    return arguments;
  }

  std::vector<float> fixed;
  std::vector<std::int16_t> moving;
  Grid one, other;
  std::vector<float> displacement, warped;
};

// bits FOLDER OPTIONS: registers the raw images in FOLDER and writes the results there.
int bits(const std::string& folder, const std::string& options) {
  Images images(folder);
  const auto labels = read_raw<std::uint8_t>(folder + "/labels.raw");
  std::vector<float> inverse(3 * images.moving.size());
  std::vector<std::int32_t> warped_labels(images.fixed.size());
  Registrar registrar({.options = options});
  Arguments arguments = images.arguments();
  arguments.labels({std::span(labels), images.other}, warped_labels);
  arguments.inverse(inverse);
  const Result result = registrar.run(arguments);
  write_raw(folder + "/displacement.raw", images.displacement);
  write_raw(folder + "/inverse.raw", inverse);
  write_raw(folder + "/warped.raw", images.warped);
  write_raw(folder + "/warped_labels.raw", warped_labels);
  std::ofstream(folder + "/report.json") << result.report;
  std::cout << (result.trusted ? "trusted" : "untrusted") << "\n";
  return 0;
}

// times FOLDER OPTIONS COUNT: the least CPU and wall milliseconds of warm calls.
int times(const std::string& folder, const std::string& options, int count) {
  Images images(folder);
  Registrar registrar({.options = options});
  const auto cpu_ms = [] { return 1e3 * (double)clock() / CLOCKS_PER_SEC; };
  double cpu = 1e30, wall = 1e30;
  for (int i = -2; i < count; ++i) {
    const auto began = std::chrono::steady_clock::now();
    const double before = cpu_ms();
    registrar.run(images.arguments());
    if (i < 0) continue;
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    cpu = std::min(cpu, cpu_ms() - before);
    wall = std::min(wall, took.count());
  }
  std::cout << cpu << " " << wall << "\n";
  return 0;
}

// What of this process a library could change.
std::map<std::string, std::string> state() {
  std::map<std::string, std::string> found;
  for (int number = 1; number < NSIG; ++number) {
    struct sigaction action;
    if (sigaction(number, nullptr, &action) == 0)
      found["signal " + std::to_string(number)] = std::to_string((size_t)action.sa_handler);
  }
  for (char** variable = environ; *variable; ++variable) found[*variable] = "set";
  char folder[4096];
  found["folder"] = getcwd(folder, sizeof folder) ? folder : "";
  found["locale"] = setlocale(LC_ALL, nullptr);
  const mode_t mask = umask(0);
  umask(mask);
  found["umask"] = std::to_string(mask);
  return found;
}

int unchanged() {
  const auto before = state();
  const Pair pair;
  std::vector<float> displacement(3 * pair.fixed.size());
  {
    Registrar registrar({.options = kOptions});
    Arguments arguments(pair.first(), pair.second());
    arguments.displacement(displacement);
    registrar.run(arguments);
  }
  const auto after = state();
  for (const auto& [name, value] : after)
    if (!before.contains(name) || before.at(name) != value)
      std::cout << "changed: " << name << "\n";
  for (const auto& [name, value] : before)
    if (!after.contains(name)) std::cout << "removed: " << name << "\n";
  std::cout << "compared\n";
  return 0;
}

// threads COUNT CALLS: several threads register; prints growth and the number of distinct results.
int threads(int count, int calls) {
  const Pair pair;
  Registrar registrar({.options = kOptions});
  std::vector<std::vector<float>> fields((size_t)count, std::vector<float>(3 * pair.fixed.size()));
  const auto round = [&](int each) {
    std::vector<std::thread> team;
    for (int t = 0; t < count; ++t)
      team.emplace_back([&, t] {
        for (int i = 0; i < each; ++i) {
          Arguments arguments(pair.first(), pair.second());
          arguments.displacement(fields[(size_t)t]);
          registrar.run(arguments);
        }
      });
    for (auto& thread : team) thread.join();
  };
  round(2);
  const long before = of_this_process("VmRSS");
  round(calls);
  int same = 0;
  for (const auto& field : fields) same += field == fields[0];
  std::cout << "grown by " << of_this_process("VmRSS") - before << " kB, " << same << " of "
            << count << " the same\n";
  return 0;
}

int stop_at_once(void*, const char*, double) { return 1; }

int cancelled() {
  const Pair pair;
  Registrar registrar({.options = kOptions});
  Arguments arguments(pair.first(), pair.second());
  std::vector<float> displacement(3 * pair.fixed.size());
  arguments.displacement(displacement);
  try {
    auto registration = registrar.submit(arguments);
    registration.cancel();
    registration.wait();
    std::cout << "not cancelled\n";
  } catch (const dinoreg::HostError& error) {
    std::cout << "submitted: " << error.status() << " " << error.what() << "\n";
  }
  {
    auto abandoned = registrar.submit(arguments);
  }
  arguments.progress(stop_at_once, nullptr);
  try {
    registrar.run(arguments);
    std::cout << "not stopped\n";
  } catch (const dinoreg::HostError& error) {
    std::cout << "stopped: " << error.status() << "\n";
  }
  auto registration = registrar.submit(Arguments(pair.first(), pair.second()));
  std::cout << "then: " << (registration.wait().report.empty() ? "nothing" : "a report") << "\n";
  return 0;
}

void tell(const char* what, dr_host_status status) {
  std::cout << what << ": " << status << " " << dr_host_last_error() << "\n";
}

// Wrong arguments, each of which must be an error with a message.
int wrong() {
  const Pair pair;
  dr_registrar* registrar = nullptr;
  dr_registrar_args options = DR_REGISTRAR_ARGS_INIT;
  tell("null", dr_registrar_create(nullptr, &registrar));
  tell("no handle", dr_registrar_create(&options, nullptr));
  options.options = "smoothnes = 1";
  tell("option", dr_registrar_create(&options, &registrar));
  options.options = "= =";
  tell("toml", dr_registrar_create(&options, &registrar));
  options.options = kOptions;
  options.struct_size = 3;
  tell("size", dr_registrar_create(&options, &registrar));
  options.struct_size = sizeof options;
  tell("created", dr_registrar_create(&options, &registrar));
  const VolumeView first = pair.first(), second = pair.second();
  dr_registration_args args = DR_REGISTRATION_ARGS_INIT;
  dr_registration_result result = DR_REGISTRATION_RESULT_INIT;
  args.fixed = &first.get();
  tell("no moving", dr_registrar_run(registrar, &args, &result));
  dr_volume volume = second.get();
  args.moving = &volume;
  const auto with = [&](const char* what, auto change) {
    volume = second.get();
    change();
    tell(what, dr_registrar_run(registrar, &args, &result));
  };
  with("voxel type", [&] { volume.voxel_type = 99; });
  with("voxels", [&] { volume.voxels = nullptr; });
  with("extent", [&] { volume.size[1] = 0; });
  with("huge", [&] { volume.size[1] = INT64_MAX; });
  with("stride", [&] { volume.stride[0] = 1, volume.stride[1] = 1, volume.stride[2] = 1; });
  with("spacing", [&] { volume.spacing[2] = 0; });
  with("direction", [&] { volume.direction[0] = 7; });
  volume = second.get();
  tell("null registrar", dr_registrar_run(nullptr, &args, &result));
  std::vector<float> inverse(3 * pair.fixed.size());
  args.inverse = inverse.data();
  tell("inverse", dr_registrar_run(registrar, &args, &result));
  args.inverse = nullptr;
  // A later version's struct, with a field that this library knows not.
  struct Later {
    dr_registration_args args;
    void* field;
  } later{args, nullptr};
  later.args.struct_size = sizeof later;
  later.field = &later;
  tell("later, used", dr_registrar_run(registrar, &later.args, &result));
  later.field = nullptr;
  tell("later, unused", dr_registrar_run(registrar, &later.args, &result));
  dr_registration_result_free(&result);
  dr_registration_result_free(&result);
  dr_registrar_destroy(registrar);
  dr_registrar_destroy(nullptr);
  return 0;
}

}  // namespace

int main(int count, char** arguments) try {
  const std::string task = count > 1 ? arguments[1] : "";
  if (task == "bits") return bits(arguments[2], arguments[3]);
  if (task == "times") return times(arguments[2], arguments[3], atoi(arguments[4]));
  if (task == "unchanged") return unchanged();
  if (task == "threads") return threads(atoi(arguments[2]), atoi(arguments[3]));
  if (task == "cancelled") return cancelled();
  if (task == "wrong") return wrong();
  return 2;
} catch (const std::exception& error) {
  std::cout << "error: " << error.what() << "\n";
  return 1;
}
