// dinoreg.hpp as a C++ program uses it: spans, exceptions, workspaces and a small registration.
#include <dinoreg.hpp>

#include <cmath>
#include <cstdio>
#include <cstring>

namespace {

int failures = 0;
#define EXPECT(condition) \
  if (!(condition)) std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition), ++failures

template <class Thrown, class Function>
bool throws(Function function, const char* words) {
  try {
    function();
  } catch (const Thrown& error) {
    if (std::strstr(error.what(), words) != nullptr) return true;
    std::printf("got: %s\n", error.what());
  }
  return false;
}

const dinoreg::Shape kShape{12, 13, 14};
const dinoreg::Spacing kSpacing{2.0, 2.0, 2.0};

std::vector<float> blob(float shift) {
  std::vector<float> image;
  for (int z = 0; z < kShape[0]; ++z)
    for (int y = 0; y < kShape[1]; ++y)
      for (int x = 0; x < kShape[2]; ++x) {
        const float dz = (float)z - 5.5f, dy = (float)y - 6.0f, dx = (float)x - 6.5f - shift;
        image.push_back(std::exp(-(dz * dz + 1.5f * dy * dy + dx * dx) / 12.0f) + 0.01f * dx);
      }
  return image;
}

void test_session() {
  const std::vector<float> image = blob(0.0f);
  dinoreg::Session session(2);
  const dinoreg::Execution cpu = dinoreg::Execution::cpu(1);
  for (int time = 0; time < 2; ++time) {
    dinoreg::Features features;
    session.run(1, cpu, [&] { features = dinoreg::mind({image, kShape}, 1, 2, cpu); });
    EXPECT(features.values == dinoreg::mind({image, kShape}).values);
  }
  EXPECT(throws<std::invalid_argument>(
      [&] { session.run(1, cpu, [] { throw std::invalid_argument("of the work"); }); },
      "of the work"));
  session.run(1, cpu, [] {});  // an error leaves nothing open
  EXPECT(session.counts().recorded == 0);
  EXPECT(throws<dinoreg::Error>([] { dinoreg::Session(0); }, "graphs = 0"));
}

void test_solve() {
  const std::vector<float> fixed = blob(0.0f), moving = blob(2.0f), weight(fixed.size(), 1.0f);
  const dinoreg::Features of_fixed = dinoreg::mind({fixed, kShape});
  const dinoreg::Features of_moving = dinoreg::mind({moving, kShape});
  dr_solver_args args =
      dinoreg::solver_args(of_fixed, {weight, kShape}, of_moving, {weight, kShape}, kSpacing);
  const std::vector<double> coupling{0.003, 0.01, 0.03};
  const std::vector<std::int32_t> iterations{20, 20};
  std::vector<float> field(3 * fixed.size());
  for (int axis = 0; axis < 3; ++axis) args.search_factor[axis] = args.search_radius[axis] = 2;
  args.search_levels = 1;
  args.cost_smoothing_mm = args.field_smoothing_mm = args.smoothing_mm = 4.0;
  args.coupling = coupling.data();
  args.coupling_rounds = 3;
  args.iterations = iterations.data();
  args.levels = 2;
  args.learning_rate_mm = 0.2;
  args.smoothness = 0.1;
  args.feature_weight = 1.0;
  args.field = field.data();
  int reports = 0;
  dinoreg::run(args, dinoreg::Execution::cpu(2, [&](dr_stage, float) { return ++reports > 0; }));
  EXPECT(reports > 40);
  const std::size_t middle = 3 * ((5 * 13 + 6) * 14 + 6);
  EXPECT(std::fabs(field[middle + 2] - 4.0f) < 1.0f);

  const std::vector<float> warped = dinoreg::warp({moving, kShape}, {field, kShape}, kSpacing);
  EXPECT(std::fabs(warped[middle / 3] - fixed[middle / 3]) < 0.1f);

  const auto stop = dinoreg::Execution::cpu(2, [](dr_stage, float) { return false; });
  EXPECT(throws<dinoreg::Error>([&] { dinoreg::run(args, stop); }, "cancelled"));
  const auto fail = dinoreg::Execution::cpu(2, [](dr_stage, float) -> bool { throw 7; });
  try {
    dinoreg::run(args, fail);
    EXPECT(false);
  } catch (int thrown) {
    EXPECT(thrown == 7);
  }
}

void test_errors() {
  const std::vector<float> image = blob(0.0f);
  EXPECT(throws<std::invalid_argument>([&] { dinoreg::mind({image, {1, 2, 3}}); }, "wants 6"));
  EXPECT(
      throws<dinoreg::Error>([] { dinoreg::run(DR_INIT(dr_map_args)); }, "out must not be NULL"));
  try {
    dinoreg::mind({image, kShape}, 65);
    EXPECT(false);
  } catch (const dinoreg::Error& error) {
    EXPECT(error.status() == DR_ERROR_INVALID_ARGUMENT);
    EXPECT(std::strstr(error.what(), "radius[0] = 65; wanted 0..64") != nullptr);
  }
  // A workspace on a device is the caller's.
  if (dr_cuda_device_count() == 0)
    EXPECT(throws<dinoreg::Error>(
        [] { dinoreg::run(DR_INIT(dr_mind_args), dinoreg::Execution::cuda(nullptr)); }, "no CUDA"));
}

}  // namespace

int main() {
  test_session();
  test_solve();
  test_errors();
  std::printf("%d failures\n", failures);
  return failures > 0;
}
