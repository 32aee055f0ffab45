// Runs whole solves through the CUDA launcher on the host and compares them with the CPU launcher:
// captures, repeated launches, cancellation and errors. Each name on the command line is a check;
// test_cuda_graph.py lists them.
#include <map>

#include "cuda_solve.h"

namespace {

// Levels of three, one, no and four iterations, of which the first is launched without a graph.
bool same_solve(const std::string& kind) {
  Solve on_cpu(kind), on_cuda(kind);
  WANT(on_cpu.run(CpuLauncher(1)) == DR_OK);
  const CudaLauncher launch(nullptr);
  WANT(on_cuda.run(launch) == DR_OK);
  WANT(launch.error() == cudaSuccess);
  WANT(on_cuda.reports == 8);
  WANT(captures == 2);
  WANT(graph_launches == 2 + 3);
  WANT(alive == 0);
  WANT(on_cuda == on_cpu);
  const dr_feature_distance& s = on_cuda.distance;
  WANT(s.before > 0.0 && s.after > 0.0 && s.after < s.before);
  WANT(s.overlap > 0.5 && s.overlap <= 1.0);
  return true;
}

// With room in its workspace, the finest level compares features in blocks of channels. That takes
// two launches and changes no bit.
bool rearranges_with_room() {
  const std::string kind = "room";
  Solve plain("mse"), room(kind);
  WANT(plain.run(CudaLauncher(nullptr)) == DR_OK);
  const int before = launches;
  WANT(room.run(CudaLauncher(nullptr)) == DR_OK);
  WANT(launches == before + 2);
  WANT(room == plain);
  return true;
}

// Launches of one iteration on the finest level.
int launches_of_an_iteration(const std::string& kind) {
  const int32_t few[] = {0, 0, 0, 3}, more[] = {0, 0, 0, 4};
  int counted[2];
  for (int i = 0; i < 2; ++i) {
    Solve solve(kind);
    solve.args.iterations = i == 0 ? few : more;
    if (solve.run(CudaLauncher(nullptr)) != DR_OK) return -1;
    counted[i] = launches;
  }
  return counted[1] - counted[0];
}

// State, smoothing (2), warp and lack of folds, features and regularity, windows of products (2)
// and of factors (2), smoothing and step (2).
bool few_launches() {
  const std::string kind = "few launches";
  WANT(launches_of_an_iteration("images") == 11);
  WANT(launches_of_an_iteration("mse") == 7);
  WANT(launches_of_an_iteration("cosine") == 7);
  return true;
}

// The state lives on the device; a graph that repeated a single iteration would find nothing new.
bool every_iteration_counts() {
  const std::string kind = "mse";
  Solve four(kind), five(kind);
  const int32_t more[] = {3, 1, 0, 5};
  five.args.iterations = more;
  four.args.fold_penalty = five.args.fold_penalty = 0.0;
  WANT(four.run(CudaLauncher(nullptr)) == DR_OK);
  WANT(five.run(CudaLauncher(nullptr)) == DR_OK);
  WANT(graph_launches == 2 + 4);
  WANT(!(four == five));
  return true;
}

bool cancels_in_the_middle() {
  const std::string kind = "mse";
  Solve whole(kind);
  WANT(whole.run(CudaLauncher(nullptr)) == DR_OK);
  for (int stop = 1; stop <= 8; ++stop) {
    Solve solve(kind);
    solve.stop_after = stop;
    const CudaLauncher launch(nullptr);
    WANT(solve.run(launch) == DR_ERROR_CANCELLED);
    WANT(solve.reports == stop);
    // Iterations by level: 1, 2, 3 | 4 | | 5, 6, 7, 8.
    WANT(graph_launches == (stop <= 3 ? stop - 1 : stop == 4 ? 2 : stop - 3));
    WANT(launch.error() == cudaSuccess);
    WANT(alive == 0);
    WANT(solve.distance.before == whole.distance.before && solve.distance.after == -1.0);
  }
  return true;
}

// Errors of graphs are kept like others: after one, nothing is launched or reported, and nothing
// leaks.
bool errors_are_kept() {
  const std::string kind = "mse";
  for (const char* call : {"cudaStreamCreateWithFlags", "cudaStreamBeginCapture",
                           "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags",
                           "cudaGraphDestroy", "cudaStreamDestroy", "cudaGraphLaunch"}) {
    Solve solve(kind);
    const CudaLauncher launch(nullptr);
    failing = call;
    const dr_status status = solve.run(launch);
    failing = "";
    if (launch.error() != cudaErrorUnknown) return printf("%s: not told\n", call), false;
    WANT(status == DR_OK);  // the back end reports the launcher's error
    WANT(solve.reports == 1 && graph_launches == 0);
    WANT(alive == 0);
  }
  return true;
}

// If a captured launch fails, the capture is ended all the same.
bool errors_within_a_capture() {
  const std::string kind = "repeat";
  const CudaLauncher launch(nullptr);
  float value = 1.0f;
  int bodies = 0, reports = 0;
  captures = graph_launches = 0;
  launch.repeat(
      5,
      [&] {
        if (++bodies == 2) failing = "cudaMemsetAsync";
        launch.zero(&value, sizeof value);
      },
      [&] { return ++reports, true; });
  failing = "";
  WANT(launch.error() == cudaErrorUnknown);
  WANT(bodies == 2 && reports == 1 && captures == 1 && graph_launches == 0 && alive == 0);
  return true;
}

// A single iteration makes no graph, and neither does none.
bool few_make_no_graph() {
  const std::string kind = "repeat";
  for (int count : {0, 1}) {
    const CudaLauncher launch(nullptr);
    int bodies = 0;
    captures = 0;
    WANT(launch.repeat(count, [&] { ++bodies; }, [] { return true; }));
    WANT(bodies == count && captures == 0 && alive == 0);
  }
  return true;
}

}  // namespace

int main(int count, char** names) {
  as_fibres = true;  // tuned kernels have barriers
  std::map<std::string, bool (*)()> checks = {
      {"every_iteration_counts", every_iteration_counts},
      {"cancels_in_the_middle", cancels_in_the_middle},
      {"errors_are_kept", errors_are_kept},
      {"errors_within_a_capture", errors_within_a_capture},
      {"few_make_no_graph", few_make_no_graph},
      {"few_launches", few_launches},
      {"rearranges_with_room", rearranges_with_room},
  };
  for (int i = 1; i < count; ++i) {
    const auto check = checks.find(names[i]);
    const bool good = check == checks.end() ? same_solve(names[i]) : check->second();
    if (!good) return printf("%s failed\n", names[i]), 1;
  }
  return 0;
}
