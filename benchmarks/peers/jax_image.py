"""jax's `scale_and_translate`, the one peer that antialiases and has a box gradient. In a process of its own."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Case
from benchmarks.problem import Outcome, Prepared, Problem, wants

from .base import Meaning, Peer, Tolerance

_METHODS = {"bilinear": "linear", "bicubic": "cubic", "lanczos3": "lanczos3"}


def _prepare(problem: Problem, pass_: str) -> Prepared:
    """Jitted, value and gradients in one function; compiled at its first call, which nobody times."""
    jax: Any = importlib.import_module("jax")
    scale_and_translate = importlib.import_module("jax.image").scale_and_translate
    jnp, case = jax.numpy, problem.case
    shape = (case.images[1], *case.size)
    size = np.array(case.size, np.float32)

    def one(image: Any, box: Any) -> Any:
        x0, y0, x1, y1 = box
        scale = size / jnp.stack([y1 - y0, x1 - x0])
        return scale_and_translate(
            image, shape, (1, 2), scale, -scale * jnp.stack([y0, x0]), _METHODS[case.mode], antialias=case.antialias
        )

    def crop(images: Any, boxes: Any) -> Any:
        return jax.vmap(one, in_axes=(None if case.boxes > 1 else 0, 0))(images, boxes)

    by_images, by_boxes = wants(pass_)
    images, boxes, cotangent = (jax.device_put(t.numpy()) for t in (problem.images, problem.boxes, problem.cotangent))
    if case.boxes > 1:
        (images,) = images

    def function(images: Any, boxes: Any, cotangent: Any) -> Any:
        if pass_ == "forward":
            return (crop(images, boxes),)
        if by_images and by_boxes:
            value, pull = jax.vjp(crop, images, boxes)
        elif by_images:
            value, pull = jax.vjp(lambda i: crop(i, boxes), images)
        else:
            value, pull = jax.vjp(lambda b: crop(images, b), boxes)
        return (value, *pull(cotangent))

    jitted = jax.jit(function)

    def call() -> Any:
        return jax.block_until_ready(jitted(images, boxes, cotangent))

    def outcome(result: Any) -> Outcome:
        value, *gradients = (torch.from_numpy(np.array(array)) for array in result)
        return Outcome(
            value=value.reshape(len(problem.owner), *shape),
            images=gradients[0].reshape(case.images) if by_images else None,
            boxes=gradients[-1].reshape(-1, 4) if by_boxes else None,
        )

    return Prepared(call, outcome)


def _meaning(problem: Problem) -> Meaning:
    return Meaning(problem.boxes.double(), problem.options() | {"padding_mode": "renormalize"})


def _refuses(case: Case) -> str | None:
    if case.dtype != "float32" or case.mode not in _METHODS:
        return "here in float32, with the filters that both have"
    if case.padding_mode == "border":
        return "has no border padding"
    return None


JAX = Peer(
    "jax",
    "jax's `scale_and_translate`, jitted, value and gradients in one function",
    _prepare,
    _meaning,
    Tolerance(value=1e-3, images=1e-3, boxes=1e-3, reason="positions in float32, from a scale and a translation"),
    needs=("jax",),
    refuses=_refuses,
    pool="jax",
    alone=True,
)
