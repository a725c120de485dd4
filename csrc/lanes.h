// A banded matrix laid out for vectors: sixteen outputs at a time, each tap of all of them found by one permutation.
//
// The runs of sixteen neighbouring outputs lie close to each other where an axis is enlarged or reduced a little. Then
// one to four registers hold all their pixels, and a permutation brings the t-th of every run to its lane.
// Gathering them one by one takes several times longer on every processor.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"

namespace diffcrop {

constexpr int kLanes = 16;
// Rows that are worked on together: they share what is read of the tables, and a row is read some time after it was
// written, when it can be read in other pieces than it was written in.
constexpr int kBatch = 4;
// What may be read behind the end of a row.
constexpr int64_t kOverread = 4 * kLanes;

// How a block finds its pixels: in so many registers; in four that move along with the taps; two neighbours at a time,
// one output after the other; all that lie between the first and the last, with the weight 0 for most lanes; each run
// by itself.
enum class Lookup : int8_t { one, two, three, four, moving, pairs, dense, single };

// Outputs [16 b, 16 b + 16) of block b, where a row has m numbers to a pixel: output j of channel c is place j m + c.
struct Block {
  int32_t from;   // the first number read, counted from pixel band.first
  int32_t read;   // how many numbers lie between it and the last one read
  int32_t taps;   // those that the tables have, no fewer than the longest run
  int64_t table;  // where its masks are, and times 16 its weights
  Lookup lookup;
};

struct Lanes {
  std::vector<Block> blocks;   // empty where no block gains
  std::vector<int32_t> place;  // where the first tap of each lane is, less `from`; of a dense block its channel;
                               // one less for an only pixel that is the second of a pair
  std::vector<uint16_t> mask;  // for each tap the lanes that have it: what others would read may be NaN
  std::vector<float> weight[kOrders];
  // Every block has tables of two taps, which registers or pairs find, and reads nothing beyond its last pixel.
  bool points = false;
};

// The widest m that is laid out so; beyond it the channels of a pixel fill vectors by themselves.
constexpr int64_t kMostInterleaved = 8;

// A banded matrix that is applied to rows of m numbers to a pixel, with up to three tables of weights.
template <class A>
struct Operator {
  const Band<A>* band = nullptr;
  int64_t m = 1;
  const A* weights[kOrders] = {};
  Lanes lanes;
  double cost = 0;  // cycles, roughly
};

// `weights` are tables laid out as band.weight, null where there is none. The band must outlive the operator.
// `lookups`: whether permutations of registers are there.
template <class A>
void make_operator(Operator<A>& result, const Band<A>& band, int64_t m, const std::vector<A>* const (&weights)[kOrders],
                   bool lookups);

// How a product W_y source W_x^T is made.
struct RowOrder {
  bool x_first = false;
  bool points = false;
  // Source rows from the first to the last that kBatch neighbouring outputs read, those that read nothing left out.
  int64_t reach = 1;
  double cost = 0;  // cycles, roughly, of all outputs
};

// What the passes do with the numbers of a source row: make points of them where they lie side by side, and that in
// pairs where they are of the sums' own type.
struct Ability {
  bool dense = false, pairs = false;
};

// Whether no output reads more than two pixels of an axis, which are neighbours, and the passes know how to make points
// of these.
template <class A>
bool are_points(const Band<A>& y, const Operator<A>& x, const Ability& ability);

// The cheapest way, as estimated from how many source rows are read, and how often.
template <class A>
RowOrder order_of(const Band<A>& y, const Operator<A>& x, const Ability& ability);

}  // namespace diffcrop
