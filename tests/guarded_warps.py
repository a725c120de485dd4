"""As guarded.py, for warps: tensors that begin or end where a page of memory does that nobody may touch."""

from __future__ import annotations

import itertools

import torch

from diffcrop import _ops_warp
from diffcrop._options import WarpOptions
from guarded import guarded
from warps import boxed, some


def main() -> None:
    for size, layout in itertools.product(((6, 37), (9, 48)), (torch.contiguous_format, torch.channels_last)):
        compare(size, layout)


def compare(size: tuple[int, int], layout: torch.memory_format) -> None:
    image = (21, 45)
    # Two whose first or last sample reads the first or last pixel, and all of which are inside.
    h, w = 0.8 * size[0], 0.8 * size[1]
    corners = [boxed((0.2, 0.2, 0.2 + w, 0.2 + h), size), boxed((44.8 - w, 20.8 - h, 44.8, 20.8), size)]
    matrices = torch.cat([some(size, image), some(size, (60, 20)), torch.stack(corners)])
    index = torch.zeros(len(matrices), dtype=torch.int64)
    modes = (("bilinear", None), ("bilinear", 512), ("bicubic", None), ("lanczos3", None))
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)
    for side, (mode, reduction), dtype, channels in itertools.product(("before", "after"), modes, dtypes, (1, 3, 17)):
        images = (torch.rand(1, channels, *image) * 200).to(dtype).contiguous(memory_format=layout)
        reductions = None if reduction is None else torch.full((len(matrices), 2), reduction)
        found = []
        for place in (lambda tensor: tensor, lambda tensor, side=side: guarded(tensor, side)):
            leaves = [place(images).requires_grad_(images.is_floating_point()), place(matrices).requires_grad_()]
            opts = WarpOptions(mode, True, "zeros")
            value = _ops_warp.sampled(*leaves, index, reductions, size, opts, "cpu")
            cotangent = torch.linspace(-1, 1, value.numel()).view(value.shape).to(value.dtype)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found.append((value.detach(), *torch.autograd.grad(value, wanted, place(cotangent))))
        for mine, copied in zip(*found, strict=True):
            if not torch.equal(mine, copied):
                raise SystemExit(f"{mode}, {dtype}, {side}: what lies beside a tensor is in the result")


if __name__ == "__main__":
    main()
