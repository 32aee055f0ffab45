// The interface of a back end: one function for each public operation. cpu/backend.cpp (once for
// each instruction set) and cuda/backend.cu fill it in from the templates of operations.h.
#ifndef DINOREG_SRC_BACKEND_H_
#define DINOREG_SRC_BACKEND_H_

#include "dinoreg.h"

struct Backend {
  dr_status (*resample_image)(const dr_execution&, const dr_resample_args&);
  dr_status (*resample_labels)(const dr_execution&, const dr_labels_args&);
  dr_status (*cut_slices)(const dr_execution&, const dr_slices_args&);
  dr_status (*map_field)(const dr_execution&, const dr_map_args&);
  dr_status (*jacobian)(const dr_execution&, const dr_jacobian_args&);
  dr_status (*compose)(const dr_execution&, const dr_compose_args&);
  dr_status (*invert)(const dr_execution&, const dr_invert_args&);
  dr_status (*mind)(const dr_execution&, const dr_mind_args&);
  dr_status (*local)(const dr_execution&, const dr_local_args&);
  dr_status (*pool)(const dr_execution&, const dr_pool_args&);
  dr_status (*sample_tokens)(const dr_execution&, const dr_tokens_args&);
  dr_status (*cover_tissue)(const dr_execution&, const dr_tissue_args&);
  dr_status (*join_features)(const dr_execution&, const dr_join_args&);
  dr_status (*solve)(const dr_execution&, const dr_solver_args&);
  dr_status (*multiply)(const dr_execution&, const dr_multiply_args&);
  dr_status (*sums)(const dr_execution&, const dr_sums_args&);
  dr_status (*quality)(const dr_execution&, const dr_quality_args&);
  dr_status (*agreement)(const dr_execution&, const dr_agreement_args&);
  dr_status (*mirror)(const dr_execution&, const dr_mirror_args&);
};

// Records what is queued on a stream; see dr_session in dinoreg.h.
struct Recorder {
  virtual ~Recorder() = default;
  virtual dr_status begin(void* stream, uint64_t key) = 0;
  // Whether begin() has begun a recording, rather than left the work to run as it is.
  virtual bool recording() const = 0;
  virtual dr_status end() = 0;
  // True if what was queued could not be recorded.
  virtual bool abandon() = 0;
  virtual dr_session_counts counts() const = 0;
};

const Backend& cpu_backend_generic();
const Backend& cpu_backend_x86_64_v3();
const Backend& cpu_backend_x86_64_v4();
const Backend& cuda_backend();

size_t workspace_bytes(const dr_solver_args& args);
size_t workspace_bytes(const dr_mind_args& args);
size_t workspace_bytes(const dr_local_args& args);
size_t workspace_bytes(const dr_sums_args& args);
size_t workspace_bytes(const dr_quality_args& args);
size_t workspace_bytes(const dr_agreement_args& args);
size_t workspace_bytes(const dr_mirror_args& args);
// NULL without memory for it.
Recorder* cuda_recorder(int graphs);
int cuda_device_count();
// Why no CUDA device can be used, in this thread's memory; empty if one can.
const char* cuda_problem();
// The text of the CUDA error of this thread's last failed call.
const char* cuda_error_text();

#endif  // DINOREG_SRC_BACKEND_H_
