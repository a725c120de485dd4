// Registers the CPU kernels with PyTorch through its stable ABI: unpacks tensors, chooses types, shares the work among
// threads. The schemas are defined in Python, so that the package imports without this library, and user errors are
// raised there: what is checked here is only what could read out of bounds.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "resample.h"

namespace {

using namespace diffcrop;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

template <class T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, double, float>;
// Interpolated integers give float32.
template <class T>
using ResultOf = std::conditional_t<std::is_integral_v<T>, float, T>;

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
// Rows of the image gradient that one thread takes at a time.
constexpr int64_t kRows = 32;
// Tasks to cut a call into at least, where its crops are too few to keep the threads busy.
constexpr int64_t kTasks = 16;

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

Tensor allocate(const Sizes& sizes, ScalarType dtype, const Tensor& like, bool channels_last) {
  const auto format =
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous;
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, format);
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

  template <class A>
  BoxPlan<A> plan(int64_t r, const Sizes& size, const Sizes& pixels, const Options& options, bool derivatives) const {
    const double x0 = at(r, 0), y0 = at(r, 1), x1 = at(r, 2), y1 = at(r, 3);
    BoxPlan<A> plan;
    plan.image = image(r);
    const auto sound = [](double corner) { return std::abs(corner) <= kFarthest; };  // NaN is not
    plan.valid = sound(x0) && sound(y0) && sound(x1) && sound(y1) && plan.image >= 0 && plan.image < images_;
    if (!plan.valid) return plan;
    plan.y = plan_axis<A>(y0, y1, size[0], pixels[0], options, derivatives);
    plan.x = plan_axis<A>(x0, x1, size[1], pixels[1], options, derivatives);
    return plan;
  }

  // Calls f(first, plans) for runs of up to `most` boxes.
  template <class A, class F>
  void each_run(int64_t most, const Sizes& size, const Sizes& pixels, const Options& options, bool derivatives,
                const F& f) const {
    for (int64_t first = 0; first < this->size(); first += most) {
      std::vector<BoxPlan<A>> plans(std::min(most, this->size() - first));
      parallel(static_cast<int64_t>(plans.size()), kGrain / (64 * (size[0] + size[1])),
               [&](int64_t r) { plans[r] = plan<A>(first + r, size, pixels, options, derivatives); });
      f(first, plans);
    }
  }

 private:
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

// How the rows of R crops with `channels` rows side by side (1 where they are interleaved) are cut into tasks. By sizes
// alone, so that partial sums do not depend on the threads.
struct Bands {
  int64_t groups, bands, height;
  Bands(int64_t boxes, int64_t groups, int64_t height)
      : groups(groups),
        bands(std::clamp<int64_t>(ceil_div(kTasks, std::max<int64_t>(boxes * groups, 1)), 1, height)),
        height(height) {}
  int64_t tasks(int64_t boxes) const { return boxes * groups * bands; }
  int64_t box(int64_t task) const { return task / (groups * bands); }
  int64_t group(int64_t task) const { return task / bands % groups; }
  int64_t begin(int64_t task) const { return task % bands * height / bands; }
  int64_t end(int64_t task) const { return (task % bands + 1) * height / bands; }
  int64_t grain(int64_t row) const { return kGrain / std::max<int64_t>(row * ceil_div(height, bands), 1); }
};

template <class O, class A>
void fill_rows(const View<O>& out, int64_t c, int64_t m, int64_t begin, int64_t end, int64_t width, A value) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t j = 0; j < width; ++j)
      for (int64_t ch = 0; ch < m; ++ch) out.at(c + ch, i)[j * out.column] = store<O>(value);
}

Sizes spatial(const Tensor& tensor) {
  return {tensor.size(2), tensor.size(3)};
}

template <class T>
void crop_typed(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  const int64_t channels = images.size(1);
  // Channels stay side by side only where both ends have them so; else each is a plane of its own, with strides.
  const int64_t m = is_interleaved(images) && is_interleaved(out) ? channels : 1;
  const auto* const source = data_of<const T>(images);
  auto* const target = data_of<O>(out);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Bands bands(boxes.size(), channels / m, size[0]);
  boxes.each_run<A>(kBoxes, size, spatial(images), options, false,
                    [&](int64_t first, const std::vector<BoxPlan<A>>& plans) {
                      const int64_t tasks = bands.tasks(static_cast<int64_t>(plans.size()));
                      torch::stable::parallel_for(
                          0, tasks, std::max<int64_t>(bands.grain(8 * size[1] * m), 1), [&](int64_t from, int64_t to) {
                            std::vector<A> scratch;
                            for (int64_t task = from; task < to; ++task) {
                              const BoxPlan<A>& box = plans[bands.box(task)];
                              const auto view = view_of(out, target, first + bands.box(task));
                              const int64_t c = bands.group(task) * m, begin = bands.begin(task), end = bands.end(task);
                              if (!box.valid)
                                fill_rows(view, c, m, begin, end, size[1], std::numeric_limits<A>::quiet_NaN());
                              else
                                crop_rows<T, O, A>(box, view_of(images, source, box.image), view, c, m, begin, end,
                                                   or_null(fill), scratch);
                            }
                          });
                    });
}

template <class T>
void jacobian_typed(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                    const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using O = ResultOf<T>;
  const int64_t channels = images.size(1);
  const auto* const source = data_of<const T>(images);
  auto* const target = data_of<O>(out);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Bands bands(boxes.size(), channels, size[0]);
  boxes.each_run<A>(kBoxes, size, spatial(images), options, true,
                    [&](int64_t first, const std::vector<BoxPlan<A>>& plans) {
                      const int64_t tasks = bands.tasks(static_cast<int64_t>(plans.size()));
                      torch::stable::parallel_for(
                          0, tasks, std::max<int64_t>(bands.grain(32 * size[1]), 1), [&](int64_t from, int64_t to) {
                            std::vector<A> scratch;
                            for (int64_t task = from; task < to; ++task) {
                              const BoxPlan<A>& box = plans[bands.box(task)];
                              const int64_t width = 4 * size[1];
                              const View<O> view{target + (first + bands.box(task)) * channels * size[0] * width,
                                                 size[0] * width, width, 1};
                              const int64_t c = bands.group(task), begin = bands.begin(task), end = bands.end(task);
                              if (!box.valid)
                                fill_rows(view, c, 1, begin, end, width, std::numeric_limits<A>::quiet_NaN());
                              else
                                jacobian_rows<T, O, A>(box, view_of(images, source, box.image), view, c, begin, end,
                                                       or_null(fill), scratch);
                            }
                          });
                    });
}

template <class T>
void grad_boxes_typed(const Tensor& grad, const Tensor& images, const Boxes& boxes, const Options& options,
                      const std::vector<double>& fills, const Tensor& out) {
  using A = SumOf<T>;
  using G = ResultOf<T>;
  const int64_t channels = images.size(1), m = is_interleaved(images) ? channels : 1;
  const Sizes size = spatial(grad);
  const auto* const source = data_of<const T>(images);
  const auto* const cotangent = data_of<const G>(grad);
  const std::vector<A> fill = fill_of<A>(fills, channels);
  const Bands bands(boxes.size(), channels / std::max<int64_t>(m, 1), size[0]);
  boxes.each_run<A>(
      kBoxes, size, spatial(images), options, true, [&](int64_t first, const std::vector<BoxPlan<A>>& plans) {
        const int64_t tasks = bands.tasks(static_cast<int64_t>(plans.size()));
        std::vector<BoxSum> parts(tasks);
        torch::stable::parallel_for(
            0, tasks, std::max<int64_t>(bands.grain(32 * size[1] * m), 1), [&](int64_t from, int64_t to) {
              std::vector<A> scratch;
              for (int64_t task = from; task < to; ++task) {
                const BoxPlan<A>& box = plans[bands.box(task)];
                if (!box.valid) continue;
                parts[task] = box_rows<T, G, A>(
                    box, view_of(images, source, box.image), view_of(grad, cotangent, first + bands.box(task)),
                    bands.group(task) * m, m, bands.begin(task), bands.end(task), or_null(fill), scratch);
              }
            });
        const int64_t each = bands.tasks(1);
        for (int64_t r = 0; r < static_cast<int64_t>(plans.size()); ++r) {
          std::array<double, 4> total = {0, 0, 0, 0};
          if (!plans[r].valid) total.fill(std::numeric_limits<double>::quiet_NaN());
          for (int64_t task = r * each; task < (r + 1) * each; ++task) {
            const auto& [y, x] = parts[task];
            total[0] += x.lo - x.width, total[1] += y.lo - y.width, total[2] += x.hi + x.width,
                total[3] += y.hi + y.width;
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
  const int64_t count = out.size(0), channels = out.size(1), height = out.size(2), width = out.size(3);
  const int64_t m = is_interleaved(out) ? channels : 1;
  const auto* const cotangent = data_of<const G>(grad);
  auto* const target = data_of<G>(out);
  const int64_t all = std::max<int64_t>(boxes.size(), 1);
  std::vector<std::vector<Contribution<G, A>>> parts(count);
  const auto pass = [&] {
    const int64_t groups = channels / std::max<int64_t>(m, 1), blocks = ceil_div(height, kRows);
    const int64_t grain = kGrain / (4 * width * m * kRows);
    torch::stable::parallel_for(0, count * groups * blocks, std::max<int64_t>(grain, 1), [&](int64_t from, int64_t to) {
      std::vector<A> scratch;
      for (int64_t task = from; task < to; ++task) {
        const int64_t image = task / (groups * blocks), c = task / blocks % groups * m, begin = task % blocks * kRows;
        image_rows<G, A>(parts[image], view_of(out, target, image), width, c, m, begin, std::min(begin + kRows, height),
                         scratch);
      }
    });
  };
  if (boxes.size() == 0) return pass();
  // Every row of the gradient is written once, by one thread, with all its boxes: they have to be planned together.
  boxes.each_run<A>(all, spatial(grad), {height, width}, options, false,
                    [&](int64_t, const std::vector<BoxPlan<A>>& plans) {
                      std::vector<Readers<A>> readers(plans.size());
                      parallel(static_cast<int64_t>(plans.size()), 8, [&](int64_t r) {
                        if (plans[r].valid) readers[r] = transpose(plans[r].y);
                      });
                      for (int64_t r = 0; r < boxes.size(); ++r)
                        if (plans[r].valid)
                          parts[plans[r].image].push_back({&plans[r], &readers[r], view_of(grad, cotangent, r)});
                      pass();
                    });
}

template <class T>
void nearest_typed(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                   const std::vector<double>& fills, const Tensor& out) {
  const int64_t channels = images.size(1);
  const auto* const source = data_of<const T>(images);
  auto* const target = data_of<T>(out);
  std::vector<T> fill(channels);
  for (int64_t c = 0; c < channels; ++c) fill[c] = store<T>(fills[fills.size() == 1 ? 0 : c]);
  std::vector<T> invalid = fill;
  if constexpr (std::is_floating_point_v<T> || std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>)
    std::fill(invalid.begin(), invalid.end(), store<T>(std::numeric_limits<double>::quiet_NaN()));
  const Bands bands(boxes.size(), channels, size[0]);
  boxes.each_run<float>(
      kBoxes, size, spatial(images), options, false, [&](int64_t first, const std::vector<BoxPlan<float>>& plans) {
        parallel(bands.tasks(static_cast<int64_t>(plans.size())), bands.grain(2 * size[1]), [&](int64_t task) {
          const BoxPlan<float>& box = plans[bands.box(task)];
          const auto view = view_of(out, target, first + bands.box(task));
          const int64_t c = bands.group(task), begin = bands.begin(task), end = bands.end(task);
          if (box.valid)
            return nearest_rows<T, float>(box, view_of(images, source, box.image), view, c, begin, end, fill[c]);
          for (int64_t i = begin; i < end; ++i)
            for (int64_t j = 0; j < size[1]; ++j) view.at(c, i)[j * view.column] = invalid[c];
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
  const Options options = options_of(mode, antialias, padding, sigma, align_corners);
  const Boxes boxes(boxes_tensor, index, images.size(0));
  const ScalarType dtype = result_dtype(images.scalar_type(), options.mode);
  const Tensor out = allocate({boxes.size(), images.size(1), size[0], size[1], 4}, dtype, images, false);
  if (images.size(1) > 0)
    dispatch(images.scalar_type(), [&]<class T>() { jacobian_typed<T>(images, boxes, size, options, fill, out); });
  return out;
}

Tensor crop_grad_boxes(const Tensor& grad, const Tensor& images, const Tensor& boxes_tensor,
                       const OptionalTensor& index, const std::string& mode, bool antialias, const std::string& padding,
                       const std::vector<double>& fill, double sigma, bool align_corners) {
  check_images(images, spatial(grad));
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

// The level that the kernels run at, not what the processor could do: without clones it is "default" everywhere.
std::string simd_level() {
#if DIFFCROP_HAS_CLONES
  if (__builtin_cpu_supports("x86-64-v4")) return "avx512";
  if (__builtin_cpu_supports("x86-64-v3")) return "avx2";
#endif
  return "default";
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffcrop, CPU, library) {
  library.impl("crop", TORCH_BOX(&crop));
  library.impl("crop_jacobian", TORCH_BOX(&crop_jacobian));
  library.impl("crop_grad_boxes", TORCH_BOX(&crop_grad_boxes));
  library.impl("crop_grad_images", TORCH_BOX(&crop_grad_images));
}

// An op without tensor arguments has no backend to be dispatched by; this key also serves the case of none.
STABLE_TORCH_LIBRARY_IMPL(diffcrop, CompositeExplicitAutograd, library) {
  library.impl("simd_level", TORCH_BOX(&simd_level));
}
