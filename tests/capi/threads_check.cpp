// Checks of the library's threads (kernels/cpu/threads.h): threads_check NAME prints what failed.
#include "threads.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

namespace {

std::atomic<int> failures{0};

void expect(bool holds, const char* what) {
  if (holds) return;
  printf("%s\n", what);
  ++failures;
}

template <class Body>
void run(int threads, int count, int piece, const Body& body) {
  run_job(
      threads, count, piece,
      [](const void* shared, int first, int end, int worker) {
        for (int i = first; i < end; ++i) (*static_cast<const Body*>(shared))(i, worker);
      },
      &body);
}

void sleep_ms(int time) { std::this_thread::sleep_for(std::chrono::milliseconds(time)); }

double cpu_seconds() { return (double)clock() / CLOCKS_PER_SEC; }

int named_threads() {
  int count = 0;
  DIR* const folder = opendir("/proc/self/task");
  while (const dirent* entry = readdir(folder)) {
    char name[32] = "";
    FILE* const file =
        fopen(("/proc/self/task/" + std::string(entry->d_name) + "/comm").c_str(), "r");
    if (file == nullptr) continue;
    if (fgets(name, sizeof name, file) != nullptr) count += strcmp(name, "dinoreg\n") == 0;
    fclose(file);
  }
  closedir(folder);
  return count;
}

// Sums of 0 ... count - 1 for each worker, in memory that only that worker touches.
bool sums_are_right(int threads, int count, int piece) {
  std::vector<long> sums(threads);
  std::vector<int> seen(count);  // plain memory: two workers on one element would be a race
  run(threads, count, piece, [&](int i, int worker) {
    sums[worker] += i;
    ++seen[i];
  });
  long sum = 0;
  for (long each : sums) sum += each;
  return sum == (long)count * (count - 1) / 2 &&
         std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; });
}

void each_element_once() {
  for (int threads : {1, 2, 3, 64, 100})
    for (int count : {1, 2, 7, 1000})
      for (int piece : {1, 3, 5000}) expect(sums_are_right(threads, count, piece), "wrong sums");
}

void several_callers() {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 8; ++caller)
    callers.emplace_back([caller] {
      for (int job = 0; job < 300; ++job)
        expect(sums_are_right(2 + caller % 3, 50 + job, 4), "wrong sums");
    });
  for (std::thread& each : callers) each.join();
  expect(named_threads() <= 64, "more threads than allowed");
}

void calls_within_a_piece_are_serial() {
  run(4, 16, 1, [](int, int) {
    const std::thread::id here = std::this_thread::get_id();
    run(4, 100, 1, [here](int, int worker) {
      expect(worker == 0 && std::this_thread::get_id() == here, "not on the calling thread");
    });
  });
  expect(sums_are_right(4, 100, 1), "wrong sums afterwards");
}

// The calling thread does not wait for threads that work on another job.
void a_busy_pool_delays_nobody() {
  std::atomic<bool> stop{false};
  std::atomic<int> begun{0};
  std::thread other([&] {
    run(65, 65, 1, [&](int, int) {
      ++begun;
      while (!stop) sleep_ms(1);
    });
  });
  while (begun < 65) sleep_ms(1);
  expect(sums_are_right(8, 1000, 1), "wrong sums");  // otherwise it would never end
  stop = true;
  other.join();
}

void idle_threads_sleep() {
  expect(named_threads() == 0, "threads before the first job");
  for (int job = 0; job < 100; ++job) expect(sums_are_right(3, 1000, 1), "wrong sums");
  const int threads = named_threads();
  expect(threads == 2, "not the two threads that three workers need");
  sleep_ms(50);
  const double before = cpu_seconds();
  sleep_ms(300);
  expect(cpu_seconds() - before < 0.05, "idle threads are busy");
}

// The child of a fork has no threads and starts its own, whatever they did at that moment.
void a_fork_has_its_own_threads() {
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) sums_are_right(4, 100, 1);
  });
  for (int i = 0; i < 20; ++i) {
    expect(sums_are_right(4, 1000, 1), "wrong sums");
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      const bool right = sums_are_right(4, 1000, 1) && named_threads() > 0;
      _exit(right ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    expect(status == 0, "the child hung or had wrong sums");
  }
  stop = true;
  other.join();
}

// Where the system has no room for more threads, the calling thread does the work.
void works_without_threads() {
  const rlimit none{1 << 20, RLIM_INFINITY};  // less than a stack
  setrlimit(RLIMIT_AS, &none);
  expect(sums_are_right(4, 1000, 1), "wrong sums");
  expect(named_threads() == 0, "threads in spite of the limit");
}

struct {
  const char* name;
  void (*run)();
} const checks[] = {
    {"each_element_once", each_element_once},
    {"several_callers", several_callers},
    {"calls_within_a_piece_are_serial", calls_within_a_piece_are_serial},
    {"a_busy_pool_delays_nobody", a_busy_pool_delays_nobody},
    {"idle_threads_sleep", idle_threads_sleep},
    {"a_fork_has_its_own_threads", a_fork_has_its_own_threads},
    {"works_without_threads", works_without_threads},
};

}  // namespace

int main(int count, char** arguments) {
  alarm(100);  // a check that hangs has failed
  for (const auto& check : checks) {
    if (count < 2) printf("%s\n", check.name);
    if (count == 2 && strcmp(arguments[1], check.name) == 0) {
      check.run();
      return failures == 0 ? 0 : 1;
    }
  }
  return 2;
}
