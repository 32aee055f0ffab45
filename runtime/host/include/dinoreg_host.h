/* libdinoreg_host: a whole registration in one call, for C11 and C++.
 *
 * The library runs the Python package dinoreg-rt inside this process: two images in, displacement
 * field, warped image, report and verdict out. (libdinoreg, in dinoreg.h, has the kernels and the
 * solver alone, and needs no Python.)
 *
 * The interpreter. If this process has a Python interpreter already, as 3D Slicer and ParaView do,
 * it is used, and dinoreg-rt must be installed in it. Otherwise the first dr_registrar_create
 * starts one: that of dr_registrar_args.python, or else of the environment variable DINOREG_PYTHON,
 * or else of the environment in which this library lies. The first two are paths of an interpreter,
 * such as /opt/dinoreg/bin/python; dinoreg-rt must be installed with it, and it must have a shared
 * libpython. One process has one interpreter, which stays until the process ends, because NumPy
 * cannot be started twice. No signal handler is installed, and locale and environment are not
 * changed.
 *
 * Memory. Images, masks, initial transform and outputs are the caller's memory, read and written in
 * place; they must stay valid, and inputs unchanged, until the call returns or, after
 * dr_registrar_submit, until dr_registration_wait has returned. Voxels of type float32 are not
 * copied. The library owns the handles and the report's text, which dr_registration_result_free
 * frees.
 *
 * Threads. All functions may be called from any thread, and from several at the same time, whether
 * or not a thread has used Python before. The lock of the interpreter is released while kernels
 * run. In a host with an interpreter of its own, a thread that holds the lock may call as well.
 * Kernels run on threads of their own, which sleep between calls and end with the process; a
 * registrar's threads end with dr_registrar_destroy. After fork(), the child must not call this
 * library.
 *
 * CUDA. The primary context of the device is used. With `stream`, the work is queued on the
 * caller's stream; in either case results are complete when the call returns.
 *
 * Errors. Functions return a dr_host_status; dr_host_last_error describes the last error of the
 * calling thread. No exception crosses this interface and nothing ends the process.
 *
 * Every struct begins with its size. Initialise it with its DR_..._INIT, which sets the size and
 * zeros, and then set the fields: later versions append fields, and a program that was compiled
 * against this header keeps working.
 *
 * Points are in LPS millimetres, as in ITK and DICOM; arrays of three are in the order x, y, z.
 */
#ifndef DINOREG_HOST_H_
#define DINOREG_HOST_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define DR_HOST_API __attribute__((visibility("default")))
#else
#define DR_HOST_API
#endif

/* The number of the interface, which is part of the library's name; see docs/embedding.md. */
#define DR_HOST_ABI 1

#ifdef __cplusplus
extern "C" {
#endif

/* The numbers are the exit codes of the command line. */
typedef enum dr_host_status {
  DR_HOST_OK = 0,
  DR_HOST_UNEXPECTED = 1,      /* a defect of the library, or of something that it uses */
  DR_HOST_INVALID = 2,         /* this interface was called with wrong arguments */
  DR_HOST_INPUT = 3,           /* an image, mask or transform cannot be used */
  DR_HOST_CONFIG = 4,          /* an option is unknown or impossible */
  DR_HOST_DEVICE = 5,          /* the interpreter, a device or an engine is not available */
  DR_HOST_RESOURCE = 6,        /* not enough memory */
  DR_HOST_REGISTRATION = 8,    /* the images cannot be registered as requested */
  DR_HOST_CANCELLED = 130      /* cancelled, or the progress callback asked to stop */
} dr_host_status;

typedef enum dr_voxel_type {
  DR_VOXEL_FLOAT32 = 0,
  DR_VOXEL_FLOAT64 = 1,
  DR_VOXEL_INT8 = 2,
  DR_VOXEL_UINT8 = 3,
  DR_VOXEL_INT16 = 4,
  DR_VOXEL_UINT16 = 5,
  DR_VOXEL_INT32 = 6,
  DR_VOXEL_UINT32 = 7
} dr_voxel_type;

/* An image and its place in space. The centre of voxel (i, j, k) lies at
 * origin + direction * (spacing * (i, j, k)), where column j of the direction, a matrix in rows, is
 * the axis j of the image. */
typedef struct dr_volume {
  size_t struct_size;
  const void* voxels;
  int32_t voxel_type; /* a dr_voxel_type */
  int32_t on_cuda;    /* 0: host memory; 1: memory of a CUDA device */
  int64_t size[3];    /* number of voxels along x, y, z */
  int64_t stride[3];  /* bytes between neighbours along x, y, z; all 0: contiguous, x fastest */
  double spacing[3];  /* mm */
  double origin[3];   /* mm, LPS */
  double direction[9];
} dr_volume;
#define DR_VOLUME_INIT                                                              \
  {sizeof(dr_volume),          0, 0, 0, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}, {0, 0, 0}, \
   {1, 0, 0, 0, 1, 0, 0, 0, 1}}

/* Called with the name of a stage and the fraction of it that is done, on the thread that works.
 * A result other than 0 stops the registration with DR_HOST_CANCELLED. The callback must not call
 * this library: such calls do nothing and return DR_HOST_INVALID. */
typedef int (*dr_host_progress)(void* user, const char* stage, double fraction);

typedef enum dr_log_level { DR_LOG_INFO = 20, DR_LOG_WARNING = 30 } dr_log_level;

/* Called with what was decided (info) and what to check (warning), one sentence at a time. It must
 * not call this library. */
typedef void (*dr_host_log)(void* user, int level, const char* text);

typedef struct dr_registrar_args {
  size_t struct_size;
  const char* python;  /* an interpreter; NULL: see above */
  const char*
      options; /* parameters as TOML, such as "preset = 'mind'\nthreads = 4"; NULL: defaults */
  int64_t workers; /* threads that work on submitted registrations; 0: 1; at most 1024 */
} dr_registrar_args;
#define DR_REGISTRAR_ARGS_INIT {sizeof(dr_registrar_args), 0, 0, 0}

typedef struct dr_registration_args {
  size_t struct_size;
  const dr_volume* fixed;
  const dr_volume* moving;
  const dr_volume* fixed_mask;  /* NULL: none; nonzero voxels count */
  const dr_volume* moving_mask; /* the same */
  const dr_volume* weights;     /* NULL: none; on the grid of the fixed image, 0 to 10000 */
  const dr_volume* labels; /* NULL: none; a label map in the space of the moving image to warp */
  const double* initial; /* NULL: by the options; 12 numbers, rows of a 3 x 4 matrix that maps
                            fixed to moving points, in mm */
  /* Outputs; NULL: not wanted. Contiguous, x fastest, in host memory or, with `outputs_on_cuda`, in
   * memory of the CUDA device that runs the registration. */
  float*
      displacement; /* fixed grid, 3 for each voxel: x, y, z in mm, from fixed to moving points */
  float* inverse; /* moving grid, the same from moving to fixed points */
  float* warped; /* fixed grid: the moving image */
  int32_t* warped_labels; /* fixed grid; host memory */
  int32_t outputs_on_cuda;
  int32_t has_stream; /* 1: work on `stream` */
  void* stream; /* a cudaStream_t */
  dr_host_progress progress; /* NULL: none */
  dr_host_log log; /* NULL: none */
  void* user; /* for both callbacks */
} dr_registration_args;
#define DR_REGISTRATION_ARGS_INIT \
  {sizeof(dr_registration_args), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

typedef struct dr_registration_result {
  size_t struct_size;
  int32_t trusted; /* 1: the verdict is "trusted" */
  double initial[12]; /* the initial alignment, fixed to moving points */
  char* report; /* JSON: choices, configuration, quality, trust, warnings, timings_ms */
} dr_registration_result;
#define DR_REGISTRATION_RESULT_INIT {sizeof(dr_registration_result), 0, {0}, 0}

typedef struct dr_registrar dr_registrar; /* keeps encoder and configuration */
typedef struct dr_registration dr_registration; /* a registration that was submitted */

/* Makes a registrar. The first call in a process starts the interpreter and takes about a second.
 */
DR_HOST_API dr_host_status dr_registrar_create(const dr_registrar_args* args,
                                               dr_registrar** registrar);

/* Opens the encoder, loads the kernels and reserves memory, by registering a synthetic pair.
 * Only the grids of the volumes are used; NULL: a small grid, or for `moving` that of `fixed`. */
DR_HOST_API dr_host_status dr_registrar_warm_up(dr_registrar* registrar, const dr_volume* fixed,
                                                const dr_volume* moving);

/* Registers and waits. If the result should not be trusted, the status is DR_HOST_OK and `trusted`
 * is 0. */
DR_HOST_API dr_host_status dr_registrar_run(dr_registrar* registrar,
                                            const dr_registration_args* args,
                                            dr_registration_result* result);

/* Starts a registration in a thread of the registrar. Wrong inputs are reported here. */
DR_HOST_API dr_host_status dr_registrar_submit(dr_registrar* registrar,
                                               const dr_registration_args* args,
                                               dr_registration** registration);

/* Waits for a registration that was submitted; may be called once. */
DR_HOST_API dr_host_status dr_registration_wait(dr_registration* registration,
                                                dr_registration_result* result);

/* Stops a registration at its next report of progress; dr_registration_wait then returns
 * DR_HOST_CANCELLED soon. */
DR_HOST_API dr_host_status dr_registration_cancel(dr_registration* registration);

/* Cancels the registration if it has not ended, waits for its end, and frees the handle. */
DR_HOST_API void dr_registration_destroy(dr_registration* registration);

/* Cancels what was submitted, waits for its end, closes the encoder, and frees the handle. Before
 * that, destroy all submitted registrations, and wait for dr_registrar_run in other threads. */
DR_HOST_API void dr_registrar_destroy(dr_registrar* registrar);

/* Frees the report. */
DR_HOST_API void dr_registration_result_free(dr_registration_result* result);

/* The last error of this thread, valid until its next call of this library; "" if there was none.
 */
DR_HOST_API const char* dr_host_last_error(void);

/* The version of the library, such as "0.1.0". */
DR_HOST_API const char* dr_host_version(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* DINOREG_HOST_H_ */
