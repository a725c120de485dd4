// Warps of one box: values, and the gradients by its matrix and by the image. Compiled once for every instruction set,
// as warp_places.h is.

namespace diffcrop::DIFFCROP_LEVEL {

DIFFCROP_INLINE int64_t padded(int64_t n) {
  return (n + kSpots - 1) / kSpots * kSpots;
}

// Where the samples of a row lie in the crop, a whole number of blocks: the last one is repeated.
template <class A>
const double* places(const Reduction& x, int64_t count, Scratch<A>& scratch) {
  const int64_t length = padded(count);
  auto* const u = reinterpret_cast<double*>(scratch.take(length * (sizeof(double) / sizeof(A))));
  for (int64_t k = 0; k < length; ++k) u[k] = x.place(std::min(k, count - 1));
  return u;
}

// --- sixteen samples of one channel ----------------------------------------------------------------------------------

template <class T, class A>
DIFFCROP_INLINE A pixel_of(const T* plane, const View<const T>& image, int32_t row, int32_t column, A fill) {
  if (row < 0 || column < 0) return fill;
  return load<A>(plane[row * image.row + column * image.column]);
}

// Anywhere, by any filter. With `slopes` also the derivatives of the values by both positions.
template <bool slopes, class T, class A>
void read_anywhere(A* __restrict value, A* __restrict by_x, A* __restrict by_y, const T* plane,
                   const View<const T>& image, const Neighbours<A>& near, A fill) {
  for (int64_t l = 0; l < kSpots; ++l) value[l] = 0;
  if (slopes)
    for (int64_t l = 0; l < kSpots; ++l) by_x[l] = by_y[l] = 0;
  for (int a = 0; a < near.y.count; ++a) {
    A row[kSpots] = {}, row_slope[kSpots] = {};
    for (int b = 0; b < near.x.count; ++b)
      for (int64_t l = 0; l < kSpots; ++l) {
        const A pixel = pixel_of(plane, image, near.y.index[a][l], near.x.index[b][l], fill);
        row[l] += near.x.weight[b][l] * pixel;
        if (slopes) row_slope[l] += near.x.slope[b][l] * pixel;
      }
    for (int64_t l = 0; l < kSpots; ++l) {
      value[l] += near.y.weight[a][l] * row[l];
      if (slopes) {
        by_x[l] += near.y.weight[a][l] * row_slope[l];
        by_y[l] += near.y.slope[a][l] * row[l];
      }
    }
  }
}

// The four pixels around each sample, all in the image.
template <class T, class A>
struct Fours {
  A upper[2][kSpots], lower[2][kSpots];
};

template <class T, class A>
DIFFCROP_INLINE void read_fours(Fours<T, A>& fours, const T* plane, const View<const T>& image,
                                const Corners<A>& corners) {
  for (int64_t l = 0; l < kSpots; ++l) {
    const T* const p = plane + corners.row[l] * image.row + corners.column[l] * image.column;
    fours.upper[0][l] = load<A>(p[0]), fours.upper[1][l] = load<A>(p[image.column]);
    fours.lower[0][l] = load<A>(p[image.row]), fours.lower[1][l] = load<A>(p[image.row + image.column]);
  }
}

template <class T, class A>
DIFFCROP_INLINE void value_of_fours(A* __restrict value, const Fours<T, A>& fours, const Corners<A>& corners) {
  for (int64_t l = 0; l < kSpots; ++l) {
    const A x = corners.x[l], y = corners.y[l];
    const A upper = (1 - x) * fours.upper[0][l] + x * fours.upper[1][l];
    const A lower = (1 - x) * fours.lower[0][l] + x * fours.lower[1][l];
    value[l] = (1 - y) * upper + y * lower;
  }
}

// by_x and by_y += g times the slopes.
template <class T, class A>
DIFFCROP_INLINE void add_slopes_of_fours(A* __restrict by_x, A* __restrict by_y, const A* __restrict g,
                                         const Fours<T, A>& fours, const Corners<A>& corners) {
  for (int64_t l = 0; l < kSpots; ++l) {
    const A x = corners.x[l], y = corners.y[l];
    const A upper = fours.upper[1][l] - fours.upper[0][l], lower = fours.lower[1][l] - fours.lower[0][l];
    by_x[l] += g[l] * ((1 - y) * upper + y * lower);
    by_y[l] += g[l] * ((1 - x) * (fours.lower[0][l] - fours.upper[0][l]) + x * (fours.lower[1][l] - fours.upper[1][l]));
  }
}

// Keys' weights of four pixels an axis, of samples all of whose pixels lie in the image, and their derivatives.
template <class A>
struct alignas(64) Cubic {
  A x[4][kSpots], y[4][kSpots], by_x[4][kSpots], by_y[4][kSpots];
};

template <bool slopes, class A>
DIFFCROP_INLINE void weigh_cubic(A (&weight)[4][kSpots], A (&slope)[4][kSpots], const A* place, A a) {
  for (int64_t l = 0; l < kSpots; ++l) {
    const A t = place[l], r = 1 - t;
    // a (t^3 - 2 t^2 + t) and (a + 2) t^3 - (a + 3) t^2 + 1, at t and at 1 - t.
    weight[0][l] = a * t * r * r;
    weight[1][l] = 1 + t * t * ((a + 2) * t - (a + 3));
    weight[2][l] = 1 + r * r * ((a + 2) * r - (a + 3));
    weight[3][l] = a * r * t * t;
    if (slopes) {
      slope[0][l] = a * r * (1 - 3 * t);
      slope[1][l] = t * (3 * (a + 2) * t - 2 * (a + 3));
      slope[2][l] = -r * (3 * (a + 2) * r - 2 * (a + 3));
      slope[3][l] = a * t * (2 - 3 * t);
    }
  }
}

template <bool slopes, class A>
DIFFCROP_INLINE void find_cubic(Cubic<A>& cubic, const Corners<A>& corners, double a) {
  weigh_cubic<slopes>(cubic.x, cubic.by_x, corners.x, static_cast<A>(a));
  weigh_cubic<slopes>(cubic.y, cubic.by_y, corners.y, static_cast<A>(a));
}

// The four pixels of a row from `p` on.
template <class T, class A>
DIFFCROP_INLINE void add_row(A (&sum)[4], const T* p, int64_t column, A weight) {
  for (int b = 0; b < 4; ++b) sum[b] += weight * load<A>(p[b * column]);
}

// Sixteen values; with `slopes` g times their slopes is added to by_x and by_y instead.
template <bool slopes, class T, class A>
void read_cubic(A* __restrict value, A* __restrict by_x, A* __restrict by_y, const A* g, const T* plane,
                const View<const T>& image, const Corners<A>& corners, const Cubic<A>& cubic, bool side_by_side) {
  // Columns of all samples, summed along y with the weights and with their derivatives.
  alignas(64) A sum[4][kSpots], slope[4][kSpots];
  for (int64_t l = 0; l < kSpots; ++l) {
    const T* p = plane + (corners.row[l] - 1) * image.row + (corners.column[l] - 1) * image.column;
    A all[4] = {}, by[4] = {};
    for (int a = 0; a < 4; ++a, p += image.row) {
      add_row(all, p, side_by_side ? 1 : image.column, cubic.y[a][l]);
      if (slopes) add_row(by, p, side_by_side ? 1 : image.column, cubic.by_y[a][l]);
    }
    for (int b = 0; b < 4; ++b) {
      sum[b][l] = all[b];
      if (slopes) slope[b][l] = by[b];
    }
  }
  for (int64_t l = 0; l < kSpots; ++l) {
    if constexpr (slopes) {
      A x = 0, y = 0;
      for (int b = 0; b < 4; ++b) x += cubic.by_x[b][l] * sum[b][l], y += cubic.x[b][l] * slope[b][l];
      by_x[l] += g[l] * x, by_y[l] += g[l] * y;
    } else {
      A total = 0;
      for (int b = 0; b < 4; ++b) total += cubic.x[b][l] * sum[b][l];
      value[l] = total;
    }
  }
}

}  // namespace diffcrop::DIFFCROP_LEVEL

#if DIFFCROP_LOOKUPS
#include "warp_vectors.h"
#endif

namespace diffcrop::DIFFCROP_LEVEL {

template <class T, class A>
DIFFCROP_INLINE void read_inside(A* value, const T* plane, const View<const T>& image, const Corners<A>& corners,
                                 [[maybe_unused]] bool side_by_side) {
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>)
    if (side_by_side) return read_inside_lanes(value, plane, image.row, corners);
#endif
  Fours<T, A> fours;
  read_fours(fours, plane, image, corners);
  value_of_fours(value, fours, corners);
}

template <class T, class A>
DIFFCROP_INLINE void add_slopes_inside(A* by_x, A* by_y, const A* g, const T* plane, const View<const T>& image,
                                       const Corners<A>& corners, [[maybe_unused]] bool side_by_side) {
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>)
    if (side_by_side) return add_slopes_inside_lanes(by_x, by_y, g, plane, image.row, corners);
#endif
  Fours<T, A> fours;
  read_fours(fours, plane, image, corners);
  add_slopes_of_fours(by_x, by_y, g, fours, corners);
}

// Whether offsets of pixels fit into 32 bits and pixels lie side by side.
template <class T>
bool lies_close(const View<const T>& image, const Surface& surface) {
  return image.column == 1 && image.row >= 0 && image.row * surface.height < INT32_MAX;
}

// --- values ----------------------------------------------------------------------------------------------------------

// The samples of one line of the lattice, in rows of `stride` for each channel.
template <class T, class A>
void sample_line(A* rows, int64_t stride, const WarpPlan& plan, const Surface& surface, const View<const T>& image,
                 int64_t c, int64_t c_end, const double* u, int64_t count, double v, const A* fill) {
  const Line line(plan, v);
  const bool close = lies_close(image, surface), fours = surface.taps == 2, sixteens = surface.taps == 4;
  Spots spots;
  Corners<A> corners;
  Cubic<A> cubic;
  Neighbours<A> near;
  for (int64_t k = 0; k < count; k += kSpots) {
    find(spots, plan, line, u + k);
    if (sixteens && find_corners(corners, spots, surface, 1, 2)) {
      find_cubic<false>(cubic, corners, surface.a);
      for (int64_t i = c; i < c_end; ++i)
        read_cubic<false, T, A>(rows + (i - c) * stride + k, nullptr, nullptr, nullptr, image.at(i, 0), image, corners,
                                cubic, close);
      continue;
    }
    if (fours && find_corners(corners, spots, surface, 0, 1)) {
      for (int64_t i = c; i < c_end; ++i)
        read_inside(rows + (i - c) * stride + k, image.at(i, 0), image, corners, close);
      continue;
    }
    near.find(spots, surface);
    for (int64_t i = c; i < c_end; ++i) {
      A* const value = rows + (i - c) * stride + k;
      read_anywhere<false, T, A>(value, nullptr, nullptr, image.at(i, 0), image, near, fill[i]);
      for (int64_t l = 0; l < kSpots; ++l)
        if (!is_seen(spots, plan, l)) value[l] = fill[i];
    }
  }
}

template <class O, class A>
void write_line(O* to, int64_t step, const A* from, int64_t count) {
  if (step == 1)
    for (int64_t j = 0; j < count; ++j) to[j] = store<O>(from[j]);
  else
    for (int64_t j = 0; j < count; ++j) to[j * step] = store<O>(from[j]);
}

// to[j] = sum_t weight[t] from[j m + t].
template <class A>
void reduce_line(A* __restrict to, const A* __restrict from, const A* __restrict weight, const Reduction& x,
                 int64_t count) {
  const int64_t length = x.length();
  for (int64_t j = 0; j < count; ++j) to[j] = weight[0] * from[j * x.m];
  for (int64_t t = 1; t < length; ++t)
    for (int64_t j = 0; j < count; ++j) to[j] += weight[t] * from[j * x.m + t];
}

template <class A>
A* weights_of(const Reduction& axis, Scratch<A>& scratch) {
  A* const weight = scratch.take(axis.length());
  for (int64_t t = 0; t < axis.length(); ++t) weight[t] = static_cast<A>(axis.weight[t]);
  return weight;
}

// Rows [begin, end) of channels [c, c_end) of a crop, `width` wide.
template <class T>
void warp_rows(const WarpPlan& plan, const Surface& surface, const View<const T>& image, const View<ResultOf<T>>& out,
               int64_t width, int64_t c, int64_t c_end, int64_t begin, int64_t end, const SumOf<T>* fill,
               Scratch<SumOf<T>>& scratch) {
  using A = SumOf<T>;
  scratch.clear();
  const int64_t count = plan.x.count(width), stride = padded(count), channels = c_end - c;
  const double* const u = places(plan.x, count, scratch);
  A* const fine = scratch.take(channels * stride);
  const Reduction& y = plan.y;
  if (plan.x.length() == 1 && y.length() == 1) {
    for (int64_t i = begin; i < end; ++i) {
      sample_line<T, A>(fine, stride, plan, surface, image, c, c_end, u, count, y.place(i), fill);
      for (int64_t n = c; n < c_end; ++n) write_line(out.at(n, i), out.column, fine + (n - c) * stride, width);
    }
    return;
  }
  // Sums of the outputs that share a sample, output i in place i % overlap.
  const int64_t overlap = y.overlap(), each = channels * stride;
  A* const sums = scratch.take(overlap * each);
  A* const line = scratch.take(padded(width));
  const A* const across = weights_of(plan.x, scratch);
  for (int64_t k = begin * y.m; k < (end - 1) * y.m + y.length(); ++k) {
    sample_line<T, A>(fine, stride, plan, surface, image, c, c_end, u, count, y.place(k), fill);
    const int64_t first = std::max(begin, first_of(k - y.length() + 1, y.m));
    const int64_t last = std::min(end - 1, k / y.m);
    for (int64_t i = first; i <= last; ++i) {
      const int64_t t = k - i * y.m;
      A* const sum = sums + i % overlap * each;
      const auto weight = static_cast<A>(y.weight[t]);
      if (t == 0)
        for (int64_t p = 0; p < each; ++p) sum[p] = weight * fine[p];
      else
        for (int64_t p = 0; p < each; ++p) sum[p] += weight * fine[p];
      if (t + 1 < y.length()) continue;
      for (int64_t n = 0; n < channels; ++n) {
        reduce_line(line, sum + n * stride, across, plan.x, width);
        write_line(out.at(c + n, i), out.column, line, width);
      }
    }
  }
}

// --- cotangents of samples -------------------------------------------------------------------------------------------

// Brings rows side by side: number n of place j of the result is number j of row n.
template <int group, class G, class A>
void interleave(A* __restrict to, const G* const* rows, int64_t step, int64_t count) {
  const G* row[group];
  for (int n = 0; n < group; ++n) row[n] = rows[n];
  if (step == 1)
    for (int64_t j = 0; j < count; ++j)
      for (int n = 0; n < group; ++n) to[j * group + n] = load<A>(row[n][j]);
  else
    for (int64_t j = 0; j < count; ++j)
      for (int n = 0; n < group; ++n) to[j * group + n] = load<A>(row[n][j * step]);
}

// The inverse.
template <int group, class G, class A>
void separate(G* const* rows, const A* __restrict from, int64_t step, int64_t count) {
  G* row[group];
  for (int n = 0; n < group; ++n) row[n] = rows[n];
#if DIFFCROP_LOOKUPS
  if constexpr (group == 4 && std::is_same_v<G, float>)
    if (step == 1) return separate_lanes(row, from, count);
#endif
  if (step == 1)
    for (int64_t j = 0; j < count; ++j)
      for (int n = 0; n < group; ++n) row[n][j] = store<G>(from[j * group + n]);
  else
    for (int64_t j = 0; j < count; ++j)
      for (int n = 0; n < group; ++n) row[n][j * step] = store<G>(from[j * group + n]);
}

// The transpose of the reduction of samples to outputs: the cotangents of the samples of one line after another, from
// those of the outputs. The channels of a sample lie side by side, `group` of them, or with group = 1 each has a part
// of its own, `stride` apart. Behind the last sample of a line there are zeros.
template <int group, class G, class A>
class Cotangent {
 public:
  Cotangent(const WarpPlan& plan, const View<const G>& grad, int64_t height, int64_t width, int64_t c, int64_t c_end,
            Scratch<A>& scratch)
      : x_(plan.x),
        y_(plan.y),
        grad_(grad),
        height_(height),
        width_(width),
        c_(c),
        c_end_(c_end),
        stride_(padded(plan.x.count(width))),
        size_((group == 1 ? c_end - c : group) * stride_),
        overlap_(plan.y.overlap()) {
    lines_ = scratch.take(overlap_ * size_);
    std::fill_n(lines_, overlap_ * size_, A(0));
    held_ = reinterpret_cast<int64_t*>(scratch.take(overlap_ * static_cast<int64_t>(sizeof(int64_t) / sizeof(A))));
    std::fill_n(held_, overlap_, int64_t{-1});
    const int64_t shared = x_.overlap();
    A* const across = scratch.take(shared * x_.m);
    for (int64_t t = 0; t < shared * x_.m; ++t) across[t] = t < x_.length() ? static_cast<A>(x_.weight[t]) : A(0);
    across_ = across;
    sum_ = y_.length() > 1 ? scratch.take(size_) : nullptr;
    const int64_t room = (width + 2 * (shared - 1)) * group;
    outputs_ = x_.length() > 1 ? scratch.take(room) : nullptr;
    if (x_.length() > 1) std::fill_n(outputs_, room, A(0));
  }

  int64_t stride() const { return stride_; }
  int64_t size() const { return size_; }

  // Line k, counted from the first of all. Only numbers [from, to) are asked for.
  const A* line(int64_t k, int64_t from, int64_t to) {
    const int64_t first = std::max<int64_t>(0, first_of(k - y_.length() + 1, y_.m));
    const int64_t last = std::min(height_ - 1, k / y_.m);
    if (sum_ == nullptr) return x_.length() > 1 ? output(last) : plain(last, from / group, to / group);
    for (int64_t i = first; i <= last; ++i) {
      const auto weight = static_cast<A>(y_.weight[k - i * y_.m]);
      const A* const part = output(i);
      if (i == first)
        for (int64_t p = from; p < to; ++p) sum_[p] = weight * part[p];
      else
        for (int64_t p = from; p < to; ++p) sum_[p] += weight * part[p];
    }
    return sum_;
  }

 private:
  // The cotangents of row i of the outputs, spread along the row.
  const A* output(int64_t i) {
    A* const line = lines_ + i % overlap_ * size_;
    if (held_[i % overlap_] == i) return line;
    held_[i % overlap_] = i;
    for (int64_t n = c_; n < c_end_; n += group) {
      const G* rows[group];
      // What stands for channels that are not there is not looked at.
      for (int64_t k = 0; k < group; ++k) rows[k] = grad_.at(std::min(n + k, c_end_ - 1), i);
      A* const to = line + (n - c_) * stride_;
      const bool spread = x_.length() > 1;
      interleave<group>(spread ? outputs_ + (x_.overlap() - 1) * group : to, rows, grad_.column, width_);
      if (spread) spread_row(to);
    }
    return line;
  }

  // The same where nothing is spread: only those that are asked for.
  const A* plain(int64_t i, int64_t from, int64_t to) {
    from = group == 1 ? 0 : from, to = group == 1 ? width_ : std::min(to, width_);
    for (int64_t n = c_; n < c_end_; n += group) {
      const G* rows[group];
      for (int64_t k = 0; k < group; ++k) rows[k] = grad_.at(std::min(n + k, c_end_ - 1), i) + from * grad_.column;
      interleave<group>(lines_ + (n - c_) * stride_ + from * group, rows, grad_.column, to - from);
    }
    return lines_;
  }

  // Sample j m + r has the parts across[r + q m] of outputs j - q; zeros stand for those before the first and behind
  // the last.
  void spread_row(A* __restrict to) const {
    const int64_t m = x_.m, shared = x_.overlap(), count = x_.count(width_);
    const A* const __restrict from = outputs_ + (shared - 1) * group;
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t j = 0; j * m + r < count; ++j) {
        A sum[group] = {};
        for (int64_t q = 0; q < shared; ++q)
          for (int n = 0; n < group; ++n) sum[n] += across_[r + q * m] * from[(j - q) * group + n];
        for (int n = 0; n < group; ++n) to[(j * m + r) * group + n] = sum[n];
      }
    }
  }

  const Reduction &x_, &y_;
  const View<const G> grad_;
  int64_t height_, width_, c_, c_end_, stride_, size_, overlap_;
  A *lines_, *sum_, *outputs_;
  const A* across_;
  int64_t* held_;
};

// --- the gradient by the matrix --------------------------------------------------------------------------------------

// With x = X / Z and y = Y / Z, and g_x and g_y the derivatives by them,
//
//   by row 0 of M   g_x / Z (u, v, 1)          by row 1   g_y / Z (u, v, 1)
//   by row 2        -(g_x x + g_y y) / Z (u, v, 1)
//
// Sums over a line of samples without v, a part in each lane.
struct alignas(64) LineSums {
  double of[3][kSpots] = {}, times_u[3][kSpots] = {};
};

template <class A>
DIFFCROP_INLINE void add_samples(LineSums& sums, const Spots& spots, bool affine, const A* by_x, const A* by_y,
                                 const double* u) {
  for (int64_t l = 0; l < kSpots; ++l) {
    const double inverse = affine ? 1 : spots.inverse[l];
    const double x = static_cast<double>(by_x[l]) * inverse, y = static_cast<double>(by_y[l]) * inverse;
    const double z = -(x * (spots.x[l] + 0.5) + y * (spots.y[l] + 0.5));
    sums.of[0][l] += x, sums.of[1][l] += y, sums.of[2][l] += z;
    sums.times_u[0][l] += x * u[l], sums.times_u[1][l] += y * u[l], sums.times_u[2][l] += z * u[l];
  }
}

// Adds to `result` the derivative by the matrix of all samples of outputs [begin, end) that lie in no later output, and
// of the last output all.
template <class T>
void matrix_rows(const WarpPlan& plan, const Surface& surface, const View<const T>& image,
                 const View<const ResultOf<T>>& grad, int64_t height, int64_t width, int64_t c, int64_t c_end,
                 int64_t begin, int64_t end, const SumOf<T>* fill, double* result, Scratch<SumOf<T>>& scratch) {
  using A = SumOf<T>;
  scratch.clear();
  const int64_t count = plan.x.count(width);
  const double* const u = places(plan.x, count, scratch);
  Cotangent<1, ResultOf<T>, A> cotangent(plan, grad, height, width, c, c_end, scratch);
  const int64_t stride = cotangent.stride(), size = cotangent.size();
  const bool close = lies_close(image, surface), fours = surface.taps == 2, sixteens = surface.taps == 4;
  Spots spots;
  Corners<A> corners;
  Cubic<A> cubic;
  Neighbours<A> near;
  struct alignas(64) {
    double of[9][kSpots] = {};
  } total;
  const int64_t stop = end == height ? plan.y.count(height) : end * plan.y.m;
  for (int64_t k = begin * plan.y.m; k < stop; ++k) {
    const double v = plan.y.place(k);
    const Line line(plan, v);
    const A* const g = cotangent.line(k, 0, size);
    LineSums sums;
    for (int64_t j = 0; j < count; j += kSpots) {
      alignas(64) A by_x[kSpots] = {}, by_y[kSpots] = {};
      find(spots, plan, line, u + j);
      if (fours && find_corners(corners, spots, surface, 0, 1)) {
        for (int64_t i = c; i < c_end; ++i)
          add_slopes_inside(by_x, by_y, g + (i - c) * stride + j, image.at(i, 0), image, corners, close);
      } else if (sixteens && find_corners(corners, spots, surface, 1, 2)) {
        find_cubic<true>(cubic, corners, surface.a);
        for (int64_t i = c; i < c_end; ++i)
          read_cubic<true, T, A>(nullptr, by_x, by_y, g + (i - c) * stride + j, image.at(i, 0), image, corners, cubic,
                                 close);
      } else {
        near.find(spots, surface);
        for (int64_t i = c; i < c_end; ++i) {
          alignas(64) A value[kSpots], slope_x[kSpots], slope_y[kSpots];
          read_anywhere<true>(value, slope_x, slope_y, image.at(i, 0), image, near, fill[i]);
          const A* const some = g + (i - c) * stride + j;
          for (int64_t l = 0; l < kSpots; ++l)
            if (j + l < count && is_seen(spots, plan, l))
              by_x[l] += some[l] * slope_x[l], by_y[l] += some[l] * slope_y[l];
        }
      }
      add_samples(sums, spots, plan.affine, by_x, by_y, u + j);
    }
    for (int row = 0; row < 3; ++row)
      for (int64_t l = 0; l < kSpots; ++l) {
        total.of[3 * row][l] += sums.times_u[row][l];
        total.of[3 * row + 1][l] += v * sums.of[row][l];
        total.of[3 * row + 2][l] += sums.of[row][l];
      }
  }
  for (int i = 0; i < 9; ++i)
    for (int64_t l = 0; l < kSpots; ++l) result[i] += plan.sign * total.of[i][l];
}

// --- the gradient by the image ---------------------------------------------------------------------------------------

// Some rows of the gradient of some channels while boxes add to it: all channels of a pixel lie side by side, `group`
// of them.
template <class A>
struct Tile {
  A* data;
  int64_t begin, end, width, group;
  A* at(int64_t row, int64_t column) const { return data + ((row - begin) * width + column) * group; }
};

// Numbers [first, last) of a line.
struct Stretch {
  int64_t first, last;
};

// The samples of a line that may read rows [begin, end) of the image: their position lies in (begin - reach, end -
// 1 + reach), which are two linear inequalities in u. With a margin for rounding.
inline Stretch stretch_of(const WarpPlan& plan, const Surface& surface, const double* u, int64_t count, double v,
                          int64_t begin, int64_t end) {
  const double reach = surface.taps / 2;
  double least = u[0], most = u[count - 1];
  for (int side = 0; side < 2; ++side) {
    // What padding puts outside of the image belongs to the rows at its edge.
    const bool edge = side == 0 ? begin == 0 : end == surface.height;
    if (edge && surface.padding == Padding::border) continue;
    const double bound = side == 0 ? static_cast<double>(begin) - reach + 0.5 : static_cast<double>(end) + reach + 0.5;
    const double sign = side == 0 ? 1 : -1;
    const double slope = sign * (plan.m[3] - bound * plan.m[6]);
    const double parts[4] = {plan.m[4] * v, plan.m[5], bound * plan.m[7] * v, bound * plan.m[8]};
    const double start = sign * (parts[0] + parts[1] - parts[2] - parts[3]);
    const double size = std::abs(parts[0]) + std::abs(parts[1]) + std::abs(parts[2]) + std::abs(parts[3]) +
                        (std::abs(plan.m[3]) + std::abs(bound * plan.m[6])) * std::max(std::abs(most), 1.0);
    const double margin = 1e-12 * size;
    // slope u + start >= -margin.
    if (slope > 0)
      least = std::max(least, (-margin - start) / slope);
    else if (slope < 0)
      most = std::min(most, (-margin - start) / slope);
    else if (start < -margin)
      return {0, 0};
  }
  if (!(least <= most)) return {0, 0};
  const double step = count > 1 ? (u[count - 1] - u[0]) / static_cast<double>(count - 1) : 1;
  const auto first = static_cast<int64_t>((least - u[0]) / step) - 1;
  const auto last = static_cast<int64_t>((most - u[0]) / step) + 3;
  return {std::clamp<int64_t>(first, 0, count), std::clamp<int64_t>(last, 0, count)};
}

// Neighbours share pixels, and what was just written is read soonest after some other samples.
constexpr int64_t kTurn = 5;

// The numbers of one pixel, or of its cotangents.
template <int group, class A>
struct Pixel {
#if DIFFCROP_VECTORS
  typedef A Numbers __attribute__((vector_size(group * sizeof(A))));
  Numbers all;
  explicit Pixel(const A* from) { std::memcpy(&all, from, sizeof(all)); }
  DIFFCROP_INLINE void add_to(A* to, A weight) const {
    Numbers sum;
    std::memcpy(&sum, to, sizeof(sum));
    sum += weight * all;
    std::memcpy(to, &sum, sizeof(sum));
  }
#else
  A all[group];
  explicit Pixel(const A* from) { std::memcpy(all, from, sizeof(all)); }
  void add_to(A* to, A weight) const {
    for (int n = 0; n < group; ++n) to[n] += weight * all[n];
  }
#endif
};

// Adds sixteen samples whose four pixels all lie in the image, and with `whole` in the tile.
template <int group, bool whole, class A>
void scatter_inside(const Tile<A>& tile, const Corners<A>& corners, const A* g) {
  alignas(64) A weight[4][kSpots];
  alignas(64) int64_t place[kSpots];
  for (int64_t l = 0; l < kSpots; ++l) {
    const A x = corners.x[l], y = corners.y[l];
    weight[0][l] = (1 - y) * (1 - x), weight[1][l] = (1 - y) * x;
    weight[2][l] = y * (1 - x), weight[3][l] = y * x;
    place[l] = ((corners.row[l] - tile.begin) * tile.width + corners.column[l]) * group;
  }
  const int64_t down = tile.width * group;
  for (int64_t i = 0; i < kSpots; ++i) {
    const int64_t l = i * kTurn % kSpots;
    A* const to = tile.data + place[l];
    const Pixel<group, A> some(g + l * group);
    if (whole || (corners.row[l] >= tile.begin && corners.row[l] < tile.end)) {
      some.add_to(to, weight[0][l]);
      some.add_to(to + group, weight[1][l]);
    }
    if (whole || (corners.row[l] + 1 >= tile.begin && corners.row[l] + 1 < tile.end)) {
      some.add_to(to + down, weight[2][l]);
      some.add_to(to + down + group, weight[3][l]);
    }
  }
}

// The same of samples that read four pixels an axis.
template <int group, class A>
void scatter_cubic(const Tile<A>& tile, const Corners<A>& corners, const Cubic<A>& cubic, const A* g) {
  for (int64_t i = 0; i < kSpots; ++i) {
    const int64_t l = i * kTurn % kSpots;
    const Pixel<group, A> some(g + l * group);
    for (int64_t a = 0, row = corners.row[l] - 1; a < 4; ++a, ++row) {
      if (row < tile.begin || row >= tile.end) continue;
      A* const to = tile.at(row, corners.column[l] - 1);
      for (int b = 0; b < 4; ++b) some.add_to(to + b * group, cubic.y[a][l] * cubic.x[b][l]);
    }
  }
}

// Adds those of sixteen samples that read rows of the tile, `lanes` of them.
template <int group, class A>
void scatter_anywhere(const Tile<A>& tile, const WarpPlan& plan, const Spots& spots, const Neighbours<A>& near,
                      const A* g, int64_t lanes) {
  for (int64_t i = 0; i < kSpots; ++i) {
    const int64_t l = i * kTurn % kSpots;
    if (l >= lanes || !is_seen(spots, plan, l)) continue;
    const Pixel<group, A> some(g + l * group);
    for (int a = 0; a < near.y.count; ++a) {
      const int64_t row = near.y.index[a][l];
      if (row < tile.begin || row >= tile.end) continue;
      for (int b = 0; b < near.x.count; ++b) {
        const int64_t column = near.x.index[b][l];
        if (column >= 0) some.add_to(tile.at(row, column), near.y.weight[a][l] * near.x.weight[b][l]);
      }
    }
  }
}

// Whether the samples of a box can read rows [begin, end) at all, told by its corners.
inline bool may_touch(const WarpPlan& plan, const Surface& surface, int64_t height, int64_t width, int64_t begin,
                      int64_t end) {
  if (surface.scattered()) return true;
  double top = kInfinity, bottom = -kInfinity;
  for (int corner = 0; corner < 4; ++corner) {
    const double u = corner % 2 == 0 ? plan.x.place(0) : plan.x.place(plan.x.count(width) - 1);
    const double v = corner < 2 ? plan.y.place(0) : plan.y.place(plan.y.count(height) - 1);
    const double z = plan.m[6] * u + plan.m[7] * v + plan.m[8];
    if (z <= 0) return true;
    const double y = (plan.m[3] * u + plan.m[4] * v + plan.m[5]) / z;
    top = std::min(top, y), bottom = std::max(bottom, y);
  }
  const double margin = surface.taps / 2 + 1 + 1e-9 * (std::abs(top) + std::abs(bottom));
  const bool border = surface.padding == Padding::border;
  return (bottom + margin >= static_cast<double>(begin) || (border && begin == 0)) &&
         (top - margin <= static_cast<double>(end) || (border && end == surface.height));
}

template <int group, class G, class A>
void add_box(const Tile<A>& tile, const WarpPart<G>& part, const Surface& surface, int64_t c, int64_t c_end,
             Scratch<A>& scratch) {
  const WarpPlan& plan = *part.plan;
  const int64_t count = plan.x.count(part.width);
  const double* const u = places(plan.x, count, scratch);
  // With one channel a line is all of it either way.
  Cotangent<group, G, A> cotangent(plan, part.grad, part.height, part.width, c, c_end, scratch);
  const int64_t size = cotangent.size();
  const bool fours = surface.taps == 2;
  const int before = surface.taps / 2 - 1;
  Spots spots;
  Corners<A> corners;
  Cubic<A> cubic;
  Neighbours<A> near;
  const int64_t lines = plan.y.count(part.height);
  for (int64_t k = 0; k < lines; ++k) {
    const double v = plan.y.place(k);
    const Stretch stretch =
        surface.scattered() ? Stretch{0, count} : stretch_of(plan, surface, u, count, v, tile.begin, tile.end);
    if (stretch.first >= stretch.last) continue;
    const Line line(plan, v);
    const int64_t first = stretch.first / kSpots * kSpots;
    const A* const g = cotangent.line(k, first * group, std::min(padded(stretch.last) * group, size));
    for (int64_t j = first; j < stretch.last; j += kSpots) {
      find(spots, plan, line, u + j);
      const bool inside = find_corners(corners, spots, surface, before, before + 1);
      if (inside && (corners.bottom + before + 1 < tile.begin || corners.top - before >= tile.end)) continue;
      if (fours && inside) {  // behind the last sample cotangents are zero
        if (corners.top >= tile.begin && corners.bottom + 1 < tile.end)
          scatter_inside<group, true>(tile, corners, g + j * group);
        else
          scatter_inside<group, false>(tile, corners, g + j * group);
        continue;
      }
      if (inside && surface.taps == 4) {
        find_cubic<false>(cubic, corners, surface.a);
        scatter_cubic<group>(tile, corners, cubic, g + j * group);
        continue;
      }
      near.find(spots, surface);
      scatter_anywhere<group>(tile, plan, spots, near, g + j * group, std::min(count - j, kSpots));
    }
  }
}

template <int group, class G, class A>
void group_rows(std::span<const WarpPart<G>> parts, const Surface& surface, const View<G>& out, int64_t c,
                int64_t c_end, int64_t begin, int64_t end, Scratch<A>& scratch) {
  const int64_t size = (end - begin) * surface.width * group;
  const Tile<A> tile{scratch.take(size), begin, end, surface.width, group};
  std::fill_n(tile.data, size, A(0));
  for (const auto& part : parts) {
    if (!may_touch(*part.plan, surface, part.height, part.width, begin, end)) continue;
    const auto mark = scratch.mark();
    add_box<group>(tile, part, surface, c, c_end, scratch);
    scratch.release(mark);
  }
  // Channels that are not there go to a row that nobody reads.
  auto* const nowhere = reinterpret_cast<G*>(scratch.take(surface.width * std::max<int64_t>(out.column, 1)));
  for (int64_t row = begin; row < end; ++row) {
    G* rows[group];
    for (int64_t n = 0; n < group; ++n) rows[n] = c + n < c_end ? out.at(c + n, row) : nowhere;
    separate<group>(rows, tile.at(row, 0), out.column, surface.width);
  }
}

// Rows [begin, end) of channels [c, c_end) of the gradient by one image, summed over all its boxes in their order by
// one thread.
template <class G>
void warp_image_rows(std::span<const WarpPart<G>> parts, const Surface& surface, const View<G>& out, int64_t c,
                     int64_t c_end, int64_t begin, int64_t end, Scratch<SumOf<G>>& scratch) {
  using A = SumOf<G>;
  scratch.clear();
  switch (c_end - c) {
    case 1:
      return group_rows<1>(parts, surface, out, c, c_end, begin, end, scratch);
    case 2:
      return group_rows<2>(parts, surface, out, c, c_end, begin, end, scratch);
    case 3:
    case 4:
      return group_rows<4>(parts, surface, out, c, c_end, begin, end, scratch);
    default:
      if (c_end - c <= 8) return group_rows<8>(parts, surface, out, c, c_end, begin, end, scratch);
      return group_rows<16>(parts, surface, out, c, c_end, begin, end, scratch);
  }
}

}  // namespace diffcrop::DIFFCROP_LEVEL
