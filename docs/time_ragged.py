"""The tables of docs/ragged.md: lists of images of different sizes beside padding them and beside loops.

python docs/time_ragged.py
"""

from __future__ import annotations

import time

import torch
from torch.nn.functional import affine_grid, grid_sample

import diffcrop

ROUNDS = 15


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

    def calls():
        return torch.cat([diffcrop.crop(i, b[None], size) for i, b in zip(images, boxes, strict=True)])

    return {
        "list": lambda: diffcrop.crop(images, boxes, size),
        "a call for each": calls,
        "padding": padded,
        "recipe": recipe,
    }


def with_gradients(images, boxes, size):
    """The crop and both of its gradients, of a list and by a call for each image."""
    images, boxes = [i.clone().requires_grad_() for i in images], boxes.clone().requires_grad_()
    cotangent = torch.ones(len(images), 3, size, size)
    forward = ways(images, boxes, size)
    inputs = [boxes, *images]
    return {
        f"{name}, gradients": lambda name=name: torch.autograd.grad(forward[name](), inputs, cotangent)
        for name in ("list", "a call for each")
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


def small_scene():
    """Images that are about as large as a call is long, and a batch of their mean size."""
    generator = torch.Generator().manual_seed(1)
    sides = torch.randint(40, 91, (64, 2), generator=generator).tolist()
    images = [torch.rand(3, h, w, generator=generator) for h, w in sides]
    boxes = torch.tensor([3.0, 4.0, 35.0, 36.0]).expand(64, 4).contiguous()
    return images, boxes, torch.rand(64, 3, 65, 65, generator=generator)


if __name__ == "__main__":
    images, boxes = scene()
    small, near, batch = small_scene()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"{threads} threads")
        for size in (224, 32):
            calls = ways(images, boxes, size) | with_gradients(images, boxes, size)
            print(size, {name: round(ms, 1) for name, ms in least(calls).items()})
        calls = {name: call for name, call in ways(small, near, 16).items() if name in ("list", "a call for each")}
        calls |= with_gradients(small, near, 16) | {"one batch": lambda: diffcrop.crop(batch, near, 16)}
        print("small", {name: round(ms, 2) for name, ms in least(calls).items()})
