// MIND-SSC from the floor of its variances on. The version here works with any launcher, slab by
// slab; cpu/cpu_mind.h has one for the caches of a CPU, which gives the same result.
#ifndef DINOREG_SRC_MIND_PASS_H_
#define DINOREG_SRC_MIND_PASS_H_

#include "convert.h"
#include "dinoreg/mind.h"
#include "passes.h"
#include "workspace.h"

DR_NAMESPACE_BEGIN

struct MindPass {
  const float* image;
  MindParameters mind;
  MindBlocks blocks;
  const float* floor_value;
  float* memory;
  size_t floats;  // in `memory`
};

// How many buffers the patch sums of a slab need: one more for the sums along one axis unless a
// kernel adds along all three.
template <class Launcher>
int mind_buffers(const Launcher&, const MindParameters&) {
  return 2;
}

// The patch sums of some planes. The larger a slab, the fewer launches there are and the fewer
// planes are summed twice.
struct MindSlab {
  Shape shape;
  MindParameters mind;

  // Planes beside those whose descriptors are computed: as far as a patch reaches.
  int reach() const { return mind.dilation.z + 2 * mind.radius.z; }
  size_t plane_floats() const {
    const MindDistanceX d = {.image = nullptr, .shape = shape, .mind = mind};
    return (size_t)kMindImages * (size_t)d.padded_y() * (size_t)d.padded_x();
  }
  // For slabs of this many planes with any launcher.
  size_t floats(int planes) const { return 2 * plane_floats() * ((size_t)planes + reach()); }
  // The most blocks along z that fit into a buffer; at least one.
  int blocks(size_t buffer, const MindBlocks& b) const {
    const size_t planes = buffer / plane_floats();
    if (planes >= (size_t)(shape.z + reach())) return b.out_shape.z;
    return max_int(((int)planes - reach()) / b.pool.z, 1);
  }
};

template <class Launcher>
void mind_pass(const Launcher& launch, const MindPass& p) {
  const MindBlocks& b = p.blocks;
  const MindSlab slab = {b.shape, p.mind};
  const size_t buffer = p.floats / mind_buffers(launch, p.mind);
  const int most = slab.blocks(buffer, b);
  for (int first = 0; first < b.out_shape.z; first += most) {
    const int count = min_int(most, b.out_shape.z - first), z = first * b.pool.z;
    const int planes = min_int(count * b.pool.z, b.shape.z - z);
    mind_sums_pass(launch,
                   MindDistanceX{.image = p.image,
                                 .shape = b.shape,
                                 .mind = p.mind,
                                 .first_plane = z - p.mind.dilation.z - p.mind.radius.z,
                                 .planes = planes + slab.reach(),
                                 .out = p.memory},
                   p.memory + buffer);
    launch(MindFeatures{.sums = p.memory,
                        .mind = p.mind,
                        .floor_value = p.floor_value,
                        .patch_scale = p.mind.patch_scale(),
                        .blocks = b,
                        .first = first,
                        .count = count});
  }
}

DR_NAMESPACE_END

#endif  // DINOREG_SRC_MIND_PASS_H_
