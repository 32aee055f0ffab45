// The tiles in which a CPU computes MIND-SSC, and the loops over their rows.
#ifndef DINOREG_CPU_MIND_TILE_H_
#define DINOREG_CPU_MIND_TILE_H_

#include "cpu_smooth.h"
#include "mind_pass.h"

DR_NAMESPACE_BEGIN

// The sizes of a tile and of what is kept of it, the same for every instruction set. Rows are whole
// vectors long. What lies beyond the columns wanted continues the border, so that loops over a row
// need no border case.
struct MindTile {
  enum { kVector = 16, kColumns = 128, kRows = 32, kCacheFloats = 176 << 10, kWorkers = 64 };
  Int3 radius, dilation;
  int rows, columns;  // output voxels of a tile, whole blocks
  int pitch;  // of the rows of sums
  int line;  // of the rows of the image
  int tiles_y, tiles_x;
  int most_parts;  // of the planes
  size_t needed;  // by a worker, in floats

  MindTile(const Shape& shape, const MindParameters& mind, const Int3& pool)
      : radius(mind.radius), dilation(mind.dilation) {
    const Shape blocks = divide_up(shape, pool);
    columns = divide_up(blocks.x, divide_up(shape.x, kColumns)) * pool.x;
    pitch = whole(columns + 2 * dilation.x);
    line = pitch + max_int(whole(2 * radius.x), kVector) + 2 * dilation.x;
    rows = min_int(max_int(kRows / pool.y, 1), blocks.y) * pool.y;
    while (rows > pool.y && floats(pool.z) > kCacheFloats) rows -= pool.y;
    tiles_y = divide_up(blocks.y * pool.y, rows);
    tiles_x = divide_up(blocks.x * pool.x, columns);
    // Every part computes some planes of sums again that belong to the one before it.
    most_parts = max_int(1, shape.z / (4 * (dilation.z + 2 * radius.z)));
    needed = floats(pool.z);
  }

  int tiles() const { return tiles_y * tiles_x; }
  // More workers share the memory of these.
  int workers() const { return min_int(kWorkers, tiles() * min_int(most_parts, kWorkers)); }

  static int whole(int n) { return divide_up(n, kVector) * kVector; }

  int image_rows() const { return rows + 4 * dilation.y + 2 * radius.y; }
  int image_planes() const { return 2 * dilation.z + 1; }
  int sum_rows() const { return rows + 2 * dilation.y; }
  int box_planes() const { return 2 * radius.z + 2; }
  int sum_planes(int pool_z) const { return dilation.z + pool_z; }

  size_t image_floats() const { return (size_t)image_planes() * image_rows() * line; }
  size_t row_floats() const { return (size_t)(sum_rows() + 2 * radius.y) * pitch; }
  size_t plane_floats() const { return (size_t)kMindImages * sum_rows() * pitch; }
  // Of one worker. The descriptors of a row read beyond the sums, by less than two vectors and the
  // dilation.
  size_t floats(int pool_z) const {
    return image_floats() + row_floats() +
           plane_floats() * (size_t)(box_planes() + sum_planes(pool_z)) + 2 * kVector +
           2 * dilation.x + (size_t)kMindChannels * 2 * pitch;
  }
};

// Copies elements [first, first + count) of a line of n; beyond its ends, the line keeps the values
// there.
inline void padded_line(const float* line, int n, int first, int count, float* out) {
  const int from = clamp_int(-first, 0, count), to = clamp_int(n - first, from, count);
  for (int i = 0; i < from; ++i) out[i] = line[0];
  if (to > from) memcpy(out + from, line + first + from, sizeof(float) * (to - from));
  for (int i = to; i < count; ++i) out[i] = line[n - 1];
}

// The sum of 2 radius + 1 lines of `width` numbers from lines[0] on. Unless `next` is null, it
// receives the sum from lines[1] on, for which most lines need not be read again.
inline void box_sums(const float* const* lines, int radius, Index width, float* out, float* next) {
  with_radius(radius, [&](auto r) {
    for (Index x = 0; x < width; x += kLanes) {
      Lanes a = load<Lanes>(lines[0] + x), b = Lanes{};
      for (int t = 1; t <= 2 * r; ++t) {
        const Lanes v = load<Lanes>(lines[t] + x);
        a += v;
        b += v;
      }
      store(out + x, a);
      if (next != nullptr) store(next + x, b + load<Lanes>(lines[2 * r + 1] + x));
    }
  });
}

// Elements t to t + kLanes - 1 of two vectors, t < kLanes. Reading them from memory instead would
// cross the border between two lines of the cache almost every time.
DR_HD Lanes neighbours_of(const Lanes& a, const Lanes& b, int t) {
  IntLanes from;
  for (int i = 0; i < kLanes; ++i) from[i] = i + t;
  return __builtin_shuffle(a, b, from);
}

DR_NAMESPACE_END

#endif  // DINOREG_CPU_MIND_TILE_H_
