// The operators on pastes: what they are given is checked, results are made, types chosen.

#include "paste_calls.h"

namespace {

using namespace diffcrop;

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
        move_patches<uint8_t>(patches, boxes, canvas, out, masks, options);
        break;
      case 2:
        move_patches<uint16_t>(patches, boxes, canvas, out, masks, options);
        break;
      case 4:
        move_patches<uint32_t>(patches, boxes, canvas, out, masks, options);
        break;
      default:
        move_patches<uint64_t>(patches, boxes, canvas, out, masks, options);
    }
  } else {
    dispatch_sums(dtype, [&]<class A>() { paste_patches<A>(patches, boxes, canvas, out, masks, rules, options); });
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
    const PasteGradients by{wanted[0] ? &by_patches : nullptr, wanted[1] ? &by_boxes : nullptr,
                            wanted[2] ? &by_canvas : nullptr};
    paste_gradients<A>(grad, grad_mask, patches, boxes, canvas, shape, rules, options, by);
  });
  return {by_patches, by_boxes, by_canvas};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffcrop, CPU, library) {
  library.impl("paste", TORCH_BOX(&paste));
  library.impl("paste_backward", TORCH_BOX(&paste_backward));
}
