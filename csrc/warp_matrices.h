// The gradient by the matrix of one box. Compiled once for every instruction set, as warp_places.h is.

namespace diffcrop::DIFFCROP_LEVEL {

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

// The same of all lines, for the nine entries.
struct alignas(64) MatrixSums {
  double of[9][kSpots] = {};

  // `v`: of all sixteen samples, or of each.
  template <class V>
  DIFFCROP_INLINE void add(const LineSums& sums, const V& v) {
    for (int row = 0; row < 3; ++row)
      for (int64_t l = 0; l < kSpots; ++l) {
        of[3 * row][l] += sums.times_u[row][l];
        if constexpr (std::is_pointer_v<V>)
          of[3 * row + 1][l] += v[l] * sums.of[row][l];
        else
          of[3 * row + 1][l] += v * sums.of[row][l];
        of[3 * row + 2][l] += sums.of[row][l];
      }
  }

  void add_to(double* result, double sign) const {
    for (int i = 0; i < 9; ++i)
      for (int64_t l = 0; l < kSpots; ++l) result[i] += sign * of[i][l];
  }
};

// Adds those of sixteen samples to `sums`.
template <class T, class A>
DIFFCROP_INLINE void add_spots(LineSums& sums, Sampler<T, A>& sampler, const Line& line, bool affine, const double* u,
                               const A* g, int64_t stride, int64_t c, int64_t c_end, int64_t lanes) {
  alignas(64) A by_x[kSpots] = {}, by_y[kSpots] = {};
  sampler.template find<true>(line, u);
  sampler.add_slopes(by_x, by_y, g, stride, c, c_end, lanes);
  add_samples(sums, sampler.spots(), affine, by_x, by_y, u);
}

template <class T, class A>
void add_narrow(MatrixSums& total, Sampler<T, A>& sampler, const WarpPlan& plan, const View<const ResultOf<T>>& grad,
                int64_t width, int64_t c, int64_t c_end, int64_t begin, int64_t end, Scratch<A>& scratch) {
  const Lattice<A> lattice(plan, width, begin, end, scratch);
  const int64_t stride = padded(lattice.count);
  A* const g = scratch.take((c_end - c) * stride);
  for (int64_t n = c; n < c_end; ++n) {
    A* to = g + (n - c) * stride;
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < width; ++j) *to++ = load<A>(grad.at(n, i)[j * grad.column]);
    std::fill(to, g + (n - c + 1) * stride, A(0));
  }
  for (int64_t k = 0; k < lattice.count; k += kSpots) {
    LineSums sums;
    add_spots(sums, sampler, Line(plan, lattice.v + k), plan.affine, lattice.u + k, g + k, stride, c, c_end,
              std::min(lattice.count - k, kSpots));
    total.add(sums, lattice.v + k);
  }
}

// Of rows [begin, end) of a crop that is not reduced, kAbreast of them at a time and in these sixteen columns: the sums
// are the same.
template <class T, class A>
void add_abreast(MatrixSums& total, Sampler<T, A>& sampler, const WarpPlan& plan, const View<const ResultOf<T>>& grad,
                 int64_t height, int64_t width, int64_t c, int64_t c_end, int64_t begin, int64_t end,
                 Scratch<A>& scratch) {
  const double* const u = places(plan.x, width, scratch);
  Cotangent<1, ResultOf<T>, A> cotangent(plan, grad, height, width, c, c_end, scratch, kAbreast);
  const int64_t stride = cotangent.stride(), size = cotangent.size();
  Abreast<A> rows;
  for (int64_t top = begin; top < end; top += kAbreast) {
    const int64_t count = std::min(kAbreast, end - top);
    const A *g[kAbreast], *some[kAbreast];
    LineSums sums[kAbreast];
    for (int64_t i = 0; i < count; ++i) g[i] = cotangent.line(top + i, 0, size);
    for (int64_t j = 0; j < width; j += kSpots) {
      for (int64_t i = 0; i < count; ++i) some[i] = g[i] + j;
      if (sampler.slopes_of_rows(rows, some, stride, top, top + count, u + j, c, c_end)) {
        for (int64_t i = 0; i < count; ++i)
          add_samples(sums[i], rows.spots[i], plan.affine, rows.by_x[i], rows.by_y[i], u + j);
      } else {
        for (int64_t i = 0; i < count; ++i)
          add_spots(sums[i], sampler, Line(plan, plan.y.place(top + i)), plan.affine, u + j, some[i], stride, c, c_end,
                    std::min(width - j, kSpots));
      }
    }
    for (int64_t i = 0; i < count; ++i) total.add(sums[i], plan.y.place(top + i));
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
  Sampler<T, A> sampler(plan, surface, image, fill);
  MatrixSums total;
  const bool reduced = plan.x.length() > 1 || plan.y.length() > 1;
  if (!reduced && is_narrow(width)) {
    add_narrow(total, sampler, plan, grad, width, c, c_end, begin, end, scratch);
    return total.add_to(result, plan.sign);
  }
  if (!reduced && sampler.is_crowded(c_end - c)) {
    add_abreast(total, sampler, plan, grad, height, width, c, c_end, begin, end, scratch);
    return total.add_to(result, plan.sign);
  }
  const int64_t count = plan.x.count(width);
  const double* const u = places(plan.x, count, scratch);
  Cotangent<1, ResultOf<T>, A> cotangent(plan, grad, height, width, c, c_end, scratch);
  const int64_t stride = cotangent.stride(), size = cotangent.size();
  const int64_t stop = end == height ? plan.y.count(height) : end * plan.y.m;
  for (int64_t k = begin * plan.y.m; k < stop; ++k) {
    const double v = plan.y.place(k);
    const Line line(plan, v);
    const A* const g = cotangent.line(k, 0, size);
    LineSums sums;
    for (int64_t j = 0; j < count; j += kSpots)
      add_spots(sums, sampler, line, plan.affine, u + j, g + j, stride, c, c_end, std::min(count - j, kSpots));
    total.add(sums, v);
  }
  total.add_to(result, plan.sign);
}

}  // namespace diffcrop::DIFFCROP_LEVEL
