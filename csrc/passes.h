// The passes over one row. Compiled once for every instruction set (kernels_*.cpp), hence no include guard; and no
// lambdas in loops that count, which gcc would compile for the oldest one unless they are always inlined.

#if DIFFCROP_LOOKUPS
#include "vectors.h"
#endif

namespace diffcrop::DIFFCROP_LEVEL {

// --- down the columns ------------------------------------------------------------------------------------------------

// out[n][x] (+)= sum_r weight[n][r] rows[r][x] for the first `orders` of the tables.
template <bool add, int orders, int count, class T, class A>
void combine_each(A* const (&out)[kOrders], const T* const (&rows)[count], const A (&weight)[orders][count],
                  int64_t length) {
  A* const __restrict o0 = out[0];
  A* const __restrict o1 = out[orders > 1 ? 1 : 0];
  A* const __restrict o2 = out[orders > 2 ? 2 : 0];
  static_assert(count <= 4);
  const T* const __restrict r0 = rows[0];
  const T* const __restrict r1 = rows[count > 1 ? 1 : 0];
  const T* const __restrict r2 = rows[count > 2 ? 2 : 0];
  const T* const __restrict r3 = rows[count > 3 ? 3 : 0];
  for (int64_t x = 0; x < length; ++x) {
    const A pixel[4] = {load<A>(r0[x]), count > 1 ? load<A>(r1[x]) : A(0), count > 2 ? load<A>(r2[x]) : A(0),
                        count > 3 ? load<A>(r3[x]) : A(0)};
    A sum[orders];
    for (int n = 0; n < orders; ++n) {
      sum[n] = weight[n][0] * pixel[0];
      for (int r = 1; r < count; ++r) sum[n] += weight[n][r] * pixel[r];
    }
    o0[x] = add ? o0[x] + sum[0] : sum[0];
    if constexpr (orders > 1) o1[x] = add ? o1[x] + sum[1] : sum[1];
    if constexpr (orders > 2) o2[x] = add ? o2[x] + sum[2] : sum[2];
  }
}

template <bool add, int orders, int count, class T, class A>
DIFFCROP_INLINE void combine(A* const (&out)[kOrders], const T* const (&rows)[count], const A (&weight)[orders][count],
                             int64_t length) {
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>)
    combine_lanes<add, orders, count>(out, rows, weight, length);
  else
#endif
    combine_each<add, orders, count>(out, rows, weight, length);
}

// Source rows by number: `stride` apart, or the slots of a ring.
template <class T>
struct Rows {
  const T* base;
  int64_t stride, ring;
  const T* at(int64_t k) const { return base + (ring > 0 ? k % ring : k) * stride; }
};

// The taps t, ..., t + count - 1 of output i.
template <bool add, int orders, int count, class T, class A>
DIFFCROP_INLINE void sum_taps(A* const (&out)[kOrders], const Rows<T> source, const Band<A>& band, int64_t i, int64_t t,
                              const A* const (&weights)[orders], int64_t length) {
  const T* rows[count];
  A weight[orders][count];
  for (int r = 0; r < count; ++r) {
    rows[r] = source.at(band.pixel(i, t + r));
    for (int n = 0; n < orders; ++n) weight[n][r] = weights[n][band.offset[i] + t + r];
  }
  combine<add, orders, count>(out, rows, weight, length);
}

template <bool add, int orders, int most, class T, class A>
DIFFCROP_INLINE void sum_some(int64_t count, A* const (&out)[kOrders], const Rows<T> source, const Band<A>& band,
                              int64_t i, int64_t t, const A* const (&weights)[orders], int64_t length) {
  if (count >= most)
    sum_taps<add, orders, most>(out, source, band, i, t, weights, length);
  else if constexpr (most > 1)
    sum_some<add, orders, most - 1>(count, out, source, band, i, t, weights, length);
}

// Rows that are added up in one pass: as many as leave their weights in registers.
constexpr int kAtOnce = DIFFCROP_LOOKUPS ? 8 : 4;

// out[n] (+)= sum_t weights[n][t] (row of tap t) for output i.
template <bool add, int orders, class T, class A>
DIFFCROP_INLINE void sum_rows(A* const (&out)[kOrders], const Rows<T> source, const Band<A>& band, int64_t i,
                              const A* const (&weights)[orders], int64_t length) {
  constexpr int most = std::is_same_v<A, float> ? kAtOnce : 4;
  const int64_t count = band.count[i];
  if (count > 0)
    sum_some<add, orders, most>(count, out, source, band, i, 0, weights, length);
  else if (!add)
    for (int n = 0; n < orders; ++n) std::fill_n(out[n], length, A(0));
  for (int64_t t = most; t < count; t += most)
    sum_some<true, orders, most>(count - t, out, source, band, i, t, weights, length);
}

// --- along the row ---------------------------------------------------------------------------------------------------

// One output after the other.
template <bool add, class A>
void gather_each(A* __restrict out, const A* __restrict row, const Operator<A>& op, Order order) {
  const Band<A>& band = *op.band;
  const int64_t m = op.m;
  for (int64_t j = 0; j < band.outputs; ++j) {
    const A* const weight = op.weights[order] + band.offset[j];
    const int64_t count = band.count[j];
    if (m == 1) {
      A sum = 0;
      if (band.place.empty()) {
        const A* const from = row + (band.start[j] - band.first);
        if (count > 0) sum = weight[0] * from[0];
        for (int64_t t = 1; t < count; ++t) sum += weight[t] * from[t];
      } else {
        const int32_t* const place = band.place.data() + band.offset[j];
        for (int64_t t = 0; t < count; ++t) sum += weight[t] * row[place[t] - band.first];
      }
      out[j] = add ? out[j] + sum : sum;
    } else {
      A* const to = out + j * m;
      if (!add) {
        const A* const pixel = row + (count > 0 ? band.pixel(j, 0) - band.first : 0) * m;
        for (int64_t x = 0; x < m; ++x) to[x] = count > 0 ? weight[0] * pixel[x] : A(0);
      }
      for (int64_t t = add ? 0 : 1; t < count; ++t) {
        const A* const pixel = row + (band.pixel(j, t) - band.first) * m;
        for (int64_t x = 0; x < m; ++x) to[x] += weight[t] * pixel[x];
      }
    }
  }
}

// outs[r] (+)= the matrix with the weights of an order, times rows[r], for up to kBatch rows. They hold the pixels from
// band.first on and may be read kOverread numbers beyond their end.
template <bool add, class A>
void gather(int64_t count, A* const* outs, const A* const* rows, const Operator<A>& op, Order order) {
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>) {
    if (!op.lanes.blocks.empty()) {
      if (count == kBatch) return gather_lanes<add, kBatch>(outs, rows, op, order);
      for (int64_t r = 0; r < count; ++r) gather_lanes<add, 1>(outs + r, rows + r, op, order);
      return;
    }
  }
#endif
  for (int64_t r = 0; r < count; ++r) gather_each<add>(outs[r], rows[r], op, order);
}

// totals[n][j] += sum_r g[r][j] (D_n rows[r])[j], D_0 and D_1 the derivatives of the matrix by position and by width
// (`orders` of them), for up to kBatch rows; `line` is as long as a row of outputs.
template <class A>
void add_products(int orders, int64_t count, A* const (&totals)[2], const A* const* g, const A* const* rows,
                  const Operator<A>& op, A* line) {
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>) {
    if (!op.lanes.blocks.empty()) {
      if (count == kBatch)
        return orders > 1 ? add_products_lanes<2, kBatch>(totals, g, rows, op)
                          : add_products_lanes<1, kBatch>(totals, g, rows, op);
      for (int64_t r = 0; r < count; ++r)
        orders > 1 ? add_products_lanes<2, 1>(totals, g + r, rows + r, op)
                   : add_products_lanes<1, 1>(totals, g + r, rows + r, op);
      return;
    }
  }
#endif
  const int64_t width = op.band->outputs * op.m;
  for (int64_t r = 0; r < count; ++r)
    for (int n = 0; n < orders; ++n) {
      gather_each<false>(line, rows[r], op, static_cast<Order>(kByCenter + n));
      for (int64_t x = 0; x < width; ++x) totals[n][x] += g[r][x] * line[x];
    }
}

// --- sums and conversions --------------------------------------------------------------------------------------------

// Adds (1 - fraction) <a, b> to `lo` and fraction <a, b> to `hi`, lane by lane. In a fixed number of partial sums,
// whatever the vector width; rows are added up in double precision.
template <class A>
DIFFCROP_INLINE void add_dot(DotLanes& total, double fraction, const A* a, const A* b, int64_t length) {
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>) return add_dot_lanes(total, fraction, a, b, length);
#endif
  A sum[2 * kLanes] = {};
  int64_t x = 0;
  for (; x + 2 * kLanes <= length; x += 2 * kLanes)
    for (int i = 0; i < 2 * kLanes; ++i) sum[i] += a[x + i] * b[x + i];
  for (int i = 0; x < length; ++x, ++i) sum[i] += a[x] * b[x];
  for (int i = 0; i < kLanes; ++i) {
    const double both = sum[i] + sum[i + kLanes];
    total.lo[i] += (1 - fraction) * both;
    total.hi[i] += fraction * both;
  }
}

// A row of a view as numbers of the sum's type, m channels side by side.
template <class A, class T>
void read_row(A* __restrict out, const T* __restrict row, int64_t columns, int64_t column, int64_t m, int64_t channel) {
  if ((m == 1 && column == 1) || (channel == 1 && column == m)) {
    for (int64_t x = 0; x < columns * m; ++x) out[x] = load<A>(row[x]);
  } else {
    for (int64_t x = 0; x < columns; ++x)
      for (int64_t c = 0; c < m; ++c) out[x * m + c] = load<A>(row[x * column + c * channel]);
  }
}

template <class A, class T>
void write_row(T* __restrict out, const A* __restrict row, int64_t columns, int64_t column, int64_t m,
               int64_t channel) {
  if ((m == 1 && column == 1) || (channel == 1 && column == m)) {
    for (int64_t x = 0; x < columns * m; ++x) out[x] = store<T>(row[x]);
  } else {
    for (int64_t x = 0; x < columns; ++x)
      for (int64_t c = 0; c < m; ++c) out[x * column + c * channel] = store<T>(row[x * m + c]);
  }
}

}  // namespace diffcrop::DIFFCROP_LEVEL
