// Bilinear samples inside of the image with registers of sixteen. For AVX-512, included by warp_rows.h there alone.

namespace diffcrop::DIFFCROP_LEVEL {

// The four pixels around sixteen samples.
struct Sixteens {
  __m512 upper[2], lower[2];
};

template <class T>
DIFFCROP_INLINE Sixteens read_sixteens(const T* plane, int64_t row, const Corners<float>& corners) {
  alignas(64) int32_t place[kSpots];
  const __m512i down = _mm512_mullo_epi32(_mm512_load_si512(corners.row), _mm512_set1_epi32(static_cast<int>(row)));
  _mm512_store_si512(place, _mm512_add_epi32(down, _mm512_load_si512(corners.column)));
  Sixteens result;
  load_pairs(plane, place, result.upper[0], result.upper[1]);
  load_pairs(plane + row, place, result.lower[0], result.lower[1]);
  return result;
}

template <class T>
DIFFCROP_INLINE void read_inside_lanes(float* value, const T* plane, int64_t row, const Corners<float>& corners) {
  const Sixteens p = read_sixteens(plane, row, corners);
  const __m512 x = _mm512_load_ps(corners.x), y = _mm512_load_ps(corners.y), one = _mm512_set1_ps(1);
  const __m512 left = _mm512_sub_ps(one, x), above = _mm512_sub_ps(one, y);
  const __m512 upper = _mm512_fmadd_ps(x, p.upper[1], _mm512_mul_ps(left, p.upper[0]));
  const __m512 lower = _mm512_fmadd_ps(x, p.lower[1], _mm512_mul_ps(left, p.lower[0]));
  _mm512_storeu_ps(value, _mm512_fmadd_ps(y, lower, _mm512_mul_ps(above, upper)));
}

template <class T>
DIFFCROP_INLINE void add_slopes_inside_lanes(float* by_x, float* by_y, const float* g, const T* plane, int64_t row,
                                             const Corners<float>& corners) {
  const Sixteens p = read_sixteens(plane, row, corners);
  const __m512 x = _mm512_load_ps(corners.x), y = _mm512_load_ps(corners.y), one = _mm512_set1_ps(1);
  const __m512 left = _mm512_sub_ps(one, x), above = _mm512_sub_ps(one, y), cotangent = _mm512_loadu_ps(g);
  const __m512 slope_x = _mm512_fmadd_ps(y, _mm512_sub_ps(p.lower[1], p.lower[0]),
                                         _mm512_mul_ps(above, _mm512_sub_ps(p.upper[1], p.upper[0])));
  const __m512 slope_y = _mm512_fmadd_ps(x, _mm512_sub_ps(p.lower[1], p.upper[1]),
                                         _mm512_mul_ps(left, _mm512_sub_ps(p.lower[0], p.upper[0])));
  _mm512_store_ps(by_x, _mm512_fmadd_ps(cotangent, slope_x, _mm512_load_ps(by_x)));
  _mm512_store_ps(by_y, _mm512_fmadd_ps(cotangent, slope_y, _mm512_load_ps(by_y)));
}

// See separate.
inline void separate_lanes(float* const (&rows)[4], const float* from, int64_t count) {
  // Numbers n, n + 4, n + 8 and n + 12 of two registers, for two n.
  const __m512i even = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(2));
  for (int64_t j = 0; j < count; j += kLanes) {
    const __mmask16 lanes = first_lanes(count - j);
    __m512 part[4];
    for (int i = 0; i < 4; ++i)
      part[i] = _mm512_maskz_loadu_ps(first_lanes(std::max<int64_t>(4 * (count - j) - i * kLanes, 0)),
                                      from + 4 * j + i * kLanes);
    const __m512 low01 = _mm512_permutex2var_ps(part[0], even, part[1]);
    const __m512 high01 = _mm512_permutex2var_ps(part[2], even, part[3]);
    const __m512 low23 = _mm512_permutex2var_ps(part[0], odd, part[1]);
    const __m512 high23 = _mm512_permutex2var_ps(part[2], odd, part[3]);
    _mm512_mask_storeu_ps(rows[0] + j, lanes, _mm512_shuffle_f32x4(low01, high01, 0x44));
    _mm512_mask_storeu_ps(rows[1] + j, lanes, _mm512_shuffle_f32x4(low01, high01, 0xee));
    _mm512_mask_storeu_ps(rows[2] + j, lanes, _mm512_shuffle_f32x4(low23, high23, 0x44));
    _mm512_mask_storeu_ps(rows[3] + j, lanes, _mm512_shuffle_f32x4(low23, high23, 0xee));
  }
}

}  // namespace diffcrop::DIFFCROP_LEVEL
