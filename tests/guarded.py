"""Crops of tensors that begin or end where a page of memory does that nobody may touch; run by test_bounds.py.

Ends with an error where a result differs from that of a copy, and by a signal where something else was read or written.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap

import torch

import diffcrop

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(tensor: torch.Tensor, side: str) -> torch.Tensor:
    """A copy whose storage begins ("before") or ends ("after") at such a page."""
    length = tensor.numel() * tensor.element_size()
    room = math.ceil(length / mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + 2 * mmap.PAGESIZE)  # never unmapped: it lives as long as the process
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + mmap.PAGESIZE + room):
        if _LIBC.mprotect(page, mmap.PAGESIZE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = mmap.PAGESIZE + (0 if side == "before" else room - length)
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    copy = torch.as_strided(flat, tensor.shape, tensor.stride())
    return copy.copy_(tensor)


def boxes_of(height: int, width: int, reduction: float, size: tuple[int, int]) -> torch.Tensor:
    """In every corner, across every edge, beside the image, over all of it, mirrored."""
    h, w = size[0] * reduction, size[1] * reduction
    rows = []
    for y, x in itertools.product((-h / 2, 0.2, height - h - 0.2, height - h / 2), (-w / 2, 0.2, width - w - 0.2)):
        rows += [(x, y, x + w, y + h), (x + w, y, x, y + h)]
    rows += [(-3.0 * w, 0.0, -2.0 * w, h), (0.0, height + h, w, height + 2 * h), (0.0, 0.0, width, height)]
    rows += [(width - w, height - h, width, height)]
    return torch.tensor([rows])


def check(images: torch.Tensor, boxes: torch.Tensor, size: tuple[int, ...], side: str, **options) -> None:
    found = []
    for place in (lambda tensor: tensor, lambda tensor: guarded(tensor, side)):
        sources = [place(images), boxes.clone()]
        for source in sources:
            source.requires_grad_(source.is_floating_point())
        value = diffcrop.crop(*sources, size, impl="cpu", **options)
        cotangent = torch.linspace(-1, 1, value.numel()).view(value.shape).to(value.dtype)
        wanted = [source for source in sources if source.requires_grad]
        gradients = torch.autograd.grad(value, wanted, place(cotangent))
        with torch.no_grad():
            if len(size) == 2:  # of others they are the reference's
                more = diffcrop.normal_equations(*sources, place(cotangent.contiguous()), impl="cpu", **options)
            else:
                more = diffcrop.crop_with_jacobian(*sources, size, impl="cpu", **options)
        found.append((value, *gradients, *more))
    for mine, copied in zip(*found, strict=True):
        assert torch.equal(mine, copied), (images.dtype, images.shape, size, options)


def check_list(images: list[torch.Tensor], size: tuple[int, int], side: str, **options) -> None:
    """The same of a list, every image of which has a page of its own that nobody may touch."""
    boxes = [boxes_of(*image.shape[1:], 1.3, size)[0] for image in images]
    found = []
    for place in (lambda tensor: tensor, lambda tensor: guarded(tensor, side)):
        sources = [*map(place, images), *(mine.clone() for mine in boxes)]
        for source in sources:
            source.requires_grad_(source.is_floating_point())
        value = diffcrop.crop(sources[: len(images)], sources[len(images) :], size, impl="cpu", **options)
        cotangent = torch.linspace(-1, 1, value.numel()).view(value.shape).to(value.dtype)
        wanted = [source for source in sources if source.requires_grad]
        found.append((value, *torch.autograd.grad(value, wanted, place(cotangent))))
    for mine, copied in zip(*found, strict=True):
        assert torch.equal(mine, copied), (images[0].dtype, size, options)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kinds = [("bilinear", False), ("bilinear", True), ("bicubic", False)]
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.float64)
    for dtype, side, (mode, antialias), reduction in itertools.product(
        dtypes, ("before", "after"), kinds, (0.3, 1.0, 1.3, 2.2, 5.7)
    ):
        for layout, shape in (
            (torch.contiguous_format, (1, 2, 41, 83)),
            (torch.channels_last, (1, 3, 37, 61)),
            (torch.channels_last, (1, 17, 19, 23)),
        ):
            images = (torch.rand(shape) * 200).to(dtype).contiguous(memory_format=layout)
            size = (5, 19)
            boxes = boxes_of(*shape[2:], reduction, size)
            check(images, boxes, size, side, mode=mode, antialias=antialias, padding_mode="zeros")
        if side == "before" and reduction == 1.0:
            continue
        for channels, spatial, size, layout in (
            (3, (9, 21, 23), (5, 4, 19), torch.contiguous_format),
            (3, (9, 11, 61), (4, 5, 19), torch.channels_last_3d),
            (3, (83,), (19,), None),
            (26, (83,), (19,), None),
        ):
            images = (torch.rand(1, channels, *spatial) * 200).to(dtype)
            images = images if layout is None else images.contiguous(memory_format=layout)
            extent = torch.tensor([n * reduction for n in reversed(size)])
            far = torch.tensor([*reversed(spatial)]) - extent
            corners = (-extent / 2, 0 * extent + 0.2, far - 0.2, far + extent / 2, far)
            boxes = torch.stack([torch.cat([corner, corner + extent]) for corner in corners])[None]
            check(images, boxes, size, side, mode=mode, antialias=antialias, padding_mode="zeros")
    shapes = ((2, 41, 83), (2, 7, 5), (2, 19, 200), (2, 1, 1))
    for dtype, side, (mode, antialias) in itertools.product(dtypes, ("before", "after"), kinds):
        images = [(torch.rand(shape) * 200).to(dtype) for shape in shapes]
        last = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in images]
        for given in (images, last, [images[0], *last[1:]]):
            check_list(given, (5, 19), side, mode=mode, antialias=antialias, padding_mode="zeros")
    # Images that are read ahead, with boxes that read nothing.
    for side in ("before", "after"):
        images = torch.rand(2, 5, 1100, 1000)
        boxes = torch.tensor([[[0.0, 0.0, 1000.0, 1100.0]], [[-50.0, 0.0, -10.0, 30.0]]])
        check(images, boxes, (550, 500), side, antialias=False, padding_mode="zeros")
        check(images, boxes.flip(0), (550, 500), side, padding_mode="zeros")


if __name__ == "__main__":
    main()
