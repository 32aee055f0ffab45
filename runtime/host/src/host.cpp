// The C interface: checks the structs, takes the interpreter's lock, and calls
// dinoreg_rt.embedded.bridge, whose functions return (status, text, object) and never raise.
#include "dinoreg_host.h"

#include <cstring>
#include <new>
#include <string>

#include "errors.h"
#include "python_api.h"

struct dr_registrar {
  void* object;
};

struct dr_registration {
  void* object;
};

namespace {

using dinoreg::host::HostError;
using dinoreg::host::Object;
using dinoreg::host::PythonApi;

thread_local std::string last_error;

class Locked {
 public:
  explicit Locked(const PythonApi& api) : api_(api), state_(api.PyGILState_Ensure()) {}
  ~Locked() { api_.PyGILState_Release(state_); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  const PythonApi& api_;
  int state_;
};

class Reference {
 public:
  Reference(const PythonApi& api, Object* object) : api_(api), object_(object) {}
  ~Reference() {
    if (object_) api_.Py_DecRef(object_);
  }
  Reference(const Reference&) = delete;
  Reference& operator=(const Reference&) = delete;
  Object* get() const { return object_; }

 private:
  const PythonApi& api_;
  Object* object_;
};

std::string text_of(const PythonApi& api, Object* object) {
  const Reference text(api, object ? api.PyObject_Str(object) : nullptr);
  std::ptrdiff_t size = 0;
  const char* bytes = text.get() ? api.PyUnicode_AsUTF8AndSize(text.get(), &size) : nullptr;
  if (!bytes) {
    api.PyErr_Clear();
    return "?";
  }
  return std::string(bytes, (size_t)size);
}

[[noreturn]] void throw_python_error(const PythonApi& api, const std::string& what) {
  Object *type = nullptr, *value = nullptr, *trace = nullptr;
  api.PyErr_Fetch(&type, &value, &trace);
  const Reference kept[] = {{api, type}, {api, value}, {api, trace}};
  throw HostError(DR_HOST_DEVICE, what + ": " + text_of(api, value ? value : type));
}

// What a function of the bridge returned.
struct Reply {
  std::string text;
  Object* object;  // a new reference
};

// Calls a function of the bridge with the interpreter's lock held.
template <class... Values>
Reply call(const PythonApi& api, const char* name, const char* format, Values... values) {
  const Reference bridge(api, api.PyImport_ImportModule("dinoreg_rt.embedded.bridge"));
  if (!bridge.get())
    throw_python_error(api, std::string("Python ") + api.Py_GetVersion() +
                                " cannot import dinoreg_rt; install dinoreg-rt with the interpreter"
                                " that is used here");
  const Reference function(api, api.PyObject_GetAttrString(bridge.get(), name));
  if (!function.get()) throw_python_error(api, name);
  const Reference reply(api, api.PyObject_CallFunction(function.get(), format, values...));
  if (!reply.get()) throw_python_error(api, name);
  const long status = api.PyLong_AsLong(api.PyTuple_GetItem(reply.get(), 0));
  std::string text = text_of(api, api.PyTuple_GetItem(reply.get(), 1));
  if (status != DR_HOST_OK) throw HostError((dr_host_status)status, text);
  Object* object = api.PyTuple_GetItem(reply.get(), 2);
  api.Py_IncRef(object);
  return {std::move(text), object};
}

// Runs `body`; an exception becomes a status and this thread's last error.
template <class Body>
dr_host_status guarded(const Body& body) noexcept {
  try {
    last_error.clear();
    body();
    return DR_HOST_OK;
  } catch (const HostError& error) {
    last_error = error.what();
    return error.status;
  } catch (const std::bad_alloc&) {
    return DR_HOST_RESOURCE;
  } catch (const std::exception& error) {
    last_error = error.what();
    return DR_HOST_UNEXPECTED;
  }
}

void require(bool condition, const char* text) {
  if (!condition) throw HostError(DR_HOST_INVALID, text);
}

// Returns a struct of the caller's version as one of this version. `least` is the size of the first
// version that was published; bytes beyond what this version knows must be zero.
template <class Struct>
Struct known(const Struct* given, const char* name, size_t least = sizeof(Struct)) {
  require(given != nullptr, (std::string(name) + " is null").c_str());
  size_t size;
  memcpy(&size, given, sizeof size);
  if (size < least || size > 65536)
    throw HostError(DR_HOST_INVALID, std::string(name) + ".struct_size = " + std::to_string(size) +
                                         "; wanted sizeof(" + name +
                                         ") = " + std::to_string(sizeof(Struct)) +
                                         ": initialise it with its ..._INIT");
  const char* bytes = reinterpret_cast<const char*>(given);
  for (size_t i = sizeof(Struct); i < size; ++i)
    if (bytes[i] != 0)
      throw HostError(DR_HOST_INVALID, std::string(name) +
                                           " has fields that this library, " DR_HOST_VERSION
                                           ", does not know; use the library of its header");
  Struct copy;
  memset(&copy, 0, sizeof copy);
  memcpy(&copy, given, size < sizeof copy ? size : sizeof copy);
  copy.struct_size = sizeof copy;
  return copy;
}

// A registration's arguments of this version, with the volumes that they point to.
struct Arguments {
  explicit Arguments(const dr_registration_args* given)
      : args(known(given, "dr_registration_args")) {
    take(args.fixed, 0);
    take(args.moving, 1);
    take(args.fixed_mask, 2);
    take(args.moving_mask, 3);
    take(args.weights, 4);
    take(args.labels, 5);
    require(args.fixed && args.moving, "dr_registration_args needs a fixed and a moving image");
  }
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  dr_registration_args args;

 private:
  void take(const dr_volume*& volume, int i) {
    if (!volume) return;
    volumes_[i] = known(volume, "dr_volume");
    volume = &volumes_[i];
  }

  dr_volume volumes_[6];
};

unsigned long long address(const void* pointer) { return (unsigned long long)pointer; }

// Writes what the bridge reported to the caller's struct, of whatever version.
void give(dr_registration_result& made, const std::string& report, dr_registration_result* result) {
  made.report = new char[report.size() + 1];
  memcpy(made.report, report.c_str(), report.size() + 1);
  size_t size;
  memcpy(&size, result, sizeof size);
  made.struct_size = size;
  memcpy(result, &made, size < sizeof made ? size : sizeof made);
}

}  // namespace

const char* dr_host_last_error(void) { return last_error.c_str(); }

const char* dr_host_version(void) { return DR_HOST_VERSION; }

dr_host_status dr_registrar_create(const dr_registrar_args* given, dr_registrar** registrar) {
  return guarded([&] {
    require(registrar != nullptr, "the address of the registrar is null");
    *registrar = nullptr;
    const dr_registrar_args args = known(given, "dr_registrar_args");
    require(args.workers >= 0, "dr_registrar_args.workers is negative");
    const PythonApi& api = dinoreg::host::python(args.python);
    dr_registrar* handle = new dr_registrar{nullptr};
    try {
      const Locked locked(api);
      const char* options = args.options ? args.options : "";
      handle->object =
          call(api, "create", "sis", options, args.workers ? args.workers : 1, DR_HOST_VERSION)
              .object;
    } catch (...) {
      delete handle;
      throw;
    }
    *registrar = handle;
  });
}

dr_host_status dr_registrar_warm_up(dr_registrar* registrar, const dr_volume* fixed,
                                    const dr_volume* moving) {
  return guarded([&] {
    require(registrar != nullptr, "the registrar is null");
    dr_volume one, other;
    if (fixed) one = known(fixed, "dr_volume");
    if (moving) other = known(moving, "dr_volume");
    const PythonApi& api = dinoreg::host::running_python();
    const Locked locked(api);
    const Reply reply = call(api, "warm_up", "OKK", registrar->object,
                             address(fixed ? &one : nullptr), address(moving ? &other : nullptr));
    api.Py_DecRef(reply.object);
  });
}

dr_host_status dr_registrar_run(dr_registrar* registrar, const dr_registration_args* given,
                                dr_registration_result* result) {
  return guarded([&] {
    require(registrar != nullptr, "the registrar is null");
    const Arguments arguments(given);
    dr_registration_result made = known(result, "dr_registration_result");
    const PythonApi& api = dinoreg::host::running_python();
    const Locked locked(api);
    const Reply reply =
        call(api, "run", "OKK", registrar->object, address(&arguments.args), address(&made));
    api.Py_DecRef(reply.object);
    give(made, reply.text, result);
  });
}

dr_host_status dr_registrar_submit(dr_registrar* registrar, const dr_registration_args* given,
                                   dr_registration** registration) {
  return guarded([&] {
    require(registrar != nullptr, "the registrar is null");
    require(registration != nullptr, "the address of the registration is null");
    *registration = nullptr;
    const Arguments arguments(given);
    const PythonApi& api = dinoreg::host::running_python();
    dr_registration* handle = new dr_registration{nullptr};
    try {
      const Locked locked(api);
      handle->object =
          call(api, "submit", "OK", registrar->object, address(&arguments.args)).object;
    } catch (...) {
      delete handle;
      throw;
    }
    *registration = handle;
  });
}

dr_host_status dr_registration_wait(dr_registration* registration, dr_registration_result* result) {
  return guarded([&] {
    require(registration != nullptr, "the registration is null");
    dr_registration_result made = known(result, "dr_registration_result");
    const PythonApi& api = dinoreg::host::running_python();
    const Locked locked(api);
    const Reply reply = call(api, "wait", "OK", registration->object, address(&made));
    api.Py_DecRef(reply.object);
    give(made, reply.text, result);
  });
}

dr_host_status dr_registration_cancel(dr_registration* registration) {
  return guarded([&] {
    require(registration != nullptr, "the registration is null");
    const PythonApi& api = dinoreg::host::running_python();
    const Locked locked(api);
    api.Py_DecRef(call(api, "cancel", "O", registration->object).object);
  });
}

void dr_registration_destroy(dr_registration* registration) {
  if (!registration) return;
  guarded([&] {
    const PythonApi& api = dinoreg::host::running_python();
    const Locked locked(api);
    const Reference freed(api, registration->object);
    api.Py_DecRef(call(api, "abandon", "O", registration->object).object);
  });
  delete registration;
}

void dr_registrar_destroy(dr_registrar* registrar) {
  if (!registrar) return;
  guarded([&] {
    const PythonApi& api = dinoreg::host::running_python();
    const Locked locked(api);
    const Reference freed(api, registrar->object);
    api.Py_DecRef(call(api, "close", "O", registrar->object).object);
  });
  delete registrar;
}

void dr_registration_result_free(dr_registration_result* result) {
  if (!result) return;
  delete[] result->report;
  result->report = nullptr;
}
