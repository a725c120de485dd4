#include "lanes.h"

#include <algorithm>
#include <type_traits>

namespace diffcrop {
namespace {

// Cycles of a block and row, roughly, as measured: for each tap, where one to four registers hold all pixels or four
// move, or pairs of pixels are loaded; for each pixel of a dense block; for a run by itself, and for each sixteen taps.
constexpr double kRegisters[] = {2, 2, 3, 3};
constexpr double kMoving = 5, kPair = 15, kPixel = 1, kRun = 9, kSixteen = 2;

// Pairs serve only where registers do not reach, so that there is a pixel before the last (see `place`).
static_assert(kPair > 2 * kRegisters[3]);

struct Choice {
  Lookup lookup;
  double cost;
};

// `window`: numbers from the first run's start to the last one's, `read`: to the last one's end; `span`: `read` in
// pixels.
Choice choose(int64_t m, int64_t window, int64_t read, int64_t taps, int64_t span, double runs) {
  Choice best{Lookup::single, runs};
  const auto offer = [&](bool possible, Lookup lookup, double cost) {
    if (possible && cost < best.cost) best = {lookup, cost};
  };
  const auto each = static_cast<double>(taps);
  const int64_t registers = std::clamp<int64_t>((read + kLanes - 1) / kLanes, 1, 4);
  offer(read <= 4 * kLanes, static_cast<Lookup>(registers - 1), kRegisters[registers - 1] * each);
  offer(window <= 4 * kLanes && taps > 2, Lookup::moving, kMoving * each);
  offer(m == 1, Lookup::pairs, kPair * static_cast<double>((taps + 1) / 2));
  offer(taps > 2, Lookup::dense, kPixel * static_cast<double>(span));
  return best;
}

// A number of a row: channel c of pixel j. Counted on without divisions.
struct Number {
  int64_t at, m, j, c;
  Number(int64_t at, int64_t m) : at(at), m(m), j(at / m), c(at % m) {}
  void next() {
    ++at;
    if (++c == m) c = 0, ++j;
  }
};

// Returns the cost.
double lay_out(Lanes& lanes, const Band<float>& band, int64_t m, const std::vector<float>* const (&weights)[kOrders]) {
  double cost = 0;
  const int64_t total = band.outputs * m, count = (total + kLanes - 1) / kLanes;
  lanes.points = count > 0;
  lanes.blocks.resize(count);
  lanes.place.assign(count * kLanes, 0);
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
    if (taps == 0) from = to = stop = band.first, runs = kRun;
    const Choice chosen = choose(m, (to - from + 1) * m, (stop - from) * m, taps, stop - from, runs);
    cost += chosen.cost;
    const bool few = taps <= 2 && chosen.lookup <= Lookup::pairs && chosen.lookup != Lookup::moving;
    const int64_t length = chosen.lookup == Lookup::dense   ? stop - from
                           : few                            ? 2
                           : chosen.lookup == Lookup::pairs ? (taps + 1) / 2 * 2
                                                            : taps;
    lanes.points = lanes.points && few;
    lanes.blocks[b] = {static_cast<int32_t>((from - band.first) * m), static_cast<int32_t>((stop - from) * m),
                       static_cast<int32_t>(length), table, chosen.lookup};
    if (chosen.lookup == Lookup::single) continue;
    table += length;
    const bool dense = chosen.lookup == Lookup::dense;
    for (Number x(begin, m); x.at < end; x.next()) {
      const int64_t run = band.count[x.j] > 0 && !dense ? band.start[x.j] - from : 0;
      lanes.place[x.at] = static_cast<int32_t>(run * m + x.c);
      // The second of a pair must not lie behind the last pixel: there the only one is the second.
      if (few && chosen.lookup == Lookup::pairs && band.count[x.j] == 1 && band.start[x.j] + 1 == stop)
        --lanes.place[x.at];
    }
  }
  lanes.mask.assign(table, 0);
  for (int order = 0; order < kOrders; ++order)
    lanes.weight[order].resize(weights[order] != nullptr && !weights[order]->empty() ? table * kLanes : 0);
  for (int64_t b = 0; b < count; ++b) {
    const Block& block = lanes.blocks[b];
    if (block.lookup == Lookup::single) continue;
    const bool dense = block.lookup == Lookup::dense;
    const int64_t begin = b * kLanes, end = std::min<int64_t>(begin + kLanes, total), from = block.from / m;
    for (Number x(begin, m); x.at < end; x.next()) {
      const int64_t taps = band.count[x.j], offset = band.offset[x.j], pixel = band.start[x.j] - band.first - from;
      if (taps == 0) continue;
      // Of a pair whose only pixel is the second the place is one less.
      const int64_t first = block.table + (dense ? pixel : pixel * m + x.c - lanes.place[x.at]), lane = x.at - begin;
      for (int64_t t = 0; t < taps; ++t) lanes.mask[first + t] |= static_cast<uint16_t>(1 << lane);
      for (int order = 0; order < kOrders; ++order) {
        if (lanes.weight[order].empty()) continue;
        const float* const weight = weights[order]->data() + offset;
        float* const to = lanes.weight[order].data() + first * kLanes + lane;
        for (int64_t t = 0; t < taps; ++t) to[t * kLanes] = weight[t];
      }
    }
  }
  return cost;
}

}  // namespace

template <class A>
void make_operator(Operator<A>& result, const Band<A>& band, int64_t m, const std::vector<A>* const (&weights)[kOrders],
                   bool lookups) {
  result.band = &band, result.m = m;
  for (int order = 0; order < kOrders; ++order) {
    const bool given = weights[order] != nullptr && !weights[order]->empty();
    result.weights[order] = given ? weights[order]->data() : nullptr;
  }
  if constexpr (std::is_same_v<A, float>) {
    if (lookups && band.place.empty() && !band.weight.empty() && m <= kMostInterleaved) {
      result.cost = lay_out(result.lanes, band, m, weights);
      return;
    }
  }
  result.lanes.blocks.clear(), result.lanes.points = false;
  result.cost = 2.0 * static_cast<double>(band.weight.size() * (m > 1 ? (m + 7) / 8 : 1));
}

template <class A>
bool are_points(const Band<A>& y, const Operator<A>& x, const Ability& ability) {
  const auto few = [](const Band<A>& band) { return band.place.empty() && band.most <= 2; };
  return ability.dense && few(y) && few(*x.band) && (x.lanes.points || ability.pairs);
}

template <class A>
RowOrder order_of(const Band<A>& y, const Operator<A>& x, const Ability& ability) {
  RowOrder order;
  order.points = are_points(y, x, ability);
  const auto sum = [](int64_t taps, int64_t length) { return static_cast<double>(taps * length) / kLanes; };
  const int64_t width = x.band->outputs * x.m, columns = (x.band->last - x.band->first) * x.m;
  if (order.points || !y.place.empty()) {
    const auto rows = static_cast<double>(y.outputs);
    order.cost = order.points ? 2 * rows * x.cost
                              : sum(static_cast<int64_t>(y.weight.size()) + y.outputs, columns) + rows * x.cost;
    return order;
  }
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
  const double y_first = sum(taps + outputs, columns) + static_cast<double>(outputs) * x.cost;
  const double x_first = sum(2 * touched, columns) + static_cast<double>(touched) * x.cost + sum(taps + outputs, width);
  order.x_first = x_first < y_first;
  order.cost = std::min(x_first, y_first);
  return order;
}

template bool are_points(const Band<float>&, const Operator<float>&, const Ability&);
template bool are_points(const Band<double>&, const Operator<double>&, const Ability&);
template RowOrder order_of(const Band<float>&, const Operator<float>&, const Ability&);
template RowOrder order_of(const Band<double>&, const Operator<double>&, const Ability&);
template void make_operator(Operator<float>&, const Band<float>&, int64_t, const std::vector<float>* const (&)[kOrders],
                            bool);
template void make_operator(Operator<double>&, const Band<double>&, int64_t,
                            const std::vector<double>* const (&)[kOrders], bool);

}  // namespace diffcrop
