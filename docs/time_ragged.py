"""The table of docs/ragged.md: lists of images of different sizes beside padding them and beside a loop.

python docs/time_ragged.py
"""

from __future__ import annotations

import time

import torch
from torch.nn.functional import affine_grid, grid_sample

import diffcrop

ROUNDS = 7


def scene():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(200, 501, (64, 2), generator=generator).tolist()
    images = [torch.rand(3, h, w, generator=generator) for h, w in sizes]
    extent = torch.tensor([(w, h) for h, w in sizes])
    lo = torch.rand(64, 2, generator=generator) * extent * 0.4
    return images, torch.cat([lo, lo + extent * 0.5], 1)


def ways(images, boxes, size):
    """Name -> what makes the crops."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))

    def padded():
        batch = torch.zeros(len(images), 3, height, width)
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        return diffcrop.crop(batch, boxes, size)

    def recipe():
        crops = []
        for image, box in zip(images, boxes, strict=True):
            theta = diffcrop.boxes_to_theta(box[None], image.shape[1:])
            grid = affine_grid(theta, [1, 3, size, size], align_corners=False)
            crops.append(grid_sample(image[None], grid, padding_mode="border", align_corners=False))
        return torch.cat(crops)

    return {
        "list": lambda: diffcrop.crop(images, boxes, size),
        "the crops alone": lambda: [diffcrop.crop(i, b, size) for i, b in zip(images, boxes, strict=True)],
        "padding": padded,
        "recipe": recipe,
    }


def least(calls):
    """The least time of each in milliseconds, one after another in every round."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    torch.set_num_threads(1)
    images, boxes = scene()
    for size in (224, 32):
        print(size, {name: round(ms, 1) for name, ms in least(ways(images, boxes, size)).items()})
    generator = torch.Generator().manual_seed(1)
    sides = torch.randint(40, 91, (64, 2), generator=generator).tolist()
    small = [torch.rand(3, h, w, generator=generator) for h, w in sides]
    box, batch = torch.tensor([3.0, 4.0, 35.0, 36.0]), torch.rand(64, 3, 65, 65, generator=generator)
    found = least({"list": lambda: diffcrop.crop(small, box, 16), "batch": lambda: diffcrop.crop(batch, box, 16)})
    print("small", {name: round(ms, 2) for name, ms in found.items()})
