"""Functions of other libraries with their own names, signatures, conventions and defaults, made of `diffcrop`'s.

Each module stands for a library, which need not be installed: only torch is needed, and tensors are torch's. What one
of these functions gives equals what the peer gives, and is differentiable besides: exactly, to every order, by the box
as well as by the pixels. Each module says what else differs.

>>> import torch
>>> from diffcrop.compat import tensorflow as tf_image
>>> box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], requires_grad=True)  # y1, x1, y2, x2
>>> tf_image.crop_and_resize(torch.rand(1, 6, 8, 3), box, torch.tensor([0]), (3, 4)).shape
torch.Size([1, 3, 4, 3])
"""

from . import jax, kornia, tensorflow, torchvision

__all__ = ["jax", "kornia", "tensorflow", "torchvision"]
