// Slices of an image, prepared as the input of an encoder.
#ifndef DINOREG_SLICES_H_
#define DINOREG_SLICES_H_

#include "dinoreg/resample.h"

DR_NAMESPACE_BEGIN

// How one axis of a slice is resized. Pixels and voxels cover the same extent.
struct ResizedAxis {
  int voxels, pixels;
  int samples;  // points averaged for each pixel
  float step;   // voxels between pixels
  float first;  // index of the first pixel's centre

  // The index of a pixel's sample among the voxels.
  template <class V>
  DR_HD V at(const V& pixel, int sample) const {
    return (pixel + ResampleLinear::spread(sample, samples)) * step + first;
  }
};

// Slices resized, antialiased where they become smaller, windowed to 0..1 and normalised channel by
// channel. The image may have any memory order, as its axes (slice, row, column) have strides. A
// slice is made of its own voxels alone, so a NaN stays in its slice; beyond its border it keeps
// the value there.
struct CutSlices {
  enum { kMostSlices = 64, kMostChannels = 4 };
  const float* image;  // first voxel of the first slice
  Int3 strides;
  ResizedAxis y_axis, x_axis;
  float low, per_range;  // lower end of the window, and one over its width
  int channels;
  float factor[kMostChannels], shift[kMostChannels];  // applied to a grey value in 0..1
  float* out;                                         // (count, channels, height, width)
  int count;
  int slices[kMostSlices];  // by value, as a device cannot read the caller's list

  DR_HD int rows() const { return count * y_axis.pixels; }
  DR_HD int width() const { return x_axis.pixels; }

  DR_HD int margin() const {
    const Index stride = strides.x < 0 ? -(Index)strides.x : strides.x;
    return fits_lanes(stride * x_axis.voxels) ? 0 : width();
  }

  DR_LANES(true)

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const int i = row / y_axis.pixels, y = row - i * y_axis.pixels;
    const V grey = windowed(mean<V>(image + (Index)slices[i] * strides.z, y, x));
    const Index plane = (Index)y_axis.pixels * width();
    float* to = out + i * channels * plane + (Index)y * width() + x;
    for (int c = 0; c < channels; ++c) store(to + c * plane, grey * factor[c] + shift[c]);
  }

 private:
  // The mean over the samples of a pixel and its neighbours to the right.
  template <class V>
  DR_HD V mean(const float* slice, int y, int x) const {
    const int right = x_axis.voxels > 1 ? strides.x : 0;
    V sum = V{};
    for (int sy = 0; sy < y_axis.samples; ++sy) {
      const Neighbours rows = neighbours(y_axis.at((float)y, sy), y_axis.voxels);
      const float* upper = slice + (Index)rows.low * strides.y;
      const float* lower = slice + (Index)rows.high * strides.y;
      DR_UNROLL(1)
      for (int sx = 0; sx < x_axis.samples; ++sx) {
        const V column = x_axis.at(lane_numbers<V>() + (float)x, sx);
        V weight;
        typename LaneTraits<V>::Offset at{};
        at = (at + low_neighbour(column, x_axis.voxels, weight)) * strides.x;
        sum = sum + lerp(lerp(gather(upper, at), gather(upper + right, at), weight),
                         lerp(gather(lower, at), gather(lower + right, at), weight),
                         splat<V>(rows.weight));
      }
    }
    return sum / (float)(y_axis.samples * x_axis.samples);
  }

  // The bounds are the first operands, so that a NaN stays one.
  template <class V>
  DR_HD V windowed(const V& value) const {
    return min_of(splat<V>(1.0f), max_of(splat<V>(0.0f), (value - low) * per_range));
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_SLICES_H_
