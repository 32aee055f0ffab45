// Each thread of the pool has a state, which is all that it shares with its callers:
//   idle -> called    by the caller, which has taken the thread from the list of idle ones
//   called -> working by the thread, when it awakes
//   called -> idle    by the caller, if the job is done before the thread has awoken
//   working -> idle   by the thread, when no piece is left
// The caller returns the threads to the list when their states are idle again. They end with the
// process: the library is never unloaded (the linker's option nodelete).
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>

namespace {

// How often a thread looks for work before it sleeps, some tens of microseconds. The loops of a
// solve follow each other faster, and waking a thread takes about as long.
constexpr int kSpins = 2000;

struct Job {
  JobPiece run;
  const void* body;
  int count, piece;
  std::atomic<int64_t> next{0};  // it ends beyond `count`, by a piece for each worker

  void work(int worker) {
    for (int64_t first; (first = next.fetch_add(piece, std::memory_order_relaxed)) < count;)
      run(body, (int)first, (int)std::min<int64_t>(first + piece, count), worker);
  }
};

enum State { kIdle, kCalled, kWorking };

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Set while the thread works on a piece.
thread_local bool in_a_job = false;

struct Thread {
  std::atomic<int> state{kIdle};
  Job* job = nullptr;
  int worker = 0;
  Thread* next = nullptr;  // in the list of idle threads, or of those of a job

  void call(Job& its_job, int its_worker) {
    job = &its_job;
    worker = its_worker;
    state.store(kCalled, std::memory_order_release);
    state.notify_one();
  }

  // Afterwards the thread does not use the job.
  void dismiss() {
    int expected = kCalled;
    if (!state.compare_exchange_strong(expected, kIdle, std::memory_order_acquire))
      wait_while(kWorking);
  }

  void wait_while(int old) {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (state.load(std::memory_order_acquire) != old) return;
      pause_briefly();
    }
    state.wait(old, std::memory_order_acquire);
  }

  void loop() {
    in_a_job = true;
    for (;;) {
      wait_while(kIdle);
      int expected = kCalled;
      if (!state.compare_exchange_strong(expected, kWorking, std::memory_order_acquire)) continue;
      job->work(worker);
      state.store(kIdle, std::memory_order_release);
      state.notify_one();
    }
  }
};

extern "C" void* run_thread(void* thread) {
  static_cast<Thread*>(thread)->loop();
  return nullptr;
}

// A new thread that takes no signals, which are meant for those of the program; nullptr if the
// system has no room for one.
Thread* start() {
  auto* const thread = new (std::nothrow) Thread;
  if (thread == nullptr) return nullptr;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t id;
  const bool started = pthread_create(&id, nullptr, run_thread, thread) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!started) {
    delete thread;
    return nullptr;
  }
  pthread_setname_np(id, "dinoreg");
  pthread_detach(id);
  return thread;
}

class Pool {
 public:
  // A list of up to `wanted` threads; some are started if too few are idle.
  Thread* take(int wanted) {
    Thread* team = nullptr;
    Thread** end = &team;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (; wanted > 0 && idle_ != nullptr; --wanted, end = &(*end)->next) {
      *end = idle_;
      idle_ = idle_->next;
    }
    // All calls together get no more threads than there are processors, as more would only wait
    // for each other. On small machines they get what one call may ask for.
    for (; wanted > 0 && started_ < std::max(64, processors()); --wanted, end = &(*end)->next) {
      *end = start();
      if (*end == nullptr) break;  // a limit of the system; no job needs a helper
      ++started_;
    }
    *end = nullptr;
    return team;
  }

  // The next call takes the same threads in the same order.
  void put(Thread* team) {
    Thread** end = &team;
    while (*end != nullptr) end = &(*end)->next;
    const std::lock_guard<std::mutex> lock(mutex_);
    *end = idle_;
    idle_ = team;
  }

 private:
  std::mutex mutex_;
  Thread* idle_ = nullptr;
  int started_ = 0;
};

constinit Pool pool;

// fork() copies the memory of the pool, but not its threads, so the child starts a pool of its own.
// This also drops a lock that another thread held at that moment.
extern "C" void forget_threads() { new (&pool) Pool; }

const int registered = pthread_atfork(nullptr, nullptr, forget_threads);

}  // namespace

int processors() {
  for (int most = 1024; most <= 1 << 20; most *= 2) {  // the kernel refuses sets that are too small
    cpu_set_t* const set = CPU_ALLOC(most);
    const size_t bytes = CPU_ALLOC_SIZE(most);
    const bool known = set != nullptr && sched_getaffinity(0, bytes, set) == 0;
    const int count = known ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (known) return count;
  }
  return 1;
}

void run_job(int threads, int count, int piece, JobPiece run, const void* body) {
  const int pieces = (count - 1) / piece + 1;
  if (in_a_job || threads == 1 || pieces <= 1) return run(body, 0, count, 0);
  Job job{run, body, count, piece};
  Thread* const team = pool.take(std::min(threads, pieces) - 1);
  int worker = 0;
  for (Thread* each = team; each != nullptr; each = each->next) each->call(job, ++worker);
  in_a_job = true;
  job.work(0);
  in_a_job = false;
  for (Thread* each = team; each != nullptr; each = each->next) each->dismiss();
  pool.put(team);
}
