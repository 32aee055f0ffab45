// Runs the graphs of a session on the host: recorded, updated, replaced, lost. Each name on the
// command line is a check; test_cuda_session.py lists them.
#include <map>

#include "cuda/session.cuh"
#include "cuda_solve.h"

namespace {

using dr::GraphSession;

// A stream that can be captured.
struct OwnStream {
  cudaStream_t handle = nullptr;
  OwnStream() { (void)cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking); }
  ~OwnStream() { (void)cudaStreamDestroy(handle); }
};

void forget_counts() { launches = graph_launches = captures = updates = instantiations = 0; }

// Solves in a region of the session. Without progress, because nothing runs before its end.
bool solve_in(GraphSession& session, cudaStream_t stream, uint64_t key, Solve& solve) {
  forget_counts();
  if (session.begin(stream, key) != cudaSuccess) return false;
  const bool recorded = session.recording();
  const CudaLauncher launch(stream);
  const dr_status status = solve.run(launch, false);
  if (status != DR_OK || launch.error() != cudaSuccess) return session.abandon(), false;
  if (!recorded) return session.ran_as_it_is(), true;
  return session.end() == cudaSuccess && session.launch() == cudaSuccess;
}

bool counted(const GraphSession& session, int as_it_is, int recorded, int updated, int lost) {
  const dr_session_counts c = session.counts();
  return c.as_it_is == as_it_is && c.recorded == recorded && c.updated == updated && c.lost == lost;
}

// Other arrays each time: the first solve runs as it is, the second makes a graph of all its
// iterations, the others only set its parameters. Each gives the CPU's bits.
bool kept_graph_is_updated() {
  for (const std::string kind : {"mse", "search", "velocity", "images"}) {
    Solve on_cpu(kind);
    WANT(on_cpu.run(CpuLauncher(1)) == DR_OK);
    {
      const OwnStream stream;
      GraphSession session(4);
      for (int time = 0; time < 4; ++time) {
        Solve solve(kind);
        WANT(solve_in(session, stream.handle, 7, solve));
        WANT(solve == on_cpu);
        WANT(graph_launches == (time == 0 ? 2 + 3 : 1));
        WANT(captures == (time == 0 ? 2 : 1));
        WANT(instantiations == (time == 0 ? 2 : time == 1));
        WANT(updates == (time > 1));
        WANT(alive == 1 + (time > 0));
      }
      WANT(counted(session, 1, 3, 2, 0));
    }
    WANT(alive == 0);
  }
  return true;
}

// A region whose kernels are others under the same key replaces the graph.
bool other_work_under_a_key() {
  const std::string kind = "mse";
  Solve plain(kind), longer("velocity");
  WANT(plain.run(CpuLauncher(1)) == DR_OK && longer.run(CpuLauncher(1)) == DR_OK);
  const OwnStream stream;
  GraphSession session(1);
  for (int time = 0; time < 3; ++time) {
    Solve one(kind), other("velocity");
    WANT(solve_in(session, stream.handle, 1, one) && one == plain);
    WANT(solve_in(session, stream.handle, 1, other) && other == longer);
    WANT(updates == 0 && instantiations == 1 && alive == 2);
  }
  WANT(counted(session, 1, 5, 0, 0));
  return true;
}

bool number_of_graphs_is_bounded() {
  const std::string kind = "mse";
  const OwnStream stream;
  GraphSession session(2);
  Solve solve(kind);
  for (const uint64_t key : {1, 1, 2, 2, 1}) WANT(solve_in(session, stream.handle, key, solve));
  WANT(updates == 1 && alive == 3);
  WANT(solve_in(session, stream.handle, 3, solve) && !session.recording());  // in place of 2
  WANT(alive == 2);
  WANT(solve_in(session, stream.handle, 1, solve) && updates == 1);
  WANT(solve_in(session, stream.handle, 2, solve) && captures == 2);  // as it is again
  WANT(counted(session, 4, 4, 2, 0));
  return true;
}

// After an error nothing has run, nothing leaks, and the next recording works.
bool nothing_runs_after_an_error() {
  const std::string kind = "mse";
  for (const char* call : {"cudaStreamGetFlags", "cudaStreamBeginCapture", "cudaStreamEndCapture",
                           "cudaGraphInstantiateWithFlags", "cudaGraphDestroy", "cudaGraphLaunch",
                           "cudaMemsetAsync", "cudaLaunchKernelEx", "cudaStreamIsCapturing"}) {
    const OwnStream stream;
    GraphSession session(2);
    Solve first(kind), failed(kind), again(kind);
    const std::vector<float> untouched = failed.field;
    WANT(solve_in(session, stream.handle, 1, first));
    failing = call;
    const bool done = solve_in(session, stream.handle, 1, failed);
    failing = "";
    if (done) return printf("%s: not told\n", call), false;
    WANT(failed.field == untouched && graph_launches == 0);
    WANT(!session.recording());
    WANT(solve_in(session, stream.handle, 1, again) && again == first);
  }
  WANT(alive == 0);
  return true;
}

// A refused update makes a new graph.
bool refused_updates() {
  const std::string kind = "mse";
  const OwnStream stream;
  GraphSession session(2);
  Solve first(kind);
  for (int time = 0; time < 2; ++time) WANT(solve_in(session, stream.handle, 1, first));
  Solve solve(kind);
  failing = "cudaGraphExecUpdate";
  const bool done = solve_in(session, stream.handle, 1, solve);
  failing = "";
  WANT(done && solve == first && instantiations == 1 && alive == 2);
  return true;
}

// What is forbidden in a capture, such as an allocation, is told at its end, by either way.
bool lost_recordings() {
  const std::string kind = "lost";
  const OwnStream stream;
  GraphSession session(2);
  const CudaLauncher launch(stream.handle);
  float value = 1.0f;
  WANT(session.begin(stream.handle, 1) == cudaSuccess && !session.recording());
  session.ran_as_it_is();
  for (const bool abandoned : {false, true}) {
    WANT(session.begin(stream.handle, 1) == cudaSuccess && session.recording());
    launch.zero(&value, sizeof value);
    WANT(forbidden_in_a_capture(stream.handle) != cudaSuccess);
    if (abandoned) WANT(session.abandon());
    if (!abandoned) WANT(session.end() == cudaErrorStreamCaptureInvalidated);
    WANT(!session.recording() && value == 1.0f && alive == 1);
  }
  WANT(session.begin(stream.handle, 1) == cudaSuccess);
  launch.zero(&value, sizeof value);
  WANT(!session.abandon() && value == 1.0f);
  WANT(counted(session, 1, 0, 0, 2));
  return true;
}

bool blocking_streams_run_as_they_are() {
  const std::string kind = "mse";
  GraphSession session(2);
  Solve expected(kind);
  WANT(expected.run(CpuLauncher(1)) == DR_OK);
  for (int time = 0; time < 3; ++time) {
    Solve solve(kind);
    WANT(solve_in(session, nullptr, 1, solve) && solve == expected && captures == 2);
  }
  WANT(session.begin(cudaStreamLegacy, 1) == cudaSuccess && !session.recording());
  const OwnStream stream;
  static_cast<Stream_*>(stream.handle)->flags = 0;
  WANT(session.begin(stream.handle, 1) == cudaSuccess && !session.recording());
  WANT(counted(session, 3, 0, 0, 0));
  return true;
}

// A session that is destroyed while it records leaves nothing behind.
bool destroyed_while_recording() {
  const std::string kind = "destroyed";
  const OwnStream stream;
  {
    GraphSession session(1);
    (void)session.begin(stream.handle, 1);
    session.ran_as_it_is();
    WANT(session.begin(stream.handle, 1) == cudaSuccess && alive == 2);
  }
  WANT(alive == 1);
  return true;
}

}  // namespace

int main(int count, char** names) {
  as_fibres = true;  // tuned kernels have barriers
  const std::map<std::string, bool (*)()> checks = {
      {"kept_graph_is_updated", kept_graph_is_updated},
      {"other_work_under_a_key", other_work_under_a_key},
      {"number_of_graphs_is_bounded", number_of_graphs_is_bounded},
      {"nothing_runs_after_an_error", nothing_runs_after_an_error},
      {"refused_updates", refused_updates},
      {"lost_recordings", lost_recordings},
      {"blocking_streams_run_as_they_are", blocking_streams_run_as_they_are},
      {"destroyed_while_recording", destroyed_while_recording},
  };
  for (int i = 1; i < count; ++i) {
    const auto check = checks.find(names[i]);
    if (check == checks.end() || !check->second()) return printf("%s failed\n", names[i]), 1;
  }
  return 0;
}
