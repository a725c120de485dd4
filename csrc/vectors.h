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

// Lane l gets from[place[l]]; `upper` has the lanes whose place is 32 or more.
template <Lookup lookup>
DIFFCROP_INLINE __m512 look_up(const float* from, __m512i place, __mmask16 upper) {
  const __m512 first = _mm512_loadu_ps(from);
  if constexpr (lookup == Lookup::one) return _mm512_permutexvar_ps(place, first);
  const __m512 lower = _mm512_permutex2var_ps(first, place, _mm512_loadu_ps(from + kLanes));
  if constexpr (lookup == Lookup::two) return lower;
  const __m512 third = _mm512_loadu_ps(from + 2 * kLanes), fourth = _mm512_loadu_ps(from + 3 * kLanes);
  return _mm512_mask_blend_ps(upper, lower, _mm512_permutex2var_ps(third, place, fourth));
}

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

// The sixteen outputs of a block of rows, with tables order, order + 1, ...
template <int orders, int count, Lookup lookup>
DIFFCROP_INLINE Sums<orders, count> weigh(const float* const (&rows)[count], const Operator<float>& op, int order,
                                          int64_t b) {
  const Block& block = op.lanes.blocks[b];
  const int32_t* const places = op.lanes.place.data() + b * kLanes;
  const __m512i place = _mm512_loadu_si512(places);
  const __mmask16 upper = _mm512_cmpgt_epi32_mask(place, _mm512_set1_epi32(2 * kLanes - 1));
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
        pixel[r] = m == 1 ? _mm512_set1_ps(rows[r][from + t]) : look_up<Lookup::one>(rows[r] + from + t * m, place, 0);
        next[r] = m == 1 ? _mm512_set1_ps(rows[r][from + second])
                         : look_up<Lookup::one>(rows[r] + from + second * m, place, 0);
      }
      add_tap<false>(sum, pixel, weight, mask, t);
      if (second > t) add_tap<false>(odd, next, weight, mask, second);
    }
    for (int n = 0; n < orders; ++n)
      for (int r = 0; r < count; ++r) sum.at[n][r] = _mm512_add_ps(sum.at[n][r], odd.at[n][r]);
  } else if (taps > 0) {
    for (int r = 0; r < count; ++r) pixel[r] = look_up<lookup>(rows[r] + from, place, upper);
    add_tap<true>(sum, pixel, weight, mask, 0);
    for (int64_t t = 1; t < taps; ++t) {
      for (int r = 0; r < count; ++r) pixel[r] = look_up<lookup>(rows[r] + from + t * m, place, upper);
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
    case Lookup::four:
      return weigh<orders, count, Lookup::four>(rows, op, order, b);
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
  const __m512d halves[] = {_mm512_cvtps_pd(_mm512_castps512_ps256(sum)),
                            _mm512_cvtps_pd(_mm512_extractf32x8_ps(sum, 1))};
  const __m512d hi = _mm512_set1_pd(fraction), lo = _mm512_set1_pd(1 - fraction);
  for (int i = 0; i < 2; ++i) {
    _mm512_storeu_pd(total.lo + 8 * i, _mm512_fmadd_pd(lo, halves[i], _mm512_loadu_pd(total.lo + 8 * i)));
    _mm512_storeu_pd(total.hi + 8 * i, _mm512_fmadd_pd(hi, halves[i], _mm512_loadu_pd(total.hi + 8 * i)));
  }
}

}  // namespace diffcrop::DIFFCROP_LEVEL
