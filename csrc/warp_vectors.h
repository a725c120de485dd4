// Bilinear samples inside of the image with registers of sixteen. For AVX-512, included by warp_kernels.h there alone.

namespace diffcrop::DIFFCROP_LEVEL {

// Sixteen samples between four pixels of the image each: where the upper left one is, in elements of the plane, and how
// far they are from it.
struct alignas(64) Between {
  int32_t place[kSpots];
  __m512 x, y;
  __m512i row;
};

// The last pixel that is not behind a position, and how far that is from it. What does not fit into 32 bits becomes the
// least number that does. A little is added, as everywhere: 2^-48 (2 + position), in one step.
DIFFCROP_INLINE __m256i corner_of(__m512d place, __m256& rest) {
  const __m512d above = _mm512_fmadd_pd(place, _mm512_set1_pd(1 + kSlack), _mm512_set1_pd(2 * kSlack));
  const __m512d corner = _mm512_roundscale_pd(above, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  rest = _mm512_cvtpd_ps(_mm512_sub_pd(place, corner));
  return _mm512_cvttpd_epi32(corner);
}

DIFFCROP_INLINE __m512i corners_of(__m512d first, __m512d second, __m512& rest) {
  __m256 low, high;
  const __m256i corner = corner_of(first, low), next = corner_of(second, high);
  rest = _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(corner), next, 1);
}

// Axis 0, 1 or 2 of eight samples from number l on.
DIFFCROP_INLINE __m512d eight_of(const Line& line, int axis, const double* u, int l) {
  return _mm512_fmadd_pd(_mm512_set1_pd(line.slope[axis]), _mm512_load_pd(u + l), _mm512_load_pd(line.start[axis] + l));
}

// Whether all sixteen samples are such, in planes whose rows are `row` apart and columns `step`. Only then, and with
// `keep`, the spots are found too.
template <bool affine, bool keep>
DIFFCROP_INLINE bool find_between(Between& between, Spots& spots, const Line& line, const double* u,
                                  const Surface& surface, int64_t row, int64_t step) {
  __m512d place[2][2];
  __mmask8 seen = 0xff;
  for (int half = 0; half < 2; ++half) {
    const int l = 8 * half;
    for (int axis = 0; axis < 2; ++axis) place[axis][half] = eight_of(line, axis, u, l);
    if constexpr (!affine) {
      const __m512d z = eight_of(line, 2, u, l);
      seen &= _mm512_cmp_pd_mask(z, _mm512_set1_pd(1e-290), _CMP_GT_OQ);
      for (int axis = 0; axis < 2; ++axis) place[axis][half] = _mm512_div_pd(place[axis][half], z);
      if (keep) _mm512_store_pd(spots.inverse + l, _mm512_div_pd(_mm512_set1_pd(1), z));
    }
    for (int axis = 0; axis < 2; ++axis) place[axis][half] = _mm512_sub_pd(place[axis][half], _mm512_set1_pd(0.5));
    if (keep) {
      _mm512_store_pd(spots.x + l, place[0][half]), _mm512_store_pd(spots.y + l, place[1][half]);
      if (!affine) _mm_storeu_si64(spots.seen + l, _mm_set1_epi8(1));
    }
  }
  const __m512i column = corners_of(place[0][0], place[0][1], between.x);
  between.row = corners_of(place[1][0], place[1][1], between.y);
  const __mmask16 beside = _mm512_cmpge_epu32_mask(column, _mm512_set1_epi32(static_cast<int>(surface.width - 1)));
  const __mmask16 above = _mm512_cmpge_epu32_mask(between.row, _mm512_set1_epi32(static_cast<int>(surface.height - 1)));
  const __m512i down = _mm512_mullo_epi32(between.row, _mm512_set1_epi32(static_cast<int>(row)));
  const __m512i along = step == 1 ? column : _mm512_mullo_epi32(column, _mm512_set1_epi32(static_cast<int>(step)));
  _mm512_store_si512(between.place, _mm512_add_epi32(down, along));
  return (beside | above) == 0 && seen == 0xff;
}

// The four pixels around sixteen samples.
struct Sixteens {
  __m512 upper[2], lower[2];
};

template <class T>
DIFFCROP_INLINE Sixteens read_sixteens(const T* plane, int64_t row, const Between& between) {
  Sixteens result;
  load_pairs(plane, between.place, result.upper[0], result.upper[1]);
  load_pairs(plane + row, between.place, result.lower[0], result.lower[1]);
  return result;
}

template <class T>
DIFFCROP_INLINE __m512 read_between(const T* plane, int64_t row, const Between& between) {
  const Sixteens p = read_sixteens(plane, row, between);
  const __m512 x = between.x, y = between.y, one = _mm512_set1_ps(1);
  const __m512 left = _mm512_sub_ps(one, x), above = _mm512_sub_ps(one, y);
  const __m512 upper = _mm512_fmadd_ps(x, p.upper[1], _mm512_mul_ps(left, p.upper[0]));
  const __m512 lower = _mm512_fmadd_ps(x, p.lower[1], _mm512_mul_ps(left, p.lower[0]));
  return _mm512_fmadd_ps(y, lower, _mm512_mul_ps(above, upper));
}

template <class T>
DIFFCROP_INLINE void add_slopes_between(float* by_x, float* by_y, const float* g, int64_t stride,
                                        const View<const T>& image, int64_t c, int64_t c_end, const Between& between) {
  const __m512 x = between.x, y = between.y, one = _mm512_set1_ps(1);
  const __m512 left = _mm512_sub_ps(one, x), above = _mm512_sub_ps(one, y);
  __m512 sum_x = _mm512_load_ps(by_x), sum_y = _mm512_load_ps(by_y);
  for (int64_t i = c; i < c_end; ++i, g += stride) {
    const Sixteens p = read_sixteens(image.at(i, 0), image.row, between);
    const __m512 cotangent = _mm512_loadu_ps(g);
    const __m512 slope_x = _mm512_fmadd_ps(y, _mm512_sub_ps(p.lower[1], p.lower[0]),
                                           _mm512_mul_ps(above, _mm512_sub_ps(p.upper[1], p.upper[0])));
    const __m512 slope_y = _mm512_fmadd_ps(x, _mm512_sub_ps(p.lower[1], p.upper[1]),
                                           _mm512_mul_ps(left, _mm512_sub_ps(p.lower[0], p.upper[0])));
    sum_x = _mm512_fmadd_ps(cotangent, slope_x, sum_x), sum_y = _mm512_fmadd_ps(cotangent, slope_y, sum_y);
  }
  _mm512_store_ps(by_x, sum_x), _mm512_store_ps(by_y, sum_y);
}

// --- pixels whose channels lie side by side --------------------------------------------------------------------------

// The four pixels around a sample, sixteen channels of each or those in the mask.
struct Around {
  __m512 upper[2], lower[2];
};

template <class T>
DIFFCROP_INLINE Around read_around(const T* from, const View<const T>& image, __mmask16 mask) {
  return {{load_lanes(from, mask), load_lanes(from + image.column, mask)},
          {load_lanes(from + image.row, mask), load_lanes(from + image.row + image.column, mask)}};
}

// The values of `lanes` samples, `step` apart, of the channels in the mask; `from`: the first of them in the image.
template <class T>
DIFFCROP_INLINE void read_pixels(float* to, int64_t step, const T* from, const View<const T>& image, __mmask16 mask,
                                 const Between& between, int64_t lanes) {
  alignas(64) float right[kSpots], below[kSpots];
  _mm512_store_ps(right, between.x), _mm512_store_ps(below, between.y);
  const __m512 one = _mm512_set1_ps(1);
  for (int64_t l = 0; l < lanes; ++l, to += step) {
    const Around p = read_around(from + between.place[l], image, mask);
    const __m512 x = _mm512_set1_ps(right[l]), y = _mm512_set1_ps(below[l]);
    const __m512 left = _mm512_sub_ps(one, x), above = _mm512_sub_ps(one, y);
    const __m512 upper = _mm512_fmadd_ps(x, p.upper[1], _mm512_mul_ps(left, p.upper[0]));
    const __m512 lower = _mm512_fmadd_ps(x, p.lower[1], _mm512_mul_ps(left, p.lower[0]));
    const __m512 value = _mm512_fmadd_ps(y, lower, _mm512_mul_ps(above, upper));
    if (mask == 0xffff)
      _mm512_storeu_ps(to, value);
    else
      _mm512_mask_storeu_ps(to, mask, value);
  }
}

// by_x and by_y of `lanes` samples += g times the slopes, summed over the channels in the mask, `stride` apart in g.
template <class T>
DIFFCROP_INLINE void add_slopes_of_pixels(float* by_x, float* by_y, const float* g, int64_t stride, const T* from,
                                          const View<const T>& image, __mmask16 mask, int64_t channels,
                                          const Between& between, int64_t lanes) {
  alignas(64) float right[kSpots], below[kSpots], turned[kSpots * kShared] = {};
  _mm512_store_ps(right, between.x), _mm512_store_ps(below, between.y);
  for (int64_t n = 0; n < channels; ++n)
    for (int64_t l = 0; l < kSpots; ++l) turned[l * kShared + n] = g[n * stride + l];
  const __m512 one = _mm512_set1_ps(1);
  for (int64_t l = 0; l < lanes; ++l) {
    const Around p = read_around(from + between.place[l], image, mask);
    const __m512 x = _mm512_set1_ps(right[l]), y = _mm512_set1_ps(below[l]);
    const __m512 left = _mm512_sub_ps(one, x), above = _mm512_sub_ps(one, y);
    const __m512 slope_x = _mm512_fmadd_ps(y, _mm512_sub_ps(p.lower[1], p.lower[0]),
                                           _mm512_mul_ps(above, _mm512_sub_ps(p.upper[1], p.upper[0])));
    const __m512 slope_y = _mm512_fmadd_ps(x, _mm512_sub_ps(p.lower[1], p.upper[1]),
                                           _mm512_mul_ps(left, _mm512_sub_ps(p.lower[0], p.upper[0])));
    const __m512 cotangent = _mm512_load_ps(turned + l * kShared);
    by_x[l] += _mm512_reduce_add_ps(_mm512_mul_ps(cotangent, slope_x));
    by_y[l] += _mm512_reduce_add_ps(_mm512_mul_ps(cotangent, slope_y));
  }
}

// --- four rows side by side, and back --------------------------------------------------------------------------------

// See interleave and separate, of rows whose numbers lie side by side. What lies `ahead` will be wanted next.
template <class G>
inline void interleave_lanes(float* to, const G* const (&rows)[4], int64_t count, int64_t ahead) {
  // Numbers of two registers in turns, the first and the last eight of each; then pairs of those.
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i second = _mm512_add_epi64(first, _mm512_set1_epi64(4));
  for (int64_t j = 0; j < count; j += kLanes) {
    const __mmask16 lanes = first_lanes(count - j);
    __m512 row[4];
    for (int n = 0; n < 4; ++n) row[n] = load_lanes(rows[n] + j, lanes);
    for (int n = 0; n < 4; ++n) _mm_prefetch(reinterpret_cast<const char*>(rows[n] + j + ahead), _MM_HINT_T0);
    for (int half = 0; half < 2; ++half) {
      const __m512i order = half == 0 ? low : high;
      const __m512d left = _mm512_castps_pd(_mm512_permutex2var_ps(row[0], order, row[1]));
      const __m512d right = _mm512_castps_pd(_mm512_permutex2var_ps(row[2], order, row[3]));
      float* const some = to + 4 * j + 2 * half * kLanes;
      const int64_t left_over = 4 * (count - j) - 2 * half * kLanes;
      const auto write = [&](int64_t at, __m512d numbers) __attribute__((always_inline)) {
        // What was written under a mask is not handed on to those who read it at once.
        if (left_over - at >= kLanes) return _mm512_storeu_pd(some + at, numbers);
        _mm512_mask_storeu_ps(some + at, first_lanes(std::max<int64_t>(left_over - at, 0)), _mm512_castpd_ps(numbers));
      };
      write(0, _mm512_permutex2var_pd(left, first, right));
      write(kLanes, _mm512_permutex2var_pd(left, second, right));
    }
  }
}

inline void separate_lanes(float* const (&rows)[4], const float* from, int64_t count) {
  // Numbers n, n + 4, n + 8 and n + 12 of two registers, for two n.
  const __m512i even = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(2));
  float *const first = rows[0], *const second = rows[1], *const third = rows[2], *const fourth = rows[3];
  const auto turn = [even, odd](const __m512(&part)[4], __m512(&row)[4]) __attribute__((always_inline)) {
    const __m512 low01 = _mm512_permutex2var_ps(part[0], even, part[1]);
    const __m512 high01 = _mm512_permutex2var_ps(part[2], even, part[3]);
    const __m512 low23 = _mm512_permutex2var_ps(part[0], odd, part[1]);
    const __m512 high23 = _mm512_permutex2var_ps(part[2], odd, part[3]);
    row[0] = _mm512_shuffle_f32x4(low01, high01, 0x44), row[1] = _mm512_shuffle_f32x4(low01, high01, 0xee);
    row[2] = _mm512_shuffle_f32x4(low23, high23, 0x44), row[3] = _mm512_shuffle_f32x4(low23, high23, 0xee);
  };
  __m512 part[4], row[4];
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int i = 0; i < 4; ++i) part[i] = _mm512_loadu_ps(from + 4 * j + i * kLanes);
    turn(part, row);
    _mm512_storeu_ps(first + j, row[0]), _mm512_storeu_ps(second + j, row[1]);
    _mm512_storeu_ps(third + j, row[2]), _mm512_storeu_ps(fourth + j, row[3]);
  }
  if (j == count) return;
  const __mmask16 lanes = first_lanes(count - j);
  for (int i = 0; i < 4; ++i)
    part[i] = _mm512_maskz_loadu_ps(first_lanes(std::max<int64_t>(4 * (count - j) - i * kLanes, 0)),
                                    from + 4 * j + i * kLanes);
  turn(part, row);
  _mm512_mask_storeu_ps(first + j, lanes, row[0]), _mm512_mask_storeu_ps(second + j, lanes, row[1]);
  _mm512_mask_storeu_ps(third + j, lanes, row[2]), _mm512_mask_storeu_ps(fourth + j, lanes, row[3]);
}

}  // namespace diffcrop::DIFFCROP_LEVEL
