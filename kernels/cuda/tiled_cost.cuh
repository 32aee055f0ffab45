// ShiftCost with the moving row in shared memory, from where all shifts along x read it.
//
// The op of cost.h, which remains the reference, loads both rows again for each shift: 8 C bytes
// per voxel and shift with C channels, through the L1 cache. Here a warp takes 32 voxels of one row
// and one shift along z and y, and loads each value once for all n shifts along x: 4 C bytes of the
// fixed row and 4 C (32 + n - 1) / 32 of the moving row. With n = 9 that is C instead of 8 C bytes
// per shift; both write 4 bytes of result. Rows of the search grid are about as long as a tile;
// tiles of 128 voxels would save 8 % more and leave most of their threads idle.
#ifndef DINOREG_CUDA_TILED_COST_CUH_
#define DINOREG_CUDA_TILED_COST_CUH_

#include "dinoreg/cost.h"
#include "launch.cuh"

DR_NAMESPACE_BEGIN

// The channels of a tile are a multiple of four because of the four sums. The warps of a block
// share nothing. Six blocks per multiprocessor leave 80 registers; without this bound, ptxas 13.0
// spills to fit more blocks. That is 38 % of the warps of sm_90 (50 % for n = 3). The 4 n sums of a
// thread do not wait for one another, so fewer warps hide the latency of their multiply-adds.
enum { kTileWidth = kWarp, kTileWarps = 4, kTileBlocks = 6, kTileChannels = 8 };

// n = count_x() shifts. Blocks along x take tiles of a row, blocks along y the rows of each (z, y)
// shift.
template <int n>
__global__ void __launch_bounds__(kTileWidth* kTileWarps, kTileBlocks)
    run_tiled(const __grid_constant__ ShiftCost op) {
  __shared__ float tiles[kTileWarps][kTileChannels][kTileWidth + n - 1];
  float (*const moving)[kTileWidth + n - 1] = tiles[threadIdx.y];
  const int thread = (int)threadIdx.x, first = (int)blockIdx.x * kTileWidth, x = first + thread;
  const int first_line = op.first_shift / n;
  const int lines = (op.first_shift + op.shift_count - 1) / n - first_line + 1;
  const int rows = op.shape.rows();
  const int units = lines * rows;
  for (int turn = (int)blockIdx.y * kTileWarps; turn < units; turn += (int)gridDim.y * kTileWarps) {
    // Warps left over in the last turn compute the last row once more.
    const int unit = min_int(turn + (int)threadIdx.y, units - 1);
    const int line = unit / rows, row = unit - line * rows;
    const int z = row / op.shape.y, y = row - z * op.shape.y;
    const int k =
        (first_line + line) * n - op.first_shift;  // of the first shift along x; may be < 0
    const ShiftCost::Lines l = op.lines(k, z, y);
    float part[n][4] = {};
    for (int c = 0; c < op.channels; c += kTileChannels) {
      const int count = op.channels - c < kTileChannels ? op.channels - c : kTileChannels;
      for (int j = 0; j < count; ++j)
        for (int i = thread; i < kTileWidth + n - 1 && first + i < op.shape.x + n - 1;
             i += kTileWidth)
          moving[j][i] = l.m[(Index)(c + j) * op.padded.x + first + i];
      __syncwarp();
      if (x < op.shape.x) {
        int j = 0;
        for (; j + 4 <= count; j += 4) {
          DR_UNROLL(4)
          for (int q = 0; q < 4; ++q) {
            const float f = l.f[(Index)(c + j + q) * op.padded.x + x];
            DR_UNROLL(16)
            for (int s = 0; s < n; ++s) {
              const float d = f - moving[j + q][thread + s];
              part[s][q] += d * d;
            }
          }
        }
        // Channels beyond the last whole four are added to the first sum, as in squared_difference.
        for (; j < count; ++j) {
          const float f = l.f[(Index)(c + j) * op.padded.x + x];
          DR_UNROLL(16)
          for (int s = 0; s < n; ++s) {
            const float d = f - moving[j][thread + s];
            part[s][0] += d * d;
          }
        }
      }
      __syncwarp();  // before the tile is written again
    }
    if (x < op.shape.x) {
      const float share = l.wf[x];
      DR_UNROLL(16)
      for (int s = 0; s < n; ++s) {
        if (k + s < 0 || k + s >= op.shift_count) continue;
        const float sum = (part[s][0] + part[s][1]) + (part[s][2] + part[s][3]);
        l.to[(Index)s * op.shape.voxels() + x] = op.weighted(sum, share, l.wm[x + s]);
      }
    }
  }
}

typedef void (*TiledKernel)(const ShiftCost);

// Null if there is no kernel for this many shifts along x.
inline TiledKernel tiled_shift_cost(int count_x) {
  switch (count_x) {
    case 3: return run_tiled<3>;
    case 5: return run_tiled<5>;
    case 7: return run_tiled<7>;
    case 9: return run_tiled<9>;
    default: return nullptr;
  }
}

inline LaunchShape tiled_shape(const ShiftCost& op) {
  const int n = op.shifts.count_x();
  const int lines = (op.first_shift + op.shift_count - 1) / n - op.first_shift / n + 1;
  const int turns = (lines * op.shape.rows() - 1) / kTileWarps + 1;
  return {dim3((op.shape.x - 1) / kTileWidth + 1, min_int(turns, kTileBlocksY), 1),
          dim3(kTileWidth, kTileWarps, 1)};
}

inline void shift_cost_pass(const CudaLauncher& launch, const ShiftCost& cost) {
  const TiledKernel kernel = tiled_shift_cost(cost.shifts.count_x());
  if (kernel == nullptr) return launch(cost);
  launch.run(kernel, tiled_shape(cost), cost);
}

DR_NAMESPACE_END

#endif  // DINOREG_CUDA_TILED_COST_CUH_
