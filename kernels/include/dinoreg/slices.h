// Slices of an image as an encoder is shown them.
#ifndef DINOREG_SLICES_H_
#define DINOREG_SLICES_H_

#include "dinoreg/resample.h"

DR_NAMESPACE_BEGIN

// How one axis of a slice is resized: pixels and voxels fill the same box.
struct ResizedAxis {
  int voxels, pixels;
  int samples;  // points averaged for each pixel
  float step;   // voxels between pixels
  float first;  // index of the first pixel's centre

  // Index of a pixel's point among the voxels.
  template <class V>
  DR_HD V at(const V& pixel, int sample) const {
    return (pixel + ResampleLinear::spread(sample, samples)) * step + first;
  }
};

// Resized, antialiased where they become smaller, windowed to 0..1 and normalised by channel. The
// image may lie in any order: its axes (slice, row, column) have strides. For a slice nothing but
// its own voxels is read, so a NaN stays in it; beyond them its border goes on.
struct CutSlices {
  enum { kRepeatable = 1, kMostSlices = 64, kMostChannels = 4 };
  const float* image;  // first voxel of the first slice
  int stride_z, stride_y, stride_x;
  ResizedAxis y_axis, x_axis;
  float low, per_range;  // window: its dark end, and one over its width
  int channels;
  float factor[kMostChannels], shift[kMostChannels];  // of a grey value in 0..1
  float* out;                                         // (count, channels, height, width)
  int count;
  int slices[kMostSlices];  // by value: a device could not read the caller's list

  DR_HD int rows() const { return count * y_axis.pixels; }
  DR_HD int width() const { return x_axis.pixels; }

  DR_HD int margin() const {
    const Index stride = stride_x < 0 ? -(Index)stride_x : stride_x;
    return fits_lanes(stride * x_axis.voxels) ? 0 : width();
  }

  DR_HD void operator()(int row, int x) const { lanes<float>(row, x); }

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const int i = row / y_axis.pixels, y = row - i * y_axis.pixels;
    const V grey = windowed(mean<V>(image + (Index)slices[i] * stride_z, y, x));
    const Index plane = (Index)y_axis.pixels * width();
    float* to = out + i * channels * plane + (Index)y * width() + x;
    for (int c = 0; c < channels; ++c) store(to + c * plane, grey * factor[c] + shift[c]);
  }

 private:
  // Over the points of a pixel and its right neighbours.
  template <class V>
  DR_HD V mean(const float* slice, int y, int x) const {
    const int right = x_axis.voxels > 1 ? stride_x : 0;
    V sum = V{};
    for (int sy = 0; sy < y_axis.samples; ++sy) {
      const Neighbours rows = neighbours(y_axis.at((float)y, sy), y_axis.voxels);
      const float* upper = slice + (Index)rows.low * stride_y;
      const float* lower = slice + (Index)rows.high * stride_y;
      DR_UNROLL(1)
      for (int sx = 0; sx < x_axis.samples; ++sx) {
        const V column = x_axis.at(lane_numbers<V>() + (float)x, sx);
        V weight;
        typename LaneTraits<V>::Offset at{};
        at = (at + low_neighbour(column, x_axis.voxels, weight)) * stride_x;
        sum = sum + lerp(lerp(gather(upper, at), gather(upper + right, at), weight),
                         lerp(gather(lower, at), gather(lower + right, at), weight),
                         splat<V>(rows.weight));
      }
    }
    return sum / (float)(y_axis.samples * x_axis.samples);
  }

  // The bounds come first: so a NaN stays one.
  template <class V>
  DR_HD V windowed(const V& value) const {
    return min_of(splat<V>(1.0f), max_of(splat<V>(0.0f), (value - low) * per_range));
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_SLICES_H_
