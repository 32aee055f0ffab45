// Stationary velocity fields: exponential, logarithm, and the gradient with respect to the
// velocity.
#ifndef DINOREG_SRC_VELOCITY_H_
#define DINOREG_SRC_VELOCITY_H_

#include <utility>

#include "level.h"

DR_NAMESPACE_BEGIN

// out = exp(sign velocity) in mm, by scaling and squaring (Arsigny et al., 2006).
template <class Launcher>
void exponentiate(const SolverContext<Launcher>& c, const float* velocity, float* out,
                  const Level& l, float sign) {
  float* from = c.args.squarings % 2 == 0 ? out : c.scratch;
  float* to = from == out ? c.scratch : out;
  c.copy_field(velocity, from, l.shape, sign / (float)(1 << c.args.squarings));
  for (int k = 0; k < c.args.squarings; ++k, std::swap(from, to))
    c.run(Compose{.first = l.displacement(from),
                  .second = from,
                  .second_shape = l.shape,
                  .to_second = identity_affine(),
                  .out = to});
}

// A force on the point that starts at p acts on the velocity along the point's whole path. It is
// moved to the middle of the path by the backward flow over half of the time. Applied at p itself,
// as in log-domain demons, it pushed what other points pass through: with paths of several voxels
// hardly anything was matched.
template <class Launcher>
void to_half_way(const SolverContext<Launcher>& c, const Level& l, float* gradient, float* half_way,
                 double sigma_mm) {
  smooth_field(c, l, l.x, l.field, sigma_mm);
  exponentiate(c, l.field, half_way, l, -0.5f);
  c.run(WarpVectors{gradient, l.displacement(half_way), l.field});
  c.copy_field(l.field, gradient, l.shape);
}

// The search finds a displacement. A fixed-point iteration turns x into the velocity that leads
// there; after four steps the error is smaller than what the refinement corrects in one iteration.
template <class Launcher>
void take_logarithm(SolverContext<Launcher>& c, const Level& l) {
  const size_t mark = c.work.mark();
  float* wanted = c.template take<float>(l.floats());
  c.copy_field(l.x, wanted, l.shape);
  for (int step = 0; step < 4; ++step) {
    exponentiate(c, l.x, l.field, l, 1.0f);
    c.run(CorrectVelocity{.velocity = l.x,
                          .wanted = wanted,
                          .reached = l.field,
                          .row_count = l.shape.rows(),
                          .x = 3 * l.shape.x});
  }
  c.work.release(mark);
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_VELOCITY_H_
