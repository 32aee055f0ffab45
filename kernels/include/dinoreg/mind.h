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
constexpr float kLog2OfE = 1.44269504f;
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

// How far from p channel 2k + 1 reads image k, in units of the dilation: at p - mirror.
DR_HD Int3 mind_mirror(int k) {
  const MindPair pair = mind_pair(k);
  return {pair.first[0] + pair.second[0], pair.first[1] + pair.second[1],
          pair.first[2] + pair.second[2]};
}

struct MindParameters {
  Int3 radius, dilation;  // voxels

  DR_HD float patch_scale() const { return 1.0f / (float)(2 * radius + Int3{1, 1, 1}).voxels(); }
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

// The descriptors of neighbours along x from their patch sums, in place. `scale` is one over the
// number of voxels in the patch, `floor_value` the smallest v.
template <class V>
DR_HD void mind_descriptor(V (&s)[kMindChannels], float floor_value, float scale) {
  V lowest = splat<V>(3.4e38f), total = V{};
  DR_UNROLL(6)
  for (int k = 0; k < kMindImages; ++k) {
    lowest = min_of(s[2 * k], min_of(s[2 * k + 1], lowest));  // passes over NaN
    total += s[2 * k] + s[2 * k + 1];
  }
  const V mean = (total * (1.0f / (float)kMindChannels) - lowest) * scale;
  const V factor = (scale * kLog2OfE) / max_of(mean, splat<V>(floor_value));
  DR_UNROLL(12)
  for (int c = 0; c < kMindChannels; ++c) s[c] = exp2_negative((s[c] - lowest) * factor);
}

// The blocks of voxels over which descriptors are averaged. The last block along an axis may hold
// fewer voxels.
struct MindBlocks {
  Shape shape;  // of the volume
  Int3 pool;  // voxels per block
  float scale;  // factor on the features
  Half* out;  // (out_shape, stride)
  int stride;
  float* structure;  // (out_shape): 0 where the block is flat, else 1; may be null
  Shape out_shape;

  DR_HD int planes(int block) const { return min_int(pool.z, shape.z - block * pool.z); }
  DR_HD int rows(int block) const { return min_int(pool.y, shape.y - block * pool.y); }
  DR_HD int columns(int block) const { return min_int(pool.x, shape.x - block * pool.x); }
  // Where all patches are alike, every feature is 1 and equals any other flat place in any image.
  DR_HD float flat() const { return kFlatMean * (float)kMindChannels * scale; }
};

// Averaged descriptors from patch sums. Each block adds up its voxels along z, then y, then x.
// On sm_90 it takes 77 registers, which is 38 % of the warps: 36 hold the sums of a voxel, a column
// and a block. With 64, for 50 %, ptxas 13.0 would spill 24 bytes. The twelve loads of a voxel do
// not wait for one another.
struct MindFeatures {
  const float* sums;  // (planes + dilation.z, 6, y + 2 dilation.y, x + 2 dilation.x)
  MindParameters mind;
  const float* floor_value;  // one float: the smallest v
  float patch_scale;  // one over the number of voxels in the patch
  MindBlocks blocks;
  int first, count;  // the slab's blocks along z

  DR_HD int rows() const { return count * blocks.out_shape.y; }
  DR_HD int width() const { return blocks.out_shape.x; }

  DR_HD void operator()(int row, int x) const {
    const int bz = row / blocks.out_shape.y, y = row - bz * blocks.out_shape.y;
    const int nz = blocks.planes(first + bz), ny = blocks.rows(y), nx = blocks.columns(x);
    float total[kMindChannels] = {};
    for (int ix = 0; ix < nx; ++ix) {
      float column[kMindChannels] = {};
      for (int iz = 0; iz < nz; ++iz)
        for (int iy = 0; iy < ny; ++iy) {
          float s[kMindChannels];
          read(bz * blocks.pool.z + iz, y * blocks.pool.y + iy, x * blocks.pool.x + ix, s);
          mind_descriptor(s, *floor_value, patch_scale);
          DR_UNROLL(12)
          for (int c = 0; c < kMindChannels; ++c) column[c] += s[c];
        }
      DR_UNROLL(12)
      for (int c = 0; c < kMindChannels; ++c) total[c] += column[c];
    }
    write(blocks.out_shape.at(first + bz, y, x), total, blocks.scale / (float)(nz * ny * nx));
  }

  // The patch sums of a voxel, whose plane is counted from the slab's first.
  DR_HD void read(int z, int y, int x, float (&s)[kMindChannels]) const {
    const Int3& d = mind.dilation;
    const Index px = blocks.shape.x + 2 * d.x, plane = (blocks.shape.y + 2 * d.y) * px;
    const float* at = sums + (Index)(z + d.z) * kMindImages * plane + (y + d.y) * px + (x + d.x);
    DR_UNROLL(6)
    for (int k = 0; k < kMindImages; ++k, at += plane) {
      const Int3 mirror = mind_mirror(k) * d;
      s[2 * k] = *at;
      s[2 * k + 1] = *(at - (mirror.z * kMindImages * plane + mirror.y * px + mirror.x));
    }
  }

  DR_HD void write(Index i, const float (&total)[kMindChannels], float weight) const {
    float sum = 0.0f;
    for (int c = 0; c < blocks.stride; c += kBlock) {
      Block block = zero_block();
      float* lanes = reinterpret_cast<float*>(&block);
      DR_UNROLL(8)
      for (int j = 0; j < kBlock; ++j)
        if (c + j < kMindChannels) sum += lanes[j] = total[c + j] * weight;
      store_block(blocks.out + i * blocks.stride + c, block);
    }
    if (blocks.structure != nullptr) blocks.structure[i] = sum < blocks.flat() ? 1.0f : 0.0f;
  }
};

// The mean squared difference of the six image pairs along each row, from which the floor of v is
// taken. Every fourth voxel will do: the floor only needs the order of magnitude.
struct MindNoise {
  const float* image;
  Shape shape;
  MindParameters mind;
  float* out;  // (rows,)

  enum { kStep = 4, kChains = 4 };  // sums that do not wait for each other
  DR_HD int rows() const { return 1; }
  DR_HD int width() const { return shape.rows(); }

  struct Lines {
    const float *first[kMindImages], *second[kMindImages];
  };
  DR_HD Lines lines(int row) const {
    const int z = row / shape.y, y = row - z * shape.y;
    const MindDistanceX distance = {.image = image, .shape = shape, .mind = mind};
    Lines l;
    for (int k = 0; k < kMindImages; ++k) {
      l.first[k] = distance.line(z, y, mind_pair(k).first);
      l.second[k] = distance.line(z, y, mind_pair(k).second);
    }
    return l;
  }

  DR_HD void operator()(int, int row) const {
    const Lines l = lines(row);
    float sums[kChains] = {};
    for (int x = 0; x < shape.x; x += kStep * kChains) add(l, x, sums);
    out[row] = mean(sums);
  }

  // Adds the voxels x, x + kStep and so on, one to each sum.
  DR_HD void add(const Lines& l, int x, float (&sums)[kChains]) const {
    DR_UNROLL(6)
    for (int k = 0; k < kMindImages; ++k) {
      const MindPair pair = mind_pair(k);
      DR_UNROLL(4)
      for (int i = 0; i < kChains; ++i) {
        const int at = x + i * kStep, last = shape.x - 1;
        if (at > last) break;
        const float d = l.first[k][clamp_int(at + pair.first[2] * mind.dilation.x, 0, last)] -
                        l.second[k][clamp_int(at + pair.second[2] * mind.dilation.x, 0, last)];
        sums[i] += d * d;
      }
    }
  }

  DR_HD float mean(const float (&sums)[kChains]) const {
    const float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    return sum / (float)(kMindImages * ((shape.x + kStep - 1) / kStep));
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
