/* The C interface as a C program uses it: statuses, messages, workspaces and a small registration.
 * Prints every failure; the exit status tells whether there was one. */
#include "dinoreg.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define EXPECT(condition)                                                    \
  do {                                                                       \
    if (!(condition)) {                                                      \
      printf("%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, \
             dr_last_error_message());                                       \
      ++failures;                                                            \
    }                                                                        \
  } while (0)

#define EXPECT_MESSAGE(words) EXPECT(strstr(dr_last_error_message(), words) != NULL)

enum { Z = 10, Y = 12, X = 14, VOXELS = Z * Y * X, CHANNELS = 16, ALIGNMENT = 64 };

static void identity(double* matrix) {
  memset(matrix, 0, 12 * sizeof *matrix);
  matrix[0] = matrix[5] = matrix[10] = 1.0;
}

static void set3(int32_t* to, int32_t z, int32_t y, int32_t x) {
  to[0] = z;
  to[1] = y;
  to[2] = x;
}

static void* allocate(size_t bytes) {
  void* memory = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
  if (memory == NULL) {
    printf("out of memory\n");
    exit(EXIT_FAILURE);
  }
  return memory;
}

/* A blob on a ramp, both moved by `shift` voxels along x. */
static void fill_image(float* image, float shift) {
  for (int z = 0; z < Z; ++z)
    for (int y = 0; y < Y; ++y)
      for (int x = 0; x < X; ++x) {
        const float dz = (float)z - 4.5f, dy = (float)y - 5.5f, dx = (float)x - 6.5f - shift;
        const float r2 = dz * dz + 1.5f * dy * dy + dx * dx;
        image[(z * Y + y) * X + x] = 100.0f * expf(-r2 / 12.0f) + dz - 2.0f * dy + dx;
      }
}

static void test_facts(void) {
  EXPECT(dr_version() == DR_VERSION_MAJOR * 1000 + DR_VERSION_MINOR);
  EXPECT(strlen(dr_cpu_isa()) > 0);
  EXPECT(dr_cuda_built() == 0 || dr_cuda_built() == 1);
  EXPECT(dr_cuda_built() == 1 || dr_cuda_device_count() == 0);
  EXPECT((dr_cuda_problem()[0] == 0) == (dr_cuda_device_count() > 0));
  for (int status = DR_OK; status <= DR_ERROR_NOT_RECORDED; ++status)
    EXPECT(strcmp(dr_status_string((dr_status)status), "unknown status") != 0);
  EXPECT(strcmp(dr_status_string((dr_status)999), "unknown status") == 0);
}

static void test_resample(const dr_execution* cpu, const float* image) {
  float* out = allocate(VOXELS * sizeof *out);
  dr_resample_args args = DR_INIT(dr_resample_args);
  args.in = image;
  args.out = out;
  set3(args.in_shape, Z, Y, X);
  set3(args.out_shape, Z, Y, X);
  set3(args.samples, 1, 1, 1);
  identity(args.map.affine);
  args.map.affine[11] = 1.0; /* one voxel along x */
  args.outside = -1.0f;
  EXPECT(dr_image_resample(cpu, &args) == DR_OK);
  int wrong = 0;
  for (int i = 0; i < VOXELS; ++i) {
    const float wanted = i % X == X - 1 ? -1.0f : image[i + 1];
    wrong += !(fabsf(out[i] - wanted) < 1e-4f);
  }
  EXPECT(wrong == 0);

  args.in = NULL;
  EXPECT(dr_image_resample(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("must not be NULL");
  args.in = image;
  args.out_shape[1] = 0;
  EXPECT(dr_image_resample(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("out_shape = (10, 0, 14); wanted 1..32768");
  dr_execution many = *cpu;
  many.threads = 100000;
  EXPECT(dr_image_resample(&many, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("threads = 100000; wanted 0..1024");
  EXPECT(dr_image_resample(NULL, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("execution is NULL");
  EXPECT(dr_image_resample(cpu, NULL) == DR_ERROR_INVALID_ARGUMENT);
  free(out);
}

/* The struct of a program with a newer header: fields behind those that this library knows. */
static void test_sizes(const dr_execution* cpu, const float* image) {
  float out = 0.0f;
  struct {
    dr_resample_args known;
    double newer;
  } args = {.known = {.struct_size = sizeof args, .in = image, .out = &out}};
  set3(args.known.in_shape, Z, Y, X);
  set3(args.known.out_shape, 1, 1, 1);
  set3(args.known.samples, 1, 1, 1);
  identity(args.known.map.affine);
  EXPECT(dr_image_resample(cpu, &args.known) == DR_OK);
  EXPECT(out == image[0]);
  args.newer = 1.0;
  EXPECT(dr_image_resample(cpu, &args.known) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("dr_resample_args has 384 bytes, of which this library knows 376");
  args.newer = 0.0;
  args.known.struct_size = 0;
  EXPECT(dr_image_resample(cpu, &args.known) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("args->struct_size = 0; wanted 376 or more; initialise the struct with DR_INIT(");
  args.known.struct_size = sizeof args.known;
  dr_execution execution = *cpu;
  execution.struct_size = 1 << 20;
  EXPECT(dr_image_resample(&execution, &args.known) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("execution->struct_size = 1048576");
  const dr_mind_args unsized_args = {.image = image};
  EXPECT(dr_mind_workspace_bytes(&unsized_args) == 0);
  EXPECT_MESSAGE("DR_INIT(dr_mind_args)");
}

/* Means over blocks of two voxels, of which the first along x lacks one. */
static void test_pool(const dr_execution* cpu) {
  enum { N = 4, CHANNELS = 8 };
  uint16_t* features = allocate(N * CHANNELS * sizeof *features);
  uint16_t* out = allocate(3 * CHANNELS * sizeof *out);
  const float weight[N] = {1.0f, 3.0f, 1.0f, 0.0f};
  float means[3];
  for (int x = 0; x < N; ++x)
    for (int c = 0; c < CHANNELS; ++c) features[x * CHANNELS + c] = x % 2 == 0 ? 0x3c00 : 0; /* 1 */
  dr_pool_args args = DR_INIT(dr_pool_args);
  args.features = features;
  args.weight = weight;
  set3(args.shape, 1, 1, N);
  args.channels = CHANNELS;
  set3(args.factor, 1, 1, 2);
  set3(args.offset, 0, 0, 1);
  args.out = out;
  args.out_weight = means;
  EXPECT(dr_features_pool(cpu, &args) == DR_OK);
  EXPECT(means[0] == 1.0f && means[1] == 2.0f && means[2] == 0.0f);
  EXPECT(out[0] == 0x3c00 && out[CHANNELS] == 0x3400 && out[2 * CHANNELS] == 0); /* 1, 1/4, 0 */

  args.features = (uint16_t*)((char*)features + 2);
  EXPECT(dr_features_pool(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("16-byte aligned");
  args.features = NULL;
  EXPECT(dr_features_pool(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("must not be NULL");
  free(features);
  free(out);
}

/* Slices across y with rows that run from high to low z, as coronal planes are displayed. */
static void test_slices(const dr_execution* cpu, const float* image) {
  const int32_t chosen[2] = {5, 0};
  const double mean[2] = {0.0, 0.5}, deviation[2] = {1.0, 0.25};
  float* out = allocate((size_t)2 * 2 * Z * X * sizeof *out);
  dr_slices_args args = DR_INIT(dr_slices_args);
  args.image = image + (size_t)(Z - 1) * Y * X;
  set3(args.shape, Y, Z, X);
  set3(args.strides, X, -Y * X, 1);
  args.slices = chosen;
  args.count = 2;
  args.size[0] = Z, args.size[1] = X;
  args.samples[0] = args.samples[1] = 1;
  args.window[0] = 10.0, args.window[1] = 60.0;
  args.channels = 2;
  args.mean = mean;
  args.std = deviation;
  args.out = out;
  EXPECT(dr_slices_cut(cpu, &args) == DR_OK);
  int wrong = 0;
  for (int i = 0; i < 2; ++i)
    for (int z = 0; z < Z; ++z)
      for (int x = 0; x < X; ++x) {
        const float value = image[((Z - 1 - z) * Y + chosen[i]) * X + x];
        const float grey = fminf(fmaxf((value - 10.0f) / 50.0f, 0.0f), 1.0f);
        wrong += !(fabsf(out[((i * 2 + 0) * Z + z) * X + x] - grey) < 1e-5f);
        wrong += !(fabsf(out[((i * 2 + 1) * Z + z) * X + x] - (grey - 0.5f) / 0.25f) < 1e-5f);
      }
  EXPECT(wrong == 0);

  args.window[1] = 10.0;
  EXPECT(dr_slices_cut(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("window = (10, 10)");
  args.slices = NULL;
  EXPECT(dr_slices_cut(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("must not be NULL");
  free(out);
}

static void test_devices(const float* image) {
  float out = 0.0f;
  dr_execution execution = DR_INIT(dr_execution);
  dr_resample_args args = DR_INIT(dr_resample_args);
  args.in = image;
  args.out = &out;
  set3(args.in_shape, Z, Y, X);
  set3(args.out_shape, 1, 1, 1);
  set3(args.samples, 1, 1, 1);
  identity(args.map.affine);
  execution.device = DR_DEVICE_CUDA;
  if (dr_cuda_device_count() == 0) {
    EXPECT(dr_image_resample(&execution, &args) == DR_ERROR_DEVICE_UNAVAILABLE);
    EXPECT_MESSAGE("CUDA");
  }
  execution.device = (dr_device)7;
  EXPECT(dr_image_resample(&execution, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("device = 7");
}

static uint16_t* mind(const dr_execution* cpu, const float* image) {
  uint16_t* features = allocate(VOXELS * CHANNELS * sizeof *features);
  dr_mind_args args = DR_INIT(dr_mind_args);
  args.image = image;
  args.out = features;
  set3(args.shape, Z, Y, X);
  set3(args.radius, 1, 1, 1);
  set3(args.dilation, 2, 2, 2);
  set3(args.pool, 1, 1, 1);
  args.channels = CHANNELS;
  args.scale = 1.0f;
  const size_t bytes = dr_mind_workspace_bytes(&args);
  EXPECT(bytes > 0);
  EXPECT(dr_mind_workspace_bytes(NULL) == 0);
  EXPECT(dr_mind_compute(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("workspace is NULL");
  args.workspace = allocate(bytes);
  args.workspace_bytes = bytes - 1;
  EXPECT(dr_mind_compute(cpu, &args) == DR_ERROR_WORKSPACE_TOO_SMALL);
  EXPECT_MESSAGE("wanted");
  args.workspace_bytes = bytes;
  args.workspace = (char*)args.workspace + 4; /* harmless on a CPU, a fault on a GPU */
  EXPECT(dr_mind_compute(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("workspace must be 16-byte aligned");
  args.workspace = (char*)args.workspace - 4;
  EXPECT(dr_mind_compute(cpu, &args) == DR_OK);
  int wrong = 0;
  for (int i = 0; i < VOXELS; ++i) {
    int ones = 0;
    for (int c = 0; c < CHANNELS; ++c) {
      const uint16_t half = features[i * CHANNELS + c];
      wrong += half > (c < 12 ? 0x3c00 : 0); /* 0..1, and 0 in unused channels */
      ones += half == 0x3c00;
    }
    wrong += ones == 0; /* the best channel of a voxel is 1 */
  }
  EXPECT(wrong == 0);
  args.channels = 10;
  EXPECT(dr_mind_workspace_bytes(&args) == 0);
  EXPECT_MESSAGE("channels = 10");
  free(args.workspace);
  return features;
}

typedef struct Watch {
  int searches, refinements, stop_after;
} Watch;

static int watch(void* user, dr_stage stage, float fraction) {
  Watch* seen = user;
  EXPECT(fraction > 0.0f && fraction <= 1.0f);
  if (stage == DR_STAGE_SEARCH) ++seen->searches;
  if (stage == DR_STAGE_REFINE) ++seen->refinements;
  return seen->stop_after > 0 && seen->searches + seen->refinements >= seen->stop_after;
}

static void test_solver(const dr_execution* cpu, const float* image, const float* moved) {
  uint16_t* fixed = mind(cpu, image);
  uint16_t* moving = mind(cpu, moved);
  float* weight = allocate(VOXELS * sizeof *weight);
  float* field = allocate(3 * VOXELS * sizeof *field);
  for (int i = 0; i < VOXELS; ++i) weight[i] = 1.0f;
  const double coupling[] = {0.003, 0.03, 0.3};
  const int32_t iterations[] = {10, 30};

  dr_feature_distance distance = {0};
  dr_solver_args args = DR_INIT(dr_solver_args);
  args.feature_distance = &distance;
  args.fixed = fixed;
  args.fixed_weight = weight;
  args.moving = moving;
  args.moving_weight = weight;
  args.field = field;
  set3(args.fixed_shape, Z, Y, X);
  set3(args.moving_shape, Z, Y, X);
  args.stride = CHANNELS;
  args.channels = 12;
  for (int i = 0; i < 3; ++i) {
    args.spacing_mm[i] = 2.0;
    args.search_factor[i] = 2;
    args.search_radius[i] = 2;
  }
  args.search_levels = 1;
  args.cost_smoothing_mm = 4.0;
  args.field_smoothing_mm = 4.0;
  args.coupling_rounds = 3;
  args.consistency_rounds = 3;
  args.iterations = iterations;
  args.levels = 2;
  args.learning_rate_mm = 0.2;
  args.smoothing_mm = 4.0;
  args.smoothness = 0.1;
  args.feature_weight = 1.0;
  args.fold_penalty = 1.0;
  args.fold_margin = 0.1;

  /* The workspace's size depends on sizes alone, so neither arrays nor coupling are needed. */
  const size_t bytes = dr_solver_workspace_bytes(&args);
  EXPECT(bytes > 0);
  EXPECT(dr_solver_workspace_bytes(NULL) == 0);
  EXPECT(dr_solver_run(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("coupling is NULL");
  args.coupling = coupling;
  EXPECT(dr_solver_workspace_bytes(&args) == bytes);
  args.feature_weight = 0.0;
  EXPECT(dr_solver_run(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("wanted one above 0");
  args.squarings = 13;
  EXPECT(dr_solver_run(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("squarings = 13; wanted 0..12");
  args.squarings = 0;
  args.feature_similarity = 3;
  EXPECT(dr_solver_workspace_bytes(&args) == 0);
  EXPECT(dr_solver_run(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("feature_similarity = 3; wanted DR_FEATURES_MSE, _COSINE or _LNCC");
  args.feature_similarity = DR_FEATURES_LNCC;
  args.feature_weight = 1.0;
  EXPECT(dr_solver_workspace_bytes(&args) >= bytes);
  args.feature_similarity = DR_FEATURES_MSE;
  args.feature_weight = args.correlation_weight = 1.0;
  EXPECT(dr_solver_run(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("must not be NULL with a correlation_weight");
  EXPECT(dr_solver_workspace_bytes(&args) >= bytes);
  args.correlation_weight = 0.0;
  EXPECT(dr_solver_run(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("workspace is NULL");
  /* Guard bytes behind the workspace show that a call keeps within what it asked for. */
  unsigned char* memory = allocate(bytes + 4096);
  memset(memory + bytes, 0xa5, 4096);
  args.workspace = memory;
  args.workspace_bytes = bytes - 1;
  EXPECT(dr_solver_run(cpu, &args) == DR_ERROR_WORKSPACE_TOO_SMALL);
  EXPECT_MESSAGE("wanted");
  args.workspace_bytes = bytes;

  Watch seen = {0, 0, 0};
  dr_execution execution = *cpu;
  execution.progress = watch;
  execution.progress_user = &seen;
  EXPECT(dr_solver_run(&execution, &args) == DR_OK);
  EXPECT(seen.searches > 0);
  EXPECT(seen.refinements == 40);
  int touched = 0;
  for (int i = 0; i < 4096; ++i) touched += memory[bytes + (size_t)i] != 0xa5;
  EXPECT(touched == 0);
  EXPECT(distance.overlap > 0.5 && distance.overlap <= 1.0);
  EXPECT(distance.after < 0.5 * distance.before);
  /* The blob moved by two voxels of 2 mm along x. */
  const float* centre = field + 3 * ((4 * Y + 5) * X + 6);
  const float found = centre[2];
  EXPECT(fabsf(centre[0]) < 1.0f && fabsf(centre[1]) < 1.0f && fabsf(centre[2] - 4.0f) < 1.0f);

  seen.stop_after = seen.searches + seen.refinements + 1;
  EXPECT(dr_solver_run(&execution, &args) == DR_ERROR_CANCELLED);
  EXPECT_MESSAGE("cancelled by the progress callback");

  /* The search may compare features of its own; here they are those of the refinement. */
  dr_feature_pair pair = {.fixed = fixed,
                          .fixed_weight = weight,
                          .moving = moving,
                          .moving_weight = weight,
                          .stride = CHANNELS,
                          .channels = 12};
  args.search_features = &pair;
  EXPECT(dr_solver_workspace_bytes(&args) == bytes);
  EXPECT(dr_solver_run(cpu, &args) == DR_OK);
  EXPECT(centre[2] == found);
  pair.moving_weight = NULL;
  EXPECT(dr_solver_workspace_bytes(&args) == bytes);
  EXPECT(dr_solver_run(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("search_features[0]: fixed, fixed_weight, moving and moving_weight must not");
  pair.stride = 10;
  EXPECT(dr_solver_workspace_bytes(&args) == 0);
  EXPECT_MESSAGE("search_features[0].stride = 10; wanted a multiple of 8");

  args.search_features = NULL;
  args.field = NULL;
  EXPECT(dr_solver_run(cpu, &args) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("must not be NULL");
  free(memory);
  free(field);
  free(weight);
  free(moving);
  free(fixed);
}

/* On a CPU the work of a session runs while it is queued. */
static void test_session(const dr_execution* cpu, const float* image) {
  float* out = allocate(VOXELS * sizeof *out);
  dr_resample_args args = DR_INIT(dr_resample_args);
  args.in = image;
  args.out = out;
  set3(args.in_shape, Z, Y, X);
  set3(args.out_shape, Z, Y, X);
  set3(args.samples, 1, 1, 1);
  identity(args.map.affine);
  dr_session* session = NULL;
  EXPECT(dr_session_create(0, &session) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("graphs = 0; wanted 1..1024");
  EXPECT(session == NULL);
  EXPECT(dr_session_create(4, NULL) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT(dr_session_create(4, &session) == DR_OK);
  EXPECT(dr_session_end(session) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT_MESSAGE("has not begun");
  for (int time = 0; time < 3; ++time) {
    memset(out, 0, VOXELS * sizeof *out);
    EXPECT(dr_session_begin(session, cpu, 17) == DR_OK);
    EXPECT(dr_session_recording(session) == 0);
    EXPECT(dr_session_begin(session, cpu, 17) == DR_ERROR_INVALID_ARGUMENT);
    EXPECT_MESSAGE("recording already");
    EXPECT(dr_image_resample(cpu, &args) == DR_OK);
    EXPECT(memcmp(out, image, VOXELS * sizeof *out) == 0);
    EXPECT(dr_session_end(session) == DR_OK);
  }
  int32_t lost = 1;
  EXPECT(dr_session_begin(session, cpu, 17) == DR_OK);
  EXPECT(dr_session_abandon(session, &lost) == DR_OK && lost == 0);
  EXPECT(dr_session_abandon(session, NULL) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT(dr_session_begin(session, NULL, 17) == DR_ERROR_INVALID_ARGUMENT);
  EXPECT(dr_session_begin(NULL, cpu, 17) == DR_ERROR_INVALID_ARGUMENT);
  dr_session_counts counts;
  EXPECT(dr_session_count(session, &counts) == DR_OK);
  EXPECT(counts.as_it_is == 0 && counts.recorded == 0 && counts.lost == 0);
  dr_session_destroy(session);
  dr_session_destroy(NULL);
  free(out);
}

int main(void) {
  float* image = allocate(VOXELS * sizeof *image);
  float* moved = allocate(VOXELS * sizeof *moved);
  fill_image(image, 0.0f);
  fill_image(moved, 2.0f);
  dr_execution cpu = DR_INIT(dr_execution);
  cpu.threads = 2;
  test_facts();
  test_resample(&cpu, image);
  test_sizes(&cpu, image);
  test_pool(&cpu);
  test_slices(&cpu, image);
  test_devices(image);
  test_solver(&cpu, image, moved);
  test_session(&cpu, image);
  free(moved);
  free(image);
  printf("%d failures\n", failures);
  return failures > 0;
}
