// Reads the argument structs of programs that were compiled against an older or a newer dinoreg.h.
#ifndef DINOREG_SRC_SIZED_H_
#define DINOREG_SRC_SIZED_H_

#include <algorithm>
#include <cstring>

#include "check_values.h"

// Included by capi.cpp alone.
namespace {

enum { kMostStructBytes = 4096 };  // a size beyond this was never set

// The size of a struct when it was first published, which is the least that a caller may have.
// These numbers never change.
template <class Struct>
struct Published;
#define DR_PUBLISHED(type, first_bytes)          \
  template <>                                    \
  struct Published<type> {                       \
    static constexpr const char* name = #type;   \
    static constexpr size_t bytes = first_bytes; \
  };                                             \
  static_assert(sizeof(type) >= first_bytes && sizeof(type) <= kMostStructBytes)

static_assert(sizeof(void*) == 8, "the sizes below are those of machines with 64 bits");
DR_PUBLISHED(dr_execution, 40);
DR_PUBLISHED(dr_resample_args, 376);
DR_PUBLISHED(dr_labels_args, 352);
DR_PUBLISHED(dr_slices_args, 120);
DR_PUBLISHED(dr_map_args, 320);
DR_PUBLISHED(dr_jacobian_args, 112);
DR_PUBLISHED(dr_compose_args, 184);
DR_PUBLISHED(dr_invert_args, 464);
DR_PUBLISHED(dr_mind_args, 104);
DR_PUBLISHED(dr_local_args, 128);
DR_PUBLISHED(dr_pool_args, 80);
DR_PUBLISHED(dr_solver_args, 384);
DR_PUBLISHED(dr_tokens_args, 192);
DR_PUBLISHED(dr_tissue_args, 184);
DR_PUBLISHED(dr_join_args, 56);
DR_PUBLISHED(dr_multiply_args, 56);
DR_PUBLISHED(dr_sums_args, 48);
DR_PUBLISHED(dr_quality_args, 216);
DR_PUBLISHED(dr_agreement_args, 200);
DR_PUBLISHED(dr_mirror_args, 232);
#undef DR_PUBLISHED

// Copies a caller's struct. Fields that the caller's header does not have become 0.
template <class Struct>
dr_status read_sized(const char* what, const Struct* given, Struct& known) {
  using First = Published<Struct>;
  REQUIRE(given != nullptr, "%s is NULL", what);
  const size_t size = given->struct_size;
  REQUIRE(size >= First::bytes && size <= kMostStructBytes,
          "%s->struct_size = %zu; wanted %zu or more; initialise the struct with DR_INIT(%s)", what,
          size, First::bytes, First::name);
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof known; i < size; ++i)
    REQUIRE(
        bytes[i] == 0,
        "%s has %zu bytes, of which this library knows %zu, and the rest is not 0; set no fields "
        "that are newer than the library, or install a newer one",
        First::name, size, sizeof known);
  std::memset(&known, 0, sizeof known);
  std::memcpy(&known, given, std::min(size, sizeof known));
  return DR_OK;
}

}  // namespace

#endif  // DINOREG_SRC_SIZED_H_
