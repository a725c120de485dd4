// The transpose of the reduction of a warp's samples to its outputs. Compiled once for every instruction set, as
// warp_places.h is.

namespace diffcrop::DIFFCROP_LEVEL {

// Brings rows side by side: number n of place j of the result is number j of row n. The row that lies `ahead` of each
// will be wanted next.
template <int group, class G, class A>
void interleave(A* __restrict to, const G* const* rows, int64_t step, int64_t count, [[maybe_unused]] int64_t ahead) {
  const G* row[group];
  for (int n = 0; n < group; ++n) row[n] = rows[n];
#if DIFFCROP_LOOKUPS
  if constexpr (group == 4 && std::is_same_v<A, float>)
    if (step == 1) return interleave_lanes(to, row, count, ahead);
#endif
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
  // The last `abreast` lines asked for stay where they are.
  Cotangent(const WarpPlan& plan, const View<const G>& grad, int64_t height, int64_t width, int64_t c, int64_t c_end,
            Scratch<A>& scratch, int64_t abreast = 1)
      : x_(plan.x),
        y_(plan.y),
        grad_(grad),
        height_(height),
        width_(width),
        c_(c),
        c_end_(c_end),
        stride_(padded(plan.x.count(width))),
        size_((group == 1 ? c_end - c : group) * stride_),
        kept_(std::max(plan.y.overlap(), abreast)) {
    if (lies_ready()) {
      stride_ = grad.channel + grad.more;
      return;
    }
    lines_ = scratch.take(kept_ * size_);
    std::fill_n(lines_, kept_ * size_, A(0));
    held_ = reinterpret_cast<int64_t*>(scratch.take(kept_ * static_cast<int64_t>(sizeof(int64_t) / sizeof(A))));
    std::fill_n(held_, kept_, int64_t{-1});
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
    if constexpr (std::is_same_v<G, A>)
      if (lines_ == nullptr) return grad_.at(c_, k);
    const int64_t first = std::max<int64_t>(0, first_of(k - y_.length() + 1, y_.m));
    const int64_t last = std::min(height_ - 1, k / y_.m);
    if (sum_ == nullptr) return x_.length() > 1 ? output(last) : plain(last, from / group, to / group);
    for (int64_t i = first; i <= last; ++i)
      add_line(sum_ + from, output(i) + from, static_cast<A>(y_.weight[k - i * y_.m]), i == first, to - from);
    return sum_;
  }

 private:
  // Whether the outputs' cotangents are the samples', and lie as they are wanted.
  bool lies_ready() const {
    return group == 1 && std::is_same_v<G, A> && x_.length() == 1 && y_.length() == 1 && grad_.column == 1 &&
           width_ % kSpots == 0;
  }

  // The cotangents of row i of the outputs, spread along the row.
  const A* output(int64_t i) {
    A* const line = lines_ + i % kept_ * size_;
    if (held_[i % kept_] == i) return line;
    held_[i % kept_] = i;
    for (int64_t n = c_; n < c_end_; n += group) {
      const G* rows[group];
      // What stands for channels that are not there is not looked at.
      for (int64_t k = 0; k < group; ++k) rows[k] = grad_.at(std::min(n + k, c_end_ - 1), i);
      A* const to = line + (n - c_) * stride_;
      const bool spread = x_.length() > 1;
      interleave<group>(spread ? outputs_ + (x_.overlap() - 1) * group : to, rows, grad_.column, width_, grad_.row);
      if (spread) spread_row(to);
    }
    return line;
  }

  // The same where nothing is spread: only those that are asked for.
  const A* plain(int64_t i, int64_t from, int64_t to) {
    from = group == 1 ? 0 : from, to = group == 1 ? width_ : std::min(to, width_);
    A* const line = lines_ + i % kept_ * size_;
    for (int64_t n = c_; n < c_end_; n += group) {
      const G* rows[group];
      for (int64_t k = 0; k < group; ++k) rows[k] = grad_.at(std::min(n + k, c_end_ - 1), i) + from * grad_.column;
      interleave<group>(line + (n - c_) * stride_ + from * group, rows, grad_.column, to - from, grad_.row);
    }
    return line;
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
  int64_t height_, width_, c_, c_end_, stride_, size_, kept_;
  A *lines_ = nullptr, *sum_ = nullptr, *outputs_ = nullptr;
  const A* across_;
  int64_t* held_;
};

}  // namespace diffcrop::DIFFCROP_LEVEL
