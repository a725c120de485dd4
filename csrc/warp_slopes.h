// The derivative of every output of a warp by the entries of its matrix. Compiled once for every instruction set, after
// warp_rows.h.

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
  const bool close = lies_close(image, surface), fours = surface.taps == 2;
  alignas(64) A ones[kSpots];
  for (A& one : ones) one = 1;
  Spots spots;
  Corners<A> corners;
  Neighbours<A> near;
  for (int64_t k = begin * y.m; k < (end - 1) * y.m + y.length(); ++k) {
    const double v = y.place(k);
    const Line lattice(plan, v);
    for (int64_t j = 0; j < count; j += kSpots) {
      find(spots, plan, lattice, u + j);
      const bool inside = fours && find_corners(corners, spots, surface, 0, 1);
      if (!inside) near.find(spots, surface);
      for (int64_t n = c; n < c_end; ++n) {
        alignas(64) A value[kSpots], by_x[kSpots] = {}, by_y[kSpots] = {};
        if (inside) {
          add_slopes_inside(by_x, by_y, ones, image.at(n, 0), image, corners, close);
        } else {
          read_anywhere<true>(value, by_x, by_y, image.at(n, 0), image, near, fill[n]);
          for (int64_t l = 0; l < kSpots; ++l)
            if (!is_seen(spots, plan, l)) by_x[l] = by_y[l] = 0;
        }
        write_entries(fine + (n - c) * entries * stride + j, stride, projective, spots, plan.affine, u + j, v, by_x,
                      by_y);
      }
    }
    const int64_t first = std::max(begin, first_of(k - y.length() + 1, y.m)), last = std::min(end - 1, k / y.m);
    for (int64_t i = first; i <= last; ++i) {
      const int64_t t = k - i * y.m;
      A* const sum = sums + i % overlap * each;
      const auto weight = static_cast<A>(y.weight[t]);
      if (t == 0)
        for (int64_t p = 0; p < each; ++p) sum[p] = weight * fine[p];
      else
        for (int64_t p = 0; p < each; ++p) sum[p] += weight * fine[p];
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

template <class T>
WarpKernels<T> warp_kernels() {
  return {warp_rows<T>, warp_jacobian_rows<T>, matrix_rows<T>, warp_image_rows<ResultOf<T>>};
}
template WarpKernels<double> warp_kernels();
template WarpKernels<float> warp_kernels();
template WarpKernels<Half> warp_kernels();
template WarpKernels<BFloat16> warp_kernels();
template WarpKernels<uint8_t> warp_kernels();

}  // namespace diffcrop::DIFFCROP_LEVEL
