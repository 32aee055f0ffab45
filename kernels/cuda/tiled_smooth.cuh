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
//
// A source that computes its arrays from the same numbers is read once: threads of one block take
// the arrays of a column, so that all but the first find the numbers in the L1 cache. A sink that
// takes several arrays together receives them from shared memory.
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
  kSmoothThreads = 256
};

// Computes sums first ... first + kColumn - 1 of a line of n numbers, of which at(i) is number i,
// and passes each to store(i, sum).
template <int radius, class At, class Store>
DR_HD void smooth_column_of(int n, int first, const Taps& taps, const At& at, const Store& store) {
  float near[kColumn + 2 * radius];
  const int begin = first - radius;
  if (begin >= 0 && begin + kColumn + 2 * radius <= n) {
    DR_UNROLL(16)
    for (int j = 0; j < kColumn + 2 * radius; ++j) near[j] = at(begin + j);
  } else {
    DR_UNROLL(16)
    for (int j = 0; j < kColumn + 2 * radius; ++j) near[j] = at(reflect(begin + j, n));
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
template <class At, class Store>
DR_HD void smooth_column(int n, int first, const Taps& taps, const At& at, const Store& store) {
  switch (taps.radius) {
    case 0: return smooth_column_of<0>(n, first, taps, at, store);
    case 1: return smooth_column_of<1>(n, first, taps, at, store);
    case 2: return smooth_column_of<2>(n, first, taps, at, store);
    case 3: return smooth_column_of<3>(n, first, taps, at, store);
    case 4: return smooth_column_of<4>(n, first, taps, at, store);
    case 5: return smooth_column_of<5>(n, first, taps, at, store);
    default: return smooth_column_of<6>(n, first, taps, at, store);
  }
}

// Smooths arrays of a source along z, across their n planes, with kColumn sums for each element.
template <class Source>
struct SmoothColumns {
  Source source;
  float* out;
  int arrays, n, plane;
  Taps taps;

  DR_HD int columns() const { return (n - 1) / kColumn + 1; }
  DR_HD int rows() const { return arrays * columns(); }
  DR_HD int width() const { return plane; }
  DR_HD void operator()(int row, int x) const {
    const int by = Source::kSameNumbers ? arrays : columns(), high = row / by,
              low = row - high * by;
    const int array = Source::kSameNumbers ? low : high;
    const int first = (Source::kSameNumbers ? high : low) * kColumn;
    float* const to = out + (Index)array * n * plane + x;
    source.with_array(array, [&](const auto& numbers) {
      smooth_column(
          n, first, taps, [&](int i) { return numbers.template at<float>((Index)i * plane + x); },
          [&](int i, float sum) { to[(Index)i * plane] = sum; });
    });
  }
};

// Smooths arrays of `planes` of y rows of x voxels of `components` numbers along y, then x, into a
// sink. Arrays that the sink does not take together are further planes of one array.
template <class Sink>
struct SmoothPlanes {
  const float* in;
  int planes, y, x, components;
  Taps along_y, along_x;
  Sink sink;

  static constexpr int kRows = Sink::kTogether == 1 ? 32 : 16;  // of a tile

  DR_HD int tiles_y() const { return (y - 1) / kRows + 1; }
  DR_HD int units() const { return planes * tiles_y(); }
  DR_HD int width() const { return x * components; }
};

// Blocks along x take tiles of a row, blocks along y the rows of tiles of each plane.
template <class Sink>
__global__ void __launch_bounds__(kSmoothThreads)
    run_smooth_planes(const __grid_constant__ SmoothPlanes<Sink> op) {
  constexpr int kRows = SmoothPlanes<Sink>::kRows, kTogether = Sink::kTogether;
  __shared__ float tile[kRows][kSmoothWidth + 2 * kSmoothHalo];
  __shared__ float sums[kTogether][kRows][kSmoothWidth];
  const int thread = (int)threadIdx.x, first = (int)blockIdx.x * kSmoothWidth;
  const int components = op.components, width = op.width(), radius = op.along_x.radius;
  const int halo = radius * components, count = min_int(kSmoothWidth, width - first);
  const int span = count + 2 * halo, own = thread % kSmoothWidth;
  // All threads of a block take the same turns, because they meet at the barriers.
  for (int unit = (int)blockIdx.y; unit < op.units(); unit += (int)gridDim.y) {
    const int plane = unit / op.tiles_y(), y0 = (unit - plane * op.tiles_y()) * kRows;
    const int rows = min_int(kRows, op.y - y0);
    for (int k = 0; k < kTogether; ++k) {
      const float* const in = op.in + ((Index)k * op.planes + plane) * op.y * width;
      for (int i = thread; i < kRows / kColumn * span; i += kSmoothThreads) {
        const int column = i / span, j = i - column * span, y = y0 + column * kColumn;
        if (y >= op.y) break;
        const int voxel = (first + j) / components, c = first + j - voxel * components;
        const float* const line = in + reflect(voxel - radius, op.x) * components + c;
        smooth_column(
            op.y, y, op.along_y, [&](int row) { return line[(Index)row * width]; },
            [&](int row, float sum) { tile[row - y0][j] = sum; });
      }
      __syncthreads();
      if (own < count)
        for (int row = thread / kSmoothWidth; row < rows; row += kSmoothThreads / kSmoothWidth) {
          const float* near = &tile[row][own + halo];
          float sum = op.along_x.weight[0] * near[0];
          for (int t = 1; t <= radius; ++t)
            sum += op.along_x.weight[t] * (near[-t * components] + near[t * components]);
          if constexpr (kTogether == 1)
            op.sink.put(plane * op.y + y0 + row, first + own, &sum);
          else
            sums[k][row][own] = sum;  // read by the same thread
        }
      __syncthreads();  // before the tile is written again
    }
    if (kTogether > 1 && own < count)
      for (int row = thread / kSmoothWidth; row < rows; row += kSmoothThreads / kSmoothWidth) {
        float values[kTogether];
        DR_UNROLL(6)
        for (int k = 0; k < kTogether; ++k) values[k] = sums[k][row][own];
        op.sink.put(plane * op.y + y0 + row, first + own, values);
      }
  }
}

// Whether the kernels above take these taps.
inline bool is_tuned(const Taps3& taps, int components) {
  return max_int(taps.z.radius, max_int(taps.y.radius, taps.x.radius)) <= kColumnRadius &&
         components <= 3;
}

template <class Source, class Sink>
void smooth_into(const CudaLauncher& launch, const Smoothing& s, const Source& source,
                 const Sink& sink) {
  if (!is_tuned(s.taps, s.components)) return smooth_with_ops(launch, s, source, sink);
  const SmoothPlanes<Sink> planes = {.in = s.tmp,
                                     .planes = s.batch / Sink::kTogether * s.shape.z,
                                     .y = s.shape.y,
                                     .x = s.shape.x,
                                     .components = s.components,
                                     .along_y = s.taps.y,
                                     .along_x = s.taps.x,
                                     .sink = sink};
  launch(SmoothColumns<Source>{source, s.tmp, s.batch, s.shape.z, s.plane(), s.taps.z});
  launch.run(
      run_smooth_planes<Sink>,
      {dim3((planes.width() - 1) / kSmoothWidth + 1, min_int(planes.units(), kTileBlocksY), 1),
       dim3(kSmoothThreads, 1, 1)},
      planes);
}

inline void smooth_pass(const CudaLauncher& launch, const SmoothPass& p) {
  if (!is_tuned(p.taps, p.components)) return smooth_pass<CudaLauncher>(launch, p);
  const Smoothing s = smoothing_of(p);
  smooth_into(launch, s, FromArrays{p.in, s.size()}, ToArrays{p.out, s.width()});
}

DR_NAMESPACE_END

#endif  // DINOREG_CUDA_TILED_SMOOTH_CUH_
