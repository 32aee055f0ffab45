// Reads the structs of programs that were compiled against an older or a newer dinoreg_host.h.
#ifndef DINOREG_HOST_STRUCTS_H_
#define DINOREG_HOST_STRUCTS_H_

#include <algorithm>
#include <cstring>
#include <string>

#include "dinoreg_host.h"
#include "errors.h"

namespace dinoreg::host {

inline constexpr size_t kMostStructBytes = 4096;  // a size beyond this was never set

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
DR_PUBLISHED(dr_volume, 192);
DR_PUBLISHED(dr_registrar_args, 32);
DR_PUBLISHED(dr_registration_args, 136);
DR_PUBLISHED(dr_registration_result, 120);
#undef DR_PUBLISHED

inline void require(bool condition, const std::string& text) {
  if (!condition) throw HostError(DR_HOST_INVALID, text);
}

// Returns a caller's struct as one of this version. Fields that its header lacks become 0; fields
// that this version does not know must be 0.
template <class Struct>
Struct known(const Struct* given) {
  const std::string name = Published<Struct>::name;
  require(given != nullptr, name + " is null");
  const size_t size = given->struct_size;
  require(size >= Published<Struct>::bytes && size <= kMostStructBytes,
          name + ".struct_size = " + std::to_string(size) + "; wanted sizeof(" + name +
              ") = " + std::to_string(sizeof(Struct)) + ": initialise it with its ..._INIT");
  const char* bytes = reinterpret_cast<const char*>(given);
  for (size_t i = sizeof(Struct); i < size; ++i)
    require(bytes[i] == 0, name + " has fields that this library, " DR_HOST_VERSION
                                  ", does not know; use the library of its header");
  Struct copy;
  std::memset(&copy, 0, sizeof copy);
  std::memcpy(&copy, given, std::min(size, sizeof copy));
  copy.struct_size = sizeof copy;
  return copy;
}

// A registration's arguments of this version, with the volumes that they point to.
class Arguments {
 public:
  explicit Arguments(const dr_registration_args* given) : args_(known(given)) {
    const dr_volume** const fields[] = {&args_.fixed,       &args_.moving,  &args_.fixed_mask,
                                        &args_.moving_mask, &args_.weights, &args_.labels};
    static_assert(std::size(fields) == kVolumes);
    for (int i = 0; i < kVolumes; ++i) {
      if (!*fields[i]) continue;
      volumes_[i] = known(*fields[i]);
      *fields[i] = &volumes_[i];
    }
    require(args_.fixed && args_.moving, "dr_registration_args needs a fixed and a moving image");
  }
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  const dr_registration_args* get() const { return &args_; }

 private:
  static constexpr int kVolumes = 6;

  dr_registration_args args_;
  dr_volume volumes_[kVolumes];
};

// Writes what the bridge reported to the caller's struct, of whatever version.
inline void give(dr_registration_result made, const std::string& report,
                 dr_registration_result* result) {
  made.report = new char[report.size() + 1];
  std::memcpy(made.report, report.c_str(), report.size() + 1);
  made.struct_size = result->struct_size;
  std::memcpy(result, &made, std::min(made.struct_size, sizeof made));
}

}  // namespace dinoreg::host

#endif  // DINOREG_HOST_STRUCTS_H_
