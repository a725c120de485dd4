// Calls that crop signals: tensors (N, channels, columns), checked.
#pragma once

#include "operators.h"

namespace diffcrop {

void crop_signals(const Tensor& signals, const Boxes& boxes, const Sizes& size, const Options& options,
                  const std::vector<double>& fill, const Tensor& out);
void grad_boxes_of_signals(const Tensor& grad, const Tensor& signals, const Boxes& boxes, const Options& options,
                           const std::vector<double>& fill, const Tensor& out);
void grad_signals(const Tensor& grad, const Boxes& boxes, const Options& options, const Tensor& out);

}  // namespace diffcrop
