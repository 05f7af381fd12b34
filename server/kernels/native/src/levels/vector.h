// Vectors of sixteen floats, for the level's flags. `kernels.inc` includes this inside the level's namespace.

constexpr int kLanes = 16;

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)

struct Vector {
  __m512 v;
};
inline Vector splat(float x) { return {_mm512_set1_ps(x)}; }
inline Vector load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Vector x) { _mm512_storeu_ps(p, x.v); }
inline Vector load_bf16(const uint16_t* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}
inline Vector load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store_f16(uint16_t* p, Vector x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vector fma(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vector max(Vector a, Vector b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vector min(Vector a, Vector b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vector abs(Vector a) { return {_mm512_abs_ps(a.v)}; }
inline Vector round(Vector a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2 to the power of integers from -126 to 127
inline Vector exp2_whole(Vector a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(a.v), _mm512_set1_epi32(127)), 23))};
}
inline void store_int8(int8_t* p, Vector x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.v)));
}
inline Vector copy_sign(Vector magnitude, Vector sign) {
  const __m512i mask = _mm512_set1_epi32(INT32_MIN);
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(mask, _mm512_castps_si512(sign.v),
                                                        _mm512_castps_si512(magnitude.v), 0xCA))};
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

struct Vector {
  __m256 a, b;
};
inline Vector splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vector load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Vector x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline __m256 widen_bf16(const uint16_t* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
inline Vector load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
inline Vector load_f16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline void store_f16(uint16_t* p, Vector x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  __m128i* q = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(q, _mm256_cvtps_ph(x.a, kNearest));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(x.b, kNearest));
}
inline Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.a, b.a), _mm256_sub_ps(a.b, b.b)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)}; }
inline Vector fma(Vector a, Vector b, Vector c) {
  return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)};
}
inline Vector max(Vector a, Vector b) { return {_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)}; }
inline Vector min(Vector a, Vector b) { return {_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)}; }
inline Vector abs(Vector a) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MAX));
  return {_mm256_and_ps(a.a, mask), _mm256_and_ps(a.b, mask)};
}
inline Vector round(Vector a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.a, kNearest), _mm256_round_ps(a.b, kNearest)};
}
inline __m256 exp2_whole(__m256 a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127)), 23));
}
inline Vector exp2_whole(Vector a) { return {exp2_whole(a.a), exp2_whole(a.b)}; }
inline void store_int8(int8_t* p, Vector x) {
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)), 0xD8);  // 16 numbers of 16 bits, in order
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline Vector copy_sign(Vector magnitude, Vector sign) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MIN));
  return {_mm256_or_ps(_mm256_and_ps(mask, sign.a), _mm256_andnot_ps(mask, magnitude.a)),
          _mm256_or_ps(_mm256_and_ps(mask, sign.b), _mm256_andnot_ps(mask, magnitude.b))};
}

#else

// Four lanes each, which are a register of nearly every processor. Compilers take a tenth of the time for these that they
// take to find them in loops over sixteen floats.
using Four = float __attribute__((vector_size(16)));
using FourBits = uint32_t __attribute__((vector_size(16)));
using FourInts = int32_t __attribute__((vector_size(16)));

struct Vector {
  Four a, b, c, d;
};

template <typename Function, typename... Vectors>
inline Vector by_fours(Function function, const Vectors&... x) {
  return {function(x.a...), function(x.b...), function(x.c...), function(x.d...)};
}
inline FourBits bits_of(Four x) { return reinterpret_cast<FourBits>(x); }
inline Four four_of(FourBits x) { return reinterpret_cast<Four>(x); }

inline float float_of_bits(uint32_t bits) {
  float number;
  memcpy(&number, &bits, sizeof number);
  return number;
}
inline uint32_t bits_of_float(float number) {
  uint32_t bits;
  memcpy(&bits, &number, sizeof bits);
  return bits;
}
inline uint16_t f16_of_float(float number) {
  const uint32_t bits = bits_of_float(number), magnitude = bits & 0x7FFFFFFFu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7F800000u) return sign | 0x7E00u;
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u;  // rounds to infinity
  if (magnitude < 0x38800000u) {                        // subnormal: a multiple of 2 ** -24
    const float scaled = float_of_bits(magnitude) + 0.5f;  // the last bit of its fraction is worth 2 ** -24
    return static_cast<uint16_t>(sign | (bits_of_float(scaled) - bits_of_float(0.5f)));
  }
  return static_cast<uint16_t>(sign | (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u)) >> 13);
}
inline Vector splat(float x) {
  const Four four = {x, x, x, x};
  return {four, four, four, four};
}
inline Vector load(const float* p) {
  Vector result;
  memcpy(&result, p, sizeof result);
  return result;
}
inline void store(float* p, Vector x) { memcpy(p, &x, sizeof x); }
template <typename Function>
inline Vector each(Function function) {
  float numbers[kLanes];
  for (int i = 0; i < kLanes; ++i) numbers[i] = function(i);
  return load(numbers);
}
// Calls `function` with the numbers, four at a time.
template <typename Function>
inline Vector of_halves(const uint16_t* p, Function function) {
  uint32_t numbers[kLanes];
  for (int i = 0; i < kLanes; ++i) numbers[i] = p[i];
  FourBits fours[4];
  memcpy(fours, numbers, sizeof fours);
  return {function(fours[0]), function(fours[1]), function(fours[2]), function(fours[3])};
}
inline Vector load_bf16(const uint16_t* p) {
  return of_halves(p, [](FourBits halves) { return four_of(halves << 16); });
}
inline Vector load_f16(const uint16_t* p) {
  return of_halves(p, [](FourBits halves) {
    // Exponent and fraction, shifted to their places in a float, give the number times 2 ** -112.
    const FourBits magnitude = halves & 0x7FFFu, number = bits_of(four_of(magnitude << 13) * 0x1p112f);
    const FourInts is_infinite = reinterpret_cast<FourInts>(magnitude) > 0x7BFF;  // or no number
    const FourBits exponent = reinterpret_cast<FourBits>(is_infinite) & 0x7F800000u;
    return four_of(number | exponent | (halves & 0x8000u) << 16);
  });
}
inline void store_f16(uint16_t* p, Vector x) {
  float numbers[kLanes];
  store(numbers, x);
  for (int i = 0; i < kLanes; ++i) p[i] = f16_of_float(numbers[i]);
}
inline Vector operator+(Vector x, Vector y) {
  return by_fours([](Four a, Four b) { return a + b; }, x, y);
}
inline Vector operator-(Vector x, Vector y) {
  return by_fours([](Four a, Four b) { return a - b; }, x, y);
}
inline Vector operator*(Vector x, Vector y) {
  return by_fours([](Four a, Four b) { return a * b; }, x, y);
}
inline Vector operator/(Vector x, Vector y) {
  return by_fours([](Four a, Four b) { return a / b; }, x, y);
}
inline Vector fma(Vector x, Vector y, Vector z) {
  return by_fours([](Four a, Four b, Four c) { return a * b + c; }, x, y, z);
}
inline Vector max(Vector x, Vector y) {
  return by_fours([](Four a, Four b) { return a > b ? a : b; }, x, y);
}
inline Vector min(Vector x, Vector y) {
  return by_fours([](Four a, Four b) { return a < b ? a : b; }, x, y);
}
inline Vector abs(Vector x) {
  return by_fours([](Four a) { return four_of(bits_of(a) & 0x7FFFFFFFu); }, x);
}
// Of magnitudes below 2 ** 22: their fractions do not fit beside this number, and the sum is rounded to nearest even.
inline Vector round(Vector x) { return x + splat(0x1.8p23f) - splat(0x1.8p23f); }
inline Vector exp2_whole(Vector x) {
  return by_fours([](Four a) { return reinterpret_cast<Four>((__builtin_convertvector(a, FourInts) + 127) << 23); }, x);
}
inline void store_int8(int8_t* p, Vector x) {
  float numbers[kLanes];
  store(numbers, round(x));
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(numbers[i]);
}
inline Vector copy_sign(Vector magnitude, Vector sign) {
  return by_fours(
      [](Four a, Four b) { return four_of((bits_of(a) & 0x7FFFFFFFu) | (bits_of(b) & 0x80000000u)); }, magnitude, sign);
}

#endif

// Adds lanes i and i + 8, then i and i + 4, i + 2, i + 1: the same order at every level.
#if defined(__SSE2__) && (defined(__AVX512F__) || defined(__AVX2__))
inline __m128 sum_to_four(Vector x) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
#else
  const __m256 eight = _mm256_add_ps(x.a, x.b);
#endif
  return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}
inline float sum(Vector x) {
  const __m128 four = sum_to_four(x), two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// Stores the sums of four vectors next to each other.
inline void store_sums(float* p, Vector x0, Vector x1, Vector x2, Vector x3) {
  __m128 a = sum_to_four(x0), b = sum_to_four(x1), c = sum_to_four(x2), d = sum_to_four(x3);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(p, _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d)));
}
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
// Sums of neighbouring lanes of four rows of four vectors, or of two rows, in the same order as `sum`. Each step halves
// the lanes of two vectors and joins them: 3 instructions for two, where single sums need 7 for each.
inline Vector join_eights(Vector x, Vector y) {
  return Vector{_mm512_shuffle_f32x4(x.v, y.v, 0x44)} + Vector{_mm512_shuffle_f32x4(x.v, y.v, 0xEE)};
}
inline Vector join_fours(Vector x, Vector y) {
  return Vector{_mm512_shuffle_f32x4(x.v, y.v, 0x88)} + Vector{_mm512_shuffle_f32x4(x.v, y.v, 0xDD)};
}
inline Vector join_twos(Vector x, Vector y) {
  const __m512d a = _mm512_castps_pd(x.v), b = _mm512_castps_pd(y.v);
  return Vector{_mm512_castpd_ps(_mm512_unpacklo_pd(a, b))} + Vector{_mm512_castpd_ps(_mm512_unpackhi_pd(a, b))};
}
inline Vector join_ones(Vector x, Vector y) {
  return Vector{_mm512_shuffle_ps(x.v, y.v, 0x88)} + Vector{_mm512_shuffle_ps(x.v, y.v, 0xDD)};
}
inline void store_four_rows(float* p, int64_t stride, const Vector (*x)[4]) {
  Vector columns[4];  // quarter i has two lanes of row i, for two columns
  for (int c = 0; c < 4; ++c) columns[c] = join_fours(join_eights(x[0][c], x[1][c]), join_eights(x[2][c], x[3][c]));
  const Vector sums = join_ones(join_twos(columns[0], columns[1]), join_twos(columns[2], columns[3]));
  _mm_storeu_ps(p, _mm512_castps512_ps128(sums.v));
  _mm_storeu_ps(p + stride, _mm512_extractf32x4_ps(sums.v, 1));
  _mm_storeu_ps(p + 2 * stride, _mm512_extractf32x4_ps(sums.v, 2));
  _mm_storeu_ps(p + 3 * stride, _mm512_extractf32x4_ps(sums.v, 3));
}
inline void store_two_rows(float* p, int64_t stride, const Vector (*x)[4]) {
  Vector columns[2];  // quarters: row 0 and row 1 of a column, then of the one two further
  for (int c = 0; c < 2; ++c) {
    columns[c] = join_fours(join_eights(x[0][c], x[1][c]), join_eights(x[0][c + 2], x[1][c + 2]));
  }
  const Vector twos = join_twos(columns[0], columns[1]), sums = join_ones(twos, twos);
  const __m128 low[2] = {_mm512_castps512_ps128(sums.v), _mm512_extractf32x4_ps(sums.v, 1)};
  const __m128 high[2] = {_mm512_extractf32x4_ps(sums.v, 2), _mm512_extractf32x4_ps(sums.v, 3)};
  for (int r = 0; r < 2; ++r) _mm_storeu_ps(p + r * stride, _mm_movelh_ps(low[r], high[r]));
}
#endif
inline float largest(Vector x) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
#else
  const __m256 eight = _mm256_max_ps(x.a, x.b);
#endif
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
inline float sum(Vector x) {
  const Four four = (x.a + x.c) + (x.b + x.d);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
inline void store_sums(float* p, Vector x0, Vector x1, Vector x2, Vector x3) {
  p[0] = sum(x0);
  p[1] = sum(x1);
  p[2] = sum(x2);
  p[3] = sum(x3);
}
inline float largest(Vector x) {
  float numbers[kLanes];
  store(numbers, x);
  float most = numbers[0];
  for (int i = 1; i < kLanes; ++i) most = numbers[i] > most ? numbers[i] : most;
  return most;
}
#endif

// Unrolls a loop over vectors in registers, which else would be in memory. Compilers do so by themselves in loops over
// sums, unless a vector is four registers: those have the second one.
#define GREENROOM_UNROLL _Pragma("GCC unroll 8")
#if defined(__SSE2__) && (defined(__AVX512F__) || defined(__AVX2__))
#define GREENROOM_UNROLL_FOURS
#else
#define GREENROOM_UNROLL_FOURS GREENROOM_UNROLL
#endif

// Stores the sums of a tile of R rows and C outputs.
template <int R, int C>
inline void store_tile(float* y, int64_t y_stride, const Vector (&totals)[R][C]) {
  if constexpr (C == 4) {
    int r = 0;
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    for (; r + 4 <= R; r += 4) store_four_rows(y + r * y_stride, y_stride, totals + r);
    for (; r + 2 <= R; r += 2) store_two_rows(y + r * y_stride, y_stride, totals + r);
#endif
    for (; r < R; ++r) store_sums(y + r * y_stride, totals[r][0], totals[r][1], totals[r][2], totals[r][3]);
  } else {
    GREENROOM_UNROLL for (int r = 0; r < R; ++r) {
      GREENROOM_UNROLL for (int c = 0; c < C; ++c) y[r * y_stride + c] = sum(totals[r][c]);
    }
  }
}

inline float first_lane(Vector x) {
  float lanes[kLanes];
  store(lanes, x);
  return lanes[0];
}


// Computes e ** x with an error of about 1 unit in the last place; 0 below -87.
inline Vector exp(Vector x) {
  const Vector bounded = min(max(x, splat(-87.3f)), splat(88.3f));
  const Vector power = round(bounded * splat(1.44269504f));
  Vector rest = fma(power, splat(-0.693359375f), bounded);
  rest = fma(power, splat(2.12194440e-4f), rest);
  Vector series = splat(1.9875691500e-4f);
  series = fma(series, rest, splat(1.3981999507e-3f));
  series = fma(series, rest, splat(8.3334519073e-3f));
  series = fma(series, rest, splat(4.1665795894e-2f));
  series = fma(series, rest, splat(1.6666665459e-1f));
  series = fma(series, rest, splat(5.0000001201e-1f));
  series = fma(series, rest * rest, rest) + splat(1.0f);
  return series * exp2_whole(power);
}

inline Vector sigmoid(Vector x) { return splat(1.0f) / (splat(1.0f) + exp(splat(0.0f) - x)); }

inline Vector tanh(Vector x) {
  const Vector twice = exp(splat(2.0f) * min(max(x, splat(-10.0f)), splat(10.0f)));
  return (twice - splat(1.0f)) / (twice + splat(1.0f));
}

// The error function (Abramowitz and Stegun 7.1.26), to 1.5e-7.
inline Vector erf(Vector x) {
  const Vector size = abs(x), t = splat(1.0f) / fma(splat(0.3275911f), size, splat(1.0f));
  Vector series = splat(1.061405429f);
  series = fma(series, t, splat(-1.453152027f));
  series = fma(series, t, splat(1.421413741f));
  series = fma(series, t, splat(-0.284496736f));
  series = fma(series, t, splat(0.254829592f));
  return copy_sign(splat(1.0f) - series * t * exp(splat(0.0f) - size * size), x);
}
