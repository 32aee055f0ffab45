// The exception that the library uses inside; none crosses its interface.
#ifndef DINOREG_HOST_ERRORS_H_
#define DINOREG_HOST_ERRORS_H_

#include <stdexcept>
#include <string>

#include "dinoreg_host.h"

namespace dinoreg::host {

struct HostError : std::runtime_error {
  HostError(dr_host_status status, const std::string& text)
      : std::runtime_error(text), status(status) {}
  dr_host_status status;
};

}  // namespace dinoreg::host

#endif  // DINOREG_HOST_ERRORS_H_
