// The C interface: checks the structs, takes the interpreter's lock, and calls the bridge.
#include "dinoreg_host.h"

#include <memory>
#include <new>
#include <string>

#include "bridge.h"
#include "errors.h"
#include "python_api.h"
#include "structs.h"

struct dr_registrar {
  void* object = nullptr;
};

struct dr_registration {
  void* object = nullptr;
};

namespace {

using dinoreg::host::Arguments;
using dinoreg::host::call;
using dinoreg::host::give;
using dinoreg::host::HostError;
using dinoreg::host::known;
using dinoreg::host::Locked;
using dinoreg::host::PythonApi;
using dinoreg::host::require;
using dinoreg::host::running_python;
using dinoreg::host::text_from;

thread_local std::string last_error;

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
    last_error = "out of memory";
    return DR_HOST_RESOURCE;
  } catch (const std::exception& error) {
    last_error = error.what();
    return DR_HOST_UNEXPECTED;
  }
}

// Frees a handle for which the bridge's `end` has ended all work. Within a callback the bridge
// refuses, and the handle stays.
template <class Handle>
void destroy(Handle* handle, const char* end) {
  if (!handle) return;
  const auto done = guarded([&] {
    const PythonApi& api = running_python();
    const Locked locked(api);
    text_from(api, end, "O", handle->object);
    api.Py_DecRef(handle->object);
  });
  if (done != DR_HOST_INVALID) delete handle;
}

unsigned long long address(const void* pointer) { return (unsigned long long)pointer; }

}  // namespace

const char* dr_host_last_error(void) { return last_error.c_str(); }

const char* dr_host_version(void) { return DR_HOST_VERSION; }

dr_host_status dr_registrar_create(const dr_registrar_args* given, dr_registrar** registrar) {
  return guarded([&] {
    require(registrar != nullptr, "the address of the registrar is null");
    *registrar = nullptr;
    const dr_registrar_args args = known(given);
    require(args.workers >= 0 && args.workers <= 1024,
            "dr_registrar_args.workers = " + std::to_string(args.workers) + "; wanted 0 to 1024");
    const PythonApi& api = dinoreg::host::python(args.python);
    auto handle = std::make_unique<dr_registrar>();
    const Locked locked(api);
    const char* options = args.options ? args.options : "";
    const int workers = args.workers ? (int)args.workers : 1;
    handle->object = call(api, "create", "sis", options, workers, DR_HOST_VERSION).object;
    *registrar = handle.release();
  });
}

dr_host_status dr_registrar_warm_up(dr_registrar* registrar, const dr_volume* fixed,
                                    const dr_volume* moving) {
  return guarded([&] {
    require(registrar != nullptr, "the registrar is null");
    dr_volume one, other;
    if (fixed) one = known(fixed);
    if (moving) other = known(moving);
    const PythonApi& api = running_python();
    const Locked locked(api);
    text_from(api, "warm_up", "OKK", registrar->object, address(fixed ? &one : nullptr),
              address(moving ? &other : nullptr));
  });
}

dr_host_status dr_registrar_run(dr_registrar* registrar, const dr_registration_args* given,
                                dr_registration_result* result) {
  return guarded([&] {
    require(registrar != nullptr, "the registrar is null");
    const Arguments arguments(given);
    dr_registration_result made = known(result);
    const PythonApi& api = running_python();
    const Locked locked(api);
    const std::string report =
        text_from(api, "run", "OKK", registrar->object, address(arguments.get()), address(&made));
    give(made, report, result);
  });
}

dr_host_status dr_registrar_submit(dr_registrar* registrar, const dr_registration_args* given,
                                   dr_registration** registration) {
  return guarded([&] {
    require(registrar != nullptr, "the registrar is null");
    require(registration != nullptr, "the address of the registration is null");
    *registration = nullptr;
    const Arguments arguments(given);
    const PythonApi& api = running_python();
    auto handle = std::make_unique<dr_registration>();
    const Locked locked(api);
    handle->object = call(api, "submit", "OK", registrar->object, address(arguments.get())).object;
    *registration = handle.release();
  });
}

dr_host_status dr_registration_wait(dr_registration* registration, dr_registration_result* result) {
  return guarded([&] {
    require(registration != nullptr, "the registration is null");
    dr_registration_result made = known(result);
    const PythonApi& api = running_python();
    const Locked locked(api);
    const std::string report = text_from(api, "wait", "OK", registration->object, address(&made));
    give(made, report, result);
  });
}

dr_host_status dr_registration_cancel(dr_registration* registration) {
  return guarded([&] {
    require(registration != nullptr, "the registration is null");
    const PythonApi& api = running_python();
    const Locked locked(api);
    text_from(api, "cancel", "O", registration->object);
  });
}

void dr_registration_destroy(dr_registration* registration) { destroy(registration, "abandon"); }

void dr_registrar_destroy(dr_registrar* registrar) { destroy(registrar, "close"); }

void dr_registration_result_free(dr_registration_result* result) {
  if (!result) return;
  delete[] result->report;
  result->report = nullptr;
}
