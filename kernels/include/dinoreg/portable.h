// The only place that knows about compilers and devices.
//
// Everything in include/dinoreg compiles unchanged with g++, clang++ and nvcc. Each translation
// unit that includes it names its instruction set in DR_ISA, which becomes an inline namespace:
// without it the linker would keep one copy of an inline function for all instruction sets and an
// old processor would meet an AVX-512 instruction in its baseline path.
#ifndef DINOREG_PORTABLE_H_
#define DINOREG_PORTABLE_H_

#include <math.h>
#include <string.h>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define DR_HD __host__ __device__ __forceinline__
#else
#define DR_HD inline __attribute__((always_inline))
#if defined(__F16C__)
#include <immintrin.h>
#endif
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

// Channels are stored in blocks of eight: 16 bytes of half precision are one vector load on a GPU
// and one conversion instruction on a CPU.
enum { kBlock = 8 };

#if defined(__CUDACC__)
struct Block {
  float lane[kBlock];
  DR_HD float operator[](int i) const { return lane[i]; }
};
#define DR_BLOCK_OPERATOR(op)                                   \
  DR_HD Block operator op(const Block& a, const Block& b) {     \
    Block r;                                                    \
    _Pragma("unroll") for (int i = 0; i < kBlock; ++i)          \
        r.lane[i] = a.lane[i] op b.lane[i];                     \
    return r;                                                   \
  }                                                             \
  DR_HD Block operator op(float a, const Block& b) {            \
    Block r;                                                    \
    _Pragma("unroll") for (int i = 0; i < kBlock; ++i)          \
        r.lane[i] = a op b.lane[i];                             \
    return r;                                                   \
  }
DR_BLOCK_OPERATOR(+)
DR_BLOCK_OPERATOR(-)
DR_BLOCK_OPERATOR(*)
#undef DR_BLOCK_OPERATOR
#else
typedef float Block __attribute__((vector_size(32)));
#endif

DR_HD Block zero_block() {
#if defined(__CUDACC__)
  Block r;
#pragma unroll
  for (int i = 0; i < kBlock; ++i) r.lane[i] = 0.0f;
  return r;
#else
  return Block{};
#endif
}

// Sum of the lanes, always in the same order.
DR_HD float sum_lanes(const Block& b) {
  return ((b[0] + b[4]) + (b[2] + b[6])) + ((b[1] + b[5]) + (b[3] + b[7]));
}

DR_HD float bits_to_float(unsigned bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

DR_HD unsigned float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

DR_HD float half_to_float(Half h) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(h));
#elif defined(__F16C__) && !defined(__CUDACC__)
  return _cvtsh_ss(h);
#else
  const unsigned sign = (h & 0x8000u) << 16;
  const unsigned magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Shifting the exponent by multiplication also gets subnormal numbers right.
  const float value = bits_to_float(magnitude << 13) * 5.192296858534828e33f;  // 2^112
  return bits_to_float(sign | float_to_bits(value));
#endif
}

// Rounds to nearest even; values beyond the range become infinity.
DR_HD Half float_to_half(float f) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(f));
#elif defined(__F16C__) && !defined(__CUDACC__)
  return (Half)_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT);
#else
  const unsigned bits = float_to_bits(f);
  const unsigned sign = (bits >> 16) & 0x8000u;
  unsigned magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (Half)(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return (Half)(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal in half precision: let the adder do the rounding
    const float shifted = bits_to_float(magnitude) + 0.5f;
    return (Half)(sign | (float_to_bits(shifted) - 0x3f000000u));
  }
  magnitude += 0xfffu + ((magnitude >> 13) & 1u);
  return (Half)(sign | ((magnitude - 0x38000000u) >> 13));
#endif
}

// Eight channels; `p` is 16-byte aligned.
DR_HD Block load_block(const Half* p) {
#if defined(__CUDA_ARCH__)
  const uint4 raw = *reinterpret_cast<const uint4*>(p);
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
  Block r;
#pragma unroll
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

DR_HD int min_int(int a, int b) { return a < b ? a : b; }
DR_HD int max_int(int a, int b) { return a > b ? a : b; }
DR_HD int clamp_int(int i, int low, int high) { return min_int(max_int(i, low), high); }
DR_HD float min_float(float a, float b) { return a < b ? a : b; }
DR_HD float max_float(float a, float b) { return a > b ? a : b; }
DR_HD float clamp_float(float v, float low, float high) {
  return min_float(max_float(v, low), high);
}

// exp(-t) for t >= 0: 2^(n + f) with a fifth-degree polynomial for 2^f; relative error under
// 3e-7. The C library's expf would keep the loops around it from being vectorised.
DR_HD float exp_negative(float t) {
  const float y = max_float(t * -1.44269504f, -126.0f);
  const float n = floorf(y);
  const float f = y - n;
  float p = 1.8775767e-3f;
  p = p * f + 8.9893397e-3f;
  p = p * f + 5.5826318e-2f;
  p = p * f + 2.4015361e-1f;
  p = p * f + 6.9315308e-1f;
  p = p * f + 9.9999994e-1f;
  return p * bits_to_float((unsigned)((int)n + 127) << 23);
}

DR_NAMESPACE_END

#endif  // DINOREG_PORTABLE_H_
