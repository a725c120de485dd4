// Sixteen samples of a warp, read from the pixels around them. Compiled once for every instruction set, as
// warp_places.h is.

namespace diffcrop::DIFFCROP_LEVEL {

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

// How a channel of an image lies: its pixels side by side, or their channels; in both cases offsets of pixels fit into
// 32 bits.
enum class Layout { others, planes, pixels };

template <class T>
Layout layout_of(const View<const T>& image, const Surface& surface) {
  if (image.row < 0 || image.column < 0 || image.row * surface.height + image.column * surface.width >= INT32_MAX)
    return Layout::others;
  if (image.column == 1) return Layout::planes;
  return image.channel == 1 && image.more == 0 ? Layout::pixels : Layout::others;
}

// Rows of a crop that are sampled together, sixteen columns of each: they read the same lines of the cache.
constexpr int64_t kAbreast = 8;
// Bytes after which lines take the same place of the nearest cache, which are a page as well, and how many more lines
// than it has room for there, or pages than a processor finds at once, it takes until channels are better read singly.
constexpr int64_t kPage = 4096, kPages = 64, kSame = 31;

// The derivatives of sixteen samples of each of some rows by both positions, times their cotangents, and those
// positions.
template <class A>
struct alignas(64) Abreast {
  A by_x[kAbreast][kSpots], by_y[kAbreast][kSpots];
  Spots spots[kAbreast];
};

// What it takes to read sixteen samples of one box, and where the last ones were found.
template <class T, class A>
class Sampler {
 public:
  Sampler(const WarpPlan& plan, const Surface& surface, const View<const T>& image, const A* fill)
      : plan_(plan), surface_(surface), image_(image), fill_(fill), layout_(layout_of(image, surface)) {}

  // With `slopes`, add_slopes may be asked for what is found, and spots().
  template <bool slopes>
  DIFFCROP_INLINE void find(const Line& line, const double* u) {
    if (plan_.affine)
      find_by<slopes, true>(line, u);
    else
      find_by<slopes, false>(line, u);
  }

  const Spots& spots() const { return spots_; }

  // The values, of channels [c, c_end), `stride` apart.
  DIFFCROP_INLINE void read(A* to, int64_t stride, int64_t c, int64_t c_end) const {
#if DIFFCROP_LOOKUPS
    if constexpr (std::is_same_v<A, float>)
      if (found_ == Found::between) {
        if (layout_ == Layout::pixels) return turn_pixels(to, stride, c, c_end);
        for (int64_t i = c; i < c_end; ++i, to += stride)
          _mm512_storeu_ps(to, read_between(image_.at(i, 0), image_.row, between_));
        return;
      }
#endif
    read_plain(to, stride, c, c_end);
  }

  // The same of the first `lanes` samples, `step` apart, with the channels of each side by side; false if that is not
  // how they are read.
  DIFFCROP_INLINE bool read_side_by_side([[maybe_unused]] A* to, [[maybe_unused]] int64_t step,
                                         [[maybe_unused]] int64_t c, [[maybe_unused]] int64_t c_end,
                                         [[maybe_unused]] int64_t lanes) const {
#if DIFFCROP_LOOKUPS
    if constexpr (std::is_same_v<A, float>)
      if (found_ == Found::between && layout_ == Layout::pixels) {
        read_pixels(to, step, image_.at(c, 0), image_, first_lanes(c_end - c), between_, lanes);
        return true;
      }
#endif
    return false;
  }

  // Whether the lines that kAbreast rows of sixteen samples read in so many channels drive each other from the nearest
  // cache, as pixels above each other do in images of powers of two, or lie on too many pages. Otherwise all channels
  // of a row at once are better: more of what comes from afar is on its way at a time.
  bool is_crowded(int64_t channels) const {
    const double z = plan_.m[8] > 0 ? plan_.m[8] : 1;
    const double rows = (std::abs(plan_.m[3]) * kSpots + std::abs(plan_.m[4]) * kAbreast) / z + 2;
    const auto bytes = image_.row * static_cast<int64_t>(sizeof(T));
    const double lines = static_cast<double>(channels) * rows / kPage;
    return lines * static_cast<double>(std::gcd(bytes, kPage)) > kSame ||
           lines * static_cast<double>(std::min(bytes, kPage)) > kPages;
  }

  // Sixteen samples of each of the rows [begin, end), at most kAbreast, one channel of all rows after the other; false
  // if that is not how they are read. `out`: the first of them in the crop.
  template <class O>
  bool read_rows([[maybe_unused]] const View<O>& out, [[maybe_unused]] int64_t begin, [[maybe_unused]] int64_t end,
                 [[maybe_unused]] const double* u, [[maybe_unused]] int64_t c, [[maybe_unused]] int64_t c_end) {
#if DIFFCROP_LOOKUPS
    if constexpr (std::is_same_v<A, float>) {
      Between found[kAbreast];
      for (int64_t i = begin; i < end; ++i)
        if (!is_between<false>(found[i - begin], spots_, Line(plan_, plan_.y.place(i)), u)) return false;
      for (int64_t n = c; n < c_end; ++n)
        for (int64_t i = begin; i < end; ++i) {
          const __m512 value = read_between(image_.at(n, 0), image_.row, found[i - begin]);
          if constexpr (std::is_same_v<O, float>) {
            _mm512_storeu_ps(out.at(n, i), value);
          } else {
            alignas(64) A values[kSpots];
            _mm512_store_ps(values, value);
            O* const to = out.at(n, i);
            for (int64_t l = 0; l < kSpots; ++l) to[l] = store<O>(values[l]);
          }
        }
      return true;
    }
#endif
    return false;
  }

  // The derivatives of the same, g[i - begin] having the cotangents of row i, of each channel `stride` after those of
  // the last.
  bool slopes_of_rows([[maybe_unused]] Abreast<A>& rows, [[maybe_unused]] const A* const* g,
                      [[maybe_unused]] int64_t stride, [[maybe_unused]] int64_t begin, [[maybe_unused]] int64_t end,
                      [[maybe_unused]] const double* u, [[maybe_unused]] int64_t c, [[maybe_unused]] int64_t c_end) {
#if DIFFCROP_LOOKUPS
    if constexpr (std::is_same_v<A, float>) {
      Between found[kAbreast];
      for (int64_t i = 0; i < end - begin; ++i)
        if (!is_between<true>(found[i], rows.spots[i], Line(plan_, plan_.y.place(begin + i)), u)) return false;
      for (int64_t i = 0; i < end - begin; ++i)
        for (int64_t l = 0; l < kSpots; ++l) rows.by_x[i][l] = rows.by_y[i][l] = 0;
      for (int64_t n = c; n < c_end; ++n)
        for (int64_t i = 0; i < end - begin; ++i)
          add_slopes_between(rows.by_x[i], rows.by_y[i], g[i] + (n - c) * stride, stride, image_, n, n + 1, found[i]);
      return true;
    }
#endif
    return false;
  }

  // by_x and by_y += the derivatives of the values by both positions, times g, whose channels are `stride` apart. Only
  // the first `lanes` samples count where g is not zero.
  DIFFCROP_INLINE void add_slopes(A* by_x, A* by_y, const A* g, int64_t stride, int64_t c, int64_t c_end,
                                  int64_t lanes) const {
#if DIFFCROP_LOOKUPS
    if constexpr (std::is_same_v<A, float>)
      if (found_ == Found::between) {
        if (layout_ == Layout::pixels)
          return add_slopes_of_pixels(by_x, by_y, g, stride, image_.at(c, 0), image_, first_lanes(c_end - c), c_end - c,
                                      between_, lanes);
        return add_slopes_between(by_x, by_y, g, stride, image_, c, c_end, between_);
      }
#endif
    add_slopes_plain(by_x, by_y, g, stride, c, c_end, lanes);
  }

 private:
#if DIFFCROP_LOOKUPS
  // Whether sixteen samples lie between pixels of planes, and where.
  template <bool slopes>
  DIFFCROP_INLINE bool is_between(Between& between, Spots& spots, const Line& line, const double* u) const {
    if (layout_ != Layout::planes || surface_.taps != 2) return false;
    if (plan_.affine) return find_between<true, slopes>(between, spots, line, u, surface_, image_.row, 1);
    return find_between<false, slopes>(between, spots, line, u, surface_, image_.row, 1);
  }

  void turn_pixels(float* to, int64_t stride, int64_t c, int64_t c_end) const {
    alignas(64) float values[kSpots * kShared];
    read_pixels(values, kShared, image_.at(c, 0), image_, first_lanes(c_end - c), between_, kSpots);
    for (int64_t n = 0; n < c_end - c; ++n)
      for (int64_t l = 0; l < kSpots; ++l) to[n * stride + l] = values[l * kShared + n];
  }
#endif

  void read_plain(A* to, int64_t stride, int64_t c, int64_t c_end) const {
    for (int64_t i = c; i < c_end; ++i, to += stride) {
      const T* const plane = image_.at(i, 0);
      if (found_ == Found::fours) {
        Fours<T, A> fours;
        read_fours(fours, plane, image_, corners_);
        value_of_fours(to, fours, corners_);
      } else if (found_ == Found::sixteens) {
        read_cubic<false, T, A>(to, nullptr, nullptr, nullptr, plane, image_, corners_, cubic_,
                                layout_ == Layout::planes);
      } else {
        read_anywhere<false, T, A>(to, nullptr, nullptr, plane, image_, near_, fill_[i]);
        for (int64_t l = 0; l < kSpots; ++l)
          if (!is_seen(spots_, plan_, l)) to[l] = fill_[i];
      }
    }
  }

  void add_slopes_plain(A* by_x, A* by_y, const A* g, int64_t stride, int64_t c, int64_t c_end, int64_t lanes) const {
    for (int64_t i = c; i < c_end; ++i, g += stride) {
      const T* const plane = image_.at(i, 0);
      if (found_ == Found::fours) {
        Fours<T, A> fours;
        read_fours(fours, plane, image_, corners_);
        add_slopes_of_fours(by_x, by_y, g, fours, corners_);
      } else if (found_ == Found::sixteens) {
        read_cubic<true, T, A>(nullptr, by_x, by_y, g, plane, image_, corners_, cubic_, layout_ == Layout::planes);
      } else {
        alignas(64) A value[kSpots], slope_x[kSpots], slope_y[kSpots];
        read_anywhere<true>(value, slope_x, slope_y, plane, image_, near_, fill_[i]);
        for (int64_t l = 0; l < lanes; ++l)
          if (is_seen(spots_, plan_, l)) by_x[l] += g[l] * slope_x[l], by_y[l] += g[l] * slope_y[l];
      }
    }
  }

  enum class Found { between, fours, sixteens, anywhere };

  template <bool slopes, bool affine>
  DIFFCROP_INLINE void find_by(const Line& line, const double* u) {
#if DIFFCROP_LOOKUPS
    if constexpr (std::is_same_v<A, float>)
      if (layout_ != Layout::others && surface_.taps == 2 &&
          find_between<affine, slopes>(between_, spots_, line, u, surface_, image_.row, image_.column)) {
        found_ = Found::between;
        return;
      }
#endif
    diffcrop::DIFFCROP_LEVEL::find<affine>(spots_, line, u);
    if (surface_.taps == 2 && find_corners(corners_, spots_, surface_, 0, 1)) {
      found_ = Found::fours;
    } else if (surface_.taps == 4 && find_corners(corners_, spots_, surface_, 1, 2)) {
      found_ = Found::sixteens;
      find_cubic<slopes>(cubic_, corners_, surface_.a);
    } else {
      found_ = Found::anywhere;
      near_.find(spots_, surface_);
    }
  }

  const WarpPlan& plan_;
  const Surface& surface_;
  const View<const T>& image_;
  const A* fill_;
  const Layout layout_;
  Found found_ = Found::anywhere;
  Spots spots_;
  Corners<A> corners_;
#if DIFFCROP_LOOKUPS
  Between between_;
#endif
  Cubic<A> cubic_;
  Neighbours<A> near_;
};

}  // namespace diffcrop::DIFFCROP_LEVEL
