// Patch distances of MIND-SSC, summed along x, y and z in one kernel.
//
// The three ops of mind.h, which remain the reference, write 3 and read 2 numbers through memory
// for each of a voxel's six distances. That is 120 bytes per voxel; the descriptors read 24 of
// them and write 4. Here a block takes 16 rows of 32 numbers of one image through all planes of a
// slab. Its sums along x are in shared memory and a thread's last sums along y in registers, and 24
// bytes per voxel are written. With a radius of 2, 79 instead of 92 bytes per distance pass through
// the L1 cache, including the rows of the halo, a quarter of them.
#ifndef DINOREG_CUDA_TILED_MIND_CUH_
#define DINOREG_CUDA_TILED_MIND_CUH_

#include "launch.cuh"
#include "mind_pass.h"

DR_NAMESPACE_BEGIN

enum { kMindWidth = 32, kMindRows = 16, kMindRadius = 3 };  // the ops of mind.h take larger radii

// The op's `out` receives the sums over the whole patch. Blocks along x take tiles of a row, blocks
// along y the rows of tiles of each of the six images: at most 12342, for 32768 rows and a dilation
// of 64.
template <int radius_z>
__global__ void __launch_bounds__(kMindWidth* kMindRows)
    run_mind_sums(const __grid_constant__ MindDistanceX op) {
  // Sums along x of this plane and of the one before it, which other threads may still be reading;
  // one barrier for each plane is therefore enough.
  __shared__ float sums[2][kMindRows + 2 * kMindRadius][kMindWidth];
  const int lane = (int)threadIdx.x, line = (int)threadIdx.y;
  const int x = (int)blockIdx.x * kMindWidth + lane, image = (int)blockIdx.y % kMindImages;
  const int y0 = (int)blockIdx.y / kMindImages * kMindRows, y = y0 + line;
  const int height = op.padded_y() - 2 * op.mind.radius.y, width = op.width();
  const int low = op.margin(), high = width - low;
  const MindPair pair = mind_pair(image);
  float last[2 * radius_z + 1] = {};
  for (int z = 0; z < op.planes; ++z) {
    float (*const rows)[kMindWidth] = sums[z % 2];
    for (int i = line; i < kMindRows + 2 * op.mind.radius.y; i += kMindRows) {
      if (x >= width || y0 + i >= op.padded_y()) break;
      const MindDistanceX::Lines l = op.lines(z, pair, y0 + i);
      rows[i][lane] = x >= low && x < high ? op.sum<float>(l, x) : op.border_sum(l, x);
    }
    __syncthreads();
    if (x >= width || y >= height) continue;
    float sum = 0.0f;
    for (int t = 0; t <= 2 * op.mind.radius.y; ++t) sum += rows[line + t][lane];
    DR_UNROLL(6)
    for (int t = 0; t < 2 * radius_z; ++t) last[t] = last[t + 1];
    last[2 * radius_z] = sum;
    if (z < 2 * radius_z) continue;
    sum = 0.0f;
    DR_UNROLL(7)
    for (int t = 0; t <= 2 * radius_z; ++t) sum += last[t];
    const Index plane = (Index)(z - 2 * radius_z) * kMindImages + image;
    op.out[(plane * height + y) * width + x] = sum;
  }
}

typedef void (*MindKernel)(const MindDistanceX);

// Null if there is no kernel for this radius along z.
inline MindKernel mind_sums_kernel(int radius_z) {
  switch (radius_z) {
    case 0: return run_mind_sums<0>;  // slices thicker than the patch
    case 1: return run_mind_sums<1>;
    case 2: return run_mind_sums<2>;
    case 3: return run_mind_sums<3>;
    default: return nullptr;
  }
}

// Null as well if its radius along y is too large.
inline MindKernel mind_sums_kernel(const MindParameters& mind) {
  return mind.radius.y <= kMindRadius ? mind_sums_kernel(mind.radius.z) : nullptr;
}

inline int mind_buffers(const CudaLauncher&, const MindParameters& mind) {
  return mind_sums_kernel(mind) == nullptr ? 2 : 1;
}

inline void mind_sums_pass(const CudaLauncher& launch, const MindDistanceX& distance,
                           float* between) {
  const MindKernel kernel = mind_sums_kernel(distance.mind);
  if (kernel == nullptr) return mind_sums_pass<CudaLauncher>(launch, distance, between);
  const int height = distance.padded_y() - 2 * distance.mind.radius.y;
  launch.run(kernel,
             {dim3((distance.width() - 1) / kMindWidth + 1,
                   kMindImages * ((height - 1) / kMindRows + 1), 1),
              dim3(kMindWidth, kMindRows, 1)},
             distance);
}

DR_NAMESPACE_END

#endif  // DINOREG_CUDA_TILED_MIND_CUH_
