// The derivative of every output of a warp by the entries of its matrix. Compiled once for every instruction set, as
// warp_places.h is.

namespace diffcrop::DIFFCROP_LEVEL {

// entries[e stride + l] = the derivative of sixteen samples, with slopes by their positions, by entry e: of the first
// two rows of the matrix, or all three.
template <class A>
DIFFCROP_INLINE void write_entries(A* entries, int64_t stride, bool projective, const Spots& spots, bool affine,
                                   const double* u, double v, const A* by_x, const A* by_y) {
  for (int64_t l = 0; l < kSpots; ++l) {
    const double scale = affine ? 1 : spots.inverse[l];
    const double along[2] = {scale * static_cast<double>(by_x[l]), scale * static_cast<double>(by_y[l])};
    const double rows[3] = {along[0], along[1], -(spots.x[l] + 0.5) * along[0] - (spots.y[l] + 0.5) * along[1]};
    for (int row = 0; row < (projective ? 3 : 2); ++row) {
      A* const some = entries + 3 * row * stride + l;
      some[0] = static_cast<A>(rows[row] * u[l]);
      some[stride] = static_cast<A>(rows[row] * v);
      some[2 * stride] = static_cast<A>(rows[row]);
    }
  }
}

// Rows [begin, end) of channels [c, c_end) of (C, h, w, 6 or 9), of which `out` shows the first entry.
template <class T>
void warp_jacobian_rows(const WarpPlan& plan, const Surface& surface, const View<const T>& image,
                        const View<ResultOf<T>>& out, int64_t width, bool projective, int64_t c, int64_t c_end,
                        int64_t begin, int64_t end, const SumOf<T>* fill, Scratch<SumOf<T>>& scratch) {
  using A = SumOf<T>;
  scratch.clear();
  const Reduction& y = plan.y;
  const int64_t entries = projective ? 9 : 6, count = plan.x.count(width), stride = padded(count);
  const int64_t overlap = y.overlap(), each = (c_end - c) * entries * stride;
  const double* const u = places(plan.x, count, scratch);
  A* const fine = scratch.take(each);
  // Sums of the outputs that share a line of samples, output i in place i % overlap.
  A* const sums = scratch.take(overlap * each);
  A* const line = scratch.take(padded(width));
  const A* const across = weights_of(plan.x, scratch);
  Sampler<T, A> sampler(plan, surface, image, fill);
  alignas(64) A ones[kSpots];
  for (A& one : ones) one = 1;
  for (int64_t k = begin * y.m; k < (end - 1) * y.m + y.length(); ++k) {
    const double v = y.place(k);
    const Line lattice(plan, v);
    for (int64_t j = 0; j < count; j += kSpots) {
      sampler.template find<true>(lattice, u + j);
      for (int64_t n = c; n < c_end; ++n) {
        alignas(64) A by_x[kSpots] = {}, by_y[kSpots] = {};
        sampler.add_slopes(by_x, by_y, ones, 0, n, n + 1, kSpots);
        write_entries(fine + (n - c) * entries * stride + j, stride, projective, sampler.spots(), plan.affine, u + j, v,
                      by_x, by_y);
      }
    }
    const int64_t first = std::max(begin, first_of(k - y.length() + 1, y.m)), last = std::min(end - 1, k / y.m);
    for (int64_t i = first; i <= last; ++i) {
      const int64_t t = k - i * y.m;
      A* const sum = sums + i % overlap * each;
      add_line(sum, fine, static_cast<A>(y.weight[t]), t == 0, each);
      if (t + 1 < y.length()) continue;
      for (int64_t n = c; n < c_end; ++n)
        for (int64_t e = 0; e < entries; ++e) {
          reduce_line(line, sum + ((n - c) * entries + e) * stride, across, plan.x, width);
          ResultOf<T>* const to = out.at(n, i) + e;
          for (int64_t j = 0; j < width; ++j)
            to[j * out.column] = store<ResultOf<T>>(static_cast<A>(plan.sign) * line[j]);
        }
    }
  }
}

}  // namespace diffcrop::DIFFCROP_LEVEL
