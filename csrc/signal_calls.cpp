#include "signal_calls.h"

#include "signals.h"

namespace diffcrop {
namespace {

// Sums that are kept beside the result, at most if there are four channels of them.
constexpr int64_t kCopied = 1 << 20;

// What plans are for: values, derivatives by the box, or products with the transposed matrix.
enum class Purpose : int8_t { value, slope, back };

template <class T>
SignalKernels<T> signal_kernels_of() {
  switch (level()) {
#if DIFFCROP_X86
    case Level::avx512:
      return avx512::signal_kernels<T>();
    case Level::avx2:
      return avx2::signal_kernels<T>();
#endif
    default:
      return plain::signal_kernels<T>();
  }
}

// Item i of a tensor (N, channels, columns), from column j on.
template <class T>
Line<T> line_of(const Tensor& tensor, T* data, int64_t i, int64_t j = 0) {
  return {data + i * tensor.stride(0) + j * tensor.stride(2), tensor.stride(1), tensor.stride(2)};
}

// Plans of a call, made by the thread that needs them.
template <class A>
class Planner {
 public:
  // For rows of so many channels.
  Planner(const Boxes& boxes, int64_t images, int64_t channels, int64_t outputs, int64_t pixels, const Options& options,
          Purpose purpose)
      : boxes_(boxes),
        images_(images),
        outputs_(outputs),
        pixels_(pixels),
        options_(options),
        purpose_(purpose),
        lays_out_(std::is_same_v<A, float> && level() == Level::avx512 && channels >= kRowsToLayOut),
        transposes_(lays_out_ && channels >= kRowsToTranspose) {}

  // Whether a box is finite and names a signal.
  bool valid(int64_t r) const { return boxes_.is_sound(r) && boxes_.image(r) >= 0 && boxes_.image(r) < images_; }

  // The plan of outputs [begin, end) of a valid box, for this thread and until it asks for the next one.
  const SignalPlan<A>& plan(int64_t r, int64_t begin, int64_t end) const {
    SignalPlan<A>& plan = of_thread();
    const double lo = boxes_.at(r, 0), hi = boxes_.at(r, 1);
    const Outputs outputs(outputs_, begin, end);
    const bool derivatives = purpose_ == Purpose::slope, back = purpose_ == Purpose::back;
    const bool dense = back && std::abs(hi - lo) <= kDenseReduction * static_cast<double>(outputs_);
    plan.laid = plan.laid_back = false;
    plan.paired = !(dense && transposes_) && plan_pairs<A>(plan.pairs, lo, hi, outputs, pixels_, options_, derivatives);
    if (plan.paired) return plan;
    plan_axis<A>(plan.runs, lo, hi, outputs, pixels_, options_, derivatives);
    if (!lays_out_ || !plan.runs.place.empty()) return plan;
    plan.laid = !back && plan.runs.most <= kShortRun;
    plan.laid_back = dense;
    if (plan.laid)
      make_operator<A>(plan.across, plan.runs, 1, {&plan.runs.weight, &plan.runs.by_center, &plan.runs.by_width}, true);
    if (plan.laid_back) {
      transpose<A>(plan.transposed, plan.runs);
      make_operator<A>(plan.back, plan.transposed, 1, {&plan.transposed.weight}, true);
    }
    return plan;
  }

  // Its memory stays for the next call, unless it is much.
  static void finish() {
    SignalPlan<A>& plan = of_thread();
    if (plan.runs.weight.capacity() > kMostKept) plan = {};
  }

 private:
  static SignalPlan<A>& of_thread() {
    static thread_local SignalPlan<A> plan;
    return plan;
  }

  const Boxes& boxes_;
  int64_t images_, outputs_, pixels_;
  const Options& options_;
  Purpose purpose_;
  bool lays_out_, transposes_;
};

// The outputs of each crop, cut into tiles and these into some channels each, by sizes alone.
class Tiles {
 public:
  Tiles(int64_t channels, int64_t outputs)
      : channels_(channels),
        outputs_(outputs),
        some_(std::max<int64_t>(std::min(kPiece / std::min(outputs, kTile), channels), 1)),
        tiles_(ceil_div(outputs, kTile)),
        groups_(ceil_div(channels, some_)) {}

  // Of a box.
  int64_t each() const { return tiles_ * groups_; }

  // Calls f(r, plan or null, begin, end, c, c_end, number of the piece, scratch) for all pieces of all boxes, on
  // torch's threads. `work`: multiply-adds of an output.
  template <class A, class F>
  void share(int64_t boxes, const Planner<A>& planner, int64_t work, const F& f) const {
    const int64_t outputs = std::min(outputs_, kTile) * (some_ + 8);
    torch::stable::parallel_for(
        0, boxes * each(), std::max<int64_t>(kGrain / (work * outputs), 1), [&](int64_t from, int64_t to) {
          Scratch<A>& scratch = Scratch<A>::of_thread();
          const SignalPlan<A>* plan = nullptr;
          int64_t planned = -1;
          for (int64_t piece = from; piece < to; ++piece) {
            const int64_t tile = piece / groups_, r = tile / tiles_, c = piece % groups_ * some_;
            const int64_t begin = tile % tiles_ * kTile, end = std::min(begin + kTile, outputs_);
            const bool valid = planner.valid(r);
            if (valid && planned != tile) plan = &planner.plan(r, begin, end), planned = tile;
            f(r, valid ? plan : nullptr, begin, end, c, std::min(c + some_, channels_), piece, scratch);
          }
          scratch.clear();
          planner.finish();
        });
  }

 private:
  int64_t channels_, outputs_, some_, tiles_, groups_;
};

template <class T>
void crop_typed(const Tensor& signals, const Boxes& boxes, const Sizes& size, const Options& options,
                const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  const auto kernels = signal_kernels_of<T>();
  const int64_t channels = signals.size(1);
  const auto* const source = data_of<const T>(signals);
  auto* const target = data_of<O>(out);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Planner<A> planner(boxes, signals.size(0), channels, size[0], signals.size(2), options, Purpose::value);
  Tiles(channels, size[0])
      .share<A>(boxes.size(), planner, 4,
                [&](int64_t r, const SignalPlan<A>* plan, int64_t begin, int64_t end, int64_t c, int64_t c_end, int64_t,
                    Scratch<A>& scratch) {
                  const Line<O> line = line_of(out, target, r, begin);
                  if (plan != nullptr)
                    return kernels.crop(*plan, line_of(signals, source, boxes.image(r)), line, c, c_end, or_null(fill),
                                        scratch);
                  for (; c < c_end; ++c)
                    for (int64_t j = 0; j < end - begin; ++j)
                      line.at(c)[j * line.column] = store<O>(std::numeric_limits<double>::quiet_NaN());
                });
}

template <class T>
void grad_boxes_typed(const Tensor& grad, const Tensor& signals, const Boxes& boxes, const Options& options,
                      const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using G = ResultOf<T>;
  const auto kernels = signal_kernels_of<T>();
  const int64_t channels = signals.size(1);
  const auto* const source = data_of<const T>(signals);
  const auto* const cotangent = data_of<const G>(grad);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Planner<A> planner(boxes, signals.size(0), channels, grad.size(2), signals.size(2), options, Purpose::slope);
  const Tiles tiles(channels, grad.size(2));
  std::vector<AxisSum> parts(boxes.size() * tiles.each());
  tiles.share<A>(boxes.size(), planner, 8,
                 [&](int64_t r, const SignalPlan<A>* plan, int64_t begin, int64_t, int64_t c, int64_t c_end,
                     int64_t piece, Scratch<A>& scratch) {
                   if (plan == nullptr) return;
                   parts[piece] =
                       kernels.grad_box(*plan, line_of(signals, source, boxes.image(r)),
                                        line_of(grad, cotangent, r, begin), c, c_end, or_null(fill), scratch);
                 });
  for (int64_t r = 0; r < boxes.size(); ++r) {
    AxisSum total;
    for (int64_t piece = r * tiles.each(); piece < (r + 1) * tiles.each(); ++piece)
      total.lo += parts[piece].lo, total.hi += parts[piece].hi;
    put_box(out, r, planner.valid(r), {total});
  }
}

template <class G>
void grad_typed(const Tensor& grad, const Boxes& boxes, const Options& options, const Tensor& out) {
  using A = SumOf<G>;
  const auto kernels = signal_kernels_of<G>();
  const int64_t count = out.size(0), channels = out.size(1), pixels = out.size(2), outputs = grad.size(2);
  const auto* const cotangent = data_of<const G>(grad);
  auto* const target = data_of<G>(out);
  const Planner<A> planner(boxes, count, channels, outputs, pixels, options, Purpose::back);
  std::vector<std::vector<int64_t>> readers(count);
  for (int64_t r = 0; r < boxes.size(); ++r)
    if (planner.valid(r)) readers[boxes.image(r)].push_back(r);
  // Every element is summed over all boxes in their order by one thread, which plans them once for all channels that it
  // has, or for as many as it has memory for where sums may not be kept where they will stay.
  const bool direct = std::is_same_v<G, A> && out.stride(2) == 1;
  const int64_t groups = ceil_div(channels, kBatch);
  const int64_t together = direct ? groups : std::max<int64_t>(kCopied / (kBatch * pixels), 1);
  const int64_t work = kBatch * (pixels + outputs * ceil_div(boxes.size(), count));
  torch::stable::parallel_for(0, count * groups, std::max<int64_t>(kGrain / work, 1), [&](int64_t from, int64_t to) {
    Scratch<A>& scratch = Scratch<A>::of_thread();
    for (int64_t group = from, next; group < to; group = next) {
      scratch.clear();
      const int64_t image = group / groups, c = group % groups * kBatch;
      next = std::min({to, (image + 1) * groups, group + together});
      const int64_t c_end = std::min(c + (next - group) * kBatch, channels);
      const Line<G> line = line_of(out, target, image);
      Line<A> sums{nullptr, pixels, 1};
      if constexpr (std::is_same_v<G, A>)
        if (direct) sums = line;
      if (!direct) sums.data = scratch.take((c_end - c) * pixels) - c * pixels;
      for (int64_t channel = c; channel < c_end; ++channel) std::fill_n(sums.at(channel), pixels, A(0));
      for (const int64_t r : readers[image])
        for (int64_t begin = 0; begin < outputs; begin += kTile)
          kernels.add_back(planner.plan(r, begin, std::min(begin + kTile, outputs)), sums,
                           line_of(grad, cotangent, r, begin), c, c_end, scratch);
      if (direct) continue;
      for (int64_t channel = c; channel < c_end; ++channel)
        for (int64_t k = 0; k < pixels; ++k) line.at(channel)[k * line.column] = store<G>(sums.at(channel)[k]);
    }
    scratch.clear();
    planner.finish();
  });
}

}  // namespace

void crop_signals(const Tensor& signals, const Boxes& boxes, const Sizes& size, const Options& options,
                  const std::vector<double>& fill, const Tensor& out) {
  dispatch(signals.scalar_type(), [&]<class T>() { crop_typed<T>(signals, boxes, size, options, fill, out); });
}

void grad_boxes_of_signals(const Tensor& grad, const Tensor& signals, const Boxes& boxes, const Options& options,
                           const std::vector<double>& fill, const Tensor& out) {
  dispatch(signals.scalar_type(), [&]<class T>() { grad_boxes_typed<T>(grad, signals, boxes, options, fill, out); });
}

void grad_signals(const Tensor& grad, const Boxes& boxes, const Options& options, const Tensor& out) {
  dispatch(grad.scalar_type(), [&]<class G>() {
    if constexpr (!std::is_integral_v<G>) grad_typed<G>(grad, boxes, options, out);
  });
}

}  // namespace diffcrop
