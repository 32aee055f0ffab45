/* Warps a volume through a displacement field and looks for folds, from C++.
 *
 *   c++ -std=c++17 warp.cpp -I "$DINOREG/include" "$DINOREG/libdinoreg.so" \
 *       -Wl,-rpath,"$DINOREG" -o warp && ./warp
 *
 * DINOREG: see register.c.
 */
#include <dinoreg.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <stdexcept>
#include <vector>

namespace {

using Shape = std::array<int32_t, 3>;  // z, y, x

void check(dr_status status) {
  if (status != DR_OK) throw std::runtime_error(dr_last_error_message());
}

// `moving` on the grid of `field`, a displacement in mm along the axes of the common grid.
std::vector<float> warp(const std::vector<float>& moving, const std::vector<float>& field,
                        const Shape& shape, double spacing_mm) {
  std::vector<float> warped(moving.size());
  dr_resample_args args{};
  args.in = moving.data();
  args.out = warped.data();
  args.map.field = field.data();
  for (int axis = 0; axis < 3; ++axis) {
    args.in_shape[axis] = args.out_shape[axis] = args.map.field_shape[axis] = shape[axis];
    args.samples[axis] = 1;
    args.map.affine[5 * axis] = args.map.to_field[5 * axis] = 1.0;
    args.map.matrix[4 * axis] = 1.0 / spacing_mm;
  }
  const dr_execution run{};
  check(dr_image_resample(&run, &args));
  return warped;
}

float smallest_jacobian(const std::vector<float>& field, const Shape& shape, double spacing_mm) {
  std::vector<float> determinant(field.size() / 3);
  dr_jacobian_args args{};
  args.field = field.data();
  args.out = determinant.data();
  for (int axis = 0; axis < 3; ++axis) {
    args.shape[axis] = shape[axis];
    args.index_from_unit[4 * axis] = 1.0 / spacing_mm;
  }
  const dr_execution run{};
  check(dr_field_jacobian(&run, &args));
  return *std::min_element(determinant.begin(), determinant.end());
}

}  // namespace

int main() {
  const Shape shape{8, 8, 8};
  const double spacing_mm = 1.5;
  const std::size_t voxels = 8 * 8 * 8;
  std::vector<float> moving(voxels), field(3 * voxels, 0.0f);
  for (std::size_t i = 0; i < voxels; ++i) {
    moving[i] = static_cast<float>(i % 8);  // a ramp along x
    field[3 * i + 2] = 3.0f;                // 3 mm, two voxels, along x
  }
  const std::vector<float> warped = warp(moving, field, shape, spacing_mm);
  std::printf("first voxel %.1f; wanted 2.0\n", warped[0]);
  std::printf("smallest det J %.1f; wanted 1.0\n", smallest_jacobian(field, shape, spacing_mm));
}
