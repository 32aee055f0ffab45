/* Registers two volumes in memory, with nothing but libdinoreg.
 *
 *   cc -std=c11 solver.c $(PKG_CONFIG_PATH=$(python -m dinoreg_kernels --pkgconfig-dir) \
 *      pkg-config --cflags --libs dinoreg) -lm -o solver && ./solver
 *
 * With CMake: find_package(dinoreg CONFIG REQUIRED) and dinoreg::dinoreg; see docs/embedding.md.
 */
#include <dinoreg.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { Z = 40, Y = 44, X = 48, VOXELS = Z * Y * X, CHANNELS = 16 };
static const double SPACING_MM = 2.0;

static void check(dr_status status) {
  if (status == DR_OK) return;
  fprintf(stderr, "%s: %s\n", dr_status_string(status), dr_last_error_message());
  exit(EXIT_FAILURE);
}

static void* allocate(size_t bytes) {
  void* memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (memory == NULL) exit(EXIT_FAILURE);
  return memory;
}

/* A synthetic image: waves, moved by `shift` voxels along x. */
static float* make_image(double shift) {
  float* image = allocate(VOXELS * sizeof *image);
  for (int i = 0; i < VOXELS; ++i) {
    const double x = i % X - shift, y = i / X % Y, z = i / (X * Y);
    image[i] = (float)(sin(0.5 * x + 0.2 * y) + cos(0.4 * y - 0.3 * z) + sin(0.45 * z + 0.3 * x));
  }
  return image;
}

static uint16_t* describe(const dr_execution* run, const float* image) {
  uint16_t* features = allocate(VOXELS * CHANNELS * sizeof *features);
  dr_mind_args args = {.struct_size = sizeof args,
                       .image = image,
                       .shape = {Z, Y, X},
                       .radius = {1, 1, 1},
                       .dilation = {2, 2, 2},
                       .pool = {1, 1, 1},
                       .out = features,
                       .channels = CHANNELS,
                       .scale = 1.0f};
  args.workspace_bytes = dr_mind_workspace_bytes(&args);
  args.workspace = allocate(args.workspace_bytes);
  check(dr_mind_compute(run, &args));
  free(args.workspace);
  return features;
}

int main(void) {
  const dr_execution run = {.struct_size = sizeof run, .device = DR_DEVICE_CPU};
  float* fixed = make_image(0.0);
  float* moving = make_image(2.0);
  float* weight = allocate(VOXELS * sizeof *weight);
  for (int i = 0; i < VOXELS; ++i) weight[i] = 1.0f;
  float* field = allocate(3 * VOXELS * sizeof *field);

  dr_feature_distance distance;
  const double coupling[] = {0.003, 0.01, 0.03, 0.1, 0.3, 1.0};
  const int32_t iterations[] = {40, 20};
  dr_solver_args args = {.struct_size = sizeof args,
                         .fixed = describe(&run, fixed),
                         .fixed_weight = weight,
                         .fixed_shape = {Z, Y, X},
                         .moving = describe(&run, moving),
                         .moving_weight = weight,
                         .moving_shape = {Z, Y, X},
                         .stride = CHANNELS,
                         .channels = 12,
                         .spacing_mm = {SPACING_MM, SPACING_MM, SPACING_MM},
                         .search_factor = {2, 2, 2},
                         .search_radius = {2, 2, 2},
                         .search_levels = 1,
                         .cost_smoothing_mm = 4.0,
                         .field_smoothing_mm = 4.0,
                         .coupling = coupling,
                         .coupling_rounds = 6,
                         .kept_costs_mb = 256,
                         .consistency_rounds = 15,
                         .iterations = iterations,
                         .levels = 2,
                         .learning_rate_mm = 2.0,
                         .smoothing_mm = 3.0,
                         .smoothness = 1.0,
                         .feature_weight = 1.0,
                         .fold_penalty = 30.0,
                         .fold_margin = 0.3,
                         .field = field,
                         .feature_distance = &distance};
  args.workspace_bytes = dr_solver_workspace_bytes(&args);
  args.workspace = allocate(args.workspace_bytes);
  check(dr_solver_run(&run, &args));

  double mean_mm[3] = {0};
  for (int i = 0; i < 3 * VOXELS; ++i) mean_mm[i % 3] += field[i] / VOXELS;
  printf("mean displacement (z, y, x): %.2f %.2f %.2f mm; wanted 0 0 %.0f\n", mean_mm[0],
         mean_mm[1], mean_mm[2], 2.0 * SPACING_MM);
  printf("feature distance %.3f -> %.3f\n", distance.before, distance.after);

  free((void*)args.fixed), free((void*)args.moving), free(args.workspace);
  free(fixed), free(moving), free(weight), free(field);
  return EXIT_SUCCESS;
}
