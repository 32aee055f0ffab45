// Which Python interpreter is to be started, and its shared library.
#ifndef DINOREG_HOST_INTERPRETER_H_
#define DINOREG_HOST_INTERPRETER_H_

#include <string>

namespace dinoreg::host {

// Returns the interpreter to start: `given` unless it is null or "", or that of DINOREG_PYTHON, or
// that of the environment in which this library lies. Throws HostError where there is none.
std::string chosen_interpreter(const char* given);

// Loads the shared library of an interpreter, so that extension modules find its symbols.
// Throws HostError.
void* load_library_of(const std::string& executable);

}  // namespace dinoreg::host

#endif  // DINOREG_HOST_INTERPRETER_H_
