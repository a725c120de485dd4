// What one axis of one box reads: for each output a run of pixels with their weights, all in the precision of the sums.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "filters.h"

namespace diffcrop {

enum class Padding { border, zeros, constant, reflection, circular, renormalize, roi };

struct Options {
  Mode mode;
  bool antialias;
  Padding padding;
  double parameter;  // of the mode: sigma, or the samples of a bin along an axis (0: as many as it is long)
  bool align_corners;
};

// What a pixel is weighted with: its weight, or that weight's derivative by the position or by the filter's width.
enum Order { kValue, kByCenter, kByWidth };
constexpr int kOrders = 3;

// A banded matrix: output j reads pixels start[j] + t with weights[offset[j] + t], t < count[j].
template <class A>
struct Band {
  int64_t outputs = 0, pixels = 0;
  std::vector<int32_t> start, count;
  std::vector<int64_t> offset;
  std::vector<A> weight;
  // The pixel of every weight where they are not in a row, which periodic paddings alone lead to; else empty.
  std::vector<int32_t> place;
  // All pixels read lie in [first, last), and no run is longer than `most`.
  int64_t first = 0, last = 0;
  int32_t most = 0;

  int64_t pixel(int64_t j, int64_t t) const { return place.empty() ? start[j] + t : place[offset[j] + t]; }
};

template <class A>
struct AxisPlan : Band<A> {
  // Where derivatives are asked for: by the position and by the width of the filter. The latter is empty where the
  // width does not depend on the box (no reduction, or no antialiasing).
  std::vector<A> by_center, by_width;
  // d position_j / d hi (by lo it is 1 - fraction), and d width / d hi (by lo it is the negative).
  std::vector<double> fraction;
  double width_slope = 0;
  // The sums of an output's weights and of their derivatives.
  std::array<std::vector<A>, kOrders> share;

  const std::vector<A>& weights(Order order) const {
    return order == kValue ? this->weight : order == kByCenter ? by_center : by_width;
  }
};

// The outputs [begin, end) of so many.
struct Outputs {
  int64_t all, begin, end;
  Outputs(int64_t all) : all(all), begin(0), end(all) {}
  Outputs(int64_t all, int64_t begin, int64_t end) : all(all), begin(begin), end(end) {}
  int64_t count() const { return end - begin; }
};

// Plans are filled in place, so that their memory serves again. lo and hi are finite. With `derivatives` the taps are
// those of which the weight or a derivative is not zero.
template <class A>
void plan_axis(AxisPlan<A>& plan, double lo, double hi, const Outputs& outputs, int64_t pixels, const Options& options,
               bool derivatives);

// Outputs that read two neighbouring pixels each, start[j] with the weight left[j] and the one behind it with right[j];
// those with the weight 0 are not read. Or the derivatives of these weights by the position. The arrays go on up to a
// multiple of kPadded, as if the last start came again, with weights of 0.
template <class A>
struct PairPlan {
  static constexpr int64_t kPadded = 16;
  int64_t outputs = 0;
  std::vector<int32_t> start;
  std::vector<A> left, right, share;  // share: left + right
  std::vector<double> fraction;       // as in AxisPlan, where derivatives are asked for
};

// Whether the outputs can be read so; if not, the plan is not to be used.
template <class A>
bool plan_pairs(PairPlan<A>& plan, double lo, double hi, const Outputs& outputs, int64_t pixels, const Options& options,
                bool derivatives);

// The axis that a signal has beside its own: one output, which is the only pixel.
template <class A>
void plan_unit(AxisPlan<A>& plan, bool derivatives);

// The transposed matrix, without the pixels that nothing reads at both ends: its output k is pixel band.first + k.
template <class A>
void transpose(Band<A>& result, const Band<A>& band);

}  // namespace diffcrop
