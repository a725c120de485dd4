// The values of warps of one box. Compiled once for every instruction set, as warp_places.h is.

namespace diffcrop::DIFFCROP_LEVEL {

template <class O, class A>
void write_line(O* to, int64_t step, const A* from, int64_t count) {
  if (step == 1 && count == kSpots)  // a length that is known: a copy would be made by a loop that starts slowly
    for (int64_t j = 0; j < kSpots; ++j) to[j] = store<O>(from[j]);
  else if (step == 1)
    for (int64_t j = 0; j < count; ++j) to[j] = store<O>(from[j]);
  else
    for (int64_t j = 0; j < count; ++j) to[j * step] = store<O>(from[j]);
}

// The first of some lines in a weighted sum of them, or another.
template <class A>
DIFFCROP_INLINE void add_line(A* __restrict to, const A* __restrict from, A weight, bool first, int64_t count) {
  if (first)
    for (int64_t j = 0; j < count; ++j) to[j] = weight * from[j];
  else
    for (int64_t j = 0; j < count; ++j) to[j] += weight * from[j];
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

// What was found, the first `lanes` samples of channels [c, c_end), to where the first of them belongs.
template <class T, class A>
DIFFCROP_INLINE void read_to(ResultOf<T>* to, const View<ResultOf<T>>& out, Sampler<T, A>& sampler, int64_t c,
                             int64_t c_end, int64_t lanes) {
  if constexpr (std::is_same_v<ResultOf<T>, A>) {
    if (out.column == 1 && lanes == kSpots) return sampler.read(to, out.channel, c, c_end);
    if (out.channel == 1 && sampler.read_side_by_side(to, out.column, c, c_end, lanes)) return;
  }
  alignas(64) A values[kShared * kSpots];
  sampler.read(values, kSpots, c, c_end);
  for (int64_t n = 0; n < c_end - c; ++n) write_line(to + n * out.channel, out.column, values + n * kSpots, lanes);
}

template <class T, class A>
void warp_narrow(Sampler<T, A>& sampler, const WarpPlan& plan, const View<ResultOf<T>>& out, int64_t width, int64_t c,
                 int64_t c_end, int64_t begin, int64_t end, Scratch<A>& scratch) {
  const Lattice<A> lattice(plan, width, begin, end, scratch);
  const bool one_row = out.row == width * out.column;
  for (int64_t k = 0; k < lattice.count; k += kSpots) {
    const int64_t lanes = std::min(kSpots, lattice.count - k);
    sampler.template find<false>(Line(plan, lattice.v + k), lattice.u + k);
    if (one_row) {
      read_to(out.at(c, begin) + k * out.column, out, sampler, c, c_end, lanes);
      continue;
    }
    alignas(64) A values[kShared * kSpots];
    sampler.read(values, kSpots, c, c_end);
    for (int64_t n = c; n < c_end; ++n)
      for (int64_t l = 0; l < lanes; ++l)
        out.at(n, begin + (k + l) / width)[(k + l) % width * out.column] =
            store<ResultOf<T>>(values[(n - c) * kSpots + l]);
  }
}

// Rows [begin, end) of channels [c, c_end) of a crop, `width` wide.
template <class T>
void warp_rows(const WarpPlan& plan, const Surface& surface, const View<const T>& image, const View<ResultOf<T>>& out,
               int64_t width, int64_t c, int64_t c_end, int64_t begin, int64_t end, const SumOf<T>* fill,
               Scratch<SumOf<T>>& scratch) {
  using A = SumOf<T>;
  scratch.clear();
  Sampler<T, A> sampler(plan, surface, image, fill);
  const Reduction& y = plan.y;
  if (plan.x.length() == 1 && y.length() == 1) {
    if (is_narrow(width)) return warp_narrow(sampler, plan, out, width, c, c_end, begin, end, scratch);
    const double* const u = places(plan.x, width, scratch);
    const bool by_channel = out.column == 1 && sampler.is_crowded(c_end - c);
    // Otherwise a few rows: those of many would ask for too little at a time.
    const int64_t step = by_channel ? kAbreast : 2;
    for (int64_t top = begin; top < end; top += step)
      for (int64_t j = 0; j < width; j += kSpots) {
        const int64_t stop = std::min(top + step, end), lanes = std::min(kSpots, width - j);
        const View<ResultOf<T>> part{out.data + j * out.column, out.channel, out.row, out.column, out.more};
        if (by_channel && lanes == kSpots && sampler.read_rows(part, top, stop, u + j, c, c_end)) continue;
        for (int64_t i = top; i < stop; ++i) {
          sampler.template find<false>(Line(plan, y.place(i)), u + j);
          read_to(part.at(c, i), out, sampler, c, c_end, lanes);
        }
      }
    return;
  }
  const int64_t count = plan.x.count(width), stride = padded(count), channels = c_end - c;
  const double* const u = places(plan.x, count, scratch);
  A* const fine = scratch.take(channels * stride);
  // Sums of the outputs that share a sample, output i in place i % overlap.
  const int64_t overlap = y.overlap(), each = channels * stride;
  A* const sums = scratch.take(overlap * each);
  A* const line = scratch.take(padded(width));
  const A* const across = weights_of(plan.x, scratch);
  for (int64_t k = begin * y.m; k < (end - 1) * y.m + y.length(); ++k) {
    const Line lattice(plan, y.place(k));
    for (int64_t j = 0; j < count; j += kSpots) {
      sampler.template find<false>(lattice, u + j);
      sampler.read(fine + j, stride, c, c_end);
    }
    const int64_t first = std::max(begin, first_of(k - y.length() + 1, y.m));
    const int64_t last = std::min(end - 1, k / y.m);
    for (int64_t i = first; i <= last; ++i) {
      const int64_t t = k - i * y.m;
      A* const sum = sums + i % overlap * each;
      add_line(sum, fine, static_cast<A>(y.weight[t]), t == 0, each);
      if (t + 1 < y.length()) continue;
      for (int64_t n = 0; n < channels; ++n) {
        reduce_line(line, sum + n * stride, across, plan.x, width);
        write_line(out.at(c + n, i), out.column, line, width);
      }
    }
  }
}

}  // namespace diffcrop::DIFFCROP_LEVEL
