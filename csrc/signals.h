// Crops of signals: the matrix of an axis for some of its outputs at a time, and the operations on it.
//
// A signal has few rows to share a plan. So a plan is made where it is used, by the thread that uses it and while it
// lies in the cache, and is laid out for vectors where there are enough rows for that to pay.
#pragma once

#include "kernels.h"

namespace diffcrop {

// Outputs that are planned together: the plan of as many lies in the nearest cache.
constexpr int64_t kTile = 1024;

// From so many channels on plans are laid out: where runs are this short, and for the product with the transposed
// matrix where the axis is reduced no further than this. Pairs are added one by one up to so many channels.
constexpr int64_t kRowsToLayOut = 8, kShortRun = 8, kRowsToTranspose = 24;
constexpr double kDenseReduction = 2;

// Of some outputs of a box; by pairs where they read two neighbours each.
template <class A>
struct SignalPlan {
  bool paired = false, laid = false, laid_back = false;
  PairPlan<A> pairs;
  AxisPlan<A> runs;
  Operator<A> across, back;  // of runs, laid out
  Band<A> transposed;
  int64_t outputs() const { return paired ? pairs.outputs : runs.outputs; }
};

// A strided array (channels, columns).
template <class T>
struct Line {
  T* data;
  int64_t channel, column;
  T* at(int64_t c) const { return data + c * channel; }
};

// The operations on channels [c, c_end) of a signal that stores T, for one instruction set; signal_passes.h says what
// each does. `out` and `grad` begin with the first output of the plan.
template <class T>
struct SignalKernels {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  using Signal = const Line<const T>&;
  void (*crop)(const SignalPlan<A>&, Signal, const Line<O>& out, int64_t c, int64_t c_end, const A* fill, Scratch<A>&);
  AxisSum (*grad_box)(const SignalPlan<A>&, Signal, const Line<const O>& grad, int64_t c, int64_t c_end, const A* fill,
                      Scratch<A>&);
  void (*add_back)(const SignalPlan<A>&, const Line<A>& sums, const Line<const O>& grad, int64_t c, int64_t c_end,
                   Scratch<A>&);
};

namespace plain {
template <class T>
SignalKernels<T> signal_kernels();
}
#if DIFFCROP_X86
namespace avx2 {
template <class T>
SignalKernels<T> signal_kernels();
}
namespace avx512 {
template <class T>
SignalKernels<T> signal_kernels();
}
#endif

}  // namespace diffcrop
