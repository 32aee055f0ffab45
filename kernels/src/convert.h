// From the public C structs to the small types of the kernels.
#ifndef DINOREG_SRC_CONVERT_H_
#define DINOREG_SRC_CONVERT_H_

#include "dinoreg.h"
#include "dinoreg/sample.h"

DR_NAMESPACE_BEGIN

inline Int3 to_int3(const int32_t* v) { return {v[0], v[1], v[2]}; }
inline Vec3 to_vec3(const double* v) { return {(float)v[0], (float)v[1], (float)v[2]}; }
inline Vec3 inverse_of(const double* v) {
  return {(float)(1.0 / v[0]), (float)(1.0 / v[1]), (float)(1.0 / v[2])};
}
inline Affine to_affine(const double* m) {
  Affine a;
  for (int i = 0; i < 12; ++i) a.m[i] = (float)m[i];
  return a;
}
inline Matrix3 to_matrix(const double* m) {
  Matrix3 a;
  for (int i = 0; i < 9; ++i) a.m[i] = (float)m[i];
  return a;
}
inline PointMap to_point_map(const dr_point_map& m, const int32_t* out_shape) {
  bool on_grid = true;
  for (int i = 0; i < 12; ++i) on_grid &= m.to_field[i] == (i % 5 == 0 ? 1.0 : 0.0);
  for (int i = 0; i < 3; ++i) on_grid &= m.field_shape[i] == out_shape[i];
  return {.affine = to_affine(m.affine),
          .field = m.field,
          .field_shape = to_int3(m.field_shape),
          .to_field = to_affine(m.to_field),
          .matrix = to_matrix(m.matrix),
          .on_grid = on_grid};
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_CONVERT_H_
