// Crops of volumes: what the operations on them work on, in which order they are made, and the table of them.
//
// A volume's crop is W_z of the crops of its planes, for every channel. Outputs are made in bricks: some planes and
// rows.
#pragma once

#include "kernels.h"

namespace diffcrop {

// Planes and rows of a brick, cut by sizes alone.
struct BrickSize {
  int64_t planes = 1, rows = 1;
};

// Output planes [j, j_end), rows [i, i_end) of channel c, or of all channels where they are side by side.
struct Brick {
  int64_t c, j, j_end, i, i_end;
};

// How the product W_z W_y source W_x^T is made.
//
//   direct    every output row from all source rows that it reads, in all planes: where these are few
//   summed    z first: the sum of planes, then the product of an image: where z is reduced most
//   cropped   z last: the product of every source plane, kept for the outputs that share it
enum class Way : int8_t { direct, summed, cropped };

struct VolumeOrder {
  Way way = Way::summed;
  RowOrder summed;  // of the product of a sum of planes
  RowOrder plane;   // of the product of a plane of the source
};

// Numbers of sums that are kept: of a sum of planes, or of cropped planes.
constexpr int64_t kMostKeptSums = 1 << 18;

template <class A>
struct VolumePlan : BoxPlan<A> {
  AxisPlan<A> z;
  Band<A> z_back;
  VolumeOrder volume_order, volume_order_back;
};

// Source planes that the bricks of one column read together, those that two of them read counted twice.
template <class A>
int64_t planes_read(const Band<A>& z, int64_t planes) {
  int64_t total = 0;
  for (int64_t begin = 0; begin < z.outputs; begin += planes) {
    int64_t first = z.pixels, last = 0;
    for (int64_t j = begin; j < std::min(begin + planes, z.outputs); ++j) {
      if (z.count[j] == 0) continue;
      first = std::min<int64_t>(first, z.start[j]), last = std::max<int64_t>(last, z.start[j] + z.count[j]);
    }
    total += std::max<int64_t>(last - first, 0);
  }
  return total;
}

// The cheapest way, as estimated; `plane` is how the product of a plane of the source is made.
template <class A>
VolumeOrder volume_order_of(const Band<A>& z, const Band<A>& y, const Operator<A>& x, const RowOrder& plane,
                            const BrickSize& brick) {
  constexpr bool pairs = DIFFCROP_VECTORS;
  VolumeOrder order{.way = Way::summed, .summed = order_of<A>(y, x, {true, x.m > 1 || pairs}), .plane = plane};
  const auto sixteenths = [](double numbers) { return numbers / kLanes; };
  const auto columns = static_cast<double>((x.band->last - x.band->first) * x.m);
  const auto outputs = static_cast<double>(y.outputs * x.band->outputs * x.m);
  const auto planes = static_cast<double>(z.outputs), rows = static_cast<double>(y.outputs);
  const auto taps_z = static_cast<double>(z.weight.size()), taps_y = static_cast<double>(y.weight.size());
  // Rows of a plane that the bricks read, of which neighbours share some.
  const double bands = std::max(1.0, rows / static_cast<double>(brick.rows));
  const double read = static_cast<double>(y.last - y.first) + (bands - 1) * static_cast<double>(y.most);
  const double direct = sixteenths(taps_z * taps_y * columns) + planes * rows * x.cost;
  const double summed = sixteenths((taps_z + planes) * read * columns) + planes * order.summed.cost;
  const double cropped = static_cast<double>(planes_read(z, brick.planes)) * plane.cost * read /
                             std::max(1.0, static_cast<double>(y.last - y.first)) +
                         sixteenths((taps_z + planes) * outputs);
  const bool keeps =
      z.place.empty() && z.most * std::min(brick.rows, y.outputs) * x.band->outputs * x.m <= kMostKeptSums;
  if (direct < summed) order.way = Way::direct;
  if (keeps && cropped < std::min(direct, summed)) order.way = Way::cropped;
  return order;
}

// The derivative by the box from one brick.
struct VolumeSum {
  AxisSum z, y, x;
};

// One box's part in the gradient of its volume.
template <class G, class A>
struct VolumeContribution {
  const VolumePlan<A>* box;
  Solid<const G> grad;
};

// The operations on crops of volumes that store T, for one instruction set; volume_passes.h says what each does.
template <class T>
struct VolumeKernels {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  using Volume = const Solid<const T>&;
  bool lookups;
  void (*crop)(const VolumePlan<A>&, Volume, const Solid<O>&, const Brick&, const A* fill, Scratch<A>&);
  void (*jacobian)(const VolumePlan<A>&, Volume, const Solid<O>&, const Brick&, const A* fill, Scratch<A>&);
  VolumeSum (*grad_boxes)(const VolumePlan<A>&, Volume, const Solid<const O>&, const Brick&, const A* fill,
                          Scratch<A>&);
  void (*grad_images)(const std::vector<VolumeContribution<O, A>>&, const Solid<O>&, int64_t pixels, int64_t m,
                      const Brick&, Scratch<A>&);
};

namespace plain {
template <class T>
VolumeKernels<T> volume_kernels();
}
#if DIFFCROP_X86
namespace avx2 {
template <class T>
VolumeKernels<T> volume_kernels();
}
namespace avx512 {
template <class T>
VolumeKernels<T> volume_kernels();
}
#endif

}  // namespace diffcrop
