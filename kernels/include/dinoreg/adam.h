// Adam (Kingma & Ba, 2015), and the state that changes from one iteration to the next.
#ifndef DINOREG_ADAM_H_
#define DINOREG_ADAM_H_

#include "dinoreg/op.h"

DR_NAMESPACE_BEGIN

// What differs between the iterations of a level. It lives where the ops run, so that every
// iteration consists of the same launches. Zeroed before the first iteration.
struct IterationState {
  double first, second;  // 1 - beta^t: the moments if every gradient had been 1
  int done;              // iterations of this level
  float step;            // learning rate / first
  float correction;      // 1 / second
  float fold_penalty;    // weight * (share of all levels' iterations done before this one)^2
  float mean_square;     // of the gradient's length with the images one voxel out of register
  float epsilon;         // Adam's
};

// Moves the state on by one iteration.
struct AdvanceIteration {
  IterationState* state;
  double beta1, beta2, learning_rate, fold_penalty;
  int earlier, all;  // iterations of the previous levels, and of all levels

  DR_OVER_ONE
  DR_HD void operator()(int, int) const {
    IterationState s = *state;
    s.first = fma(beta1, s.first, 1.0 - beta1);
    s.second = fma(beta2, s.second, 1.0 - beta2);
    s.step = (float)(learning_rate / s.first);
    s.correction = (float)(1.0 / s.second);
    const double share = (double)(earlier + s.done) / all;
    s.fold_penalty = (float)(fold_penalty * share * share);
    ++s.done;
    *state = s;
  }
};

// |v|^2 of vectors (z, y, x, 3).
struct SquaredLength {
  const float* vectors;
  Shape shape;
  float* out;  // (z, y, x)

  DR_OVER(shape)
  DR_LANES(true)

  template <class V>
  DR_HD void lanes(int row, int x) const {
    const Index i = (Index)row * shape.x + x;
    const Vec3Of<V> v = load_vec3_of<V>(vectors + 3 * i);
    store(out + i, v.z * v.z + v.y * v.y + v.x * v.x);
  }
};

// Sets Adam's epsilon to a share of the root mean square of the gradient's components with the
// images one voxel out of register. Without it Adam takes steps of full length however small the
// gradient is, and an image drifts away from itself.
struct SetEpsilon {
  IterationState* state;
  double share;

  DR_OVER_ONE
  DR_HD void operator()(int, int) const {
    state->epsilon = (float)(share * sqrt((double)state->mean_square / 3.0)) + 1e-8f;
  }
};

// A step along a smoothed gradient, which need not be stored for it: a sink of the smoothing.
struct AdamStep {
  float* value;
  float* first_moment;
  float* second_moment;
  int width;  // numbers of a row
  float beta1, beta2;
  const float* step;        // learning rate / (1 - beta1^t)
  const float* correction;  // 1 / (1 - beta2^t)
  const float* epsilon;

  enum { kTogether = 1 };
  DR_HD bool fits() const { return true; }

  template <class V>
  DR_HD void put(int row, int i, const V* gradient) const {
    const Index at = (Index)row * width + i;
    const V g = gradient[0];
    const V m = beta1 * load<V>(first_moment + at) + (1.0f - beta1) * g;
    const V v = beta2 * load<V>(second_moment + at) + (1.0f - beta2) * g * g;
    store(first_moment + at, m);
    store(second_moment + at, v);
    store(value + at, load<V>(value + at) - *step * m / (root(v * *correction) + *epsilon));
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_ADAM_H_
