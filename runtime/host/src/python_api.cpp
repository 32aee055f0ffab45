#include "python_api.h"

#include <dlfcn.h>
#include <locale.h>
#include <signal.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <string>

#include "errors.h"
#include "interpreter.h"

namespace dinoreg::host {
namespace {

std::mutex loading;
PythonApi api;
bool loaded = false;

template <class Function>
bool find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
}

template <class Function>
void require(void* library, const char* name, Function*& function) {
  if (!find(library, name, function))
    throw HostError(DR_HOST_DEVICE, std::string("the Python library has no function ") + name);
}

void find_all(void* library) {
  require(library, "Py_IsInitialized", api.Py_IsInitialized);
  require(library, "Py_InitializeEx", api.Py_InitializeEx);
  require(library, "Py_GetVersion", api.Py_GetVersion);
  require(library, "PyEval_SaveThread", api.PyEval_SaveThread);
  require(library, "PyGILState_Ensure", api.PyGILState_Ensure);
  require(library, "PyGILState_Release", api.PyGILState_Release);
  require(library, "PyImport_ImportModule", api.PyImport_ImportModule);
  require(library, "PyObject_GetAttrString", api.PyObject_GetAttrString);
  require(library, "PyObject_CallFunction", api.PyObject_CallFunction);
  require(library, "PyObject_Str", api.PyObject_Str);
  require(library, "PyTuple_GetItem", api.PyTuple_GetItem);
  require(library, "PyUnicode_AsUTF8AndSize", api.PyUnicode_AsUTF8AndSize);
  require(library, "PyLong_AsLong", api.PyLong_AsLong);
  require(library, "PyErr_Fetch", api.PyErr_Fetch);
  require(library, "PyErr_Clear", api.PyErr_Clear);
  require(library, "Py_IncRef", api.Py_IncRef);
  require(library, "Py_DecRef", api.Py_DecRef);
}

// Restores what Python changes when it starts: the locale category LC_CTYPE, and SIGINT.
class Undisturbed {
 public:
  Undisturbed() {
    const char* current = setlocale(LC_CTYPE, nullptr);
    locale_ = current ? current : "C";
    sigaction(SIGINT, nullptr, &interrupt_);
  }
  ~Undisturbed() {
    sigaction(SIGINT, &interrupt_, nullptr);
    setlocale(LC_CTYPE, locale_.c_str());
  }
  Undisturbed(const Undisturbed&) = delete;
  Undisturbed& operator=(const Undisturbed&) = delete;

 private:
  std::string locale_;
  struct sigaction interrupt_ = {};
};

// Names the interpreter whose environment is to be used. Python 3.14 has another way to say it.
bool start_by_configuration(void* library, const std::string& executable) {
  void* (*create)();
  int (*set)(void*, const char*, const char*);
  int (*set_int)(void*, const char*, long long);
  int (*initialize)(void*);
  int (*get_error)(void*, const char**);
  void (*destroy)(void*);
  if (!find(library, "PyInitConfig_Create", create)) return false;
  require(library, "PyInitConfig_SetStr", set);
  require(library, "PyInitConfig_SetInt", set_int);
  require(library, "Py_InitializeFromInitConfig", initialize);
  require(library, "PyInitConfig_GetError", get_error);
  require(library, "PyInitConfig_Free", destroy);
  void* config = create();
  if (!config) throw std::bad_alloc();
  const bool failed = set(config, "program_name", executable.c_str()) < 0 ||
                      set_int(config, "install_signal_handlers", 0) < 0 || initialize(config) < 0;
  const char* text = "";
  if (failed) get_error(config, &text);
  const std::string problem = text ? text : "";
  destroy(config);
  if (failed) throw HostError(DR_HOST_DEVICE, "Python cannot be started: " + problem);
  return true;
}

// The first import of `signal` installs a handler of SIGINT, whatever the configuration says. With
// SIG_DFL Python believes that nobody handles it, and never sets a handler again; `Undisturbed`
// restores the host's.
void leave_interrupts_to_the_host() {
  void* module = api.PyImport_ImportModule("signal");
  void* set = module ? api.PyObject_GetAttrString(module, "signal") : nullptr;
  void* done = set ? api.PyObject_CallFunction(set, "ii", SIGINT, 0) : nullptr;  // 0: SIG_DFL
  if (!done) api.PyErr_Clear();
  for (void* object : {module, set, done})
    if (object) api.Py_DecRef(object);
}

void start(void* library, const std::string& executable) {
  if (!start_by_configuration(library, executable)) {
    void (*set_program_name)(const wchar_t*);
    require(library, "Py_SetProgramName", set_program_name);
    wchar_t* (*decode)(const char*, size_t*);
    require(library, "Py_DecodeLocale", decode);
    const wchar_t* name = decode(executable.c_str(), nullptr);  // kept by Python
    if (!name) throw std::bad_alloc();
    set_program_name(name);
    api.Py_InitializeEx(0);
  }
  leave_interrupts_to_the_host();
  api.PyEval_SaveThread();  // so that any thread may take the lock
}

}  // namespace

const PythonApi& running_python() { return api; }

const PythonApi& python(const char* executable) {
  const std::lock_guard<std::mutex> guard(loading);
  if (loaded) return api;
  int (*is_initialized)();
  const bool linked = find(RTLD_DEFAULT, "Py_IsInitialized", is_initialized);
  if (linked && is_initialized()) {
    find_all(RTLD_DEFAULT);
  } else {
    const std::string interpreter = chosen_interpreter(executable);
    void* library = linked ? RTLD_DEFAULT : load_library_of(interpreter);
    find_all(library);
    const Undisturbed undisturbed;
    start(library, interpreter);
  }
  loaded = true;
  return api;
}

}  // namespace dinoreg::host
