// The only file that knows about compilers and devices.
//
// Everything in include/dinoreg compiles unchanged with g++, clang++ and nvcc. Each translation
// unit names its instruction set in DR_ISA, which becomes an inline namespace. Without it the
// linker would keep a single copy of an inline function for all instruction sets, and an old
// processor could meet an AVX-512 instruction on its baseline path.
#ifndef DINOREG_PORTABLE_H_
#define DINOREG_PORTABLE_H_

#include <math.h>
#include <string.h>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define DR_HD __host__ __device__ __forceinline__
#else
#define DR_HD inline __attribute__((always_inline))
#if defined(__AVX__) || defined(__F16C__)
#include <immintrin.h>
#endif
#endif

// Unrolls the loop that follows. Each compiler warns about the other's spelling, and nvcc's host
// compiler, whose code for the ops is never run, about both.
#define DR_PRAGMA_(text) _Pragma(#text)
#if defined(__CUDA_ARCH__)
#define DR_UNROLL(count) DR_PRAGMA_(unroll count)
#elif defined(__CUDACC__)
#define DR_UNROLL(count)
#else
#define DR_UNROLL(count) DR_PRAGMA_(GCC unroll count)
#endif

#ifndef DR_ISA
#define DR_ISA generic
#endif
#define DR_NAMESPACE_BEGIN \
  namespace dr {           \
  inline namespace DR_ISA {
#define DR_NAMESPACE_END \
  }                      \
  }

DR_NAMESPACE_BEGIN

typedef long long Index;      // offsets into arrays; a 512 x 512 x 300 field has 2.4e8 numbers
typedef unsigned short Half;  // IEEE binary16, storage only

// Channels are stored in blocks of eight, because 16 bytes of half precision are one vector load on
// a GPU and one conversion instruction on a CPU.
enum { kBlock = 8 };

#if defined(__CUDACC__)
struct Block {
  float lane[kBlock];
  DR_HD float operator[](int i) const { return lane[i]; }
};
#define DR_BLOCK_OPERATOR(op)                                            \
  DR_HD Block operator op(const Block& a, const Block& b) {              \
    Block r;                                                             \
    DR_UNROLL(8)                                                         \
    for (int i = 0; i < kBlock; ++i) r.lane[i] = a.lane[i] op b.lane[i]; \
    return r;                                                            \
  }                                                                      \
  DR_HD Block operator op(float a, const Block& b) {                     \
    Block r;                                                             \
    DR_UNROLL(8)                                                         \
    for (int i = 0; i < kBlock; ++i) r.lane[i] = a op b.lane[i];         \
    return r;                                                            \
  }
DR_BLOCK_OPERATOR(+)
DR_BLOCK_OPERATOR(-)
DR_BLOCK_OPERATOR(*)
#undef DR_BLOCK_OPERATOR
#else
typedef float Block __attribute__((vector_size(32)));
#endif

DR_HD Block zero_block() { return Block{}; }

// The sum of the lanes, always added in the same order.
DR_HD float sum_lanes(const Block& b) {
#if defined(__AVX__) && !defined(__CUDACC__)
  const __m128 four =
      _mm_add_ps(_mm256_castps256_ps128((__m256)b), _mm256_extractf128_ps((__m256)b, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
  return ((b[0] + b[4]) + (b[2] + b[6])) + ((b[1] + b[5]) + (b[3] + b[7]));
#endif
}

// A sum of products over the channels of a voxel. On a CPU eight channels are one register; on a
// GPU they would be eight, and four such sums made FeatureDifference take 128.
#if defined(__CUDACC__)
typedef float ChannelSum;
DR_HD void add_products(ChannelSum& sum, const Block& a, const Block& b) {
  DR_UNROLL(8)
  for (int i = 0; i < kBlock; ++i) sum += a[i] * b[i];
}
DR_HD float total(const ChannelSum& sum) { return sum; }
#else
typedef Block ChannelSum;
DR_HD void add_products(ChannelSum& sum, const Block& a, const Block& b) { sum = sum + a * b; }
DR_HD float total(const ChannelSum& sum) { return sum_lanes(sum); }
#endif

// The same bits, as a value of another type.
template <class To, class From>
DR_HD To bits_as(const From& from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

DR_HD float half_to_float(Half h) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(h));
#elif defined(__F16C__) && !defined(__CUDACC__)
  return _cvtsh_ss(h);
#else
  const unsigned sign = (h & 0x8000u) << 16;
  const unsigned magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_as<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Shifting the exponent by a multiplication also converts subnormal numbers correctly.
  const float value = bits_as<float>(magnitude << 13) * 5.192296858534828e33f;  // 2^112
  return bits_as<float>(sign | bits_as<unsigned>(value));
#endif
}

// Rounds to nearest even; values beyond the range become infinity.
DR_HD Half float_to_half(float f) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(f));
#elif defined(__F16C__) && !defined(__CUDACC__)
  return (Half)_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT);
#else
  const unsigned bits = bits_as<unsigned>(f);
  const unsigned sign = (bits >> 16) & 0x8000u;
  unsigned magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (Half)(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return (Half)(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal in half precision: the adder does the rounding
    const float shifted = bits_as<float>(magnitude) + 0.5f;
    return (Half)(sign | (bits_as<unsigned>(shifted) - 0x3f000000u));
  }
  magnitude += 0xfffu + ((magnitude >> 13) & 1u);
  return (Half)(sign | ((magnitude - 0x38000000u) >> 13));
#endif
}

// Loads eight channels; `p` is 16-byte aligned. cuda/vector_loads.py checks that it is one load.
DR_HD Block load_block(const Half* p) {
#if defined(__CUDA_ARCH__)
  const uint4 raw = *reinterpret_cast<const uint4*>(p);
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
  Block r;
  DR_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    r.lane[2 * i] = half_to_float((Half)(words[i] & 0xffffu));
    r.lane[2 * i + 1] = half_to_float((Half)(words[i] >> 16));
  }
  return r;
#elif defined(__F16C__) && !defined(__CUDACC__)
  return (Block)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Block r = zero_block();
  float* lanes = reinterpret_cast<float*>(&r);
  for (int i = 0; i < kBlock; ++i) lanes[i] = half_to_float(p[i]);
  return r;
#endif
}

// Loads eight numbers; `p` is 16-byte aligned.
DR_HD Block load_block(const float* p) {
#if defined(__CUDA_ARCH__)
  const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
#else
  Block r;
  memcpy(&r, p, sizeof r);
  return r;
#endif
}

// Stores eight channels in half precision; `p` is 16-byte aligned.
DR_HD void store_block(Half* p, const Block& b) {
#if defined(__CUDA_ARCH__)
  unsigned words[4];
  DR_UNROLL(4)
  for (int i = 0; i < 4; ++i)
    words[i] = float_to_half(b[2 * i]) | (unsigned)float_to_half(b[2 * i + 1]) << 16;
  *reinterpret_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
#elif defined(__F16C__) && !defined(__CUDACC__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)b, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kBlock; ++i) p[i] = float_to_half(b[i]);
#endif
}

DR_HD int min_int(int a, int b) { return a < b ? a : b; }
DR_HD int max_int(int a, int b) { return a > b ? a : b; }
DR_HD int clamp_int(int i, int low, int high) { return min_int(max_int(i, low), high); }

// Several neighbouring elements of a row at once. Ops that benefit are written once in terms of a
// value type V: float on a GPU and at the borders, Lanes inside the rows on a CPU. Without this,
// the compiler vectorised only half of these loops.
template <class V>
struct LaneTraits;
template <>
struct LaneTraits<float> {
  typedef int Int;
  typedef Index Offset;  // into an array
  enum { kCount = 1 };
};
#if !defined(__CUDACC__)
#if defined(__AVX512F__)
enum { kLanes = 16 };
#elif defined(__AVX__)
enum { kLanes = 8 };
#else
enum { kLanes = 4 };
#endif
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int IntLanes __attribute__((vector_size(4 * kLanes)));
template <>
struct LaneTraits<Lanes> {
  typedef IntLanes Int;
  typedef IntLanes Offset;  // arrays of 2^31 numbers and more are read element by element
  enum { kCount = kLanes };
};
#endif

#if defined(__CUDACC__)
// Without memcpy, which nvcc turns into four accesses of one byte.
template <class V>
DR_HD V load(const V* p) {
  return *p;
}
template <class V>
DR_HD void store(V* p, const V& v) {
  *p = v;
}
#else
template <class V, class T>
DR_HD V load(const T* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
DR_HD void store(T* p, const V& v) {
  memcpy(p, &v, sizeof v);
}
#endif
template <class V>
DR_HD V splat(float value) {
  return V{} + value;
}
template <class V>
DR_HD V min_of(const V& a, const V& b) {
  return a < b ? a : b;
}
template <class V>
DR_HD V max_of(const V& a, const V& b) {
  return a > b ? a : b;
}
// Rounds towards zero, as a cast does.
DR_HD int to_int(float v) { return (int)v; }
DR_HD float to_float(int v) { return (float)v; }
DR_HD bool any_of(bool condition) { return condition; }
template <class T>
DR_HD T lane_of(const T& v, int) {
  return v;
}
DR_HD float root(float v) { return sqrtf(v); }
// 0 in the first lane, 1 in the next, and so on.
template <class V>
DR_HD V lane_numbers() {
  return V{};
}
#if !defined(__CUDACC__)
DR_HD IntLanes to_int(const Lanes& v) { return __builtin_convertvector(v, IntLanes); }
DR_HD Lanes to_float(const IntLanes& v) { return __builtin_convertvector(v, Lanes); }
DR_HD float lane_of(const Lanes& v, int lane) { return v[lane]; }
DR_HD int lane_of(const IntLanes& v, int lane) { return v[lane]; }
DR_HD bool any_of(const IntLanes& condition) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)condition, (__m512i)condition) != 0;
#elif defined(__AVX__)
  return !_mm256_testz_si256((__m256i)condition, (__m256i)condition);
#endif
  int any = 0;
  for (int i = 0; i < kLanes; ++i) any |= condition[i];
  return any != 0;
}
// The compiler makes a comparison and a blend of the general version.
// The masked intrinsics are used here and elsewhere because GCC 12's header warns of an
// uninitialised register in the others.
#if defined(__AVX512F__)
DR_HD Lanes min_of(const Lanes& a, const Lanes& b) {
  return (Lanes)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
}
DR_HD Lanes max_of(const Lanes& a, const Lanes& b) {
  return (Lanes)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
}
#endif
DR_HD Lanes root(const Lanes& v) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);
#elif defined(__AVX__)
  return (Lanes)_mm256_sqrt_ps((__m256)v);
#else
  Lanes r = v;
  for (int i = 0; i < kLanes; ++i) r[i] = sqrtf(v[i]);
  return r;
#endif
}
template <>
DR_HD Lanes lane_numbers<Lanes>() {
  Lanes v;
  for (int i = 0; i < kLanes; ++i) v[i] = (float)i;
  return v;
}
#endif
DR_HD float clamp_float(float v, float low, float high) { return min_of(max_of(v, low), high); }

// 2^-t for t >= 0, computed as 2^n 2^f with |f| <= 1/2; the relative error is below 2e-7. The C
// library's exp2f would keep the loops around it from being vectorised.
template <class V>
DR_HD V exp2_negative(const V& t) {
  typedef typename LaneTraits<V>::Int Int;
  const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the bits
  // Also at least 0, as a NaN among the numbers from which t was made may leave it negative.
  const V y = max_of(min_of(t, splat<V>(126.0f)), V{});
  const V shifted = kRound - y;
  const V f = (kRound - shifted) - y;
  V p = f * 1.326472725e-3f + 9.671512688e-3f;
  p = p * f + 5.550733744e-2f;
  p = p * f + 2.402224208e-1f;
  p = p * f + 6.931469776e-1f;
  p = p * f + 1.0f;
  return bits_as<V>(bits_as<Int>(p) + (bits_as<Int>(shifted) << 23));  // n added to the exponent
}

DR_NAMESPACE_END

#endif  // DINOREG_PORTABLE_H_
