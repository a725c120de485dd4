// What crops of a batch and of a list of images share: their rows cut into pieces for torch's threads.
#pragma once

#include "operators.h"

namespace diffcrop {

// How the rows of each crop are cut into pieces: by sizes alone, so that partial sums depend neither on the threads nor
// on the other boxes. `work`: multiply-adds of a row.
struct Pieces {
  int64_t rows, length, each;
  Pieces(int64_t rows, int64_t work)
      : rows(rows),
        length(ceil_div(std::clamp<int64_t>(kPiece / std::max<int64_t>(work, 1), 1, 256), kBatch) * kBatch),
        each(ceil_div(rows, length)),
        work_(work) {}
  int64_t begin(int64_t piece) const { return piece % each * length; }
  int64_t end(int64_t piece) const { return std::min(begin(piece) + length, rows); }

  // Calls f(plan, its number, piece, scratch) for all pieces of all boxes, on torch's threads. With `parts` of a box
  // that are cut into pieces each by itself, piece / each counts through these.
  template <class A, class F>
  void share(std::span<const BoxPlan<A>> plans, const F& f, int64_t parts = 1) const {
    const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(work_ * std::min(length, rows), 1), 1);
    const int64_t whole = each * parts, count = static_cast<int64_t>(plans.size()) * whole;
    torch::stable::parallel_for(0, count, grain, [&](int64_t from, int64_t to) {
      Scratch<A>& scratch = Scratch<A>::of_thread();
      for (int64_t piece = from; piece < to; ++piece) f(plans[piece / whole], piece / whole, piece, scratch);
      scratch.clear();
    });
  }

 private:
  int64_t work_;
};

// Sets rows [begin, end), counted through the channels, of a crop without a box.
template <class O>
void fill_rows(const View<O>& out, int64_t height, int64_t width, int64_t m, int64_t begin, int64_t end,
               const O* values) {
  for (int64_t f = begin; f < end; ++f)
    for (int64_t c = f / height * m, last = c + m; c < last; ++c)
      for (int64_t j = 0; j < width; ++j) out.at(c, f % height)[j * out.column] = values[c];
}

// One number for each channel, of elements that are only moved. No vector, which has no data() for bool.
template <class T>
std::unique_ptr<T[]> nearest_fill(const std::vector<double>& fills, int64_t channels) {
  auto fill = std::make_unique<T[]>(channels);
  for (int64_t c = 0; c < channels; ++c) fill[c] = store<T>(fills[fills.size() == 1 ? 0 : c]);
  return fill;
}

// Rows of such a crop without a box: NaN, or `fill` where the dtype has none.
template <class T>
void fill_unknown(const View<T>& out, const Sizes& size, int64_t begin, int64_t end, int64_t channels, const T* fill) {
  constexpr bool floating = std::is_floating_point_v<T> || std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>;
  if constexpr (floating)
    fill_rows(out, size[0], size[1], 1, begin, end, nans<T>(channels).data());
  else
    fill_rows(out, size[0], size[1], 1, begin, end, fill);
}

// Writes the derivatives by the boxes of `plans`, each the sum of its `each` parts in their order. row(i): that of the
// i-th plan.
template <class A, class R>
void put_sums(const Tensor& out, std::span<const BoxPlan<A>> plans, const std::vector<BoxSum>& parts, int64_t each,
              const R& row) {
  for (int64_t i = 0; i < static_cast<int64_t>(plans.size()); ++i) {
    std::array<AxisSum, 3> total;
    for (int64_t piece = i * each; piece < (i + 1) * each; ++piece) {
      const auto& [y, x] = parts[piece];
      total[0].lo += x.lo, total[0].hi += x.hi, total[1].lo += y.lo, total[1].hi += y.hi;
    }
    put_box(out, row(i), plans[i].valid, total);
  }
}

inline ScalarType result_dtype(ScalarType image, Mode mode) {
  return image == ScalarType::Byte && mode != Mode::nearest ? ScalarType::Float : image;
}

inline void check_fill(const std::vector<double>& fill, int64_t channels) {
  require(fill.size() == 1 || static_cast<int64_t>(fill.size()) == channels,
          "fill must be one number, or one per channel");
}

}  // namespace diffcrop
