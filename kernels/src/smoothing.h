// Separable smoothing along z, y and x, from a source of numbers to a sink (dinoreg/smooth.h). The
// versions here work with any launcher; cpu/cpu_smooth.h and cuda/tiled_smooth.cuh have tuned ones.
#ifndef DINOREG_SRC_SMOOTHING_H_
#define DINOREG_SRC_SMOOTHING_H_

#include "dinoreg/smooth.h"

DR_NAMESPACE_BEGIN

// What is smoothed, and the memory for it.
struct Smoothing {
  Shape shape;
  int batch = 1, components = 1;  // arrays, and numbers of each voxel
  Taps3 taps = {};
  float* tmp = nullptr;  // (batch, shape, components)
  float* another = nullptr;  // (shape, components), for what the tuned versions do not take

  int width() const { return shape.x * components; }
  int plane() const { return shape.y * width(); }
  Index size() const { return (Index)shape.z * plane(); }
};

template <class Launcher, class Source, class Sink>
void smooth_with_ops(const Launcher& launch, const Smoothing& s, const Source& source,
                     const Sink& sink) {
  Smooth op = {.in = nullptr,
               .out = nullptr,
               .outer = s.shape.z,
               .n = s.shape.y,
               .inner = s.width(),
               .taps = s.taps.y,
               .along_row = false};
  Smooth along_x = op;
  along_x.outer = s.shape.rows(), along_x.n = s.shape.x, along_x.inner = s.components;
  along_x.taps = s.taps.x, along_x.along_row = true;
  for (int b = 0; b < s.batch; ++b) {
    float* const array = s.tmp + b * s.size();
    launch(SmoothFrom<Source>{source, b, array, s.shape.z, s.plane(), s.taps.z});
    op.in = array, op.out = s.another;
    launch(op);
    along_x.in = s.another, along_x.out = array;
    launch(along_x);
  }
  const int rows = s.batch / Sink::kTogether * s.shape.rows();
  launch(PutInto<Sink>{s.tmp, s.size(), rows, s.width(), sink});
}

template <class Launcher, class Source, class Sink>
void smooth_into(const Launcher& launch, const Smoothing& s, const Source& source,
                 const Sink& sink) {
  smooth_with_ops(launch, s, source, sink);
}

// Separable smoothing of `batch` arrays of `shape` x `components`, in -> out. `tmp` is as large as
// `out`; all three differ.
struct SmoothPass {
  const float* in;
  float* out;
  float* tmp;
  Shape shape;
  int batch = 1, components = 1;
  Taps3 taps = {};
};

template <class Launcher>
void smooth_pass(const Launcher& launch, const SmoothPass& p) {
  const int line = p.shape.x * p.components, planes = p.batch * p.shape.z;
  Smooth op = {.in = p.in,
               .out = p.out,
               .outer = p.batch,
               .n = p.shape.z,
               .inner = p.shape.y * line,
               .taps = p.taps.z,
               .along_row = false};
  launch(op);
  op.in = p.out, op.out = p.tmp, op.taps = p.taps.y;
  op.outer = planes, op.n = p.shape.y, op.inner = line;
  launch(op);
  op.in = p.tmp, op.out = p.out, op.taps = p.taps.x;
  op.outer = planes * p.shape.y, op.n = p.shape.x, op.inner = p.components, op.along_row = true;
  launch(op);
}

// The tuned versions of smooth_pass are those of smooth_into.
inline Smoothing smoothing_of(const SmoothPass& p) {
  return {
      .shape = p.shape, .batch = p.batch, .components = p.components, .taps = p.taps, .tmp = p.tmp};
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_SMOOTHING_H_
