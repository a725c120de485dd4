// Compiled without fused multiply-adds (CMakeLists.txt): positions must round as those of the reference do, because the
// derivative at a kink depends on the side on which they fall.
#include "plan.h"

#include <cstddef>
#include <variant>

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
      return Smooth<Gaussian>(options.sigma);
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
    fold(c, w, out);
    if (options_.padding == Padding::renormalize) {
      Weight total;
      for (const Weight& tap : out.taps) total += tap;
      if (c >= -0.5 && c <= pixels_ - 0.5)
        normalize(out.taps, total);
      else
        out.taps.clear();
    } else if (!filter_.normalized(w)) {
      normalize(out.taps, filter_.sum(c, w, {}));
    }
  }

 private:
  static void normalize(std::vector<Weight>& taps, const Weight& total) {
    const double scale = 1 / total.value;
    for (Weight& tap : taps) {
      tap.value = tap.value / total.value;
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

  void fold(double c, double w, Folded& out) const {
    out.taps.clear();
    const auto [first, count] = filter_.taps(c, w);
    const double last = first + count - 1;
    if (is_periodic_ && (first < 0 || last >= pixels_)) return fold_periodic(c, w, first, last, out);
    const double end = pixels_ - 1;
    double lower = std::max(first, 0.0), upper = std::min(last, end);
    if (options_.padding == Padding::border) {
      // Taps outside are led to the edge pixels; with all of them on one side that pixel alone remains.
      lower = std::min(lower, end), upper = std::max(upper, 0.0);
    }
    if (!(lower <= upper)) return;
    out.start = static_cast<int64_t>(lower);
    out.taps.resize(static_cast<size_t>(upper - lower) + 1);
    filter_.visit(c, w, lower, upper,
                  [&](double k, const Weight& tap) { out.taps[static_cast<size_t>(k - lower)] = tap; });
    if (options_.padding == Padding::border) {
      if (pixels_ == 1) {
        out.taps[0] = filter_.sum(c, w, {});
        return;
      }
      if (first < 0) out.taps.front() = filter_.sum(c, w, {.upper = 0});
      if (last > end) out.taps.back() = filter_.sum(c, w, {.lower = end});
    }
  }

  void fold_periodic(double c, double w, double first, double last, Folded& out) const {
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
    filter_.visit(c, w, first, last, [&](double k, const Weight& tap) {
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

// Positions c_j, the width of the filter and their derivatives by the box.
struct Sampling {
  std::vector<double> center, fraction;
  double reduction, slope;
};

Sampling sample(double lo, double hi, int64_t n, bool align_corners) {
  const double extent = hi - lo, length = std::abs(extent), count = static_cast<double>(n);
  const double steps = !align_corners ? count : n == 1 ? 1 : count - 1;
  Sampling s{std::vector<double>(n), std::vector<double>(n), length / steps, (extent < 0 ? -1 : 1) / steps};
  for (int64_t i = 0; i < n; ++i) {
    const double j = static_cast<double>(i);
    if (!align_corners) {
      s.center[i] = lo + (j + 0.5) * (extent / count) - 0.5;
      s.fraction[i] = (j + 0.5) / count;
    } else if (n == 1) {
      s.center[i] = lo + 0.5 * extent;
      s.fraction[i] = 0.5;
    } else {
      s.center[i] = lo + j * (extent / steps);
      s.fraction[i] = j / steps;
    }
  }
  return s;
}

template <class A>
class Builder {
 public:
  Builder(AxisPlan<A>& plan, bool derivatives, bool widening)
      : plan_(plan), derivatives_(derivatives), widening_(widening) {}

  // Appends an output. Taps at the ends of the run that do nothing are dropped: an identity reads one pixel.
  void append(const Folded& folded) {
    const auto idle = [&](const Weight& tap) {
      return tap.value == 0 && !(derivatives_ && (tap.by_center != 0 || (widening_ && tap.by_width != 0)));
    };
    size_t begin = 0, end = folded.taps.size();
    while (begin < end && idle(folded.taps[begin])) ++begin;
    while (begin < end && idle(folded.taps[end - 1])) --end;
    const int64_t start = (folded.start + static_cast<int64_t>(begin)) % plan_.pixels;
    plan_.start.push_back(static_cast<int32_t>(start));
    plan_.count.push_back(static_cast<int32_t>(end - begin));
    plan_.offset.push_back(plan_.offset.back() + static_cast<int64_t>(end - begin));
    Weight sum;
    for (size_t i = begin; i < end; ++i) {
      const Weight& tap = folded.taps[i];
      sum += tap;
      plan_.weight.push_back(static_cast<A>(tap.value));
      if (derivatives_) plan_.by_center.push_back(static_cast<A>(tap.by_center));
      if (derivatives_ && widening_) plan_.by_width.push_back(static_cast<A>(tap.by_width));
    }
    plan_.share.push_back(static_cast<A>(sum.value));
    plan_.share_by_center.push_back(static_cast<A>(sum.by_center));
    plan_.share_by_width.push_back(static_cast<A>(sum.by_width));
    if (begin == end) return;
    const int64_t stop = start + static_cast<int64_t>(end - begin);
    const bool wraps = stop > plan_.pixels;
    const bool fresh = plan_.first == plan_.last;
    plan_.first = wraps ? 0 : fresh ? start : std::min(plan_.first, start);
    plan_.last = wraps ? plan_.pixels : fresh ? stop : std::max(plan_.last, stop);
  }

 private:
  AxisPlan<A>& plan_;
  bool derivatives_, widening_;
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
AxisPlan<A> plan_axis(double lo, double hi, int64_t outputs, int64_t pixels, const Options& options, bool derivatives) {
  AxisPlan<A> plan;
  plan.outputs = outputs, plan.pixels = pixels;
  plan.offset.push_back(0);
  Sampling sampling = sample(lo, hi, outputs, options.align_corners);
  const bool widening = options.antialias && options.mode != Mode::nearest && sampling.reduction > 1 + kSlack;
  const double width = widening ? sampling.reduction : 1;
  plan.width_slope = widening ? sampling.slope : 0;
  plan.fraction = std::move(sampling.fraction);
  Builder<A> builder(plan, derivatives, widening);
  Folded folded;
  if (options.mode == Mode::nearest || (options.align_corners && pixels == 1)) {
    for (const double c : sampling.center) {
      folded.start = nearest_pixel(c, pixels, options);
      folded.taps.assign(folded.start >= 0, Weight{1, 0, 0});
      folded.start = std::max<int64_t>(folded.start, 0);
      builder.append(folded);
    }
    return plan;
  }
  const Filter filter = make_filter(options);
  std::visit(
      [&](const auto& f) {
        const Axis axis(f, options, pixels);
        for (const double c : sampling.center) {
          axis.weights(c, width, folded);
          builder.append(folded);
        }
      },
      filter);
  return plan;
}

template <class A>
Readers<A> transpose(const AxisPlan<A>& plan) {
  Readers<A> readers;
  const int64_t span = plan.last - plan.first;
  readers.offset.assign(static_cast<size_t>(span) + 1, 0);
  const auto each = [&](const auto& visit) {
    for (int64_t j = 0; j < plan.outputs; ++j)
      for (int64_t t = 0; t < plan.count[j]; ++t) {
        const int64_t k = plan.start[j] + t;
        visit((k < plan.pixels ? k : k - plan.pixels) - plan.first, j, plan.weight[plan.offset[j] + t]);
      }
  };
  each([&](int64_t k, int64_t, A) { ++readers.offset[k + 1]; });
  for (int64_t k = 0; k < span; ++k) readers.offset[k + 1] += readers.offset[k];
  readers.output.resize(plan.weight.size());
  readers.weight.resize(plan.weight.size());
  std::vector<int64_t> next(readers.offset.begin(), readers.offset.end() - 1);
  each([&](int64_t k, int64_t j, A weight) {
    readers.output[next[k]] = static_cast<int32_t>(j);
    readers.weight[next[k]++] = weight;
  });
  return readers;
}

template AxisPlan<float> plan_axis(double, double, int64_t, int64_t, const Options&, bool);
template AxisPlan<double> plan_axis(double, double, int64_t, int64_t, const Options&, bool);
template Readers<float> transpose(const AxisPlan<float>&);
template Readers<double> transpose(const AxisPlan<double>&);

}  // namespace diffcrop
