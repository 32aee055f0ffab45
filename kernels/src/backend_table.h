// The table of a back end from a function that makes its launcher.
#ifndef DINOREG_SRC_BACKEND_TABLE_H_
#define DINOREG_SRC_BACKEND_TABLE_H_

#include "backend.h"
#include "operations.h"

DR_NAMESPACE_BEGIN

// Maker::make(execution) -> launcher; Maker::finish(launcher) -> status of the device.
template <class Maker>
struct BackendTable {
  using L = typename Maker::Launcher;

  template <class Args, dr_status (*operation)(const L&, const Args&)>
  static dr_status entry(const dr_execution& execution, const Args& args) {
    const L launch = Maker::make(execution);
    const dr_status status = operation(launch, args);
    return status == DR_OK ? Maker::finish(launch) : status;
  }

  // Unlike the others it reports progress, which is the caller's.
  static dr_status solve(const dr_execution& execution, const dr_solver_args& args) {
    const L launch = Maker::make(execution);
    const dr_status status = Solver<L>(launch, execution, args).solve();
    return status == DR_OK ? Maker::finish(launch) : status;
  }

  static const Backend& table() {
    static const Backend backend = {entry<dr_resample_args, dr::resample_image<L>>,
                                    entry<dr_labels_args, dr::resample_labels<L>>,
                                    entry<dr_slices_args, dr::cut_slices<L>>,
                                    entry<dr_map_args, dr::map_field<L>>,
                                    entry<dr_jacobian_args, dr::jacobian<L>>,
                                    entry<dr_compose_args, dr::compose<L>>,
                                    entry<dr_invert_args, dr::invert<L>>,
                                    entry<dr_mind_args, dr::mind<L>>,
                                    entry<dr_local_args, dr::local_intensity<L>>,
                                    entry<dr_pool_args, dr::pool<L>>,
                                    solve};
    return backend;
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_BACKEND_TABLE_H_
