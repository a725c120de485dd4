// The operations on one box of a volume, made of the passes over rows and of the product of images. Compiled once for
// every instruction set, as passes.h is.
//
//   crop       crop[j] = sum_k W_z[j, k] (W_y volume[k] W_x^T)
//   by volume  the same with the transposed matrices
//   by box     v = sums of rows over planes and rows, v_y and v_z those with the derivatives of one of the axes:
//              <g W_x, v_y> and <g W_x, v_z>, and <g, v W_x'^T>

namespace diffcrop::DIFFCROP_LEVEL {

// Rows that are added up in one pass.
template <class A>
constexpr int kRowsAtOnce = std::is_same_v<A, float> ? kAtOnce : 4;

template <bool add, int orders, int most, class T, class A>
DIFFCROP_INLINE void combine_some(int64_t count, A* const (&out)[kOrders], const T* const* from,
                                  const A (*weights)[kAtOnce], int64_t length) {
  if (count >= most) {
    const T* rows[most];
    A weight[orders][most];
    for (int r = 0; r < most; ++r) {
      rows[r] = from[r];
      for (int n = 0; n < orders; ++n) weight[n][r] = weights[n][r];
    }
    combine<add, orders, most>(out, rows, weight, length);
  } else if constexpr (most > 1) {
    combine_some<add, orders, most - 1>(count, out, from, weights, length);
  }
}

// Sums of rows with weights of `orders` kinds, which are handed over one by one: out[n] (+)= sum_r weight[n][r] row[r].
template <int orders, class T, class A>
class RowSum {
 public:
  RowSum(A* const (&out)[kOrders], int64_t length, bool add) : length_(length), add_(add) {
    for (int n = 0; n < orders; ++n) out_[n] = out[n];
  }
  // The weights of the next row.
  A* weights(int n) { return &weight_[n][count_]; }
  void put(const T* row) {
    rows_[count_++] = row;
    if (count_ == kRowsAtOnce<A>) flush();
  }
  void finish() {
    if (count_ > 0) flush();
    if (!add_)
      for (int n = 0; n < orders; ++n) std::fill_n(out_[n], length_, A(0));
    add_ = true;
  }
  void flush() {
    if (add_)
      combine_some<true, orders, kRowsAtOnce<A>>(count_, out_, rows_, weight_, length_);
    else
      combine_some<false, orders, kRowsAtOnce<A>>(count_, out_, rows_, weight_, length_);
    count_ = 0, add_ = true;
  }

 private:
  A* out_[kOrders] = {};
  const T* rows_[kAtOnce];
  A weight_[orders][kAtOnce];
  int64_t length_, count_ = 0;
  bool add_;
};

// The pixels that a box reads of one channel of a volume, or of all that are side by side: sums over its planes.
template <class T, class A>
class PlaneSums {
 public:
  PlaneSums(const Band<A>& z, const Band<A>& y, const Operator<A>& x, const Solid<const T>& source, int64_t c,
            Scratch<A>& scratch)
      : z_(z),
        y_(y),
        source_(source),
        m_(x.m),
        columns_((x.band->last - x.band->first) * x.m),
        first_(source.data + c * source.channel + x.band->first * source.column),
        dense_(is_dense(source.planes(c), x.m)),
        line_(dense_ ? nullptr : scratch.take(columns_)) {}

  int64_t columns() const { return columns_; }

  // Rows [first, last) of the planes that output plane j reads, added up: out[n] begins with row `first`.
  template <int orders>
  void planes(A* const (&out)[kOrders], const A* const (&weights)[orders], int64_t j, int64_t first,
              int64_t last) const {
    // Rows without gaps between them are one.
    const bool whole = dense_ && source_.row == columns_;
    const int64_t step = whole ? last - first : 1, length = step * columns_;
    for (int64_t k = first; k < last; k += step) {
      A* rows[kOrders] = {};
      for (int n = 0; n < orders; ++n) rows[n] = out[n] + (k - first) * columns_;
      rows_of<orders>(rows, weights, j, k, length);
    }
  }

  // Every row that output row (j, i) reads: weights by the number of the plane's tap and of the row's.
  template <int orders, class Weights>
  void row(A* const (&out)[kOrders], int64_t j, int64_t i, const Weights& weights) const {
    RowSum<orders, T, A> sum(out, columns_, false);
    RowSum<orders, A, A> lines(out, columns_, false);
    for (int64_t s = 0; s < z_.count[j]; ++s)
      for (int64_t t = 0; t < y_.count[i]; ++t) {
        const T* const from = first_ + z_.pixel(j, s) * source_.plane + y_.pixel(i, t) * source_.row;
        const int64_t at_z = z_.offset[j] + s, at_y = y_.offset[i] + t;
        if (dense_) {
          for (int n = 0; n < orders; ++n) *sum.weights(n) = weights(n, at_z, at_y);
          sum.put(from);
        } else {
          for (int n = 0; n < orders; ++n) *lines.weights(n) = weights(n, at_z, at_y);
          add_line<orders>(lines, from);
        }
      }
    dense_ ? sum.finish() : lines.finish();
  }

 private:
  template <int orders>
  void rows_of(A* const (&out)[kOrders], const A* const (&weights)[orders], int64_t j, int64_t k,
               int64_t length) const {
    RowSum<orders, T, A> sum(out, length, false);
    RowSum<orders, A, A> lines(out, length, false);
    for (int64_t t = 0; t < z_.count[j]; ++t) {
      const T* const from = first_ + z_.pixel(j, t) * source_.plane + k * source_.row;
      if (dense_) {
        for (int n = 0; n < orders; ++n) *sum.weights(n) = weights[n][z_.offset[j] + t];
        sum.put(from);
      } else {
        for (int n = 0; n < orders; ++n) *lines.weights(n) = weights[n][z_.offset[j] + t];
        add_line<orders>(lines, from);
      }
    }
    dense_ ? sum.finish() : lines.finish();
  }

  // A row of which the pixels are not next to each other.
  template <int orders>
  void add_line(RowSum<orders, A, A>& sum, const T* from) const {
    read_row(line_, from, columns_ / m_, source_.column, m_, source_.channel);
    sum.put(line_);
    sum.flush();
  }

  const Band<A>& z_;
  const Band<A>& y_;
  const Solid<const T> source_;
  const int64_t m_, columns_;
  const T* const first_;
  const bool dense_;
  A* const line_;
};

// Source rows [first, last) that output rows [i, i_end) read.
template <class A>
std::pair<int64_t, int64_t> rows_read(const Band<A>& y, int64_t i, int64_t i_end) {
  if (!y.place.empty()) return {y.first, y.last};
  int64_t first = y.pixels, last = 0;
  for (; i < i_end; ++i)
    if (y.count[i] > 0)
      first = std::min<int64_t>(first, y.start[i]), last = std::max<int64_t>(last, y.start[i] + y.count[i]);
  return {std::min(first, last), last};
}

// The end of the rows from i on, up to i_end, of which a sum of planes is kept at once; i where a single one is too
// much.
template <class A>
int64_t rows_at_once(const Band<A>& y, int64_t i, int64_t i_end, int64_t columns) {
  const auto fits = [&](int64_t end) DIFFCROP_ALWAYS {
    const auto [first, last] = rows_read(y, i, end);
    return (last - first) * columns <= kMostKeptSums;
  };
  if (fits(i_end)) return i_end;
  int64_t end = i;
  while (end < i_end && fits(end + 1)) ++end;
  return end;
}

// Where the rows of a brick are put.
template <class A>
struct Shelf {
  A* data;
  int64_t plane, row;
  A* at(int64_t j, int64_t i) const { return data + j * plane + i * row; }
};

// Puts or adds to the shelf's (j - brick.j, i - brick.i) the rows of a brick of W_z W_y source W_x^T.
template <class T, class A>
class VolumeProduct {
 public:
  VolumeProduct(const Band<A>& z, const Band<A>& y, const Operator<A>& x, const VolumeOrder& order,
                const Solid<const T>& source, const Brick& brick, const Shelf<A>& shelf, Scratch<A>& scratch)
      : z_(z), y_(y), x_(x), order_(order), source_(source), brick_(brick), shelf_(shelf), scratch_(scratch) {}

  template <bool add>
  void make() {
    if (order_.way == Way::cropped) return cropped<add>();
    const PlaneSums<T, A> sums(z_, y_, x_, source_, brick_.c, scratch_);
    for (int64_t i = brick_.i, end = i; i < brick_.i_end; i = end) {
      end = order_.way == Way::direct ? i : rows_at_once(y_, i, brick_.i_end, sums.columns());
      if (end > i) {
        summed<add>(sums, i, end);
      } else {
        end = order_.way == Way::direct ? brick_.i_end : i + 1;
        direct<add>(sums, i, end);
      }
    }
  }

 private:
  A* place(int64_t j, int64_t i) const { return shelf_.at(j - brick_.j, i - brick_.i); }

  // Calls f(count, rows) for batches of the output rows in [i, end) of plane j, but for those that nothing is added to.
  template <bool add, class F>
  void batches(int64_t j, int64_t i, int64_t end, const F& f) const {
    while (i < end) {
      Row rows[kBatch];
      int64_t count = 0;
      for (; count < kBatch && i < end; ++i)
        if (!add || y_.count[i] > 0) rows[count++] = {j, i};
      if (count > 0) f(count, rows);
    }
  }

  template <bool add>
  void direct(const PlaneSums<T, A>& sums, int64_t i, int64_t end) {
    const auto mark = scratch_.mark();
    A* lines[kBatch];
    for (A*& line : lines) line = scratch_.take(sums.columns() + kOverread);
    const auto weights = [&](int, int64_t s, int64_t t) DIFFCROP_ALWAYS { return z_.weight[s] * y_.weight[t]; };
    for (int64_t j = brick_.j; j < brick_.j_end; ++j) {
      if (add && z_.count[j] == 0) continue;
      batches<add>(j, i, end, [&](int64_t count, const Row* rows) DIFFCROP_ALWAYS {
        A* outs[kBatch];
        for (int64_t r = 0; r < count; ++r) {
          A* const out[kOrders] = {lines[r]};
          sums.template row<1>(out, j, rows[r].i, weights);
          outs[r] = place(j, rows[r].i);
        }
        gather<add>(count, outs, lines, x_, kValue);
      });
    }
    scratch_.release(mark);
  }

  template <bool add>
  void summed(const PlaneSums<T, A>& sums, int64_t i, int64_t end) {
    const auto mark = scratch_.mark();
    const auto [first, last] = rows_read(y_, i, end);
    const int64_t columns = sums.columns(), left = x_.band->first * x_.m;
    A* const plane = scratch_.take((last - first) * columns + kOverread);
    // Every output plane is another item of the same place.
    const View<const A> view{plane - first * columns - left, 1, columns, x_.m, -1};
    Product<A, A> product(y_, x_, order_.summed, view, i, end, false, scratch_);
    const A* const weights[] = {z_.weight.data()};
    for (int64_t j = brick_.j; j < brick_.j_end; ++j) {
      if (add && z_.count[j] == 0) continue;
      A* const out[kOrders] = {plane};
      sums.template planes<1>(out, weights, j, first, last);
      batches<add>(j, i, end, [&](int64_t count, const Row* rows) DIFFCROP_ALWAYS {
        A* outs[kBatch];
        for (int64_t r = 0; r < count; ++r) outs[r] = place(j, rows[r].i);
        product.template rows<add>(count, rows, outs);
      });
    }
    scratch_.release(mark);
  }

  template <bool add>
  void cropped() {
    const auto mark = scratch_.mark();
    const int64_t rows = brick_.i_end - brick_.i, width = x_.band->outputs * x_.m;
    const int64_t slots = std::max<int64_t>(z_.most, 1);
    A* const ring = scratch_.take(slots * rows * width);
    std::vector<int64_t> kept(slots, -1);
    Product<T, A> product(y_, x_, order_.plane, source_.planes(brick_.c), brick_.i, brick_.i_end, false, scratch_);
    const bool whole = shelf_.row == width;
    const int64_t step = whole ? rows : 1;
    for (int64_t j = brick_.j; j < brick_.j_end; ++j) {
      if (add && z_.count[j] == 0) continue;
      for (int64_t k = z_.start[j], stop = k + z_.count[j]; k < stop; ++k) {
        A* const slot = ring + k % slots * rows * width;
        if (kept[k % slots] == k) continue;
        kept[k % slots] = k;
        batches<false>(k, brick_.i, brick_.i_end, [&](int64_t count, const Row* some) DIFFCROP_ALWAYS {
          A* outs[kBatch];
          for (int64_t r = 0; r < count; ++r) outs[r] = slot + (some[r].i - brick_.i) * width;
          product.template rows<false>(count, some, outs);
        });
      }
      for (int64_t i = 0; i < rows; i += step) {
        A* const out[kOrders] = {shelf_.at(j - brick_.j, i)};
        RowSum<1, A, A> sum(out, step * width, add);
        for (int64_t t = 0; t < z_.count[j]; ++t) {
          *sum.weights(0) = z_.weight[z_.offset[j] + t];
          sum.put(ring + ((z_.start[j] + t) % slots * rows + i) * width);
        }
        sum.finish();
      }
    }
    scratch_.release(mark);
  }

  const Band<A>& z_;
  const Band<A>& y_;
  const Operator<A>& x_;
  const VolumeOrder& order_;
  const Solid<const T> source_;
  const Brick brick_;
  const Shelf<A> shelf_;
  Scratch<A>& scratch_;
};

// A brick of the crop: see crop_rows.
template <class T, class O, class A>
void volume_crop(const VolumePlan<A>& box, const Solid<const T>& volume, const Solid<O>& out, const Brick& brick,
                 const A* fill, Scratch<A>& scratch) {
  scratch.clear();
  const int64_t m = box.across.m, width = box.x.outputs, rows = brick.i_end - brick.i;
  const auto make = [&](const Shelf<A>& shelf) DIFFCROP_ALWAYS {
    VolumeProduct<T, A>(box.z, box.y, box.across, box.volume_order, volume, brick, shelf, scratch)
        .template make<false>();
  };
  if constexpr (std::is_same_v<O, A>) {
    if (fill == nullptr && is_dense(out.planes(brick.c), m))
      return make({out.at(brick.c, brick.j, brick.i), out.plane, out.row});
  }
  const Shelf<A> shelf{scratch.take((brick.j_end - brick.j) * rows * width * m), rows * width * m, width * m};
  make(shelf);
  for (int64_t j = brick.j; j < brick.j_end; ++j)
    for (int64_t i = brick.i; i < brick.i_end; ++i) {
      A* const line = shelf.at(j - brick.j, i - brick.i);
      if (fill != nullptr) {
        const A share = box.z.share[kValue][j] * box.y.share[kValue][i];
        for (int64_t k = 0; k < width; ++k)
          for (int64_t ch = 0; ch < m; ++ch)
            line[k * m + ch] += fill[brick.c + ch] * (1 - share * box.x.share[kValue][k]);
      }
      write_row(out.at(brick.c, j, i), line, width, out.column, m, out.channel);
    }
}

// Rows of a box before they are gathered along x: the value, and the derivatives by position and by width of y and z.
enum Slope { kPlain, kByY, kByYWidth, kByZ, kByZWidth };
constexpr int kSlopes = 5;

// Calls f(count, rows, v) for batches of rows of a brick, v[slope][r] as long as the columns that are read. A slope
// that the box does not have is not written. The fill is taken off the volume.
template <class T, class A>
class SlopeRows {
 public:
  SlopeRows(const VolumePlan<A>& box, const Solid<const T>& volume, const Brick& brick, const A* fill,
            Scratch<A>& scratch)
      : box_(box),
        brick_(brick),
        fill_(fill),
        scratch_(scratch),
        sums_(box.z, box.y, box.across, volume, brick.c, scratch) {
    for (auto& rows : v_)
      for (A*& row : rows) row = scratch.take(sums_.columns() + kOverread);
  }

  template <class F>
  void each(const F& f) {
    // All rows that an output reads at once, where they are few; else sums of planes, which the rows of a plane share.
    const bool few = box_.z.most * box_.y.most <= 4;
    for (int64_t i = brick_.i, end = i; i < brick_.i_end; i = end) {
      end = few ? i : rows_at_once(box_.y, i, brick_.i_end, 3 * sums_.columns());
      const bool summed = end > i;
      if (!summed) end = few ? brick_.i_end : i + 1;
      const auto mark = scratch_.mark();
      std::tie(first_, last_) = rows_read(box_.y, i, end);
      for (int n = 0; summed && n < kOrders; ++n)
        planes_[n] = scratch_.take((last_ - first_) * sums_.columns() + kOverread);
      for (int64_t j = brick_.j; j < brick_.j_end; ++j) {
        if (summed) sum_planes(j);
        for (int64_t at = i; at < end; at += kBatch) {
          const int64_t count = std::min<int64_t>(end - at, kBatch);
          Row rows[kBatch];
          for (int64_t r = 0; r < count; ++r) {
            rows[r] = {j, at + r};
            summed ? from_planes(at + r, r) : from_rows(j, at + r, r);
            if (fill_ != nullptr) take_fill(j, at + r, r);
          }
          f(count, rows, v_);
        }
      }
      scratch_.release(mark);
    }
  }

 private:
  void sum_planes(int64_t j) {
    const AxisPlan<A>& z = box_.z;
    if (z.by_width.empty()) {
      const A* const weights[] = {z.weight.data(), z.by_center.data()};
      sums_.template planes<2>(planes_, weights, j, first_, last_);
    } else {
      const A* const weights[] = {z.weight.data(), z.by_center.data(), z.by_width.data()};
      sums_.template planes<3>(planes_, weights, j, first_, last_);
    }
  }

  Rows<A> plane(Order order) const { return {planes_[order] - first_ * sums_.columns(), sums_.columns(), 0}; }

  void from_planes(int64_t i, int64_t r) {
    const AxisPlan<A>& y = box_.y;
    const int64_t columns = sums_.columns();
    A* const out[kOrders] = {v_[kPlain][r], v_[kByY][r], v_[kByYWidth][r]};
    const A* const value[] = {y.weight.data()};
    if (y.by_width.empty()) {
      const A* const weights[] = {y.weight.data(), y.by_center.data()};
      sum_rows<false, 2>(out, plane(kValue), y, i, weights, columns);
    } else {
      const A* const weights[] = {y.weight.data(), y.by_center.data(), y.by_width.data()};
      sum_rows<false, 3>(out, plane(kValue), y, i, weights, columns);
    }
    A* const by_z[kOrders] = {v_[kByZ][r]};
    sum_rows<false, 1>(by_z, plane(kByCenter), y, i, value, columns);
    if (box_.z.by_width.empty()) return;
    A* const by_width[kOrders] = {v_[kByZWidth][r]};
    sum_rows<false, 1>(by_width, plane(kByWidth), y, i, value, columns);
  }

  void from_rows(int64_t j, int64_t i, int64_t r) {
    const AxisPlan<A>&y = box_.y, &z = box_.z;
    A* const out[kOrders] = {v_[kPlain][r], v_[kByY][r], v_[kByZ][r]};
    const A* const of_z[] = {z.weight.data(), z.weight.data(), z.by_center.data()};
    const A* const of_y[] = {y.weight.data(), y.by_center.data(), y.weight.data()};
    sums_.template row<3>(out, j, i,
                          [&](int n, int64_t s, int64_t t) DIFFCROP_ALWAYS { return of_z[n][s] * of_y[n][t]; });
    const auto more = [&](Slope slope, const std::vector<A>& by_z, const std::vector<A>& by_y) DIFFCROP_ALWAYS {
      A* const one[kOrders] = {v_[slope][r]};
      sums_.template row<1>(one, j, i, [&](int, int64_t s, int64_t t) DIFFCROP_ALWAYS { return by_z[s] * by_y[t]; });
    };
    if (!y.by_width.empty()) more(kByYWidth, z.weight, y.by_width);
    if (!z.by_width.empty()) more(kByZWidth, z.by_width, y.weight);
  }

  void take_fill(int64_t j, int64_t i, int64_t r) {
    const auto &z = box_.z.share, &y = box_.y.share;
    const int64_t m = box_.across.m, columns = sums_.columns();
    const A shares[kSlopes] = {z[kValue][j] * y[kValue][i], z[kValue][j] * y[kByCenter][i],
                               z[kValue][j] * y[kByWidth][i], z[kByCenter][j] * y[kValue][i],
                               z[kByWidth][j] * y[kValue][i]};
    for (int slope = 0; slope < kSlopes; ++slope) {
      if (!has(static_cast<Slope>(slope))) continue;
      for (int64_t x = 0; x < columns; ++x) v_[slope][r][x] -= fill_[brick_.c + x % m] * shares[slope];
    }
  }

  bool has(Slope slope) const {
    if (slope == kByYWidth) return !box_.y.by_width.empty();
    return slope != kByZWidth || !box_.z.by_width.empty();
  }

  const VolumePlan<A>& box_;
  const Brick brick_;
  const A* const fill_;
  Scratch<A>& scratch_;
  const PlaneSums<T, A> sums_;
  A *v_[kSlopes][kBatch], *planes_[kOrders] = {};
  int64_t first_ = 0, last_ = 0;
};

// <g, d crop / d box> over a brick: see box_rows.
template <class T, class G, class A>
VolumeSum volume_box(const VolumePlan<A>& box, const Solid<const T>& volume, const Solid<const G>& grad,
                     const Brick& brick, const A* fill, Scratch<A>& scratch) {
  scratch.clear();
  const int64_t m = box.across.m, columns = (box.x.last - box.x.first) * m, width = box.x.outputs * m;
  const int orders_x = box.x.by_width.empty() ? 1 : 2;
  A *q[kBatch], *g[kBatch];
  for (int r = 0; r < kBatch; ++r) {
    q[r] = scratch.take(std::max(columns, width));
    g[r] = scratch.take(width + kOverread);
  }
  A* const line = scratch.take(std::max(columns, width));
  A* const totals[2] = {scratch.take(width + kLanes), scratch.take(width + kLanes)};
  for (A* const total : totals) std::fill_n(total, width + kLanes, A(0));
  DotLanes dots[kSlopes];
  SlopeRows<T, A> slopes(box, volume, brick, fill, scratch);
  slopes.each([&](int64_t count, const Row* rows, A* const(*v)[kBatch]) DIFFCROP_ALWAYS {
    double part[kSlopes][kBatch] = {};
    for (int64_t r = 0; r < count; ++r) {
      read_row(g[r], grad.at(brick.c, rows[r].c, rows[r].i), box.x.outputs, grad.column, m, grad.channel);
      part[kByY][r] = box.y.fraction[rows[r].i], part[kByZ][r] = box.z.fraction[rows[r].c];
    }
    if (box.widens) gather<false>(count, q, g, box.back, kValue);
    for (const auto& [slope, there] : {std::pair(kByY, true), std::pair(kByYWidth, !box.y.by_width.empty()),
                                       std::pair(kByZ, true), std::pair(kByZWidth, !box.z.by_width.empty())}) {
      if (!there) continue;
      if (box.widens) {
        for (int64_t r = 0; r < count; ++r) add_dot(dots[slope], part[slope][r], q[r], v[slope][r], columns);
      } else {
        gather<false>(count, q, v[slope], box.across, kValue);
        for (int64_t r = 0; r < count; ++r) add_dot(dots[slope], part[slope][r], g[r], q[r], width);
      }
    }
    add_products(orders_x, count, totals, g, v[kPlain], box.across, line);
  });
  const BoxSum plane = box_sum(box, dots[kByY], dots[kByYWidth], {totals[0], totals[1]});
  VolumeSum sum{{}, plane.y, plane.x};
  for (int lane = 0; lane < kLanes; ++lane) {
    sum.z.lo += dots[kByZ].lo[lane] - box.z.width_slope * dots[kByZWidth].lo[lane];
    sum.z.hi += dots[kByZ].hi[lane] + box.z.width_slope * dots[kByZWidth].lo[lane];
  }
  return sum;
}

// d crop / d (x0, y0, z0, x1, y1, z1) of a brick of one channel, the six numbers of a pixel side by side.
template <class T, class O, class A>
void volume_jacobian(const VolumePlan<A>& box, const Solid<const T>& volume, const Solid<O>& out, const Brick& brick,
                     const A* fill, Scratch<A>& scratch) {
  scratch.clear();
  constexpr int numbers = 6;
  const int64_t width = box.x.outputs;
  A *lines[kBatch], *sixes[kBatch];
  for (int r = 0; r < kBatch; ++r) lines[r] = scratch.take(width), sixes[r] = scratch.take(numbers * width);
  SlopeRows<T, A> slopes(box, volume, brick, fill, scratch);
  slopes.each([&](int64_t count, const Row* rows, A* const(*v)[kBatch]) DIFFCROP_ALWAYS {
    for (int64_t r = 0; r < count; ++r) std::fill_n(sixes[r], numbers * width, A(0));
    // Of axis 0, 1, 2: adds what is gathered, in parts for both ends.
    const auto add = [&](int axis, const AxisPlan<A>& plan, Slope slope, Order order, bool by_width) DIFFCROP_ALWAYS {
      gather<false>(count, lines, v[slope], box.across, order);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t k = 0; k < width; ++k) {
          const int64_t at = axis == 0 ? k : axis == 1 ? rows[r].i : rows[r].c;
          const double hi = by_width ? plan.width_slope : plan.fraction[at];
          A* const six = sixes[r] + numbers * k;
          six[axis] += static_cast<A>(by_width ? -hi : 1 - hi) * lines[r][k];
          six[axis + 3] += static_cast<A>(hi) * lines[r][k];
        }
    };
    add(0, box.x, kPlain, kByCenter, false);
    if (!box.x.by_width.empty()) add(0, box.x, kPlain, kByWidth, true);
    add(1, box.y, kByY, kValue, false);
    if (!box.y.by_width.empty()) add(1, box.y, kByYWidth, kValue, true);
    add(2, box.z, kByZ, kValue, false);
    if (!box.z.by_width.empty()) add(2, box.z, kByZWidth, kValue, true);
    for (int64_t r = 0; r < count; ++r)
      write_row(out.at(brick.c, rows[r].c, rows[r].i), sixes[r], numbers * width, 1, 1, 1);
  });
}

// A brick of the gradient by one volume, summed over all its boxes in their order by one thread: see image_rows.
template <class G, class A>
void volume_image(const std::vector<VolumeContribution<G, A>>& boxes, const Solid<G>& out, int64_t pixels, int64_t m,
                  const Brick& brick, Scratch<A>& scratch) {
  scratch.clear();
  const int64_t length = pixels * m, rows = brick.i_end - brick.i, planes = brick.j_end - brick.j;
  // Sums are kept where they will stay if they may.
  bool direct = false;
  Shelf<A> shelf{nullptr, rows * length, length};
  if constexpr (std::is_same_v<G, A>) {
    direct = is_dense(out.planes(brick.c), m) && out.row == length;
    if (direct) shelf = {out.at(brick.c, brick.j, brick.i), out.plane, out.row};
  }
  if (!direct) shelf.data = scratch.take(planes * rows * length);
  for (int64_t j = 0; j < planes; ++j) std::fill_n(shelf.at(j, 0), rows * length, A(0));
  for (const auto& [box, grad] : boxes) {
    const int64_t front = box->z.first, top = box->y.first, left = box->x.first * m;
    const Brick mine{brick.c, std::max(brick.j - front, int64_t{0}), std::min(brick.j_end - front, box->z_back.outputs),
                     std::max(brick.i - top, int64_t{0}), std::min(brick.i_end - top, box->y_back.outputs)};
    if (mine.j >= mine.j_end || mine.i >= mine.i_end) continue;
    const auto mark = scratch.mark();
    const Shelf<A> part{shelf.at(mine.j + front - brick.j, mine.i + top - brick.i) + left, shelf.plane, shelf.row};
    VolumeProduct<G, A>(box->z_back, box->y_back, box->back, box->volume_order_back, grad, mine, part, scratch)
        .template make<true>();
    scratch.release(mark);
  }
  if (direct) return;
  for (int64_t j = brick.j; j < brick.j_end; ++j)
    for (int64_t i = brick.i; i < brick.i_end; ++i)
      write_row(out.at(brick.c, j, i), shelf.at(j - brick.j, i - brick.i), pixels, out.column, m, out.channel);
}

template <class T>
VolumeKernels<T> volume_kernels() {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  return {DIFFCROP_LOOKUPS, volume_crop<T, O, A>, volume_jacobian<T, O, A>, volume_box<T, O, A>, volume_image<O, A>};
}
template VolumeKernels<double> volume_kernels();
template VolumeKernels<float> volume_kernels();
template VolumeKernels<Half> volume_kernels();
template VolumeKernels<BFloat16> volume_kernels();
template VolumeKernels<uint8_t> volume_kernels();

}  // namespace diffcrop::DIFFCROP_LEVEL
