// MIND-SSC: self-similarity of patches around a voxel, in twelve channels, for any modality.
//
// Each voxel has six neighbours at +-dilation along the axes, and each channel compares two of them
// that do not lie opposite each other:
//   s_c = mean over the patch of (I(p + n_i) - I(p + n_j))^2
//   feature_c = exp(-(s_c - min s) / v),  v = max(mean_c (s_c - min s), floor)
// Source: Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using
// self-similarities", MICCAI 2013.
//
// A pair and its mirror image compare voxels with the same difference vector. The twelve patch
// distances are therefore six distance images read at two places each, which halves the box sums.
#ifndef DINOREG_MIND_H_
#define DINOREG_MIND_H_

#include "dinoreg/op.h"

DR_NAMESPACE_BEGIN

enum { kMindImages = 6, kMindChannels = 12 };
constexpr float kFlatMean = 0.999f;  // a voxel whose mean feature reaches this counts as flat

// Image k compares I(p + first) with I(p + second); channel 2k reads it at p, channel 2k + 1 at
// p - first - second. Offsets are (z, y, x) in units of the dilation.
struct MindPair {
  signed char first[3], second[3];
};

DR_HD MindPair mind_pair(int k) {
  // The axis pairs (z,y), (z,x) and (y,x), each with equal and with opposite signs.
  const bool from_z = k / 2 < 2, to_y = k / 2 == 0;
  const signed char sign = k % 2 == 0 ? 1 : -1, none = 0;
  return {{from_z, !from_z, none}, {none, to_y ? sign : none, to_y ? none : sign}};
}

struct MindParameters {
  Int3 radius, dilation;  // voxels
};

// (I(p + first) - I(p + second))^2 summed over the patch's x extent, for the planes
// [first_plane, first_plane + planes), which may lie beyond the volume. out: (planes, 6, y, x_out).
// Rows have a margin of dilation.x on both sides so that later reads need no border case.
struct MindDistanceX {
  const float* image;
  Shape shape;
  MindParameters mind;
  int first_plane = 0, planes = 1;
  float* out = nullptr;

  enum { kRepeatable = 1 };
  DR_HD int padded_x() const { return shape.x + 2 * mind.dilation.x; }
  DR_HD int padded_y() const { return shape.y + 2 * mind.dilation.y + 2 * mind.radius.y; }
  DR_HD int rows() const { return planes * kMindImages * padded_y(); }
  DR_HD int width() const { return padded_x(); }
  DR_HD int margin() const { return 2 * mind.dilation.x + mind.radius.x; }

  struct Lines {
    const float *first, *second;
    int first_x, second_x;
  };

  DR_HD Lines lines(int row) const {
    const int plane = row / padded_y();
    return lines(plane / kMindImages, mind_pair(plane % kMindImages), row % padded_y());
  }

  // Row y of a pair's image in plane z, both counted from the first of `out`.
  DR_HD Lines lines(int z, const MindPair& pair, int y) const {
    z += first_plane;
    y -= mind.dilation.y + mind.radius.y;
    return {line(z, y, pair.first), line(z, y, pair.second), pair.first[2] * mind.dilation.x,
            pair.second[2] * mind.dilation.x};
  }

  DR_HD const float* line(int z, int y, const signed char* offset) const {
    return image + shape.at(clamp_int(z + offset[0] * mind.dilation.z, 0, shape.z - 1),
                            clamp_int(y + offset[1] * mind.dilation.y, 0, shape.y - 1), 0);
  }

  DR_HD void operator()(int row, int x) const {
    out[(Index)row * width() + x] = border_sum(lines(row), x);
  }

  template <class V>
  DR_HD void lanes(int row, int x) const {
    store(out + (Index)row * width() + x, sum<V>(lines(row), x));
  }

  DR_HD float border_sum(const Lines& l, int x) const {
    const int at = x - mind.dilation.x, last = shape.x - 1;
    float sum = 0.0f;
    for (int t = -mind.radius.x; t <= mind.radius.x; ++t) {
      const float d = l.first[clamp_int(at + t + l.first_x, 0, last)] -
                      l.second[clamp_int(at + t + l.second_x, 0, last)];
      sum += d * d;
    }
    return sum;
  }

  // The same between the margins.
  template <class V>
  DR_HD V sum(const Lines& l, int x) const {
    const float* a = l.first + (x - mind.dilation.x + l.first_x);
    const float* b = l.second + (x - mind.dilation.x + l.second_x);
    V sum = V{};
    for (int t = -mind.radius.x; t <= mind.radius.x; ++t) {
      const V d = load<V>(a + t) - load<V>(b + t);
      sum += d * d;
    }
    return sum;
  }
};

// Box sums along n: (outer, n, lines, x) -> (outer, n - 2 radius, lines, x).
struct MindBox {
  const float* in;
  float* out;
  int outer, n, lines, x, radius;

  DR_HD int sums() const { return n - 2 * radius; }
  DR_HD int rows() const { return outer * sums() * lines; }
  DR_HD int width() const { return x; }
  DR_LANES(true)

  template <class V>
  DR_HD void lanes(int row, int i) const {
    const int o = row / (sums() * lines);
    const float* at = in + (row + (Index)o * 2 * radius * lines) * x + i;
    const Index step = (Index)lines * x;
    V sum = V{};
    for (int t = 0; t <= 2 * radius; ++t) sum += load<V>(at + t * step);
    store(out + (Index)row * x + i, sum);
  }
};

// Descriptors from box sums, (planes of the slab, 12, y, x) float.
struct MindDescriptor {
  const float* sums;  // (planes + 2 dilation.z, 6, y + 2 dilation.y, x + 2 dilation.x)
  float* out;
  int planes;
  Shape shape;
  MindParameters mind;
  const float* floor_value;  // one float: the smallest v
  float scale;  // one over the number of voxels in the patch

  DR_HD int rows() const { return planes * shape.y; }
  DR_HD int width() const { return shape.x; }
  DR_LANES(true)

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const int z = row / shape.y, y = row - z * shape.y;
    const int dz = mind.dilation.z, dy = mind.dilation.y, dx = mind.dilation.x;
    const int py = shape.y + 2 * dy, px = shape.x + 2 * dx;
    V s[kMindChannels];
    V lowest = splat<V>(3.4e38f), total = V{};
    DR_UNROLL(6)
    for (int k = 0; k < kMindImages; ++k) {
      const MindPair pair = mind_pair(k);
      const float* at =
          sums + (((Index)(z + dz) * kMindImages + k) * py + (y + dy)) * px + (x + dx);
      const Index mirror = (((Index)(pair.first[0] + pair.second[0]) * dz * kMindImages) * py +
                            (Index)(pair.first[1] + pair.second[1]) * dy) *
                               px +
                           (Index)(pair.first[2] + pair.second[2]) * dx;
      s[2 * k] = load<V>(at);
      s[2 * k + 1] = load<V>(at - mirror);
      lowest = min_of(lowest, min_of(s[2 * k], s[2 * k + 1]));
      total += s[2 * k] + s[2 * k + 1];
    }
    const V mean = (total * (1.0f / (float)kMindChannels) - lowest) * scale;
    const V factor = scale / max_of(mean, splat<V>(*floor_value));
    float* to = out + ((Index)z * kMindChannels * shape.y + y) * shape.x + x;
    DR_UNROLL(12)
    for (int c = 0; c < kMindChannels; ++c)
      store(to + (Index)c * shape.y * shape.x, exp_negative((s[c] - lowest) * factor));
  }
};

// Sums over the z and y extents of blocks of voxels: (planes, 12, y, x) -> (blocks, 12, Y, x). The
// last block may hold fewer voxels.
struct MindPoolZY {
  const float* in;
  float* out;
  int planes, y, x;
  int blocks_y;
  Int3 pool;  // voxels per block

  DR_HD int rows() const { return divide_up(planes, pool.z) * kMindChannels * blocks_y; }
  DR_HD int width() const { return x; }
  DR_LANES(true)

  template <class V>
  DR_HD void lanes(int row, int i) const {
    const int by = row % blocks_y, c = row / blocks_y % kMindChannels;
    const int z0 = row / blocks_y / kMindChannels * pool.z, z1 = min_int(z0 + pool.z, planes);
    const int y0 = by * pool.y, y1 = min_int(y0 + pool.y, y);
    V sum = V{};
    for (int iz = z0; iz < z1; ++iz)
      for (int iy = y0; iy < y1; ++iy)
        sum += load<V>(in + (((Index)iz * kMindChannels + c) * y + iy) * x + i);
    store(out + (Index)row * x + i, sum);
  }
};

// Completes the mean over blocks along x, converts it to half precision and puts channels last.
// in: (blocks, 12, Y, x) from `MindPoolZY`; out: (Z, Y, X, stride) from plane `first_block` on.
struct MindPool {
  const float* in;
  Shape shape;  // of the volume
  int planes;  // that the blocks were made of
  int first_block, blocks;
  Int3 pool;  // voxels per block
  float scale;
  Half* out;
  int stride;
  float* structure;  // (Z, Y, X): 0 where the block is flat, else 1; may be null
  Shape out_shape;

  DR_HD int rows() const { return blocks * out_shape.y; }
  DR_HD int width() const { return out_shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int block = row / out_shape.y, y = row - block * out_shape.y;
    const int nz = min_int(pool.z, planes - block * pool.z);
    const int ny = min_int(pool.y, shape.y - y * pool.y);
    const int x0 = x * pool.x, nx = min_int(pool.x, shape.x - x0);
    const float weight = scale / (float)(nz * ny * nx);
    const Index i = out_shape.at(first_block + block, y, x);
    const float* line = in + ((Index)block * kMindChannels * out_shape.y + y) * shape.x + x0;
    Half* to = out + i * stride;
    float total = 0.0f;
    for (int c = 0; c < kMindChannels; ++c, line += (Index)out_shape.y * shape.x) {
      float sum = 0.0f;
      for (int k = 0; k < nx; ++k) sum += line[k];
      to[c] = float_to_half(sum * weight);
      total += sum * weight;
    }
    // Where all patches are alike, every feature is 1 and equals any other flat place in any image.
    if (structure != nullptr)
      structure[i] = total < kFlatMean * (float)kMindChannels * scale ? 1.0f : 0.0f;
    for (int c = kMindChannels; c < stride; ++c) to[c] = 0;
  }
};

// The mean squared difference of the six image pairs along each row, from which the floor of v is
// taken.
struct MindNoise {
  const float* image;
  Shape shape;
  MindParameters mind;
  float* out;  // (rows,)

  DR_HD int rows() const { return 1; }
  DR_HD int width() const { return shape.rows(); }

  DR_HD void operator()(int, int row) const {
    const int z = row / shape.y, y = row - z * shape.y;
    const MindDistanceX distance = {.image = image, .shape = shape, .mind = mind};
    const int dx = mind.dilation.x;
    float sum = 0.0f;
    for (int k = 0; k < kMindImages; ++k) {
      const MindPair pair = mind_pair(k);
      const float* a = distance.line(z, y, pair.first);
      const float* b = distance.line(z, y, pair.second);
      // Every fourth voxel will do: the floor only needs the order of magnitude.
      for (int x = 0; x < shape.x; x += 4) {
        const float d = a[clamp_int(x + pair.first[2] * dx, 0, shape.x - 1)] -
                        b[clamp_int(x + pair.second[2] * dx, 0, shape.x - 1)];
        sum += d * d;
      }
    }
    out[row] = sum / (float)(kMindImages * ((shape.x + 3) / 4));
  }
};

// The patch distance below which a patch is flat: the sum of `count` numbers times `factor`.
struct MindFloor {
  const double* in;
  int count;
  double factor;
  float* out;

  DR_OVER_ONE
  DR_HD void operator()(int, int) const {
    double sum = 0.0;
    for (int i = 0; i < count; ++i) sum += in[i];
    *out = max_of((float)(sum * factor), 1e-12f);
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_MIND_H_
