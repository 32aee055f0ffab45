/* Runs a whole registration inside a C++ program, which embeds Python and keeps the voxels.
 *
 *   c++ -std=c++17 embed.cpp $(python3-config --includes --ldflags --embed) -o embed
 *   ./embed .venv/bin/python     # of the environment where dinoreg-rt is installed
 *
 * Kernels and solver alone need no Python: see register.c.
 */
#include <Python.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <vector>

namespace {

using Shape = std::array<int, 3>;  // z, y, x

// Images and results are views of this program's memory: nothing is copied.
const char* const kGlue = R"(
import numpy as np
import dinoreg_rt

registrar = dinoreg_rt.Registrar(dinoreg_rt.RegistrationConfig(initial="none"))

def register(fixed, moving, displacement, shape, spacing_mm):
    grid = dinoreg_rt.Geometry(shape, (spacing_mm,) * 3, (0.0, 0.0, 0.0), np.eye(3))
    view = lambda memory, *shape: np.frombuffer(memory, np.float32).reshape(shape)
    result = registrar.register(
        (view(fixed, *shape), grid),
        (view(moving, *shape), grid),
        placement=dinoreg_rt.Placement(displacement=view(displacement, *shape, 3)),
    )
    return result.quality.folded_percent
)";

// The interpreter with the packages of the environment that `executable` belongs to.
struct Python {
  explicit Python(const char* executable) {
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, executable);
    if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) throw std::runtime_error(status.err_msg);
  }
  ~Python() { Py_FinalizeEx(); }
};

// A result of Python's, or its error with the traceback on stderr.
PyObject* checked(PyObject* object) {
  if (object != nullptr) return object;
  PyErr_Print();
  throw std::runtime_error("Python raised an error");
}

PyObject* memory(std::vector<float>& values) {
  return checked(PyMemoryView_FromMemory(reinterpret_cast<char*>(values.data()),
                                         static_cast<Py_ssize_t>(values.size() * sizeof(float)),
                                         PyBUF_WRITE));
}

// Some round organs of different size and brightness, moved by so many millimetres along x.
std::vector<float> phantom(const Shape& shape, double spacing_mm, double shift_mm) {
  std::vector<float> voxels;
  for (int z = 0; z < shape[0]; ++z)
    for (int y = 0; y < shape[1]; ++y)
      for (int x = 0; x < shape[2]; ++x) {
        double value = 0.0;
        for (int organ = 0; organ < 8; ++organ) {
          const double dz = z - shape[0] * (0.3 + 0.4 * (organ & 1));
          const double dy = y - shape[1] * (0.3 + 0.2 * (organ & 2));
          const double dx = x - shift_mm / spacing_mm - shape[2] * (0.3 + 0.1 * (organ & 4));
          const double radius = 4.0 + 0.4 * organ;
          value += (30.0 + 10.0 * organ) /
                   (1.0 + std::exp(2.0 * (std::sqrt(dz * dz + dy * dy + dx * dx) - radius)));
        }
        voxels.push_back(static_cast<float>(value));
      }
  return voxels;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) throw std::runtime_error("usage: embed PYTHON");
  const Shape shape{40, 44, 48};
  const double spacing_mm = 2.0;
  std::vector<float> fixed = phantom(shape, spacing_mm, 0.0);
  std::vector<float> moving = phantom(shape, spacing_mm, 5.0);
  std::vector<float> displacement(3 * fixed.size());  // LPS mm: x, y, z

  const Python python(arguments[1]);
  PyObject* const names = checked(PyDict_New());
  Py_DECREF(checked(PyRun_String(kGlue, Py_file_input, names, names)));
  PyObject* const folded = checked(PyObject_CallFunction(
      PyDict_GetItemString(names, "register"), "NNN(iii)d", memory(fixed), memory(moving),
      memory(displacement), shape[0], shape[1], shape[2], spacing_mm));
  const double percent = PyFloat_AsDouble(folded);
  Py_DECREF(folded);
  Py_DECREF(names);

  double along_x = 0.0;
  int bright = 0;
  for (size_t i = 0; i < fixed.size(); ++i)
    if (fixed[i] > 25.0f) along_x += displacement[3 * i], ++bright;
  std::printf("%.2f mm along x in the organs, moved by 5 mm; %.3f %% folded\n", along_x / bright,
              percent);
}
