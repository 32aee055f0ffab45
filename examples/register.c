/* Registers two NIfTI files with libdinoreg_host, and writes the displacement field and the warped
 * image as MetaImage files.
 *
 *   cc -std=c11 register.c $(PKG_CONFIG_PATH=$(python -m dinoreg_kernels --pkgconfig-dir) \
 *      pkg-config --cflags --libs dinoreg_host) -lz -lm -o register
 *   ./register fixed.nii.gz moving.nii.gz field.mha warped.mha [.venv/bin/python]
 *
 * It needs zlib (Debian: zlib1g-dev). With an install prefix instead of the Python package, set
 * PKG_CONFIG_PATH=DIR/lib/pkgconfig, add -Wl,-rpath,DIR/lib, and name the interpreter.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "dinoreg_host.h"

/* Reads the voxels of a NIfTI-1 file in this machine's byte order, and their place by its sform.
 * Real programs use a library for this; it is here so that the example needs none. */
static void read_nifti(const char* path, dr_volume* volume) {
  unsigned char header[352];
  gzFile file = gzopen(path, "rb");
  if (!file || gzread(file, header, sizeof header) != (int)sizeof header) {
    fprintf(stderr, "%s: cannot be read\n", path);
    exit(3);
  }
  int16_t dim[8], datatype;
  float offset, rows[3][4];
  memcpy(dim, header + 40, sizeof dim);
  memcpy(&datatype, header + 70, sizeof datatype);
  memcpy(&offset, header + 108, sizeof offset);
  memcpy(rows, header + 280, sizeof rows);
  size_t bytes = 0;
  switch (datatype) {
    case 2: volume->voxel_type = DR_VOXEL_UINT8, bytes = 1; break;
    case 4: volume->voxel_type = DR_VOXEL_INT16, bytes = 2; break;
    case 16: volume->voxel_type = DR_VOXEL_FLOAT32, bytes = 4; break;
    default: fprintf(stderr, "%s: voxels of NIfTI type %d\n", path, datatype), exit(3);
  }
  for (int j = 0; j < 3; ++j) {
    volume->size[j] = dim[1 + j];
    bytes *= (size_t)dim[1 + j];
    volume->spacing[j] = sqrt(pow(rows[0][j], 2) + pow(rows[1][j], 2) + pow(rows[2][j], 2));
  }
  for (int i = 0; i < 3; ++i) {
    const double to_lps = i < 2 ? -1.0 : 1.0; /* NIfTI has RAS, this interface LPS */
    volume->origin[i] = to_lps * rows[i][3];
    for (int j = 0; j < 3; ++j)
      volume->direction[3 * i + j] = to_lps * rows[i][j] / volume->spacing[j];
  }
  void* voxels = malloc(bytes);
  if (!voxels || gzseek(file, (long)offset, SEEK_SET) < 0 ||
      gzread(file, voxels, (unsigned)bytes) != (int)bytes) {
    fprintf(stderr, "%s: is shorter than its header says\n", path);
    exit(3);
  }
  gzclose(file);
  volume->voxels = voxels;
}

static void write_metaimage(const char* path, const dr_volume* grid, const float* values,
                            int channels) {
  FILE* file = fopen(path, "wb");
  if (!file) {
    perror(path);
    exit(7);
  }
  const double* d = grid->direction;
  fprintf(file,
          "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n");
  fprintf(file, "TransformMatrix =");
  for (int j = 0; j < 3; ++j) fprintf(file, " %.17g %.17g %.17g", d[j], d[3 + j], d[6 + j]);
  fprintf(file, "\nOffset = %.17g %.17g %.17g\n", grid->origin[0], grid->origin[1],
          grid->origin[2]);
  fprintf(file, "ElementSpacing = %.17g %.17g %.17g\n", grid->spacing[0], grid->spacing[1],
          grid->spacing[2]);
  fprintf(file, "DimSize = %d %d %d\n", (int)grid->size[0], (int)grid->size[1], (int)grid->size[2]);
  fprintf(file, "ElementNumberOfChannels = %d\nElementType = MET_FLOAT\n", channels);
  fprintf(file, "ElementDataFile = LOCAL\n");
  const size_t count = (size_t)(grid->size[0] * grid->size[1] * grid->size[2] * channels);
  const int written = fwrite(values, sizeof *values, count, file) == count;
  if (fclose(file) != 0 || !written) {
    fprintf(stderr, "%s: cannot be written\n", path);
    exit(7);
  }
}

static int show_progress(void* user, const char* stage, double fraction) {
  (void)user;
  fprintf(stderr, "\r%-10s %3.0f %%", stage, 100 * fraction);
  return 0; /* another number would stop the registration */
}

static void check(dr_host_status status) {
  if (status == DR_HOST_OK) return;
  fprintf(stderr, "%s\n", dr_host_last_error());
  exit((int)status);
}

int main(int count, char** arguments) {
  if (count < 5) {
    fprintf(stderr, "usage: %s FIXED MOVING FIELD WARPED [PYTHON]\n", arguments[0]);
    return 2;
  }
  dr_volume fixed = DR_VOLUME_INIT, moving = DR_VOLUME_INIT;
  read_nifti(arguments[1], &fixed);
  read_nifti(arguments[2], &moving);

  dr_registrar_args options = DR_REGISTRAR_ARGS_INIT;
  options.python = count > 5 ? arguments[5] : NULL;
  dr_registrar* registrar;
  check(dr_registrar_create(&options, &registrar));

  const size_t voxels = (size_t)(fixed.size[0] * fixed.size[1] * fixed.size[2]);
  float* displacement = malloc(3 * voxels * sizeof *displacement);
  float* warped = malloc(voxels * sizeof *warped);
  if (!displacement || !warped) return 6;
  dr_registration_args registration = DR_REGISTRATION_ARGS_INIT;
  registration.fixed = &fixed;
  registration.moving = &moving;
  registration.displacement = displacement;
  registration.warped = warped;
  registration.progress = show_progress;
  dr_registration_result result = DR_REGISTRATION_RESULT_INIT;
  check(dr_registrar_run(registrar, &registration, &result));

  fputc('\n', stderr);
  printf("%s\n", result.trusted ? "trusted" : "not to be trusted; the report has the reasons");
  write_metaimage(arguments[3], &fixed, displacement, 3);
  write_metaimage(arguments[4], &fixed, warped, 1);
  dr_registration_result_free(&result);
  dr_registrar_destroy(registrar);
  free(warped);
  free(displacement);
  free((void*)moving.voxels);
  free((void*)fixed.voxels);
  return 0;
}
