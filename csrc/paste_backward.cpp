// Derivatives of `paste`.
//
// Under "over" the canvases are pasted once more, but every patch keeps what was below it in its region. Then from the
// last patch to the first these become the derivatives by what the patch brought (superimpose.h), a crop's cotangent.
// Under "add" that is the result's own cotangent.

#include "paste_calls.h"

namespace diffcrop {
namespace {

// Numbers that are kept for derivatives at a time, unless one canvas needs more.
constexpr int64_t kMostBelow = 1 << 24;

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

// The derivatives of one call: of as many canvases at a time as may be kept.
template <class A>
class Gradients {
 public:
  Gradients(const OptionalTensor& grad, const OptionalTensor& grad_mask, const Tensor& patches, const Boxes& boxes,
            const OptionalTensor& canvas, const Sizes& shape, const Rules& rules, const Options& options,
            const PasteGradients& by)
      : grad_(grad),
        grad_mask_(grad_mask),
        patches_(patches),
        boxes_(boxes),
        canvas_(canvas),
        shape_(shape),
        rules_(rules),
        options_(options),
        by_(by),
        channels_(shape[1]),
        height_(shape[2]),
        width_(shape[3]),
        layers_(channels_ + (grad_mask ? 2 : 1)),
        sides_(spatial(patches)),
        bands_(channels_, height_, width_),
        source_(data_of<const A>(patches)) {}

  void run(Layout<A>& layout) {
    const auto canvases = lists_of(boxes_, shape_[0]);
    leave_out();
    for (end_ = 0; end_ < shape_[0];) {
      choose(canvases);
      const typename Layout<A>::Wanted wanted{by_.patches != nullptr, by_.boxes != nullptr};
      layout.place(patches_, boxes_, shape_, options_, kernels_.lookups, wanted, rows_);
      placed_ = layout.all();
      if (rules_.over) make_room();
      if (rules_.over || by_.canvas != nullptr) by_canvases();
      by_patches_and_boxes();
    }
  }

 private:
  // What has no place: no part in anything, and no derivative by its box.
  void leave_out() const {
    for (int64_t r = 0; r < boxes_.size(); ++r) {
      const int64_t c = boxes_.image(r);
      if (c >= 0 && c < shape_[0]) continue;
      if (by_.boxes != nullptr) put_box(*by_.boxes, r, false, {});
      if (by_.patches != nullptr)
        copy_rows<A>(view_of(*by_.patches, data_of<A>(*by_.patches), r), readable(no_view<A>()), by_.patches->size(1),
                     sides_[0], sides_[1]);
    }
  }

  // The next canvases [begin_, end_), as many as fit by an upper bound that needs no plans, at least one; and their
  // patches: those of canvas begin_ + i are rows_[first_[i]] to rows_[first_[i + 1] - 1].
  void choose(const std::vector<std::vector<int64_t>>& canvases) {
    rows_.clear(), first_ = {0};
    begin_ = end_;
    int64_t bound = 0;
    for (; end_ < shape_[0]; ++end_) {
      bound += static_cast<int64_t>(canvases[end_].size()) * layers_ * height_ * width_;
      if (end_ > begin_ && bound > kMostBelow) break;
      rows_.insert(rows_.end(), canvases[end_].begin(), canvases[end_].end());
      first_.push_back(static_cast<int64_t>(rows_.size()));
    }
  }

  void make_room() {
    int64_t total = 0;
    for (auto& patch : placed_) {
      patch.below = total;
      if (patch.there) total += layers_ * patch.height() * patch.width();
    }
    memory_.clear();
    below_ = memory_.take(total);
  }

  // What a patch keeps of its region, and later its cotangents.
  View<A> kept_of(const Placed<A>& patch) const {
    return {below_ + patch.below, patch.height() * patch.width(), patch.width(), 1};
  }

  // The derivatives by canvases, and under "over" those by what each patch brings, where it has kept what was below.
  void by_canvases() const {
    const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(bands_.rows * width_ * channels_, 1), 1);
    torch::stable::parallel_for(begin_ * bands_.each, end_ * bands_.each, grain, [&](int64_t from, int64_t to) {
      Scratch<A>& scratch = Scratch<A>::of_thread();
      for (int64_t piece = from; piece < to; ++piece) {
        scratch.clear();
        band(piece / bands_.each, piece % bands_.each * bands_.rows, scratch);
      }
      scratch.clear();
    });
  }

  // Of the rows of canvas b that begin at `top`.
  void band(int64_t b, int64_t top, Scratch<A>& scratch) const {
    const int64_t bottom = std::min(top + bands_.rows, height_), count = bottom - top;
    std::vector<int64_t> mine;
    for (int64_t k = first_[b - begin_]; rules_.over && k < first_[b - begin_ + 1]; ++k)
      if (placed_[k].there && !Meeting<A>(placed_[k], top, bottom).empty()) mine.push_back(k);
    if (mine.empty() && by_.canvas == nullptr) return;
    const auto room = [&](int64_t n) { return View<A>{scratch.take(n * count * width_), count * width_, width_, 1}; };
    // The derivative by the canvas, at first by the result.
    View<A> g = by_.canvas != nullptr ? rows_of(*by_.canvas, data_of<A>(*by_.canvas), b, top) : room(channels_);
    View<const A> given = readable(no_view<A>());
    if (grad_) given = rows_of(*grad_, data_of<const A>(*grad_), b, top);
    copy_rows<A>(g, given, channels_, count, width_);
    if (mine.empty()) return;
    View<A> state = room(channels_), state_mask = no_view<A>(), g_mask = no_view<A>();
    View<const A> start_from = readable(no_view<A>());
    if (canvas_) start_from = rows_of(*canvas_, data_of<const A>(*canvas_), b, top);
    copy_rows<A>(state, start_from, channels_, count, width_);
    if (grad_mask_) {
      state_mask = room(1), g_mask = room(1);
      copy_rows<A>(state_mask, readable(no_view<A>()), 1, count, width_);
      copy_rows<A>(g_mask, rows_of(*grad_mask_, data_of<const A>(*grad_mask_), b, top), 1, count, width_);
    }
    const auto each = [&](int64_t k, const View<A>& colors, const View<A>& masks, const auto& f) {
      const Placed<A>& patch = placed_[k];
      const Meeting<A> meeting(patch, top, bottom);
      const auto mark = scratch.mark();
      f(patch,
        Blend<A>{Meeting<A>::region(colors, patch, top), Meeting<A>::region(masks, patch, top), kept_of(patch),
                 channels_, rules_.matte, rules_.over},
        meeting);
      scratch.release(mark);
    };
    for (const int64_t k : mine)
      each(k, state, state_mask, [&](const Placed<A>& patch, const Blend<A>& blend, const Meeting<A>& meeting) {
        paste_.blend(patch.plan, view_of(patches_, source_, rows_[k]), blend, meeting.begin, meeting.end, scratch);
      });
    for (auto k = mine.rbegin(); k != mine.rend(); ++k)
      each(*k, g, g_mask, [&](const Placed<A>& patch, const Blend<A>& blend, const Meeting<A>& meeting) {
        paste_.turn(patch.plan, blend, meeting.begin, meeting.end, scratch);
      });
  }

  typename Patchwise<A>::Cotangents cotangents(const Placed<A>& patch) const {
    typename Patchwise<A>::Cotangents g{readable(no_view<A>()), readable(no_view<A>())};
    if (!patch.there) return g;
    if (rules_.over) {
      g.color = g.matte = readable(kept_of(patch));
      g.matte.data += channels_ * g.matte.channel;
      return g;
    }
    const auto region = [&](const Tensor& tensor) {
      View<const A> view = view_of(tensor, data_of<const A>(tensor), patch.canvas);
      view.data += patch.top * view.row + patch.left * view.column;
      return view;
    };
    if (grad_) g.color = region(*grad_);
    if (grad_mask_) g.matte = region(*grad_mask_);
    return g;
  }

  void by_patches_and_boxes() const {
    std::vector<Task> tasks;
    for (int64_t k = 0; k < static_cast<int64_t>(placed_.size()); ++k) {
      const Placed<A>& patch = placed_[k];
      const auto cut = [&](int64_t length, int64_t row, bool by_box) {
        const int64_t step = std::clamp<int64_t>(kPiece / std::max<int64_t>(row, 1) / kBatch, 1, 64) * kBatch;
        for (int64_t i = 0; i < length; i += step) tasks.push_back({k, i, std::min(i + step, length), by_box});
      };
      if (by_.patches != nullptr) cut(sides_[0], 4 * channels_ * sides_[1], false);
      if (by_.boxes != nullptr && patch.there) cut(patch.height(), 12 * channels_ * patch.width(), true);
    }
    std::vector<BoxSum> parts(tasks.size());
    const Patchwise<A> work(kernels_, paste_, rules_, channels_);
    torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t from, int64_t to) {
      Scratch<A>& scratch = Scratch<A>::of_thread();
      for (int64_t t = from; t < to; ++t) {
        const Task& task = tasks[t];
        const Placed<A>& patch = placed_[task.patch];
        const int64_t r = rows_[task.patch];
        if (task.by_box)
          parts[t] = work.box(patch, cotangents(patch), view_of(patches_, source_, r), task.begin, task.end, scratch);
        else
          work.patch(patch, cotangents(patch), view_of(*by_.patches, data_of<A>(*by_.patches), r), sides_[1],
                     task.begin, task.end, scratch);
      }
      scratch.clear();
    });
    if (by_.boxes != nullptr) add_up(tasks, parts);
  }

  // The pieces of each box in their order; zero for one that touches nothing.
  void add_up(const std::vector<Task>& tasks, const std::vector<BoxSum>& parts) const {
    std::vector<BoxSum> sums(placed_.size());
    for (size_t t = 0; t < tasks.size(); ++t) {
      if (!tasks[t].by_box) continue;
      auto& [y, x] = sums[tasks[t].patch];
      x.lo += parts[t].x.lo, x.hi += parts[t].x.hi, y.lo += parts[t].y.lo, y.hi += parts[t].y.hi;
    }
    for (size_t k = 0; k < placed_.size(); ++k) {
      const Placed<A>& patch = placed_[k];
      const auto& [y, x] = sums[k];
      const AxisSum by_x{patch.by_x * x.lo, patch.by_x * x.hi}, by_y{patch.by_y * y.lo, patch.by_y * y.hi};
      if (patch.there)
        put_box(*by_.boxes, rows_[k], true, {by_x, by_y});
      else
        put_box(*by_.boxes, rows_[k], patch.finite, {});
    }
  }

  const OptionalTensor &grad_, &grad_mask_;
  const Tensor& patches_;
  const Boxes& boxes_;
  const OptionalTensor& canvas_;
  const Sizes& shape_;
  const Rules& rules_;
  const Options& options_;
  const PasteGradients& by_;
  const int64_t channels_, height_, width_, layers_;
  const Sizes sides_;
  const Bands bands_;
  const A* const source_;
  const Kernels<A> kernels_ = kernels_of<A>();
  const PasteKernels<A> paste_ = paste_kernels_of<A>();
  int64_t begin_ = 0, end_ = 0;
  std::vector<int64_t> rows_, first_;
  std::span<Placed<A>> placed_;
  Scratch<A> memory_;
  A* below_ = nullptr;
};

}  // namespace

template <class A>
void paste_gradients(const OptionalTensor& grad, const OptionalTensor& grad_mask, const Tensor& patches,
                     const Boxes& boxes, const OptionalTensor& canvas, const Sizes& shape, const Rules& rules,
                     const Options& options, const PasteGradients& by) {
  static thread_local Layout<A> layout;
  Gradients<A>(grad, grad_mask, patches, boxes, canvas, shape, rules, options, by).run(layout);
  layout.release();
}

template void paste_gradients<double>(const OptionalTensor&, const OptionalTensor&, const Tensor&, const Boxes&,
                                      const OptionalTensor&, const Sizes&, const Rules&, const Options&,
                                      const PasteGradients&);
template void paste_gradients<float>(const OptionalTensor&, const OptionalTensor&, const Tensor&, const Boxes&,
                                     const OptionalTensor&, const Sizes&, const Rules&, const Options&,
                                     const PasteGradients&);

}  // namespace diffcrop
