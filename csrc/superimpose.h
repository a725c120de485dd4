// Blending patches into rows of a canvas, and back. Compiled once for every instruction set, as passes.h is.
//
// With v and m the colour and the matte that a patch brings to a row, and g the derivative by the row,
//
//   over   c' = (1 - m) c + v       by v: g      by m: -<g, c>      by c: (1 - m) g
//   add    c' = c + v               by v: g                         by c: g
//
// The mask is one more row with v = m, which starts from zeros.

namespace diffcrop::DIFFCROP_LEVEL {

template <class A>
DIFFCROP_INLINE void put_over(A* __restrict canvas, const A* __restrict v, const A* __restrict m, int64_t length) {
  for (int64_t j = 0; j < length; ++j) canvas[j] = (1 - m[j]) * canvas[j] + v[j];
}

template <class A>
DIFFCROP_INLINE void put_mask(A* __restrict mask, const A* __restrict m, bool over, int64_t length) {
  for (int64_t j = 0; j < length; ++j) mask[j] = over ? (1 - m[j]) * mask[j] + m[j] : mask[j] + m[j];
}

// m of `count` rows of a patch that is opaque throughout: the product of what is covered of both axes.
template <class A>
DIFFCROP_INLINE void put_shares(A* __restrict m, const A* __restrict along, A across, int64_t length) {
  for (int64_t j = 0; j < length; ++j) m[j] = across * along[j];
}

// Output rows of a product that come together: of channel c from row i on.
struct Some {
  int64_t count;
  Row rows[kBatch];
  Some(int64_t c, int64_t i, int64_t end) : count(std::min<int64_t>(end - i, kBatch)) {
    for (int64_t r = 0; r < count; ++r) rows[r] = {c, i + r};
  }
};

// m of rows [begin, end), one behind the other.
template <class A>
void put_mattes(A* mattes, const BoxPlan<A>& box, Product<A, A>& product, const Blend<A>& to, int64_t begin,
                int64_t end) {
  const int64_t width = box.x.outputs;
  for (int64_t i = begin; i < end; i += kBatch) {
    const Some some(to.channels, i, end);
    A* outs[kBatch];
    for (int64_t r = 0; r < some.count; ++r) {
      outs[r] = mattes + (i + r - begin) * width;
      if (!to.matte) put_shares(outs[r], box.x.share[kValue].data(), box.y.share[kValue][i + r], width);
    }
    if (to.matte) product.template rows<false>(some.count, some.rows, outs);
  }
}

// Rows [begin, end) of the region, of all channels and the mask.
template <class A>
void blend_rows(const BoxPlan<A>& box, const View<const A>& patch, const Blend<A>& to, int64_t begin, int64_t end,
                Scratch<A>& scratch) {
  const int64_t width = box.x.outputs;
  Product<A, A> product(box.y, box.across, box.order, patch, begin, end, false, scratch);
  A* lines[kBatch];
  for (A*& line : lines) line = scratch.take(width);
  const bool keeps = to.kept.data != nullptr, masks = to.mask.data != nullptr;
  A* const mattes = scratch.take((end - begin) * width);
  if (to.over || masks) put_mattes(mattes, box, product, to, begin, end);
  for (int64_t c = 0; c < to.channels; ++c)
    for (int64_t i = begin; i < end; i += kBatch) {
      const Some some(c, i, end);
      if (!to.over) {
        A* outs[kBatch];
        for (int64_t r = 0; r < some.count; ++r) outs[r] = to.canvas.at(c, i + r);
        product.template rows<true>(some.count, some.rows, outs);
        continue;
      }
      product.template rows<false>(some.count, some.rows, lines);
      for (int64_t r = 0; r < some.count; ++r) {
        A* const row = to.canvas.at(c, i + r);
        if (keeps) std::memcpy(to.kept.at(c, i + r), row, width * sizeof(A));
        put_over(row, lines[r], mattes + (i + r - begin) * width, width);
      }
    }
  for (int64_t i = begin; i < end; ++i) {
    const A* const m = mattes + (i - begin) * width;
    if (keeps) std::memcpy(to.kept.at(to.channels, i), m, width * sizeof(A));
    if (!masks) continue;
    if (keeps) std::memcpy(to.kept.at(to.channels + 1, i), to.mask.at(0, i), width * sizeof(A));
    put_mask(to.mask.at(0, i), m, to.over, width);
  }
}

// by_m -= g c, and c = g, and g *= 1 - m.
template <class A>
DIFFCROP_INLINE void turn_row(A* __restrict by_m, A* __restrict c, A* __restrict g, const A* __restrict m,
                              int64_t length) {
  for (int64_t j = 0; j < length; ++j) {
    by_m[j] -= g[j] * c[j];
    c[j] = g[j];
    g[j] *= 1 - m[j];
  }
}

// The same for the mask, whose colour is m itself.
template <class A>
DIFFCROP_INLINE void turn_mask(A* __restrict by_m, const A* __restrict c, A* __restrict g, const A* __restrict m,
                               int64_t length) {
  for (int64_t j = 0; j < length; ++j) {
    by_m[j] += g[j] * (1 - c[j]);
    g[j] *= 1 - m[j];
  }
}

// From what blend_rows kept to the derivatives by v and by m in its place; the canvas and the mask are derivatives.
template <class A>
void turn_rows(const BoxPlan<A>& box, const Blend<A>& to, int64_t begin, int64_t end, Scratch<A>& scratch) {
  const int64_t width = box.x.outputs;
  A* const by_m = scratch.take(width);
  for (int64_t i = begin; i < end; ++i) {
    A* const m = to.kept.at(to.channels, i);
    std::fill_n(by_m, width, A(0));
    for (int64_t c = 0; c < to.channels; ++c) turn_row(by_m, to.kept.at(c, i), to.canvas.at(c, i), m, width);
    if (to.mask.data != nullptr) turn_mask(by_m, to.kept.at(to.channels + 1, i), to.mask.at(0, i), m, width);
    std::copy_n(by_m, width, m);
  }
}

// <g, d m / d box> of rows [begin, end) of a patch that is opaque throughout.
template <class A>
BoxSum share_rows(const BoxPlan<A>& box, const View<const A>& grad, int64_t begin, int64_t end, Scratch<A>& scratch) {
  scratch.clear();
  const AxisPlan<A>&x = box.x, &y = box.y;
  const int64_t width = x.outputs;
  A* const g = scratch.take(width);
  A* const columns = scratch.take(width);
  std::fill_n(columns, width, A(0));
  BoxSum sum;
  for (int64_t i = begin; i < end; ++i) {
    read_row(g, grad.at(0, i), width, grad.column, 1, grad.channel);
    const A share = y.share[kValue][i];
    double row = 0;
    for (int64_t j = 0; j < width; ++j) row += static_cast<double>(g[j]) * x.share[kValue][j];
    for (int64_t j = 0; j < width; ++j) columns[j] += share * g[j];
    const double by_center = row * y.share[kByCenter][i], by_width = row * y.share[kByWidth][i] * y.width_slope;
    sum.y.lo += (1 - y.fraction[i]) * by_center - by_width;
    sum.y.hi += y.fraction[i] * by_center + by_width;
  }
  for (int64_t j = 0; j < width; ++j) {
    const double by_center = static_cast<double>(columns[j]) * x.share[kByCenter][j];
    const double by_width = static_cast<double>(columns[j]) * x.share[kByWidth][j] * x.width_slope;
    sum.x.lo += (1 - x.fraction[j]) * by_center - by_width;
    sum.x.hi += x.fraction[j] * by_center + by_width;
  }
  return sum;
}

template <class A>
PasteKernels<A> paste_kernels() {
  return {blend_rows<A>, turn_rows<A>, share_rows<A>};
}
template PasteKernels<double> paste_kernels();
template PasteKernels<float> paste_kernels();

}  // namespace diffcrop::DIFFCROP_LEVEL
