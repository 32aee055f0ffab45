// An encoder's features on the solver's grid, and where its slices show tissue.
#ifndef DINOREG_TOKEN_SAMPLING_H_
#define DINOREG_TOKEN_SAMPLING_H_

#include "dinoreg/resample.h"

DR_NAMESPACE_BEGIN

// Calls visit(p) for each point that stands for a voxel, mapped to another grid, if it lies in it.
// Returns the number of these points.
template <class Visit>
DR_HD int each_point_inside(const Int3& voxel, const Int3& samples, const Affine& map,
                            const Shape& grid, const Visit& visit) {
  int count = 0;
  DR_UNROLL(1)
  for (int sz = 0; sz < samples.z; ++sz) DR_UNROLL(1)
  for (int sy = 0; sy < samples.y; ++sy) DR_UNROLL(1)
  for (int sx = 0; sx < samples.x; ++sx) {
    const Vec3 p = map(Vec3{voxel.z + ResampleLinear::spread(sz, samples.z),
                            voxel.y + ResampleLinear::spread(sy, samples.y),
                            voxel.x + ResampleLinear::spread(sx, samples.x)});
    if (!inside_grid(grid, p)) continue;
    visit(p);
    ++count;
  }
  return count;
}

// The projected tokens of the encoded slices, less the offset of their slice. Between two encoded
// slices everything is linear.
struct EncodedTokens {
  const float* tokens;   // (encoded, rows, columns, stride)
  const float* offsets;  // (encoded, stride); may be null
  const float* places;   // (slices, 2): the encoded slice before, and the share of the next one
  int encoded, stride;
  Shape grid;  // slices, rows, columns

  // The four tokens around a point in each of its two slices.
  struct Corners {
    Neighbours slice;
    Index first;  // the upper left one, within a slice
    int down, right;
    float y, x;  // weights of the lower and of the right ones
  };

  DR_HD Corners around(const Vec3& p) const {
    const Neighbours z = neighbours(p.z, grid.z), y = neighbours(p.y, grid.y);
    const Neighbours x = neighbours(p.x, grid.x);
    return {between(places + 2 * z.low, places + 2 * z.high, z.weight),
            ((Index)y.low * grid.x + x.low) * stride,
            (y.high - y.low) * grid.x * stride,
            (x.high - x.low) * stride,
            y.weight,
            x.weight};
  }

  // Channels c to c + kBlock - 1 at a point.
  DR_HD Block sample(const Corners& at, int c) const {
    return (1.0f - at.slice.weight) * in_slice(at, at.slice.low, c) +
           at.slice.weight * in_slice(at, at.slice.high, c);
  }

 private:
  // The encoded slices around a point between two neighbouring slices, of which the later one may
  // be the next encoded slice.
  DR_HD Neighbours between(const float* low, const float* high, float weight) const {
    const int before = (int)clamp_float(low[0], 0.0f, (float)(encoded - 1));
    const float share = lerp(low[1], high[0] > low[0] ? 1.0f : high[1], weight);
    return {before, min_int(before + 1, encoded - 1), share};
  }

  DR_HD Block in_slice(const Corners& at, int slice, int c) const {
    const float* from = tokens + (Index)slice * grid.y * grid.x * stride + at.first + c;
    const float right = at.x, left = 1.0f - right;
    const Block upper = left * load_block(from) + right * load_block(from + at.right);
    from += at.down;
    const Block lower = left * load_block(from) + right * load_block(from + at.right);
    const Block sum = (1.0f - at.y) * upper + at.y * lower;
    return offsets == nullptr ? sum : sum - load_block(offsets + (Index)slice * stride + c);
  }
};

// Writes channels c to c + kBlock - 1 of a voxel that stores `channels`, as far as it has room.
DR_HD void write_block(Half* voxel, int c, int channels, const Block& values) {
  if (c % kBlock == 0) return store_block(voxel + c, values);
  DR_UNROLL(8)
  for (int i = 0; i < kBlock; ++i)
    if (c + i < channels) voxel[c + i] = float_to_half(values[i]);
}

// The channels of one set of features among those of a joined set, times a factor.
struct JoinFeatures {
  const Half* features;  // (shape, stride)
  int stride, used;
  Half* out;  // (shape, channels)
  int channels, first;
  float factor;
  Shape shape;

  DR_OVER(shape)
  DR_HD void operator()(int row, int x) const {
    const Index i = (Index)row * shape.x + x;
    Half* to = out + i * channels;
    for (int c = 0; c < used && first + c < channels; c += kBlock) {
      const Block values = load_block(features + i * stride + c);
      Block kept = zero_block();
      float* lanes = reinterpret_cast<float*>(&kept);
      DR_UNROLL(8)
      for (int k = 0; k < kBlock; ++k) lanes[k] = c + k < used ? factor * values[k] : 0.0f;
      write_block(to, first + c, channels, kept);
    }
  }
};

// Tokens interpolated linearly onto another grid, times a factor, in half precision. Every voxel is
// the mean of the points that stand for it and lie in the tokens' grid; 0 where there are none.
struct SampleTokens {
  // Blocks of channels for which a point is mapped once. Their sums and the tokens around a point
  // take 106 to 128 registers, which is 25 % of the warps on sm_90. This is accepted because the op
  // runs once for each image and set of features.
  enum { kAtOnce = 2 };
  EncodedTokens in;
  Affine map;
  Int3 samples;
  float factor;
  Half* out;            // (out_shape, channels)
  int channels, first;  // stored for each voxel; the first one that is written
  Shape out_shape;

  DR_OVER(out_shape)
  DR_HD void operator()(int row, int x) const {
    Half* to = out + ((Index)row * out_shape.x + x) * channels;
    for (int c = 0; c < in.stride && first + c < channels; c += kAtOnce * (int)kBlock) {
      Block sum[kAtOnce];
      DR_UNROLL(2)
      for (int b = 0; b < kAtOnce; ++b) sum[b] = zero_block();
      const int count =
          each_point_inside(out_shape.voxel(row, x), samples, map, in.grid, [&](const Vec3& p) {
            const EncodedTokens::Corners at = in.around(p);
            DR_UNROLL(2)
            for (int b = 0; b < kAtOnce; ++b)
              if (c + b * kBlock < in.stride) sum[b] = sum[b] + in.sample(at, c + b * kBlock);
          });
      const float share = count > 0 ? factor / (float)count : 0.0f;
      DR_UNROLL(2)
      for (int b = 0; b < kAtOnce; ++b)
        if (c + b * kBlock < in.stride && first + c + b * kBlock < channels)
          write_block(to, first + c + b * kBlock, channels, share * sum[b]);
    }
  }
};

// 1 for each voxel of another grid that meets the image where it is brighter than `above`, within
// a box of its voxels; otherwise 0. It does so if linear interpolation there reads such a voxel.
struct TissueCover {
  const float* image;
  Shape shape;
  float above;
  Int3 first, last;  // first and last voxel of the box along each axis
  Affine map;
  Int3 samples;
  float* out;
  Shape out_shape;

  DR_OVER(out_shape)
  DR_HD void operator()(int row, int x) const {
    bool found = false;
    each_point_inside(out_shape.voxel(row, x), samples, map, shape,
                      [&](const Vec3& p) { found = found || meets(p); });
    out[(Index)row * out_shape.x + x] = found ? 1.0f : 0.0f;
  }

 private:
  DR_HD bool meets(const Vec3& p) const {
    const Neighbours nz = neighbours(p.z, shape.z), ny = neighbours(p.y, shape.y);
    const Neighbours nx = neighbours(p.x, shape.x);
    bool found = false;
    DR_UNROLL(8)
    for (int k = 0; k < 8; ++k) {
      const int z = pick(nz, k & 4), y = pick(ny, k & 2), x = pick(nx, k & 1);
      const bool counts = z >= first.z && z <= last.z && y >= first.y && y <= last.y &&
                          x >= first.x && x <= last.x;  // so none is -1
      if (counts) found = found || image[shape.at(z, y, x)] > above;
    }
    return found;
  }
  // The later or the earlier neighbour, or -1 if its weight is 0.
  static DR_HD int pick(const Neighbours& n, bool later) {
    if (later) return n.weight > 0.0f ? n.high : -1;
    return n.weight < 1.0f ? n.low : -1;
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_TOKEN_SAMPLING_H_
