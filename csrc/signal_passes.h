// The operations on crops of signals. Compiled once for every instruction set, as passes.h is.
//
//   crop       crop[j] = sum_t w[j, t] signal[start[j] + t]
//   by signal  grad[start[j] + t] += w[j, t] g[j], output by output in their order, or the transposed product
//   by box     sum_j g[j] d crop[j] / d position_j, weighted for both ends; and so for the width
//
// `shift` is taken off every pixel that is read.

#if DIFFCROP_LOOKUPS
#include "vectors_signals.h"
#endif

namespace diffcrop::DIFFCROP_LEVEL {

// --- from the signal -------------------------------------------------------------------------------------------------

template <class T, class A>
void gather_pairs(A* __restrict out, const T* __restrict row, const PairPlan<A>& pairs, A shift) {
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>) return gather_pairs_lanes(out, row, pairs, shift);
#endif
  const int32_t* const __restrict start = pairs.start.data();
  const A* const __restrict left = pairs.left.data(), * const __restrict right = pairs.right.data();
  for (int64_t j = 0; j < pairs.outputs; ++j) {
    const A a = left[j] * (load<A>(row[start[j]]) - shift), b = right[j] * (load<A>(row[start[j] + 1]) - shift);
    const A first = left[j] != 0 ? a : A(0);
    out[j] = right[j] == 0 ? first : left[j] != 0 ? first + b : b;
  }
}

// What a sum of so many terms begins with: a negative zero leaves every one of them as it is, which 0 does not.
template <class A>
DIFFCROP_INLINE A nothing_of(int64_t count) {
  return count > 0 ? A(-0.0) : A(0);
}

// In a fixed number of partial sums, whatever the vector width.
template <class T, class A>
DIFFCROP_INLINE A weigh_pixels(const A* __restrict weight, const T* __restrict from, int64_t count, A shift) {
  constexpr int64_t parts = 8;
  A total = nothing_of<A>(count);
  int64_t t = 0;
  if (count >= parts) {
    A sum[parts] = {};
    for (; t + parts <= count; t += parts)
      for (int64_t i = 0; i < parts; ++i) sum[i] += weight[t + i] * (load<A>(from[t + i]) - shift);
    total = ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
  }
  for (; t < count; ++t) total += weight[t] * (load<A>(from[t]) - shift);
  return total;
}

template <class T, class A>
void gather_runs(A* __restrict out, const T* __restrict row, const AxisPlan<A>& runs, Order order, A shift) {
  const A* const weights = runs.weights(order).data();
  if (!runs.place.empty()) {
    for (int64_t j = 0; j < runs.outputs; ++j) {
      A sum = nothing_of<A>(runs.count[j]);
      for (int64_t t = runs.offset[j]; t < runs.offset[j] + runs.count[j]; ++t)
        sum += weights[t] * (load<A>(row[runs.place[t]]) - shift);
      out[j] = sum;
    }
    return;
  }
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>) return gather_runs_lanes(out, row, runs, weights, shift);
#endif
  for (int64_t j = 0; j < runs.outputs; ++j)
    out[j] = weigh_pixels(weights + runs.offset[j], row + runs.start[j], runs.count[j], shift);
}

// The pixels [first, last) that a plan reads.
template <class A>
std::pair<int64_t, int64_t> reach_of(const SignalPlan<A>& plan) {
  if (!plan.paired) return {plan.runs.first, plan.runs.last};
  const auto [first, last] = std::minmax_element(plan.pairs.start.begin(), plan.pairs.start.end());
  return {*first, *last + 2};
}

// Calls f(c, count, rows) for all channels, `most` or fewer at a time, rows[r][k] pixel k of channel c + r, in a copy
// where pixels are not next to each other.
template <int most, class T, class A, class F>
void each_rows(const SignalPlan<A>& plan, const Line<const T>& signal, int64_t c, int64_t c_end, Scratch<A>& scratch,
               const F& f) {
  if (signal.column == 1) {
    const T* rows[most];
    for (; c < c_end; c += most) {
      const int64_t count = std::min<int64_t>(c_end - c, most);
      for (int64_t r = 0; r < count; ++r) rows[r] = signal.at(c + r);
      f(c, count, rows);
    }
    return;
  }
  const auto [first, last] = reach_of(plan);
  A* copies[most];
  const A* rows[most];
  for (int64_t r = 0; r < most; ++r) copies[r] = scratch.take(last - first), rows[r] = copies[r] - first;
  for (; c < c_end; c += most) {
    const int64_t count = std::min<int64_t>(c_end - c, most);
    for (int64_t r = 0; r < count; ++r)
      read_row(copies[r], signal.at(c + r) + first * signal.column, last - first, signal.column, 1, 0);
    f(c, count, rows);
  }
}

// Calls f(c, row) for all channels one by one.
template <class T, class A, class F>
void each_row(const SignalPlan<A>& plan, const Line<const T>& signal, int64_t c, int64_t c_end, Scratch<A>& scratch,
              const F& f) {
  each_rows<1>(plan, signal, c, c_end, scratch,
               [&](int64_t channel, int64_t, const auto* rows) DIFFCROP_ALWAYS { f(channel, rows[0]); });
}

// Calls f(c, count, rows) for batches of channels, rows[r] less the fill from pixel plan.runs.first on, as the passes
// over rows want them.
template <class T, class A, class F>
void each_batch(const SignalPlan<A>& plan, const Line<const T>& signal, int64_t c, int64_t c_end, const A* fill,
                Scratch<A>& scratch, const F& f) {
  const int64_t first = plan.runs.first, columns = plan.runs.last - first;
  A* rows[kBatch];
  for (A*& row : rows) row = scratch.take(columns + kOverread);
  for (; c < c_end; c += kBatch) {
    const int64_t count = std::min<int64_t>(c_end - c, kBatch);
    for (int64_t r = 0; r < count; ++r) {
      read_row(rows[r], signal.at(c + r) + first * signal.column, columns, signal.column, 1, 0);
      if (fill != nullptr)
        for (int64_t x = 0; x < columns; ++x) rows[r][x] -= fill[c + r];
    }
    f(c, count, rows);
  }
}

// The rows of outputs, fill + W (signal - fill); the fill is added as fill (1 - share), so that a crop inside the
// signal does not round against it.
template <class T, class O, class A>
void crop_signal(const SignalPlan<A>& plan, const Line<const T>& signal, const Line<O>& out, int64_t c, int64_t c_end,
                 const A* fill, Scratch<A>& scratch) {
  scratch.clear();
  const int64_t width = plan.outputs();
  A* lines[kBatch];
  for (A*& line : lines) line = scratch.take(width);
  // Where a row is put first, and what is left to be done with it there.
  const auto place = [&](int64_t channel, A* line) DIFFCROP_ALWAYS {
    if constexpr (std::is_same_v<O, A>)
      if (out.column == 1) return out.at(channel);
    return line;
  };
  const auto finish = [&](int64_t channel, A* row, const A* line) DIFFCROP_ALWAYS {
    if (fill != nullptr) {
      const A* const share = plan.paired ? plan.pairs.share.data() : plan.runs.share[kValue].data();
      for (int64_t j = 0; j < width; ++j) row[j] += fill[channel] * (1 - share[j]);
    }
    if (row == line) write_row(out.at(channel), row, width, out.column, 1, 0);
  };
  if (plan.laid) {
    const auto all = [&](int64_t channel, int64_t count, const A* const* rows) DIFFCROP_ALWAYS {
      A* outs[kBatch];
      for (int64_t r = 0; r < count; ++r) outs[r] = place(channel + r, lines[r]);
      gather<false>(count, outs, rows, plan.across, kValue);
      for (int64_t r = 0; r < count; ++r) finish(channel + r, outs[r], lines[r]);
    };
    return each_batch<T, A>(plan, signal, c, c_end, nullptr, scratch, all);
  }
  each_row(plan, signal, c, c_end, scratch, [&](int64_t channel, const auto* row) DIFFCROP_ALWAYS {
    A* const to = place(channel, lines[0]);
    plan.paired ? gather_pairs(to, row, plan.pairs, A(0)) : gather_runs(to, row, plan.runs, kValue, A(0));
    finish(channel, to, lines[0]);
  });
}

// --- from the crop ---------------------------------------------------------------------------------------------------

// A row of a gradient as numbers of the sums' type: itself, or a copy.
template <class G, class A>
const A* grad_row(const Line<const G>& grad, int64_t c, int64_t width, A* copy) {
  if constexpr (std::is_same_v<G, A>)
    if (grad.column == 1) return grad.at(c);
  read_row(copy, grad.at(c), width, grad.column, 1, 0);
  return copy;
}

template <class T, class G, class A>
AxisSum box_signal(const SignalPlan<A>& plan, const Line<const T>& signal, const Line<const G>& grad, int64_t c,
                   int64_t c_end, const A* fill, Scratch<A>& scratch) {
  scratch.clear();
  const int64_t width = plan.outputs();
  A *const line = scratch.take(width), *copies[kBatch];
  for (A*& copy : copies) copy = scratch.take(width + kLanes);
  A* const totals[2] = {scratch.take(width + kLanes), scratch.take(width + kLanes)};
  for (A* const total : totals) std::fill_n(total, width + kLanes, A(0));
  const bool widens = !plan.paired && !plan.runs.by_width.empty();
  const auto add = [&](A* __restrict total, const A* __restrict g, const A* __restrict slope) DIFFCROP_ALWAYS {
    for (int64_t j = 0; j < width; ++j) total[j] += g[j] * slope[j];
  };
  const auto all = [&](int64_t channel, int64_t count, const A* const* rows) DIFFCROP_ALWAYS {
    for (int64_t r = 0; r < count; ++r) read_row(copies[r], grad.at(channel + r), width, grad.column, 1, 0);
    add_products(widens ? 2 : 1, count, totals, copies, rows, plan.across, line);
  };
  if (plan.laid) each_batch<T, A>(plan, signal, c, c_end, fill, scratch, all);
  bool done = plan.laid;
#if DIFFCROP_LOOKUPS
  if constexpr (std::is_same_v<A, float>)
    if (!done && !plan.paired && plan.runs.place.empty()) {
      each_rows<kBatch>(plan, signal, c, c_end, scratch,
                        [&](int64_t channel, int64_t count, const auto* rows) DIFFCROP_ALWAYS {
                          const A* g[kBatch];
                          A shift[kBatch];
                          for (int64_t r = 0; r < count; ++r) {
                            g[r] = grad_row(grad, channel + r, width, copies[r]);
                            shift[r] = fill == nullptr ? A(0) : fill[channel + r];
                          }
                          add_slopes_lanes(totals, g, rows, shift, count, plan.runs);
                        });
      done = true;
    }
#endif
  each_row(plan, signal, done ? c_end : c, c_end, scratch, [&](int64_t channel, const auto* row) DIFFCROP_ALWAYS {
    const A shift = fill == nullptr ? A(0) : fill[channel];
    const A* const g = grad_row(grad, channel, width, copies[0]);
    plan.paired ? gather_pairs(line, row, plan.pairs, shift) : gather_runs(line, row, plan.runs, kByCenter, shift);
    add(totals[0], g, line);
    if (!widens) return;
    gather_runs(line, row, plan.runs, kByWidth, shift);
    add(totals[1], g, line);
  });
  const double* const fraction = plan.paired ? plan.pairs.fraction.data() : plan.runs.fraction.data();
  double lo[kLanes] = {}, hi[kLanes] = {}, by_width[kLanes] = {};
  for (int64_t j = 0; j < width; j += kLanes)
    for (int64_t lane = 0, count = std::min<int64_t>(kLanes, width - j); lane < count; ++lane) {
      lo[lane] += (1 - fraction[j + lane]) * totals[0][j + lane];
      hi[lane] += fraction[j + lane] * totals[0][j + lane];
      by_width[lane] += totals[1][j + lane];
    }
  AxisSum sum;
  const double slope = plan.paired ? 0 : plan.runs.width_slope;
  for (int lane = 0; lane < kLanes; ++lane)
    sum.lo += lo[lane] - slope * by_width[lane], sum.hi += hi[lane] + slope * by_width[lane];
  return sum;
}

// Rows that outputs are added to in turns: what is added to a pixel has to wait for what was added to it before.
constexpr int kTurns = kBatch;

template <int count, class A>
void scatter_pairs(A* const* rows, const A* const* g, const PairPlan<A>& pairs) {
  const int32_t* const start = pairs.start.data();
  const A *const left = pairs.left.data(), *const right = pairs.right.data();
  for (int64_t j = 0; j < pairs.outputs; ++j) {
    const int64_t k = start[j];
    if (left[j] != 0)
      for (int r = 0; r < count; ++r) rows[r][k] += left[j] * g[r][j];
    if (right[j] != 0)
      for (int r = 0; r < count; ++r) rows[r][k + 1] += right[j] * g[r][j];
  }
}

template <int count, class A>
void scatter_runs(A* const* rows, const A* const* g, const AxisPlan<A>& runs) {
  for (int64_t j = 0; j < runs.outputs; ++j) {
    const int64_t taps = runs.count[j];
    const A* const weight = runs.weight.data() + runs.offset[j];
    if (!runs.place.empty()) {
      const int32_t* const place = runs.place.data() + runs.offset[j];
      for (int r = 0; r < count; ++r)
        for (int64_t t = 0; t < taps; ++t) rows[r][place[t]] += weight[t] * g[r][j];
      continue;
    }
    for (int r = 0; r < count; ++r) {
      A* const to = rows[r] + runs.start[j];
#if DIFFCROP_LOOKUPS
      if constexpr (std::is_same_v<A, float>) {
        add_run_lanes(to, weight, g[r][j], taps);
        continue;
      }
#endif
      const A* const __restrict from = weight;
      for (int64_t t = 0; t < taps; ++t) to[t] += from[t] * g[r][j];
    }
  }
}

template <class G, class A>
void add_back(const SignalPlan<A>& plan, const Line<A>& sums, const Line<const G>& grad, int64_t c, int64_t c_end,
              Scratch<A>& scratch) {
  const auto mark = scratch.mark();
  const int64_t width = plan.outputs();
  A* copies[kTurns];
  for (A*& copy : copies) copy = scratch.take(width + kOverread);
  while (plan.laid_back && c < c_end) {
    const int64_t count = std::min<int64_t>(c_end - c, kBatch);
    A* outs[kBatch];
    for (int64_t r = 0; r < count; ++r) {
      read_row(copies[r], grad.at(c + r), width, grad.column, 1, 0);
      outs[r] = sums.at(c + r) + plan.runs.first;
    }
    gather<true>(count, outs, copies, plan.back, kValue);
    c += count;
  }
  while (c < c_end) {
    const int64_t count = c + kTurns <= c_end ? kTurns : 1;
    A* rows[kTurns];
    const A* g[kTurns];
    for (int64_t r = 0; r < count; ++r) rows[r] = sums.at(c + r), g[r] = grad_row(grad, c + r, width, copies[r]);
    if (plan.paired)
      count == 1 ? scatter_pairs<1>(rows, g, plan.pairs) : scatter_pairs<kTurns>(rows, g, plan.pairs);
    else
      count == 1 ? scatter_runs<1>(rows, g, plan.runs) : scatter_runs<kTurns>(rows, g, plan.runs);
    c += count;
  }
  scratch.release(mark);
}

template <class T>
SignalKernels<T> signal_kernels() {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  return {crop_signal<T, O, A>, box_signal<T, O, A>, add_back<O, A>};
}
template SignalKernels<double> signal_kernels();
template SignalKernels<float> signal_kernels();
template SignalKernels<Half> signal_kernels();
template SignalKernels<BFloat16> signal_kernels();
template SignalKernels<uint8_t> signal_kernels();

}  // namespace diffcrop::DIFFCROP_LEVEL
