// Calls dinoreg_rt.embedded.bridge, whose functions return (status, text, object) and never raise.
#ifndef DINOREG_HOST_BRIDGE_H_
#define DINOREG_HOST_BRIDGE_H_

#include <string>

#include "errors.h"
#include "python_api.h"

namespace dinoreg::host {

// Holds the interpreter's lock.
class Locked {
 public:
  explicit Locked(const PythonApi& api) : api_(api) {
    if (!api.Py_IsInitialized())
      throw HostError(DR_HOST_DEVICE, "the Python interpreter of this process has been finalised");
    state_ = api.PyGILState_Ensure();
  }
  ~Locked() { api_.PyGILState_Release(state_); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  const PythonApi& api_;
  int state_;
};

// Owns a reference to a Python object, or nothing. The lock must be held.
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

// What a function of the bridge returned.
struct Reply {
  std::string text;
  Object* object;  // a new reference
};

// Throws the error of Python that is set.
[[noreturn]] void throw_python_error(const PythonApi& api, const std::string& what);

// Returns a new reference to a function of the bridge.
Object* bridge_function(const PythonApi& api, const char* name);

// Unpacks what `name` returned, a new reference; throws unless its status is DR_HOST_OK.
Reply unpacked(const PythonApi& api, const char* name, Object* returned);

// Calls a function of the bridge with the lock held; `format` is that of PyObject_CallFunction.
template <class... Values>
Reply call(const PythonApi& api, const char* name, const char* format, Values... values) {
  const Reference function(api, bridge_function(api, name));
  return unpacked(api, name, api.PyObject_CallFunction(function.get(), format, values...));
}

// The same for a function that returns no object: returns the text.
template <class... Values>
std::string text_from(const PythonApi& api, const char* name, const char* format,
                      Values... values) {
  const Reply reply = call(api, name, format, values...);
  api.Py_DecRef(reply.object);
  return reply.text;
}

}  // namespace dinoreg::host

#endif  // DINOREG_HOST_BRIDGE_H_
