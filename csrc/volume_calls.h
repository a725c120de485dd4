// Calls that crop volumes: tensors (N, channels, planes, rows, columns), checked.
#pragma once

#include "operators.h"

namespace diffcrop {

void crop_volumes(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                  const std::vector<double>& fill, const Tensor& out);
void jacobian_volumes(const Tensor& images, const Boxes& boxes, const Sizes& size, const Options& options,
                      const std::vector<double>& fill, const Tensor& out);
void grad_boxes_of_volumes(const Tensor& grad, const Tensor& images, const Boxes& boxes, const Options& options,
                           const std::vector<double>& fill, const Tensor& out);
void grad_volumes(const Tensor& grad, const Boxes& boxes, const Options& options, const Tensor& out);

}  // namespace diffcrop
