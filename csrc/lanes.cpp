#include "lanes.h"

#include <algorithm>
#include <type_traits>

namespace diffcrop {
namespace {

// Cycles of a block, roughly, as measured where a permutation takes one: its lookup for each tap, and outputs on their
// own (one load of sixteen taps each, and a sum across the lanes).
constexpr int kCost[] = {2, 3, 6};
constexpr int kCostOfRun = 9, kCostOfSixteen = 2;

Lanes make_lanes(const Band<float>& band, int64_t m, const std::vector<float>* const (&weights)[kOrders],
                 double& cost) {
  Lanes lanes;
  const int64_t total = band.outputs * m;
  lanes.blocks.reserve((total + kLanes - 1) / kLanes);
  lanes.place.resize(lanes.blocks.capacity() * kLanes, 0);
  bool any = false;
  int64_t table = 0;
  for (int64_t begin = 0; begin < total; begin += kLanes) {
    const int64_t end = std::min<int64_t>(begin + kLanes, total);
    int64_t from = INT64_MAX, to = 0, taps = 0, alone = 0;
    for (int64_t j = begin / m; j * m < end; ++j) {
      const int64_t count = band.count[j], start = band.start[j];
      alone += (kCostOfRun + kCostOfSixteen * ((count + kLanes - 1) / kLanes)) * (m > 1 ? count : 1);
      if (count == 0) continue;
      from = std::min(from, start), to = std::max(to, start), taps = std::max(taps, count);
    }
    if (taps == 0) from = to = band.first;
    // The channels before the first one of a block are places of the same pixel.
    const int64_t window = (to - from + 1) * m;
    const int registers = window <= kLanes ? 0 : window <= 2 * kLanes ? 1 : 2;
    const bool fits = window <= 4 * kLanes && taps * kCost[registers] <= alone;
    Block block{static_cast<int32_t>((from - band.first) * m), static_cast<int32_t>(taps), table,
                fits ? static_cast<Lookup>(registers) : Lookup::single};
    lanes.blocks.push_back(block);
    cost += static_cast<double>(fits ? taps * kCost[registers] : alone);
    if (!fits) continue;
    any = true;
    table += taps;
    for (int64_t x = begin; x < end; ++x)
      if (band.count[x / m] > 0) lanes.place[x] = static_cast<int32_t>((band.start[x / m] - from) * m + x % m);
  }
  if (!any) {
    lanes.blocks.clear();
    return lanes;
  }
  lanes.mask.assign(table, 0);
  for (int order = 0; order < kOrders; ++order)
    if (weights[order] != nullptr && !weights[order]->empty()) lanes.weight[order].resize(table * kLanes);
  for (size_t b = 0; b < lanes.blocks.size(); ++b) {
    const Block& block = lanes.blocks[b];
    if (block.lookup == Lookup::single) continue;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t x = static_cast<int64_t>(b) * kLanes + lane;
      const int64_t count = x < total ? band.count[x / m] : 0;
      for (int64_t t = 0; t < count; ++t) lanes.mask[block.table + t] |= static_cast<uint16_t>(1 << lane);
      for (int order = 0; order < kOrders; ++order) {
        if (lanes.weight[order].empty()) continue;
        const float* const from = weights[order]->data() + (x < total ? band.offset[x / m] : 0);
        float* const to = lanes.weight[order].data() + block.table * kLanes + lane;
        for (int64_t t = 0; t < count; ++t) to[t * kLanes] = from[t];
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
