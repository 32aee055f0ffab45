/* libdinoreg: registration kernels and solver for 3D feature volumes, for C11 and C++.
 *
 * Conventions
 *   Arrays are C-contiguous with the axes (z, y, x[, channel]), and vectors and matrices use the
 *   same order z, y, x. Index coordinates are continuous, with voxel centres at integers. The
 *   solver's displacements are in millimetres along the grid's own axes.
 *
 *   Numbers in arrays must be finite, and weights must not be negative. The library does not check
 *   them: NaN or infinity in an image, in features or in a weight gives DR_OK and NaN in the
 *   results (in the whole field of the solver), but never an invalid memory access.
 *
 *   Numbers in the structs are checked, and so are those in host memory, except strides and values
 *   that are only written (`outside`). Computations use single precision, so matrices and other
 *   numbers of any sign lie in -1e30..1e30; lengths and other positive numbers in 1e-15..1e15; and
 *   weights and smoothing widths there or at 0. Shapes have 1..32768 voxels along each axis, and
 *   arrays at most 32768 channels. The features of a solve have at most 4 TiB for each image; what
 *   is smoothed has at most 2^26 lines along x and 2^29 voxels in a plane of constant z. Anything
 *   else gives DR_ERROR_INVALID_ARGUMENT and a message that names the field, its value and what is
 *   wanted.
 *
 *   Arrays begin at a multiple of the size of their type, features and workspaces at a multiple of
 *   16 bytes. All pointers of a call refer to the device named in dr_execution, unless they are
 *   marked as host memory. The library allocates no device memory and keeps none: a call works in
 *   the workspace that it is given.
 *
 *   A call on a CPU returns when its work is done. A call on CUDA is enqueued on the given stream
 *   and does not wait for its work. Until the caller has waited, arrays and workspace must stay
 *   valid, the results are incomplete, and errors of kernels are not known yet. Arrays in host
 *   memory are read before the call returns.
 *
 *   Calls may run in several threads as long as they share no output arrays and no workspace. Every
 *   thread has its own last error message.
 *
 *   The same input, device and build give the same bits, for any number of threads. A CPU call with
 *   threads > 1 works on the calling thread and on threads of the library, which all calls share.
 *   They are named "dinoreg", are started when they are first needed, take no signals, sleep
 *   between calls and end with the process; the library is never unloaded. At most 64 are started,
 *   or as many as the process may use processors if those are more. A process created by fork()
 *   starts its own.
 *
 *   Structs that functions take begin with their size, and fields that you do not set must be 0.
 *   `dr_mind_args args = DR_INIT(dr_mind_args);` does both, in C and C++, and in C so does
 *   `dr_mind_args args = {.struct_size = sizeof args, .image = image};`. The size tells the library
 *   which fields your header has: later versions append some, for which 0 means what earlier ones
 *   did. A struct that is larger than the library knows is refused unless the rest is 0. Structs
 *   without a size never change. A program therefore runs with every later library of its DR_ABI,
 *   which is also the number in the library's name, libdinoreg.so.1.
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

#define DR_VERSION_MAJOR 0
#define DR_VERSION_MINOR 1
#define DR_ABI 1

/* A struct of this type with its size in struct_size and zeros in all other fields. */
#ifdef __cplusplus
template <class Struct>
Struct dr_init_struct() {
  Struct value{};
  value.struct_size = sizeof(Struct);
  return value;
}
#define DR_INIT(type) (dr_init_struct<type>())
#else
#define DR_INIT(type) ((type){.struct_size = sizeof(type)})
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dr_status {
  DR_OK = 0,
  DR_ERROR_INVALID_ARGUMENT = 1,
  DR_ERROR_WORKSPACE_TOO_SMALL = 2,
  DR_ERROR_DEVICE_UNAVAILABLE = 3, /* this build or machine has no such device */
  DR_ERROR_DEVICE_FAILED = 4,      /* the device reported an error */
  DR_ERROR_CANCELLED = 5,          /* the progress callback asked to stop */
  DR_ERROR_NOT_RECORDED = 6        /* a session could not record; nothing of it has run */
} dr_status;

typedef enum dr_device { DR_DEVICE_CPU = 0, DR_DEVICE_CUDA = 1 } dr_device;

/* How the refinement compares features; see dr_solver_args. */
typedef enum dr_features {
  DR_FEATURES_MSE = 0,    /* squared difference */
  DR_FEATURES_COSINE = 1, /* 1 - cosine of the angle between the vectors */
  DR_FEATURES_LNCC = 2    /* 1 - local correlation of each channel */
} dr_features;

typedef enum dr_stage { DR_STAGE_SEARCH = 0, DR_STAGE_REFINE = 1 } dr_stage;

/* Called on the thread that runs the solver, with the fraction of the stage that is done. A result
 * other than 0 cancels the solve. */
typedef int (*dr_progress)(void* user, dr_stage stage, float fraction);

typedef struct dr_execution {
  size_t struct_size; /* sizeof(dr_execution) */
  dr_device device;
  int32_t threads;      /* CPU threads, 0..1024; 0 takes all that the process may use */
  void* stream;         /* cudaStream_t; NULL is the default stream */
  dr_progress progress; /* may be NULL */
  void* progress_user;  /* first argument of `progress` */
} dr_execution;

/* Version of the loaded library, major * 1000 + minor. */
DR_API int32_t dr_version(void);
/* Name of a status; never NULL. */
DR_API const char* dr_status_string(dr_status status);
/* Message of this thread's last failed call: what it was given and what was wanted. */
DR_API const char* dr_last_error_message(void);
/* Instruction set of calls on this CPU: "x86-64-v4", "x86-64-v3" or "generic". */
DR_API const char* dr_cpu_isa(void);
/* 1 if the library was built with CUDA, otherwise 0. */
DR_API int32_t dr_cuda_built(void);
/* Number of CUDA devices; 0 without a driver or a CUDA build. */
DR_API int32_t dr_cuda_device_count(void);
/* Why the current CUDA device cannot be used, such as a library without code for it; empty if it
 * can. Loads a kernel, which makes the device's context. Valid until this thread calls it again. */
DR_API const char* dr_cuda_problem(void);

/* A mapping from one grid to another. It takes an output index to
 * affine(index) + matrix * u(to_field(index)), where u is the field, interpolated linearly and
 * clamped at its border. Without a field it is affine(index). */
typedef struct dr_point_map {
  double affine[12];  /* 3x4 */
  const float* field; /* (field_shape, 3), or NULL */
  int32_t field_shape[3];
  double to_field[12]; /* 3x4: output index -> index of the field's grid */
  double matrix[9];    /* 3x3: the field's vectors -> coordinates of the result */
} dr_point_map;

/* Resamples an image by linear interpolation. */
typedef struct dr_resample_args {
  size_t struct_size;
  const float* in; /* may be NULL if out is NULL, when only in_shape counts */
  int32_t in_shape[3];
  float* out; /* may be NULL */
  int32_t out_shape[3];
  float* inside;      /* (out_shape): share of the sampled points inside the input; may be NULL */
  dr_point_map map;   /* output index -> input index */
  int32_t samples[3]; /* points averaged for each output voxel along each axis, 1..64 */
  float outside;      /* value where no point is inside the input */
  int32_t extend;     /* 1: the input keeps its border's value; not with inside or a field */
  int32_t reserved;   /* 0 */
} dr_resample_args;
DR_API dr_status dr_image_resample(const dr_execution* execution, const dr_resample_args* args);

/* Resamples labels. */
typedef struct dr_labels_args {
  size_t struct_size;
  const int32_t* in;
  int32_t in_shape[3];
  int32_t* out;
  int32_t out_shape[3];
  dr_point_map map; /* output index -> input index */
  int32_t nearest;  /* 1: nearest voxel; 0: the label with the largest sum of trilinear weights */
  int32_t outside;  /* label outside the input */
} dr_labels_args;
DR_API dr_status dr_labels_resample(const dr_execution* execution, const dr_labels_args* args);

/* Cuts slices of an image as the input of an encoder: resizes them over the same extent, windows
 * them to 0..1 and normalises each channel. A slice is made of its own voxels alone; beyond its
 * border it keeps the value there. The image may have any memory order: shape and strides are those
 * of slices, rows and columns. */
typedef struct dr_slices_args {
  size_t struct_size;
  const float* image;    /* first voxel of the first row of the first slice */
  int32_t shape[3];      /* slices, rows, columns */
  int32_t strides[3];    /* in numbers; negative where the array runs backwards */
  const int32_t* slices; /* (count) indices of the slices; host memory */
  int32_t count;
  int32_t size[2];    /* height and width of the result */
  int32_t samples[2]; /* points averaged for each pixel along the row and column index, 1..64 */
  double window[2];   /* intensities that become 0 and 1; values beyond them are clipped */
  int32_t channels;   /* 1..4, each (value - mean) / std of the same value */
  const double* mean; /* (channels); host memory */
  const double* std;  /* (channels); host memory */
  float* out;         /* (count, channels, height, width) */
} dr_slices_args;
DR_API dr_status dr_slices_cut(const dr_execution* execution, const dr_slices_args* args);

/* out = map(index): a field on another grid, an affine mapping as a field, or the sum of both. */
typedef struct dr_map_args {
  size_t struct_size;
  float* out; /* (out_shape, 3) */
  int32_t out_shape[3];
  dr_point_map map;
} dr_map_args;
DR_API dr_status dr_field_map(const dr_execution* execution, const dr_map_args* args);

/* out = det(I + du/dp), by central differences, one-sided at the border. */
typedef struct dr_jacobian_args {
  size_t struct_size;
  const float* field; /* (shape, 3) */
  float* out;         /* (shape) */
  int32_t shape[3];
  double index_from_unit[9]; /* 3x3: the field's vectors -> index (z, y, x) */
} dr_jacobian_args;
DR_API dr_status dr_field_jacobian(const dr_execution* execution, const dr_jacobian_args* args);

/* out = first(p) + second(p + first(p)) on the grid of the first field. */
typedef struct dr_compose_args {
  size_t struct_size;
  const float* first; /* (shape, 3), mm along the axes */
  int32_t shape[3];
  const float* second; /* (second_shape, 3), mm along the same axes */
  int32_t second_shape[3];
  double to_second[12]; /* 3x4: index of the first grid -> index of the second */
  double spacing_mm[3]; /* of the first grid */
  float* out;           /* (shape, 3) */
} dr_compose_args;
DR_API dr_status dr_field_compose(const dr_execution* execution, const dr_compose_args* args);

/* Solves p + matrix * u(p) = q for the index p of the field's grid, where q is target(output index)
 * or given as `wanted`, and writes out = from_point(p) + from_index(output index). */
typedef struct dr_invert_args {
  size_t struct_size;
  const float* field; /* (field_shape, 3) */
  int32_t field_shape[3];
  double matrix[9];      /* 3x3: the field's vectors -> index of its grid */
  double spacing_mm[3];  /* of the field's grid */
  double target[12];     /* 3x4: output index -> q */
  const float* wanted;   /* (out_shape, 3): q for each output voxel; NULL uses target */
  double from_point[12]; /* 3x4 */
  double from_index[12]; /* 3x4 */
  float* out;            /* (out_shape, 3) */
  float* residual_mm;    /* (out_shape), negative where p lies outside the field; may be NULL */
  int32_t out_shape[3];
  int32_t iterations;  /* most reads of the field per voxel, 1..10000 */
  double tolerance_mm; /* a voxel is finished once it misses q by less */
} dr_invert_args;
DR_API dr_status dr_field_invert(const dr_execution* execution, const dr_invert_args* args);

/* Computes MIND-SSC features and averages them over blocks of `pool` voxels; the last block along
 * an axis may hold fewer. */
typedef struct dr_mind_args {
  size_t struct_size;
  const float* image;
  int32_t shape[3];
  int32_t radius[3], dilation[3]; /* voxels */
  int32_t pool[3];                /* voxels per block, 1..64 */
  uint16_t* out;                  /* (ceil(shape / pool), channels): half precision */
  float* structure;               /* out: 0 where a block is flat, otherwise 1; may be NULL */
  int32_t channels;               /* stored, >= 12 and a multiple of 8; all but 12 hold 0 */
  float scale;                    /* factor on the features, which lie in 0..1 */
  void* workspace;
  size_t workspace_bytes;
} dr_mind_args;
DR_API size_t dr_mind_workspace_bytes(const dr_mind_args* args);
DR_API dr_status dr_mind_compute(const dr_execution* execution, const dr_mind_args* args);

/* Computes intensities relative to their neighbourhood over blocks of `pool` voxels, with one
 * channel for each Gaussian window:
 * scale * (mean of the block - mean of the window) / sqrt(variance of the window + noise^2). */
typedef struct dr_local_args {
  size_t struct_size;
  const float* image;
  int32_t shape[3];
  int32_t pool[3];        /* voxels per block, 1..64 */
  double spacing_mm[3];   /* of the image */
  const double* sigma_mm; /* (windows): standard deviations; host memory */
  int32_t windows;
  double noise; /* in units of the image; weaker structure fades out */
  double scale;
  uint16_t* out;         /* (ceil(shape / pool), channels): half precision */
  int32_t channels;      /* stored per block */
  int32_t first_channel; /* where the windows' channels begin; the others are left unchanged */
  void* workspace;
  size_t workspace_bytes;
} dr_local_args;
DR_API size_t dr_local_workspace_bytes(const dr_local_args* args);
DR_API dr_status dr_local_compute(const dr_execution* execution, const dr_local_args* args);

/* Averages features, with their weights, to a coarser grid. Along each axis there are
 * ceil((shape + offset) / factor) blocks; block i covers those of the voxels from
 * i * factor - offset to (i + 1) * factor - offset that exist. */
typedef struct dr_pool_args {
  size_t struct_size;
  const uint16_t* features; /* (shape, channels) half precision, 16-byte aligned */
  const float* weight;      /* (shape) */
  int32_t shape[3];
  int32_t channels;  /* a multiple of 8 */
  int32_t factor[3]; /* voxels per block, 1..64 */
  int32_t offset[3]; /* voxels missing at the start of the first block, 0..factor - 1 */
  uint16_t* out;     /* (blocks, channels), 16-byte aligned; 0 where nothing has weight */
  float* out_weight; /* (blocks): mean weight */
} dr_pool_args;
DR_API dr_status dr_features_pool(const dr_execution* execution, const dr_pool_args* args);

/* Mean difference of the features over the voxels where both images have weight. */
typedef struct dr_feature_distance {
  double before;  /* weighted mean of the squared difference without displacement */
  double after;   /* the same with the displacement */
  double overlap; /* share of the fixed weight that meets moving weight */
} dr_feature_distance;

/* Features of both images on the solver's two grids, with their own weights and channels. */
typedef struct dr_feature_pair {
  const uint16_t* fixed;      /* (fixed_shape, stride) half precision, 16-byte aligned */
  const float* fixed_weight;  /* (fixed_shape), 0..1 */
  const uint16_t* moving;     /* (moving_shape, stride) */
  const float* moving_weight; /* (moving_shape), 0..1 */
  int32_t stride;             /* channels stored per voxel, a multiple of 8 */
  int32_t channels;           /* channels used, the first ones; the others hold 0 */
} dr_feature_pair;

/* Finds the displacement u on the fixed grid such that fixed(p) ~ moving(p + u(p)). */
typedef struct dr_solver_args {
  size_t struct_size;
  const uint16_t* fixed;     /* (fixed_shape, stride) half precision, 16-byte aligned */
  const float* fixed_weight; /* (fixed_shape), 0..1 */
  int32_t fixed_shape[3];
  const uint16_t* moving;     /* (moving_shape, stride), with the same axes and spacing */
  const float* moving_weight; /* (moving_shape), 0..1; nothing matches where it is 0 */
  int32_t moving_shape[3];
  int32_t moving_offset[3]; /* index of the moving grid's first voxel on the fixed grid */
  int32_t stride;           /* channels stored per voxel, a multiple of 8 */
  int32_t channels;         /* channels used, the first ones; the others hold 0 */
  double spacing_mm[3];

  /* Discrete search. It tries all whole shifts of up to search_radius voxels on the search grid,
   * whose voxels are search_factor fixed voxels wide. */
  int32_t search_factor[3]; /* 1..256 */
  int32_t search_radius[3]; /* 0..64 search voxels; 0 along all axes skips the search */
  /* Number of search grids, 1..4. Every further one halves the search voxels, to whole fixed
   * voxels, and searches up to two of them around the last result: x(p) becomes d(p) + x(p + d(p)).
   * Smoothing widths shrink with the search voxels. */
  int32_t search_levels;
  /* If search_trust_cost > 0, features that differ by d = |M - F|^2 cost
   * d / (1 + d / search_trust_cost), before costs are smoothed, so that what disagrees pulls less.
   * With 0 they cost d. */
  double search_trust_cost;
  double cost_smoothing_mm;  /* standard deviation */
  double field_smoothing_mm; /* standard deviation */
  const double* coupling; /* (coupling_rounds): weights of the rounds; host memory */
  int32_t coupling_rounds; /* 0..64 */
  /* Limit in MiB up to which the workspace keeps the costs of all shifts of a level for the coupled
   * rounds. Above it, every round computes them again: the same result, but slower. */
  int32_t kept_costs_mb;
  int32_t consistency_rounds; /* 0..1000; 0 searches in one direction only */
  /* (search_levels): what each level compares; host memory. With NULL the search compares the
   * features above, as the refinement and feature_distance always do. */
  const dr_feature_pair* search_features;

  /* Refinement: Adam on x, with displacement = smooth(x), from coarse to fine. Level k of `levels`
   * works on voxels that are 2^(levels - 1 - k) times as large, with learning rate and smoothing
   * larger by the same factor. */
  const int32_t* iterations; /* (levels), in all at most 2^31 - 1; host memory */
  int32_t levels; /* 1..6 */
  double learning_rate_mm;
  /* Gradients smaller than this share of those with the images one voxel out of register make
   * shorter steps, so that matched tissue stays in place; 0 makes all steps equally long. */
  double adam_epsilon;
  double smoothing_mm; /* standard deviation */
  double smoothness; /* lambda */
  /* The energy has a term feature_weight * d of the features and a term
   * correlation_weight * (1 - rho^2) of the images, where rho is their correlation in Gaussian
   * windows. At least one of the two weights must be above 0. feature_similarity is one of
   * dr_features:
   *   MSE     d = |M - F|^2, summed over channels
   *   COSINE  d = s (1 - F.M / (|F| |M|))
   *   LNCC    d = s (1 - rho), where rho is the signed correlation of each channel in the same
   *           windows, averaged over channels; the noise is correlation_noise times the channels'
   *           root mean square
   * where s is twice the mean of |F|^2 on the level, so that COSINE equals MSE for vectors of this
   * length. If trust_cost > 0 (not with LNCC), a voxel that costs d costs d / (1 + d / trust_cost)
   * instead, so that what disagrees pulls less. */
  double feature_weight;
  int32_t feature_similarity;
  double trust_cost;
  const float* fixed_image; /* (fixed_shape), around 0..1; NULL without correlation_weight */
  const float* moving_image; /* (moving_shape) */
  double correlation_weight;
  double correlation_window_mm; /* standard deviation on the finest level; scales with voxels */
  double correlation_noise; /* in units of the images; weaker fixed structure fades out */
  /* Weight in the last iteration; grows from 0 with the square of the share of iterations. */
  double fold_penalty;
  double fold_margin; /* the value of det J below which a voxel is penalised */

  /* With 0, Adam changes the displacement. With K > 0 it changes a stationary velocity v: the
   * displacement is exp(v), by K squarings of v / 2^K, and exp(-v) is its inverse. */
  int32_t squarings; /* 0..12 */

  float* field; /* out: (fixed_shape, 3), mm along the grid's axes */
  float* inverse; /* out: exp(-v), like field; NULL without squarings or if it is not wanted */
  /* out: (fixed_shape, 3), mm: standard deviation along each axis of the shifts that match nearly
   * as well as the best one of the discrete search; untouched without a search. May be NULL. */
  float* spread;
  dr_feature_distance* feature_distance; /* out: on the device, like all arrays; may be NULL */
  void* workspace;
  size_t workspace_bytes;
} dr_solver_args;
/* The least workspace. With room for copies of both images' features behind it (2 * stride bytes
 * for each voxel, each copy rounded up to 256 bytes), a CUDA device rearranges them and takes less
 * time; the result is the same. */
DR_API size_t dr_solver_workspace_bytes(const dr_solver_args* args);
DR_API dr_status dr_solver_run(const dr_execution* execution, const dr_solver_args* args);

/* A session turns work that is queued again and again into CUDA graphs. What this thread queues on
 * the stream between dr_session_begin and dr_session_end, by this library or by any other, is
 * recorded, and runs as one launch at the end. Pointers, sizes and numbers may differ each time: as
 * long as the kernels are the same ones in the same order, their graph is kept and only its
 * parameters are set.
 *
 *   dr_session_begin(session, &execution, key);
 *   status = dr_solver_run(&execution, &args);
 *   status == DR_OK ? dr_session_end(session) : dr_session_abandon(session, NULL);
 *
 * The key says which work it is, for example a hash of shapes and options; it decides only which
 * graph is used, never the result. Work whose key is new, or whose graph has been dropped in favour
 * of others, is not recorded but runs while it is queued, so that kernels are loaded and memory
 * pools grow; it is recorded from the second time on. Work on a CPU is never recorded, nor is work
 * on a CUDA stream that was created without cudaStreamNonBlocking: while such a stream is recorded,
 * what other threads put on the default stream would fail.
 *
 * Until dr_session_end, recorded work has not run. This thread must not wait for it, read its
 * results, record an event on the stream that anyone waits for, allocate device memory with
 * cudaMalloc, or copy from host memory that changes before the work has run. The memory that it
 * uses must stay allocated until then, even if it holds only intermediate results. Where CUDA finds
 * that something cannot be recorded, dr_session_end gives DR_ERROR_NOT_RECORDED: nothing has run,
 * and the same work can be queued again without a session. A progress callback is called while the
 * work is being recorded.
 *
 * A session is used by one thread at a time, with one recording at a time, which the thread that
 * began it ends. Its graphs take host and device memory for each kernel. */
typedef struct dr_session dr_session;

/* How often the work of a session was queued, by what became of it. */
typedef struct dr_session_counts {
  int64_t as_it_is; /* it ran without being recorded */
  int64_t recorded; /* it was recorded and launched */
  int64_t updated; /* of these: only the parameters of a graph that was kept were set */
  int64_t lost; /* it could not be recorded */
} dr_session_counts;

/* Makes a session that keeps up to `graphs` (1..1024) graphs, those used last, on the CUDA device
 * that is current when they are recorded. */
DR_API dr_status dr_session_create(int32_t graphs, dr_session** session);
DR_API dr_status dr_session_begin(dr_session* session, const dr_execution* execution, uint64_t key);
/* 1 between begin and end if the work is being recorded, 0 if it runs while it is queued. */
DR_API int32_t dr_session_recording(const dr_session* session);
DR_API dr_status dr_session_end(dr_session* session);
/* Ends a recording without running it. Sets `lost`, which may be NULL, to 1 if it could not have
 * been run, because something cannot be recorded, and otherwise to 0. */
DR_API dr_status dr_session_abandon(dr_session* session, int32_t* lost);
DR_API dr_status dr_session_count(const dr_session* session, dr_session_counts* counts);
/* Does not wait for launches that are still running. NULL does nothing. */
DR_API void dr_session_destroy(dr_session* session);

/* Measures of a result. Sums are added in a fixed order. Histograms count weights in whole steps of
 * 1/255, rounded to the nearest, ties to even. All results are written on the device, so that they
 * can be read together at the end. */

/* out = a * (b * c) for weights of voxels. */
typedef struct dr_multiply_args {
  size_t struct_size;
  const float* a; /* (shape), as all of these */
  const float* b;
  const float* c; /* NULL: 1 everywhere */
  float* out; /* may be a, b or c */
  int32_t shape[3];
  int32_t reserved; /* 0 */
} dr_multiply_args;
DR_API dr_status dr_weights_multiply(const dr_execution* execution, const dr_multiply_args* args);

typedef struct dr_array {
  const float* values;
  int64_t size; /* numbers, 1..2^40 */
} dr_array;

/* Adds the numbers of each array. A sum is finite where all numbers are. */
typedef struct dr_sums_args {
  size_t struct_size;
  const dr_array* arrays; /* (count); host memory */
  int64_t count; /* 1..16 */
  double* out; /* (count) */
  void* workspace;
  size_t workspace_bytes;
} dr_sums_args;
DR_API size_t dr_values_workspace_bytes(const dr_sums_args* args);
DR_API dr_status dr_values_sum(const dr_execution* execution, const dr_sums_args* args);

/* Measures of a field. What is not measured is 0. Logarithms are relative to that of the first
 * voxel's det J, which leaves their standard deviation unchanged. */
typedef struct dr_quality {
  double folded; /* number of voxels of `displacement` with det J <= 0 */
  double regular; /* number of voxels with det J > 2e-9 */
  double log_sum; /* of log det J over the regular voxels */
  double log_square_sum; /* of its square */
  double largest; /* largest det J */
  double largest_negative; /* largest -det J */
  double
      consistency_sum; /* of |u(p) + v(p + u(p))| in mm, where p + u(p) lies on the field's grid */
  double consistency_count; /* number of voxels in that sum */
  double consistency_max; /* largest of its terms; negative if there are none */
  double inside; /* number of misses that are not negative */
  double missed; /* number of misses above miss_limit */
  double largest_miss;
} dr_quality;

/* Measures a field, its Jacobian, and how well it can be inverted. */
typedef struct dr_quality_args {
  size_t struct_size;
  const float* displacement; /* (shape, 3); NULL: no Jacobian is measured */
  int32_t shape[3];
  int32_t reserved; /* 0 */
  double index_from_unit[9]; /* 3x3: see dr_jacobian_args */
  const float* field; /* (field_shape, 3), mm along the axes; NULL: no consistency */
  const float* inverse; /* (field_shape, 3), v; NULL: found by dr_field_invert's iteration */
  int32_t field_shape[3];
  int32_t iterations; /* of that iteration, 1..10000 */
  double spacing_mm[3];
  double tolerance_mm;
  const float* misses; /* (miss_count): residual_mm of dr_field_invert; NULL: not measured */
  int64_t miss_count; /* 1..2^40 */
  double miss_limit; /* mm */
  dr_quality* out;
  void* workspace;
  size_t workspace_bytes;
} dr_quality_args;
DR_API size_t dr_quality_workspace_bytes(const dr_quality_args* args);
DR_API dr_status dr_quality_measure(const dr_execution* execution, const dr_quality_args* args);

#define DR_BINS 32 /* of an image's intensities 0..1 in a joint histogram */
#define DR_REGIONS 12 /* most regions of an agreement */

/* How well two images agree before and after a registration. */
typedef struct dr_agreement {
  double before, before_weight; /* weighted sum of the squared feature differences; the weights */
  double after, after_weight;
  double region_weight[12]; /* fixed weight of each region, in steps */
  /* Weights, in steps, by the bins of the fixed and of the moving image: (DR_BINS, DR_BINS). */
  uint64_t joint_before[1024];
  uint64_t joint_after[12288]; /* (regions, bins, bins) */
} dr_agreement;

/* Compares every `step`-th voxel along each axis with the moving voxel nearest to its match. The
 * number of a voxel's region is the sum over the axes of region_factor times the number of its
 * part; parts have equal fixed weight and are numbered along the axis, or against it. */
typedef struct dr_agreement_args {
  size_t struct_size;
  const uint16_t* fixed; /* (fixed_shape, stride) half precision, 16-byte aligned */
  const float* fixed_weight; /* (fixed_shape) */
  const float* fixed_image; /* (fixed_shape), 0..1 */
  const uint16_t* moving; /* (moving_shape, stride), with the same axes and spacing */
  const float* moving_weight; /* (moving_shape) */
  const float* moving_image; /* (moving_shape) */
  int32_t fixed_shape[3];
  int32_t moving_shape[3];
  int32_t moving_offset[3]; /* index of the moving grid's first voxel on the fixed grid */
  int32_t stride; /* channels stored per voxel, a multiple of 8 */
  double spacing_mm[3];
  const float* before; /* (fixed_shape, 3), mm: displacement before; NULL: none */
  const float* after; /* (fixed_shape, 3) */
  int32_t step; /* 1..64 */
  int32_t parts[3]; /* of each axis, 1..DR_REGIONS */
  int32_t region_factor[3];
  int32_t reversed[3]; /* 1: numbered against the axis */
  dr_agreement* out;
  void* workspace;
  size_t workspace_bytes;
} dr_agreement_args;
DR_API size_t dr_agreement_workspace_bytes(const dr_agreement_args* args);
DR_API dr_status dr_agreement_measure(const dr_execution* execution, const dr_agreement_args* args);

/* What a search in one image found. Differences are weighted sums of squared feature differences,
 * followed by the sum of their weights. */
typedef struct dr_mirror_search {
  double after, after_weight; /* with the field that was found */
  double fixed_weight; /* of the whole fixed image */
  double seen; /* fixed weight times that of the image at its match */
  double moved_mm[3]; /* the same times the displacement */
  double before, before_weight; /* without a displacement */
  double shifted, shifted_weight; /* after the mean displacement, in whole voxels */
  uint64_t joint[1024]; /* of the fixed and the warped image, as in dr_agreement */
} dr_mirror_search;

/* The searches of the mirror test; those that are not possible are 0. */
typedef struct dr_mirror_test {
  double unrelated; /* mean squared difference of unrelated voxels */
  dr_mirror_search own; /* in the moving image */
  dr_mirror_search
      mirrored[3]; /* in its mirror images along z, y, x, about its content's centroid */
  dr_mirror_search about_middle; /* along the axis `sides`, about the middle of its grid */
  dr_mirror_search itself; /* in the mirror image of the fixed image about the middle of its grid */
} dr_mirror_test;

/* The mirror test: averages both images to a grid whose voxels are `factor` voxels wide, and
 * searches in the moving image and in mirror images. An axis along which an image has one voxel
 * there has no mirror image. */
typedef struct dr_mirror_args {
  size_t struct_size;
  const uint16_t* fixed; /* these as in dr_agreement_args */
  const float* fixed_weight;
  const float* fixed_image;
  const uint16_t* moving;
  const float* moving_weight;
  const float* moving_image;
  int32_t fixed_shape[3];
  int32_t moving_shape[3];
  int32_t moving_offset[3];
  int32_t stride;
  int32_t channels; /* channels used, the first ones; the others hold 0 */
  int32_t factor; /* 1..64 */
  double spacing_mm[3];
  const int32_t* order; /* (3, ordered): channel c of a mirror image is order[c]; host memory */
  int32_t ordered; /* 0..32; the other channels stay as they are */
  int32_t sides; /* axis from left to right, 0..2 */
  /* These as in dr_solver_args, on the grid of the test; the found field is smoothed as the
   * refinement's. */
  int32_t search_factor[3];
  int32_t search_radius[3];
  double cost_smoothing_mm;
  double field_smoothing_mm;
  double smoothing_mm;
  const double* coupling;
  int32_t coupling_rounds;
  int32_t kept_costs_mb;
  dr_mirror_test* out;
  void* workspace;
  size_t workspace_bytes;
} dr_mirror_args;
DR_API size_t dr_mirror_workspace_bytes(const dr_mirror_args* args);
DR_API dr_status dr_mirror_compare(const dr_execution* execution, const dr_mirror_args* args);

/* Samples the projected tokens of an encoder's slices on another grid, by linear interpolation, and
 * writes them to some of the channels of features: factor * (token - offset of its slice). Only
 * some of the slices of the tokens' grid are encoded; between two of these everything is linear.
 * All `stride` numbers of a token are written, as far as `channels` reach. Beyond the tokens' grid
 * the features are 0. */
typedef struct dr_tokens_args {
  size_t struct_size;
  const float* tokens; /* (encoded, rows, columns, stride) */
  const float* offsets; /* (encoded, stride); NULL: 0 */
  /* (slices, 2): for each slice of the grid the number of the last encoded one that is not behind
   * it, 0..encoded - 1, and the share 0..1 of the next encoded one */
  const float* places;
  int32_t encoded; /* number of encoded slices */
  int32_t stride; /* numbers of a token, a multiple of 8 */
  int32_t shape[3]; /* the tokens' grid: slices, rows, columns */
  int32_t samples[3]; /* points averaged for each output voxel along each axis, 1..64 */
  double map[12]; /* 3x4: output index -> index of the tokens' grid */
  uint16_t* out; /* (out_shape, channels): half precision */
  int32_t out_shape[3];
  int32_t channels; /* stored, a multiple of 8 */
  int32_t first_channel; /* the first channel that is written */
  float factor;
} dr_tokens_args;
DR_API dr_status dr_tokens_sample(const dr_execution* execution, const dr_tokens_args* args);

/* Finds the voxels of another grid that meet tissue: 1 where linear interpolation of the image
 * reads a voxel above a threshold within a box, otherwise 0. */
typedef struct dr_tissue_args {
  size_t struct_size;
  const float* image;
  int32_t shape[3];
  int32_t first[3], last[3]; /* first and last voxel of the box along each axis */
  int32_t samples[3]; /* points read for each output voxel along each axis, 1..64 */
  double map[12]; /* 3x4: output index -> index of the image */
  float* out; /* (out_shape) */
  int32_t out_shape[3];
  float above;
} dr_tissue_args;
DR_API dr_status dr_tissue_cover(const dr_execution* execution, const dr_tissue_args* args);

/* Copies the first `used` channels of features to some of the channels of others, times a factor.
 * The rest of the last block of eight channels becomes 0, as far as `channels` reach. */
typedef struct dr_join_args {
  size_t struct_size;
  const uint16_t* features; /* (shape, stride): half precision */
  int32_t shape[3];
  int32_t stride; /* stored in `features`, a multiple of 8 */
  int32_t used;
  int32_t channels; /* stored in `out`, a multiple of 8 */
  int32_t first_channel; /* the first channel of `out` that is written */
  float factor;
  uint16_t* out; /* (shape, channels): half precision */
} dr_join_args;
DR_API dr_status dr_features_join(const dr_execution* execution, const dr_join_args* args);

#ifdef __cplusplus
}
#endif

#endif /* DINOREG_H_ */
