// The passes over pixels, and the four operations made of them. No PyTorch in here.
//
// For one channel, crop = W_y image W_x^T. Every operation walks over output rows i (or image rows k) and keeps one
// row:
//
//   crop       v = W_y[i] image                                      crop[i] = W_x v
//   by image   p = sum_i W_y[i, k] g[i]                              grad[k] = W_x^T p          (gathered: one writer a
//   row) by box     v = W_y[i] image, v' = W_y'[i] image, q = W_x^T g[i]  y: <q, v'>    x: <g[i], W_x' v>
//
// A row holds one channel (m = 1), or all channels of each pixel side by side (m = channels) where images are
// channels-last.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "plan.h"

// gcc's target_clones chooses among the clones of a function when the library is opened. It needs glibc's ifunc; clang
// does not clone templates.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define DIFFCROP_HAS_CLONES 1
#define DIFFCROP_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DIFFCROP_HAS_CLONES 0
#define DIFFCROP_CLONES
#endif
#if defined(__GNUC__)
#define DIFFCROP_INLINE inline __attribute__((always_inline))
#else
#define DIFFCROP_INLINE inline
#endif

namespace diffcrop {

// --- storage ---------------------------------------------------------------------------------------------------------

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class A, class T>
DIFFCROP_INLINE A load(T value) {
  return static_cast<A>(value);
}
template <class A>
DIFFCROP_INLINE A load(BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}
template <class A>
DIFFCROP_INLINE A load(Half value) {
  // The exponent is moved to its place and re-biased by a product, which also makes subnormals normal.
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  bits |= magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinities and NaNs keep an exponent of ones
  return std::bit_cast<float>(bits | ((value.bits & 0x8000u) << 16));
}

// Round to nearest, ties to even.
template <class T, class A>
DIFFCROP_INLINE T store(A value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(value));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
  } else if constexpr (std::is_same_v<T, Half>) {
    const uint32_t all = std::bit_cast<uint32_t>(static_cast<float>(value));
    const uint32_t sign = all & 0x80000000u, bits = all ^ sign;
    // Below 2^-14 the result is subnormal: adding 1/2 ulp of the smallest normal lets the adder do the rounding.
    const uint32_t magic = 126u << 23;
    const uint32_t tiny = std::bit_cast<uint32_t>(std::bit_cast<float>(bits) + std::bit_cast<float>(magic)) - magic;
    const uint32_t normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    const uint32_t huge = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t magnitude = bits >= (143u << 23) ? huge : bits < (113u << 23) ? tiny : normal;
    return {static_cast<uint16_t>(magnitude | (sign >> 16))};
  } else {
    return static_cast<T>(value);
  }
}

// A strided array (channels, rows, columns) of one image, one crop or one gradient.
template <class T>
struct View {
  T* data;
  int64_t channel, row, column;
  T* at(int64_t c, int64_t i) const { return data + c * channel + i * row; }
};

// Columns of a row of m channels side by side: dense where they are contiguous.
template <class T>
bool interleaved(const View<T>& view, int64_t channels) {
  return view.channel == 1 && view.column == channels;
}

// --- passes over one row
// -----------------------------------------------------------------------------------------------

// out[x] (+)= sum_n weight[n] rows[n][x * step], up to four rows at a time.
template <bool add, int count, class T, class A>
DIFFCROP_CLONES void combine(A* __restrict out, const T* const* rows, const A* weight, int64_t length, int64_t step) {
  const T* const __restrict r0 = rows[0];
  const T* const __restrict r1 = rows[count > 1 ? 1 : 0];
  const T* const __restrict r2 = rows[count > 2 ? 2 : 0];
  const T* const __restrict r3 = rows[count > 3 ? 3 : 0];
  const A w0 = weight[0], w1 = weight[count > 1 ? 1 : 0], w2 = weight[count > 2 ? 2 : 0],
          w3 = weight[count > 3 ? 3 : 0];
  const auto body = [&](int64_t x, int64_t k) __attribute__((always_inline)) {
    A sum = w0 * load<A>(r0[k]);
    if constexpr (count > 1) sum += w1 * load<A>(r1[k]);
    if constexpr (count > 2) sum += w2 * load<A>(r2[k]);
    if constexpr (count > 3) sum += w3 * load<A>(r3[k]);
    out[x] = add ? out[x] + sum : sum;
  };
  if (step == 1) {
    for (int64_t x = 0; x < length; ++x) body(x, x);
  } else {
    for (int64_t x = 0; x < length; ++x) body(x, x * step);
  }
}

template <bool add, class T, class A>
void combine_some(int count, A* out, const T* const* rows, const A* weight, int64_t length, int64_t step) {
  switch (count) {
    case 1:
      return combine<add, 1>(out, rows, weight, length, step);
    case 2:
      return combine<add, 2>(out, rows, weight, length, step);
    case 3:
      return combine<add, 3>(out, rows, weight, length, step);
    default:
      return combine<add, 4>(out, rows, weight, length, step);
  }
}

// Sums any number of weighted rows into `out`, which need not be initialised.
template <class T, class A>
class RowSum {
 public:
  RowSum(A* out, int64_t length, int64_t step) : out_(out), length_(length), step_(step) {}
  void add(const T* row, A weight) {
    rows_[pending_] = row, weight_[pending_] = weight;
    if (++pending_ == 4) flush();
  }
  void finish() {
    if (pending_ > 0) flush();
    if (!started_) std::fill_n(out_, length_, A(0));
  }

 private:
  void flush() {
    if (started_)
      combine_some<true>(pending_, out_, rows_, weight_, length_, step_);
    else
      combine_some<false>(pending_, out_, rows_, weight_, length_, step_);
    started_ = true, pending_ = 0;
  }
  A* out_;
  int64_t length_, step_;
  const T* rows_[4];
  A weight_[4];
  int pending_ = 0;
  bool started_ = false;
};

// out[j] = sum_t weight[j, t] row[start_j + t] for pixels of m values; the row begins at plan.first.
template <class A>
DIFFCROP_CLONES void gather(A* __restrict out, const A* __restrict row, const AxisPlan<A>& plan, const A* weights,
                            int64_t m) {
  for (int64_t j = 0; j < plan.outputs; ++j) {
    const A* const weight = weights + plan.offset[j];
    const int64_t start = plan.start[j], count = plan.count[j], straight = std::min(count, plan.pixels - start);
    const A* const from = row + (start - plan.first) * m;
    if (m == 1) {
      A sum = straight > 0 ? weight[0] * from[0] : A(0);
      for (int64_t t = 1; t < straight; ++t) sum += weight[t] * from[t];
      for (int64_t t = straight; t < count; ++t) sum += weight[t] * row[t - straight];
      out[j] = sum;
    } else {
      A* const to = out + j * m;
      for (int64_t x = 0; x < m; ++x) to[x] = straight > 0 ? weight[0] * from[x] : A(0);
      for (int64_t t = 1; t < count; ++t) {
        const A* const pixel = t < straight ? from + t * m : row + (t - straight) * m;
        for (int64_t x = 0; x < m; ++x) to[x] += weight[t] * pixel[x];
      }
    }
  }
}

// row[start_j + t] += weight[j, t] values[j]: the transposed pass, in the order of the outputs.
template <class A>
DIFFCROP_CLONES void scatter(A* __restrict row, const A* __restrict values, const AxisPlan<A>& plan, int64_t m) {
  for (int64_t j = 0; j < plan.outputs; ++j) {
    const A* const weight = plan.weight.data() + plan.offset[j];
    const int64_t start = plan.start[j], count = plan.count[j], straight = std::min(count, plan.pixels - start);
    A* const to = row + (start - plan.first) * m;
    const A* const value = values + j * m;
    if (m == 1) {
      for (int64_t t = 0; t < straight; ++t) to[t] += weight[t] * value[0];
      for (int64_t t = straight; t < count; ++t) row[t - straight] += weight[t] * value[0];
    } else {
      for (int64_t t = 0; t < count; ++t) {
        A* const pixel = t < straight ? to + t * m : row + (t - straight) * m;
        for (int64_t x = 0; x < m; ++x) pixel[x] += weight[t] * value[x];
      }
    }
  }
}

// A fixed number of partial sums, whatever the vector width: the same bits on every run.
template <class A>
DIFFCROP_CLONES double dot(const A* __restrict a, const A* __restrict b, int64_t length) {
  constexpr int lanes = 16;
  A sums[lanes] = {};
  int64_t x = 0;
  for (; x + lanes <= length; x += lanes)
    for (int i = 0; i < lanes; ++i) sums[i] += a[x + i] * b[x + i];
  double total = 0;
  for (int i = 0; i < lanes; ++i) total += sums[i];
  for (; x < length; ++x) total += static_cast<double>(a[x]) * static_cast<double>(b[x]);
  return total;
}

// A row of a view as numbers of the sum's type, m channels side by side.
template <class A, class T>
DIFFCROP_CLONES void read_row(A* __restrict out, const T* __restrict row, int64_t columns, int64_t column, int64_t m,
                              int64_t channel) {
  if (m == 1 && column == 1) {
    for (int64_t x = 0; x < columns; ++x) out[x] = load<A>(row[x]);
  } else {
    for (int64_t x = 0; x < columns; ++x)
      for (int64_t c = 0; c < m; ++c) out[x * m + c] = load<A>(row[x * column + c * channel]);
  }
}

template <class A, class T>
DIFFCROP_CLONES void write_row(T* __restrict out, const A* __restrict row, int64_t columns, int64_t column, int64_t m,
                               int64_t channel) {
  if (m == 1 && column == 1) {
    for (int64_t x = 0; x < columns; ++x) out[x] = store<T>(row[x]);
  } else {
    for (int64_t x = 0; x < columns; ++x)
      for (int64_t c = 0; c < m; ++c) out[x * column + c * channel] = store<T>(row[x * m + c]);
  }
}

// --- one box
// -----------------------------------------------------------------------------------------------------------

// A box's plans, or that it is not finite or names no image.
template <class A>
struct BoxPlan {
  bool valid = false;
  int64_t image = 0;
  AxisPlan<A> y, x;
};

// What the image's rows are read with: values, derivatives by position, derivatives by width.
enum class Order { value, by_center, by_width };

template <class A>
const A* weights_of(const AxisPlan<A>& plan, Order order) {
  if (order == Order::value) return plan.weight.data();
  return order == Order::by_center ? plan.by_center.data() : plan.by_width.data();
}

template <class A>
const std::vector<A>& shares_of(const AxisPlan<A>& plan, Order order) {
  if (order == Order::value) return plan.share;
  return order == Order::by_center ? plan.share_by_center : plan.share_by_width;
}

// out = W_y[i] (image - fill) on the columns that the x axis touches; fill is null where it is 0.
template <class T, class A>
void vertical(A* out, const BoxPlan<A>& box, const View<const T>& image, int64_t c, int64_t m, int64_t i, Order order,
              const A* fill) {
  const AxisPlan<A>& y = box.y;
  const int64_t columns = box.x.last - box.x.first;
  const A* const weight = weights_of(y, order) + y.offset[i];
  const T* const base = image.at(c, 0) + box.x.first * image.column;
  RowSum<T, A> sum(out, columns * m, m == 1 ? image.column : 1);
  for (int64_t t = 0; t < y.count[i]; ++t) {
    const int64_t k = y.start[i] + t;
    sum.add(base + (k < y.pixels ? k : k - y.pixels) * image.row, weight[t]);
  }
  sum.finish();
  if (fill == nullptr) return;
  const A share = shares_of(y, order)[i];
  for (int64_t x = 0; x < columns; ++x)
    for (int64_t ch = 0; ch < m; ++ch) out[x * m + ch] -= fill[c + ch] * share;
}

// Output rows [begin, end) of channel c, or of all channels where m > 1: crop = fill + W_y (image - fill) W_x^T. The
// fill is added as fill (1 - share_y share_x), so that a crop inside the image does not round against it.
template <class T, class O, class A>
void crop_rows(const BoxPlan<A>& box, const View<const T>& image, const View<O>& out, int64_t c, int64_t m,
               int64_t begin, int64_t end, const A* fill, std::vector<A>& scratch) {
  const int64_t columns = (box.x.last - box.x.first) * m, width = box.x.outputs;
  scratch.resize(columns + width * m);
  A* const row = scratch.data();
  A* const line = row + columns;
  for (int64_t i = begin; i < end; ++i) {
    vertical<T, A>(row, box, image, c, m, i, Order::value, nullptr);
    gather(line, row, box.x, box.x.weight.data(), m);
    if (fill != nullptr) {
      for (int64_t j = 0; j < width; ++j)
        for (int64_t ch = 0; ch < m; ++ch) line[j * m + ch] += fill[c + ch] * (1 - box.y.share[i] * box.x.share[j]);
    }
    write_row(out.at(c, i), line, width, out.column, m, out.channel);
  }
}

// Sums of a row's or column's derivative with d position / d box: by lo, by hi, and by the width.
struct AxisSum {
  double lo = 0, hi = 0, width = 0;
  void center(double value, double fraction) { lo += value * (1 - fraction), hi += value * fraction; }
};

struct BoxSum {
  AxisSum y, x;
};

// <g, d crop / d box> over rows [begin, end).
template <class T, class G, class A>
BoxSum box_rows(const BoxPlan<A>& box, const View<const T>& image, const View<const G>& grad, int64_t c, int64_t m,
                int64_t begin, int64_t end, const A* fill, std::vector<A>& scratch) {
  const int64_t columns = (box.x.last - box.x.first) * m, width = box.x.outputs * m;
  scratch.resize(2 * columns + 4 * width);
  A* const row = scratch.data();
  A* const q = row + columns;
  A* const g = q + columns;
  A* const line = g + width;
  A* const by_center = line + width;  // per column of the crop, summed over the rows
  A* const by_width = by_center + width;
  std::fill_n(by_center, 2 * width, A(0));
  BoxSum sum;
  for (int64_t i = begin; i < end; ++i) {
    read_row(g, grad.at(c, i), box.x.outputs, grad.column, m, grad.channel);
    std::fill_n(q, columns, A(0));
    scatter(q, g, box.x, m);
    vertical<T, A>(row, box, image, c, m, i, Order::by_center, fill);
    sum.y.center(dot(q, row, columns), box.y.fraction[i]);
    if (!box.y.by_width.empty()) {
      vertical<T, A>(row, box, image, c, m, i, Order::by_width, fill);
      sum.y.width += dot(q, row, columns);
    }
    vertical<T, A>(row, box, image, c, m, i, Order::value, fill);
    gather(line, row, box.x, box.x.by_center.data(), m);
    for (int64_t j = 0; j < width; ++j) by_center[j] += g[j] * line[j];
    if (!box.x.by_width.empty()) {
      gather(line, row, box.x, box.x.by_width.data(), m);
      for (int64_t j = 0; j < width; ++j) by_width[j] += g[j] * line[j];
    }
  }
  for (int64_t j = 0; j < width; ++j) {
    sum.x.center(by_center[j], box.x.fraction[j / m]);
    sum.x.width += by_width[j];
  }
  sum.y.width *= box.y.width_slope;
  sum.x.width *= box.x.width_slope;
  return sum;
}

// d crop / d (x0, y0, x1, y1) of rows [begin, end) of one channel, the four numbers of a pixel side by side.
template <class T, class O, class A>
void jacobian_rows(const BoxPlan<A>& box, const View<const T>& image, const View<O>& out, int64_t c, int64_t begin,
                   int64_t end, const A* fill, std::vector<A>& scratch) {
  const int64_t columns = box.x.last - box.x.first, width = box.x.outputs;
  scratch.resize(columns + 5 * width);
  A* const row = scratch.data();
  A* const line = row + columns;
  A* const four = line + width;
  for (int64_t i = begin; i < end; ++i) {
    std::fill_n(four, 4 * width, A(0));
    // Each term is (weights of y, weights of x): one of the two is differentiated.
    const auto term = [&](bool along_y, Order order) {
      const AxisPlan<A>& axis = along_y ? box.y : box.x;
      if (order == Order::by_width && axis.by_width.empty()) return;
      vertical<T, A>(row, box, image, c, 1, i, along_y ? order : Order::value, fill);
      gather(line, row, box.x, weights_of(box.x, along_y ? Order::value : order), 1);
      for (int64_t j = 0; j < width; ++j) {
        A lo = static_cast<A>(-axis.width_slope), hi = static_cast<A>(axis.width_slope);
        if (order == Order::by_center) {
          hi = static_cast<A>(axis.fraction[along_y ? i : j]);
          lo = 1 - hi;
        }
        four[4 * j + (along_y ? 1 : 0)] += lo * line[j];
        four[4 * j + (along_y ? 3 : 2)] += hi * line[j];
      }
    };
    for (const Order order : {Order::by_center, Order::by_width}) term(true, order), term(false, order);
    write_row(out.at(c, i), four, 4 * width, 1, 1, 1);
  }
}

// One box's part in the gradient of its image.
template <class G, class A>
struct Contribution {
  const BoxPlan<A>* box;
  const Readers<A>* readers;
  View<const G> grad;
};

// Rows [begin, end) of the gradient by one image: each row is summed over all its boxes in their order, then written
// once.
template <class G, class A>
void image_rows(const std::vector<Contribution<G, A>>& boxes, const View<G>& out, int64_t pixels, int64_t c, int64_t m,
                int64_t begin, int64_t end, std::vector<A>& scratch) {
  std::vector<const Contribution<G, A>*> near;
  int64_t widest = 0;
  for (const auto& part : boxes) {
    if (part.box->y.first >= end || part.box->y.last <= begin) continue;
    near.push_back(&part);
    widest = std::max(widest, part.box->x.outputs * m);
  }
  scratch.resize(pixels * m + 2 * widest);
  A* const row = scratch.data();
  A* const p = row + pixels * m;
  A* const line = p + widest;
  for (int64_t k = begin; k < end; ++k) {
    std::fill_n(row, pixels * m, A(0));
    for (const auto* part : near) {
      const AxisPlan<A>&y = part->box->y, &x = part->box->x;
      if (k < y.first || k >= y.last) continue;
      const int64_t from = part->readers->offset[k - y.first], to = part->readers->offset[k - y.first + 1];
      if (from == to) continue;
      const View<const G>& grad = part->grad;
      if (m == 1 || interleaved(grad, m)) {
        RowSum<G, A> sum(p, x.outputs * m, m == 1 ? grad.column : 1);
        for (int64_t e = from; e < to; ++e) sum.add(grad.at(c, part->readers->output[e]), part->readers->weight[e]);
        sum.finish();
      } else {
        std::fill_n(p, x.outputs * m, A(0));
        for (int64_t e = from; e < to; ++e) {
          read_row(line, grad.at(c, part->readers->output[e]), x.outputs, grad.column, m, grad.channel);
          const A* const rows[] = {line};
          combine<true, 1>(p, rows, &part->readers->weight[e], x.outputs * m, 1);
        }
      }
      scatter(row + x.first * m, p, x, m);
    }
    write_row(out.at(c, k), row, pixels, out.column, m, out.channel);
  }
}

// Nearest keeps every dtype: elements are moved, not computed.
template <class T, class A>
void nearest_rows(const BoxPlan<A>& box, const View<const T>& image, const View<T>& out, int64_t c, int64_t begin,
                  int64_t end, T fill) {
  for (int64_t i = begin; i < end; ++i) {
    const T* const row = image.at(c, box.y.start[i]);
    T* const to = out.at(c, i);
    for (int64_t j = 0; j < box.x.outputs; ++j) {
      const bool inside = box.y.count[i] > 0 && box.x.count[j] > 0;
      to[j * out.column] = inside ? row[box.x.start[j] * image.column] : fill;
    }
  }
}

}  // namespace diffcrop
