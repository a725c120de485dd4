// Where the samples of a warp lie, sixteen at a time, and which pixels they read. Compiled once for every instruction
// set (warp_*.cpp), hence no include guard.

namespace diffcrop::DIFFCROP_LEVEL {

DIFFCROP_INLINE double down(double x) {
#if DIFFCROP_VECTOR_BYTES == 32
  return __builtin_floor(x);
#else
  return floored(x);  // a call of the library otherwise
#endif
}

// (X, Y, Z) = slope u + start, for sixteen samples: of one line v = const of a crop's lattice, or each of its own.
struct alignas(64) Line {
  double start[3][kSpots], slope[3];
  DIFFCROP_INLINE Line(const WarpPlan& plan, double v) {
    for (int i = 0; i < 3; ++i) {
      slope[i] = plan.m[3 * i];
      const double same = plan.m[3 * i + 1] * v + plan.m[3 * i + 2];
      for (int64_t l = 0; l < kSpots; ++l) start[i][l] = same;
    }
  }
  DIFFCROP_INLINE Line(const WarpPlan& plan, const double* v) {
    for (int i = 0; i < 3; ++i) {
      slope[i] = plan.m[3 * i];
      for (int64_t l = 0; l < kSpots; ++l) start[i][l] = plan.m[3 * i + 1] * v[l] + plan.m[3 * i + 2];
    }
  }
};

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

// Crops that would leave many lanes of a row's last sixteen empty: they are sampled as one long row.
inline bool is_narrow(int64_t width) {
  return 8 * padded(width) > 9 * width;
}

// The places of all samples of rows [begin, end), row by row, of crops that are not reduced.
template <class A>
struct Lattice {
  int64_t count;
  double *u, *v;
  Lattice(const WarpPlan& plan, int64_t width, int64_t begin, int64_t end, Scratch<A>& scratch)
      : count((end - begin) * width) {
    const int64_t length = padded(count), numbers = sizeof(double) / sizeof(A);
    u = reinterpret_cast<double*>(scratch.take(length * numbers));
    v = reinterpret_cast<double*>(scratch.take(length * numbers));
    for (int64_t j = 0; j < width; ++j) u[j] = plan.x.place(j);
    for (int64_t k = width; k < count; ++k) u[k] = u[k - width];
    for (int64_t i = begin, k = 0; i < end; ++i, k += width) std::fill_n(v + k, width, plan.y.place(i));
    for (int64_t k = count; k < length; ++k) u[k] = u[count - 1], v[k] = v[count - 1];
  }
};

// Positions of sixteen samples on the axes of pixel indices.
struct alignas(64) Spots {
  double x[kSpots], y[kSpots];
  double inverse[kSpots];  // 1 / Z, or 0 behind the horizon and on it
  uint8_t seen[kSpots];    // not behind the horizon
};

template <bool affine>
DIFFCROP_INLINE void find(Spots& spots, const Line& line, const double* u) {
  if constexpr (affine) {
    for (int64_t l = 0; l < kSpots; ++l) {
      const double x = line.slope[0] * u[l] + line.start[0][l], y = line.slope[1] * u[l] + line.start[1][l];
      spots.x[l] = std::min(std::max(x, -kEndless), kEndless) - 0.5;
      spots.y[l] = std::min(std::max(y, -kEndless), kEndless) - 0.5;
    }
    return;
  }
  for (int64_t l = 0; l < kSpots; ++l) {
    const double x = line.slope[0] * u[l] + line.start[0][l], y = line.slope[1] * u[l] + line.start[1][l];
    const double z = line.slope[2] * u[l] + line.start[2][l];
    const bool seen = z > 0;
    const double end = kEndless * z;
    const double safe = seen ? z : 1;
    // What is too far is not divided by: it might overflow.
    const double px = std::abs(x) > end ? (x < 0 ? -kEndless : kEndless) : x / safe;
    const double py = std::abs(y) > end ? (y < 0 ? -kEndless : kEndless) : y / safe;
    spots.x[l] = (seen ? px : -kEndless) - 0.5;
    spots.y[l] = (seen ? py : -kEndless) - 0.5;
    spots.inverse[l] = z > 1e-290 ? 1 / safe : 0;  // times a slope of 0 it must stay 0
    spots.seen[l] = seen;
  }
}

DIFFCROP_INLINE void find(Spots& spots, const WarpPlan& plan, const Line& line, const double* u) {
  if (plan.affine) return find<true>(spots, line, u);
  find<false>(spots, line, u);
}

DIFFCROP_INLINE bool is_seen(const Spots& spots, const WarpPlan& plan, int64_t l) {
  return plan.affine || spots.seen[l] != 0;
}

// Of samples all of whose pixels lie in the image: the last pixel not to the right of them (the upper left one of the
// four around them) and how far they are from it.
template <class A>
struct alignas(64) Corners {
  int32_t column[kSpots], row[kSpots];
  A x[kSpots], y[kSpots];
  int32_t top, bottom;  // the least and the greatest row
};

// Whether all sixteen are such. `before` and `behind`: the pixels that are read on both sides of that one.
template <class A>
DIFFCROP_INLINE bool find_corners(Corners<A>& corners, const Spots& spots, const Surface& surface, int before,
                                  int behind) {
  const auto right = static_cast<double>(surface.width), low = static_cast<double>(surface.height);
  int32_t left = INT32_MAX, last = INT32_MIN, top = INT32_MAX, bottom = INT32_MIN;
  for (int64_t l = 0; l < kSpots; ++l) {
    // Kept near the image, so that a whole number of 32 bits holds them.
    const double x = std::min(std::max(spots.x[l], -8.0), right + 8), y = std::min(std::max(spots.y[l], -8.0), low + 8);
    const double column = down(x + kSlack * (2 + std::abs(x))), row = down(y + kSlack * (2 + std::abs(y)));
    corners.x[l] = static_cast<A>(x - column), corners.y[l] = static_cast<A>(y - row);
    const auto c = static_cast<int32_t>(column), r = static_cast<int32_t>(row);
    corners.column[l] = c, corners.row[l] = r;
    left = std::min(left, c), last = std::max(last, c), top = std::min(top, r), bottom = std::max(bottom, r);
  }
  corners.top = top, corners.bottom = bottom;
  return left >= before && last + behind < surface.width && top >= before && bottom + behind < surface.height;
}

// What sixteen samples read along an axis: tap t of sample l is pixel index[t][l], the fill if that is -1.
template <class A>
struct alignas(64) Taps {
  int32_t index[kMostTaps][kSpots];
  A weight[kMostTaps][kSpots], slope[kMostTaps][kSpots];  // slope: the derivative of the weight by the position
  int32_t count;
};

// Weights of a sample t = k - c away from tap 0, t in (-taps / 2, 1 - taps / 2], and their derivatives by c.
inline void weigh_taps(const Surface& surface, double t, double* weight, double* slope) {
  switch (surface.mode) {
    case Mode::bicubic: {
      const double a = surface.a;
      const double far = -t, near = -(t + 1), next = t + 2, last = t + 3;  // distances, from left to right
      const auto inner = [a](double x) { return 1 + x * x * (-(a + 3) + x * (a + 2)); };
      const auto outer = [a](double x) { return -4 * a + x * (8 * a + x * (-5 * a + x * a)); };
      const auto d_inner = [a](double x) { return x * (-2 * (a + 3) + x * 3 * (a + 2)); };
      const auto d_outer = [a](double x) { return 8 * a + x * (-10 * a + x * 3 * a); };
      weight[0] = outer(far), weight[1] = inner(near), weight[2] = inner(next), weight[3] = outer(last);
      slope[0] = d_outer(far), slope[1] = d_inner(near), slope[2] = -d_inner(next), slope[3] = -d_outer(last);
      return;
    }
    case Mode::lanczos3: {
      double total = 0, by_center = 0;
      for (int i = 0; i < 6; ++i) {
        const auto [value, by_x] = Lanczos3::at(t + i);
        weight[i] = value, slope[i] = -by_x;
        total += value, by_center -= by_x;
      }
      for (int i = 0; i < 6; ++i) {
        weight[i] /= total;
        slope[i] = (slope[i] - weight[i] * by_center) / total;
      }
      return;
    }
    default:
      weight[0] = 1 + t, weight[1] = -t;
      slope[0] = -1, slope[1] = 1;
  }
}

template <class A>
void find_taps(Taps<A>& taps, const double* center, int64_t pixels, const Surface& surface) {
  taps.count = surface.taps;
  const double margin = surface.taps + 2, end = static_cast<double>(pixels) + margin;
  const double period = surface.padding == Padding::circular ? static_cast<double>(pixels)
                        : surface.align_corners              ? static_cast<double>(2 * pixels - 2)
                                                             : static_cast<double>(2 * pixels);
  for (int64_t l = 0; l < kSpots; ++l) {
    double c = center[l], weight[kMostTaps], slope[kMostTaps];
    if (surface.align_corners && pixels == 1) {  // that pixel everywhere
      for (int t = 0; t < taps.count; ++t) taps.index[t][l] = -1, taps.weight[t][l] = taps.slope[t][l] = 0;
      taps.index[0][l] = 0, taps.weight[0][l] = 1;
      continue;
    }
    bool still = std::abs(c) >= kEndless - 1;
    if (surface.periodic()) {
      if (std::abs(c) > 1073741824.0) c -= c - modulo(c, period);
    } else {
      still = still || c < -margin || c > end;
      c = std::clamp(c, -margin, end);
    }
    const double first = down(c + kSlack * (2 + std::abs(c))) - (surface.taps / 2 - 1);
    weigh_taps(surface, first - c, weight, slope);
    for (int t = 0; t < taps.count; ++t) {
      taps.index[t][l] = folded(first + t, pixels, surface);
      taps.weight[t][l] = static_cast<A>(weight[t]);
      taps.slope[t][l] = still ? A(0) : static_cast<A>(slope[t]);
    }
  }
}

// Both axes.
template <class A>
struct Neighbours {
  Taps<A> x, y;
  void find(const Spots& spots, const Surface& surface) {
    find_taps(x, spots.x, surface.width, surface);
    find_taps(y, spots.y, surface.height, surface);
  }
};

}  // namespace diffcrop::DIFFCROP_LEVEL
