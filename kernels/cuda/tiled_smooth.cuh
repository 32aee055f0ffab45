// Separable smoothing with sums kept in registers, y and x in one kernel.
//
// The ops of smooth.h, which remain the reference, load every number 2 r + 1 times in each of three
// passes of radius r and check every index against the border. With r = 4 and the result, 3 x 40 =
// 120 bytes per number pass through the L1 cache and 3 x 8 bytes through memory. Here a thread
// loads the 4 + 2 r numbers of four neighbouring sums once: along z that is 3 loads per sum, 16
// bytes with the result. A block then adds up 32 rows of 64 numbers along y, again with 3 loads,
// for these and their neighbours along x, 1.13 times as many (1.38 with three components), into
// shared memory, and along x from there: 18 + 40 bytes. In all, 74 instead of 120 bytes pass
// through the L1 cache, 16 instead of 24 through memory, and there are two launches instead of
// three. All three axes in one kernel would save another 8 bytes, but either add up 1.4 to 2 times
// as many numbers along z or go along z with few blocks: a plane of 96 x 80 numbers is six tiles.
#ifndef DINOREG_CUDA_TILED_SMOOTH_CUH_
#define DINOREG_CUDA_TILED_SMOOTH_CUH_

#include "launch.cuh"
#include "passes.h"

DR_NAMESPACE_BEGIN

enum {
  kColumn = 4,  // neighbouring sums of one thread
  kColumnRadius = 6,  // fits a Gaussian of up to 2.4 voxels; smooth.h takes wider ones
  kSmoothWidth = 64,  // numbers of a row in a tile
  kSmoothHalo = 3 * kColumnRadius,  // and on either side of it
  kSmoothRows = 32,
  kSmoothThreads = 256
};

// Computes sums first ... first + kColumn - 1 of a line of n numbers that lie `stride` apart, and
// passes each to store(i, sum).
template <int radius, class Store>
DR_HD void smooth_column_of(const float* line, Index stride, int n, int first, const Taps& taps,
                            const Store& store) {
  float near[kColumn + 2 * radius];
  const int begin = first - radius;
  if (begin >= 0 && begin + kColumn + 2 * radius <= n) {
    DR_UNROLL(16)
    for (int j = 0; j < kColumn + 2 * radius; ++j) near[j] = line[stride * (begin + j)];
  } else {
    DR_UNROLL(16)
    for (int j = 0; j < kColumn + 2 * radius; ++j) near[j] = line[stride * reflect(begin + j, n)];
  }
  DR_UNROLL(4)
  for (int i = 0; i < kColumn; ++i) {
    float sum = taps.weight[0] * near[i + radius];
    DR_UNROLL(6)
    for (int t = 1; t <= radius; ++t)
      sum += taps.weight[t] * (near[i + radius - t] + near[i + radius + t]);
    if (first + i < n) store(first + i, sum);
  }
}

// With the radius as a constant, as the numbers would otherwise not stay in registers.
template <class Store>
DR_HD void smooth_column(const float* line, Index stride, int n, int first, const Taps& taps,
                         const Store& store) {
  switch (taps.radius) {
    case 0: return smooth_column_of<0>(line, stride, n, first, taps, store);
    case 1: return smooth_column_of<1>(line, stride, n, first, taps, store);
    case 2: return smooth_column_of<2>(line, stride, n, first, taps, store);
    case 3: return smooth_column_of<3>(line, stride, n, first, taps, store);
    case 4: return smooth_column_of<4>(line, stride, n, first, taps, store);
    case 5: return smooth_column_of<5>(line, stride, n, first, taps, store);
    default: return smooth_column_of<6>(line, stride, n, first, taps, store);
  }
}

// Smooths an array (outer, n, inner) along n (the z axis), with kColumn sums for each element.
struct SmoothColumns {
  const float* in;
  float* out;
  int outer, n, inner;
  Taps taps;

  DR_HD int columns() const { return (n - 1) / kColumn + 1; }
  DR_HD int rows() const { return outer * columns(); }
  DR_HD int width() const { return inner; }
  DR_HD void operator()(int row, int x) const {
    const int o = row / columns(), first = (row - o * columns()) * kColumn;
    const Index line = (Index)o * n * inner + x;
    float* to = out + line;
    smooth_column(in + line, inner, n, first, taps,
                  [this, to](int i, float sum) { to[(Index)i * inner] = sum; });
  }
};

// Smooths along y, then x: `planes` of y rows of x voxels of `components` numbers.
struct SmoothPlanes {
  const float* in;
  float* out;
  int planes, y, x, components;
  Taps along_y, along_x;

  DR_HD int tiles_y() const { return (y - 1) / kSmoothRows + 1; }
  DR_HD int units() const { return planes * tiles_y(); }
  DR_HD int width() const { return x * components; }
};

// Blocks along x take tiles of a row, blocks along y the rows of tiles of each plane.
__global__ void __launch_bounds__(kSmoothThreads)
    run_smooth_planes(const __grid_constant__ SmoothPlanes op) {
  __shared__ float tile[kSmoothRows][kSmoothWidth + 2 * kSmoothHalo];
  const int thread = (int)threadIdx.x, first = (int)blockIdx.x * kSmoothWidth;
  const int components = op.components, width = op.width(), radius = op.along_x.radius;
  const int halo = radius * components, count = min_int(kSmoothWidth, width - first);
  const int span = count + 2 * halo;
  // All threads of a block take the same turns, because they meet at the barriers.
  for (int unit = (int)blockIdx.y; unit < op.units(); unit += (int)gridDim.y) {
    const int plane = unit / op.tiles_y(), y0 = (unit - plane * op.tiles_y()) * kSmoothRows;
    const Index at = (Index)plane * op.y * width;
    for (int i = thread; i < kSmoothRows / kColumn * span; i += kSmoothThreads) {
      const int column = i / span, j = i - column * span, y = y0 + column * kColumn;
      if (y >= op.y) break;
      const int voxel = (first + j) / components, c = first + j - voxel * components;
      const int x = reflect(voxel - radius, op.x) * components + c;
      smooth_column(op.in + at + x, width, op.y, y, op.along_y,
                    [&](int row, float sum) { tile[row - y0][j] = sum; });
    }
    __syncthreads();
    const int rows = min_int(kSmoothRows, op.y - y0), j = thread % kSmoothWidth;
    if (j < count)
      for (int row = thread / kSmoothWidth; row < rows; row += kSmoothThreads / kSmoothWidth) {
        const float* near = &tile[row][j + halo];
        float sum = op.along_x.weight[0] * near[0];
        for (int t = 1; t <= radius; ++t)
          sum += op.along_x.weight[t] * (near[-t * components] + near[t * components]);
        op.out[at + (Index)(y0 + row) * width + first + j] = sum;
      }
    __syncthreads();  // before the tile is written again
  }
}

inline void smooth_pass(const CudaLauncher& launch, const SmoothPass& p) {
  const int widest = max_int(p.taps.z.radius, max_int(p.taps.y.radius, p.taps.x.radius));
  if (widest > kColumnRadius || p.components > 3) return smooth_pass<CudaLauncher>(launch, p);
  const SmoothPlanes planes = {.in = p.tmp,
                               .out = p.out,
                               .planes = p.batch * p.shape.z,
                               .y = p.shape.y,
                               .x = p.shape.x,
                               .components = p.components,
                               .along_y = p.taps.y,
                               .along_x = p.taps.x};
  launch(SmoothColumns{.in = p.in,
                       .out = p.tmp,
                       .outer = p.batch,
                       .n = p.shape.z,
                       .inner = p.shape.y * planes.width(),
                       .taps = p.taps.z});
  launch.run(
      run_smooth_planes,
      {dim3((planes.width() - 1) / kSmoothWidth + 1, min_int(planes.units(), kTileBlocksY), 1),
       dim3(kSmoothThreads, 1, 1)},
      planes);
}

DR_NAMESPACE_END

#endif  // DINOREG_CUDA_TILED_SMOOTH_CUH_
