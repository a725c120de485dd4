// Registers the CPU kernels with PyTorch through its stable ABI: unpacks tensors, chooses types, shares the work among
// threads. The schemas are defined in Python, so that the package imports without this library, and user errors are
// raised there: what is checked here is only what could read out of bounds.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <array>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels.h"
#include "nearest.h"

namespace {

using namespace diffcrop;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

void require(bool condition, const char* message) {
  if (!condition) throw std::runtime_error(std::string("diffcrop: ") + message);
}

Options options_of(const std::string& mode, bool antialias, const std::string& padding, double sigma,
                   bool align_corners) {
  constexpr std::array modes = {"bilinear", "bicubic", "lanczos3", "area", "gaussian", "nearest"};
  constexpr std::array paddings = {"border", "zeros", "constant", "reflection", "circular", "renormalize"};
  const auto place = [](const auto& names, const std::string& name) {
    const auto found = std::find(names.begin(), names.end(), name);
    require(found != names.end(), "unknown mode or padding_mode");
    return static_cast<int>(found - names.begin());
  };
  return {static_cast<Mode>(place(modes, mode)), antialias, static_cast<Padding>(place(paddings, padding)), sigma,
          align_corners};
}

// Runs f(0), ..., f(n - 1) on torch's threads, at least `grain` of them on each.
template <class F>
void parallel(int64_t n, int64_t grain, const F& f) {
  torch::stable::parallel_for(0, n, std::max<int64_t>(grain, 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// Beyond this a box counts as infinite: its squares and products must not overflow.
constexpr double kFarthest = 1e100;
// Multiply-adds that are worth waking another thread for.
constexpr int64_t kGrain = 1 << 15;
// Boxes that are planned and cropped together: bounds the memory of the plans, whatever the number of boxes.
constexpr int64_t kBoxes = 64;
// Plans with room for more than so many numbers do not stay in memory for the next call.
constexpr size_t kMostKept = 1 << 19;
// Multiply-adds of a piece of a crop: what one thread takes at a time. Some pieces per thread even out their lengths.
constexpr int64_t kPiece = 1 << 16;
// Rows of the image gradient in a piece, and its elements: each is touched once, and stays in the cache while boxes add
// to it.
constexpr int64_t kRows = 32, kElements = 1 << 16;

// Bytes that caches hold: what was read before is read from there, if it is less.
constexpr double kCached = 1 << 24;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <class T>
T* data_of(const Tensor& tensor) {
  if constexpr (std::is_const_v<T>)
    return static_cast<T*>(tensor.const_data_ptr());
  else
    return static_cast<T*>(tensor.mutable_data_ptr());
}

// Item i of a tensor (N, channels, rows, columns).
template <class T>
View<T> view_of(const Tensor& tensor, T* data, int64_t i) {
  return {data + i * tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

bool is_interleaved(const Tensor& tensor) {
  return tensor.size(1) > 1 && tensor.stride(1) == 1 && tensor.stride(3) == tensor.size(1);
}

// Asks for large pages in a fresh tensor: of a large one, page faults are most of the cost. Advice that the system does
// not know or take does no harm.
void advise_huge_pages(const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096, least = uintptr_t{4} << 20;
  const auto bytes = static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  if (bytes < least) return;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

Tensor allocate(const Sizes& sizes, ScalarType dtype, const Tensor& like, bool channels_last) {
  const auto format =
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous;
  const Tensor tensor = torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, format);
  advise_huge_pages(tensor);
  return tensor;
}

// The boxes of a call and the image that each of them reads.
class Boxes {
 public:
  Boxes(const Tensor& boxes, const OptionalTensor& index, int64_t images)
      : boxes_(boxes), index_(index), images_(images) {
    require(boxes.dim() == 2 && boxes.size(1) == 4, "boxes must have shape (R, 4)");
    require(boxes.scalar_type() == ScalarType::Float || boxes.scalar_type() == ScalarType::Double,
            "boxes must be float32 or float64");
    if (index) {
      require(index->dim() == 1 && index->size(0) == boxes.size(0), "index must have shape (R,)");
      require(index->scalar_type() == ScalarType::Long, "index must be int64");
    } else {
      require(boxes.size(0) == 0 || (images > 0 && boxes.size(0) % images == 0), "R must be a multiple of B");
    }
  }

  int64_t size() const { return boxes_.size(0); }

  int64_t image(int64_t r) const {
    if (index_) return data_of<const int64_t>(*index_)[r * index_->stride(0)];
    return r / (size() / images_);
  }

  double at(int64_t r, int64_t i) const {
    const int64_t place = r * boxes_.stride(0) + i * boxes_.stride(1);
    if (boxes_.scalar_type() == ScalarType::Double) return data_of<const double>(boxes_)[place];
    return data_of<const float>(boxes_)[place];
  }

  // What the passes need of a plan: derivatives of the weights, the matrix of x, the transposed ones.
  struct Need {
    bool derivatives = false, across = false, back = false;
    Ability ability;
    int64_t m = 1;
    bool lookups = false;
    // Whether what is read comes from memory: known, or to be estimated from the bytes of a pixel, all channels.
    bool ahead = false;
    int64_t pixel = 0;
  };

  template <class A>
  void plan(BoxPlan<A>& plan, int64_t r, const Sizes& size, const Sizes& pixels, const Options& options,
            const Need& need) const {
    const double x0 = at(r, 0), y0 = at(r, 1), x1 = at(r, 2), y1 = at(r, 3);
    plan.image = image(r), plan.across.m = need.m;
    const auto sound = [](double corner) { return std::abs(corner) <= kFarthest; };  // NaN is not
    plan.valid = sound(x0) && sound(y0) && sound(x1) && sound(y1) && plan.image >= 0 && plan.image < images_;
    if (!plan.valid) return;
    plan_axis<A>(plan.y, y0, y1, size[0], pixels[0], options, need.derivatives);
    plan_axis<A>(plan.x, x0, x1, size[1], pixels[1], options, need.derivatives);
    if (need.across)
      make_operator<A>(plan.across, plan.x, need.m, {&plan.x.weight, &plan.x.by_center, &plan.x.by_width},
                       need.lookups);
    plan.order = {};
    plan.widens = !plan.y.by_width.empty() || !plan.x.by_width.empty();
    if (need.across && !need.derivatives) plan.order = order_of<A>(plan.y, plan.across, need.ability);
    if (!need.back) return;
    if (need.derivatives) {
      plan.order.points = !plan.widens && are_points<A>(plan.y, plan.across, need.ability);
      if (!plan.widens) return;
    } else {
      transpose<A>(plan.y_back, plan.y);
    }
    transpose<A>(plan.x_back, plan.x);
    make_operator<A>(plan.back, plan.x_back, need.m, {&plan.x_back.weight}, need.lookups);
    if (!need.derivatives) plan.order_back = order_of<A>(plan.y_back, plan.back, need.ability);
  }

  // Calls f(first, plans) for runs of up to `most` boxes.
  template <class A, class F>
  void each_run(int64_t most, const Sizes& size, const Sizes& pixels, const Options& options, const Need& need,
                const F& f) const {
    // They stay for the next call: getting memory from the system takes longer than a small crop.
    static thread_local std::vector<BoxPlan<A>> kept;
    for (int64_t first = 0; first < this->size(); first += most) {
      const auto count = static_cast<size_t>(std::min(most, this->size() - first));
      if (kept.size() < count) kept.resize(count);
      const std::span<BoxPlan<A>> plans(kept.data(), count);
      parallel(static_cast<int64_t>(count), kGrain / (64 * (size[0] + size[1])),
               [&](int64_t r) { plan<A>(plans[r], first + r, size, pixels, options, need); });
      const bool ahead = need.ahead || come_from_memory<A>(plans, need.pixel);
      for (auto& plan : plans) plan.ahead = ahead;
      f(first, std::span<const BoxPlan<A>>(plans));
    }
    // An empty list assigned would keep the memory.
    if (room_of<A>(kept) > kMostKept) std::vector<BoxPlan<A>>().swap(kept);
  }

 private:
  // The memory of plans, roughly: numbers that their longest parts have room for, used or not.
  template <class A>
  static size_t room_of(const std::vector<BoxPlan<A>>& plans) {
    size_t room = 0;
    for (const auto& plan : plans) {
      room += sizeof(plan) / sizeof(A);
      for (const Band<A>* band :
           {static_cast<const Band<A>*>(&plan.y), static_cast<const Band<A>*>(&plan.x), &plan.y_back, &plan.x_back})
        room += band->weight.capacity() + band->offset.capacity();
    }
    return room;
  }

  // Whether what the boxes read comes from memory, probably: it is more than caches hold, and no other box has just
  // read the same. `plans`: of some of them.
  template <class A>
  bool come_from_memory(std::span<const BoxPlan<A>> plans, int64_t pixel) const {
    double pixels = 0;
    for (const auto& plan : plans)
      if (plan.valid)
        pixels += static_cast<double>(plan.x.last - plan.x.first) *
                  static_cast<double>(std::min(plan.y.last - plan.y.first, plan.y.most * plan.y.outputs));
    const double share = static_cast<double>(plans.size()) / static_cast<double>(size());
    return pixels * static_cast<double>(pixel) > kCached * share && size() <= 4 * images_;
  }

  const Tensor& boxes_;
  const OptionalTensor& index_;
  int64_t images_;
};

template <class A>
std::vector<A> fill_of(const std::vector<double>& fill, int64_t channels) {
  if (std::all_of(fill.begin(), fill.end(), [](double f) { return f == 0; })) return {};
  std::vector<A> result(channels);
  for (int64_t c = 0; c < channels; ++c) result[c] = static_cast<A>(fill[fill.size() == 1 ? 0 : c]);
  return result;
}

template <class A>
const A* or_null(const std::vector<A>& fill) {
  return fill.empty() ? nullptr : fill.data();
}

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

template <class O>
std::vector<O> nans(int64_t channels) {
  return std::vector<O>(channels, store<O>(std::numeric_limits<double>::quiet_NaN()));
}

Sizes spatial(const Tensor& tensor) {
  return {tensor.size(2), tensor.size(3)};
}

enum class Level { plain, avx2, avx512 };

// What the kernels run at: the best that processor and compiler know, or what DIFFCROP_SIMD asks for if that is less.
Level level() {
  static const Level chosen = [] {
    Level best = Level::plain;
#if DIFFCROP_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
        __builtin_cpu_supports("bmi2"))
      best = Level::avx2;
    if (best == Level::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
      best = Level::avx512;
#endif
    const char* const asked = std::getenv("DIFFCROP_SIMD");
    const std::string name = asked == nullptr ? "" : asked;
    if (name == "default") return Level::plain;
    return name == "avx2" ? std::min(best, Level::avx2) : best;
  }();
  return chosen;
}

template <class T>
Kernels<T> kernels_of() {
  switch (level()) {
#if DIFFCROP_X86
    case Level::avx512:
      return avx512::kernels<T>();
    case Level::avx2:
      return avx2::kernels<T>();
#endif
    default:
      return plain::kernels<T>();
  }
}

// Whether pairs of pixels are read as vectors.
template <class T>
constexpr bool pairs(int64_t m) {
  return DIFFCROP_VECTORS && std::is_same_v<T, SumOf<T>> && m == 1;
}

template <class T>
void crop_typed(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  const Kernels<T> kernels = kernels_of<T>();
  const int64_t channels = images.size(1);
  // Channels stay side by side only where both ends have them so; else each is a plane of its own, with strides.
  const int64_t m = is_interleaved(images) && is_interleaved(out) ? channels : 1;
  const auto* const source = data_of<const T>(images);
  auto* const target = data_of<O>(out);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Pieces pieces(channels / m * size[0], 8 * size[1] * m);
  const Boxes::Need need{.across = true,
                         .ability = {is_dense(view_of(images, source, 0), m), m > 1 || pairs<T>(m)},
                         .m = m,
                         .lookups = kernels.lookups,
                         .pixel = channels * static_cast<int64_t>(sizeof(T))};
  boxes.each_run<A>(kBoxes, size, spatial(images), options, need, [&](int64_t first, const auto& plans) {
    pieces.share(plans, [&](const BoxPlan<A>& box, int64_t r, int64_t piece, Scratch<A>& scratch) {
      const auto view = view_of(out, target, first + r);
      const int64_t begin = pieces.begin(piece), end = pieces.end(piece);
      if (!box.valid) return fill_rows(view, size[0], size[1], m, begin, end, nans<O>(channels).data());
      kernels.crop(box, view_of(images, source, box.image), view, begin, end, or_null(fill), scratch);
    });
  });
}

template <class T>
void jacobian_typed(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                    const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  const Kernels<T> kernels = kernels_of<T>();
  const int64_t channels = images.size(1);
  const auto* const source = data_of<const T>(images);
  auto* const target = data_of<O>(out);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Pieces pieces(channels * size[0], 32 * size[1]);
  const Boxes::Need need{.derivatives = true, .across = true, .ability = {}, .lookups = kernels.lookups};
  boxes.each_run<A>(kBoxes, size, spatial(images), options, need, [&](int64_t first, const auto& plans) {
    pieces.share(plans, [&](const BoxPlan<A>& box, int64_t r, int64_t piece, Scratch<A>& scratch) {
      const int64_t width = 4 * size[1], begin = pieces.begin(piece), end = pieces.end(piece);
      const View<O> view{target + (first + r) * channels * size[0] * width, size[0] * width, width, 1};
      if (!box.valid) return fill_rows(view, size[0], width, 1, begin, end, nans<O>(channels).data());
      kernels.jacobian(box, view_of(images, source, box.image), view, begin, end, or_null(fill), scratch);
    });
  });
}

template <class T>
void gram_typed(const Tensor& images, const Boxes& boxes, const Tensor& targets, bool moments, double huber,
                const Options& options, const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  const Kernels<T> kernels = kernels_of<T>();
  const int64_t channels = images.size(1), columns = out.size(3);
  const Sizes size = spatial(targets);
  const auto* const source = data_of<const T>(images);
  const auto* const wanted = data_of<const A>(targets);
  auto* const result = data_of<double>(out);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Pieces pieces(size[0], 64 * size[1]);
  const Boxes::Need need{.derivatives = true,
                         .across = true,
                         .ability = {},
                         .lookups = kernels.lookups,
                         .pixel = channels * static_cast<int64_t>(sizeof(T))};
  using Products = std::array<double, kMostProducts>;
  boxes.each_run<A>(kBoxes, size, spatial(images), options, need, [&](int64_t first, const auto& plans) {
    const auto count = static_cast<int64_t>(plans.size());
    std::vector<Products> parts(count * channels * pieces.each);
    const auto one = [&](const BoxPlan<A>& box, int64_t r, int64_t piece, Scratch<A>& scratch) {
      if (!box.valid) return parts[piece].fill(std::numeric_limits<double>::quiet_NaN());
      parts[piece] = {};
      kernels.gram(box, view_of(images, source, box.image), view_of(targets, wanted, first + r),
                   piece / pieces.each % channels, pieces.begin(piece), pieces.end(piece), moments, huber,
                   or_null(fill), parts[piece].data(), scratch);
    };
    pieces.share(plans, one, channels);
    for (int64_t part = 0; part < count * channels; ++part) {
      Products total = {};
      for (int64_t piece = part * pieces.each; piece < (part + 1) * pieces.each; ++piece)
        for (int p = 0; p < kMostProducts; ++p) total[p] += parts[piece][p];
      double* const matrix = result + (first * channels + part) * columns * columns;
      const double* next = total.data();
      // Those with the column of ones come last.
      const int64_t rows = moments ? columns - 1 : columns;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = i; j < rows; ++j, ++next) matrix[i * columns + j] = matrix[j * columns + i] = *next;
      for (int64_t i = 0; moments && i < columns; ++i, ++next)
        matrix[i * columns + rows] = matrix[rows * columns + i] = *next;
    }
  });
}

template <class T>
void grad_boxes_typed(const Tensor& grad, const Tensor& images, const Boxes& boxes, const Options& options,
                      const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using G = ResultOf<T>;
  const Kernels<T> kernels = kernels_of<T>();
  const int64_t channels = images.size(1), m = is_interleaved(images) ? channels : 1;
  const Sizes size = spatial(grad);
  const auto* const source = data_of<const T>(images);
  const auto* const cotangent = data_of<const G>(grad);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Pieces pieces(channels / m * size[0], 12 * size[1] * m);
  const Boxes::Need need{
      .derivatives = true,
      .across = true,
      .back = true,
      .ability = {is_dense(view_of(images, source, 0), m) && (m == 1 || fill.empty()), m > 1 || pairs<T>(m)},
      .m = m,
      .lookups = kernels.lookups,
      .pixel = channels * static_cast<int64_t>(sizeof(T))};
  boxes.each_run<A>(kBoxes, size, spatial(images), options, need, [&](int64_t first, const auto& plans) {
    const auto count = static_cast<int64_t>(plans.size());
    std::vector<BoxSum> parts(count * pieces.each);
    pieces.share(plans, [&](const BoxPlan<A>& box, int64_t r, int64_t piece, Scratch<A>& scratch) {
      if (!box.valid) return;
      parts[piece] = kernels.grad_boxes(box, view_of(images, source, box.image), view_of(grad, cotangent, first + r),
                                        pieces.begin(piece), pieces.end(piece), or_null(fill), scratch);
    });
    for (int64_t r = 0; r < count; ++r) {
      std::array<double, 4> total = {0, 0, 0, 0};
      if (!plans[r].valid) total.fill(std::numeric_limits<double>::quiet_NaN());
      for (int64_t piece = r * pieces.each; piece < (r + 1) * pieces.each; ++piece) {
        const auto& [y, x] = parts[piece];
        total[0] += x.lo, total[1] += y.lo, total[2] += x.hi, total[3] += y.hi;
      }
      for (int64_t i = 0; i < 4; ++i) {
        if (out.scalar_type() == ScalarType::Double)
          data_of<double>(out)[(first + r) * 4 + i] = total[i];
        else
          data_of<float>(out)[(first + r) * 4 + i] = static_cast<float>(total[i]);
      }
    }
  });
}

template <class G>
void grad_images_typed(const Tensor& grad, const Boxes& boxes, const Options& options, const Tensor& out) {
  using A = SumOf<G>;
  const Kernels<G> kernels = kernels_of<G>();
  const int64_t count = out.size(0), channels = out.size(1), height = out.size(2), width = out.size(3);
  const int64_t m = is_interleaved(out) ? channels : 1, groups = channels / m;
  const auto* const cotangent = data_of<const G>(grad);
  auto* const target = data_of<G>(out);
  std::vector<std::vector<Contribution<G, A>>> parts(count);
  const auto pass = [&] {
    const int64_t rows = std::min(kRows, height), elements = rows * width * m;
    const int64_t some = std::clamp<int64_t>(kElements / elements, 1, groups);  // channels of a piece
    const int64_t bands = ceil_div(height, rows), blocks = ceil_div(groups, some);
    const int64_t grain = std::max<int64_t>(kGrain / (4 * elements * some), 1);
    torch::stable::parallel_for(0, count * blocks * bands, grain, [&](int64_t from, int64_t to) {
      Scratch<A>& scratch = Scratch<A>::of_thread();
      for (int64_t piece = from; piece < to; ++piece) {
        const int64_t image = piece / (blocks * bands), c = piece / bands % blocks * some, begin = piece % bands * rows;
        kernels.grad_images(parts[image], view_of(out, target, image), width, m, c * m, std::min(c + some, groups) * m,
                            begin, std::min(begin + rows, height), scratch);
      }
      scratch.clear();
    });
  };
  if (boxes.size() == 0) return pass();
  // Every row of the gradient is written once, by one thread, with all its boxes: they have to be planned together.
  const Boxes::Need need{.back = true,
                         .ability = {is_dense(view_of(grad, cotangent, 0), m), false},
                         .m = m,
                         .lookups = kernels.lookups,
                         .ahead = static_cast<double>(grad.numel()) * sizeof(G) > kCached};
  boxes.each_run<A>(boxes.size(), spatial(grad), {height, width}, options, need, [&](int64_t, const auto& plans) {
    for (int64_t r = 0; r < boxes.size(); ++r)
      if (plans[r].valid) parts[plans[r].image].push_back({&plans[r], view_of(grad, cotangent, r)});
    pass();
  });
}

template <class T>
void nearest_typed(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                   const std::vector<double>& fills, const Tensor& out) {
  const int64_t channels = images.size(1);
  const auto* const source = data_of<const T>(images);
  auto* const target = data_of<T>(out);
  const auto fill = std::make_unique<T[]>(channels);  // no vector, which has no data() for bool
  for (int64_t c = 0; c < channels; ++c) fill[c] = store<T>(fills[fills.size() == 1 ? 0 : c]);
  constexpr bool floating = std::is_floating_point_v<T> || std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>;
  const Pieces pieces(channels * size[0], 2 * size[1]);
  boxes.each_run<float>(kBoxes, size, spatial(images), options, {}, [&](int64_t first, const auto& plans) {
    pieces.share(plans, [&](const BoxPlan<float>& box, int64_t r, int64_t piece, Scratch<float>&) {
      const auto view = view_of(out, target, first + r);
      const int64_t begin = pieces.begin(piece), end = pieces.end(piece);
      if (box.valid) return nearest_rows<T>(box, view_of(images, source, box.image), view, begin, end, fill.get());
      if constexpr (floating)
        fill_rows(view, size[0], size[1], 1, begin, end, nans<T>(channels).data());
      else
        fill_rows(view, size[0], size[1], 1, begin, end, fill.get());
    });
  });
}

// Calls f.template operator()<T>() with the storage type of a dtype.
template <class F>
void dispatch(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f.template operator()<double>();
    case ScalarType::Float:
      return f.template operator()<float>();
    case ScalarType::Half:
      return f.template operator()<Half>();
    case ScalarType::BFloat16:
      return f.template operator()<BFloat16>();
    case ScalarType::Byte:
      return f.template operator()<uint8_t>();
    default:
      throw std::runtime_error("diffcrop: the kernels do not read this dtype");
  }
}

template <class F>
void dispatch_any(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Bool:
      return f.template operator()<bool>();
    case ScalarType::Char:
      return f.template operator()<int8_t>();
    case ScalarType::Short:
      return f.template operator()<int16_t>();
    case ScalarType::Int:
      return f.template operator()<int32_t>();
    case ScalarType::Long:
      return f.template operator()<int64_t>();
    case ScalarType::UInt16:
      return f.template operator()<uint16_t>();
    case ScalarType::UInt32:
      return f.template operator()<uint32_t>();
    case ScalarType::UInt64:
      return f.template operator()<uint64_t>();
    default:
      return dispatch(dtype, f);
  }
}

ScalarType result_dtype(ScalarType image, Mode mode) {
  return image == ScalarType::Byte && mode != Mode::nearest ? ScalarType::Float : image;
}

void check_fill(const std::vector<double>& fill, const Tensor& images) {
  require(fill.size() == 1 || static_cast<int64_t>(fill.size()) == images.size(1),
          "fill must be one number, or one per channel");
}

void check_images(const Tensor& images, const Sizes& size) {
  require(images.dim() == 4 && images.size(2) > 0 && images.size(3) > 0,
          "images must have shape (B, C, H, W), not empty");
  require(size.size() == 2 && size[0] > 0 && size[1] > 0, "size must be (h, w), at least 1");
  // Runs of pixels are held in 32 bits.
  require(std::max({images.size(2), images.size(3), size[0], size[1]}) < (int64_t{1} << 31), "axes must be below 2^31");
}

Tensor crop(const Tensor& images, const Tensor& boxes_tensor, const OptionalTensor& index, const Sizes& size,
            bool channels_last, const std::string& mode, bool antialias, const std::string& padding,
            const std::vector<double>& fill, double sigma, bool align_corners) {
  check_images(images, size);
  check_fill(fill, images);
  const Options options = options_of(mode, antialias, padding, sigma, align_corners);
  const Boxes boxes(boxes_tensor, index, images.size(0));
  const ScalarType dtype = result_dtype(images.scalar_type(), options.mode);
  const Tensor out = allocate({boxes.size(), images.size(1), size[0], size[1]}, dtype, images, channels_last);
  if (images.size(1) == 0) return out;
  if (options.mode == Mode::nearest)
    dispatch_any(images.scalar_type(), [&]<class T>() { nearest_typed<T>(images, boxes, size, options, fill, out); });
  else
    dispatch(images.scalar_type(), [&]<class T>() { crop_typed<T>(images, boxes, size, options, fill, out); });
  return out;
}

Tensor crop_jacobian(const Tensor& images, const Tensor& boxes_tensor, const OptionalTensor& index, const Sizes& size,
                     const std::string& mode, bool antialias, const std::string& padding,
                     const std::vector<double>& fill, double sigma, bool align_corners) {
  check_images(images, size);
  check_fill(fill, images);
  const Options options = options_of(mode, antialias, padding, sigma, align_corners);
  const Boxes boxes(boxes_tensor, index, images.size(0));
  const ScalarType dtype = result_dtype(images.scalar_type(), options.mode);
  const Tensor out = allocate({boxes.size(), images.size(1), size[0], size[1], 4}, dtype, images, false);
  if (images.size(1) > 0)
    dispatch(images.scalar_type(), [&]<class T>() { jacobian_typed<T>(images, boxes, size, options, fill, out); });
  return out;
}

Tensor crop_gram(const Tensor& images, const Tensor& boxes_tensor, const OptionalTensor& index, const Tensor& targets,
                 const std::string& metric, double huber, const std::string& mode, bool antialias,
                 const std::string& padding, const std::vector<double>& fill, double sigma, bool align_corners) {
  require(targets.dim() == 4, "targets must have shape (R, C, h, w)");
  check_images(images, spatial(targets));
  check_fill(fill, images);
  const Options options = options_of(mode, antialias, padding, sigma, align_corners);
  const Boxes boxes(boxes_tensor, index, images.size(0));
  const bool moments = metric == "zncc", wide = images.scalar_type() == ScalarType::Double;
  require(moments || metric == "l2", "unknown metric");
  require(targets.size(0) == boxes.size() && targets.size(1) == images.size(1), "targets must have shape (R, C, h, w)");
  require(targets.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float),
          "targets must have the dtype of sums, float32 or with float64 images that");
  const int64_t columns = moments ? 7 : 5;
  const Tensor out = allocate({boxes.size(), images.size(1), columns, columns}, ScalarType::Double, images, false);
  if (images.size(1) > 0)
    dispatch(images.scalar_type(),
             [&]<class T>() { gram_typed<T>(images, boxes, targets, moments, huber, options, fill, out); });
  return out;
}

Tensor crop_grad_boxes(const Tensor& grad, const Tensor& images, const Tensor& boxes_tensor,
                       const OptionalTensor& index, const std::string& mode, bool antialias, const std::string& padding,
                       const std::vector<double>& fill, double sigma, bool align_corners) {
  check_images(images, spatial(grad));
  check_fill(fill, images);
  const Options options = options_of(mode, antialias, padding, sigma, align_corners);
  const Boxes boxes(boxes_tensor, index, images.size(0));
  require(grad.size(0) == boxes.size() && grad.size(1) == images.size(1), "grad must have shape (R, C, h, w)");
  require(grad.scalar_type() == result_dtype(images.scalar_type(), options.mode),
          "grad must have the dtype of the crop");
  const Tensor out = allocate({boxes.size(), 4}, boxes_tensor.scalar_type(), boxes_tensor, false);
  dispatch(images.scalar_type(), [&]<class T>() { grad_boxes_typed<T>(grad, images, boxes, options, fill, out); });
  return out;
}

Tensor crop_grad_images(const Tensor& grad, const Tensor& boxes_tensor, const OptionalTensor& index,
                        const Sizes& image_shape, bool channels_last, const std::string& mode, bool antialias,
                        const std::string& padding, const std::vector<double>&, double sigma, bool align_corners) {
  require(image_shape.size() == 4, "image_shape must be (B, C, H, W)");
  const Tensor out = allocate(image_shape, grad.scalar_type(), grad, channels_last);
  check_images(out, spatial(grad));
  const Options options = options_of(mode, antialias, padding, sigma, align_corners);
  const Boxes boxes(boxes_tensor, index, image_shape[0]);
  require(grad.size(0) == boxes.size() && grad.size(1) == image_shape[1], "grad must have shape (R, C, h, w)");
  require(grad.scalar_type() != ScalarType::Byte, "grad must be floating-point");
  if (image_shape[0] == 0 || image_shape[1] == 0) return out;
  dispatch(grad.scalar_type(), [&]<class G>() {
    if constexpr (!std::is_integral_v<G>) grad_images_typed<G>(grad, boxes, options, out);
  });
  return out;
}

// The level that the kernels run at, not what the processor could do.
std::string simd_level() {
  constexpr const char* names[] = {"default", "avx2", "avx512"};
  return names[static_cast<int>(level())];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffcrop, CPU, library) {
  library.impl("crop", TORCH_BOX(&crop));
  library.impl("crop_jacobian", TORCH_BOX(&crop_jacobian));
  library.impl("crop_gram", TORCH_BOX(&crop_gram));
  library.impl("crop_grad_boxes", TORCH_BOX(&crop_grad_boxes));
  library.impl("crop_grad_images", TORCH_BOX(&crop_grad_images));
}

// An op without tensor arguments has no backend to be dispatched by; this key also serves the case of none.
STABLE_TORCH_LIBRARY_IMPL(diffcrop, CompositeExplicitAutograd, library) {
  library.impl("simd_level", TORCH_BOX(&simd_level));
}
