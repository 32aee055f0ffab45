#include "interpreter.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "errors.h"

extern char** environ;

namespace dinoreg::host {
namespace {

// The interpreter of the environment whose packages include this library; "" if it lies elsewhere.
std::string interpreter_beside_the_library() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(&chosen_interpreter), &info) || !info.dli_fname) return "";
  char real[4096];
  const std::string file = realpath(info.dli_fname, real) ? real : info.dli_fname;
  // ENVIRONMENT/lib/python3.11/site-packages/PACKAGE/library.so
  for (size_t end = file.rfind('/'); end != std::string::npos && end > 0;
       end = file.rfind('/', end - 1)) {
    const std::string folder = file.substr(0, end), candidate = folder + "/bin/python";
    if (file.starts_with(folder + "/lib/python3") && access(candidate.c_str(), X_OK) == 0)
      return candidate;
  }
  return "";
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
  const int failed =
      posix_spawnp(&child, executable.c_str(), &actions, nullptr, arguments, environ);
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
    while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }  // a host that ignores SIGCHLD has no child to wait for, which is as well
  }
  close(ends[0]);
  if (failed)
    throw HostError(DR_HOST_DEVICE,
                    "the Python interpreter " + executable + " cannot be run: " + strerror(failed));
  return printed;
}

}  // namespace

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

}  // namespace dinoreg::host
