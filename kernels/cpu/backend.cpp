// The CPU back end, compiled once for each instruction set, which the build names in DR_ISA.
#include "backend_table.h"
#include "cpu_passes.h"

DR_NAMESPACE_BEGIN

struct CpuMaker {
  using Launcher = CpuLauncher;
  static CpuLauncher make(const dr_execution& execution) {
    return CpuLauncher(team(execution.threads > 0 ? execution.threads : processors()));
  }
  // More threads than processors do not help. Up to 64 are started on any machine, so that one with
  // few processors divides the work as a large one does.
  static int team(int threads) { return min_int(threads, max_int(64, processors())); }
  static dr_status finish(const CpuLauncher&) { return DR_OK; }
};

DR_NAMESPACE_END

#define DR_JOIN_(a, b) a##b
#define DR_JOIN(a, b) DR_JOIN_(a, b)
const Backend& DR_JOIN(cpu_backend_, DR_ISA)() { return dr::BackendTable<dr::CpuMaker>::table(); }

#if defined(DR_ISA_IS_GENERIC)
size_t workspace_bytes(const dr_solver_args& args) {
  return dr::Solver<dr::CpuLauncher>::workspace_bytes(args);
}
size_t workspace_bytes(const dr_mind_args& args) {
  dr_mind_args counted = args;
  counted.workspace = nullptr;
  const dr::Shape shape = dr::to_int3(args.shape);
  const dr::Int3 pool = dr::to_int3(args.pool);
  const dr::MindParameters mind = dr::mind_parameters(args);
  const dr::MindTile tile(shape, mind, pool);
  const size_t sweep = tile.needed * tile.workers();
  const size_t slab = dr::MindSlab{shape, mind}.floats(pool.z);
  const size_t floats = sweep > slab ? sweep : slab;
  return dr::MindMemory(counted).work.peak() + sizeof(float) * floats;
}
size_t workspace_bytes(const dr_local_args& args) {
  return 6 * sizeof(float) * dr::out_shape_of(args).voxels();
}
size_t workspace_bytes(const dr_sums_args& args) { return dr::SumsMemory(args).work.peak(); }
size_t workspace_bytes(const dr_quality_args& args) {
  dr_quality_args counted = args;
  counted.workspace = nullptr;
  return dr::QualityMeasure<dr::CpuLauncher>::workspace_bytes(counted);
}
size_t workspace_bytes(const dr_agreement_args& args) {
  dr_agreement_args counted = args;
  counted.workspace = nullptr;
  return dr::AgreementMemory(counted).work.peak();
}
size_t workspace_bytes(const dr_mirror_args& args) {
  return dr::MirrorTest<dr::CpuLauncher>::workspace_bytes(args);
}
#endif
