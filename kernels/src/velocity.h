// Stationary velocity fields: exponential, logarithm, and the gradient at the middle of the way.
#ifndef DINOREG_SRC_VELOCITY_H_
#define DINOREG_SRC_VELOCITY_H_

#include "level.h"

DR_NAMESPACE_BEGIN

// out = exp(sign velocity) by scaling and squaring, in mm (Arsigny et al., 2006).
template <class Launcher>
void exponentiate(const SolverContext<Launcher>& c, const float* velocity, float* out,
                  const Level& l, float sign) {
  float* from = c.args.squarings % 2 == 0 ? out : c.scratch;
  float* to = from == out ? c.scratch : out;
  c.copy_field(velocity, from, l.shape, sign / (float)(1 << c.args.squarings));
  const Affine same = {{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0}};
  for (int k = 0; k < c.args.squarings; ++k) {
    c.run(Compose{from, l.shape, from, l.shape, same, inverse_of(l.spacing_mm), to});
    float* old = from;
    from = to;
    to = old;
  }
}

// A force on the point that starts at p is felt by the velocity all along its way: it is moved to
// the middle of it, by the flow of half the time backwards. At p itself, as in log-domain demons,
// it pushed what other points pass: with ways of several voxels hardly anything was matched.
template <class Launcher>
void to_half_way(const SolverContext<Launcher>& c, const Level& l, float* gradient, float* half_way,
                 double sigma_mm) {
  c.smooth(l.x, l.field, c.scratch, l.shape, 1, 3, sigma_mm, l.spacing_mm);
  exponentiate(c, l.field, half_way, l, -0.5f);
  c.run(WarpVectors{gradient, half_way, l.shape, inverse_of(l.spacing_mm), l.field});
  c.copy_field(l.field, gradient, l.shape);
}

// What the search found is a displacement: x becomes the velocity that leads there, by a fixed
// point. Four steps leave less than the refinement corrects in one.
template <class Launcher>
void take_logarithm(SolverContext<Launcher>& c, const Level& l) {
  const size_t mark = c.work.mark();
  float* wanted = c.work.template take<float>(l.floats());
  c.copy_field(l.x, wanted, l.shape);
  for (int step = 0; step < 4; ++step) {
    exponentiate(c, l.x, l.field, l, 1.0f);
    c.run(CorrectVelocity{l.x, wanted, l.field, l.shape.rows(), 3 * l.shape.x});
  }
  c.work.release(mark);
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_VELOCITY_H_
