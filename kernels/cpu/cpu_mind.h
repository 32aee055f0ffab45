// MIND-SSC in one sweep, tuned for the caches of a CPU; it gives the same results as
// src/mind_pass.h.
//
// The volume is cut into tiles of some rows and columns. A worker goes through the planes of a tile
// and keeps only what later planes need: a few planes of the image, of the sums along x and y, and
// of the sums over the whole patch. Together they fit into the second-level cache, so that memory
// is only read for the image and written for the features.
#ifndef DINOREG_CPU_CPU_MIND_H_
#define DINOREG_CPU_CPU_MIND_H_

#include "mind_tile.h"

DR_NAMESPACE_BEGIN

// One worker's sweep through the planes of a tile.
class MindSweep {
 public:
  MindSweep(const MindPass& pass, const MindTile& tile, float* memory)
      : p_(pass), t_(tile), shape_(pass.blocks.shape), pool_(pass.blocks.pool) {
    const auto take = [&](size_t floats) {
      float* piece = memory;
      memory += floats;
      return piece;
    };
    image_ = take(t_.image_floats());
    rows_ = take(t_.row_floats());
    boxes_ = take(t_.plane_floats() * t_.box_planes());
    sums_ = take(t_.plane_floats() * t_.sum_planes(pool_.z) + 2 * MindTile::kVector +
                 2 * t_.dilation.x);
    columns_ = take((size_t)kMindChannels * t_.pitch);
    pooled_ = take((size_t)kMindChannels * t_.pitch);
  }

  // The blocks [first, last) along z of a tile.
  void run(int tile_y, int tile_x, int first, int last) {
    y0_ = tile_y * t_.rows;
    x0_ = tile_x * t_.columns;
    height_ = min_int(t_.rows, shape_.y - y0_);
    width_ = min_int(t_.columns, shape_.x - x0_);
    next_sum_ = first * pool_.z - t_.dilation.z;
    next_box_ = next_sum_ - t_.radius.z;
    next_image_ = origin_ = next_box_ - t_.dilation.z;
    for (int block = first; block < last; ++block) {
      add_sums(block * pool_.z + p_.blocks.planes(block));
      for (int y = 0; y < height_; y += pool_.y) write_row(block, y);
    }
  }

 private:
  // The rows of image k whose sums are read, counted from the tile's first.
  struct Range {
    int from, to;
  };
  Range rows_of(int k) const {
    const int mirror = mind_mirror(k).y;
    return {mirror > 0 ? -t_.dilation.y : 0, height_ + (mirror < 0 ? t_.dilation.y : 0)};
  }

  // What is kept of plane z replaces a plane that is no longer needed.
  float* kept(float* planes, int count, size_t floats, int z) const {
    return planes + (size_t)((z - origin_) % count) * floats;
  }
  float* image_line(int z, int y) const {
    return kept(image_, t_.image_planes(), (size_t)t_.image_rows() * t_.line, z) +
           (size_t)(y + 2 * t_.dilation.y + t_.radius.y) * t_.line;
  }
  float* row_of(float* plane, int k, int y) const {
    return plane + (size_t)(k * t_.sum_rows() + y + t_.dilation.y) * t_.pitch;
  }
  float* box(int z, int k, int y) const {
    return row_of(kept(boxes_, t_.box_planes(), t_.plane_floats(), z), k, y);
  }
  float* sum(int z, int k, int y) const {
    return row_of(kept(sums_, t_.sum_planes(pool_.z), t_.plane_floats(), z), k, y);
  }

  void add_image(int z) {
    const int margin = 2 * t_.dilation.y + t_.radius.y;
    const int first = x0_ - 2 * t_.dilation.x - t_.radius.x;
    const float* plane = p_.image + shape_.at(clamp_int(z, 0, shape_.z - 1), 0, 0);
    for (int y = -margin; y < height_ + margin; ++y)
      padded_line(plane + (Index)clamp_int(y0_ + y, 0, shape_.y - 1) * shape_.x, shape_.x, first,
                  t_.line, image_line(z, y));
  }

  // One row of squared differences of image k, summed along x.
  void sum_along_x(int z, const MindPair& pair, int y, float* out) {
    const Int3& d = t_.dilation;
    const float* a =
        image_line(z + pair.first[0] * d.z, y + pair.first[1] * d.y) + (1 + pair.first[2]) * d.x;
    const float* b =
        image_line(z + pair.second[0] * d.z, y + pair.second[1] * d.y) + (1 + pair.second[2]) * d.x;
    const int width = t_.pitch;
    with_radius(t_.radius.x, [&](auto r) {
      Lanes next = load<Lanes>(a) - load<Lanes>(b);
      for (int x = 0; x < width; x += kLanes) {
        const Lanes here = next;
        next = load<Lanes>(a + x + kLanes) - load<Lanes>(b + x + kLanes);
        Lanes sum = here * here;
        for (int t = 1; t <= 2 * r; ++t) {
          const Lanes v = t < kLanes ? neighbours_of(here, next, t)
                                     : load<Lanes>(a + x + t) - load<Lanes>(b + x + t);
          sum = multiply_add(v, v, sum);
        }
        store(out + x, sum);
      }
    });
  }

  // The sums of a plane along x and y.
  void add_box(int z) {
    const float* lines[kMostLines];
    const int radius = t_.radius.y;
    for (int k = 0; k < kMindImages; ++k) {
      const Range range = rows_of(k);
      const MindPair pair = mind_pair(k);
      const int count = range.to - range.from;
      for (int i = 0; i < count + 2 * radius; ++i)
        sum_along_x(z, pair, range.from + i - radius, rows_ + (Index)i * t_.pitch);
      for (int i = 0; i < count; i += 2) {
        for (int t = 0; t < 2 * radius + 2; ++t) lines[t] = rows_ + (Index)(i + t) * t_.pitch;
        float* const out = box(z, k, range.from + i);
        box_sums(lines, radius, t_.pitch, out, i + 1 < count ? out + t_.pitch : nullptr);
      }
    }
  }

  // The sums over the patch up to plane `end`, two planes at a time.
  void add_sums(int end) {
    const float* lines[kMostLines];
    const int radius = t_.radius.z;
    for (; next_sum_ < end; next_sum_ += 2) {
      const int last = min_int(next_sum_ + 1, end - 1);
      for (; next_box_ <= last + radius; ++next_box_) {
        for (; next_image_ <= next_box_ + t_.dilation.z; ++next_image_) add_image(next_image_);
        add_box(next_box_);
      }
      for (int k = 0; k < kMindImages; ++k) {
        const Range range = rows_of(k);
        for (int t = 0; t < 2 * radius + 2; ++t)
          lines[t] = box(next_sum_ - radius + t, k, range.from);
        box_sums(lines, radius, (Index)(range.to - range.from) * t_.pitch,
                 sum(next_sum_, k, range.from),
                 last > next_sum_ ? sum(last, k, range.from) : nullptr);
      }
    }
    next_sum_ = end;
  }

  // The blocks of a row, whose first voxels lie in row y of the tile.
  void write_row(int block, int y) {
    const int nz = p_.blocks.planes(block), ny = p_.blocks.rows((y0_ + y) / pool_.y);
    const float* lines[kMostPool][kMindChannels];
    for (int iz = 0; iz < nz; ++iz)
      for (int k = 0; k < kMindImages; ++k) {
        const int z = block * pool_.z + iz;
        const Int3 mirror = mind_mirror(k) * t_.dilation;
        lines[iz][2 * k] = sum(z, k, y) + t_.dilation.x;
        lines[iz][2 * k + 1] = sum(z - mirror.z, k, y - mirror.y) + t_.dilation.x - mirror.x;
      }
    const float floor_value = *p_.floor_value, scale = p_.mind.patch_scale();
    for (int x = 0; x < width_; x += kLanes) {
      Lanes total[kMindChannels] = {};
      for (int iz = 0; iz < nz; ++iz)
        for (int iy = 0; iy < ny; ++iy) {
          Lanes s[kMindChannels];
          DR_UNROLL(12)
          for (int c = 0; c < kMindChannels; ++c)
            s[c] = load<Lanes>(lines[iz][c] + (Index)iy * t_.pitch + x);
          mind_descriptor(s, floor_value, scale);
          DR_UNROLL(12)
          for (int c = 0; c < kMindChannels; ++c) total[c] += s[c];
        }
      DR_UNROLL(12)
      for (int c = 0; c < kMindChannels; ++c) store(columns_ + (Index)c * t_.pitch + x, total[c]);
    }
    const Index first = p_.blocks.out_shape.at(block, (y0_ + y) / pool_.y, x0_ / pool_.x);
    write_blocks(first, nz * ny);
  }

  // Sums over the x extents of `count` blocks, of which all but the last may be complete.
  void pool_columns(int count) {
    const int complete = width_ / pool_.x;
    for (int c = 0; c < kMindChannels; ++c) {
      const float* in = columns_ + (Index)c * t_.pitch;
      float* out = pooled_ + (Index)c * t_.pitch;
      int i = 0;
      if (pool_.x == 2) {
        for (; i < complete; i += kLanes) {
          const Lanes a = load<Lanes>(in + 2 * i), b = load<Lanes>(in + 2 * i + kLanes);
          store(out + i, every_second(a, b, 0) + every_second(a, b, 1));
        }
        i = complete;
      }
      for (; i < count; ++i) {
        float sum = 0.0f;
        for (int x = i * pool_.x; x < min_int((i + 1) * pool_.x, width_); ++x) sum += in[x];
        out[i] = sum;
      }
    }
  }

  // Means over blocks, eight at a time, with the channels last. Each column of a block has
  // `voxels`.
  void write_blocks(Index first, int voxels) {
    const int count = divide_up(width_, pool_.x), stride = p_.blocks.stride;
    pool_columns(count);
    for (int i = 0; i < count; i += kBlock) {
      Block weight, total = zero_block(), channels[2][kBlock];
      for (int j = 0; j < kBlock; ++j)
        weight[j] =
            p_.blocks.scale / (float)(voxels * clamp_int(width_ - (i + j) * pool_.x, 1, pool_.x));
      for (int c = 0; c < kMindChannels; ++c) {
        const Block mean = load<Block>(pooled_ + (Index)c * t_.pitch + i) * weight;
        channels[c / kBlock][c % kBlock] = mean;
        total = total + mean;
      }
      for (int c = kMindChannels; c < 2 * kBlock; ++c) channels[1][c - kBlock] = zero_block();
      transpose(channels[0]);
      transpose(channels[1]);
      for (int j = 0; j < min_int(kBlock, count - i); ++j) {
        Half* to = p_.blocks.out + (first + i + j) * stride;
        store_block(to, channels[0][j]);
        store_block(to + kBlock, channels[1][j]);
        for (int c = 2 * kBlock; c < stride; c += kBlock) store_block(to + c, zero_block());
        if (p_.blocks.structure != nullptr)
          p_.blocks.structure[first + i + j] = total[j] < p_.blocks.flat() ? 1.0f : 0.0f;
      }
    }
  }

  enum { kMostPool = 64, kMostLines = 2 * 64 + 2 };  // capi.cpp allows pools and radii up to 64

  const MindPass& p_;
  const MindTile& t_;
  const Shape shape_;
  const Int3 pool_;
  float *image_, *rows_, *boxes_, *sums_, *columns_, *pooled_;
  int y0_, x0_, height_, width_;  // of the tile
  int origin_, next_image_, next_box_, next_sum_;
};

inline void mind_pass(const CpuLauncher& launch, const MindPass& p) {
  const MindBlocks& b = p.blocks;
  const MindTile tile(b.shape, p.mind, b.pool);
  const CpuLauncher team(min_int(launch.threads(), tile.workers()));
  const int tiles = tile.tiles(), blocks = b.out_shape.z;
  // Four pieces for each thread, as some take longer.
  const int wanted = team.threads() == 1 ? 1 : divide_up(4 * team.threads(), tiles);
  const int parts = min_int(min_int(wanted, tile.most_parts), blocks);
  team.for_each(tiles * parts, b.shape.voxels(), [&](int i, int worker) {
    const int part = i / tiles, at = i - part * tiles;
    MindSweep(p, tile, p.memory + tile.needed * worker)
        .run(at / tile.tiles_x, at % tile.tiles_x, (int)((Index)blocks * part / parts),
             (int)((Index)blocks * (part + 1) / parts));
  });
}

DR_NAMESPACE_END

#endif  // DINOREG_CPU_CPU_MIND_H_
