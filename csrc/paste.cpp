// The operators on pastes: patches laid into boxes of canvases, in their order.
//
// A canvas pixel reads the patch at the inverse box, so the part of a paste that touches rows [top, top + h) and
// columns [left, left + w) of the canvas, the patch's region, is a crop of the patch. Rows of canvases are cut into
// bands by sizes alone. Each is one thread's, which blends all its patches in their order, so the results have the same
// bits for any number of threads.
//
// Backward under "over": the same once more, but every patch keeps what was below it in its region. Then from the last
// patch to the first these become the derivatives by what the patch brought (superimpose.h), a crop's cotangent.

#include "operators.h"

namespace {

using namespace diffcrop;

// A side shorter than this is empty: quotients by it must not overflow.
constexpr double kLeast = 1e-30;
// Numbers that are kept for derivatives at a time, unless one canvas needs more.
constexpr int64_t kMostBelow = 1 << 24;

template <class A>
PasteKernels<A> paste_kernels_of() {
  switch (level()) {
#if DIFFCROP_X86
    case Level::avx512:
      return avx512::paste_kernels<A>();
    case Level::avx2:
      return avx2::paste_kernels<A>();
#endif
    default:
      return plain::paste_kernels<A>();
  }
}

double reach_of(const Options& options, double width) {
  switch (options.mode) {
    case Mode::bicubic:
      return 2 * width;
    case Mode::lanczos3:
      return 3 * width;
    case Mode::area:
      return 0.5 * (width + 1);
    case Mode::gaussian:
      return 6 * options.parameter * width;
    default:
      return width;
  }
}

// One axis of a paste: the canvas pixels [first, last) that a patch of n pixels touches, and their ends in the patch.
struct Place {
  double lo, side, n;
  int64_t first = 0, last = 0;

  Place(double lo, double hi, int64_t n, int64_t pixels, const Options& options)
      : lo(lo), side(hi - lo), n(static_cast<double>(n)) {
    if (!(std::abs(side) >= kLeast)) return;
    const double step = std::abs(side) / this->n, width = options.antialias ? std::max(1 / step, 1.0) : 1.0;
    const double low = std::min(lo, hi), high = std::max(lo, hi), end = static_cast<double>(pixels);
    const double margin = step * (reach_of(options, width) - 0.5) + 1e-9 * (1 + std::abs(lo) + std::abs(hi));
    // Pixel j has its centre at j + 1/2.
    const double begin = std::clamp(std::ceil(low - margin - 0.5), 0.0, end);
    first = static_cast<int64_t>(begin);
    last = static_cast<int64_t>(std::clamp(std::floor(high + margin - 0.5) + 1, begin, end));
  }

  int64_t length() const { return last - first; }
  double in_patch(int64_t edge) const { return (static_cast<double>(edge) - lo) * (n / side); }

  // The plan's derivatives are those by the ends of the region in the patch; what is wanted is by lo and hi. With p_j
  // the centre of pixel j, c_j = (p_j - lo) n / side - 1/2 and the width n / |side|,
  //
  //   d c_j / d lo = -n / side (1 - f_j)   d c_j / d hi = -n / side f_j   with f_j = (p_j - lo) / side,
  //   d width / d hi = -n / side / |side|, by lo the negative.
  //
  // So that f_j are the plan's fractions and 1 / |side| its slope, and -n / side is a factor of all.
  template <class A>
  void by_sides(AxisPlan<A>& plan) const {
    for (int64_t j = 0; j < plan.outputs; ++j) plan.fraction[j] = (static_cast<double>(first + j) + 0.5 - lo) / side;
    if (plan.width_slope != 0) plan.width_slope = 1 / std::abs(side);
  }
  double factor() const { return -n / side; }
};

struct Rules {
  bool matte, over;
};

template <class A>
struct Placed {
  bool finite = false, there = false;
  int64_t canvas = -1, top = 0, left = 0;
  BoxPlan<A> plan, slopes;
  double by_x = 0, by_y = 0;
  int64_t below = 0;  // where its region begins among what is kept

  int64_t height() const { return plan.y.outputs; }
  int64_t width() const { return plan.x.outputs; }
};

// The patches [begin, end) of a call where they lie, and which of them each canvas has.
template <class A>
class Layout {
 public:
  struct Wanted {
    bool patches = false, boxes = false;
  };

  void place(const Tensor& patches, const Boxes& boxes, const Sizes& shape, const Options& options, bool lookups,
             const Wanted& wanted, const std::vector<int64_t>& rows) {
    const Sizes sides = spatial(patches);
    const bool dense = patches.stride(3) == 1;
    const Need forward{.across = true, .back = wanted.patches, .ability = {dense, pairs<A>(1)}, .lookups = lookups};
    const Need slopes{
        .derivatives = true, .across = true, .back = true, .ability = {dense, pairs<A>(1)}, .lookups = lookups};
    if (placed_.size() < rows.size()) placed_.resize(rows.size());
    used_ = static_cast<int64_t>(rows.size());
    parallel(used_, kGrain / (64 * 2 * (sides[0] + sides[1])), [&](int64_t k) {
      const int64_t r = rows[k];
      Placed<A>& mine = placed_[k];
      mine.canvas = boxes.image(r);
      mine.finite = boxes.is_sound(r) && mine.canvas >= 0 && mine.canvas < shape[0];
      mine.there = false;
      if (!mine.finite) return;
      const Place x(boxes.at(r, 0), boxes.at(r, 2), sides[1], shape[3], options);
      const Place y(boxes.at(r, 1), boxes.at(r, 3), sides[0], shape[2], options);
      mine.there = x.length() > 0 && y.length() > 0;
      if (!mine.there) return;
      const std::array<double, 4> box = {x.in_patch(x.first), y.in_patch(y.first), x.in_patch(x.last),
                                         y.in_patch(y.last)};
      mine.top = y.first, mine.left = x.first;
      const Sizes size = {y.length(), x.length()};
      plan_box<A>(mine.plan, box, size, sides, options, forward);
      if (!wanted.boxes) return;
      plan_box<A>(mine.slopes, box, size, sides, options, slopes);
      y.by_sides(mine.slopes.y), x.by_sides(mine.slopes.x);
      mine.by_y = y.factor(), mine.by_x = x.factor();
    });
  }

  std::span<Placed<A>> all() { return {placed_.data(), static_cast<size_t>(used_)}; }

 private:
  std::vector<Placed<A>> placed_;
  int64_t used_ = 0;
};

// The rows of boxes that name each canvas, in their order; what names none is in no list.
std::vector<std::vector<int64_t>> lists_of(const Boxes& boxes, int64_t count) {
  std::vector<std::vector<int64_t>> result(count);
  for (int64_t r = 0; r < boxes.size(); ++r) {
    const int64_t canvas = boxes.image(r);
    if (canvas >= 0 && canvas < count) result[canvas].push_back(r);
  }
  return result;
}

// Rows of a canvas that are one thread's.
struct Bands {
  int64_t rows, each;
  Bands(int64_t channels, int64_t height, int64_t width)
      : rows(std::clamp<int64_t>(kElements / std::max<int64_t>(channels * width, 1) / kBatch, 1, 8) * kBatch),
        each(ceil_div(height, rows)) {}
};

template <class A>
View<A> rows_of(const Tensor& tensor, A* data, int64_t canvas, int64_t top) {
  View<A> view = view_of(tensor, data, canvas);
  view.data += top * view.row;
  return view;
}

template <class A>
View<A> no_view() {
  return {nullptr, 0, 0, 0};
}

// Copies `height` rows of each channel, or makes them zeros where there is no source.
template <class A>
void copy_rows(const View<A>& to, const View<const A>& from, int64_t channels, int64_t height, int64_t width) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < height; ++i) {
      A* const row = to.at(c, i);
      const A* const source = from.data == nullptr ? nullptr : from.at(c, i);
      if (to.column == 1 && source == nullptr)
        std::fill_n(row, width, A(0));
      else if (to.column == 1 && from.column == 1)
        std::memcpy(row, source, width * sizeof(A));
      else
        for (int64_t j = 0; j < width; ++j) row[j * to.column] = source == nullptr ? A(0) : source[j * from.column];
    }
}

// The rows of a band that a patch touches, as rows of its region; and views of what is there.
template <class A>
struct Meeting {
  int64_t begin, end;
  Meeting(const Placed<A>& patch, int64_t top, int64_t bottom)
      : begin(std::max(top, patch.top) - patch.top), end(std::min(bottom, patch.top + patch.height()) - patch.top) {}
  bool empty() const { return begin >= end; }

  // A view of the band's rows from `top` on as rows of the region.
  static View<A> region(View<A> band, const Placed<A>& patch, int64_t top) {
    if (band.data != nullptr) band.data += (patch.top - top) * band.row + patch.left * band.column;
    return band;
  }
};

template <class A>
View<const A> readable(const View<A>& view) {
  return {view.data, view.channel, view.row, view.column};
}

template <class A>
void paste_typed(const Tensor& patches, const Boxes& boxes, const OptionalTensor& canvas, const Tensor& out,
                 const Tensor* mask, const Rules& rules, const Options& options) {
  static thread_local Layout<A> layout;
  const Kernels<A> kernels = kernels_of<A>();
  const PasteKernels<A> paste = paste_kernels_of<A>();
  const int64_t channels = out.size(1), height = out.size(2), width = out.size(3);
  const Sizes shape = {out.size(0), channels, height, width};
  const auto* const source = data_of<const A>(patches);
  auto* const target = data_of<A>(out);
  const auto canvases = lists_of(boxes, out.size(0));
  std::vector<int64_t> rows;
  for (const auto& list : canvases) rows.insert(rows.end(), list.begin(), list.end());
  std::vector<int64_t> first = {0};
  for (const auto& list : canvases) first.push_back(first.back() + static_cast<int64_t>(list.size()));
  layout.place(patches, boxes, shape, options, kernels.lookups, {}, rows);
  const auto placed = layout.all();
  const Bands bands(channels, height, width);
  const bool direct = out.stride(3) == 1;
  const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(bands.rows * width * channels, 1), 1);
  torch::stable::parallel_for(0, out.size(0) * bands.each, grain, [&](int64_t from, int64_t to) {
    Scratch<A>& scratch = Scratch<A>::of_thread();
    for (int64_t piece = from; piece < to; ++piece) {
      scratch.clear();
      const int64_t b = piece / bands.each, top = piece % bands.each * bands.rows;
      const int64_t bottom = std::min(top + bands.rows, height), count = bottom - top;
      const View<A> result = rows_of(out, target, b, top);
      View<A> band = result;
      if (!direct) band = {scratch.take(channels * count * width), count * width, width, 1};
      View<const A> below = readable(no_view<A>());
      if (canvas) below = rows_of(*canvas, data_of<const A>(*canvas), b, top);
      copy_rows<A>(band, below, channels, count, width);
      View<A> masks = no_view<A>();
      if (mask != nullptr) {
        masks = rows_of(*mask, data_of<A>(*mask), b, top);
        copy_rows<A>(masks, readable(no_view<A>()), 1, count, width);
      }
      for (int64_t k = first[b]; k < first[b + 1]; ++k) {
        const Placed<A>& patch = placed[k];
        if (!patch.there) continue;
        const Meeting<A> meeting(patch, top, bottom);
        if (meeting.empty()) continue;
        const auto mark = scratch.mark();
        const Blend<A> blend{Meeting<A>::region(band, patch, top),
                             Meeting<A>::region(masks, patch, top),
                             no_view<A>(),
                             channels,
                             rules.matte,
                             rules.over};
        paste.blend(patch.plan, view_of(patches, source, rows[k]), blend, meeting.begin, meeting.end, scratch);
        scratch.release(mark);
      }
      if (!direct) copy_rows<A>(result, readable(band), channels, count, width);
    }
    scratch.clear();
  });
}

// A piece of the work on one patch once its cotangents are there.
struct Task {
  int64_t patch;
  int64_t begin, end;  // rows of the patch, or of its region
  bool by_box;
};

// Adds to the derivatives by one patch or its box.
template <class A>
class Patchwise {
 public:
  Patchwise(const Kernels<A>& kernels, const PasteKernels<A>& paste, const Rules& rules, int64_t channels)
      : kernels_(kernels), paste_(paste), rules_(rules), channels_(channels) {}

  // Of colour and matte; what has no data is zero.
  struct Cotangents {
    View<const A> color, matte;
  };

  void patch(const Placed<A>& placed, const Cotangents& g, const View<A>& out, int64_t width, int64_t begin,
             int64_t end, Scratch<A>& scratch) const {
    std::vector<Contribution<A, A>> parts;
    if (g.color.data != nullptr) parts.push_back({&placed.plan, g.color});
    kernels_.grad_images(parts, out, width, 1, 0, channels_, begin, end, scratch);
    if (!rules_.matte) return;
    parts.clear();
    if (g.matte.data != nullptr) parts.push_back({&placed.plan, g.matte});
    View<A> last = out;
    last.data += channels_ * out.channel;
    kernels_.grad_images(parts, last, width, 1, 0, 1, begin, end, scratch);
  }

  BoxSum box(const Placed<A>& placed, const Cotangents& g, View<const A> patch, int64_t begin, int64_t end,
             Scratch<A>& scratch) const {
    BoxSum total;
    const auto add = [&](const BoxSum& part) {
      total.x.lo += part.x.lo, total.x.hi += part.x.hi, total.y.lo += part.y.lo, total.y.hi += part.y.hi;
    };
    for (int64_t c = 0; g.color.data != nullptr && c < channels_; ++c)
      add(kernels_.grad_boxes(placed.slopes, channel(patch, c), channel(g.color, c), begin, end, nullptr, scratch));
    if (g.matte.data == nullptr) return total;
    if (rules_.matte)
      add(kernels_.grad_boxes(placed.slopes, channel(patch, channels_), g.matte, begin, end, nullptr, scratch));
    else
      add(paste_.shares(placed.slopes, g.matte, begin, end, scratch));
    return total;
  }

 private:
  static View<const A> channel(View<const A> view, int64_t c) {
    view.data += c * view.channel;
    return view;
  }
  const Kernels<A>& kernels_;
  const PasteKernels<A>& paste_;
  const Rules& rules_;
  int64_t channels_;
};

template <class A>
void backward_typed(const OptionalTensor& grad, const OptionalTensor& grad_mask, const Tensor& patches,
                    const Boxes& boxes, const OptionalTensor& canvas, const Sizes& shape, const Rules& rules,
                    const Options& options, const Tensor* by_patches, const Tensor* by_boxes, const Tensor* by_canvas) {
  static thread_local Layout<A> layout;
  Scratch<A> kept;
  A* below = nullptr;
  const Kernels<A> kernels = kernels_of<A>();
  const PasteKernels<A> paste = paste_kernels_of<A>();
  const int64_t channels = shape[1], height = shape[2], width = shape[3];
  const auto* const source = data_of<const A>(patches);
  const auto canvases = lists_of(boxes, shape[0]);
  const Bands bands(channels, height, width);
  const int64_t layers = channels + (grad_mask ? 2 : 1);
  const Sizes sides = spatial(patches);
  const auto put_box = [&](int64_t r, const std::array<double, 4>& values) {
    for (int64_t i = 0; i < 4; ++i) {
      if (by_boxes->scalar_type() == ScalarType::Double)
        data_of<double>(*by_boxes)[r * 4 + i] = values[i];
      else
        data_of<float>(*by_boxes)[r * 4 + i] = static_cast<float>(values[i]);
    }
  };
  // What has no place: no part in anything, and no derivative where it is not finite.
  for (int64_t r = 0; r < boxes.size(); ++r) {
    const int64_t c = boxes.image(r);
    if (c >= 0 && c < shape[0]) continue;
    if (by_boxes != nullptr) {
      std::array<double, 4> nan;
      nan.fill(std::numeric_limits<double>::quiet_NaN());
      put_box(r, nan);
    }
    if (by_patches != nullptr)
      copy_rows<A>(view_of(*by_patches, data_of<A>(*by_patches), r), readable(no_view<A>()), by_patches->size(1),
                   sides[0], sides[1]);
  }

  for (int64_t next = 0; next < shape[0];) {
    // As many canvases as fit, by an upper bound that needs no plans; at least one.
    std::vector<int64_t> rows, first = {0};
    const int64_t start = next;
    int64_t bound = 0;
    for (; next < shape[0]; ++next) {
      const int64_t more = static_cast<int64_t>(canvases[next].size()) * layers * height * width;
      if (next > start && (bound += more) > kMostBelow) break;
      if (next == start) bound = more;
      rows.insert(rows.end(), canvases[next].begin(), canvases[next].end());
      first.push_back(static_cast<int64_t>(rows.size()));
    }
    layout.place(patches, boxes, shape, options, kernels.lookups, {by_patches != nullptr, by_boxes != nullptr}, rows);
    const auto placed = layout.all();
    if (rules.over) {
      int64_t total = 0;
      for (auto& patch : placed) {
        patch.below = total;
        if (patch.there) total += layers * patch.height() * patch.width();
      }
      kept.clear();
      below = kept.take(total);
    }
    const auto kept_of = [&](const Placed<A>& patch) {
      return View<A>{below + patch.below, patch.height() * patch.width(), patch.width(), 1};
    };

    if (rules.over || by_canvas != nullptr) {
      const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(bands.rows * width * channels, 1), 1);
      torch::stable::parallel_for(start * bands.each, next * bands.each, grain, [&](int64_t from, int64_t to) {
        Scratch<A>& scratch = Scratch<A>::of_thread();
        for (int64_t piece = from; piece < to; ++piece) {
          scratch.clear();
          const int64_t b = piece / bands.each, top = piece % bands.each * bands.rows;
          const int64_t bottom = std::min(top + bands.rows, height), count = bottom - top;
          const auto meets = [&](int64_t k) { return placed[k].there && !Meeting<A>(placed[k], top, bottom).empty(); };
          std::vector<int64_t> mine;
          for (int64_t k = first[b - start]; rules.over && k < first[b - start + 1]; ++k)
            if (meets(k)) mine.push_back(k);
          if (mine.empty() && by_canvas == nullptr) continue;
          const auto room = [&](int64_t n) {
            return View<A>{scratch.take(n * count * width), count * width, width, 1};
          };
          // The derivative by the canvas, at first by the result.
          View<A> g = by_canvas != nullptr ? rows_of(*by_canvas, data_of<A>(*by_canvas), b, top) : room(channels);
          View<const A> given = readable(no_view<A>());
          if (grad) given = rows_of(*grad, data_of<const A>(*grad), b, top);
          copy_rows<A>(g, given, channels, count, width);
          if (mine.empty()) continue;
          View<A> state = room(channels), state_mask = no_view<A>(), g_mask = no_view<A>();
          View<const A> start_from = readable(no_view<A>());
          if (canvas) start_from = rows_of(*canvas, data_of<const A>(*canvas), b, top);
          copy_rows<A>(state, start_from, channels, count, width);
          if (grad_mask) {
            state_mask = room(1), g_mask = room(1);
            copy_rows<A>(state_mask, readable(no_view<A>()), 1, count, width);
            copy_rows<A>(g_mask, rows_of(*grad_mask, data_of<const A>(*grad_mask), b, top), 1, count, width);
          }
          const auto each = [&](int64_t k, const View<A>& colors, const View<A>& masks, const auto& f) {
            const Placed<A>& patch = placed[k];
            const Meeting<A> meeting(patch, top, bottom);
            const auto mark = scratch.mark();
            f(patch,
              Blend<A>{Meeting<A>::region(colors, patch, top), Meeting<A>::region(masks, patch, top), kept_of(patch),
                       channels, rules.matte, rules.over},
              meeting);
            scratch.release(mark);
          };
          for (const int64_t k : mine)
            each(k, state, state_mask, [&](const Placed<A>& patch, const Blend<A>& blend, const Meeting<A>& meeting) {
              paste.blend(patch.plan, view_of(patches, source, rows[k]), blend, meeting.begin, meeting.end, scratch);
            });
          for (auto k = mine.rbegin(); k != mine.rend(); ++k)
            each(*k, g, g_mask, [&](const Placed<A>& patch, const Blend<A>& blend, const Meeting<A>& meeting) {
              paste.turn(patch.plan, blend, meeting.begin, meeting.end, scratch);
            });
        }
        scratch.clear();
      });
    }

    const auto cotangents = [&](const Placed<A>& patch) {
      typename Patchwise<A>::Cotangents g{readable(no_view<A>()), readable(no_view<A>())};
      if (!patch.there) return g;
      if (rules.over) {
        g.color = g.matte = readable(kept_of(patch));
        g.matte.data += channels * g.matte.channel;
        return g;
      }
      const auto region = [&](const Tensor& tensor) {
        View<const A> view = view_of(tensor, data_of<const A>(tensor), patch.canvas);
        view.data += patch.top * view.row + patch.left * view.column;
        return view;
      };
      if (grad) g.color = region(*grad);
      if (grad_mask) g.matte = region(*grad_mask);
      return g;
    };
    std::vector<Task> tasks;
    for (int64_t k = 0; k < static_cast<int64_t>(placed.size()); ++k) {
      const Placed<A>& patch = placed[k];
      const auto cut = [&](int64_t length, int64_t row, bool by_box) {
        const int64_t step = std::clamp<int64_t>(kPiece / std::max<int64_t>(row, 1) / kBatch, 1, 64) * kBatch;
        for (int64_t i = 0; i < length; i += step) tasks.push_back({k, i, std::min(i + step, length), by_box});
      };
      if (by_patches != nullptr) cut(sides[0], 4 * channels * sides[1], false);
      if (by_boxes != nullptr && patch.there) cut(patch.height(), 12 * channels * patch.width(), true);
    }
    std::vector<BoxSum> parts(tasks.size());
    const Patchwise<A> work(kernels, paste, rules, channels);
    torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t from, int64_t to) {
      Scratch<A>& scratch = Scratch<A>::of_thread();
      for (int64_t t = from; t < to; ++t) {
        const Task& task = tasks[t];
        const Placed<A>& patch = placed[task.patch];
        const int64_t r = rows[task.patch];
        if (task.by_box)
          parts[t] = work.box(patch, cotangents(patch), view_of(patches, source, r), task.begin, task.end, scratch);
        else
          work.patch(patch, cotangents(patch), view_of(*by_patches, data_of<A>(*by_patches), r), sides[1], task.begin,
                     task.end, scratch);
      }
      scratch.clear();
    });
    if (by_boxes == nullptr) continue;
    for (int64_t k = 0; k < static_cast<int64_t>(placed.size()); ++k)
      if (const double none = placed[k].finite ? 0 : std::numeric_limits<double>::quiet_NaN(); !placed[k].there)
        put_box(rows[k], {none, none, none, none});
    for (size_t t = 0; t < tasks.size();) {
      std::array<double, 4> total = {0, 0, 0, 0};
      const int64_t k = tasks[t].patch;
      bool any = false;
      for (; t < tasks.size() && tasks[t].patch == k; ++t) {
        if (!tasks[t].by_box) continue;
        const auto& [y, x] = parts[t];
        total[0] += x.lo, total[1] += y.lo, total[2] += x.hi, total[3] += y.hi, any = true;
      }
      const double x = placed[k].by_x, y = placed[k].by_y;
      if (any) put_box(rows[k], {x * total[0], y * total[1], x * total[2], y * total[3]});
    }
  }
}

// Whole numbers are moved, not computed.
template <class T>
void move_typed(const Tensor& patches, const Boxes& boxes, const OptionalTensor& canvas, const Tensor& out,
                const Tensor* mask, const Options& options) {
  const int64_t channels = out.size(1), height = out.size(2), width = out.size(3);
  const auto* const source = data_of<const T>(patches);
  auto* const target = data_of<T>(out);
  Layout<float> layout;
  std::vector<int64_t> rows(boxes.size());
  for (int64_t r = 0; r < boxes.size(); ++r) rows[r] = r;
  layout.place(patches, boxes, {out.size(0), channels, height, width}, options, false, {}, rows);
  const auto placed = layout.all();
  parallel(out.size(0), 1, [&](int64_t b) {
    View<const T> below = readable(no_view<T>());
    if (canvas) below = view_of(*canvas, data_of<const T>(*canvas), b);
    const View<T> to = view_of(out, target, b);
    copy_rows<T>(to, below, channels, height, width);
    View<float> masks = no_view<float>();
    if (mask != nullptr) {
      masks = view_of(*mask, data_of<float>(*mask), b);
      copy_rows<float>(masks, readable(no_view<float>()), 1, height, width);
    }
    for (int64_t r = 0; r < boxes.size(); ++r) {
      const Placed<float>& patch = placed[r];
      if (!patch.there || patch.canvas != b) continue;
      const View<const T> from = view_of(patches, source, r);
      const auto &y = patch.plan.y, &x = patch.plan.x;
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < y.outputs; ++i)
          for (int64_t j = 0; y.count[i] > 0 && j < x.outputs; ++j) {
            if (x.count[j] == 0) continue;
            to.at(c, patch.top + i)[(patch.left + j) * to.column] = from.at(c, y.start[i])[x.start[j] * from.column];
            if (c == 0 && masks.data != nullptr) masks.at(0, patch.top + i)[patch.left + j] = 1;
          }
    }
  });
}

Options paste_options(const std::string& mode, bool antialias, double sigma) {
  return options_of(mode, antialias, "zeros", sigma, false);
}

void check(const Tensor& patches, const OptionalTensor& canvas, const Sizes& shape, const Rules& rules) {
  require(patches.dim() == 4 && patches.size(2) > 0 && patches.size(3) > 0,
          "patches must have shape (R, C, h, w), not empty");
  require(shape.size() == 4 && shape[2] > 0 && shape[3] > 0, "shape must be (B, C, H, W), at least 1 pixel");
  require(patches.size(1) == shape[1] + (rules.matte ? 1 : 0), "patches must have the canvas's channels and the matte");
  require(std::max({patches.size(2), patches.size(3), shape[2], shape[3]}) < (int64_t{1} << 31),
          "axes must be below 2^31");
  if (!canvas) return;
  require(canvas->dim() == 4 && canvas->scalar_type() == patches.scalar_type(), "canvas must be like the patches");
  for (int64_t d = 0; d < 4; ++d) require(canvas->size(d) == shape[d], "canvas must have the shape that is given");
}

// Calls f.template operator()<A>() with the type of sums.
template <class F>
void dispatch_sums(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Double) return f.template operator()<double>();
  require(dtype == ScalarType::Float, "patches must be float32 or float64, or whole numbers that are moved");
  f.template operator()<float>();
}

bool is_whole(ScalarType dtype) {
  return dtype != ScalarType::Double && dtype != ScalarType::Float && dtype != ScalarType::Half &&
         dtype != ScalarType::BFloat16;
}

std::tuple<Tensor, Tensor> paste(const Tensor& patches, const Tensor& boxes_tensor, const OptionalTensor& index,
                                 const OptionalTensor& canvas, const Sizes& shape, bool masked, bool channels_last,
                                 bool matte, bool over, const std::string& mode, bool antialias, double sigma) {
  const Rules rules{matte, over};
  check(patches, canvas, shape, rules);
  const Options options = paste_options(mode, antialias, sigma);
  const Boxes boxes(boxes_tensor, index, shape[0]);
  require(boxes.size() == patches.size(0), "there must be a box for every patch");
  const ScalarType dtype = patches.scalar_type();
  const Tensor out = allocate(shape, dtype, patches, channels_last);
  const Sizes mask_shape = masked ? Sizes{shape[0], 1, shape[2], shape[3]} : Sizes{0};
  const ScalarType floating = is_whole(dtype) ? ScalarType::Float : dtype;
  const Tensor mask = torch::stable::empty(mask_shape, floating, std::nullopt, patches.device());
  const Tensor* const masks = masked ? &mask : nullptr;
  if (is_whole(dtype)) {
    require(options.mode == Mode::nearest && over && !matte, "whole numbers are moved, by nearest and over alone");
    switch (patches.element_size()) {
      case 1:
        move_typed<uint8_t>(patches, boxes, canvas, out, masks, options);
        break;
      case 2:
        move_typed<uint16_t>(patches, boxes, canvas, out, masks, options);
        break;
      case 4:
        move_typed<uint32_t>(patches, boxes, canvas, out, masks, options);
        break;
      default:
        move_typed<uint64_t>(patches, boxes, canvas, out, masks, options);
    }
  } else {
    dispatch_sums(dtype, [&]<class A>() { paste_typed<A>(patches, boxes, canvas, out, masks, rules, options); });
  }
  return {out, mask};
}

std::tuple<Tensor, Tensor, Tensor> paste_backward(const OptionalTensor& grad, const OptionalTensor& grad_mask,
                                                  const Tensor& patches, const Tensor& boxes_tensor,
                                                  const OptionalTensor& index, const OptionalTensor& canvas,
                                                  const Sizes& shape, const std::vector<bool>& wanted, bool matte,
                                                  bool over, const std::string& mode, bool antialias, double sigma) {
  const Rules rules{matte, over};
  check(patches, canvas, shape, rules);
  const Options options = paste_options(mode, antialias, sigma);
  const Boxes boxes(boxes_tensor, index, shape[0]);
  require(boxes.size() == patches.size(0), "there must be a box for every patch");
  require(wanted.size() == 3, "wanted must say of patches, boxes and canvas");
  const auto is_like = [&](const OptionalTensor& tensor, int64_t channels) {
    if (!tensor) return true;
    return tensor->dim() == 4 && tensor->scalar_type() == patches.scalar_type() && tensor->size(0) == shape[0] &&
           tensor->size(1) == channels && tensor->size(2) == shape[2] && tensor->size(3) == shape[3];
  };
  require(is_like(grad, shape[1]) && is_like(grad_mask, 1), "grads must have the shapes and dtype of the results");
  const auto made = [&](bool want, const Sizes& size, const Tensor& like) {
    return want ? allocate(size, like.scalar_type(), like, false)
                : torch::stable::empty(Sizes{0}, like.scalar_type(), std::nullopt, like.device());
  };
  const Tensor by_patches =
      made(wanted[0], {patches.size(0), patches.size(1), patches.size(2), patches.size(3)}, patches);
  const Tensor by_boxes = made(wanted[1], {boxes.size(), 4}, boxes_tensor);
  const Tensor by_canvas = made(wanted[2], shape, patches);
  dispatch_sums(patches.scalar_type(), [&]<class A>() {
    backward_typed<A>(grad, grad_mask, patches, boxes, canvas, shape, rules, options, wanted[0] ? &by_patches : nullptr,
                      wanted[1] ? &by_boxes : nullptr, wanted[2] ? &by_canvas : nullptr);
  });
  return {by_patches, by_boxes, by_canvas};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffcrop, CPU, library) {
  library.impl("paste", TORCH_BOX(&paste));
  library.impl("paste_backward", TORCH_BOX(&paste_backward));
}
