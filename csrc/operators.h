// What the operators share: tensors unpacked into views, boxes into plans, types chosen, the work given to torch's
// threads. The schemas are defined in Python, so that the package imports without this library, and user errors are
// raised there: what is checked here is only what could read out of bounds.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <array>
#include <numeric>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels.h"
#include "volumes.h"

namespace diffcrop {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

inline void require(bool condition, const char* message) {
  if (!condition) throw std::runtime_error(std::string("diffcrop: ") + message);
}

inline Options options_of(const std::string& mode, bool antialias, const std::string& padding, double parameter,
                          bool align_corners) {
  constexpr std::array modes = {"bilinear", "bicubic", "lanczos3", "area",
                                "gaussian", "nearest", "samples",  "integral"};
  constexpr std::array paddings = {"border", "zeros", "constant", "reflection", "circular", "renormalize", "roi"};
  const auto place = [](const auto& names, const std::string& name) {
    const auto found = std::find(names.begin(), names.end(), name);
    require(found != names.end(), "unknown mode or padding_mode");
    return static_cast<int>(found - names.begin());
  };
  return {static_cast<Mode>(place(modes, mode)), antialias, static_cast<Padding>(place(paddings, padding)), parameter,
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
// The same for signals, whose plans are long for what they do.
constexpr int64_t kSignalBoxes = 8;
// Plans with room for more than so many numbers do not stay in memory for the next call.
constexpr size_t kMostKept = 1 << 19;
// Multiply-adds of a piece of a crop: what one thread takes at a time. Some pieces per thread even out their lengths.
constexpr int64_t kPiece = 1 << 16;
// Rows of the image gradient in a piece, and its elements: each is touched once, and stays in the cache while boxes add
// to it.
constexpr int64_t kRows = 32, kElements = 1 << 16;

// Bytes that caches hold: what was read before is read from there, if it is less.
constexpr double kCached = 1 << 24;

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <class T>
T* data_of(const Tensor& tensor) {
  if constexpr (std::is_const_v<T>)
    return static_cast<T*>(tensor.const_data_ptr());
  else
    return static_cast<T*>(tensor.mutable_data_ptr());
}

// Item i of a tensor (N, channels, rows, columns), or (N, channels, columns): a signal is an image of one row.
template <class T>
View<T> view_of(const Tensor& tensor, T* data, int64_t i) {
  const int64_t last = tensor.dim() - 1;
  return {data + i * tensor.stride(0), tensor.stride(1), last == 3 ? tensor.stride(2) : 0, tensor.stride(last)};
}

// Whether the channels of a pixel are side by side.
inline bool is_interleaved(const Tensor& tensor) {
  return tensor.size(1) > 1 && tensor.stride(1) == 1 && tensor.stride(tensor.dim() - 1) == tensor.size(1);
}

// Asks for large pages in a fresh tensor: of a large one, page faults are most of the cost. Advice that the system does
// not know or take does no harm.
inline void advise_huge_pages(const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096, least = uintptr_t{4} << 20;
  const auto bytes = static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  if (bytes < least) return;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

inline Tensor allocate(const Sizes& sizes, ScalarType dtype, const Tensor& like, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  const auto last = sizes.size() == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast;
  const auto format = channels_last ? last : MemoryFormat::Contiguous;
  const auto make = [&] {
    try {
      return torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, format);
    } catch (const std::exception&) {
      // The stable ABI loses what the allocator says.
      std::string shape;
      for (const int64_t n : sizes) shape += (shape.empty() ? "" : " x ") + std::to_string(n);
      throw std::runtime_error("diffcrop: there is not enough memory for a result of " + shape +
                               " numbers; ask for fewer boxes at once or for a smaller size");
    }
  };
  const Tensor tensor = make();
  advise_huge_pages(tensor);
  return tensor;
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
  // Of volumes: planes and rows of what is made in one go.
  BrickSize brick = {};
};

// What follows from the plans of y and x; `widens`: another axis does.
template <class A>
void complete_plan(BoxPlan<A>& plan, const Need& need, bool widens = false) {
  plan.across.m = need.m;
  if (need.across)
    make_operator<A>(plan.across, plan.x, need.m, {&plan.x.weight, &plan.x.by_center, &plan.x.by_width}, need.lookups);
  plan.order = {};
  plan.widens = widens || !plan.y.by_width.empty() || !plan.x.by_width.empty();
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

// The plan of a finite box (x0, y0, x1, y1).
template <class A>
void plan_box(BoxPlan<A>& plan, const std::array<double, 4>& box, const Sizes& size, const Sizes& pixels,
              const Options& options, const Need& need) {
  plan.flat = false;
  plan_axis<A>(plan.y, box[1], box[3], size[0], pixels[0], options, need.derivatives);
  plan_axis<A>(plan.x, box[0], box[2], size[1], pixels[1], options, need.derivatives);
  complete_plan<A>(plan, need);
}

// Of (x0, x1), as an image of one row: for what signal_calls.cpp does not do.
template <class A>
void plan_signal(BoxPlan<A>& plan, const std::array<double, 2>& box, const Sizes& size, const Sizes& pixels,
                 const Options& options, const Need& need) {
  plan.flat = true;
  plan_unit<A>(plan.y, need.derivatives);
  plan_axis<A>(plan.x, box[0], box[1], size[1], pixels[1], options, need.derivatives);
  complete_plan<A>(plan, need);
}

// Of (x0, y0, z0, x1, y1, z1).
template <class A>
void plan_volume(VolumePlan<A>& plan, const std::array<double, 6>& box, const Sizes& size, const Sizes& pixels,
                 const Options& options, const Need& need) {
  plan_axis<A>(plan.z, box[2], box[5], size[0], pixels[0], options, need.derivatives);
  plan_axis<A>(plan.y, box[1], box[4], size[1], pixels[1], options, need.derivatives);
  plan_axis<A>(plan.x, box[0], box[3], size[2], pixels[2], options, need.derivatives);
  complete_plan<A>(plan, need, !plan.z.by_width.empty());
  if (need.derivatives) return;
  if (need.across) plan.volume_order = volume_order_of<A>(plan.z, plan.y, plan.across, plan.order, need.brick);
  if (!need.back) return;
  transpose<A>(plan.z_back, plan.z);
  plan.volume_order_back = volume_order_of<A>(plan.z_back, plan.y_back, plan.back, plan.order_back, need.brick);
}

// The memory of a plan, roughly: numbers that its longest parts have room for, used or not.
template <class A, class Plan>
size_t room_of(const Plan& plan) {
  size_t room = sizeof(plan) / sizeof(A);
  const auto add = [&](const Band<A>& band) { room += band.weight.capacity() + band.offset.capacity(); };
  add(plan.y), add(plan.x), add(plan.y_back), add(plan.x_back);
  if constexpr (std::is_same_v<Plan, VolumePlan<A>>) add(plan.z), add(plan.z_back);
  return room;
}

// The boxes of a call and the image that each of them reads.
class Boxes {
 public:
  Boxes(const Tensor& boxes, const OptionalTensor& index, int64_t images, int64_t axes = 2)
      : boxes_(boxes), index_(index), images_(images), axes_(axes) {
    require(boxes.dim() == 2 && boxes.size(1) == 2 * axes, "boxes must have shape (R, 2 axes)");
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
  int64_t axes() const { return axes_; }
  // As many as are planned together.
  int64_t run() const { return axes_ == 1 ? kSignalBoxes : kBoxes; }

  int64_t image(int64_t r) const {
    if (index_) return data_of<const int64_t>(*index_)[r * index_->stride(0)];
    return r / (size() / images_);
  }

  double at(int64_t r, int64_t i) const {
    const int64_t place = r * boxes_.stride(0) + i * boxes_.stride(1);
    if (boxes_.scalar_type() == ScalarType::Double) return data_of<const double>(boxes_)[place];
    return data_of<const float>(boxes_)[place];
  }

  // Of images; or of signals, where sizes say one row. A VolumePlan is that of a volume.
  template <class A, class Plan>
  void plan(Plan& plan, int64_t r, const Sizes& size, const Sizes& pixels, const Options& options,
            const Need& need) const {
    plan.image = image(r);
    plan.valid = is_sound(r) && plan.image >= 0 && plan.image < images_;
    if (!plan.valid) return;
    if constexpr (std::is_same_v<Plan, VolumePlan<A>>)
      plan_volume<A>(plan, corners<6>(r), size, pixels, options, need);
    else if (axes_ == 1)
      plan_signal<A>(plan, corners<2>(r), size, pixels, options, need);
    else
      plan_box<A>(plan, corners<4>(r), size, pixels, options, need);
  }

  // Whether all corners are finite.
  bool is_sound(int64_t r) const {
    for (int64_t i = 0; i < 2 * axes_; ++i)
      if (!(std::abs(at(r, i)) <= kFarthest)) return false;  // NaN is not
    return true;
  }

  // Calls f(first, plans) for runs of up to `most` boxes.
  template <class A, class Plan = BoxPlan<A>, class F>
  void each_run(int64_t most, const Sizes& size, const Sizes& pixels, const Options& options, const Need& need,
                const F& f) const {
    const auto plan_one = [&](Plan& one, int64_t r) { plan<A>(one, r, size, pixels, options, need); };
    each_run<A, Plan>(this->size(), most, size, plan_one, need, f);
  }

  // The same for `count` of the boxes, of which plan_one(plan, i) plans the i-th.
  template <class A, class Plan = BoxPlan<A>, class P, class F>
  void each_run(int64_t count, int64_t most, const Sizes& size, const P& plan_one, const Need& need, const F& f) const {
    // They stay for the next call: getting memory from the system takes longer than a small crop.
    static thread_local std::vector<Plan> kept;
    for (int64_t first = 0; first < count; first += most) {
      const auto some = static_cast<size_t>(std::min(most, count - first));
      if (kept.size() < some) kept.resize(some);
      const std::span<Plan> plans(kept.data(), some);
      parallel(static_cast<int64_t>(some), kGrain / (64 * std::accumulate(size.begin(), size.end(), int64_t{0})),
               [&](int64_t i) { plan_one(plans[i], first + i); });
      if constexpr (std::is_same_v<Plan, BoxPlan<A>>) {
        const bool ahead = need.ahead || come_from_memory<A>(plans, need.pixel);
        for (auto& plan : plans) plan.ahead = ahead;
      }
      f(first, std::span<const Plan>(plans));
    }
    size_t room = 0;
    for (const Plan& plan : kept) room += room_of<A>(plan);
    // An empty list assigned would keep the memory.
    if (room > kMostKept) std::vector<Plan>().swap(kept);
  }

 private:
  template <size_t numbers>
  std::array<double, numbers> corners(int64_t r) const {
    std::array<double, numbers> result;
    for (size_t i = 0; i < numbers; ++i) result[i] = at(r, static_cast<int64_t>(i));
    return result;
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
  int64_t images_, axes_;
};

// Writes the derivative by box r, from those by the axes x, y, z.
inline void put_box(const Tensor& out, int64_t r, bool valid, const std::array<AxisSum, 3>& sums) {
  const int64_t axes = out.size(1) / 2;
  for (int64_t i = 0; i < 2 * axes; ++i) {
    const double sum = i < axes ? sums[i].lo : sums[i - axes].hi;
    const double value = valid ? sum : std::numeric_limits<double>::quiet_NaN();
    if (out.scalar_type() == ScalarType::Double)
      data_of<double>(out)[r * 2 * axes + i] = value;
    else
      data_of<float>(out)[r * 2 * axes + i] = static_cast<float>(value);
  }
}

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

template <class O>
std::vector<O> nans(int64_t channels) {
  return std::vector<O>(channels, store<O>(std::numeric_limits<double>::quiet_NaN()));
}

// Pixels along every axis.
inline Sizes spatial(const Tensor& tensor) {
  Sizes result;
  for (int64_t d = 2; d < tensor.dim(); ++d) result.push_back(tensor.size(d));
  return result;
}

// The same for what is seen as images: a signal has one row.
inline Sizes as_image(Sizes size) {
  if (size.size() == 1) size.insert(size.begin(), 1);
  return size;
}

enum class Level { plain, avx2, avx512 };

// What the kernels run at: the best that processor and compiler know, or what DIFFCROP_SIMD asks for if that is less.
inline Level level() {
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

}  // namespace diffcrop
