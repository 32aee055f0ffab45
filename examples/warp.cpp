/* Warps a volume through a displacement field and looks for folds, from C++20.
 *
 *   c++ -std=c++20 warp.cpp $(PKG_CONFIG_PATH=$(python -m dinoreg_kernels --pkgconfig-dir) \
 *       pkg-config --cflags --libs dinoreg) -o warp && ./warp
 *
 * With CMake: find_package(dinoreg CONFIG REQUIRED) and dinoreg::dinoreg; see docs/embedding.md.
 */
#include <dinoreg.hpp>

#include <algorithm>
#include <cstdio>
#include <vector>

int main() {
  const dinoreg::Shape shape{8, 8, 8};
  const dinoreg::Spacing spacing_mm{1.5, 1.5, 1.5};
  std::vector<float> moving(dinoreg::voxels(shape)), field(3 * moving.size(), 0.0f);
  for (std::size_t i = 0; i < moving.size(); ++i) {
    moving[i] = static_cast<float>(i % 8);  // a ramp along x
    field[3 * i + 2] = 3.0f;                // 3 mm, two voxels, along x
  }
  const std::vector<float> warped = dinoreg::warp({moving, shape}, {field, shape}, spacing_mm);
  const std::vector<float> jacobian = dinoreg::jacobian({field, shape}, spacing_mm);
  std::printf("first voxel %.1f; wanted 2.0\n", warped[0]);
  std::printf("smallest det J %.1f; wanted 1.0\n",
              *std::min_element(jacobian.begin(), jacobian.end()));
}
