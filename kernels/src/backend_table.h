// Fills in the table of a back end, given how its launcher is made.
#ifndef DINOREG_SRC_BACKEND_TABLE_H_
#define DINOREG_SRC_BACKEND_TABLE_H_

#include "backend.h"
#include "measures.h"
#include "mirror_test.h"
#include "operations.h"

DR_NAMESPACE_BEGIN

// Maker::make(execution) gives the launcher, Maker::finish(launcher) the status of the device.
template <class Maker>
struct BackendTable {
  using L = typename Maker::Launcher;

  template <class Args, dr_status (*operation)(const L&, const Args&)>
  static dr_status entry(const dr_execution& execution, const Args& args) {
    const L launch = Maker::make(execution);
    const dr_status status = operation(launch, args);
    return status == DR_OK ? Maker::finish(launch) : status;
  }

  // Unlike the others, it needs the execution to report progress to the caller.
  static dr_status solve(const dr_execution& execution, const dr_solver_args& args) {
    const L launch = Maker::make(execution);
    const dr_status status = Solver<L>(launch, execution, args).solve();
    return status == DR_OK ? Maker::finish(launch) : status;
  }

  static const Backend& table() {
    static const Backend backend = {
        .resample_image = entry<dr_resample_args, dr::resample_image<L>>,
        .resample_labels = entry<dr_labels_args, dr::resample_labels<L>>,
        .cut_slices = entry<dr_slices_args, dr::cut_slices<L>>,
        .map_field = entry<dr_map_args, dr::map_field<L>>,
        .jacobian = entry<dr_jacobian_args, dr::jacobian<L>>,
        .compose = entry<dr_compose_args, dr::compose<L>>,
        .invert = entry<dr_invert_args, dr::invert<L>>,
        .mind = entry<dr_mind_args, dr::mind<L>>,
        .local = entry<dr_local_args, dr::local_intensity<L>>,
        .pool = entry<dr_pool_args, dr::pool<L>>,
        .sample_tokens = entry<dr_tokens_args, dr::sample_tokens<L>>,
        .cover_tissue = entry<dr_tissue_args, dr::cover_tissue<L>>,
        .join_features = entry<dr_join_args, dr::join_features<L>>,
        .solve = solve,
        .multiply = entry<dr_multiply_args, dr::multiply_weights<L>>,
        .sums = entry<dr_sums_args, dr::sum_values<L>>,
        .quality = entry<dr_quality_args, dr::measure_quality<L>>,
        .agreement = entry<dr_agreement_args, dr::measure_agreement<L>>,
        .mirror = entry<dr_mirror_args, dr::compare_mirrored<L>>};
    return backend;
  }
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_BACKEND_TABLE_H_
