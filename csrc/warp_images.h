// The gradient of warps by the image. Compiled once for every instruction set, as warp_places.h is.

namespace diffcrop::DIFFCROP_LEVEL {

// Some rows and columns of the gradient of some channels while boxes add to it: all channels of a pixel lie side by
// side, `group` of them.
template <class A>
struct Tile {
  A* data;
  int64_t begin, end, left;
  int64_t row;  // pixels from one to the next
  int64_t group;
  // How many pixels the first one lies behind that of row 0 and column 0, if the tile went on to there.
  int64_t offset() const { return begin * row + left; }
  A* at(int64_t i, int64_t column) const { return data + (i * row + column - offset()) * group; }
};

// Pixels to a row of a tile that is `width` wide: an odd number of lines of the cache, so that pixels above each other
// have different places in it. With powers of two a box that is turned by 90 degrees took ten times as long.
template <class A>
int64_t row_of_tile(int64_t width, int64_t group) {
  const int64_t each = std::max<int64_t>(64 / (group * static_cast<int64_t>(sizeof(A))), 1);
  return ((width + each - 1) / each | 1) * each;
}

// Numbers [first, last) of a line.
struct Stretch {
  int64_t first, last;
};

// The samples of a line that may read rows [begin, end) of the image: their position lies in (begin - reach, end -
// 1 + reach), which are two linear inequalities in u. With a margin for rounding.
inline Stretch stretch_of(const WarpPlan& plan, const Surface& surface, const double* u, int64_t count, double v,
                          int64_t begin, int64_t end) {
  const double reach = static_cast<double>(surface.taps) / 2;
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

// How many of sixteen samples lie in the tile with the rows above and below them that they read.
enum class Touch { none, some, all };

// Sixteen samples whose four pixels all lie in the image: the upper left ones in the tile, whether there or not, and
// what each gives to its pixels.
template <class A>
struct alignas(64) Shares {
  A weight[4][kSpots];
  int32_t place[kSpots], row[kSpots];
};

template <class A>
DIFFCROP_INLINE void find_shares(Shares<A>& shares, const Tile<A>& tile, const Corners<A>& corners) {
  const auto offset = static_cast<int32_t>(tile.offset());
  for (int64_t l = 0; l < kSpots; ++l) {
    const A x = corners.x[l], y = corners.y[l];
    shares.weight[0][l] = (1 - y) * (1 - x), shares.weight[1][l] = (1 - y) * x;
    shares.weight[2][l] = y * (1 - x), shares.weight[3][l] = y * x;
    shares.row[l] = corners.row[l];
    shares.place[l] = corners.row[l] * static_cast<int32_t>(tile.row) + corners.column[l] - offset;
  }
}

// Adds the first `lanes` of them; with `whole` all their pixels lie in the tile.
template <int group, bool whole, class A>
void scatter_inside(const Tile<A>& tile, const Shares<A>& shares, const A* g, int64_t lanes) {
  const int64_t down = tile.row * group;
  for (int64_t i = 0; i < kSpots; ++i) {
    const int64_t l = i * kTurn % kSpots;
    if (l >= lanes) continue;
    A* const to = tile.data + int64_t{shares.place[l]} * group;
    const Pixel<group, A> some(g + l * group);
    if (whole || (shares.row[l] >= tile.begin && shares.row[l] < tile.end)) {
      some.add_to(to, shares.weight[0][l]);
      some.add_to(to + group, shares.weight[1][l]);
    }
    if (whole || (shares.row[l] + 1 >= tile.begin && shares.row[l] + 1 < tile.end)) {
      some.add_to(to + down, shares.weight[2][l]);
      some.add_to(to + down + group, shares.weight[3][l]);
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

// Columns [left, right), none where left is not below right.
struct Columns {
  int64_t left, right;
  bool some() const { return left < right; }
};

// Columns of the image to which the samples of a box can add in rows [begin, end): those between the outermost points
// of the quadrilateral of all samples there, with a margin for rounding.
inline Columns columns_of(const WarpPlan& plan, const Surface& surface, int64_t height, int64_t width, int64_t begin,
                          int64_t end) {
  const Columns all{0, surface.width};
  if (surface.scattered() || (surface.align_corners && surface.width == 1)) return all;
  const double us[2] = {plan.x.place(0), plan.x.place(plan.x.count(width) - 1)};
  const double vs[2] = {plan.y.place(0), plan.y.place(plan.y.count(height) - 1)};
  double x[4], y[4];
  for (int corner = 0; corner < 4; ++corner) {
    const double u = us[corner == 1 || corner == 2], v = vs[corner >= 2];
    double sum[3], size[3];
    for (int i = 0; i < 3; ++i) {
      const double parts[3] = {plan.m[3 * i] * u, plan.m[3 * i + 1] * v, plan.m[3 * i + 2]};
      sum[i] = parts[0] + parts[1] + parts[2];
      size[i] = std::abs(parts[0]) + std::abs(parts[1]) + std::abs(parts[2]);
    }
    // Near the horizon and far out rounding may be more than the margin. Not so below: 1e-16 * 1e9 * 1e4 pixels.
    if (!(size[2] < 1e4 * sum[2] && std::max(size[0], size[1]) < 1e9 * sum[2])) return all;
    x[corner] = sum[0] / sum[2], y[corner] = sum[1] / sum[2];
  }
  const double margin = static_cast<double>(surface.taps) / 2 + 1.5;
  const bool border = surface.padding == Padding::border;
  const double top = border && begin == 0 ? -kInfinity : static_cast<double>(begin) - margin;
  const double bottom = border && end == surface.height ? kInfinity : static_cast<double>(end) + margin;
  double least = kInfinity, most = -kInfinity;
  for (int corner = 0; corner < 4; ++corner) {
    const int next = (corner + 1) % 4;
    const double side = x[next] - x[corner], rise = y[next] - y[corner];
    // From share `from` to share `to` the side lies between top and bottom.
    double from = 0, to = 1;
    if (rise == 0) {
      if (y[corner] < top || y[corner] > bottom) continue;
    } else {
      const double a = (top - y[corner]) / rise, b = (bottom - y[corner]) / rise;
      from = std::max(from, std::min(a, b)), to = std::min(to, std::max(a, b));
      if (!(from <= to)) continue;
    }
    least = std::min({least, x[corner] + from * side, x[corner] + to * side});
    most = std::max({most, x[corner] + from * side, x[corner] + to * side});
  }
  const auto last = static_cast<double>(surface.width - 1);
  double left = std::floor(least - margin), right = std::ceil(most + margin);
  // What padding puts beside the image belongs to the columns at its edge.
  if (border) left = std::min(left, last), right = std::max(right, 1.0);
  if (!(least <= most) || left > last || right < 1) return {0, 0};
  return {static_cast<int64_t>(std::max(left, 0.0)), static_cast<int64_t>(std::min(right, last + 1))};
}

#if DIFFCROP_LOOKUPS
DIFFCROP_INLINE Touch touch_of_lanes(int64_t begin, int64_t end, const Between& between) {
  const __m512i row = _mm512_sub_epi32(between.row, _mm512_set1_epi32(static_cast<int>(begin - 1)));
  const auto rows = static_cast<int>(end - begin);
  // From 0 on: the row above the tile, its rows.
  if (_mm512_cmple_epu32_mask(row, _mm512_set1_epi32(rows)) == 0) return Touch::none;
  const __m512i inner = _mm512_sub_epi32(row, _mm512_set1_epi32(1));
  return _mm512_cmplt_epu32_mask(inner, _mm512_set1_epi32(rows - 1)) == 0xffff ? Touch::all : Touch::some;
}

// `between.place` as if the tile's rows began with row and column 0.
DIFFCROP_INLINE void find_shares_lanes(Shares<float>& shares, const Tile<float>& tile, const Between& between) {
  const __m512 x = between.x, y = between.y, one = _mm512_set1_ps(1);
  const __m512 left = _mm512_sub_ps(one, x), above = _mm512_sub_ps(one, y);
  _mm512_store_ps(shares.weight[0], _mm512_mul_ps(above, left));
  _mm512_store_ps(shares.weight[1], _mm512_mul_ps(above, x));
  _mm512_store_ps(shares.weight[2], _mm512_mul_ps(y, left));
  _mm512_store_ps(shares.weight[3], _mm512_mul_ps(y, x));
  const __m512i offset = _mm512_set1_epi32(static_cast<int>(tile.offset()));
  _mm512_store_si512(shares.place, _mm512_sub_epi32(_mm512_load_si512(between.place), offset));
  _mm512_store_si512(shares.row, between.row);
}
#endif

// Where sixteen samples were found, and how to add their parts to a tile.
template <int group, class A>
class Scatterer {
 public:
  Scatterer(const Tile<A>& tile, const WarpPlan& plan, const Surface& surface)
      : tile_(tile), plan_(plan), surface_(surface), few_((surface.width + 64) * surface.height < INT32_MAX) {}

  DIFFCROP_INLINE void add(const Line& line, const double* u, const A* g, int64_t lanes) {
    Touch touch = Touch::some;
    if (surface_.taps == 2 && few_ && find_fours(line, u, touch)) {
      if (touch == Touch::all)
        scatter_inside<group, true>(tile_, shares_, g, lanes);
      else if (touch == Touch::some)
        scatter_inside<group, false>(tile_, shares_, g, lanes);
      return;
    }
    add_others(line, u, g, lanes);
  }

 private:
  DIFFCROP_INLINE Touch touch_of(const Corners<A>& corners, int before) const {
    if (corners.bottom + before + 1 < tile_.begin || corners.top - before >= tile_.end) return Touch::none;
    return corners.top - before >= tile_.begin && corners.bottom + before + 1 < tile_.end ? Touch::all : Touch::some;
  }

  DIFFCROP_INLINE bool find_fours(const Line& line, const double* u, Touch& touch) {
#if DIFFCROP_LOOKUPS
    if constexpr (std::is_same_v<A, float>) {
      const bool found = plan_.affine ? find_between<true, false>(between_, spots_, line, u, surface_, tile_.row, 1)
                                      : find_between<false, false>(between_, spots_, line, u, surface_, tile_.row, 1);
      if (found && (touch = touch_of_lanes(tile_.begin, tile_.end, between_)) != Touch::none)
        find_shares_lanes(shares_, tile_, between_);
      return found;
    }
#endif
    find(spots_, plan_, line, u);
    if (!find_corners(corners_, spots_, surface_, 0, 1)) return false;
    if ((touch = touch_of(corners_, 0)) != Touch::none) find_shares(shares_, tile_, corners_);
    return true;
  }

  void add_others(const Line& line, const double* u, const A* g, int64_t lanes) {
    find(spots_, plan_, line, u);
    if (surface_.taps == 4 && find_corners(corners_, spots_, surface_, 1, 2)) {
      if (touch_of(corners_, 1) == Touch::none) return;
      find_cubic<false>(cubic_, corners_, surface_.a);
      return scatter_cubic<group>(tile_, corners_, cubic_, g);  // behind the last sample cotangents are zero
    }
    near_.find(spots_, surface_);
    scatter_anywhere<group>(tile_, plan_, spots_, near_, g, lanes);
  }

  const Tile<A>& tile_;
  const WarpPlan& plan_;
  const Surface& surface_;
  const bool few_;
  Spots spots_;
  Corners<A> corners_;
#if DIFFCROP_LOOKUPS
  Between between_;
#endif
  Shares<A> shares_;
  Cubic<A> cubic_;
  Neighbours<A> near_;
};

// Adds outputs [stretch.first, stretch.last) of a line to the pixels that `nearest` reads.
template <int group, class A>
void add_nearest(const Tile<A>& tile, const WarpPlan& plan, const Surface& surface, const Stretch& stretch,
                 const double* u, double v, const A* g) {
  for (int64_t j = stretch.first; j < stretch.last; ++j) {
    const auto [row, column] = nearest_pixel(plan, surface, u[j], v);
    if (row >= tile.begin && row < tile.end && column >= 0)
      Pixel<group, A>(g + j * group).add_to(tile.at(row, column), 1);
  }
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
  Scatterer<group, A> scatterer(tile, plan, surface);
  const int64_t lines = plan.y.count(part.height);
  for (int64_t k = 0; k < lines; ++k) {
    const double v = plan.y.place(k);
    const Stretch stretch =
        surface.scattered() ? Stretch{0, count} : stretch_of(plan, surface, u, count, v, tile.begin, tile.end);
    if (stretch.first >= stretch.last) continue;
    const Line line(plan, v);
    const int64_t first = stretch.first / kSpots * kSpots;
    const A* const g = cotangent.line(k, first * group, std::min(padded(stretch.last) * group, size));
    if (surface.mode == Mode::nearest) {
      add_nearest<group>(tile, plan, surface, stretch, u, v, g);
      continue;
    }
    for (int64_t j = first; j < stretch.last; j += kSpots)
      scatterer.add(line, u + j, g + j * group, std::min(count - j, kSpots));
  }
}

// Sets columns [first, last) of `channels` rows to 0. With `pixels` the channels of a column lie side by side.
template <class G>
void clear(G* const* rows, int64_t channels, int64_t step, bool pixels, int64_t first, int64_t last) {
  const int64_t together = pixels ? channels : 1;
  for (int64_t n = 0; n < channels; n += together) {
    if (step == together)
      std::fill(rows[n] + first * step, rows[n] + last * step, G{});
    else
      for (int64_t j = first; j < last; ++j) std::fill_n(rows[n] + j * step, together, G{});
  }
}

template <int group, class G, class A>
void group_rows(std::span<const WarpPart<G>> parts, const Surface& surface, const View<G>& out, int64_t c,
                int64_t c_end, int64_t begin, int64_t end, Scratch<A>& scratch) {
  Columns columns{surface.width, 0};
  const auto touching = [&](const WarpPart<G>& part) {
    const Columns some = columns_of(*part.plan, surface, part.height, part.width, begin, end);
    if (some.some()) columns = {std::min(columns.left, some.left), std::max(columns.right, some.right)};
    return some.some();
  };
  for (const auto& part : parts) touching(part);
  if (!columns.some()) columns = {0, 0};
  // Whole registers of the result, whose rows mostly begin at one.
  columns = {columns.left / kSpots * kSpots, std::min(padded(columns.right), surface.width)};
  const int64_t width = columns.right - columns.left, length = row_of_tile<A>(width, group);
  const int64_t size = (end - begin) * length * group;
  const Tile<A> tile{scratch.take(size), begin, end, columns.left, length, group};
  std::fill_n(tile.data, size, A(0));
  for (const auto& part : parts) {
    if (!touching(part)) continue;
    const auto mark = scratch.mark();
    add_box<group>(tile, part, surface, c, c_end, scratch);
    scratch.release(mark);
  }
  const bool pixels = out.channel == 1 && out.more == 0;
  // Channels that are not there go to a row that nobody reads.
  auto* const nowhere = pixels ? nullptr : reinterpret_cast<G*>(scratch.take(width * std::max<int64_t>(out.column, 1)));
  for (int64_t row = begin; row < end; ++row) {
    // From left to right: pieces written in another order take twice as long.
    G* rows[group];
    for (int64_t n = 0; n < group; ++n) rows[n] = c + n < c_end ? out.at(c + n, row) : nowhere;
    clear(rows, c_end - c, out.column, pixels, 0, columns.left);
    const A* from = tile.at(row, columns.left);
    for (int64_t n = 0; n < group; ++n)
      if (c + n < c_end) rows[n] += columns.left * out.column;
    if (pixels) {
      for (int64_t j = 0; j < width; ++j, from += group)
        for (int64_t n = 0; n < c_end - c; ++n) rows[0][j * out.column + n] = store<G>(from[n]);
    } else {
      separate<group>(rows, from, out.column, width);
    }
    clear(rows, c_end - c, out.column, pixels, width, surface.width - columns.left);
  }
}

// Rows [begin, end) of channels [c, c_end) of the gradient by one image, summed over all its boxes in their order by
// one thread.
template <class G>
void warp_image_rows(std::span<const WarpPart<G>> parts, const Surface& surface, const View<G>& out, int64_t c,
                     int64_t c_end, int64_t begin, int64_t end, Scratch<SumOf<G>>& scratch) {
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
