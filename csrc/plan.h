// What one axis of one box reads: for each output a run of pixels with their weights, all in the precision of the sums.
#pragma once

#include <cstdint>
#include <vector>

#include "filters.h"

namespace diffcrop {

enum class Padding { border, zeros, constant, reflection, circular, renormalize };

struct Options {
  Mode mode;
  bool antialias;
  Padding padding;
  double sigma;
  bool align_corners;
};

// Output j reads pixels (start[j] + t) % pixels with weights[offset[j] + t], t < count[j]. The run wraps around only
// under circular padding.
template <class A>
struct AxisPlan {
  int64_t outputs = 0, pixels = 0;
  std::vector<int32_t> start, count;
  std::vector<int64_t> offset;
  std::vector<A> weight;
  // Where derivatives are asked for: by the position and by the width of the filter. The latter is empty where the
  // width does not depend on the box (no reduction, or no antialiasing).
  std::vector<A> by_center, by_width;
  // d position_j / d hi (by lo it is 1 - fraction), and d width / d hi (by lo it is the negative).
  std::vector<double> fraction;
  double width_slope = 0;
  // The sums of an output's weights and of their derivatives.
  std::vector<A> share, share_by_center, share_by_width;
  // All runs lie in [first, last).
  int64_t first = 0, last = 0;
};

// lo and hi are finite. With `derivatives` the taps are those of which the weight or a derivative is not zero.
template <class A>
AxisPlan<A> plan_axis(double lo, double hi, int64_t outputs, int64_t pixels, const Options& options, bool derivatives);

// The transposed runs: which outputs read a pixel, in order, with their weights.
template <class A>
struct Readers {
  std::vector<int64_t> offset;  // pixel k (less the plan's `first`) is read by entries offset[k]..offset[k + 1]
  std::vector<int32_t> output;
  std::vector<A> weight;
};

template <class A>
Readers<A> transpose(const AxisPlan<A>& plan);

}  // namespace diffcrop
