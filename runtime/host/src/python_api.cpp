#include "python_api.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "errors.h"

extern char** environ;

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

// The interpreter of the environment whose packages include this library; "" if it lies elsewhere.
std::string interpreter_beside_the_library() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(&running_python), &info) || !info.dli_fname) return "";
  char real[4096];
  std::string folder = realpath(info.dli_fname, real) ? real : info.dli_fname;
  // ENVIRONMENT/lib/python3.11/site-packages/PACKAGE/library.so
  for (int i = 0; i < 6; ++i) {
    const size_t slash = folder.rfind('/');
    if (slash == std::string::npos || slash == 0) return "";
    folder.resize(slash);
    const std::string candidate = folder + "/bin/python";
    const std::string lib = folder + "/lib/python3";
    if (access(candidate.c_str(), X_OK) == 0 && std::string(real).rfind(lib, 0) == 0)
      return candidate;
  }
  return "";
}

std::string chosen_interpreter(const char* given) {
  if (given && *given) return given;
  if (const char* named = getenv("DINOREG_PYTHON"); named && *named) return named;
  std::string beside = interpreter_beside_the_library();
  if (beside.empty())
    throw HostError(DR_HOST_DEVICE,
                    "no Python interpreter is named, and the library is not in an environment; set "
                    "dr_registrar_args.python or the environment variable DINOREG_PYTHON to an "
                    "interpreter with which dinoreg-rt is installed, such as "
                    "/opt/dinoreg/bin/python");
  return beside;
}

// What `executable` prints when it runs `code`; throws where it cannot be run.
std::string printed_by(const std::string& executable, const char* code) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0)
    throw HostError(DR_HOST_RESOURCE, std::string("no pipe: ") + strerror(errno));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  std::string program = executable;
  char isolated[] = "-I", option[] = "-c";
  std::string text = code;
  char* arguments[] = {program.data(), isolated, option, text.data(), nullptr};
  pid_t child = 0;
  const int failed = posix_spawn(&child, executable.c_str(), &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string printed;
  if (failed == 0) {
    char piece[512];
    for (;;) {
      const ssize_t count = read(ends[0], piece, sizeof piece);
      if (count > 0) printed.append(piece, (size_t)count);
      if (count == 0 || (count < 0 && errno != EINTR)) break;
    }
    // A host that ignores SIGCHLD has no child to wait for.
    while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  close(ends[0]);
  if (failed)
    throw HostError(DR_HOST_DEVICE,
                    "the Python interpreter " + executable + " cannot be run: " + strerror(failed));
  return printed;
}

// The shared library of an interpreter, loaded so that extension modules find its symbols.
void* load_library_of(const std::string& executable) {
  const std::string path =
      printed_by(executable,
                 "import os, sysconfig as s\n"
                 "name = s.get_config_var('INSTSONAME') or ''\n"
                 "path = os.path.join(s.get_config_var('LIBDIR') or '', name)\n"
                 "shared = s.get_config_var('Py_ENABLE_SHARED')\n"
                 "print(path if os.path.exists(path) else name if shared else"
                 " '', end='')");
  if (path.empty())
    throw HostError(DR_HOST_DEVICE,
                    "the Python interpreter " + executable +
                        " has no shared library (libpython) that could be loaded; install one "
                        "(Debian: libpython3.11; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared) or "
                        "name another interpreter");
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!library)
    throw HostError(DR_HOST_DEVICE,
                    std::string("the Python library cannot be loaded: ") + dlerror());
  return library;
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
    std::vector<wchar_t>* name = new std::vector<wchar_t>(executable.size() + 1);  // kept by Python
    if (mbstowcs(name->data(), executable.c_str(), name->size()) == (size_t)-1)
      name->assign(executable.begin(), executable.end()), name->push_back(0);
    set_program_name(name->data());
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
