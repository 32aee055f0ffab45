/* A program as it was when DR_ABI 1 was published; with dinoreg.h beside it, it stays as it is. It
 * registers two small images, warps one and prints what must hold with every later library. */
#include "dinoreg.h"

#include <stdio.h>
#include <stdlib.h>

enum { N = 12, VOXELS = N * N * N, CHANNELS = 16 };

static void check(dr_status status) {
  if (status == DR_OK) return;
  printf("%s\n", dr_last_error_message());
  exit(EXIT_FAILURE);
}

static void* allocate(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

static uint16_t* describe(const dr_execution* run, const float* image) {
  dr_mind_args args = DR_INIT(dr_mind_args);
  args.image = image;
  for (int i = 0; i < 3; ++i) {
    args.shape[i] = N;
    args.radius[i] = args.dilation[i] = args.pool[i] = 1;
  }
  args.channels = CHANNELS;
  args.scale = 1.0f;
  uint16_t* features = allocate(VOXELS * CHANNELS * sizeof *features);
  args.out = features;
  args.workspace_bytes = dr_mind_workspace_bytes(&args);
  args.workspace = allocate(args.workspace_bytes);
  check(dr_mind_compute(run, &args));
  free(args.workspace);
  return features;
}

int main(void) {
  dr_execution run = DR_INIT(dr_execution);
  run.threads = 2;
  float *fixed = allocate(VOXELS * sizeof(float)), *moving = allocate(VOXELS * sizeof(float));
  float *weight = allocate(VOXELS * sizeof(float)), *warped = allocate(VOXELS * sizeof(float));
  float* field = allocate(3 * VOXELS * sizeof(float));
  for (int i = 0; i < VOXELS; ++i) {
    const int x = i % N, y = i / N % N, z = i / N / N;
    fixed[i] = (float)((x - 4) * (x - 4) + (y - 6) * (y - 6) + 2 * (z - 5) * (z - 5));
    moving[i] = (float)((x - 6) * (x - 6) + (y - 6) * (y - 6) + 2 * (z - 5) * (z - 5));
    weight[i] = 1.0f;
  }
  const int32_t iterations[1] = {30};
  dr_feature_distance distance;
  dr_solver_args args = {.struct_size = sizeof args,
                         .fixed = describe(&run, fixed),
                         .fixed_weight = weight,
                         .fixed_shape = {N, N, N},
                         .moving = describe(&run, moving),
                         .moving_weight = weight,
                         .moving_shape = {N, N, N},
                         .stride = CHANNELS,
                         .channels = 12,
                         .spacing_mm = {1.0, 1.0, 1.0},
                         .search_factor = {1, 1, 1},
                         .search_radius = {1, 1, 3},
                         .search_levels = 1,
                         .cost_smoothing_mm = 2.0,
                         .field_smoothing_mm = 2.0,
                         .iterations = iterations,
                         .levels = 1,
                         .learning_rate_mm = 0.1,
                         .smoothing_mm = 2.0,
                         .smoothness = 0.5,
                         .feature_weight = 1.0,
                         .field = field,
                         .feature_distance = &distance};
  args.workspace_bytes = dr_solver_workspace_bytes(&args);
  args.workspace = allocate(args.workspace_bytes);
  check(dr_solver_run(&run, &args));

  dr_resample_args warp = {.struct_size = sizeof warp,
                           .in = moving,
                           .in_shape = {N, N, N},
                           .out = warped,
                           .out_shape = {N, N, N},
                           .samples = {1, 1, 1},
                           .map = {.affine = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0},
                                   .field = field,
                                   .field_shape = {N, N, N},
                                   .to_field = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0},
                                   .matrix = {1, 0, 0, 0, 1, 0, 0, 0, 1}}};
  check(dr_image_resample(&run, &warp));

  dr_jacobian_args folds = DR_INIT(dr_jacobian_args);
  folds.field = field;
  folds.out = moving;
  for (int i = 0; i < 3; ++i) folds.shape[i] = N, folds.index_from_unit[4 * i] = 1.0;
  check(dr_field_jacobian(&run, &folds));

  /* A malformed call stays an error with a message. */
  folds.shape[1] = 0;
  const dr_status refused = dr_field_jacobian(&run, &folds);

  const int middle = (5 * N + 6) * N + 4;
  printf("abi %d, version %d or newer\n", DR_ABI, DR_VERSION_MAJOR * 1000 + DR_VERSION_MINOR);
  printf("library is newer or the same: %d\n",
         dr_version() >= DR_VERSION_MAJOR * 1000 + DR_VERSION_MINOR);
  printf("found the shift of 2 mm: %d\n",
         field[3 * middle + 2] > 1.5f && field[3 * middle + 2] < 2.5f);
  printf("warped image is closer: %d\n", warped[middle] < 1.0f);
  printf("features are closer: %d\n", distance.after < 0.5 * distance.before);
  printf("no fold: %d\n", moving[middle] > 0.5f);
  printf("refused: %s: %s\n", dr_status_string(refused), dr_last_error_message());
  return 0;
}
