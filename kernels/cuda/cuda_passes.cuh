// Passes tuned for the shared memory and registers of a GPU. They add in the order of the ops they
// replace, which gives the same bits if both are compiled with the same contraction of
// multiply-adds. What they gain in time has not been measured yet, because no kernel has run on a
// GPU.
#ifndef DINOREG_CUDA_CUDA_PASSES_CUH_
#define DINOREG_CUDA_CUDA_PASSES_CUH_

#include "feature_pass.cuh"
#include "tiled_cost.cuh"
#include "tiled_mind.cuh"
#include "tiled_smooth.cuh"

#endif  // DINOREG_CUDA_CUDA_PASSES_CUH_
