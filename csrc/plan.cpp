// Compiled without fused multiply-adds (CMakeLists.txt): positions must round as those of the reference do, because the
// derivative at a kink depends on the side on which they fall.
#include "plan.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <variant>

#include "bins.h"

namespace diffcrop {
namespace {

using Filter = std::variant<Polynomial, Area, Smooth<Lanczos3>, Smooth<Gaussian>>;

Filter make_filter(const Options& options) {
  switch (options.mode) {
    case Mode::bicubic:
      return Polynomial::cubic(options.antialias ? -0.5 : -0.75);
    case Mode::lanczos3:
      return Smooth<Lanczos3>(1);
    case Mode::area:
      return Area();
    case Mode::gaussian:
      return Smooth<Gaussian>(options.parameter);
    default:
      return Polynomial::triangle();
  }
}

// Positions beyond this are reduced modulo the period of a periodic padding.
constexpr double kFar = 1073741824.0;
// A run of taps of up to this many periods is folded tap by tap; longer ones are summed for each pixel in closed form.
constexpr double kPeriods = 4;

// In [0, b) and exact, also far out.
double remainder(double a, double b) {
  const double r = std::fmod(a, b);
  return r < 0 ? r + b : r;
}

// The places where an axis of N pixels stands again under a periodic padding.
struct Periodic {
  double period, mirror;
  bool mirrored, own;  // own: pixels 0 and N - 1 are their own mirror images
  Periodic(const Options& options, double pixels)
      : period(pixels), mirror(-1), mirrored(options.padding == Padding::reflection), own(options.align_corners) {
    if (mirrored) period = own ? 2 * pixels - 2 : 2 * pixels;
    if (own) mirror = 0;
  }
  double fold(double k, double pixels) const {
    k = remainder(k, period);
    return k < pixels ? k : mirror - k + period;
  }
};

// The taps of one output, unnormalised, folded into the image: pixel (start + t) % pixels has taps[t].
struct Folded {
  int64_t start = 0;
  std::vector<Weight> taps;
};

// The taps of one output that are pixels in a row, their weights and derivatives side by side.
struct Taps {
  std::vector<double> value, by_center, by_width;
};

// Some partial sums, which do not wait for each other.
double sum_of(const double* from, int64_t count) {
  double a = 0, b = 0, c = 0, d = 0;
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) a += from[t], b += from[t + 1], c += from[t + 2], d += from[t + 3];
  for (; t < count; ++t) a += from[t];
  return (a + c) + (b + d);
}

template <class F>
class Axis {
 public:
  Axis(const F& filter, const Options& options, int64_t pixels)
      : filter_(filter),
        options_(options),
        pixels_(static_cast<double>(pixels)),
        periodic_(options, pixels_),
        is_periodic_(options.padding == Padding::reflection || options.padding == Padding::circular) {}

  // Normalised weights of the output at position c.
  void weights(double c, double w, Folded& out) const {
    c = bring_near(c, w);
    const bool complete = fold(c, w, out);
    if (options_.padding == Padding::renormalize) {
      const Weight total = sum(out.taps);
      if (c >= -0.5 && c <= pixels_ - 0.5)
        normalize(out.taps, total);
      else
        out.taps.clear();
    } else if (!filter_.normalized(w)) {
      normalize(out.taps, complete ? sum(out.taps) : filter_.sum(c, w, {}));
    }
  }

  // The same where all taps are pixels, as most outputs have them, whatever lies around the image. The first
  // pixel and how many they are: none where it is not so.
  template <bool derivatives>
  std::pair<int64_t, int64_t> weights_inside(double c, double w, Taps& taps) const {
    if (!(c >= 0 && c < std::min(pixels_, kFar))) return {};
    const auto support = filter_.support(c, w);
    if (!(support.first >= 0 && support.first + support.count <= pixels_ && support.count > 0)) return {};
    const auto count = static_cast<int64_t>(support.count);
    if (count > static_cast<int64_t>(taps.value.size()))
      for (auto* const numbers : {&taps.value, &taps.by_center, &taps.by_width}) numbers->resize(2 * count);
    double *const __restrict value = taps.value.data(), *const __restrict by_center = taps.by_center.data(),
                             *const __restrict by_width = taps.by_width.data();
    if constexpr (std::is_same_v<F, Area>) {
      // Whole pixels between those that the edges lie in.
      const double left = support.left.position - support.left.pixel;
      const double right = support.right.position - support.right.pixel;
      std::fill_n(value, count, 1.0);
      value[0] -= left, value[count - 1] -= 1 - right;
      if constexpr (derivatives) {
        std::fill_n(by_center, count, 0.0), std::fill_n(by_width, count, 0.0);
        by_center[0] -= 1, by_center[count - 1] += 1;
        by_width[0] += 0.5, by_width[count - 1] += 0.5;
      }
    } else {
      int64_t t = 0;
      filter_.visit(support, c, w, support.first, support.first + support.count - 1, [&](double, const Weight& tap) {
        value[t] = tap.value;
        if constexpr (derivatives) by_center[t] = tap.by_center, by_width[t] = tap.by_width;
        ++t;
      });
    }
    if (!filter_.normalized(w)) {
      const double scale = 1 / sum_of(value, count);
      for (int64_t t = 0; t < count; ++t) value[t] *= scale;
      if constexpr (derivatives) {
        const double center = sum_of(by_center, count), width = sum_of(by_width, count);
        for (int64_t t = 0; t < count; ++t) {
          by_center[t] = (by_center[t] - value[t] * center) * scale;
          by_width[t] = (by_width[t] - value[t] * width) * scale;
        }
      }
    }
    return {static_cast<int64_t>(support.first), count};
  }

 private:
  static Weight sum(const std::vector<Weight>& taps) {
    Weight total;
    for (const Weight& tap : taps) total += tap;
    return total;
  }

  static void normalize(std::vector<Weight>& taps, const Weight& total) {
    const double scale = 1 / total.value;
    for (Weight& tap : taps) {
      tap.value = tap.value * scale;
      tap.by_center = (tap.by_center - tap.value * total.by_center) * scale;
      tap.by_width = (tap.by_width - tap.value * total.by_width) * scale;
    }
  }

  // Where c + 1 == c there are no taps to count: move such a position to where the crop is the same.
  double bring_near(double c, double w) const {
    if (is_periodic_) return std::abs(c) > kFar ? c - (c - remainder(c, periodic_.period)) : c;
    const double margin = filter_.reach(w) + 2;
    return std::clamp(c, -margin, pixels_ + margin);
  }

  // Whether all taps are there as they are.
  bool fold(double c, double w, Folded& out) const {
    out.taps.clear();
    const auto support = filter_.support(c, w);
    const double first = support.first, last = first + support.count - 1;
    const bool inside = first >= 0 && last < pixels_;
    if (is_periodic_ && !inside) {
      fold_periodic(support, c, w, out);
      return false;
    }
    const double end = pixels_ - 1;
    double lower = std::max(first, 0.0), upper = std::min(last, end);
    if (options_.padding == Padding::border) {
      // Taps outside are led to the edge pixels; with all of them on one side that pixel alone remains.
      lower = std::min(lower, end), upper = std::max(upper, 0.0);
    }
    if (!(lower <= upper)) return false;
    out.start = static_cast<int64_t>(lower);
    out.taps.resize(static_cast<size_t>(upper - lower) + 1);
    filter_.visit(support, c, w, lower, upper,
                  [&](double k, const Weight& tap) { out.taps[static_cast<size_t>(k - lower)] = tap; });
    if (options_.padding == Padding::border) {
      if (pixels_ == 1) {
        out.taps[0] = filter_.sum(c, w, {});
        return true;
      }
      if (first < 0) out.taps.front() = filter_.sum(c, w, {.upper = 0});
      if (last > end) out.taps.back() = filter_.sum(c, w, {.lower = end});
    }
    return inside;
  }

  void fold_periodic(const typename F::Support& support, double c, double w, Folded& out) const {
    const double first = support.first, last = first + support.count - 1;
    if (last - first + 1 > kPeriods * periodic_.period) {
      out.start = 0;
      for (double k = 0; k < pixels_; ++k) {
        Weight tap = filter_.sum(c, w, {.anchor = k, .step = periodic_.period});
        if (periodic_.mirrored && !(periodic_.own && (k == 0 || k == pixels_ - 1)))
          tap += filter_.sum(c, w, {.anchor = periodic_.mirror - k, .step = periodic_.period});
        out.taps.push_back(tap);
      }
      return;
    }
    // The image of a run of places is a run of pixels, around the edge under circular padding.
    double lower = 0, upper = pixels_ - 1;
    if (!periodic_.mirrored) {
      if (last - first + 1 < pixels_) lower = remainder(first, pixels_), upper = lower + last - first;
    } else if (last - first + 1 < periodic_.period) {
      lower = kInfinity, upper = -kInfinity;
      for (double k = first; k <= last; ++k) {
        const double pixel = periodic_.fold(k, pixels_);
        lower = std::min(lower, pixel), upper = std::max(upper, pixel);
      }
    }
    out.start = static_cast<int64_t>(lower);
    out.taps.resize(static_cast<size_t>(upper - lower) + 1);
    filter_.visit(support, c, w, first, last, [&](double k, const Weight& tap) {
      const double pixel = periodic_.mirrored ? periodic_.fold(k, pixels_) : remainder(k, pixels_);
      out.taps[static_cast<size_t>(pixel < lower ? pixel + pixels_ - lower : pixel - lower)] += tap;
    });
  }

  const F& filter_;
  const Options& options_;
  double pixels_;
  Periodic periodic_;
  bool is_periodic_;
};

// The taps of a bin of RoIAlign.
void bin_taps(const Samples& samples, double pixels, Folded& out) {
  out.taps.clear();
  samples.visit([&](double m, const Weight& left, const Weight& right) {
    const double first = std::max(m, 0.0), last = std::min(m + 1, pixels - 1);
    if (out.taps.empty()) out.start = static_cast<int64_t>(first);
    out.taps.resize(static_cast<size_t>(last - static_cast<double>(out.start)) + 1);
    if (m >= 0) out.taps[static_cast<size_t>(m) - out.start] += left;
    if (m + 1 < pixels) out.taps[static_cast<size_t>(m + 1) - out.start] += right;
  });
}

void bin_taps(const Integral& integral, double pixels, Folded& out) {
  out.taps.clear();
  const double first = std::max(integral.first(), 0.0), last = std::min(integral.last(), pixels - 1);
  out.start = static_cast<int64_t>(std::min(first, pixels - 1));
  for (double k = first; k <= last; ++k) out.taps.push_back(integral.at(k));
}

// How an axis is sampled: positions c_j and their derivatives by hi; the width of the filter and its derivative.
struct Sampling {
  double reduction, slope;
};

// Appends their fractions where they are asked for.
Sampling sample(double lo, double hi, const Outputs& outputs, bool align_corners, std::vector<double>& centers,
                std::vector<double>* fractions) {
  const double extent = hi - lo, length = std::abs(extent), count = static_cast<double>(outputs.all);
  const double steps = !align_corners ? count : outputs.all == 1 ? 1 : count - 1;
  // Position j is lo + (j + shift) step - back: in variables of their own, as a store could change others for all that
  // the compiler knows.
  const double shift = align_corners && outputs.all > 1 ? 0 : 0.5, step = extent / steps,
               back = align_corners ? 0 : 0.5;
  const int64_t n = outputs.count();
  const auto begin = static_cast<double>(outputs.begin);
  centers.resize(n);
  double* const center = centers.data();
  for (int64_t i = 0; i < n; ++i)
    center[i] = lo + (begin + static_cast<double>(static_cast<int32_t>(i)) + shift) * step - back;
  if (fractions != nullptr) {
    fractions->resize(n);
    double* const fraction = fractions->data();
    for (int64_t i = 0; i < n; ++i)
      fraction[i] = (begin + static_cast<double>(static_cast<int32_t>(i)) + shift) / steps;
  }
  return {length / steps, (extent < 0 ? -1 : 1) / steps};
}

template <class A>
class Builder {
 public:
  Builder(AxisPlan<A>& plan, int64_t outputs, int64_t pixels, bool derivatives, bool widening)
      : plan_(plan), derivatives_(derivatives), widening_(derivatives && widening) {
    plan.outputs = outputs, plan.pixels = pixels, plan.first = plan.last = 0, plan.most = 0;
    plan.start.resize(outputs), plan.count.resize(outputs), plan.offset.resize(outputs + 1);
    plan.place.clear(), plan.by_center.clear(), plan.by_width.clear();
    for (int order = 0; order < (derivatives ? kOrders : 1); ++order) plan.share[order].assign(outputs, 0);
    resize(2 * outputs);
  }

  // Appends an output. Taps at the ends of the run that do nothing are dropped: an identity reads one pixel.
  void append(Folded& folded) {
    const auto idle = [&](const Weight& tap) {
      return tap.value == 0 && !(derivatives_ && (tap.by_center != 0 || (widening_ && tap.by_width != 0)));
    };
    size_t begin = 0, end = folded.taps.size();
    while (begin < end && idle(folded.taps[begin])) ++begin;
    while (begin < end && idle(folded.taps[end - 1])) --end;
    int64_t start = (folded.start + static_cast<int64_t>(begin)) % plan_.pixels;
    const auto count = static_cast<int64_t>(end - begin);
    if (start + count > plan_.pixels) {
      if (count == plan_.pixels) {
        std::rotate(folded.taps.begin() + begin, folded.taps.begin() + (end - start), folded.taps.begin() + end);
        start = 0;
      } else {
        wraps_ = true;
      }
    }
    append(start, count, folded.taps.data() + begin);
  }

  void append(int64_t start, int64_t count, const Weight* taps) {
    if (used_ + count > static_cast<int64_t>(plan_.weight.size())) resize(2 * (used_ + count));
    plan_.start[output_] = static_cast<int32_t>(start);
    plan_.count[output_] = static_cast<int32_t>(count);
    plan_.offset[output_] = used_;
    Weight sum;
    for (int64_t t = 0; t < count; ++t) {
      sum += taps[t];
      plan_.weight[used_ + t] = static_cast<A>(taps[t].value);
    }
    plan_.share[kValue][output_] = static_cast<A>(sum.value);
    if (derivatives_) {
      for (int64_t t = 0; t < count; ++t) plan_.by_center[used_ + t] = static_cast<A>(taps[t].by_center);
      plan_.share[kByCenter][output_] = static_cast<A>(sum.by_center);
      plan_.share[kByWidth][output_] = static_cast<A>(sum.by_width);
    }
    if (widening_)
      for (int64_t t = 0; t < count; ++t) plan_.by_width[used_ + t] = static_cast<A>(taps[t].by_width);
    used_ += count, ++output_;
    plan_.most = std::max(plan_.most, static_cast<int32_t>(count));
    if (count == 0) return;
    first_ = std::min(first_, start), last_ = std::max(last_, start + count);
  }

  // An output of which all taps are pixels in a row: its weights add up to 1, and their derivatives to nothing.
  void append_inside(int64_t start, int64_t count, const Taps& taps) {
    const auto idle = [&](int64_t t) {
      return taps.value[t] == 0 && !(derivatives_ && (taps.by_center[t] != 0 || (widening_ && taps.by_width[t] != 0)));
    };
    int64_t begin = 0;
    while (begin < count && idle(begin)) ++begin;
    while (begin < count && idle(count - 1)) --count;
    start += begin, count -= begin;
    if (used_ + count > static_cast<int64_t>(plan_.weight.size())) resize(2 * (used_ + count));
    plan_.start[output_] = static_cast<int32_t>(start);
    plan_.count[output_] = static_cast<int32_t>(count);
    plan_.offset[output_] = used_;
    const auto put = [&](std::vector<A>& to, const std::vector<double>& from) {
      A* const __restrict out = to.data() + used_;
      const double* const __restrict in = from.data() + begin;
      for (int64_t t = 0; t < count; ++t) out[t] = static_cast<A>(in[t]);
    };
    put(plan_.weight, taps.value);
    plan_.share[kValue][output_] = 1;
    if (derivatives_) put(plan_.by_center, taps.by_center);
    if (widening_) put(plan_.by_width, taps.by_width);
    used_ += count, ++output_;
    plan_.most = std::max(plan_.most, static_cast<int32_t>(count));
    if (count == 0) return;
    first_ = std::min(first_, start), last_ = std::max(last_, start + count);
  }

  // Appends the next outputs as long as they read what most do with the most used filter: two pixels of the image,
  // weighted by a triangle of width 1.
  void append_pairs(const std::vector<double>& center) {
    const int64_t needed = used_ + 2 * (plan_.outputs - output_);
    if (needed > static_cast<int64_t>(plan_.weight.size())) resize(needed);
    int32_t *const start = plan_.start.data(), *const count = plan_.count.data();
    int64_t* const offset = plan_.offset.data();
    A *const weight = plan_.weight.data(), *const by_center = plan_.by_center.data(),
             *const share = plan_.share[kValue].data();
    int64_t j = output_, used = used_, first = first_, last = last_;
    const double end = static_cast<double>(plan_.pixels - 1);
    for (; j < plan_.outputs; ++j) {
      const double c = center[j], k = floored(snapped(c, 1)), one = 1 + (k - c), other = 1 - (k + 1 - c);
      if (!(k >= 0 && k < end)) break;
      const int64_t pixel = static_cast<int64_t>(k), taps = derivatives_ || other != 0 ? 2 : 1;
      start[j] = static_cast<int32_t>(pixel), count[j] = static_cast<int32_t>(taps), offset[j] = used;
      weight[used] = static_cast<A>(one), weight[used + 1] = static_cast<A>(other);
      if (derivatives_) by_center[used] = -1, by_center[used + 1] = 1;
      share[j] = static_cast<A>(one + other);
      used += taps, first = std::min(first, pixel), last = std::max(last, pixel + taps);
      plan_.most = 2;
    }
    output_ = j, used_ = used, first_ = first, last_ = last;
  }

  int64_t output() const { return output_; }

  void finish() {
    plan_.offset[output_] = used_;
    resize(used_);
    if (last_ > 0) plan_.first = wraps_ ? 0 : first_, plan_.last = wraps_ ? plan_.pixels : last_;
    if (!wraps_) return;
    plan_.place.resize(used_);
    for (int64_t j = 0; j < plan_.outputs; ++j)
      for (int64_t t = 0; t < plan_.count[j]; ++t)
        plan_.place[plan_.offset[j] + t] = static_cast<int32_t>((plan_.start[j] + t) % plan_.pixels);
  }

 private:
  void resize(int64_t size) {
    plan_.weight.resize(size);
    if (derivatives_) plan_.by_center.resize(size);
    if (widening_) plan_.by_width.resize(size);
  }
  AxisPlan<A>& plan_;
  bool derivatives_, widening_, wraps_ = false;
  int64_t output_ = 0, used_ = 0, first_ = std::numeric_limits<int64_t>::max(), last_ = 0;
};

// The pixel that a nearest output reads, or -1.
int64_t nearest_pixel(double c, int64_t pixels, const Options& options) {
  const double k = std::floor(c + 0.5), n = static_cast<double>(pixels);
  if (options.align_corners && pixels == 1) return 0;
  switch (options.padding) {
    case Padding::border:
      return static_cast<int64_t>(std::clamp(k, 0.0, n - 1));
    case Padding::reflection:
      return static_cast<int64_t>(Periodic(options, n).fold(k, n));
    case Padding::circular:
      return static_cast<int64_t>(remainder(k, n));
    default:
      return k >= 0 && k < n ? static_cast<int64_t>(k) : -1;
  }
}

}  // namespace

template <class A>
void plan_axis(AxisPlan<A>& plan, double lo, double hi, const Outputs& outputs, int64_t pixels, const Options& options,
               bool derivatives) {
  static thread_local std::vector<double> center;
  static thread_local Taps taps;
  const Sampling sampling =
      sample(lo, hi, outputs, options.align_corners, center, derivatives ? &plan.fraction : nullptr);
  const bool bins = options.mode == Mode::samples || options.mode == Mode::integral;
  const bool widening = bins || (options.antialias && options.mode != Mode::nearest && sampling.reduction > 1 + kSlack);
  const double width = widening ? sampling.reduction : 1;
  plan.width_slope = widening ? sampling.slope : 0;
  Builder<A> builder(plan, outputs.count(), pixels, derivatives, widening);
  Folded folded;
  if (bins) {
    const double count = samples_of(hi - lo, width, options.parameter), end = static_cast<double>(pixels);
    for (const double c : center) {
      if (options.mode == Mode::samples)
        bin_taps(Samples(c, width, count, end), end, folded);
      else
        bin_taps(Integral(c, width), end, folded);
      builder.append(folded);
    }
    return builder.finish();
  }
  if (options.mode == Mode::nearest || (options.align_corners && pixels == 1)) {
    for (const double c : center) {
      folded.start = nearest_pixel(c, pixels, options);
      folded.taps.assign(folded.start >= 0, Weight{1, 0, 0});
      folded.start = std::max<int64_t>(folded.start, 0);
      builder.append(folded);
    }
    return builder.finish();
  }
  const Filter filter = make_filter(options);
  std::visit(
      [&](const auto& f) {
        const Axis axis(f, options, pixels);
        while (true) {
          if (options.mode == Mode::bilinear && !widening) builder.append_pairs(center);
          if (builder.output() == outputs.count()) break;
          const double c = center[builder.output()];
          const auto [start, count] = derivatives ? axis.template weights_inside<true>(c, width, taps)
                                                  : axis.template weights_inside<false>(c, width, taps);
          if (count > 0) {
            builder.append_inside(start, count, taps);
            continue;
          }
          axis.weights(c, width, folded);
          builder.append(folded);
        }
      },
      filter);
  builder.finish();
}

template <class A>
bool plan_pairs(PairPlan<A>& plan, double lo, double hi, const Outputs& outputs, int64_t pixels, const Options& options,
                bool derivatives) {
  static thread_local std::vector<double> centers;
  // Pixels in 32 bits, and one more that is not there.
  if (options.mode != Mode::bilinear || pixels < 2 || pixels >= (int64_t{1} << 30)) return false;
  const Sampling sampling =
      sample(lo, hi, outputs, options.align_corners, centers, derivatives ? &plan.fraction : nullptr);
  if (options.antialias && sampling.reduction > 1 + kSlack) return false;
  const int64_t n = outputs.count(), padded = (n + plan.kPadded - 1) / plan.kPadded * plan.kPadded;
  plan.outputs = n;
  plan.start.resize(padded), plan.left.resize(padded), plan.right.resize(padded), plan.share.resize(padded);
  int32_t* const start = plan.start.data();
  A *const left = plan.left.data(), *const right = plan.right.data(), *const share = plan.share.data();
  const double* const center = centers.data();
  // Those outside are found here, and weighted below.
  const double far = static_cast<double>(pixels) + 2, end = static_cast<double>(pixels - 1);
  int32_t outside = 0;
  for (int64_t j = 0; j < n; ++j) {
    constexpr double whole = 0x1.8p52;
    const double c = std::min(std::max(center[j], -3.0), far), near = snapped(c, 1), nearest = (near + whole) - whole;
    const double k = nearest - (nearest > near ? 1.0 : 0.0), one = 1 + (k - c), other = 1 - (k + 1 - c);
    start[j] = static_cast<int32_t>(k);
    left[j] = static_cast<A>(derivatives ? -1 : one), right[j] = static_cast<A>(derivatives ? 1 : other);
    share[j] = static_cast<A>(derivatives ? 0 : one + other);
    outside |= (k >= 0 ? 0 : 1) | (k < end ? 0 : 1);
  }
  if (outside != 0) {
    const Polynomial triangle = Polynomial::triangle();
    const Axis axis(triangle, options, pixels);
    Folded folded;
    for (int64_t j = 0; j < n; ++j) {
      if (start[j] >= 0 && start[j] < pixels - 1) continue;
      axis.weights(center[j], 1, folded);
      const auto of = [&](size_t t) { return derivatives ? folded.taps[t].by_center : folded.taps[t].value; };
      size_t first = 0, last = folded.taps.size();
      while (first < last && of(first) == 0) ++first;
      while (first < last && of(last - 1) == 0) --last;
      const size_t count = last - first;
      int64_t at = count > 0 ? (folded.start + static_cast<int64_t>(first)) % pixels : 0;
      if (count > 2 || (count == 2 && at == pixels - 1)) return false;
      double weight[2] = {count > 0 ? of(first) : 0, count > 1 ? of(first + 1) : 0};
      if (at == pixels - 1) --at, std::swap(weight[0], weight[1]);
      start[j] = static_cast<int32_t>(at);
      left[j] = static_cast<A>(weight[0]), right[j] = static_cast<A>(weight[1]);
      share[j] = static_cast<A>(weight[0] + weight[1]);
    }
  }
  for (int64_t j = n; j < padded; ++j) start[j] = n > 0 ? start[n - 1] : 0, left[j] = right[j] = share[j] = 0;
  return true;
}

template <class A>
void plan_unit(AxisPlan<A>& plan, bool derivatives) {
  plan.fraction.assign(1, 0);
  plan.width_slope = 0;
  Builder<A> builder(plan, 1, 1, derivatives, false);
  const Weight one{1, 0, 0};
  builder.append(0, 1, &one);
  builder.finish();
}

template <class A>
void transpose(Band<A>& result, const Band<A>& band) {
  const int64_t span = band.last - band.first;
  result.outputs = span, result.pixels = band.outputs, result.most = 0;
  result.place.clear();
  result.start.assign(span, 0), result.count.assign(span, 0), result.offset.assign(span + 1, 0);
  const auto each = [&](const auto& visit) {
    for (int64_t j = 0; j < band.outputs; ++j)
      for (int64_t t = 0; t < band.count[j]; ++t)
        visit(band.pixel(j, t) - band.first, static_cast<int32_t>(j), band.weight[band.offset[j] + t]);
  };
  // Readers of a pixel come in order. They are in a row, or nearly so (a weight that is 0 may be left out between two
  // that are not), but where a periodic padding shows a pixel to several parts of the crop.
  std::vector<int32_t> readers(span, 0);
  each([&](int64_t k, int32_t j, A) {
    if (readers[k]++ == 0) result.start[k] = j;
    result.count[k] = j - result.start[k] + 1;
  });
  const auto total = [](const std::vector<int32_t>& counts) {
    return std::accumulate(counts.begin(), counts.end(), int64_t{0});
  };
  const bool scattered = total(result.count) > 2 * total(readers);
  if (scattered) result.count = std::move(readers);
  for (int64_t k = 0; k < span; ++k) {
    result.offset[k + 1] = result.offset[k] + result.count[k];
    result.most = std::max(result.most, result.count[k]);
  }
  result.weight.assign(result.offset[span], 0);
  if (scattered) {
    result.place.resize(result.offset[span]);
    std::vector<int64_t> next(result.offset.begin(), result.offset.end() - 1);
    each([&](int64_t k, int32_t j, A weight) {
      result.place[next[k]] = j;
      result.weight[next[k]++] = weight;
    });
  } else {
    each([&](int64_t k, int32_t j, A weight) { result.weight[result.offset[k] + j - result.start[k]] = weight; });
  }
  result.first = 0, result.last = band.outputs;
}

template void plan_axis(AxisPlan<float>&, double, double, const Outputs&, int64_t, const Options&, bool);
template void plan_axis(AxisPlan<double>&, double, double, const Outputs&, int64_t, const Options&, bool);
template bool plan_pairs(PairPlan<float>&, double, double, const Outputs&, int64_t, const Options&, bool);
template bool plan_pairs(PairPlan<double>&, double, double, const Outputs&, int64_t, const Options&, bool);
template void plan_unit(AxisPlan<float>&, bool);
template void plan_unit(AxisPlan<double>&, bool);
template void transpose(Band<float>&, const Band<float>&);
template void transpose(Band<double>&, const Band<double>&);

}  // namespace diffcrop
