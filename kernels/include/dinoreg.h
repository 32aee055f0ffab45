/* libdinoreg: registration kernels and solver for 3D feature volumes. C11 and C++.
 *
 * Conventions
 *   Arrays are C-contiguous, axes (z, y, x[, channel]); vectors and matrices use the same order
 *   z, y, x. Index coordinates are continuous with voxel centres at integers. Displacements of the
 *   solver are millimetres along the grid's own axes.
 *   Numbers in arrays must be finite, weights 0 or more. They are not looked at: NaN or infinity in
 *   an image, in features or in a weight gives DR_OK and NaN in the results, of the solver in the
 *   whole field; it is no fault of memory. Numbers in the structs are checked.
 *   A process that was made by fork() after a call with threads > 1 must not make such a call: the
 *   OpenMP runtime waits for threads that it does not have. Start it by exec, or use 1 thread.
 *   Arrays begin at multiples of their type's size, features and workspaces of 16 bytes.
 *   All pointers of one call live on the device named in dr_execution. The library allocates no
 *   device memory and keeps none: what a call needs beside its arrays is the workspace it is given.
 *   Calls on a CPU return when the work is done; calls on CUDA are ordered on the given stream and
 *   do not wait for it. Until the caller has, arrays and workspace must stay, results are not there
 *   and faults of kernels not known. Arrays in host memory are read before a call returns.
 *   Calls are thread-safe as long as they do not share output arrays or workspace. The message of
 *   the last error belongs to the calling thread.
 *   Same input, device and build: same bits, for any number of threads. Where there are fewer
 *   processors than threads, no more than 64 are started.
 *
 * Every struct is zero-initialised by the caller before its fields are set.
 */
#ifndef DINOREG_H_
#define DINOREG_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define DR_API __attribute__((visibility("default")))
#else
#define DR_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define DR_VERSION_MAJOR 0
#define DR_VERSION_MINOR 1

typedef enum dr_status {
  DR_OK = 0,
  DR_ERROR_INVALID_ARGUMENT = 1,
  DR_ERROR_WORKSPACE_TOO_SMALL = 2,
  DR_ERROR_DEVICE_UNAVAILABLE = 3, /* this build or machine has no such device */
  DR_ERROR_DEVICE_FAILED = 4,      /* the device reported an error */
  DR_ERROR_CANCELLED = 5           /* the progress callback asked to stop */
} dr_status;

typedef enum dr_device { DR_DEVICE_CPU = 0, DR_DEVICE_CUDA = 1 } dr_device;

/* How the refinement compares features. */
typedef enum dr_features {
  DR_FEATURES_MSE = 0,    /* squared difference */
  DR_FEATURES_COSINE = 1, /* 1 - cosine of the angle between the vectors */
  DR_FEATURES_LNCC = 2    /* 1 - local correlation, channel by channel */
} dr_features;

typedef enum dr_stage { DR_STAGE_SEARCH = 0, DR_STAGE_REFINE = 1 } dr_stage;

/* Called on the calling thread; `fraction` is that of the stage. Nonzero cancels the solve. */
typedef int (*dr_progress)(void* user, dr_stage stage, float fraction);

typedef struct dr_execution {
  dr_device device;
  int32_t threads;      /* CPU threads, 0..1024; 0: all the process may use */
  void* stream;         /* cudaStream_t; NULL: the default stream */
  dr_progress progress; /* NULL: none */
  void* progress_user;
} dr_execution;

/* Major * 1000 + minor of the library that is loaded. */
DR_API int32_t dr_version(void);
/* Text of a status; never NULL. */
DR_API const char* dr_status_string(dr_status status);
/* What went wrong in this thread's last failed call: what came and what was wanted. */
DR_API const char* dr_last_error_message(void);
/* Instruction set that CPU calls use here: "x86-64-v4", "x86-64-v3" or "generic". */
DR_API const char* dr_cpu_isa(void);
/* 1 when the library was built with CUDA. */
DR_API int32_t dr_cuda_built(void);
/* Number of CUDA devices; 0 without a driver or a CUDA build. */
DR_API int32_t dr_cuda_device_count(void);
/* Why no CUDA device can be used; empty when one can. Valid until this thread's next call of it. */
DR_API const char* dr_cuda_problem(void);

/* output index -> affine(index) + matrix * u(to_field(index)). Without a field: affine alone. */
typedef struct dr_point_map {
  double affine[12];   /* 3x4 */
  const float* field;  /* (z, y, x, 3) or NULL */
  int32_t field_shape[3];
  double to_field[12]; /* 3x4: output index -> index of the field's grid */
  double matrix[9];    /* 3x3: the field's vectors -> the result's coordinates */
} dr_point_map;

typedef struct dr_resample_args {
  const float* in;    /* may be NULL without out: only its shape counts then */
  int32_t in_shape[3];
  float* out;         /* may be NULL */
  int32_t out_shape[3];
  float* inside;      /* (out_shape) share of the sampled points inside the input; may be NULL */
  dr_point_map map;   /* output index -> input index */
  int32_t samples[3]; /* points per output voxel and axis, >= 1 */
  float outside;      /* value where no point is inside the input */
  int32_t extend;     /* 1: the border goes on beyond the input; not with inside or a field */
} dr_resample_args;
DR_API dr_status dr_image_resample(const dr_execution* execution, const dr_resample_args* args);

typedef struct dr_labels_args {
  const int32_t* in;
  int32_t in_shape[3];
  int32_t* out;
  int32_t out_shape[3];
  dr_point_map map;
  int32_t nearest; /* 1: nearest voxel; 0: label with the largest trilinear weight */
  int32_t outside;
} dr_labels_args;
DR_API dr_status dr_labels_resample(const dr_execution* execution, const dr_labels_args* args);

/* Slices of an image as an encoder is shown them: resized over the same box, windowed to 0..1 and
 * normalised by channel. A slice is made of its own voxels alone; its border goes on beyond it.
 * The image's array may have any order: shape and strides are those of slices, rows and columns.
 */
typedef struct dr_slices_args {
  const float* image; /* first voxel of the first slice's first row */
  int32_t shape[3];   /* slices, rows, columns */
  int32_t strides[3]; /* numbers from one to the next; negative where the array runs back */
  const int32_t* slices; /* (count) which ones are cut; host memory */
  int32_t count;
  int32_t size[2]; /* height and width of the result */
  int32_t samples[2]; /* points averaged for each pixel, along rows' and columns' index, 1..64 */
  double window[2]; /* intensities that become 0 and 1; beyond them it is clipped */
  int32_t channels; /* 1..4, all from the same value: (value - mean) / std */
  const double* mean; /* (channels) host memory */
  const double* std; /* (channels) host memory */
  float* out; /* (count, channels, height, width) */
} dr_slices_args;
DR_API dr_status dr_slices_cut(const dr_execution* execution, const dr_slices_args* args);

typedef struct dr_map_args {
  float* out; /* (z, y, x, 3) */
  int32_t out_shape[3];
  dr_point_map map;
} dr_map_args;
/* out = map(index): a field on another grid, an affine as a field, or their sum. */
DR_API dr_status dr_field_map(const dr_execution* execution, const dr_map_args* args);

typedef struct dr_jacobian_args {
  const float* field; /* (z, y, x, 3) */
  float* out;         /* (z, y, x): det(I + du/dp) */
  int32_t shape[3];
  double index_from_unit[9]; /* 3x3: the field's vectors -> index (z, y, x) */
} dr_jacobian_args;
DR_API dr_status dr_field_jacobian(const dr_execution* execution, const dr_jacobian_args* args);

typedef struct dr_compose_args {
  const float* first; /* (z, y, x, 3), mm along the axes */
  int32_t shape[3];
  const float* second;
  int32_t second_shape[3];
  double to_second[12]; /* 3x4: index of the first grid -> index of the second */
  double spacing_mm[3]; /* of the first grid */
  float* out;           /* first(p) + second(p + first(p)) */
} dr_compose_args;
DR_API dr_status dr_field_compose(const dr_execution* execution, const dr_compose_args* args);

typedef struct dr_invert_args {
  const float* field; /* (z, y, x, 3) */
  int32_t field_shape[3];
  double matrix[9];     /* 3x3: the field's vectors -> index of its grid */
  double spacing_mm[3]; /* of the field's grid */
  double target[12];    /* 3x4: output index -> the index p + matrix * u(p) that is looked for */
  const float* wanted; /* (z, y, x, 3): such indices for each output voxel; NULL takes target */
  double from_point[12]; /* out = from_point(p) + from_index(output index) */
  double from_index[12];
  float* out;         /* (z, y, x, 3) */
  float* residual_mm; /* (z, y, x), negative where p is outside of the field; may be NULL */
  int32_t out_shape[3];
  int32_t iterations;
  double tolerance_mm;
} dr_invert_args;
DR_API dr_status dr_field_invert(const dr_execution* execution, const dr_invert_args* args);

typedef struct dr_mind_args {
  const float* image;
  int32_t shape[3];
  int32_t radius[3], dilation[3]; /* voxels */
  int32_t pool[3];                /* voxels per cell of the output grid */
  uint16_t* out;                  /* (ceil(shape / pool), channels): half precision */
  float* structure;               /* out: 0 where a cell is flat and says nothing; may be NULL */
  int32_t channels;               /* stored per voxel: >= 12, a multiple of 8; the rest is 0 */
  float scale;
  void* workspace;
  size_t workspace_bytes;
} dr_mind_args;
DR_API size_t dr_mind_workspace_bytes(const dr_mind_args* args);
DR_API dr_status dr_mind_compute(const dr_execution* execution, const dr_mind_args* args);

/* Intensities relative to their neighbourhood, one channel for each window, on a lattice of cells:
 * scale (mean of the cell - mean of the window) / sqrt(variance of the window + noise^2).
 */
typedef struct dr_local_args {
  const float* image;
  int32_t shape[3];
  int32_t pool[3];       /* voxels per cell */
  double spacing_mm[3];  /* of the image */
  const double* sigma_mm; /* widths of the Gaussian windows; host memory */
  int32_t windows;
  double noise; /* in units of the image: weaker structure fades out */
  double scale;
  uint16_t* out;         /* (ceil(shape / pool), channels): half precision */
  int32_t channels;      /* stored per cell */
  int32_t first_channel; /* the windows' channels begin here; the others are left alone */
  void* workspace;
  size_t workspace_bytes;
} dr_local_args;
DR_API size_t dr_local_workspace_bytes(const dr_local_args* args);
DR_API dr_status dr_local_compute(const dr_execution* execution, const dr_local_args* args);

/* Features on a coarser lattice: means over its cells, weighted. Cell i of an axis covers those of
 * the voxels from i factor - offset to (i + 1) factor - offset that exist; there are
 * ceil((shape + offset) / factor) of them.
 */
typedef struct dr_pool_args {
  const uint16_t* features; /* (shape, channels) half precision, 16-byte aligned */
  const float* weight;      /* (shape) */
  int32_t shape[3];
  int32_t channels;  /* a multiple of 8 */
  int32_t factor[3]; /* 1..64 voxels per cell */
  int32_t offset[3]; /* 0..factor - 1: voxels that the first cell lacks at its beginning */
  uint16_t* out;     /* (cells, channels), 16-byte aligned; 0 where nothing has weight */
  float* out_weight; /* (cells) mean of the weights */
} dr_pool_args;
DR_API dr_status dr_features_pool(const dr_execution* execution, const dr_pool_args* args);

/* How well the features agree, as means over what both weights see. */
typedef struct dr_feature_distance {
  double before; /* mean weighted squared difference without displacement */
  double after;  /* the same with it */
  double overlap; /* share of the fixed weight that meets moving weight */
} dr_feature_distance;

/* Features of both images on the solver's two grids, with weights and channels of their own. */
typedef struct dr_feature_pair {
  const uint16_t* fixed;     /* (fixed_shape, stride) half precision, 16-byte aligned */
  const float* fixed_weight; /* (fixed_shape) 0..1 */
  const uint16_t* moving;    /* (moving_shape, stride) */
  const float* moving_weight;
  int32_t stride;   /* channels stored per voxel: a multiple of 8 */
  int32_t channels; /* used ones; the rest hold 0 */
} dr_feature_pair;

/* Finds u on the fixed grid such that fixed(p) ~ moving(p + u(p)). */
typedef struct dr_solver_args {
  const uint16_t* fixed;     /* (fixed_shape, channels) half precision, 16-byte aligned */
  const float* fixed_weight; /* (fixed_shape) 0..1 */
  int32_t fixed_shape[3];
  const uint16_t* moving; /* (moving_shape, channels), on the same lattice */
  const float* moving_weight;
  int32_t moving_shape[3];
  int32_t moving_offset[3]; /* index of the moving grid's first voxel on the fixed grid */
  int32_t stride;           /* channels stored per voxel: a multiple of 8 */
  int32_t channels;         /* used ones; the rest hold 0 */
  double spacing_mm[3];

  /* Discrete search: cells of search_factor voxels, shifts of whole cells; up to 64 rounds of
   * coupling and 1000 of consistency. */
  int32_t search_factor[3];
  int32_t search_radius[3]; /* in cells; all 0: no search */
  /* 1..4. Every further level halves the cells, to whole voxels, and searches two of them around
   * what was found, the smoothing widths being as much smaller: x(p) becomes d(p) + x(p + d(p)). */
  int32_t search_levels;
  /* With search_trust_cost > 0 features that differ by d = |M - F|^2 cost d / (1 + d /
   * search_trust_cost), before costs are smoothed: what disagrees pulls less. 0: they cost d. */
  double search_trust_cost;
  double cost_smoothing_mm; /* sigma */
  double field_smoothing_mm;
  /* With search_edges > 0 that smoothing yields between unlike cells of the fixed image (of the
   * moving one on the way back): a neighbour whose features differ by s times what those of
   * unrelated cells do counts exp(-s search_edges), by a power close to it. 0: a plain Gaussian. */
  double search_edges;
  const double* coupling; /* host memory */
  int32_t coupling_rounds;
  /* MiB. Where the costs of all shifts of a level take no more, the workspace keeps them for the
   * rounds of coupling, which else compute them again: the same result, slower. */
  int32_t kept_costs_mb;
  int32_t consistency_rounds;
  /* Host memory: what each of the search_levels compares; NULL: the features above, which are those
   * of the refinement and of feature_distance. */
  const dr_feature_pair* search_features;

  /* Refinement: Adam on x, displacement = smooth(x), from coarse to fine. Level k of `levels` works
   * on voxels 2^(levels - 1 - k) times as large, with learning rate and smoothing as much larger.
   */
  const int32_t* iterations; /* host memory: one number for each level */
  int32_t levels;            /* 1..6 */
  double learning_rate_mm;
  /* Gradients smaller than this share of those with the images one voxel off make shorter steps, so
   * that what matches stays; 0: all steps are as long. */
  double adam_epsilon;
  double smoothing_mm; /* sigma */
  double smoothness;   /* lambda */
  /* What is compared: feature_weight d over the features, and correlation_weight (1 - rho^2), rho
   * the correlation of the images in Gaussian windows; at least one weight must not be 0.
   * feature_similarity is one of dr_features:
   *   MSE     d = |M - F|^2, summed over channels
   *   COSINE  d = s (1 - F.M / (|F| |M|))
   *   LNCC    d = s (1 - rho), rho each channel's correlation in the same windows, signed, and its
   *           mean over channels; noise is correlation_noise times the channels' root mean square
   * where s is twice the mean of |F|^2 on the level: for vectors of this length COSINE is MSE.
   * With trust_cost > 0, not for LNCC, a voxel that costs d costs d / (1 + d / trust_cost): what
   * disagrees pulls less.
   */
  double feature_weight;
  int32_t feature_similarity;
  double trust_cost;
  const float* fixed_image; /* (fixed_shape) around 0..1; NULL without correlation_weight */
  const float* moving_image; /* (moving_shape) */
  double correlation_weight;
  double correlation_window_mm; /* sigma of the finest level; coarser ones use as much more */
  double correlation_noise; /* in units of the images: weaker fixed structure fades out */
  double fold_penalty; /* at the last iteration; grows from 0 with the square of their number */
  double fold_margin; /* det J below this is penalised */

  /* 0: Adam changes the displacement. K > 0: it changes a stationary velocity v, and the
   * displacement is exp(v), by K squarings of v / 2^K; exp(-v) is its inverse.
   */
  int32_t squarings;

  float* field; /* out: (fixed_shape, 3), mm along the grid's axes */
  float* inverse; /* out: exp(-v), as field; NULL without squarings or when not wanted */
  /* out: (fixed_shape, 3), mm: standard deviation along each axis of the shifts that match nearly
   * as well as the best of the discrete search; NULL: not wanted. Without a search it is 0. */
  float* spread;
  dr_feature_distance* feature_distance; /* out: on the device as all arrays; NULL: not wanted */
  void* workspace;
  size_t workspace_bytes;
} dr_solver_args;
DR_API size_t dr_solver_workspace_bytes(const dr_solver_args* args);
DR_API dr_status dr_solver_run(const dr_execution* execution, const dr_solver_args* args);

#ifdef __cplusplus
}
#endif

#endif /* DINOREG_H_ */
