/* A program as it was when DR_HOST_ABI 1 was published; with dinoreg_host.h beside it, it stays as
 * it is. It registers two small images and prints what must hold with every later library. */
#include "dinoreg_host.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 40, VOXELS = N * N * N };

static int progress_calls = 0, log_calls = 0;

static int on_progress(void* user, const char* stage, double fraction) {
  progress_calls += user == &progress_calls && *stage && fraction >= 0 && fraction <= 1;
  return 0;
}

static int stop(void* user, const char* stage, double fraction) {
  (void)user, (void)stage, (void)fraction;
  return 1;
}

static void on_log(void* user, int level, const char* text) {
  log_calls += user == &progress_calls && level >= DR_LOG_INFO && *text;
}

static void check(dr_host_status status) {
  if (status == DR_HOST_OK) return;
  printf("%s\n", dr_host_last_error());
  exit(EXIT_FAILURE);
}

static int within(int x, int y, int z, int cx, int cy, int cz, int r) {
  return (x - cx) * (x - cx) + (y - cy) * (y - cy) + (z - cz) * (z - cz) < r * r;
}

/* A ball with two cores, moved along x. */
static void draw(float* image, int shift) {
  for (int z = 0, i = 0; z < N; ++z)
    for (int y = 0; y < N; ++y)
      for (int x = 0; x < N; ++x, ++i)
        image[i] = 100.0f * within(x - shift, y, z, 18, 20, 20, 13) +
                   60.0f * within(x - shift, y, z, 15, 17, 22, 4) -
                   40.0f * within(x - shift, y, z, 22, 23, 17, 4);
}

static dr_volume volume_of(const void* voxels, int type) {
  dr_volume volume = DR_VOLUME_INIT;
  volume.voxels = voxels;
  volume.voxel_type = type;
  for (int i = 0; i < 3; ++i) volume.size[i] = N;
  return volume;
}

int main(void) {
  float *fixed = malloc(VOXELS * sizeof *fixed), *moving = malloc(VOXELS * sizeof *moving);
  float *warped = malloc(VOXELS * sizeof *warped), *again = malloc(3 * VOXELS * sizeof *again);
  float *field = malloc(3 * VOXELS * sizeof *field), *inverse = malloc(3 * VOXELS * sizeof *field);
  unsigned char *mask = malloc(VOXELS), *labels = malloc(VOXELS);
  int32_t* warped_labels = malloc(VOXELS * sizeof *warped_labels);
  draw(fixed, 0);
  draw(moving, 2);
  for (int i = 0; i < VOXELS; ++i) mask[i] = 1, labels[i] = moving[i] > 0 ? 7 : 0;
  const dr_volume one = volume_of(fixed, DR_VOXEL_FLOAT32);
  const dr_volume two = volume_of(moving, DR_VOXEL_FLOAT32);
  const dr_volume inside = volume_of(mask, DR_VOXEL_UINT8);
  const dr_volume organs = volume_of(labels, DR_VOXEL_UINT8);
  const double identity[12] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0};

  printf("abi %d, a version: %d\n", DR_HOST_ABI, strlen(dr_host_version()) >= 5);
  dr_registrar_args options = DR_REGISTRAR_ARGS_INIT;
  options.options = "preset = 'mind'\nthreads = 2\ninverse = true";
  options.workers = 1;
  dr_registrar* registrar;
  check(dr_registrar_create(&options, &registrar));
  check(dr_registrar_warm_up(registrar, &one, NULL));

  dr_registration_args args = DR_REGISTRATION_ARGS_INIT;
  args.fixed = &one;
  args.moving = &two;
  args.fixed_mask = args.moving_mask = &inside;
  args.labels = &organs;
  args.initial = identity;
  args.displacement = field;
  args.inverse = inverse;
  args.warped = warped;
  args.warped_labels = warped_labels;
  args.progress = on_progress;
  args.log = on_log;
  args.user = &progress_calls;
  dr_registration_result result = DR_REGISTRATION_RESULT_INIT;
  check(dr_registrar_run(registrar, &args, &result));
  double before = 0, after = 0, shift = 0, back = 0;
  int inner = 0, overlap = 0, organ = 0;
  for (int i = 0; i < VOXELS; ++i) {
    before += fabsf(moving[i] - fixed[i]);
    after += fabsf(warped[i] - fixed[i]);
    organ += fixed[i] > 0;
    overlap += fixed[i] > 0 && warped_labels[i] == 7;
    if (fixed[i] > 0) shift += field[3 * i], back += inverse[3 * i], ++inner;
  }
  printf("shift of 2 mm: %d, back: %d\n", shift / inner > 1.5 && shift / inner < 2.5,
         back / inner < -1.5 && back / inner > -2.5);
  printf("warped image is closer: %d\n", after < before / 4);
  printf("labels overlap: %d\n", overlap > organ * 0.95);
  printf("report: %d, initial: %d\n", result.report[0] == '{',
         memcmp(result.initial, identity, sizeof identity) == 0);
  printf("called: %d %d\n", progress_calls > 2, log_calls > 2);
  dr_registration_result_free(&result);

  dr_registration* registration;
  args.displacement = again;
  check(dr_registrar_submit(registrar, &args, &registration));
  check(dr_registration_wait(registration, &result));
  printf("the same from another thread: %d\n", memcmp(again, field, 3 * VOXELS * 4) == 0);
  dr_registration_result_free(&result);
  dr_registration_destroy(registration);

  args.progress = stop;
  check(dr_registrar_submit(registrar, &args, &registration));
  check(dr_registration_cancel(registration));
  printf("cancelled: %d\n", dr_registration_wait(registration, &result));
  dr_registration_destroy(registration);
  printf("stopped: %d\n", dr_registrar_run(registrar, &args, &result));
  args.moving = NULL;
  printf("refused: %d", dr_registrar_run(registrar, &args, &result));
  printf(" %s\n", dr_host_last_error());
  dr_registrar_destroy(registrar);
  return 0;
}
