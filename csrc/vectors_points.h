// The passes of points.h with registers of sixteen. For AVX-512, included by points.h there alone.

namespace diffcrop::DIFFCROP_LEVEL {

// Both pixels of sixteen outputs in every sum.
template <int orders>
struct PixelPair {
  __m512 at[2][orders];
};

// What a block of sixteen outputs knows of x.
struct Pairs {
  const int32_t* places;
  __m512i place[2];
  __mmask16 lanes[2], read[4];
  int64_t from;
  Pairs(const Operator<float>& op, int64_t b) : places(op.lanes.place.data() + b * kLanes) {
    const Block& block = op.lanes.blocks[b];
    place[0] = _mm512_loadu_si512(places);
    place[1] = _mm512_add_epi32(place[0], _mm512_set1_epi32(static_cast<int>(op.m)));
    for (int t = 0; t < 2; ++t) lanes[t] = op.lanes.mask[block.table + t];
    for (int k = 0; k < 4; ++k) read[k] = first_lanes(std::max<int64_t>(block.read - k * kLanes, 0));
    from = block.from;
  }
};

template <Lookup lookup, int orders, class T>
DIFFCROP_INLINE PixelPair<orders> pixels_of(const RowPair<orders, T, float>& rows, const Pairs& x, bool shifted) {
  PixelPair<orders> result;
  if constexpr (lookup == Lookup::pairs) {
    __m512 pixel[2][2];
    for (int y = 0; y < 2; ++y) load_pairs(rows.row[y] + x.from, x.places, pixel[y][0], pixel[y][1]);
    for (int t = 0; t < 2; ++t)
      for (int n = 0; n < orders; ++n)
        result.at[t][n] = _mm512_fmadd_ps(_mm512_set1_ps(rows.weight[1][n]), pixel[1][t],
                                          _mm512_mul_ps(_mm512_set1_ps(rows.weight[0][n]), pixel[0][t]));
  } else {
    Held<kHeld<lookup>> held[orders];
    for (int k = 0; k < kHeld<lookup>; ++k) {
      const __m512 upper = load_lanes(rows.row[0] + x.from + k * kLanes, x.read[k]);
      const __m512 lower = load_lanes(rows.row[1] + x.from + k * kLanes, x.read[k]);
      for (int n = 0; n < orders; ++n)
        held[n].at[k] = _mm512_fmadd_ps(_mm512_set1_ps(rows.weight[1][n]), lower,
                                        _mm512_mul_ps(_mm512_set1_ps(rows.weight[0][n]), upper));
    }
    for (int t = 0; t < 2; ++t)
      for (int n = 0; n < orders; ++n) result.at[t][n] = look_up(held[n], x.place[t]);
  }
  if (shifted)
    for (int t = 0; t < 2; ++t)
      for (int n = 0; n < orders; ++n) result.at[t][n] = _mm512_sub_ps(result.at[t][n], _mm512_set1_ps(rows.shift[n]));
  return result;
}

// The weights by x of sixteen outputs.
struct WeightPair {
  __m512 at[2];
  WeightPair(const Operator<float>& op, int order, int64_t b) {
    const float* const table = op.lanes.weight[order].data() + op.lanes.blocks[b].table * kLanes;
    for (int t = 0; t < 2; ++t) at[t] = _mm512_loadu_ps(table + t * kLanes);
  }
};

template <int orders>
DIFFCROP_INLINE __m512 weigh_pair(const WeightPair& weight, const PixelPair<orders>& pixel, int n, const Pairs& x) {
  const __m512 first = _mm512_maskz_mul_ps(x.lanes[0], weight.at[0], pixel.at[0][n]);
  return _mm512_mask3_fmadd_ps(weight.at[1], pixel.at[1][n], first, x.lanes[1]);
}

template <Lookup lookup, int count, class T>
DIFFCROP_INLINE Sums<1, count> values_of(const RowPair<1, T, float> (&rows)[count], const Operator<float>& op,
                                         int64_t b) {
  const Pairs x(op, b);
  const WeightPair weight(op, kValue, b);
  Sums<1, count> sum;
  for (int r = 0; r < count; ++r) sum.at[0][r] = weigh_pair(weight, pixels_of<lookup, 1>(rows[r], x, false), 0, x);
  return sum;
}

// See put_points.
template <bool add, int count, class T>
inline void put_points_lanes(float* const* outs, const RowPair<1, T, float> (&rows)[count], const Operator<float>& op) {
  const auto blocks = static_cast<int64_t>(op.lanes.blocks.size());
  for (int64_t b = 0; b < blocks; ++b) {
    Sums<1, count> sum;
    switch (op.lanes.blocks[b].lookup) {
      case Lookup::one:
        sum = values_of<Lookup::one>(rows, op, b);
        break;
      case Lookup::two:
        sum = values_of<Lookup::two>(rows, op, b);
        break;
      case Lookup::three:
        sum = values_of<Lookup::three>(rows, op, b);
        break;
      case Lookup::four:
        sum = values_of<Lookup::four>(rows, op, b);
        break;
      default:
        sum = values_of<Lookup::pairs>(rows, op, b);
    }
    const __mmask16 mask = first_lanes(op.band->outputs * op.m - b * kLanes);
    for (int r = 0; r < count; ++r) {
      float* const to = outs[r] + b * kLanes;
      if (add) sum.at[0][r] = _mm512_add_ps(sum.at[0][r], _mm512_maskz_loadu_ps(mask, to));
      _mm512_mask_storeu_ps(to, mask, sum.at[0][r]);
    }
  }
}

// Adds g times the slope by x to the totals, and returns g times the slope by y.
template <Lookup lookup, int count, class T>
DIFFCROP_INLINE Sums<1, count> slopes_of(float* totals, const float* const (&g)[count],
                                         const RowPair<2, T, float> (&rows)[count], const Operator<float>& op,
                                         int64_t b, bool shifted) {
  const Pairs x(op, b);
  const WeightPair weight(op, kValue, b), slope(op, kByCenter, b);
  const __mmask16 mask = first_lanes(op.band->outputs * op.m - b * kLanes);
  __m512 total = _mm512_loadu_ps(totals + b * kLanes);
  Sums<1, count> sum;
  for (int r = 0; r < count; ++r) {
    const PixelPair<2> pixel = pixels_of<lookup, 2>(rows[r], x, shifted);
    const __m512 cotangent = _mm512_maskz_loadu_ps(mask, g[r] + b * kLanes);
    total = _mm512_fmadd_ps(cotangent, weigh_pair(slope, pixel, kValue, x), total);
    sum.at[0][r] = _mm512_mul_ps(cotangent, weigh_pair(weight, pixel, kByCenter, x));
  }
  _mm512_storeu_ps(totals + b * kLanes, total);
  return sum;
}

// See add_points. Totals may be read and written up to a multiple of sixteen.
template <int count, class T>
inline void add_points_lanes(DotLanes& dots, float* totals, const float* const (&g)[count],
                             const RowPair<2, T, float> (&rows)[count], const double (&fraction)[count],
                             const Operator<float>& op, bool shifted) {
  const auto blocks = static_cast<int64_t>(op.lanes.blocks.size());
  Sums<1, count> sum;
  for (int r = 0; r < count; ++r) sum.at[0][r] = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b) {
    Sums<1, count> part;
    switch (op.lanes.blocks[b].lookup) {
      case Lookup::one:
        part = slopes_of<Lookup::one>(totals, g, rows, op, b, shifted);
        break;
      case Lookup::two:
        part = slopes_of<Lookup::two>(totals, g, rows, op, b, shifted);
        break;
      case Lookup::three:
        part = slopes_of<Lookup::three>(totals, g, rows, op, b, shifted);
        break;
      case Lookup::four:
        part = slopes_of<Lookup::four>(totals, g, rows, op, b, shifted);
        break;
      default:
        part = slopes_of<Lookup::pairs>(totals, g, rows, op, b, shifted);
    }
    for (int r = 0; r < count; ++r) sum.at[0][r] = _mm512_add_ps(sum.at[0][r], part.at[0][r]);
  }
  __m512 lo = _mm512_setzero_ps(), hi = lo;
  for (int r = 0; r < count; ++r) {
    lo = _mm512_fmadd_ps(_mm512_set1_ps(static_cast<float>(1 - fraction[r])), sum.at[0][r], lo);
    hi = _mm512_fmadd_ps(_mm512_set1_ps(static_cast<float>(fraction[r])), sum.at[0][r], hi);
  }
  add_lanes(dots, lo, hi);
}

}  // namespace diffcrop::DIFFCROP_LEVEL
