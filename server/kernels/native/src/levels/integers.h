// Vectors of sixteen 32-bit integers. `kernels.inc` includes this inside the level's namespace, after `vector.h`.

#if defined(GREENROOM_AVX512)

struct Integers {
  __m512i v;
};
inline Integers splat_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Integers load_ints(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void store_ints(void* p, Integers a) { _mm512_storeu_si512(p, a.v); }
inline Integers load_u16(const uint16_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Integers load_u8(const void* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
inline Integers load_i8(const void* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
// Sixteen halves of eight bytes, low halves first, in the lowest bits of each lane; the upper bits are undefined.
inline Integers load_halves(const void* p) {
  const __m512i bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  return {_mm512_or_si512(bytes, _mm512_slli_epi64(bytes, 28))};
}
template <int N>
inline Integers shift_left(Integers a) {
  return {_mm512_slli_epi32(a.v, N)};
}
template <int N>
inline Integers shift_right(Integers a) {
  return {_mm512_srli_epi32(a.v, N)};
}
template <int N>
inline Integers shift_right_signed(Integers a) {
  return {_mm512_srai_epi32(a.v, N)};
}
inline Integers operator&(Integers a, Integers b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Integers operator|(Integers a, Integers b) { return {_mm512_or_si512(a.v, b.v)}; }
inline Integers operator-(Integers a, Integers b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline Vector to_float(Integers a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Replaces each byte, 0 to 15, by an entry of a table.
inline Integers look_up(const uint8_t* table, Integers a) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), a.v)};
}
inline Vector as_float(Integers a) { return {_mm512_castsi512_ps(a.v)}; }
// Separates the low and the high halves of sixteen 64-bit numbers.
inline void unzip(const uint64_t* p, Integers& low, Integers& high) {
  const __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 8);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  low = {_mm512_permutex2var_epi32(a, even, b)};
  high = {_mm512_permutex2var_epi32(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b)};
}
// Negates byte j of each lane if bit 4 * I + j of the lane of `signs` is set.
template <int I>
inline Integers negate_bytes(Integers a, Integers signs) {
  const __m512i spread = _mm512_add_epi8(_mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0C0C0C0C)),
                                         _mm512_set1_epi8(I / 2));
  const __m512i bits = _mm512_set1_epi32(I % 2 ? static_cast<int32_t>(0x80402010) : 0x08040201);
  const __mmask64 mask = _mm512_test_epi8_mask(_mm512_shuffle_epi8(signs.v, spread), bits);
  return {_mm512_mask_sub_epi8(a.v, mask, _mm512_setzero_si512(), a.v)};
}

// Writes four words of each of sixteen rows: the first word of all rows, then the second one.
inline void transpose_words(const uint8_t* const* rows, int64_t offset, uint8_t* target) {
  __m512i parts[4];  // rows k, 4 + k, 8 + k and 12 + k
  for (int k = 0; k < 4; ++k) {
    const auto row = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[4 * i + k] + offset)); };
    const __m512i two = _mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1);
    parts[k] = _mm512_inserti32x4(_mm512_inserti32x4(two, row(2), 2), row(3), 3);
  }
  const __m512i low_a = _mm512_unpacklo_epi32(parts[0], parts[1]), low_b = _mm512_unpacklo_epi32(parts[2], parts[3]);
  const __m512i high_a = _mm512_unpackhi_epi32(parts[0], parts[1]), high_b = _mm512_unpackhi_epi32(parts[2], parts[3]);
  _mm512_storeu_si512(target, _mm512_unpacklo_epi64(low_a, low_b));
  _mm512_storeu_si512(target + 64, _mm512_unpackhi_epi64(low_a, low_b));
  _mm512_storeu_si512(target + 128, _mm512_unpacklo_epi64(high_a, high_b));
  _mm512_storeu_si512(target + 192, _mm512_unpackhi_epi64(high_a, high_b));
}
// Writes the lowest byte of all lanes, then the next one.
inline void split_bytes(Integers a, uint8_t* target) {
  const __m128i fours = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i sorted = _mm512_shuffle_epi8(a.v, _mm512_broadcast_i32x4(fours));
  _mm512_storeu_si512(target, _mm512_permutexvar_epi32(order, sorted));
}

// Looks up sixteen numbers by the lowest four bits of each lane.
struct Table {
  Vector numbers;
  explicit Table(const float* p) : numbers(load(p)) {}
  Vector at(Integers places) const { return {_mm512_permutexvar_ps(places.v, numbers.v)}; }
};

#elif defined(__AVX2__)

struct Integers {
  __m256i a, b;
};
inline Integers splat_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Integers load_ints(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void store_ints(void* p, Integers a) {
  __m256i* q = static_cast<__m256i*>(p);
  _mm256_storeu_si256(q, a.a);
  _mm256_storeu_si256(q + 1, a.b);
}
inline Integers load_u16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))};
}
inline Integers load_u8(const void* p) {
  const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes))};
}
inline Integers load_i8(const void* p) {
  const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes))};
}
// Sixteen halves of eight bytes, low halves first, in the lowest bits of each lane; the upper bits are undefined.
inline __m256i spread_halves(__m128i bytes) {
  const __m256i wide = _mm256_cvtepu8_epi64(bytes);
  return _mm256_or_si256(wide, _mm256_slli_epi64(wide, 28));
}
inline Integers load_halves(const void* p) {
  const __m128i bytes = _mm_loadl_epi64(static_cast<const __m128i*>(p));
  return {spread_halves(bytes), spread_halves(_mm_srli_epi64(bytes, 32))};
}
template <int N>
inline Integers shift_left(Integers a) {
  return {_mm256_slli_epi32(a.a, N), _mm256_slli_epi32(a.b, N)};
}
template <int N>
inline Integers shift_right(Integers a) {
  return {_mm256_srli_epi32(a.a, N), _mm256_srli_epi32(a.b, N)};
}
template <int N>
inline Integers shift_right_signed(Integers a) {
  return {_mm256_srai_epi32(a.a, N), _mm256_srai_epi32(a.b, N)};
}
inline Integers operator&(Integers a, Integers b) { return {_mm256_and_si256(a.a, b.a), _mm256_and_si256(a.b, b.b)}; }
inline Integers operator|(Integers a, Integers b) { return {_mm256_or_si256(a.a, b.a), _mm256_or_si256(a.b, b.b)}; }
inline Integers operator-(Integers a, Integers b) { return {_mm256_sub_epi32(a.a, b.a), _mm256_sub_epi32(a.b, b.b)}; }
inline Vector to_float(Integers a) { return {_mm256_cvtepi32_ps(a.a), _mm256_cvtepi32_ps(a.b)}; }
inline Integers look_up(const uint8_t* table, Integers a) {
  const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(bytes, a.a), _mm256_shuffle_epi8(bytes, a.b)};
}
inline Vector as_float(Integers a) { return {_mm256_castsi256_ps(a.a), _mm256_castsi256_ps(a.b)}; }
// Separates the low and the high halves of sixteen 64-bit numbers.
inline void unzip(const uint64_t* p, __m256i& low, __m256i& high) {
  const __m256 a = _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  const __m256 b = _mm256_loadu_ps(reinterpret_cast<const float*>(p + 4));
  low = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), 0xD8);
  high = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD)), 0xD8);
}
inline void unzip(const uint64_t* p, Integers& low, Integers& high) {
  unzip(p, low.a, high.a);
  unzip(p + 8, low.b, high.b);
}
// Negates byte j of each lane if bit 4 * I + j of the lane of `signs` is set.
template <int I>
inline __m256i negate_bytes(__m256i a, __m256i signs) {
  const __m256i spread = _mm256_add_epi8(
      _mm256_broadcastsi128_si256(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0C0C0C0C)), _mm256_set1_epi8(I / 2));
  const __m256i bits = _mm256_set1_epi32(I % 2 ? static_cast<int32_t>(0x80402010) : 0x08040201);
  const __m256i mask = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(signs, spread), bits), bits);
  return _mm256_sub_epi8(_mm256_xor_si256(a, mask), mask);
}
template <int I>
inline Integers negate_bytes(Integers a, Integers signs) {
  return {negate_bytes<I>(a.a, signs.a), negate_bytes<I>(a.b, signs.b)};
}

// Writes four words of each of sixteen rows: the first word of all rows, then the second one.
inline void transpose_words(const uint8_t* const* rows, int64_t offset, uint8_t* target) {
  for (int half = 0; half < 2; ++half, rows += 8, target += 32) {
    __m256i parts[4];  // rows k and 4 + k
    for (int k = 0; k < 4; ++k) {
      parts[k] = _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(rows[4 + k] + offset),
                                     reinterpret_cast<const __m128i*>(rows[k] + offset));
    }
    const auto store = [&](int word, __m256i a) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + 64 * word), a);
    };
    const __m256i low_a = _mm256_unpacklo_epi32(parts[0], parts[1]), low_b = _mm256_unpacklo_epi32(parts[2], parts[3]);
    const __m256i high_a = _mm256_unpackhi_epi32(parts[0], parts[1]), high_b = _mm256_unpackhi_epi32(parts[2], parts[3]);
    store(0, _mm256_unpacklo_epi64(low_a, low_b));
    store(1, _mm256_unpackhi_epi64(low_a, low_b));
    store(2, _mm256_unpacklo_epi64(high_a, high_b));
    store(3, _mm256_unpackhi_epi64(high_a, high_b));
  }
}
// Writes the lowest byte of all lanes, then the next one.
inline void split_bytes(Integers a, uint8_t* target) {
  const __m256i fours = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m256i low = _mm256_shuffle_epi8(a.a, fours), high = _mm256_shuffle_epi8(a.b, fours);
  // Lanes 0 to 3 and 8 to 11 are in the lower half of each, 4 to 7 and 12 to 15 in the upper one.
  const __m256i first = _mm256_unpacklo_epi32(low, high), second = _mm256_unpackhi_epi32(low, high);
  const auto store = [&](int byte, __m256i pairs) {
    const __m128i b = _mm256_castsi256_si128(pairs), c = _mm256_extracti128_si256(pairs, 1);
    const auto put = [&](int i, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(target + 16 * i), x); };
    const __m128i l = _mm_unpacklo_epi32(b, c), h = _mm_unpackhi_epi32(b, c);
    put(byte, l);
    put(byte + 1, h);
  };
  store(0, first);
  store(2, second);
}

// Looks up sixteen numbers by the lowest four bits of each lane.
struct Table {
  Vector numbers;
  explicit Table(const float* p) : numbers(load(p)) {}
  __m256 at(__m256i places) const {
    const __m256 low = _mm256_permutevar8x32_ps(numbers.a, places), high = _mm256_permutevar8x32_ps(numbers.b, places);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(places, 28)));
  }
  Vector at(Integers places) const { return {at(places.a), at(places.b)}; }
};

#else

struct Integers {
  FourInts a, b, c, d;
};
template <typename Function, typename... Vectors>
inline Integers ints_by_fours(Function function, const Vectors&... x) {
  return {function(x.a...), function(x.b...), function(x.c...), function(x.d...)};
}
inline FourBits bits_of(FourInts x) { return reinterpret_cast<FourBits>(x); }
inline FourInts ints_of(FourBits x) { return reinterpret_cast<FourInts>(x); }
inline Integers splat_int(int32_t x) {
  const FourInts four = {x, x, x, x};
  return {four, four, four, four};
}
inline Integers load_ints(const void* p) {
  Integers result;
  memcpy(&result, p, sizeof result);
  return result;
}
inline void store_ints(void* p, Integers a) { memcpy(p, &a, sizeof a); }
template <typename Function>
inline Integers each_int(Function function) {
  int32_t numbers[kLanes];
  for (int i = 0; i < kLanes; ++i) numbers[i] = function(i);
  return load_ints(numbers);
}
inline Integers load_u16(const uint16_t* p) {
  return each_int([=](int i) { return static_cast<int32_t>(p[i]); });
}
inline Integers load_u8(const void* p) {
  return each_int([=](int i) { return static_cast<int32_t>(static_cast<const uint8_t*>(p)[i]); });
}
inline Integers load_i8(const void* p) {
  return each_int([=](int i) { return static_cast<int32_t>(static_cast<const int8_t*>(p)[i]); });
}
// Sixteen halves of eight bytes, low halves first, in the lowest bits of each lane.
inline Integers load_halves(const void* p) {
  return each_int([=](int i) { return static_cast<const uint8_t*>(p)[i / 2] >> (i % 2 * 4) & 15; });
}
template <int N>
inline Integers shift_left(Integers x) {
  return ints_by_fours([](FourInts a) { return ints_of(bits_of(a) << N); }, x);
}
template <int N>
inline Integers shift_right(Integers x) {
  return ints_by_fours([](FourInts a) { return ints_of(bits_of(a) >> N); }, x);
}
template <int N>
inline Integers shift_right_signed(Integers x) {
  return ints_by_fours([](FourInts a) { return a >> N; }, x);
}
inline Integers operator&(Integers x, Integers y) {
  return ints_by_fours([](FourInts a, FourInts b) { return a & b; }, x, y);
}
inline Integers operator|(Integers x, Integers y) {
  return ints_by_fours([](FourInts a, FourInts b) { return a | b; }, x, y);
}
inline Integers operator-(Integers x, Integers y) {
  // Wraps around, as the instructions of the other levels do: four bytes of a lane may be numbers of their own.
  return ints_by_fours([](FourInts a, FourInts b) { return ints_of(bits_of(a) - bits_of(b)); }, x, y);
}
inline Vector to_float(Integers x) {
  return by_fours([](FourInts a) { return __builtin_convertvector(a, Four); }, x);
}
inline Integers look_up(const uint8_t* table, Integers a) {
  uint8_t bytes[4 * kLanes];
  store_ints(bytes, a);
  for (uint8_t& byte : bytes) byte = table[byte];
  return load_ints(bytes);
}
// Separates the low and the high halves of sixteen 64-bit numbers.
inline void unzip(const uint64_t* p, Integers& low, Integers& high) {
  low = each_int([&](int i) { return static_cast<int32_t>(p[i]); });
  high = each_int([&](int i) { return static_cast<int32_t>(p[i] >> 32); });
}
// Negates byte j of each lane if bit 4 * I + j of the lane of `signs` is set.
template <int I>
inline Integers negate_bytes(Integers a, Integers signs) {
  uint8_t bytes[4 * kLanes];
  int32_t bits[kLanes];
  store_ints(bytes, a);
  store_ints(bits, signs);
  for (int i = 0; i < 4 * kLanes; ++i) {
    if (bits[i / 4] >> (4 * I + i % 4) & 1) bytes[i] = static_cast<uint8_t>(-bytes[i]);
  }
  return load_ints(bytes);
}
inline Vector as_float(Integers x) {
  return by_fours([](FourInts a) { return reinterpret_cast<Four>(a); }, x);
}

// Writes four words of each of sixteen rows: the first word of all rows, then the second one.
inline void transpose_words(const uint8_t* const* rows, int64_t offset, uint8_t* target) {
  for (int word = 0; word < 4; ++word) {
    for (int row = 0; row < kLanes; ++row, target += 4) memcpy(target, rows[row] + offset + 4 * word, 4);
  }
}
// Writes the lowest byte of all lanes, then the next one.
inline void split_bytes(Integers a, uint8_t* target) {
  uint8_t bytes[4 * kLanes];
  store_ints(bytes, a);
  for (int byte = 0; byte < 4; ++byte) {
    for (int lane = 0; lane < kLanes; ++lane) *target++ = bytes[4 * lane + byte];
  }
}

// Looks up sixteen numbers by the lowest four bits of each lane.
struct Table {
  const float* numbers;
  explicit Table(const float* p) : numbers(p) {}
  Vector at(Integers places) const {
    int32_t lanes[kLanes];
    store_ints(lanes, places);
    return each([&](int i) { return numbers[lanes[i] & 15]; });
  }
};

#endif

// Inverts the bits that are set in a mask.
inline Integers flip(Integers a, Integers mask) { return (a | mask) - (a & mask); }

inline int32_t quad_at(const int8_t* codes) {
  int32_t quad;
  memcpy(&quad, codes, sizeof quad);
  return quad;
}

// Adds sixteen dot products to sixteen sums: four bytes of weights each, `w`, with the four bytes `quad` of a row.
// `add_unsigned` takes weights of 0 to 127, `add_signed` of -128 to 127, and rows of -127 to 127; both are exact.
#if defined(GREENROOM_BF16_VNNI)

inline Integers add_unsigned(Integers total, Integers w, int32_t quad) {
  return {_mm512_dpbusd_epi32(total.v, w.v, _mm512_set1_epi32(quad))};
}

#elif defined(__AVX2__)

inline __m256i add_unsigned(__m256i total, __m256i w, __m256i quads) {
  return _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(w, quads), _mm256_set1_epi16(1)));
}
inline __m256i add_signed(__m256i total, __m256i w, __m256i quads) {
  return add_unsigned(total, _mm256_abs_epi8(w), _mm256_sign_epi8(quads, w));
}
#ifdef GREENROOM_AVX512
template <typename Function>
inline Integers by_halves(Integers total, Integers w, Function function) {
  const __m256i low = function(_mm512_castsi512_si256(total.v), _mm512_castsi512_si256(w.v));
  const __m256i high = function(_mm512_extracti64x4_epi64(total.v, 1), _mm512_extracti64x4_epi64(w.v, 1));
  return {_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
}
#else
template <typename Function>
inline Integers by_halves(Integers total, Integers w, Function function) {
  return {function(total.a, w.a), function(total.b, w.b)};
}
#endif
inline Integers add_unsigned(Integers total, Integers w, int32_t quad) {
  const __m256i quads = _mm256_set1_epi32(quad);
  return by_halves(total, w, [&](__m256i t, __m256i part) { return add_unsigned(t, part, quads); });
}
inline Integers add_signed(Integers total, Integers w, int32_t quad) {
  const __m256i quads = _mm256_set1_epi32(quad);
  return by_halves(total, w, [&](__m256i t, __m256i part) { return add_signed(t, part, quads); });
}

#else

inline Integers add_signed(Integers total, Integers w, int32_t quad) {
  int8_t weights[4 * kLanes], x[4];
  int32_t sums[kLanes];
  store_ints(weights, w);
  store_ints(sums, total);
  memcpy(x, &quad, sizeof x);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < 4; ++j) sums[i] += weights[4 * i + j] * x[j];
  }
  return load_ints(sums);
}
inline Integers add_unsigned(Integers total, Integers w, int32_t quad) { return add_signed(total, w, quad); }

#endif

// Adds the dot products of kCount quads of weights from 0 to kMost with those of a row.
template <int kMost, int kCount>
inline Integers add_quads(Integers total, const Integers* w, const int8_t* x) {
#if defined(__AVX2__) && !defined(GREENROOM_BF16_VNNI)
  constexpr int kFit = 32767 / (2 * 127 * kMost);  // sums of two products that fit int16 together
  constexpr int kTogether = kFit < 4 ? kFit : 4;   // a longer chain of additions is slower
  for (int i = 0; i < kCount; i += kTogether) {
    const auto by = [&](int place, __m256i part) {
      return _mm256_maddubs_epi16(part, _mm256_set1_epi32(quad_at(x + 4 * place)));
    };
    Integers sums = by_halves(splat_int(0), w[i], [&](__m256i, __m256i part) { return by(i, part); });
    for (int j = i + 1; j < i + kTogether && j < kCount; ++j) {
      sums = by_halves(sums, w[j], [&](__m256i sum, __m256i part) { return _mm256_add_epi16(sum, by(j, part)); });
    }
    total = by_halves(total, sums, [](__m256i t, __m256i pairs) {
      return _mm256_add_epi32(t, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    });
  }
#else
  for (int i = 0; i < kCount; ++i) total = add_unsigned(total, w[i], quad_at(x + 4 * i));
#endif
  return total;
}
