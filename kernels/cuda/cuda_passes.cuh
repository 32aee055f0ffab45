// Passes tuned for the shared memory and registers of a GPU; they give the same results as
// src/passes.h.
#ifndef DINOREG_CUDA_CUDA_PASSES_CUH_
#define DINOREG_CUDA_CUDA_PASSES_CUH_

#include "tiled_cost.cuh"
#include "tiled_mind.cuh"
#include "tiled_smooth.cuh"

#endif  // DINOREG_CUDA_CUDA_PASSES_CUH_
