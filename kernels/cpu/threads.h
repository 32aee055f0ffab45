// The library's own threads. They are compiled once, for the baseline instruction set, and this
// header includes none of the standard library, because inline functions that are compiled for one
// instruction set must not be used by the others.
#ifndef DINOREG_CPU_THREADS_H_
#define DINOREG_CPU_THREADS_H_

// One piece of a job: the elements first ... end - 1, by one of its workers.
typedef void (*JobPiece)(const void* body, int first, int end, int worker);

// The number of processors that this process may use.
int processors();

// Runs `run` on the pieces of 0 ... count - 1, `piece` elements each, and returns when all are
// done. The calling thread is worker 0; idle threads of the pool, which all calls share, help as
// workers 1 ... threads - 1. A call does not wait for threads that are busy elsewhere or have not
// begun, so that it ends even if none helps. A call from within a piece runs on the thread that
// makes it, as worker 0.
void run_job(int threads, int count, int piece, JobPiece run, const void* body);

#endif  // DINOREG_CPU_THREADS_H_
