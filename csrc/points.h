// Crops where every output reads at most two pixels of each axis (bilinear without widening): value and slopes from
// those four pixels, with no rows in between. Compiled once for every instruction set, as passes.h is.
//
//   v_n[k] = wy_n[0] p_0[k] + wy_n[1] p_1[k]       p_0, p_1 two source rows; n = 0 the weights of y, n = 1 their
//   derivatives value = wx[0] v_0[k] + wx[1] v_0[k + 1]        k the first pixel of the output slope by x = wx'[0]
//   v_0[k] + wx'[1] v_0[k + 1] slope by y = wx[0] v_1[k] + wx[1] v_1[k + 1]

namespace diffcrop::DIFFCROP_LEVEL {

// The two source rows of an output, with the weights of `orders` sums of them, and what is taken off these sums.
template <int orders, class T, class A>
struct RowPair {
  const T* row[2];
  A weight[2][orders], shift[orders];
};

// The pairs of rows of one source. Where an output reads fewer than two, zeros stand for them: a weight of 0 alone
// would make NaN of infinities that it does not read.
template <class T, class A>
class RowPairs {
 public:
  // Rows are read from pixel `left` on, for `length` numbers.
  RowPairs(const Band<A>& y, const View<const T>& source, int64_t left, int64_t length, Scratch<A>& scratch)
      : y_(y), source_(source), left_(left * source.column) {
    A* const zeros = scratch.take(length);
    std::fill_n(zeros, length, A(0));
    zeros_ = reinterpret_cast<const T*>(zeros);
  }

  // The pair of an output, with `weights` and `shares` of the orders in turn; `fill` is taken off every pixel of the
  // source. Written in place: a copy would be read in larger pieces than it was written in, for which the processor
  // waits.
  template <int orders>
  void put(RowPair<orders, T, A>& pair, const Row& row, const A* const (&weights)[orders], A fill = 0,
           const A* const (&shares)[orders] = {}) const {
    const int64_t count = y_.count[row.i], offset = y_.offset[row.i];
    for (int t = 0; t < 2; ++t) {
      pair.row[t] = t < count ? source_.at(row.c, y_.start[row.i] + t) + left_ : zeros_;
      // Of an absent second row a negative zero, which leaves every sum as it is.
      for (int n = 0; n < orders; ++n) pair.weight[t][n] = t < count ? weights[n][offset + t] : t > 0 ? A(-0.0) : A(0);
    }
    for (int n = 0; n < orders; ++n) pair.shift[n] = fill == 0 ? A(0) : fill * shares[n][row.i];
  }

 private:
  const Band<A>& y_;
  const View<const T> source_;
  int64_t left_;
  const T* zeros_;
};

#if DIFFCROP_LOOKUPS
}  // namespace diffcrop::DIFFCROP_LEVEL
#include "vectors_points.h"
namespace diffcrop::DIFFCROP_LEVEL {
#endif

// v_n of number k of the source rows.
template <int orders, class T, class A>
DIFFCROP_INLINE A sum_pair(const RowPair<orders, T, A>& rows, int n, int64_t k) {
  return rows.weight[0][n] * load<A>(rows.row[0][k]) + rows.weight[1][n] * load<A>(rows.row[1][k]) - rows.shift[n];
}

// One output after the other.
template <bool add, class T, class A>
void put_points_each(A* __restrict out, const RowPair<1, T, A> rows, const Operator<A>& op) {
  const Band<A>& band = *op.band;
  const int64_t m = op.m;
  for (int64_t j = 0; j < band.outputs; ++j) {
    const A* const weight = op.weights[kValue] + band.offset[j];
    const int64_t count = band.count[j], from = (band.start[j] - band.first) * m;
    const A first = count > 0 ? weight[0] : A(0), second = count > 1 ? weight[1] : A(0);
    for (int64_t c = 0, k = from, x = j * m; c < m; ++c, ++k, ++x) {
      A sum = count > 0 ? first * sum_pair(rows, 0, k) : A(0);
      if (count > 1) sum += second * sum_pair(rows, 0, k + m);
      out[x] = add ? out[x] + sum : sum;
    }
  }
}

// outs[r] (+)= the row of the crop between rows[r], for up to kBatch rows.
template <bool add, class T, class A>
void put_points(int64_t count, A* const* outs, const RowPair<1, T, A> (&rows)[kBatch], const Operator<A>& op) {
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>) {
    if (!op.lanes.blocks.empty()) {
      if (count == kBatch) return put_points_lanes<add>(outs, rows, op);
      for (int64_t r = 0; r < count; ++r) put_points_lanes<add>(outs + r, {rows[r]}, op);
      return;
    }
  }
#endif
  for (int64_t r = 0; r < count; ++r) put_points_each<add>(outs[r], rows[r], op);
}

// The slopes of a row: by x times g is added to the totals of its column, by y is left in `line`.
template <class T, class A>
void slopes_each(A* __restrict totals, A* __restrict line, const A* __restrict g, const RowPair<2, T, A> rows,
                 const Operator<A>& op) {
  const Band<A>& band = *op.band;
  const int64_t m = op.m;
  for (int64_t j = 0; j < band.outputs; ++j) {
    const A *const weight = op.weights[kValue] + band.offset[j], *const slope = op.weights[kByCenter] + band.offset[j];
    const int64_t count = band.count[j];
    if (count == 0) std::fill_n(line + j * m, m, A(0));
    for (int64_t t = 0; t < count; ++t) {
      const A w = weight[t], s = slope[t];
      for (int64_t c = 0, k = (band.start[j] - band.first + t) * m, x = j * m; c < m; ++c, ++k, ++x) {
        totals[x] += g[x] * (s * sum_pair(rows, kValue, k));
        const A part = w * sum_pair(rows, kByCenter, k);
        line[x] = t > 0 ? line[x] + part : part;
      }
    }
  }
}

// <g[r], slope of the crop's row between rows[r]> for up to kBatch rows: by x added to `totals` for each column, by y
// to `dots` (see add_dot). `line` is as long as a row of outputs.
template <class T, class A>
void add_points(int64_t count, DotLanes& dots, A* totals, const A* const (&g)[kBatch],
                const RowPair<2, T, A> (&rows)[kBatch], const double (&fraction)[kBatch], const Operator<A>& op,
                bool shifted, A* line) {
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>) {
    if (!op.lanes.blocks.empty()) {
      if (count == kBatch) return add_points_lanes(dots, totals, g, rows, fraction, op, shifted);
      for (int64_t r = 0; r < count; ++r)
        add_points_lanes<1>(dots, totals, {g[r]}, {rows[r]}, {fraction[r]}, op, shifted);
      return;
    }
  }
#endif
  for (int64_t r = 0; r < count; ++r) {
    slopes_each(totals, line, g[r], rows[r], op);
    add_dot(dots, fraction[r], g[r], line, op.band->outputs * op.m);
  }
}

}  // namespace diffcrop::DIFFCROP_LEVEL
