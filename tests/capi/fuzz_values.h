// Sane and hostile values and the memory of one call, for fuzz.cpp.
#ifndef DINOREG_TESTS_FUZZ_VALUES_H_
#define DINOREG_TESTS_FUZZ_VALUES_H_

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <vector>

namespace {

std::mt19937_64 generator;

// A number in low..high. Not a std distribution, so that a seed means the same everywhere.
int pick(int low, int high) { return low + (int)(generator() % (uint64_t)(high - low + 1)); }
bool one_in(int n) { return pick(1, n) == 1; }
template <class T>
T any_of(std::initializer_list<T> values) {
  return values.begin()[pick(0, (int)values.size() - 1)];
}

// How often an argument is hostile: never in some calls, so that these do their work.
int hostility = 0;
bool hostile() { return hostility > 0 && one_in(hostility); }

constexpr double kInf = std::numeric_limits<double>::infinity();
double hostile_number() {
  return any_of({kInf, -kInf, std::nan(""), 0.0, -0.0, -1.0, 1e-320, 1e-300, 1e-40, 1e-15, 1e15,
                 1e30, 1e38, 1e300, -1e300, 8.6e8, 1e10});
}
int32_t hostile_int() {
  return any_of<int32_t>({INT32_MIN, INT32_MIN + 1, -32769, -1, 0, 1, 7, 64, 65, 257, 32768, 32769,
                          65536, 1 << 30, INT32_MAX - 7, INT32_MAX - 1, INT32_MAX});
}
double number(double low, double high) {
  return hostile() ? hostile_number() : low + (high - low) * pick(0, 1000) / 1000.0;
}
int32_t whole(int low, int high) { return hostile() ? hostile_int() : pick(low, high); }
template <int N>
void fill(double (&to)[N], double low, double high) {
  for (double& v : to) v = number(low, high);
}
// The same where large values are valid but take minutes: these become one more than `most`.
int32_t quick(int low, int high, int most) {
  const int32_t value = whole(low, high);
  return value > high && value <= most ? most + 1 : value;
}
template <int N>
void fill(int32_t (&to)[N], int low, int high) {
  for (int32_t& v : to) v = whole(low, high);
}

// The memory of one call. malloc aligns it to 16 bytes, and the sanitizer guards its ends.
std::vector<std::unique_ptr<void, void (*)(void*)>> buffers;
constexpr int64_t kMostNumbers = 1 << 18;
template <class T>
T* buffer(int64_t count) {
  const int64_t bytes = count * (int64_t)sizeof(T);
  buffers.emplace_back(std::malloc((size_t)bytes), std::free);
  std::memset(buffers.back().get(), 0, (size_t)bytes);
  return static_cast<T*>(buffers.back().get());
}

// No function takes an axis or channels beyond this.
constexpr int64_t kMostOfAll = 32768;

// Set where an array is too large for a test: then the call is left out.
bool too_large;
// The numbers of an array with these sizes, or 1 where the call must be refused for them.
int64_t numbers(std::initializer_list<int64_t> sizes) {
  int64_t all = 1;
  for (const int64_t size : sizes)
    if (size < 1 || size > kMostOfAll) return 1;
  for (const int64_t size : sizes) {
    if (all * size > kMostNumbers) {
      too_large = true;
      return 1;
    }
    all *= size;
  }
  return all;
}
int64_t voxels(const int32_t* s) { return numbers({s[0], s[1], s[2]}); }
int64_t voxels(const int32_t* s, int64_t each) { return numbers({s[0], s[1], s[2], each}); }

const float* floats(int64_t count) {
  float* to = buffer<float>(count);
  for (int64_t i = 0; i < count; ++i)
    to[i] = one_in(200) ? (float)hostile_number() : pick(0, 99) / 9.0f;
  return hostile() ? nullptr : to;
}
const uint16_t* halves(int64_t count) {
  uint16_t* to = buffer<uint16_t>(count);
  // Now and then all bit patterns: subnormals, infinities and NaN.
  for (int64_t i = 0; i < count; ++i)
    to[i] = (uint16_t)(one_in(100) ? generator() : pick(0, 0x3c00));
  return hostile() ? nullptr : to;
}
template <class T>
T* output(int64_t count) {
  T* to = buffer<T>(count);
  return hostile() ? nullptr : to;
}
template <class T>
T* optional(T* pointer) {
  return one_in(2) ? pointer : nullptr;
}
const double* doubles(int64_t count, double low, double high) {
  double* to = buffer<double>(count);
  for (int64_t i = 0; i < count; ++i) to[i] = number(low, high);
  return hostile() ? nullptr : to;
}

// A sized struct as the caller of another header has it: larger, with zeros or with something
// behind the known fields, or with a size that cannot be. Its memory ends where its size says.
template <class Struct>
const Struct* as_sent(const Struct& known) {
  if (!hostile()) return &known;
  constexpr size_t own = sizeof(Struct);
  const size_t size = any_of<size_t>(
      {0, 1, 8, own - 8, own - 1, own + 1, own + 8, own + 64, 4096, 4097, SIZE_MAX - 8, SIZE_MAX});
  const size_t held = size > 4096 || size < sizeof(size_t) ? sizeof(size_t) : size;
  char* sent = buffer<char>((int64_t)held);
  std::memcpy(sent, &known, held < own ? held : own);
  std::memcpy(sent, &size, sizeof size);
  if (held > own && one_in(2)) sent[pick((int)own, (int)held - 1)] = 1;
  return reinterpret_cast<const Struct*>(sent);
}

}  // namespace

#endif  // DINOREG_TESTS_FUZZ_VALUES_H_
