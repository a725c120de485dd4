// Crops where every output reads at most two pixels of each axis (bilinear without widening): value and slopes from
// those four pixels, with no rows in between. Compiled once for every instruction set, as passes.h is.
//
//   v_n[k]     = wy_n[0] p_0[k] + wy_n[1] p_1[k]
//   value      = wx[0] v_0[k] + wx[1] v_0[k + 1]
//   slope by x = wx'[0] v_0[k] + wx'[1] v_0[k + 1]
//   slope by y = wx[0] v_1[k] + wx[1] v_1[k + 1]
//
// with p_0 and p_1 the two source rows, wy_0 the weights of y and wy_1 their derivatives, k the first pixel of the
// output.

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
    std::memset(zeros, 0, length * sizeof(A));
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

// The value of output j, or with the derivatives of the weights a slope: the numbers of all channels in turn.
template <bool add, int orders, class T, class A>
DIFFCROP_INLINE void put_output(A* __restrict out, const RowPair<orders, T, A>& rows, int n, const Operator<A>& op,
                                Order order, int64_t j) {
  const Band<A>& band = *op.band;
  const int64_t m = op.m, count = band.count[j], from = (band.start[j] - band.first) * m;
  const A* const weight = op.weights[order] + band.offset[j];
  const A first = count > 0 ? weight[0] : A(0), second = count > 1 ? weight[1] : A(0);
  for (int64_t c = 0; c < m; ++c) {
    A sum = count > 0 ? first * sum_pair(rows, n, from + c) : A(0);
    if (count > 1) sum += second * sum_pair(rows, n, from + c + m);
    out[j * m + c] = add ? out[j * m + c] + sum : sum;
  }
}

#if DIFFCROP_VECTORS
// Groups of outputs that all read two pixels, in vectors that compilers make of what the processor has: the pixels of
// half a group, in pairs as their weights are, are one vector.
template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(DIFFCROP_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(DIFFCROP_VECTOR_BYTES)));
};
template <class A>
using Vector = typename VectorOf<A>::type;
template <class A>
constexpr int64_t kGroup = DIFFCROP_VECTOR_BYTES / sizeof(A);

template <class A>
bool is_group(const Band<A>& band, int64_t j) {
  return j + kGroup<A> <= band.outputs && band.offset[j + kGroup<A>] - band.offset[j] == 2 * kGroup<A>;
}

template <class A>
DIFFCROP_INLINE Vector<A> load_vector(const A* from) {
  Vector<A> result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}

template <class A>
DIFFCROP_INLINE void store_vector(A* to, const Vector<A>& vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

#if DIFFCROP_VECTOR_BYTES == 32
// The pairs of pixels of half a group: of a row that begins with pixel `first`, start[0] and the next, start[1] and ...
DIFFCROP_INLINE void load_half(Vector<float>& half, const float* row, const int32_t* start, int64_t first) {
  double pair[4];  // two floats each, never looked at as a number
  for (int i = 0; i < 4; ++i) std::memcpy(&pair[i], row + (start[i] - first), sizeof(double));
  const Vector<double> pairs = {pair[0], pair[1], pair[2], pair[3]};
  std::memcpy(&half, &pairs, sizeof(half));
}
DIFFCROP_INLINE void load_half(Vector<double>& half, const double* row, const int32_t* start, int64_t first) {
  const double *const a = row + (start[0] - first), *const b = row + (start[1] - first);
  half = Vector<double>{a[0], a[1], b[0], b[1]};
}

// The sums of all pairs.
DIFFCROP_INLINE void add_pairs(Vector<float>& sum, const Vector<float>& a, const Vector<float>& b) {
  sum = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
        __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}
DIFFCROP_INLINE void add_pairs(Vector<double>& sum, const Vector<double>& a, const Vector<double>& b) {
  sum = __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
}
#else
DIFFCROP_INLINE void load_half(Vector<float>& half, const float* row, const int32_t* start, int64_t first) {
  double pair[2];
  for (int i = 0; i < 2; ++i) std::memcpy(&pair[i], row + (start[i] - first), sizeof(double));
  const Vector<double> pairs = {pair[0], pair[1]};
  std::memcpy(&half, &pairs, sizeof(half));
}
DIFFCROP_INLINE void load_half(Vector<double>& half, const double* row, const int32_t* start, int64_t first) {
  half = load_vector(row + (start[0] - first));
}

DIFFCROP_INLINE void add_pairs(Vector<float>& sum, const Vector<float>& a, const Vector<float>& b) {
  sum = __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
}
DIFFCROP_INLINE void add_pairs(Vector<double>& sum, const Vector<double>& a, const Vector<double>& b) {
  sum = __builtin_shufflevector(a, b, 0, 2) + __builtin_shufflevector(a, b, 1, 3);
}
#endif

// The pixels of a group in both source rows.
template <class A>
struct Group {
  Vector<A> row[2][2];
};

template <int orders, class A>
DIFFCROP_INLINE void load_group(Group<A>& group, const RowPair<orders, A, A>& rows, const Band<A>& band, int64_t j) {
  const int32_t* const start = band.start.data() + j;
  for (int t = 0; t < 2; ++t)
    for (int half = 0; half < 2; ++half)
      load_half(group.row[t][half], rows.row[t], start + half * kGroup<A> / 2, band.first);
}

// result = the outputs of a group, with v_n and the weights of an order.
template <int orders, class A>
DIFFCROP_INLINE void weigh_group(Vector<A>& result, const Group<A>& group, const RowPair<orders, A, A>& rows, int n,
                                 const A* weight) {
  Vector<A> half[2];
  for (int i = 0; i < 2; ++i)
    half[i] = (rows.weight[0][n] * group.row[0][i] + rows.weight[1][n] * group.row[1][i] - rows.shift[n]) *
              load_vector(weight + i * kGroup<A>);
  add_pairs(result, half[0], half[1]);
}
#endif

template <bool add, class T, class A>
void put_points_each(A* __restrict out, const RowPair<1, T, A> rows, const Operator<A>& op) {
  const Band<A>& band = *op.band;
  for (int64_t j = 0; j < band.outputs;) {
#if DIFFCROP_VECTORS
    if constexpr (std::is_same_v<T, A>) {
      if (op.m == 1 && is_group(band, j)) {
        Group<A> group;
        Vector<A> sum;
        load_group(group, rows, band, j);
        weigh_group(sum, group, rows, 0, op.weights[kValue] + band.offset[j]);
        store_vector(out + j, add ? load_vector(out + j) + sum : sum);
        j += kGroup<A>;
        continue;
      }
    }
#endif
    put_output<add>(out, rows, 0, op, kValue, j++);
  }
}

// outs[r] (+)= the row of the crop between rows[r], for up to kBatch rows.
template <bool add, class T, class A>
void put_points(int64_t count, A* const* outs, const RowPair<1, T, A> (&rows)[kBatch], const Operator<A>& op) {
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>) {
    if (op.lanes.points) {
      if (count == kBatch) return put_points_lanes<add>(outs, rows, op);
      for (int64_t r = 0; r < count; ++r) put_points_lanes<add>(outs + r, {rows[r]}, op);
      return;
    }
  }
#endif
  for (int64_t r = 0; r < count; ++r) put_points_each<add>(outs[r], rows[r], op);
}

// The slopes of a row, by x in `by_x` and by y in `by_y`.
template <class T, class A>
void put_slopes_each(A* __restrict by_x, A* __restrict by_y, const RowPair<2, T, A> rows, const Operator<A>& op) {
  const Band<A>& band = *op.band;
  for (int64_t j = 0; j < band.outputs;) {
#if DIFFCROP_VECTORS
    if constexpr (std::is_same_v<T, A>) {
      if (op.m == 1 && is_group(band, j)) {
        Group<A> group;
        Vector<A> x, y;
        load_group(group, rows, band, j);
        weigh_group(x, group, rows, kValue, op.weights[kByCenter] + band.offset[j]);
        weigh_group(y, group, rows, kByCenter, op.weights[kValue] + band.offset[j]);
        store_vector(by_x + j, x), store_vector(by_y + j, y);
        j += kGroup<A>;
        continue;
      }
    }
#endif
    put_output<false>(by_x, rows, kValue, op, kByCenter, j);
    put_output<false>(by_y, rows, kByCenter, op, kValue, j++);
  }
}

// <g[r], slope of the crop's row between rows[r]> for up to kBatch rows: by x added to `totals` for each column, by y
// to `dots` (see add_dot). `lines` are two as long as a row of outputs.
template <class T, class A>
void add_points(int64_t count, DotLanes& dots, A* totals, const A* const (&g)[kBatch],
                const RowPair<2, T, A> (&rows)[kBatch], const double (&fraction)[kBatch], const Operator<A>& op,
                [[maybe_unused]] bool shifted, A* const (&lines)[2]) {
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>) {
    if (op.lanes.points) {
      if (count == kBatch) return add_points_lanes(dots, totals, g, rows, fraction, op, shifted);
      for (int64_t r = 0; r < count; ++r)
        add_points_lanes<1>(dots, totals, {g[r]}, {rows[r]}, {fraction[r]}, op, shifted);
      return;
    }
  }
#endif
  for (int64_t r = 0; r < count; ++r) {
    const int64_t width = op.band->outputs * op.m;
    put_slopes_each(lines[0], lines[1], rows[r], op);
    for (int64_t x = 0; x < width; ++x) totals[x] += g[r][x] * lines[0][x];
    add_dot(dots, fraction[r], g[r], lines[1], width);
  }
}

}  // namespace diffcrop::DIFFCROP_LEVEL
