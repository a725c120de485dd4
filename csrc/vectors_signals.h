// The passes of signal_passes.h with registers of sixteen. For AVX-512, included by signal_passes.h there alone.

namespace diffcrop::DIFFCROP_LEVEL {

// See gather_pairs.
template <class T>
inline void gather_pairs_lanes(float* out, const T* row, const PairPlan<float>& pairs, float shift) {
  const __m512 less = _mm512_set1_ps(shift), zero = _mm512_setzero_ps();
  for (int64_t j = 0; j < pairs.outputs; j += kLanes) {
    __m512 first, second;
    load_pairs(row, pairs.start.data() + j, first, second);
    const __m512 left = _mm512_loadu_ps(pairs.left.data() + j), right = _mm512_loadu_ps(pairs.right.data() + j);
    const __mmask16 reads_left = _mm512_cmp_ps_mask(left, zero, _CMP_NEQ_UQ);
    const __mmask16 reads_right = _mm512_cmp_ps_mask(right, zero, _CMP_NEQ_UQ);
    // Where the left one is not read a negative zero, which leaves every sum as it is.
    __m512 sum = _mm512_mask_mul_ps(_mm512_set1_ps(-0.0F), reads_left, left, _mm512_sub_ps(first, less));
    sum = _mm512_mask3_fmadd_ps(right, _mm512_sub_ps(second, less), sum, reads_right);
    const __mmask16 reads = static_cast<__mmask16>(reads_left | reads_right);
    _mm512_mask_storeu_ps(out + j, first_lanes(pairs.outputs - j), _mm512_maskz_mov_ps(reads, sum));
  }
}

// The sum of every register, in their order.
DIFFCROP_INLINE __m512 sums_of(const __m512 (&v)[kLanes]) {
  __m512 two[8], four[4], eight[2];
  for (int i = 0; i < 8; ++i)
    two[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(two[2 * i]), b = _mm512_castps_pd(two[2 * i + 1]);
    four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  for (int i = 0; i < 2; ++i)
    eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(eight[0], eight[1], 0x88), _mm512_shuffle_f32x4(eight[0], eight[1], 0xdd));
}

// Pixels that are asked for before they are read.
constexpr int64_t kAhead = 512;

// See gather_runs.
template <class T>
inline void gather_runs_lanes(float* out, const T* row, const AxisPlan<float>& runs, const float* weights,
                              float shift) {
  const __m512 less = _mm512_set1_ps(shift);
  for (int64_t j = 0; j < runs.outputs; j += kLanes) {
    const int64_t some = std::min<int64_t>(runs.outputs - j, kLanes);
    __m512 parts[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      parts[lane] = _mm512_setzero_ps();
      if (lane >= some) continue;
      const int64_t count = runs.count[j + lane];
      // Negative zeros leave every sum as it is.
      __m512 sum = _mm512_set1_ps(count > 0 ? -0.0F : 0.0F);
      const float* const weight = weights + runs.offset[j + lane];
      const T* const from = row + runs.start[j + lane];
      _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
      for (int64_t t = 0; t < count; t += kLanes) {
        const __mmask16 mask = first_lanes(count - t);
        sum = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(mask, weight + t),
                                    _mm512_sub_ps(load_lanes(from + t, mask), less), sum, mask);
      }
      parts[lane] = sum;
    }
    _mm512_mask_storeu_ps(out + j, first_lanes(some), sums_of(parts));
  }
}

// to[t] += weight[t] g
DIFFCROP_INLINE void add_run_lanes(float* to, const float* weight, float g, int64_t count) {
  const __m512 wide = _mm512_set1_ps(g);
  for (int64_t t = 0; t < count; t += kLanes) {
    const __mmask16 mask = first_lanes(count - t);
    const __m512 sum =
        _mm512_fmadd_ps(wide, _mm512_maskz_loadu_ps(mask, weight + t), _mm512_maskz_loadu_ps(mask, to + t));
    _mm512_mask_storeu_ps(to + t, mask, sum);
  }
}

// totals[n][j] += sum_t slope[n][j, t] sum_r g[r][j] (rows[r][start[j] + t] - shift[r]), slope[0] by the position and
// slope[1] by the width, if that changes. A pixel is read once for both and weighed once for all rows.
template <class T>
inline void add_slopes_lanes(float* const (&totals)[2], const float* const* g, const T* const* rows, const float* shift,
                             int64_t count, const AxisPlan<float>& runs) {
  const bool widens = !runs.by_width.empty();
  for (int64_t j = 0; j < runs.outputs; j += kLanes) {
    const int64_t some = std::min<int64_t>(runs.outputs - j, kLanes);
    __m512 by_center[kLanes], by_width[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      by_center[lane] = by_width[lane] = _mm512_setzero_ps();
      if (lane >= some) continue;
      const int64_t taps = runs.count[j + lane], offset = runs.offset[j + lane], start = runs.start[j + lane];
      for (int64_t r = 0; r < count; ++r)
        _mm_prefetch(reinterpret_cast<const char*>(rows[r] + start + kAhead), _MM_HINT_T0);
      for (int64_t t = 0; t < taps; t += kLanes) {
        const __mmask16 mask = first_lanes(taps - t);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t r = 0; r < count; ++r)
          sum = _mm512_fmadd_ps(_mm512_set1_ps(g[r][j + lane]),
                                _mm512_sub_ps(load_lanes(rows[r] + start + t, mask), _mm512_set1_ps(shift[r])), sum);
        const auto add = [&](__m512& total, const std::vector<float>& slope) DIFFCROP_ALWAYS {
          total = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(mask, slope.data() + offset + t), sum, total, mask);
        };
        add(by_center[lane], runs.by_center);
        if (widens) add(by_width[lane], runs.by_width);
      }
    }
    const __mmask16 mask = first_lanes(some);
    const auto put = [&](float* total, const __m512(&parts)[kLanes]) DIFFCROP_ALWAYS {
      _mm512_mask_storeu_ps(total + j, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, total + j), sums_of(parts)));
    };
    put(totals[0], by_center);
    if (widens) put(totals[1], by_width);
  }
}

}  // namespace diffcrop::DIFFCROP_LEVEL
