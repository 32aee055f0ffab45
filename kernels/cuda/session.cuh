// Graphs of a session: what is queued on a stream between begin() and end() is captured, becomes an
// executable that is kept for the next time, and is launched.
#ifndef DINOREG_CUDA_SESSION_CUH_
#define DINOREG_CUDA_SESSION_CUH_

#include <stdint.h>

#include <memory>
#include <new>

#include "dinoreg.h"
#include "graph.cuh"

DR_NAMESPACE_BEGIN

class GraphSession {
 public:
  explicit GraphSession(int most) : most_(most), kept_(new (std::nothrow) Kept[most]) {}
  ~GraphSession() { (void)abandon(); }
  bool usable() const { return kept_ != nullptr; }

  // The first time a key is used, nothing is captured, so that kernels are loaded and memory pools
  // grow. Nor is anything captured on a blocking stream, because work that other threads put on the
  // legacy default stream would have to wait for it, and would fail during the capture. The capture
  // is local to this thread: what other threads do meanwhile does not affect it, and what this
  // thread must not do, such as allocating memory, is an error that end() reports.
  cudaError_t begin(cudaStream_t stream, uint64_t key) {
    key_ = key;
    stream_ = stream;
    current_ = find(key);
    unsigned flags = 0;
    cudaError_t error = cudaStreamGetFlags(stream, &flags);
    if (error != cudaSuccess || current_ == nullptr || (flags & cudaStreamNonBlocking) == 0)
      return error;
    error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    recording_ = error == cudaSuccess;
    return error;
  }
  bool recording() const { return recording_; }

  // Ends a region that was not captured; from now on its key is.
  void ran_as_it_is() {
    ++counts_.as_it_is;
    if (current_ == nullptr) current_ = least_recently_used();
    current_->key = key_;
    current_->used = ++clock_;
  }

  // Ends the capture and makes it executable. After an error, nothing of it has run or will run.
  cudaError_t end() {
    recording_ = false;
    cudaGraph_t captured = nullptr;
    cudaError_t error = cudaStreamEndCapture(stream_, &captured);
    if (error == cudaSuccess) error = current_->graph.take(captured);
    if (error != cudaSuccess) {
      ++counts_.lost;
      return error;
    }
    ++counts_.recorded;
    counts_.updated += current_->graph.updated();
    current_->used = ++clock_;
    return cudaSuccess;
  }

  // Launches what end() has made.
  cudaError_t launch() const { return current_->graph.launch(stream_); }

  // Ends a region without running what was captured. True if the capture had failed already.
  bool abandon() {
    if (!recording_) return false;
    recording_ = false;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    (void)cudaStreamIsCapturing(stream_, &status);
    cudaGraph_t captured = nullptr;
    const bool lost = cudaStreamEndCapture(stream_, &captured) != cudaSuccess ||
                      status == cudaStreamCaptureStatusInvalidated;
    if (captured != nullptr) (void)cudaGraphDestroy(captured);
    (void)cudaGetLastError();  // it is reported by the result
    counts_.lost += lost;
    return lost;
  }

  dr_session_counts counts() const { return counts_; }

 private:
  struct Kept {
    uint64_t key = 0;
    int64_t used = 0;  // when it was used last; 0 if it is free
    Graph graph;
  };

  Kept* find(uint64_t key) {
    for (int i = 0; i < most_; ++i)
      if (kept_[i].used > 0 && kept_[i].key == key) return &kept_[i];
    return nullptr;
  }

  Kept* least_recently_used() {
    Kept* oldest = &kept_[0];
    for (int i = 1; i < most_; ++i)
      if (kept_[i].used < oldest->used) oldest = &kept_[i];
    oldest->graph.clear();
    return oldest;
  }

  const int most_;
  const std::unique_ptr<Kept[]> kept_;
  int64_t clock_ = 0;
  dr_session_counts counts_ = {};
  // The region between begin() and its end.
  uint64_t key_ = 0;
  cudaStream_t stream_ = nullptr;
  Kept* current_ = nullptr;  // NULL if the key is new
  bool recording_ = false;
};

DR_NAMESPACE_END

#endif  // DINOREG_CUDA_SESSION_CUH_
