#include "lanes.h"

#include <algorithm>
#include <type_traits>

namespace diffcrop {
namespace {

// Cycles of a block and row, roughly, as measured: for each tap, where one to four registers hold all pixels, or pairs
// of pixels are loaded; for each pixel of a dense block; for a run by itself, and for each sixteen taps of it.
constexpr double kRegisters[] = {2, 3, 5};
constexpr double kPair = 15, kPixel = 1, kRun = 9, kSixteen = 2;

struct Choice {
  Lookup lookup;
  double cost;
};

// `window`: numbers from the first run's start to the last one's; `span`: pixels from the first to the last read.
Choice choose(int64_t m, int64_t window, int64_t taps, int64_t span, double runs) {
  Choice best{Lookup::single, runs};
  const auto offer = [&](Lookup lookup, double cost) {
    if (cost < best.cost) best = {lookup, cost};
  };
  const int registers = window <= kLanes ? 0 : window <= 2 * kLanes ? 1 : 2;
  if (window <= 4 * kLanes) offer(static_cast<Lookup>(registers), kRegisters[registers] * static_cast<double>(taps));
  if (m == 1) offer(Lookup::pairs, kPair * static_cast<double>((taps + 1) / 2));
  offer(Lookup::dense, kPixel * static_cast<double>(span));
  return best;
}

Lanes make_lanes(const Band<float>& band, int64_t m, const std::vector<float>* const (&weights)[kOrders],
                 double& cost) {
  Lanes lanes;
  const int64_t total = band.outputs * m, count = (total + kLanes - 1) / kLanes;
  lanes.blocks.resize(count);
  lanes.place.resize(count * kLanes, 0);
  int64_t table = 0;
  for (int64_t b = 0; b < count; ++b) {
    const int64_t begin = b * kLanes, end = std::min<int64_t>(begin + kLanes, total);
    int64_t from = INT64_MAX, to = 0, stop = 0, taps = 0;
    double runs = 0;
    for (int64_t j = begin / m; j * m < end; ++j) {
      const int64_t taps_j = band.count[j], start = band.start[j];
      runs += m > 1 ? kSixteen * static_cast<double>(m * taps_j)
                    : kRun + kSixteen * static_cast<double>((taps_j + kLanes - 1) / kLanes);
      if (taps_j == 0) continue;
      from = std::min(from, start), to = std::max(to, start), stop = std::max(stop, start + taps_j);
      taps = std::max(taps, taps_j);
    }
    if (taps == 0) from = to = stop = band.first;
    const Choice chosen = choose(m, (to - from + 1) * m, taps, stop - from, runs);
    cost += chosen.cost;
    const int64_t length = chosen.lookup == Lookup::dense   ? stop - from
                           : chosen.lookup == Lookup::pairs ? (taps + 1) / 2 * 2
                                                            : taps;
    lanes.blocks[b] = {static_cast<int32_t>((from - band.first) * m), static_cast<int32_t>(length), table,
                       chosen.lookup};
    if (chosen.lookup == Lookup::single) continue;
    table += length;
    for (int64_t x = begin; x < end; ++x) {
      const int64_t run = band.count[x / m] > 0 && chosen.lookup != Lookup::dense ? band.start[x / m] - from : 0;
      lanes.place[x] = static_cast<int32_t>(run * m + x % m);
    }
  }
  lanes.mask.assign(table, 0);
  for (int order = 0; order < kOrders; ++order)
    if (weights[order] != nullptr && !weights[order]->empty()) lanes.weight[order].resize(table * kLanes);
  for (int64_t b = 0; b < count; ++b) {
    const Block& block = lanes.blocks[b];
    if (block.lookup == Lookup::single) continue;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t x = b * kLanes + lane;
      if (x >= total || band.count[x / m] == 0) continue;
      const int64_t taps = band.count[x / m], offset = band.offset[x / m];
      const int64_t first =
          block.table + (block.lookup == Lookup::dense ? band.start[x / m] - band.first - block.from / m : 0);
      for (int64_t t = 0; t < taps; ++t) lanes.mask[first + t] |= static_cast<uint16_t>(1 << lane);
      for (int order = 0; order < kOrders; ++order) {
        if (lanes.weight[order].empty()) continue;
        const float* const from = weights[order]->data() + offset;
        float* const to = lanes.weight[order].data() + first * kLanes + lane;
        for (int64_t t = 0; t < taps; ++t) to[t * kLanes] = from[t];
      }
    }
  }
  return lanes;
}

}  // namespace

template <class A>
Operator<A> make_operator(const Band<A>& band, int64_t m, const std::vector<A>* const (&weights)[kOrders],
                          bool lookups) {
  Operator<A> result{&band, m, {}, {}, 0};
  for (int order = 0; order < kOrders; ++order)
    if (weights[order] != nullptr && !weights[order]->empty()) result.weights[order] = weights[order]->data();
  if constexpr (std::is_same_v<A, float>)
    if (lookups && band.place.empty() && m <= kMostInterleaved)
      result.lanes = make_lanes(band, m, weights, result.cost);
  if (result.lanes.blocks.empty())
    result.cost = 2.0 * static_cast<double>(band.weight.size() * (m > 1 ? (m + 7) / 8 : 1));
  return result;
}

template <class A>
RowOrder order_of(const Band<A>& y, const Operator<A>& x) {
  RowOrder order;
  if (!y.place.empty()) return order;
  // Source rows are counted once for all neighbours that share them.
  int64_t outputs = 0, taps = 0, touched = 0, first = 0, last = 0;
  int64_t starts[kBatch] = {}, stops[kBatch] = {};
  for (int64_t i = 0; i < y.outputs; ++i) {
    if (y.count[i] == 0) continue;
    const int64_t start = y.start[i], stop = start + y.count[i];
    taps += y.count[i];
    touched += y.count[i] - std::max<int64_t>(std::min(stop, last) - std::max(start, first), 0);
    first = start, last = stop;
    starts[outputs % kBatch] = start, stops[outputs % kBatch] = stop, ++outputs;
    const int64_t some = std::min<int64_t>(outputs, kBatch);
    order.reach =
        std::max(order.reach, *std::max_element(stops, stops + some) - *std::min_element(starts, starts + some));
  }
  const auto sum = [](int64_t taps, int64_t length) { return static_cast<double>(taps * length) / kLanes; };
  const int64_t width = x.band->outputs * x.m, columns = (x.band->last - x.band->first) * x.m;
  const double y_first = sum(taps + outputs, columns) + static_cast<double>(outputs) * x.cost;
  const double x_first = sum(2 * touched, columns) + static_cast<double>(touched) * x.cost + sum(taps + outputs, width);
  order.x_first = x_first < y_first;
  return order;
}

template RowOrder order_of(const Band<float>&, const Operator<float>&);
template RowOrder order_of(const Band<double>&, const Operator<double>&);
template Operator<float> make_operator(const Band<float>&, int64_t, const std::vector<float>* const (&)[kOrders], bool);
template Operator<double> make_operator(const Band<double>&, int64_t, const std::vector<double>* const (&)[kOrders],
                                        bool);

}  // namespace diffcrop
