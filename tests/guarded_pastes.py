"""As guarded.py, for pastes: tensors that begin or end where a page of memory does that nobody may touch."""

from __future__ import annotations

import itertools

import torch

from guarded import boxes_of, guarded

MODES = (("bilinear", True), ("bilinear", False), ("bicubic", True), ("area", True), ("nearest", True))


def results(place, patches, boxes, index, canvas, weights, rules, options):
    """Of the operators themselves, as their callers make copies: values, and where there are any, derivatives."""
    matte = rules[0]
    shape = [*canvas.shape] if canvas is not None else [2, patches.shape[1] - matte, 31, 47]
    tensors = [None if t is None else place(t) for t in (patches, boxes, index, canvas)]
    found = list(torch.ops.diffcrop.paste(*tensors, shape, True, False, *rules, *options))
    if patches.is_floating_point() and options[0] != "nearest":
        grads = [place(g) for g in weights]
        found += torch.ops.diffcrop.paste_backward(*grads, *tensors, shape, [True] * 3, *rules, *options)
    return found


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtypes = (torch.float32, torch.float64, torch.uint8)
    for side, (mode, antialias), dtype, matte, over in itertools.product(
        ("before", "after"), MODES, dtypes, (False, True), (True, False)
    ):
        if dtype == torch.uint8 and (mode != "nearest" or matte or not over):
            continue
        for patch, reduction, last in (
            ((5, 7), 0.3, False),
            ((9, 17), 1.7, False),
            ((16, 1), 1.0, True),
            ((33, 16), 0.6, True),
        ):
            height, width = 31, 47
            # Boxes of that much of a patch's side to its pixel, in every corner and across every edge.
            boxes = boxes_of(height, width, 1 / reduction, patch)[0].to(torch.float64 if last else torch.float32)
            boxes = torch.cat([boxes, torch.tensor([[torch.nan, 0, 5, 5], [4.0, 4, 4, 9]]).to(boxes)])
            count, channels = len(boxes), 3
            layout = torch.channels_last if last else torch.contiguous_format

            def numbers(*shape: int, layout=layout, dtype=dtype) -> torch.Tensor:
                return (torch.rand(shape) * 200).to(dtype).contiguous(memory_format=layout)

            patches, canvas = numbers(count, channels + matte, *patch), numbers(2, channels, height, width)
            index = torch.arange(count) % 3  # a third of them go to no canvas
            weights = numbers(2, channels, height, width), numbers(2, 1, height, width)
            for onto in (canvas, None):
                given = patches, boxes, index, onto, weights, (matte, over), (mode, antialias, 0.5)
                plain = results(lambda t: t, *given)
                kept = results(lambda t, side=side: guarded(t, side), *given)
                for mine, copied in zip(plain, kept, strict=True):
                    if not torch.equal(mine.nan_to_num(7.0), copied.nan_to_num(7.0)):
                        raise SystemExit(f"{given[5:]}, {dtype}, {patch}: what lies beside a tensor is in the result")


if __name__ == "__main__":
    main()
