// The few functions of Python's C interface that the library needs, found at run time, so that one
// build serves every Python from 3.11 on. All but the configuration belong to the stable ABI.
#ifndef DINOREG_HOST_PYTHON_API_H_
#define DINOREG_HOST_PYTHON_API_H_

#include <cstddef>
#include <string>

namespace dinoreg::host {

using Object = void;  // PyObject

struct PythonApi {
  int (*Py_IsInitialized)();
  void (*Py_InitializeEx)(int install_signal_handlers);
  const char* (*Py_GetVersion)();
  void* (*PyEval_SaveThread)();
  int (*PyGILState_Ensure)();
  void (*PyGILState_Release)(int);
  Object* (*PyImport_ImportModule)(const char*);
  Object* (*PyObject_GetAttrString)(Object*, const char*);
  Object* (*PyObject_CallFunction)(Object*, const char* format, ...);
  Object* (*PyObject_Str)(Object*);
  Object* (*PyTuple_GetItem)(Object*, std::ptrdiff_t);
  const char* (*PyUnicode_AsUTF8AndSize)(Object*, std::ptrdiff_t*);
  long (*PyLong_AsLong)(Object*);
  void (*PyErr_Fetch)(Object**, Object**, Object**);
  void (*PyErr_Clear)();
  void (*Py_IncRef)(Object*);
  void (*Py_DecRef)(Object*);
};

// Returns the interface of the process's interpreter, which is started if there is none.
//
// `executable` names the interpreter to start ("" or null: see dinoreg_host.h). Throws HostError.
const PythonApi& python(const char* executable);

// Returns the interface that `python` found; it must have been called.
const PythonApi& running_python();

}  // namespace dinoreg::host

#endif  // DINOREG_HOST_PYTHON_API_H_
