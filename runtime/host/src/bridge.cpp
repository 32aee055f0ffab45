#include "bridge.h"

namespace dinoreg::host {
namespace {

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

}  // namespace

void throw_python_error(const PythonApi& api, const std::string& what) {
  Object *type = nullptr, *value = nullptr, *trace = nullptr;
  api.PyErr_Fetch(&type, &value, &trace);
  const Reference kept[] = {{api, type}, {api, value}, {api, trace}};
  throw HostError(DR_HOST_DEVICE, what + ": " + text_of(api, value ? value : type));
}

Object* bridge_function(const PythonApi& api, const char* name) {
  const Reference bridge(api, api.PyImport_ImportModule("dinoreg_rt.embedded.bridge"));
  if (!bridge.get())
    throw_python_error(api, std::string("Python ") + api.Py_GetVersion() +
                                " cannot import dinoreg_rt; install dinoreg-rt with the interpreter"
                                " that is used here");
  Object* function = api.PyObject_GetAttrString(bridge.get(), name);
  if (!function) throw_python_error(api, name);
  return function;
}

Reply unpacked(const PythonApi& api, const char* name, Object* returned) {
  const Reference reply(api, returned);
  if (!returned) throw_python_error(api, name);
  const long status = api.PyLong_AsLong(api.PyTuple_GetItem(returned, 0));
  std::string text = text_of(api, api.PyTuple_GetItem(returned, 1));
  if (status != DR_HOST_OK) throw HostError((dr_host_status)status, text);
  Object* object = api.PyTuple_GetItem(returned, 2);
  api.Py_IncRef(object);
  return {std::move(text), object};
}

}  // namespace dinoreg::host
