// Reading numbers that do not lie side by side into vectors, and sorting what was read.
#ifndef DINOREG_GATHER_H_
#define DINOREG_GATHER_H_

#include "dinoreg/portable.h"

DR_NAMESPACE_BEGIN

DR_HD float gather(const float* p, Index at) { return p[at]; }
// The number at `at` and the one after it.
DR_HD void gather_pair(const float* p, Index at, float& first, float& second) {
  first = p[at];
  second = p[at + 1];
}

#if !defined(__CUDACC__)
DR_HD Lanes gather(const float* p, const IntLanes& at) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, (__m512i)at, p, 4);
#elif defined(__AVX2__)
  const __m256 all = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  return (Lanes)_mm256_mask_i32gather_ps(_mm256_setzero_ps(), p, (__m256i)at, all, 4);
#else
  Lanes v;
  for (int i = 0; i < kLanes; ++i) v[i] = p[at[i]];
  return v;
#endif
}

// Elements `first`, first + 2 and so on of two vectors.
DR_HD Lanes every_second(const Lanes& a, const Lanes& b, int first) {
  IntLanes from;
  for (int i = 0; i < kLanes; ++i) from[i] = 2 * i + first;
  return __builtin_shuffle(a, b, from);
}

// Reads each pair as one number of 64 bits, which takes half the time.
DR_HD void gather_pair(const float* p, const IntLanes& at, Lanes& first, Lanes& second) {
#if defined(__AVX512F__)
  const __m512d none = _mm512_setzero_pd();
  const __m256i low = _mm512_maskz_extracti64x4_epi64(0xf, (__m512i)at, 0);
  const __m256i high = _mm512_maskz_extracti64x4_epi64(0xf, (__m512i)at, 1);
  const Lanes a = (Lanes)_mm512_mask_i32gather_pd(none, 0xff, low, p, 4);
  const Lanes b = (Lanes)_mm512_mask_i32gather_pd(none, 0xff, high, p, 4);
#elif defined(__AVX2__)
  const __m256d none = _mm256_setzero_pd(), all = (__m256d)_mm256_set1_epi64x(-1);
  const double* pairs = reinterpret_cast<const double*>(p);
  const __m128i low = _mm256_castsi256_si128((__m256i)at);
  const __m128i high = _mm256_extracti128_si256((__m256i)at, 1);
  const Lanes a = (Lanes)_mm256_mask_i32gather_pd(none, pairs, low, all, 4);
  const Lanes b = (Lanes)_mm256_mask_i32gather_pd(none, pairs, high, all, 4);
#else
  const Lanes a = gather(p, at), b = gather(p + 1, at);
  first = a, second = b;
  return;
#endif
#if defined(__AVX2__)
  first = every_second(a, b, 0), second = every_second(a, b, 1);
#endif
}

// Exchanges lanes j + width of the first row and j of the second, for each lane j without the bit
// `width`.
template <int width>
DR_HD void exchange(Block& first, Block& second) {
  typedef int Lane8 __attribute__((vector_size(32)));
  const auto low = [](int j) { return j & width ? kBlock + j - width : j; };
  const auto high = [](int j) { return j & width ? kBlock + j : j + width; };
  const Block kept = first;
  first = __builtin_shuffle(kept, second,
                            Lane8{low(0), low(1), low(2), low(3), low(4), low(5), low(6), low(7)});
  second = __builtin_shuffle(
      kept, second, Lane8{high(0), high(1), high(2), high(3), high(4), high(5), high(6), high(7)});
}

// Element j of row i becomes element i of row j.
DR_HD void transpose(Block (&r)[kBlock]) {
  DR_UNROLL(4)
  for (int i = 0; i < 4; ++i) exchange<4>(r[i], r[i + 4]);
  DR_UNROLL(4)
  for (int i = 0; i < 4; ++i) exchange<2>(r[i + i / 2 * 2], r[i + i / 2 * 2 + 2]);
  DR_UNROLL(4)
  for (int i = 0; i < 4; ++i) exchange<1>(r[2 * i], r[2 * i + 1]);
}

// Reads two neighbours in each of four rows, for eight columns: out[2 r] receives the numbers at
// rows[r] + at[0] ... rows[r] + at[7], and out[2 r + 1] those that follow them. Takes less time
// than gathers of pairs.
DR_HD void gather_pairs(const float* const (&rows)[4], const int* at, Block (&out)[kBlock]) {
  typedef double Pairs __attribute__((vector_size(32)));
  DR_UNROLL(8)
  for (int i = 0; i < kBlock; ++i)
    out[i] = (Block)Pairs{load<double>(rows[0] + at[i]), load<double>(rows[1] + at[i]),
                          load<double>(rows[2] + at[i]), load<double>(rows[3] + at[i])};
  transpose(out);
}
#endif

DR_NAMESPACE_END

#endif  // DINOREG_GATHER_H_
