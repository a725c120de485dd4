// The operations on one box, made of the passes over rows. Compiled once for every instruction set, as passes.h is.
//
// For one channel, crop = W_y image W_x^T. Every operation walks over output rows i (or image rows k):
//
//   crop       crop[i] = W_y[i] image W_x^T
//   by image   grad[k] = W_y^T[k] g W_x                 the same with the transposed matrices; one writer a row
//   by box     v = W_y[i] image, v' = W_y'[i] image      y: <g[i] W_x, v'> = <g[i], v' W_x^T>      x: <g[i], v W_x'^T>
//
// A row holds one channel (m = 1), or all channels of each pixel side by side (m = channels) where images are
// channels-last.

namespace diffcrop::DIFFCROP_LEVEL {

// The same as sum_rows where the pixels of a row are not next to each other; `line` is as long as a row.
template <int orders, class T, class A>
void sum_strided(A* const (&out)[kOrders], const T* base, const View<const T>& source, const Band<A>& band, int64_t m,
                 int64_t i, const A* const (&weights)[orders], int64_t length, A* line) {
  for (int n = 0; n < orders; ++n) std::fill_n(out[n], length, A(0));
  for (int64_t t = 0; t < band.count[i]; ++t) {
    read_row(line, base + band.pixel(i, t) * source.row, length / m, source.column, m, source.channel);
    const A* const rows[] = {line};
    A weight[orders][1];
    for (int n = 0; n < orders; ++n) weight[n][0] = weights[n][band.offset[i] + t];
    combine<true, orders, 1>(out, rows, weight, length);
  }
}

// Reads short rows of a source some tens of rows ahead of the passes, in one go. Between their other loads and stores
// processors do not foresee rows of less than a page: what comes from memory then takes up to twice as long, and asking
// for single lines in advance (prefetches) did not help. Longer rows, and what comes from a cache, take longer with it.
template <class T>
class ReadAhead {
 public:
  // Of each row the `columns` numbers from pixel `left` on, m to a pixel, if they lie side by side.
  ReadAhead(const View<const T>& source, int64_t m, int64_t left, int64_t columns, bool wanted)
      : source_(source),
        left_(left * source.column),
        bytes_(columns * static_cast<int64_t>(sizeof(T))),
        wanted_(wanted && columns > 0 && bytes_ < kPage && is_dense(source, m)) {}

  // Before output `at` is made, which reads as the band says.
  template <class A>
  void operator()(const Band<A>& y, const Row& at) {
    if (!begins(at) || !y.place.empty()) return;
    int64_t first = 0, last = 0;
    for (int64_t read = 0; read < kBytes && next_ < y.outputs; ++next_) {
      const int64_t start = y.start[next_], stop = start + y.count[next_];
      for (int64_t k = start; k < stop; ++k)
        if (k < first || k >= last) read += touch(k);
      first = start, last = stop;
    }
  }

  // Before row `at` of `rows` is read itself.
  void operator()(int64_t rows, const Row& at) {
    if (!begins(at)) return;
    for (int64_t read = 0; read < kBytes && next_ < rows; ++next_) read += touch(next_);
  }

 private:
  static constexpr int64_t kLine = 64, kPage = 4096, kBytes = 1 << 15;

  bool begins(const Row& at) {
    if (!wanted_ || (at.c == c_ && at.i < next_)) return false;
    c_ = at.c, next_ = at.i;
    return true;
  }

  int64_t touch(int64_t k) const {
    const auto* const row = reinterpret_cast<const volatile char*>(source_.at(c_, k) + left_);
    for (int64_t byte = 0; byte < bytes_; byte += kLine) static_cast<void>(row[byte]);
    static_cast<void>(row[bytes_ - 1]);
    return bytes_ + kLine;
  }

  const View<const T> source_;
  int64_t left_, bytes_, c_ = -1, next_ = 0;
  bool wanted_;
};

// out[i] (+)= W_y[i] source W_x^T, up to kBatch rows at a time, in one of these ways (see order_of):
//
//   y first    one sum of rows and one gathering for every output row: where the axis is reduced
//   x first    one gathering for every source row, kept for the outputs that share it: where it is enlarged
//   points     both at once: where no output reads more than two pixels of an axis
template <class T, class A>
class Product {
 public:
  // Outputs will be asked for in [begin, end).
  Product(const Band<A>& y, const Operator<A>& x, const RowOrder& order, const View<const T>& source, int64_t begin,
          int64_t end, bool ahead, Scratch<A>& scratch)
      : y_(y),
        x_(x),
        source_(source),
        columns_((x.band->last - x.band->first) * x.m),
        width_(x.band->outputs * x.m),
        dense_(is_dense(source, x.m)),
        x_first_(y.place.empty() && (order.x_first || !dense_)),
        ahead_(source, x.m, x.band->first, columns_, ahead) {
    // The order was made for rows as dense as these: with points it knows no reach.
    if (order.points && dense_) {
      pairs_.emplace(y, source, x.band->first, columns_, scratch);
      return;
    }
    for (A*& row : rows_) row = scratch.take(columns_ + kOverread);
    if (x_first_) {
      for (int64_t i = begin; i < end; ++i) stop_ = std::max<int64_t>(stop_, y.start[i] + y.count[i]);
      kept_.assign(order.reach + kBatch, {-1, -1});
      ring_ = scratch.take((order.reach + kBatch) * width_);
    } else if (!dense_) {
      line_ = scratch.take(columns_);
    }
  }

  template <bool add>
  void rows(int64_t count, const Row* rows, A* const* outs) {
    for (int64_t r = 0; r < count; ++r) ahead_(y_, rows[r]);
    if (pairs_) {
      const A* const weights[] = {y_.weight.data()};
      RowPair<1, T, A> pairs[kBatch];
      for (int64_t r = 0; r < count; ++r) pairs_->put(pairs[r], rows[r], weights);
      put_points<add>(count, outs, pairs, x_);
    } else if (x_first_) {
      // Not across channels, whose rows would take each other's place.
      for (int64_t begin = 0, end = 0; begin < count; begin = end) {
        while (end < count && rows[end].c == rows[begin].c) ++end;
        rows_x_first<add>(end - begin, rows + begin, outs + begin);
      }
    } else {
      for (int64_t r = 0; r < count; ++r) sum_source(rows[r], rows_[r]);
      gather<add>(count, outs, rows_, x_, kValue);
    }
  }

 private:
  template <bool add>
  void rows_x_first(int64_t count, const Row* rows, A* const* outs) {
    keep(count, rows);
    const Rows<A> kept{ring_, width_, static_cast<int64_t>(kept_.size())};
    const A* const weights[] = {y_.weight.data()};
    for (int64_t r = 0; r < count; ++r) {
      A* const out[kOrders] = {outs[r]};
      sum_rows<add, 1>(out, kept, y_, rows[r].i, weights, width_);
    }
  }

  // Gathers the source rows of some outputs unless they are kept already, and with them the next ones, as kBatch take
  // little longer than one. The ring holds the rows of kBatch neighbours, and those.
  void keep(int64_t count, const Row* rows) {
    for (int64_t r = 0; r < count; ++r)
      for (int64_t k = y_.start[rows[r].i], stop = k + y_.count[rows[r].i]; k < stop; ++k) {
        A* outs[kBatch];
        int64_t missing = 0;
        for (int64_t n = k; n < (missing > 0 ? stop_ : k + 1) && missing < kBatch && n < k + kBatch; ++n) {
          const int64_t slot = n % static_cast<int64_t>(kept_.size());
          Row& kept = kept_[slot];
          if (kept.i == n && kept.c == rows[r].c) continue;
          kept = {rows[r].c, n};
          read_row(rows_[missing], source_.at(kept.c, n) + x_.band->first * source_.column, columns_ / x_.m,
                   source_.column, x_.m, source_.channel);
          outs[missing++] = ring_ + slot * width_;
        }
        if (missing > 0) gather<false>(missing, outs, rows_, x_, kValue);
      }
  }

  void sum_source(const Row& at, A* row) {
    A* const out[kOrders] = {row};
    const A* const weights[] = {y_.weight.data()};
    const T* const base = source_.at(at.c, 0) + x_.band->first * source_.column;
    if (dense_)
      sum_rows<false, 1>(out, Rows<T>{base, source_.row, 0}, y_, at.i, weights, columns_);
    else
      sum_strided<1>(out, base, source_, y_, x_.m, at.i, weights, columns_, line_);
  }

  const Band<A>& y_;
  const Operator<A>& x_;
  const View<const T> source_;
  const int64_t columns_, width_;
  const bool dense_, x_first_;
  ReadAhead<T> ahead_;
  std::optional<RowPairs<T, A>> pairs_;
  A *rows_[kBatch], *line_ = nullptr, *ring_ = nullptr;
  std::vector<Row> kept_;  // of source row k in slot k % its size
  int64_t stop_ = 0;       // no source row from here on is read
};

// Rows [begin, end) of the crop: fill + W_y (image - fill) W_x^T. The fill is added as fill (1 - share_y share_x), so
// that a crop inside the image does not round against it.
template <class T, class O, class A>
void crop_rows(const BoxPlan<A>& box, const View<const T>& image, const View<O>& out, int64_t begin, int64_t end,
               const A* fill, Scratch<A>& scratch) {
  scratch.clear();
  const int64_t m = box.across.m, width = box.x.outputs;
  const Row first = row_at(box, begin), last = row_at(box, end - 1);
  const bool one = first.c == last.c;
  Product<T, A> product(box.y, box.across, box.order, image, one ? first.i : 0, one ? last.i + 1 : box.y.outputs,
                        box.ahead, scratch);
  A* lines[kBatch];
  for (A*& line : lines) line = scratch.take(width * m);
  bool direct = false;  // results are summed where they will stay
  if constexpr (std::is_same_v<O, A>) direct = fill == nullptr && is_dense(out, m);
  Row row = first;
  for (int64_t f = begin; f < end; f += kBatch) {
    const int64_t count = std::min<int64_t>(end - f, kBatch);
    Row rows[kBatch];
    for (int64_t r = 0; r < count; ++r, row = next(box, row)) {
      rows[r] = row;
      if constexpr (std::is_same_v<O, A>)
        if (direct) lines[r] = out.at(rows[r].c, rows[r].i);
    }
    product.template rows<false>(count, rows, lines);
    for (int64_t r = 0; !direct && r < count; ++r) {
      const auto [c, i] = rows[r];
      if (fill != nullptr) {
        for (int64_t j = 0; j < width; ++j)
          for (int64_t ch = 0; ch < m; ++ch)
            lines[r][j * m + ch] += fill[c + ch] * (1 - box.y.share[kValue][i] * box.x.share[kValue][j]);
      }
      write_row(out.at(c, i), lines[r], width, out.column, m, out.channel);
    }
  }
}

// out[n] = W_y,n[i] (image - fill) on the columns that the x axis touches, W_y,n the weights and their derivatives in
// turn; fill is null where it is 0, `line` as long as a row.
template <int orders, class T, class A>
void vertical(A* const (&out)[kOrders], const BoxPlan<A>& box, const View<const T>& image, int64_t c, int64_t i,
              const A* fill, A* line) {
  const AxisPlan<A>& y = box.y;
  const int64_t m = box.across.m, columns = box.x.last - box.x.first;
  const A* weights[orders];
  for (int n = 0; n < orders; ++n) weights[n] = y.weights(static_cast<Order>(n)).data();
  const T* const base = image.at(c, 0) + box.x.first * image.column;
  if (is_dense(image, m))
    sum_rows<false, orders>(out, Rows<T>{base, image.row, 0}, y, i, weights, columns * m);
  else
    sum_strided<orders>(out, base, image, y, m, i, weights, columns * m, line);
  if (fill == nullptr) return;
  for (int n = 0; n < orders; ++n) {
    const A share = y.share[n][i];
    for (int64_t x = 0; x < columns; ++x)
      for (int64_t ch = 0; ch < m; ++ch) out[n][x * m + ch] -= fill[c + ch] * share;
  }
}

// The derivative by the box from its parts: by y in lanes, by x in each column of outputs, by position and by width.
template <class A>
BoxSum box_sum(const BoxPlan<A>& box, const DotLanes& center, const DotLanes& width, const A* const (&totals)[2]) {
  BoxSum sum;
  for (int lane = 0; lane < kLanes; ++lane) {
    sum.y.lo += center.lo[lane] - box.y.width_slope * width.lo[lane];
    sum.y.hi += center.hi[lane] + box.y.width_slope * width.lo[lane];
  }
  const int64_t m = box.across.m;
  for (int64_t j = 0; j < box.x.outputs; ++j) {
    double by_center = 0, by_width = 0;
    for (int64_t c = 0; c < m; ++c) by_center += totals[0][j * m + c], by_width += totals[1][j * m + c];
    sum.x.lo += (1 - box.x.fraction[j]) * by_center - box.x.width_slope * by_width;
    sum.x.hi += box.x.fraction[j] * by_center + box.x.width_slope * by_width;
  }
  return sum;
}

// <g, d crop / d box> over rows [begin, end), where no output reads more than two pixels of an axis.
template <class T, class G, class A>
BoxSum box_points(const BoxPlan<A>& box, const View<const T>& image, const View<const G>& grad, int64_t begin,
                  int64_t end, const A* fill, Scratch<A>& scratch) {
  scratch.clear();
  const int64_t m = box.across.m, columns = (box.x.last - box.x.first) * m, width = box.x.outputs * m;
  const bool direct = std::is_same_v<G, A> && is_dense(grad, m);
  const RowPairs<T, A> source(box.y, image, box.x.first, columns, scratch);
  ReadAhead<T> ahead(image, m, box.x.first, columns, box.ahead);
  ReadAhead<G> grad_ahead(grad, m, 0, width, box.ahead);
  A* copies[kBatch];
  for (A*& copy : copies) copy = scratch.take(width);
  A* const lines[2] = {scratch.take(width), scratch.take(width)};
  A* const totals = scratch.take(2 * (width + kLanes));
  std::fill_n(totals, 2 * (width + kLanes), A(0));
  const A* const weights[] = {box.y.weight.data(), box.y.by_center.data()};
  const A* const shares[] = {box.y.share[kValue].data(), box.y.share[kByCenter].data()};
  DotLanes dots;
  Row row = row_at(box, begin);
  for (int64_t f = begin; f < end; f += kBatch) {
    const int64_t count = std::min<int64_t>(end - f, kBatch);
    RowPair<2, T, A> rows[kBatch];
    double fraction[kBatch];
    const A* g[kBatch];
    for (int64_t r = 0; r < count; ++r, row = next(box, row)) {
      ahead(box.y, row);
      grad_ahead(box.y.outputs, row);
      source.put(rows[r], row, weights, fill == nullptr ? A(0) : fill[row.c], shares);
      fraction[r] = box.y.fraction[row.i];
      const G* const from = grad.at(row.c, row.i);
      if (direct)
        g[r] = reinterpret_cast<const A*>(from);
      else
        read_row(copies[r], from, box.x.outputs, grad.column, m, grad.channel), g[r] = copies[r];
    }
    add_points(count, dots, totals, g, rows, fraction, box.across, fill != nullptr, lines);
  }
  return box_sum(box, dots, {}, {totals, totals + width + kLanes});
}

// The same for all filters. Where the filter widens with the box there are two derivatives by y, which share the row
// q = g W_x of the source's pixels: <q, v'>. Else there is one, and <g, v' W_x^T> leaves alone the pixels between those
// that are read.
template <class T, class G, class A>
BoxSum box_rows(const BoxPlan<A>& box, const View<const T>& image, const View<const G>& grad, int64_t begin,
                int64_t end, const A* fill, Scratch<A>& scratch) {
  if (box.order.points) return box_points<T, G>(box, image, grad, begin, end, fill, scratch);
  scratch.clear();
  const int64_t m = box.across.m, columns = (box.x.last - box.x.first) * m, width = box.x.outputs * m;
  const int orders_x = box.x.by_width.empty() ? 1 : 2;
  A *v[kBatch], *q[kBatch], *g[kBatch], *by_center[kBatch];
  for (int r = 0; r < kBatch; ++r) {
    v[r] = scratch.take(columns + kOverread);
    by_center[r] = scratch.take(columns + kOverread);
    q[r] = scratch.take(std::max(columns, width));
    g[r] = scratch.take(width + kOverread);
  }
  A* const by_width = scratch.take(columns);
  A* const line = scratch.take(std::max(columns, width));
  A* const totals[2] = {scratch.take(width + kLanes), scratch.take(width + kLanes)};  // per column, over the rows
  for (A* const total : totals) std::fill_n(total, width + kLanes, A(0));
  DotLanes center_dots, width_dots;
  ReadAhead<T> ahead(image, m, box.x.first, columns, box.ahead);
  Row row = row_at(box, begin);
  for (int64_t f = begin; f < end; f += kBatch) {
    const int64_t count = std::min<int64_t>(end - f, kBatch);
    Row rows[kBatch];
    for (int64_t r = 0; r < count; ++r, row = next(box, row)) {
      rows[r] = row;
      read_row(g[r], grad.at(row.c, row.i), box.x.outputs, grad.column, m, grad.channel);
    }
    if (box.widens) gather<false>(count, q, g, box.back, kValue);
    for (int64_t r = 0; r < count; ++r) {
      const auto [c, i] = rows[r];
      ahead(box.y, rows[r]);
      A* const lines[kOrders] = {v[r], by_center[r], by_width};
      if (box.y.by_width.empty()) {
        vertical<2>(lines, box, image, c, i, fill, line);
      } else {
        vertical<3>(lines, box, image, c, i, fill, line);
        add_dot(width_dots, 0, q[r], by_width, columns);
      }
      if (box.widens) add_dot(center_dots, box.y.fraction[i], q[r], by_center[r], columns);
    }
    if (!box.widens) {
      gather<false>(count, q, by_center, box.across, kValue);
      for (int64_t r = 0; r < count; ++r) add_dot(center_dots, box.y.fraction[rows[r].i], g[r], q[r], width);
    }
    add_products(orders_x, count, totals, g, v, box.across, line);
  }
  return box_sum(box, center_dots, width_dots, {totals[0], totals[1]});
}

// d crop / d (x0, y0, x1, y1) of up to kBatch rows of one channel at a time, and with them the crop itself.
template <class T, class A>
class Slopes {
 public:
  Slopes(const BoxPlan<A>& box, const View<const T>& image, const A* fill, Scratch<A>& scratch)
      : box_(box),
        image_(image),
        fill_(fill),
        columns_(box.x.last - box.x.first),
        width_(box.x.outputs),
        ahead_(image, 1, box.x.first, columns_, box.ahead) {
    for (auto& rows : v_)
      for (A*& row : rows) row = scratch.take(columns_ + kOverread);
    for (A*& row : plain_) row = fill == nullptr ? nullptr : scratch.take(columns_ + kOverread);
    for (A*& line : lines_) line = scratch.take(width_);
    column_ = scratch.take(columns_);
    fraction_ = scratch.take(width_);
    for (int64_t j = 0; j < width_; ++j) fraction_[j] = static_cast<A>(box.x.fraction[j]);
  }

  // slopes[r] are four rows, and values[r] is one; `values` is null where the crop is not asked for.
  void rows(int64_t count, const Row* rows, A* const (*slopes)[4], A* const* values) {
    for (int64_t r = 0; r < count; ++r) {
      ahead_(box_.y, rows[r]);
      A* const sums[kOrders] = {v_[kValue][r], v_[kByCenter][r], v_[kByWidth][r]};
      if (box_.y.by_width.empty())
        vertical<2>(sums, box_, image_, rows[r].c, rows[r].i, fill_, column_);
      else
        vertical<3>(sums, box_, image_, rows[r].c, rows[r].i, fill_, column_);
    }
    // Each term differentiates one of the axes, by the position or by the width.
    if (!box_.flat) along_y<false>(count, rows, slopes, kByCenter);
    if (!box_.y.by_width.empty()) along_y<true>(count, rows, slopes, kByWidth);
    along_x<false>(count, slopes, kByCenter);
    if (!box_.x.by_width.empty()) along_x<true>(count, slopes, kByWidth);
    if (values != nullptr) put_values(count, rows, values);
  }

 private:
  template <bool add>
  void along_y(int64_t count, const Row* rows, A* const (*slopes)[4], Order order) {
    gather<false>(count, lines_, v_[order], box_.across, kValue);
    for (int64_t r = 0; r < count; ++r) {
      const double slope = box_.y.width_slope, part = box_.y.fraction[rows[r].i];
      put<add>(slopes[r][1], slopes[r][3], lines_[r], static_cast<A>(add ? -slope : 1 - part),
               static_cast<A>(add ? slope : part));
    }
  }

  template <bool add>
  void along_x(int64_t count, A* const (*slopes)[4], Order order) {
    gather<false>(count, lines_, v_[kValue], box_.across, order);
    const A slope = static_cast<A>(box_.x.width_slope);
    for (int64_t r = 0; r < count; ++r) {
      if (add)
        put<true>(slopes[r][0], slopes[r][2], lines_[r], -slope, slope);
      else
        share(slopes[r][0], slopes[r][2], lines_[r], fraction_);
    }
  }

  template <bool add>
  void put(A* __restrict lo, A* __restrict hi, const A* __restrict line, A by_lo, A by_hi) const {
    for (int64_t j = 0; j < width_; ++j) {
      lo[j] = add ? lo[j] + by_lo * line[j] : by_lo * line[j];
      hi[j] = add ? hi[j] + by_hi * line[j] : by_hi * line[j];
    }
  }

  void share(A* __restrict lo, A* __restrict hi, const A* __restrict line, const A* __restrict fraction) const {
    for (int64_t j = 0; j < width_; ++j) {
      lo[j] = (1 - fraction[j]) * line[j];
      hi[j] = fraction[j] * line[j];
    }
  }

  // From the image itself and not from its difference to the fill, which would round against it: see crop_rows.
  void put_values(int64_t count, const Row* rows, A* const* values) {
    for (int64_t r = 0; fill_ != nullptr && r < count; ++r) {
      A* const sums[kOrders] = {plain_[r]};
      vertical<1, T, A>(sums, box_, image_, rows[r].c, rows[r].i, nullptr, column_);
    }
    gather<false>(count, values, fill_ == nullptr ? v_[kValue] : plain_, box_.across, kValue);
    for (int64_t r = 0; fill_ != nullptr && r < count; ++r)
      for (int64_t j = 0; j < width_; ++j)
        values[r][j] += fill_[rows[r].c] * (1 - box_.y.share[kValue][rows[r].i] * box_.x.share[kValue][j]);
  }

  const BoxPlan<A>& box_;
  const View<const T> image_;
  const A* fill_;
  const int64_t columns_, width_;
  ReadAhead<T> ahead_;
  A *v_[kOrders][kBatch], *plain_[kBatch], *lines_[kBatch], *column_, *fraction_;
};

// d crop / d (x0, y0, x1, y1) of rows [begin, end), the numbers of a pixel side by side.
template <class T, class O, class A>
void jacobian_rows(const BoxPlan<A>& box, const View<const T>& image, const View<O>& out, int64_t begin, int64_t end,
                   const A* fill, Scratch<A>& scratch) {
  scratch.clear();
  const int64_t width = box.x.outputs;
  // A signal's has x0 and x1 only.
  const int64_t numbers = box.flat ? 2 : 4, step = 4 / numbers;
  Slopes<T, A> slopes(box, image, fill, scratch);
  A* four[kBatch][4];
  for (auto& rows : four)
    for (A*& row : rows) row = scratch.take(width);
  A* const __restrict line = scratch.take(4 * width);
  Row row = row_at(box, begin);
  for (int64_t f = begin; f < end; f += kBatch) {
    const int64_t count = std::min<int64_t>(end - f, kBatch);
    Row rows[kBatch];
    for (int64_t r = 0; r < count; ++r, row = next(box, row)) rows[r] = row;
    slopes.rows(count, rows, four, nullptr);
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t j = 0; j < width; ++j)
        for (int64_t i = 0; i < numbers; ++i) line[numbers * j + i] = four[r][i * step][j];
      write_row(out.at(rows[r].c, rows[r].i), line, numbers * width, 1, 1, 1);
    }
  }
}

// Products of the columns (d crop / d box, r) or (d crop / d box, crop, target, 1), each pair once: (0, 0), (0, 1),
// ..., (1, 1), ... , over rows [begin, end) of channel c; see gram.h for what is weighted.
template <class T, class A>
void gram_rows(const BoxPlan<A>& box, const View<const T>& image, const View<const A>& target, int64_t c, int64_t begin,
               int64_t end, bool moments, double huber, const A* fill, double* result, Scratch<A>& scratch) {
  scratch.clear();
  const int64_t width = box.x.outputs;
  Slopes<T, A> slopes(box, image, fill, scratch);
  // The columns of each row: beyond their ends zeros, which add nothing.
  A *columns[kBatch][kMostColumns], *four[kBatch][4], *values[kBatch];
  A* weights[kBatch];
  const bool weighted = huber < std::numeric_limits<double>::infinity();
  for (int r = 0; r < kBatch; ++r) {
    for (A*& column : columns[r]) {
      column = scratch.take(width + kDoubles);
      std::fill_n(column + width, kDoubles, A(0));
    }
    weights[r] = scratch.take(width + kDoubles);
    std::fill_n(weights[r] + width, kDoubles, A(0));
    std::copy_n(columns[r], 4, four[r]);
    values[r] = columns[r][4];
  }
  double sums[kMostProducts * kDoubles] = {};
  for (int64_t i = begin; i < end; i += kBatch) {
    const int64_t count = std::min<int64_t>(end - i, kBatch);
    Row rows[kBatch];
    for (int64_t r = 0; r < count; ++r) rows[r] = {c, i + r};
    slopes.rows(count, rows, four, values);
    for (int64_t r = 0; r < count; ++r) {
      read_row(columns[r][5], target.at(c, i + r), width, target.column, 1, target.channel);
      if (!moments) put_residuals(values[r], columns[r][5], weights[r], width, weighted, static_cast<A>(huber));
    }
    if (moments)
      add_columns<6, false, true>(sums, count, columns, weights, width);
    else if (weighted)
      add_columns<5, true, false>(sums, count, columns, weights, width);
    else
      add_columns<5, false, false>(sums, count, columns, weights, width);
  }
  const int products = moments ? kMostProducts : 15;
  for (int p = 0; p < products; ++p) {
    result[p] = 0;
    for (int lane = 0; lane < kDoubles; ++lane) result[p] += sums[p * kDoubles + lane];
  }
  if (moments) result[kMostProducts - 1] = static_cast<double>((end - begin) * width);
}

// Rows [begin, end) of channels [c, c_end) of the gradient by one image, summed over all its boxes in their order by
// one thread. They are few enough to stay in the cache from the zeros to the last sum, so memory is written once.
template <class G, class A>
void image_rows(const std::vector<Contribution<G, A>>& boxes, const View<G>& out, int64_t pixels, int64_t m, int64_t c,
                int64_t c_end, int64_t begin, int64_t end, Scratch<A>& scratch) {
  const int64_t length = pixels * m, height = end - begin;
  scratch.clear();
  // Sums are kept where they will stay if they may.
  bool direct = false;
  if constexpr (std::is_same_v<G, A>) direct = is_dense(out, m) && out.row == length;
  A* const sums = direct ? nullptr : scratch.take((c_end - c) / m * height * length);
  const auto row_of = [&](int64_t channel, int64_t k) {
    if constexpr (std::is_same_v<G, A>)
      if (direct) return out.at(channel, k);
    return sums + ((channel - c) / m * height + k - begin) * length;
  };
  for (int64_t channel = c; channel < c_end; channel += m) std::fill_n(row_of(channel, begin), height * length, A(0));
  for (const auto& part : boxes) {
    const Band<A>& y = part.box->y_back;
    const int64_t top = part.box->y.first, left = part.box->x.first * m;
    const int64_t first = std::max(begin, top), last = std::min(end, top + y.outputs);
    if (first >= last) continue;
    const auto mark = scratch.mark();
    Product<G, A> product(y, part.box->back, part.box->order_back, part.grad, first - top, last - top, part.box->ahead,
                          scratch);
    for (int64_t channel = c; channel < c_end; channel += m)
      for (int64_t k = first; k < last;) {
        A* outs[kBatch];
        Row rows[kBatch];
        int64_t count = 0;
        for (; count < kBatch && k < last; ++k) {
          if (y.count[k - top] == 0) continue;
          rows[count] = {channel, k - top};
          outs[count++] = row_of(channel, k) + left;
        }
        product.template rows<true>(count, rows, outs);
      }
    scratch.release(mark);
  }
  if (direct) return;
  for (int64_t channel = c; channel < c_end; channel += m)
    for (int64_t k = begin; k < end; ++k)
      write_row(out.at(channel, k), row_of(channel, k), pixels, out.column, m, out.channel);
}

template <class T>
Kernels<T> kernels() {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  return {DIFFCROP_LOOKUPS, crop_rows<T, O, A>, jacobian_rows<T, O, A>,
          gram_rows<T, A>,  box_rows<T, O, A>,  image_rows<O, A>};
}
template Kernels<double> kernels();
template Kernels<float> kernels();
template Kernels<Half> kernels();
template Kernels<BFloat16> kernels();
template Kernels<uint8_t> kernels();

}  // namespace diffcrop::DIFFCROP_LEVEL
