// The comparison of features, with a bound on the registers that each architecture can keep.
#ifndef DINOREG_CUDA_FEATURE_PASS_CUH_
#define DINOREG_CUDA_FEATURE_PASS_CUH_

#include "dinoreg/similarity.h"
#include "launch.cuh"
#include "passes.h"

DR_NAMESPACE_BEGIN

// With two blocks of 256 threads, 25 % of the warps of sm_90, ptxas 13.0 takes 113 registers there
// for the fused difference. Three blocks leave 80 without a spill, 37.5 %; four, for 50 %, would
// spill 196 bytes. More are not needed to hide the latency of memory, because each thread loads
// 8 x 16 bytes before it uses any: 24 warps have 96 KB under way on each multiprocessor, and the 16
// warps of the cosine 64 KB, whereas the 18 bytes per cycle that are its share of the bandwidth of
// an H200 take some 15 KB at a latency of 800 cycles (arithmetic). With three blocks the cosine
// would spill 28 bytes on sm_90, and so would the difference on sm_86 and sm_89; on sm_75, where
// two blocks are 50 %, it would spill as well.
template <class Op>
constexpr int kFeatureBlocks = 2;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 800 || __CUDA_ARCH__ >= 900
template <class Second>
constexpr int kFeatureBlocks<Both<FeatureDifference, Second>> = 3;
#endif

template <class Op>
__global__ void __launch_bounds__(kBlockThreads, kFeatureBlocks<Op>)
    run_features(const __grid_constant__ Op op) {
  const int rows = op.rows(), width = op.width();
  const unsigned x = blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= (unsigned)width) return;
  const unsigned stride = gridDim.y * blockDim.y;
  for (unsigned row = blockIdx.y * blockDim.y + threadIdx.y; row < (unsigned)rows; row += stride)
    op((int)row, (int)x);
}

template <class Op>
void feature_pass(const CudaLauncher& launch, const Op& op) {
  const int rows = op.rows(), width = op.width();
  if (rows > 0 && width > 0) launch.run(run_features<Op>, launch_shape(rows, width), op);
}

// Neighbours along x then load neighbouring blocks of channels.
inline bool wants_blocks(const CudaLauncher&) { return true; }

DR_NAMESPACE_END

#endif  // DINOREG_CUDA_FEATURE_PASS_CUH_
