// The passes of float rows with registers of sixteen: what compilers do not make of the plain loops in passes.h, loads
// and stores of part of a register and permutations. For AVX-512, included by passes.h there alone.

namespace diffcrop::DIFFCROP_LEVEL {

DIFFCROP_INLINE __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>(n >= kLanes ? 0xffff : (1 << n) - 1);
}

// --- sixteen numbers of any type, or those of them that are in a mask ------------------------------------------------

DIFFCROP_INLINE __m512 load_lanes(const float* from, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, from);
}
DIFFCROP_INLINE __m512 load_lanes(const Half* from, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
}
DIFFCROP_INLINE __m512 load_lanes(const BFloat16* from, __mmask16 mask) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
DIFFCROP_INLINE __m512 load_lanes(const uint8_t* from, __mmask16 mask) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, from)));
}

// --- down the columns ------------------------------------------------------------------------------------------------

// See combine.
template <bool add, int orders, int count, class T>
DIFFCROP_INLINE void combine_sixteen(float* const (&out)[orders], const T* const (&rows)[count],
                                     const __m512 (&weight)[orders][count], int64_t x, __mmask16 mask) {
  __m512 sum[orders];
  for (int r = 0; r < count; ++r) {
    const __m512 pixel = load_lanes(rows[r] + x, mask);
    for (int n = 0; n < orders; ++n)
      sum[n] = r == 0 ? _mm512_mul_ps(weight[n][0], pixel) : _mm512_fmadd_ps(weight[n][r], pixel, sum[n]);
  }
  for (int n = 0; n < orders; ++n) {
    if (add) sum[n] = _mm512_add_ps(sum[n], _mm512_maskz_loadu_ps(mask, out[n] + x));
    _mm512_mask_storeu_ps(out[n] + x, mask, sum[n]);
  }
}

template <bool add, int orders, int count, class T>
DIFFCROP_INLINE void combine_lanes(float* const (&out)[kOrders], const T* const (&rows)[count],
                                   const float (&weight)[orders][count], int64_t length) {
  // Copies, because a store could change the originals for all that the compiler knows.
  __m512 wide[orders][count];
  const T* from[count];
  float* to[orders];
  for (int r = 0; r < count; ++r) from[r] = rows[r];
  for (int n = 0; n < orders; ++n) {
    to[n] = out[n];
    for (int r = 0; r < count; ++r) wide[n][r] = _mm512_set1_ps(weight[n][r]);
  }
  int64_t x = 0;
  for (; x + kLanes <= length; x += kLanes) combine_sixteen<add, orders, count>(to, from, wide, x, 0xffff);
  if (x < length) combine_sixteen<add, orders, count>(to, from, wide, x, first_lanes(length - x));
}

// --- along the row ---------------------------------------------------------------------------------------------------

// Neighbouring numbers of a row.
template <int registers>
struct Held {
  __m512 at[registers];
};

template <int registers>
DIFFCROP_INLINE Held<registers> hold(const float* from) {
  Held<registers> held;
  for (int i = 0; i < registers; ++i) held.at[i] = _mm512_loadu_ps(from + i * kLanes);
  return held;
}

// Lane l gets number place[l].
template <int registers>
DIFFCROP_INLINE __m512 look_up(const Held<registers>& held, __m512i place) {
  if constexpr (registers == 1) return _mm512_permutexvar_ps(place, held.at[0]);
  if constexpr (registers == 2) return _mm512_permutex2var_ps(held.at[0], place, held.at[1]);
  if constexpr (registers > 2) {
    const __mmask16 upper = _mm512_cmpgt_epi32_mask(place, _mm512_set1_epi32(2 * kLanes - 1));
    const __m512 lower = _mm512_permutex2var_ps(held.at[0], place, held.at[1]);
    if constexpr (registers == 3) return _mm512_mask_permutexvar_ps(lower, upper, place, held.at[2]);
    return _mm512_mask_blend_ps(upper, lower, _mm512_permutex2var_ps(held.at[2], place, held.at[registers - 1]));
  }
}

template <Lookup lookup>
constexpr int kHeld = lookup <= Lookup::four ? static_cast<int>(lookup) + 1 : 4;

// Sixteen outputs of some rows, with some tables of weights. A value and not an argument to be changed: what others
// could see the compiler would write to memory at every tap.
template <int orders, int count>
struct Sums {
  __m512 at[orders][count];
};

// Adds tap t of a block. The first is a product and no sum, which would lose the sign of zero.
template <bool first, int orders, int count>
DIFFCROP_INLINE void add_tap(Sums<orders, count>& sum, const __m512 (&pixel)[count],
                             const float* const (&weight)[orders], const uint16_t* mask, int64_t t) {
  const __mmask16 lanes = mask[t];
  for (int n = 0; n < orders; ++n) {
    const __m512 w = _mm512_loadu_ps(weight[n] + t * kLanes);
    for (int r = 0; r < count; ++r)
      sum.at[n][r] =
          first ? _mm512_maskz_mul_ps(lanes, w, pixel[r]) : _mm512_mask3_fmadd_ps(w, pixel[r], sum.at[n][r], lanes);
  }
}

template <class N, class T>
DIFFCROP_INLINE N load_bits(const T* from) {
  N bits;
  std::memcpy(&bits, from, sizeof(N));
  return bits;
}

// The pixels at p + place[0 .. 15], and those behind them.
DIFFCROP_INLINE void load_pairs(const float* p, const int32_t* place, __m512& first, __m512& second) {
  const auto two = [p](const int32_t* at) __attribute__((always_inline)) {
    const __m128d low = _mm_load_sd(reinterpret_cast<const double*>(p + at[0]));
    return _mm_loadh_pd(low, reinterpret_cast<const double*>(p + at[1]));
  };
  const auto eight = [two](const int32_t* at) __attribute__((always_inline)) {
    const __m256d low = _mm256_insertf128_pd(_mm256_castpd128_pd256(two(at)), two(at + 2), 1);
    const __m256d high = _mm256_insertf128_pd(_mm256_castpd128_pd256(two(at + 4)), two(at + 6), 1);
    return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1));
  };
  const __m512 a = eight(place), b = eight(place + 8);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  first = _mm512_permutex2var_ps(a, even, b);
  second = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}

// The same for narrower numbers: each pair is one number of twice their width.
DIFFCROP_INLINE __m512i load_words(const uint16_t* p, const int32_t* place) {
  const auto four = [p](const int32_t* at) __attribute__((always_inline)) {
    __m128i words = _mm_cvtsi32_si128(load_bits<int>(p + at[0]));
    words = _mm_insert_epi32(words, load_bits<int>(p + at[1]), 1);
    words = _mm_insert_epi32(words, load_bits<int>(p + at[2]), 2);
    return _mm_insert_epi32(words, load_bits<int>(p + at[3]), 3);
  };
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(four(place)), four(place + 4), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(four(place + 8)), four(place + 12), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
DIFFCROP_INLINE void load_pairs(const BFloat16* p, const int32_t* place, __m512& first, __m512& second) {
  const __m512i words = load_words(&p->bits, place);
  first = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  second = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
DIFFCROP_INLINE void load_pairs(const Half* p, const int32_t* place, __m512& first, __m512& second) {
  const __m512i words = load_words(&p->bits, place);
  first = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
  second = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16)));
}
DIFFCROP_INLINE void load_pairs(const uint8_t* p, const int32_t* place, __m512& first, __m512& second) {
  const auto eight = [p](const int32_t* at) __attribute__((always_inline)) {
    __m128i words = _mm_cvtsi32_si128(load_bits<uint16_t>(p + at[0]));
    words = _mm_insert_epi16(words, load_bits<short>(p + at[1]), 1);
    words = _mm_insert_epi16(words, load_bits<short>(p + at[2]), 2);
    words = _mm_insert_epi16(words, load_bits<short>(p + at[3]), 3);
    words = _mm_insert_epi16(words, load_bits<short>(p + at[4]), 4);
    words = _mm_insert_epi16(words, load_bits<short>(p + at[5]), 5);
    words = _mm_insert_epi16(words, load_bits<short>(p + at[6]), 6);
    return _mm_insert_epi16(words, load_bits<short>(p + at[7]), 7);
  };
  const __m512i words =
      _mm512_cvtepu16_epi32(_mm256_inserti128_si256(_mm256_castsi128_si256(eight(place)), eight(place + 8), 1));
  first = _mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(255)));
  second = _mm512_cvtepi32_ps(_mm512_srli_epi32(words, 8));
}

// The sixteen outputs of a block of rows, with tables order, order + 1, ...
template <int orders, int count, Lookup lookup>
DIFFCROP_INLINE Sums<orders, count> weigh(const float* const (&rows)[count], const Operator<float>& op, int order,
                                          int64_t b) {
  const Block& block = op.lanes.blocks[b];
  const int32_t* const places = op.lanes.place.data() + b * kLanes;
  const __m512i place = _mm512_loadu_si512(places);
  const uint16_t* const mask = op.lanes.mask.data() + block.table;
  const float* weight[orders];
  for (int n = 0; n < orders; ++n) weight[n] = op.lanes.weight[order + n].data() + block.table * kLanes;
  const int64_t from = block.from, m = op.m, taps = block.taps;
  Sums<orders, count> sum, odd;
  for (int n = 0; n < orders; ++n)
    for (int r = 0; r < count; ++r) sum.at[n][r] = odd.at[n][r] = _mm512_setzero_ps();
  __m512 pixel[count], next[count];
  if constexpr (lookup == Lookup::pairs) {
    for (int64_t t = 0; t < taps; t += 2) {
      for (int r = 0; r < count; ++r) load_pairs(rows[r] + from + t, places, pixel[r], next[r]);
      t == 0 ? add_tap<true>(sum, pixel, weight, mask, t) : add_tap<false>(sum, pixel, weight, mask, t);
      add_tap<false>(sum, next, weight, mask, t + 1);
    }
  } else if constexpr (lookup == Lookup::dense) {
    // Two sums in turns, as each has to wait for its last addition.
    for (int64_t t = 0; t < taps; t += 2) {
      const int64_t second = std::min(t + 1, taps - 1);
      for (int r = 0; r < count; ++r) {
        const float *const one = rows[r] + from + t * m, *const other = rows[r] + from + second * m;
        pixel[r] = m == 1 ? _mm512_set1_ps(*one) : look_up(hold<1>(one), place);
        next[r] = m == 1 ? _mm512_set1_ps(*other) : look_up(hold<1>(other), place);
      }
      add_tap<false>(sum, pixel, weight, mask, t);
      if (second > t) add_tap<false>(odd, next, weight, mask, second);
    }
    for (int n = 0; n < orders; ++n)
      for (int r = 0; r < count; ++r) sum.at[n][r] = _mm512_add_ps(sum.at[n][r], odd.at[n][r]);
  } else if (taps > 0) {
    // Held where they are held, they stay there for all taps; else they are loaded anew and the places stay.
    constexpr bool moving = lookup == Lookup::moving;
    Held<kHeld<lookup>> held[count];
    for (int r = 0; r < count; ++r) {
      held[r] = hold<kHeld<lookup>>(rows[r] + from);
      pixel[r] = look_up(held[r], place);
    }
    add_tap<true>(sum, pixel, weight, mask, 0);
    for (int64_t t = 1; t < taps; ++t) {
      const __m512i tap = moving ? place : _mm512_add_epi32(place, _mm512_set1_epi32(static_cast<int>(t * m)));
      for (int r = 0; r < count; ++r) {
        if (moving) held[r] = hold<kHeld<lookup>>(rows[r] + from + t * m);
        pixel[r] = look_up(held[r], tap);
      }
      add_tap<false>(sum, pixel, weight, mask, t);
    }
  }
  return sum;
}

DIFFCROP_INLINE float weigh_run(const float* weight, const float* from, int64_t count) {
  __m512 sums = _mm512_setzero_ps();
  for (int64_t t = 0; t < count; t += kLanes) {
    const __mmask16 mask = first_lanes(count - t);
    sums = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, weight + t), _mm512_maskz_loadu_ps(mask, from + t), sums);
  }
  return _mm512_reduce_add_ps(sums);
}

// The same for a block whose runs lie far apart or are long: one output after the other.
template <int orders, int count>
inline Sums<orders, count> weigh_single(const float* const (&rows)[count], const Operator<float>& op, int order,
                                        int64_t b) {
  const Band<float>& band = *op.band;
  alignas(64) float result[orders][count][kLanes] = {};
  const int64_t begin = b * kLanes, end = std::min<int64_t>(begin + kLanes, band.outputs * op.m);
  for (int64_t x = begin; x < end; ++x) {
    const int64_t j = x / op.m, taps = band.count[j], offset = band.offset[j];
    const int64_t from = (band.start[j] - band.first) * op.m + x % op.m;
    for (int r = 0; r < count; ++r)
      for (int n = 0; n < orders; ++n) {
        const float* const weight = op.weights[order + n] + offset;
        const float* const pixel = rows[r] + from;
        float total = 0;
        if (op.m == 1 && taps > 4) {
          total = weigh_run(weight, pixel, taps);
        } else if (taps > 0) {
          total = weight[0] * pixel[0];
          for (int64_t t = 1; t < taps; ++t) total += weight[t] * pixel[t * op.m];
        }
        result[n][r][x - begin] = total;
      }
  }
  Sums<orders, count> sum;
  for (int n = 0; n < orders; ++n)
    for (int r = 0; r < count; ++r) sum.at[n][r] = _mm512_load_ps(result[n][r]);
  return sum;
}

template <int orders, int count>
DIFFCROP_INLINE Sums<orders, count> weigh_block(const float* const (&rows)[count], const Operator<float>& op, int order,
                                                int64_t b) {
  switch (op.lanes.blocks[b].lookup) {
    case Lookup::one:
      return weigh<orders, count, Lookup::one>(rows, op, order, b);
    case Lookup::two:
      return weigh<orders, count, Lookup::two>(rows, op, order, b);
    case Lookup::three:
      return weigh<orders, count, Lookup::three>(rows, op, order, b);
    case Lookup::four:
      return weigh<orders, count, Lookup::four>(rows, op, order, b);
    case Lookup::moving:
      return weigh<orders, count, Lookup::moving>(rows, op, order, b);
    case Lookup::pairs:
      return weigh<orders, count, Lookup::pairs>(rows, op, order, b);
    case Lookup::dense:
      return weigh<orders, count, Lookup::dense>(rows, op, order, b);
    default:
      return weigh_single<orders, count>(rows, op, order, b);
  }
}

template <bool add, int count>
inline void gather_lanes(float* const* outs, const float* const* rows, const Operator<float>& op, int order) {
  const auto blocks = static_cast<int64_t>(op.lanes.blocks.size());
  const float* from[count];
  for (int r = 0; r < count; ++r) from[r] = rows[r];
  for (int64_t b = 0; b < blocks; ++b) {
    const Sums<1, count> sum = weigh_block<1, count>(from, op, order, b);
    const __mmask16 mask = first_lanes(op.band->outputs * op.m - b * kLanes);
    for (int r = 0; r < count; ++r) {
      float* const to = outs[r] + b * kLanes;
      const __m512 before = add ? _mm512_maskz_loadu_ps(mask, to) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(to, mask, add ? _mm512_add_ps(before, sum.at[0][r]) : sum.at[0][r]);
    }
  }
}

// Rows g and totals[n] may be read and written up to a multiple of sixteen.
template <int orders, int count>
inline void add_products_lanes(float* const (&totals)[2], const float* const* g, const float* const* rows,
                               const Operator<float>& op) {
  const auto blocks = static_cast<int64_t>(op.lanes.blocks.size());
  const float* from[count];
  for (int r = 0; r < count; ++r) from[r] = rows[r];
  for (int64_t b = 0; b < blocks; ++b) {
    const Sums<orders, count> sum = weigh_block<orders, count>(from, op, kByCenter, b);
    for (int n = 0; n < orders; ++n) {
      __m512 total = _mm512_loadu_ps(totals[n] + b * kLanes);
      for (int r = 0; r < count; ++r) total = _mm512_fmadd_ps(_mm512_loadu_ps(g[r] + b * kLanes), sum.at[n][r], total);
      _mm512_storeu_ps(totals[n] + b * kLanes, total);
    }
  }
}

// --- sums ------------------------------------------------------------------------------------------------------------

// Adds to both ends, lane by lane.
DIFFCROP_INLINE void add_lanes(DotLanes& total, __m512 lo, __m512 hi) {
  for (int half = 0; half < 2; ++half) {
    double *const to_lo = total.lo + 8 * half, *const to_hi = total.hi + 8 * half;
    const __m256 more_lo = half == 0 ? _mm512_castps512_ps256(lo) : _mm512_extractf32x8_ps(lo, 1);
    const __m256 more_hi = half == 0 ? _mm512_castps512_ps256(hi) : _mm512_extractf32x8_ps(hi, 1);
    _mm512_storeu_pd(to_lo, _mm512_add_pd(_mm512_loadu_pd(to_lo), _mm512_cvtps_pd(more_lo)));
    _mm512_storeu_pd(to_hi, _mm512_add_pd(_mm512_loadu_pd(to_hi), _mm512_cvtps_pd(more_hi)));
  }
}

// See add_dot.
DIFFCROP_INLINE void add_dot_lanes(DotLanes& total, double fraction, const float* a, const float* b, int64_t length) {
  __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
  int64_t x = 0;
  for (; x + 2 * kLanes <= length; x += 2 * kLanes) {
    even = _mm512_fmadd_ps(_mm512_loadu_ps(a + x), _mm512_loadu_ps(b + x), even);
    odd = _mm512_fmadd_ps(_mm512_loadu_ps(a + x + kLanes), _mm512_loadu_ps(b + x + kLanes), odd);
  }
  for (; x < length; x += kLanes, std::swap(even, odd)) {
    const __mmask16 mask = first_lanes(length - x);
    even = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + x), _mm512_maskz_loadu_ps(mask, b + x), even);
  }
  const __m512 sum = _mm512_add_ps(even, odd);
  add_lanes(total, _mm512_mul_ps(_mm512_set1_ps(static_cast<float>(1 - fraction)), sum),
            _mm512_mul_ps(_mm512_set1_ps(static_cast<float>(fraction)), sum));
}

}  // namespace diffcrop::DIFFCROP_LEVEL
