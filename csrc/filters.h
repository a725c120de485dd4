// The filters and their sums over a lattice of pixels, with derivatives: the formulas of _filters.py and _lattice.py.
//
// A tap at pixel k of an output at position c has the weight f((k - c) / u), u the filter's unit (width, or scale *
// width). With x = (k - c) / u its derivatives are
//
//   by the position    d/dc = -f'(x) / u
//   by the width       d/dw = -x f'(x) / width     (u is proportional to width)
//
// Which piece a tap belongs to is decided by integers, and as in the reference: this file is compiled without fused
// multiply-adds, so that both decide alike to the last bit.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

namespace diffcrop {

enum class Mode { bilinear, bicubic, lanczos3, area, gaussian, nearest, samples, integral };

// A weight with its derivatives by the position and by the width of the filter.
struct Weight {
  double value = 0, by_center = 0, by_width = 0;
  Weight& operator+=(const Weight& o) {
    value += o.value, by_center += o.by_center, by_width += o.by_width;
    return *this;
  }
};

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The integers anchor + m * step within [lower, upper].
struct Lattice {
  double anchor = 0, step = 1, lower = -kInfinity, upper = kInfinity;
};

struct Run {
  double first, count;
};

// The nearest integer, ties to even: adding 2^52 and a half of it leaves no room for a fraction. The functions of the
// library are calls where the oldest processors are to be served.
inline double rounded(double x) {
  constexpr double shift = 0x1.8p52;
  return std::abs(x) < 0x1p51 ? (x + shift) - shift : x;
}

inline double floored(double x) {
  const double whole = rounded(x);
  return whole - (whole > x ? 1 : 0);
}

// The lattice points in (before, last].
inline Run run_of(const Lattice& lattice, double before, double last) {
  const double m = floored((before - lattice.anchor) / lattice.step) + 1;
  const double count = floored((last - lattice.anchor) / lattice.step) - m + 1;
  return {lattice.anchor + m * lattice.step, std::max(count, 0.0)};
}

// The floor of a + b + c that is not rounded: what c + 1 rounds away decides on which side of a pixel it lies. Knuth's
// two-sum gives the rounding error of each addition exactly.
inline double exact_floor(double a, double b, double c = 0) {
  const auto two_sum = [](double x, double y, double& error) {
    const double sum = x + y, virtual_y = sum - x;
    error += (x - (sum - virtual_y)) + (y - virtual_y);
    return sum;
  };
  double error = 0;
  const double total = two_sum(two_sum(a, b, error), c, error), whole = rounded(total);
  return whole - ((total - whole) + error < 0 ? 1 : 0);
}

// Positions this close to a kink, in parts of their size, count as on it; a reduction this close above 1 counts as 1.
constexpr double kSlack = 0x1p-48;

// Positions as sides are taken from them. A box of thirds puts c an ulp off the pixel that is meant, and a reduction of
// 3 an ulp off 3, where kinks of two taps that should coincide lie an ulp apart, with a derivative of neither side
// between.
inline double snapped(double c, double w) {
  return c + kSlack * (1 + std::abs(c) + w);
}

// c0 + c1 x + c2 x^2 + c3 x^3 for start < x <= stop.
struct Piece {
  int start, stop;
  double c0, c1, c2, c3;
  double value(double x) const { return c0 + x * (c1 + x * (c2 + x * c3)); }
  double slope(double x) const { return c1 + x * (2 * c2 + x * 3 * c3); }
};

class Polynomial {
 public:
  static Polynomial triangle() { return Polynomial(2, {{{-1, 0, 1, 1, 0, 0}, {0, 1, 1, -1, 0, 0}}}); }
  static Polynomial cubic(double a) {
    return Polynomial(4, {{{-2, -1, -4 * a, -8 * a, -5 * a, -a},
                           {-1, 0, 1, 0, -(a + 3), -(a + 2)},
                           {0, 1, 1, 0, -(a + 3), a + 2},
                           {1, 2, -4 * a, 8 * a, -5 * a, a}}});
  }

  double reach(double width) const { return pieces_[count_ - 1].stop * width; }

  // The taps of a position, piece n those in (knot[n], knot[n + 1]].
  struct Support : Run {
    std::array<double, 5> knot;
  };
  Support support(double c, double w) const {
    Support s{};
    for (int n = 0; n <= count_; ++n) s.knot[n] = knot(pieces_[0].start + n, c, w);
    s.first = s.knot[0] + 1, s.count = s.knot[count_] - s.knot[0];
    return s;
  }
  // Calls visit(k, weight) for the taps in [lower, upper].
  template <class Visit>
  void visit(const Support& support, double c, double w, double lower, double upper, const Visit& visit) const {
    const double inverse = 1 / w;
    for (int n = 0; n < count_; ++n) {
      const Piece& piece = pieces_[n];
      const double last = std::min(support.knot[n + 1], upper);
      for (double k = std::max(support.knot[n] + 1, lower); k <= last; ++k) {
        const double x = (k - c) / w, by_center = -piece.slope(x) * inverse;
        visit(k, Weight{piece.value(x), by_center, x * by_center});
      }
    }
  }
  // M points with spacing h around x: sum p = M p(x) + p''(x)/2 R with R = M ((M h)^2 - h^2) / 12, exact for cubics.
  Weight sum(double c, double w, const Lattice& lattice) const {
    Weight total;
    const double h = lattice.step / w;
    for (int n = 0; n < count_; ++n) {
      const Piece& piece = pieces_[n];
      const double before = std::clamp(knot(piece.start, c, w), lattice.lower - 1, lattice.upper);
      const double last = std::clamp(knot(piece.stop, c, w), lattice.lower - 1, lattice.upper);
      const auto [first, count] = run_of(lattice, before, last);
      if (!(count > 0)) continue;
      const double x = (first + 0.5 * (count - 1) * lattice.step - c) / w;
      const double spread = count * ((count * h) * (count * h) - h * h) / 12;
      const double half_curvature = piece.c2 + 3 * piece.c3 * x;
      const double by_x = count * piece.slope(x) + 3 * piece.c3 * spread;
      total += {count * piece.value(x) + half_curvature * spread, -by_x / w,
                -x * by_x / w - 2 * half_curvature * spread / w};
    }
    return total;
  }
  // The weights of all integers sum to 1 by themselves at width 1.
  bool normalized(double w) const { return w == 1; }

 private:
  // a w is exact: the breakpoints are 0, 1 and 2.
  static double knot(int a, double c, double w) { return exact_floor(snapped(c, w), a * w); }

  Polynomial(int count, const std::array<Piece, 4>& pieces) : count_(count), pieces_(pieces) {}

  int count_;
  std::array<Piece, 4> pieces_;  // each one unit long
};

// Overlap of pixel [k, k+1] with the footprint: the part of it left of the right edge less that left of the left edge.
class Area {
 public:
  double reach(double width) const { return 0.5 * (width + 1); }

  struct Edge {
    double position, pixel;  // the pixel to the right of it
  };
  struct Support : Run {
    Edge left, right;
  };
  Support support(double c, double w) const {
    const auto [left, right] = edges(c, w);
    return {{left.pixel, right.pixel - left.pixel + 1}, left, right};
  }
  template <class Visit>
  void visit(const Support& support, double, double, double lower, double upper, const Visit& visit) const {
    const Edge &left = support.left, &right = support.right;
    const double last = std::min(right.pixel, upper);
    for (double k = std::max(left.pixel, lower); k <= last; ++k) {
      Weight overlap = part(right, k, 0.5);
      const Weight less = part(left, k, -0.5);
      overlap += {-less.value, -less.by_center, -less.by_width};
      visit(k, overlap);
    }
  }
  Weight sum(double c, double w, const Lattice& lattice) const {
    const auto [left, right] = edges(c, w);
    Weight total = stairs(right, lattice, 0.5);
    const Weight less = stairs(left, lattice, -0.5);
    total += {-less.value, -less.by_center, -less.by_width};
    return total;
  }
  bool normalized(double) const { return false; }

 private:
  static std::pair<Edge, Edge> edges(double c, double w) {
    const double half = 0.5 * w, near = snapped(c, w);
    return {{c + 0.5 - half, exact_floor(near, -half, 0.5)}, {c + 0.5 + half, exact_floor(near, half, 0.5)}};
  }
  // The edge moves with the position and, by `spread`, with the width.
  static Weight part(const Edge& edge, double k, double spread) {
    if (k == edge.pixel) return {edge.position - k, 1, spread};
    return {k < edge.pixel ? 1.0 : 0.0, 0, 0};
  }
  static Weight stairs(const Edge& edge, const Lattice& lattice, double spread) {
    if (lattice.step == 1) {
      if (edge.pixel >= lattice.lower && edge.pixel <= lattice.upper) return {edge.position, 1, spread};
      return {std::clamp(edge.pixel, lattice.lower, lattice.upper + 1), 0, 0};
    }
    const double copy = floored((edge.pixel - lattice.anchor) / lattice.step);
    if (edge.pixel - lattice.anchor - copy * lattice.step == 0) return {copy + (edge.position - edge.pixel), 1, spread};
    return {copy + 1, 0, 0};
  }
};

// sin(pi x) / (pi x) and its derivative; a Taylor series near 0, where the quotient loses its derivative to 0/0.
inline std::pair<double, double> sinc(double x) {
  if (std::abs(x) < 0.25) {
    const double square = x * x;
    double term = 1, value = 1, slope = 0;
    for (int i = 1; i < 10; ++i) {  // term = (-1)^i pi^2i x^(2i-2) / (2i+1)!
      term *= -std::numbers::pi * std::numbers::pi / ((2 * i) * (2 * i + 1));
      value += term * square;
      slope += 2 * i * term;
      term *= square;
    }
    return {value, slope * x};
  }
  // The argument is reduced to the nearest integer first, which makes the zeros exact.
  const double nearest = rounded(x), sign = static_cast<int64_t>(nearest) % 2 == 0 ? 1 : -1;
  const double value = sign * std::sin(std::numbers::pi * (x - nearest)) / (std::numbers::pi * x);
  return {value, (sign * std::cos(std::numbers::pi * (x - nearest)) - value) / x};
}

// Terms of the Euler-Maclaurin series.
constexpr int kTerms = 20;
using Taylor = std::array<double, kTerms>;

struct Lanczos3 {
  static constexpr double support = 3;
  static constexpr double integral = 0.9970553459543398;
  static std::pair<double, double> at(double x) {
    const auto [a, da] = sinc(x);
    const auto [b, db] = sinc(x / 3);
    return {a * b, da * b + a * db / 3};
  }
  // With x = 3 + t: f = 3 / (2 pi^2) (cos(2 pi t / 3) - cos(4 pi t / 3)) / (3 + t)^2.
  static Taylor taylor() {
    Taylor waves{}, result{};
    double term = 3 / (2 * std::numbers::pi * std::numbers::pi), quadruple = 1;
    for (int m = 0; m < kTerms; m += 2) {
      waves[m] = term * (1 - quadruple);
      term *= -(4 * std::numbers::pi * std::numbers::pi / 9) / ((m + 1) * (m + 2));
      quadruple *= 4;
    }
    for (int m = 0; m < kTerms; ++m) {
      double inverse_square = 1.0 / 9;
      for (int i = m; i >= 0; --i) {
        result[m] += waves[i] * inverse_square * (m - i + 1);
        inverse_square /= -3;
      }
    }
    return result;
  }
};

struct Gaussian {
  static constexpr double support = 6;
  static inline const double at_cut = std::exp(-0.5 * support * support);
  static inline const double integral =
      std::sqrt(2 * std::numbers::pi) * std::erf(support / std::sqrt(2.0)) - 2 * support * at_cut;
  static std::pair<double, double> at(double x) {
    const double e = std::exp(-0.5 * x * x);
    return {e - at_cut, -x * e};
  }
  // With x = b + t: f = exp(-b^2 / 2) (exp(-b t - t^2 / 2) - 1).
  static Taylor taylor() {
    Taylor series{};
    series[0] = at_cut, series[1] = -support * at_cut;
    for (int m = 1; m + 1 < kTerms; ++m) series[m + 1] = -(support * series[m] + series[m - 1]) / (m + 1);
    series[0] = 0;
    return series;
  }
};

// E(theta) = sum_r (-1)^r h^(r-1) B_r(theta) / r! f^(r-1)(b): coefficient [p][r - 1] of theta^p h^(r-1).
template <class F>
const std::array<std::array<double, kTerms>, kTerms + 1>& end_polynomials() {
  static const auto table = [] {
    std::array<std::array<double, kTerms>, kTerms + 1> e{};
    std::array<double, kTerms + 1> bernoulli{};
    for (int n = 0; n <= kTerms; ++n) {
      double choose = 1;  // of n + 1
      bernoulli[n] = n == 0;
      for (int k = 0; k < n; ++k) {
        bernoulli[n] -= choose * bernoulli[k] / (n + 1);
        choose *= static_cast<double>(n + 1 - k) / (k + 1);
      }
    }
    const Taylor taylor = F::taylor();
    for (int r = 1; r <= kTerms; ++r) {
      double choose = 1;
      for (int p = 0; p <= r; ++p) {
        e[p][r - 1] = (r % 2 ? -1 : 1) * taylor[r - 1] / r * choose * bernoulli[r - p];
        choose *= static_cast<double>(r - p) / (p + 1);
      }
    }
    return e;
  }();
  return table;
}

// Nodes and weights of Gauss-Legendre quadrature, and the end corrections of the midpoint rule in differences.
struct Quadrature {
  static constexpr int nodes = 48;
  std::array<double, nodes> node, weight;
  // The solution of sum_i C_i 2 sinh((i - 1/2) D) = sum_j B_2j(1/2) / (2j)! D^(2j-1), six terms; see _lattice.py.
  static constexpr std::array<double, 6> correction = {-0.058663459455945435,  0.007651539726433799,
                                                       -0.001507862238404164,  0.00026452902283724176,
                                                       -3.245638827113535e-05, 1.9899215070652008e-06};
  Quadrature() {
    for (int i = 0; i < nodes; ++i) {
      double x = std::cos(std::numbers::pi * (i + 0.75) / (nodes + 0.5)), slope = 0;
      for (int step = 0; step < 8; ++step) {
        double previous = 1, value = x;
        for (int n = 2; n <= nodes; ++n) {
          const double next = ((2 * n - 1) * x * value - (n - 1) * previous) / n;
          previous = value, value = next;
        }
        slope = nodes * (x * value - previous) / (x * x - 1);
        x -= value / slope;
      }
      node[i] = x, weight[i] = 2 / ((1 - x * x) * slope * slope);
    }
  }
  static const Quadrature& get() {
    static const Quadrature rule;
    return rule;
  }
};

// An entire function cut at its support, in units of scale * width.
template <class F>
class Smooth {
 public:
  explicit Smooth(double scale) : scale_(scale) {}

  double reach(double width) const { return F::support * scale_ * width; }
  using Support = Run;
  Support support(double c, double w) const {
    const double before = floored(c - reach(w));
    return {before + 1, floored(c + reach(w)) - before};
  }
  template <class Visit>
  void visit(const Support& support, double c, double w, double lower, double upper, const Visit& visit) const {
    const double last = std::min(support.first + support.count - 1, upper);
    for (double k = std::max(support.first, lower); k <= last; ++k) visit(k, at(k, c, w));
  }
  Weight sum(double c, double w, const Lattice& lattice) const {
    const double before = std::clamp(floored(c - reach(w)), lattice.lower - 1, lattice.upper);
    const double last = std::clamp(floored(c + reach(w)), lattice.lower - 1, lattice.upper);
    const auto [first, count] = run_of(lattice, before, last);
    const bool whole = lattice.lower == -kInfinity && lattice.upper == kInfinity;
    if (count > (whole ? kLong : kLongTail))
      return whole ? euler_maclaurin(c, w, first, count, lattice.step) : quadrature(c, w, first, count, lattice.step);
    Weight total;
    for (double i = 0; i < count; ++i) total += at(first + i * lattice.step, c, w);
    return total;
  }
  bool normalized(double) const { return false; }

 private:
  // More taps than this are not added one by one: over the whole support, and where the sum ends inside of it.
  static constexpr double kLong = 24, kLongTail = 96;

  // Coefficients of theta^p in E, for one spacing: all outputs of an axis share it.
  struct Ends {
    double h = 0;
    std::array<double, kTerms + 1> coefficient{}, by_h{};
    Ends() = default;
    explicit Ends(double spacing) : h(spacing) {
      const auto& table = end_polynomials<F>();
      for (int p = 0; p <= kTerms; ++p)
        for (int r = kTerms - 1; r >= 0; --r) {
          by_h[p] = by_h[p] * h + coefficient[p];
          coefficient[p] = coefficient[p] * h + table[p][r];
        }
    }
  };

  // integral / h + E(theta) at both ends, theta the distance from the end to the nearest tap within over the step.
  Weight euler_maclaurin(double c, double w, double first, double count, double step) const {
    const double h = step / (scale_ * w), reach_slope = F::support * scale_ / step;
    Weight total{F::integral / h, 0, F::integral * scale_ / step};
    if (h != ends_.h) ends_ = Ends(h);
    for (const double side : {1.0, -1.0}) {
      const double end = side > 0 ? first + (count - 1) * step : first;
      // In [0, 1] but for the rounding of positions too large to tell one pixel from the next.
      const double theta = std::clamp((side * (c - end) + reach(w)) / step, 0.0, 1.0);
      double value = 0, by_theta = 0, slope = 0;
      for (int p = kTerms; p >= 0; --p) {
        by_theta = by_theta * theta + value;
        value = value * theta + ends_.coefficient[p];
        slope = slope * theta + ends_.by_h[p];
      }
      total += {value, by_theta * side / step, by_theta * reach_slope - slope * h / w};
    }
    return total;
  }

  // The midpoint rule: the integral from half a step before the first tap to half a step behind the last, with the
  // derivatives of its series at both ends replaced by differences.
  Weight quadrature(double c, double w, double first, double count, double step) const {
    const Quadrature& rule = Quadrature::get();
    Weight total;
    const double half = 0.5 * count * step, middle = first + half - 0.5 * step;
    for (int i = 0; i < rule.nodes; ++i) add(total, 0.5 * count * rule.weight[i], middle + rule.node[i] * half, c, w);
    for (size_t i = 0; i < rule.correction.size(); ++i) {
      const double out = (static_cast<double>(i) + 0.5) * step;
      for (const double side : {1.0, -1.0}) {
        add(total, rule.correction[i], middle + side * (half + out), c, w);
        add(total, -rule.correction[i], middle + side * (half - out), c, w);
      }
    }
    return total;
  }

  Weight at(double k, double c, double w) const {
    const double unit = scale_ * w, x = (k - c) / unit;
    const auto [value, slope] = F::at(x);
    return {value, -slope / unit, -x * slope / w};
  }
  void add(Weight& total, double factor, double k, double c, double w) const {
    const Weight tap = at(k, c, w);
    total += {factor * tap.value, factor * tap.by_center, factor * tap.by_width};
  }

  double scale_;
  mutable Ends ends_;  // a filter belongs to one plan, and a plan to one thread
};

}  // namespace diffcrop
