// The weights of a bin of RoIAlign along one axis: the formulas of _bins.py, where they are derived, and their
// derivatives by the position c and by the width w of the bin.
//
// As filters.h, for the same reason, this is compiled without fused multiply-adds.
#pragma once

#include "filters.h"

namespace diffcrop {

// How many samples a bin has along an axis of this length, with its sign.
inline double samples_of(double extent, double width, double given) {
  if (given > 0) return given;
  return extent > 0 ? std::ceil(width - kSlack * width) : 0;
}

// The mean of `count` samples of a bin on an axis of so many pixels. They lie in intervals [m, m + 1], m from -1 to
// pixels - 1; those of an interval are a run of integers, whose mean position stands for all of them.
class Samples {
 public:
  Samples(double c, double w, double count, double pixels)
      : c_(c), w_(w), count_(count), pixels_(pixels), near_(snapped(c, w)) {}

  // Calls visit(m, left, right) with the weights of pixels m and m + 1, in order, for the intervals with samples.
  template <class Visit>
  void visit(const Visit& visit) const {
    double before = below(-1), last = up_to(pixels_);
    for (double m = -1; before < last;) {
      const double next = m + 1 < pixels_ ? std::min(below(m + 1), last) : last;
      if (next > before) {
        const double share = (next - before) / count_, place = (next + before) / (2 * count_) - 0.5;
        // Far out rounding alone may move the mean of an interval's samples out of it.
        const double position = std::clamp(c_ + place * w_, m, m + 1);
        const Weight all{share, 0, 0}, right{share * (position - m), share, share * place};
        visit(m, m == pixels_ - 1 ? all : Weight{share - right.value, -share, -right.by_width}, m < 0 ? all : right);
        before = next;
      }
      // On to the next sample; one interval less, as this place is rounded.
      m = std::min(std::max(floored(c_ + ((before + 0.5) / count_ - 0.5) * w_) - 1, m + 1), pixels_ - 1);
    }
  }

 private:
  // How many samples lie below `end`, and how many not above it.
  double below(double end) const {
    if (!(w_ > 0)) return near_ < end ? count_ : 0;
    return std::clamp(std::ceil(count_ * ((end - near_) / w_ + 0.5) - 0.5), 0.0, count_);
  }
  double up_to(double end) const {
    const double near = c_ - (near_ - c_);
    if (!(w_ > 0)) return near <= end ? count_ : 0;
    return std::clamp(std::floor(count_ * ((end - near) / w_ + 0.5) - 0.5) + 1, 0.0, count_);
  }

  double c_, w_, count_, pixels_, near_;
};

// The mean of pixels' triangles over a bin.
class Integral {
 public:
  Integral(double c, double w) : c_(c), w_(w) {
    const double near = snapped(c, w);
    point_ = w <= kPoint * (near - c);
    const double half = point_ ? 0 : 0.5 * w;
    left_ = exact_floor(near, -half), right_ = exact_floor(near, half);
  }

  // The pixels with a weight are first() ... last(), in an image without ends.
  double first() const { return left_; }
  double last() const { return right_ + 1; }

  Weight at(double k) const {
    if (w_ >= 1) {
      const auto [high, at_high] = antiderivative(c_ + 0.5 * w_, k, right_);
      const auto [low, at_low] = antiderivative(c_ - 0.5 * w_, k, left_);
      const double value = (high - low) / w_;
      return {value, (at_high - at_low) / w_, (0.5 * (at_high + at_low) - value) / w_};
    }
    const Weight before = ramp(k - 1), middle = ramp(k), after = ramp(k + 1);
    return {before.value - 2 * middle.value + after.value, before.by_center - 2 * middle.by_center + after.by_center,
            before.by_width - 2 * middle.by_width + after.by_width};
  }

 private:
  static constexpr double kPoint = 8;

  // Of pixel k's triangle, up to an end in [pixel, pixel + 1), and the triangle there.
  static std::pair<double, double> antiderivative(double end, double k, double pixel) {
    const double x = end - k;
    if (k == pixel + 1) return {0.5 * (1 + x) * (1 + x), 1 + x};
    if (k == pixel) return {1 - 0.5 * (1 - x) * (1 - x), 1 - x};
    return {k < pixel ? 1.0 : 0.0, 0.0};
  }

  Weight ramp(double knot) const {
    if (knot <= left_) return {c_ - knot, 1, 0};
    if (knot > right_) return {};
    const double rest = c_ + 0.5 * w_ - knot;
    return {rest * rest / (2 * w_), rest / w_, (0.5 * rest - rest * rest / (2 * w_)) / w_};
  }

  double c_, w_, left_, right_;
  bool point_;
};

}  // namespace diffcrop
