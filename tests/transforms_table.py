"""Writes docs/transforms.md: what every transform gives with every implementation, measured against plain autograd.

`python tests/transforms_table.py` measures it, in minutes, and `test_transforms_table` compares the page with that; the
column of triton with `TRITON_INTERPRET=1 python tests/transforms_table.py triton`, in some eight minutes. An
entry is "yes" if all numbers agree with plain autograd of plain PyTorch, else it is the error that is raised; numbers
that are wrong, zeros above all, end the run. What is compiled runs in a process of its own, which a failed compilation
may leave in disorder.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

import diffcrop
from diffcrop import _homography, crop, crop_with_jacobian
from diffcrop._impl import pasting
from diffcrop._impl import warp as warping
from diffcrop._options import Options, WarpOptions
from plain import BOX, IMPLEMENTATIONS, SIZE, SMOOTH, boxes, f64, flat, image, plain

PAGE = Path(__file__).resolve().parents[1] / "docs" / "transforms.md"
TOLERANCE = 1e-10
_SEED = torch.Generator().manual_seed(0)
PICTURE = image(_SEED)
PICTURES, BOXES = image(_SEED, 3), boxes(_SEED, 3)
GROUPS = boxes(_SEED, 3, 2)
WEIGHT = torch.rand(2, *SIZE, generator=_SEED, dtype=f64)
PUSH_IMAGE, PUSH_BOX = (
    torch.rand(PICTURE.shape, generator=_SEED, dtype=f64),
    torch.tensor([0.3, -1, 0.7, 0.4], dtype=f64),
)
BOTH = (0, 1)


# --- what is right: `autograd.grad` of one number after another -------------------------------------------------------


def rows(function, arguments, argnums=BOTH):
    """The jacobian by plain `autograd.grad`."""
    arguments = [a.detach().clone().requires_grad_() for a in arguments]
    out = function(*arguments)
    result = []
    for k in argnums:
        each = [
            torch.autograd.grad(o, arguments[k], retain_graph=True, materialize_grads=True)[0] for o in out.flatten()
        ]
        result.append(torch.stack(each).reshape(*out.shape, *arguments[k].shape))
    return tuple(result)


def slope(function, arguments, argnums=BOTH):
    """As a function that can be differentiated again: the gradient of a number, flat."""

    def sloped(*arguments):
        value = function(*arguments)
        return flat(torch.autograd.grad(value, [arguments[k] for k in argnums], create_graph=True))

    return rows(sloped, arguments, argnums)


def weighed(function):
    return lambda i, b: (WEIGHT * function(i, b)).square().sum()


def pushed(jacobians):
    return sum((j * t).flatten(3).sum(-1) for j, t in zip(jacobians, (PUSH_IMAGE, PUSH_BOX), strict=True))


JACOBIANS = functools.cache(lambda: rows(plain, (PICTURE, BOX)))
GRADIENTS = functools.cache(lambda: rows(weighed(plain), (PICTURE, BOX)))


@functools.cache
def hessians():
    return slope(weighed(plain), (PICTURE, BOX))


def hessian_by_box():
    return slope(lambda b: weighed(plain)(PICTURE, b), (BOX,), (0,))[0]


def each(function, *stacks):
    return torch.stack([flat(function(*one)) for one in zip(*stacks, strict=True)])


def gradient_of(i, b):
    return rows(weighed(plain), (i, b))


# --- what is measured: (crop of an implementation) -> (found, expected) -----------------------------------------------


def cases(crops, impl):
    """Name -> (function without arguments, function that gives what is right). ``crops(i, b)``."""
    total = weighed(crops)

    def fixed(function):
        return lambda b: function(PICTURE, b)

    def nest(tree):  # a hessian by both, as columns by the image and by the box
        (ii, ib), (bi, bb) = tree
        n = PICTURE.numel()
        square = torch.cat([torch.cat([ii.reshape(n, n), ib.reshape(n, 4)], 1), torch.cat([bi.reshape(4, n), bb], 1)])
        return square[:, :n], square[:, n:]

    def right_hessian():
        n = PICTURE.numel()
        by_image, by_box = hessians()
        return by_image.reshape(-1, n), by_box

    def dual():
        with forward_ad.dual_level():
            duals = forward_ad.make_dual(PICTURE, PUSH_IMAGE), forward_ad.make_dual(BOX, PUSH_BOX)
            return forward_ad.unpack_dual(crops(*duals)).tangent.clone()

    def batched_cotangents():
        i, b = PICTURE.clone().requires_grad_(), BOX.clone().requires_grad_()
        value = crops(i, b)
        eye = torch.eye(value.numel(), dtype=f64).reshape(-1, *value.shape)
        by = torch.autograd.grad(value, (i, b), eye, is_grads_batched=True)
        return tuple(g.reshape(*value.shape, *t.shape) for g, t in zip(by, (i, b), strict=True))

    def batched_second():
        b = BOX.clone().requires_grad_()
        (first,) = torch.autograd.grad(total(PICTURE, b), b, create_graph=True)
        return torch.autograd.grad(first, b, torch.eye(4, dtype=f64), is_grads_batched=True)[0]

    def samples():
        module = diffcrop.nn.LearnableBox((4, 5), init=[0.4, 0.7, 3.1, 3.3], dtype=f64)
        parameters = dict(module.named_parameters())

        def one(parameters, picture):
            return total(picture, functional_call(module, parameters, ()))

        found = vmap(grad(one), (None, 0))(parameters, PICTURES)["raw"]
        right = []
        for picture in PICTURES:
            raw = torch.zeros(4, dtype=f64, requires_grad=True)
            box = functional_call(module, {"raw": raw}, ())
            right.append(torch.autograd.grad(weighed(plain)(picture, box), raw)[0])
        return found, torch.stack(right)

    def indexed(i, b, r):
        return crop(i, b, SIZE, batch_index=r, impl=impl, **SMOOTH)

    index = torch.tensor([[1, 0], [2, 2], [0, 1]])

    def jacobian(b):
        return crop_with_jacobian(PICTURE, b, SIZE, impl=impl, **SMOOTH).jacobian

    def covered(b):
        return diffcrop.coverage(b, SIZE, (4, 5), mode="bicubic", impl=impl)

    def plain_covered(b):
        return plain(torch.full_like(PICTURE, 1.25), b)[0] - 0.25  # the constant outside is 0.25

    def aligned(b):
        return diffcrop.roi_align(PICTURE[None], [b.reshape(-1, 4)], SIZE, 1.0, 2, True, impl=impl)

    def plain_aligned(b):
        return bins(PICTURE, b)[None]

    def nearest(i):
        return crop(i, BOX, SIZE, mode="nearest", impl=impl)

    def turned(i, b):
        return diffcrop.crop_rotated(i, b, SIZE, impl=impl, **FLAT)

    def cornered(i, q):
        return diffcrop.crop_quad(i, q, SIZE, impl=impl, **FLAT)

    def warped(m):
        return diffcrop.warp(PICTURE, m, SIZE, impl=impl, **FLAT)

    def warp_slopes(m):
        return diffcrop.warp_with_jacobian(PICTURE, m, SIZE, impl=impl, **FLAT).jacobian

    def features(i):
        return diffcrop.roi_align(i[None], [BOX[None]], SIZE, 1.0, 2, True, impl=impl)

    def pasted(*given):
        return torch.cat(
            diffcrop.paste(
                given[0], given[2], canvas=given[3], alpha=given[1], mode="bicubic", return_mask=True, impl=impl
            )
        )

    def batched_pastes():
        leaves = [t.clone().requires_grad_() for t in PASTED]
        value = pasted(*leaves)
        eye = torch.eye(value.numel(), dtype=f64).reshape(-1, *value.shape)
        by = torch.autograd.grad(value, leaves, eye, is_grads_batched=True)
        return tuple(g.reshape(*value.shape, *t.shape) for g, t in zip(by, leaves, strict=True))

    old = torch.autograd.functional
    by_box = fixed(total)
    return {
        "grad": (lambda: grad(total, BOTH)(PICTURE, BOX), GRADIENTS),
        "vjp": (
            lambda: vjp(crops, PICTURE, BOX)[1](WEIGHT),
            lambda: [torch.einsum("chw,chw...->...", WEIGHT, j) for j in JACOBIANS()],
        ),
        "jvp": (lambda: jvp(crops, (PICTURE, BOX), (PUSH_IMAGE, PUSH_BOX))[1], lambda: pushed(JACOBIANS())),
        "jacrev": (lambda: jacrev(crops, BOTH)(PICTURE, BOX), JACOBIANS),
        "jacrev(chunk_size=5)": (lambda: jacrev(crops, BOTH, chunk_size=5)(PICTURE, BOX), JACOBIANS),
        "jacfwd": (lambda: jacfwd(crops, BOTH)(PICTURE, BOX), JACOBIANS),
        "linearize": (lambda: linearize(crops, PICTURE, BOX)[1](PUSH_IMAGE, PUSH_BOX), lambda: pushed(JACOBIANS())),
        "functionalize": (lambda: functionalize(crops)(PICTURE, BOX), lambda: plain(PICTURE, BOX)),
        "functionalize(grad)": (lambda: functionalize(grad(total, BOTH))(PICTURE, BOX), GRADIENTS),
        "hessian": (lambda: nest(hessian(total, BOTH)(PICTURE, BOX)), right_hessian),
        "jacrev(jacrev)": (lambda: nest(jacrev(jacrev(total, BOTH), BOTH)(PICTURE, BOX)), right_hessian),
        "jacfwd(jacfwd)": (lambda: nest(jacfwd(jacfwd(total, BOTH), BOTH)(PICTURE, BOX)), right_hessian),
        "grad(grad)": (
            lambda: grad(lambda b: PUSH_BOX @ grad(by_box)(b))(BOX), lambda: hessian_by_box() @ PUSH_BOX
        ),
        "jvp(grad)": (lambda: jvp(grad(by_box), (BOX,), (PUSH_BOX,))[1], lambda: hessian_by_box() @ PUSH_BOX),
        "grad(jvp)": (
            lambda: grad(lambda b: jvp(by_box, (b,), (PUSH_BOX,))[1])(BOX), lambda: hessian_by_box() @ PUSH_BOX
        ),
        "jvp(jvp)": (
            lambda: jvp(lambda b: jvp(by_box, (b,), (PUSH_BOX,))[1], (BOX,), (PUSH_BOX,))[1],
            lambda: PUSH_BOX @ hessian_by_box() @ PUSH_BOX,
        ),
        "grad(hessian)": (
            lambda: grad(lambda b: PUSH_BOX @ hessian(by_box)(b) @ PUSH_BOX)(BOX),
            lambda: third(fixed(weighed(plain))),
        ),
        "vmap over images": (
            lambda: vmap(crops, (0, None))(PICTURES, BOX), lambda: each(lambda i: plain(i, BOX), PICTURES)
        ),
        "vmap over boxes": (lambda: vmap(crops, (None, 0))(PICTURE, BOXES), lambda: each(fixed(plain), BOXES)),
        "vmap over both": (lambda: vmap(crops)(PICTURES, BOXES), lambda: each(plain, PICTURES, BOXES)),
        "vmap, in_dims=(2, 1), out_dims=1": (
            lambda: vmap(crops, (2, 1), 1)(PICTURES.movedim(0, 2), BOXES.T).movedim(1, 0),
            lambda: each(plain, PICTURES, BOXES),
        ),
        "vmap over one": (lambda: vmap(crops)(PICTURES[:1], BOXES[:1]), lambda: each(plain, PICTURES[:1], BOXES[:1])),
        "vmap(chunk_size=2)": (
            lambda: vmap(crops, chunk_size=2)(PICTURES, BOXES), lambda: each(plain, PICTURES, BOXES)
        ),
        "vmap over none": (lambda: vmap(crops)(PICTURES[:0], BOXES[:0]), lambda: torch.zeros(0, dtype=f64)),
        "vmap of groups": (
            lambda: vmap(crops)(PICTURES, GROUPS), lambda: each(lambda i, g: each(fixed_to(i), g), PICTURES, GROUPS)
        ),
        "vmap of batch_index": (
            lambda: vmap(indexed, (None, 0, 0))(PICTURES, GROUPS, index),
            lambda: each(lambda r, g: each(lambda one, b: plain(PICTURES[one], b), r, g), index, GROUPS),
        ),
        "vmap(vmap)": (
            lambda: vmap(vmap(crops, (None, 0)), (0, None))(PICTURES, BOXES),
            lambda: each(lambda i: each(fixed_to(i), BOXES), PICTURES),
        ),
        "vmap(grad)": (
            lambda: torch.cat([g.flatten(1) for g in vmap(grad(total, BOTH))(PICTURES, BOXES)], 1),
            lambda: each(gradient_of, PICTURES, BOXES),
        ),
        "vmap(grad), of parameters": (lambda: samples()[0], lambda: samples()[1]),
        "vmap(jvp)": (
            lambda: vmap(lambda t: jvp(fixed(crops), (BOX,), (t,))[1])(BOXES),
            lambda: each(lambda t: (JACOBIANS()[1] * t).sum(-1), BOXES),
        ),
        "vmap(hessian)": (
            lambda: vmap(hessian(by_box))(BOXES),
            lambda: each(lambda b: slope(fixed(weighed(plain)), (b,), (0,)), BOXES),
        ),
        "grad(vmap)": (
            lambda: grad(lambda b: vmap(total)(PICTURES, b).sum())(BOXES),
            lambda: each(lambda i, b: gradient_of(i, b)[1], PICTURES, BOXES),
        ),
        "autograd.functional.jacobian": (lambda: old.jacobian(crops, (PICTURE, BOX)), JACOBIANS),
        "autograd.functional.jacobian(vectorize=True)": (
            lambda: old.jacobian(crops, (PICTURE, BOX), vectorize=True), JACOBIANS
        ),
        "... and strategy=\"forward-mode\"": (
            lambda: old.jacobian(crops, (PICTURE, BOX), vectorize=True, strategy="forward-mode"), JACOBIANS
        ),
        "autograd.functional.hessian": (lambda: nest(old.hessian(total, (PICTURE, BOX))), right_hessian),
        "autograd.functional.hessian(vectorize=True)": (
            lambda: nest(old.hessian(total, (PICTURE, BOX), vectorize=True)), right_hessian
        ),
        "autograd.functional.hvp": (lambda: old.hvp(by_box, BOX, PUSH_BOX)[1], lambda: hessian_by_box() @ PUSH_BOX),
        "autograd.grad(is_grads_batched=True)": (batched_cotangents, JACOBIANS),
        "... of a gradient": (batched_second, hessian_by_box),
        "forward_ad.make_dual": (dual, lambda: pushed(JACOBIANS())),
        "crop_with_jacobian": (lambda: jacobian(BOX), lambda: JACOBIANS()[1]),
        "jacrev(crop_with_jacobian)": (lambda: jacrev(jacobian)(BOX), second_of_crop),
        "jacfwd(crop_with_jacobian)": (lambda: jacfwd(jacobian)(BOX), second_of_crop),
        "vmap(crop_with_jacobian)": (
            lambda: vmap(jacobian)(BOXES), lambda: each(lambda b: rows(fixed(plain), (b,), (0,)), BOXES)
        ),
        "jacrev(coverage)": (lambda: jacrev(covered)(BOX), lambda: rows(plain_covered, (BOX,), (0,))),
        "jacfwd(coverage)": (lambda: jacfwd(covered)(BOX), lambda: rows(plain_covered, (BOX,), (0,))),
        "jacrev(roi_align)": (lambda: jacrev(aligned)(BOX), lambda: rows(plain_aligned, (BOX,), (0,))),
        "jacrev(roi_align), by images": (
            lambda: jacrev(features)(PICTURE), lambda: rows(lambda i: bins(i, BOX)[None], (PICTURE,), (0,))
        ),
        "jacfwd(roi_align)": (lambda: jacfwd(aligned)(BOX), lambda: rows(plain_aligned, (BOX,), (0,))),
        "hessian(roi_align)": (
            lambda: hessian(lambda b: aligned(b).square().sum())(BOX),
            lambda: slope(lambda b: plain_aligned(b).square().sum(), (BOX,), (0,)),
        ),
        "vmap(roi_align)": (lambda: vmap(aligned)(BOXES), lambda: each(plain_aligned, BOXES)),
        "vmap(grad(roi_align))": (
            lambda: vmap(grad(lambda b: aligned(b).square().sum()))(BOXES),
            lambda: each(lambda b: rows(lambda c: plain_aligned(c).square().sum(), (b,), (0,))[0], BOXES),
        ),
        'jacrev by images, mode="nearest"': (lambda: jacrev(nearest)(PICTURE), lambda: moved(nearest)),
        'jacfwd by images, mode="nearest"': (lambda: jacfwd(nearest)(PICTURE), lambda: moved(nearest)),
        'vmap, mode="nearest"': (lambda: vmap(nearest)(PICTURES), lambda: each(nearest, PICTURES)),
        'grad by boxes, mode="nearest"': (
            lambda: grad(lambda b: crop(PICTURE, b, SIZE, mode="nearest", impl=impl).sum())(BOX), None
        ),
        'jvp by boxes, mode="nearest"': (
            lambda: jvp(lambda b: crop(PICTURE, b, SIZE, mode="nearest", impl=impl), (BOX,), (PUSH_BOX,))[1], None
        ),
        "crop_rotated: jacrev": (lambda: jacrev(turned, BOTH)(PICTURE, TURNED), TURNED_JACOBIANS),
        "crop_rotated: jacfwd": (lambda: jacfwd(turned, BOTH)(PICTURE, TURNED), TURNED_JACOBIANS),
        "crop_rotated: hessian": (
            lambda: hessian(lambda b: weighed(turned)(PICTURE, b))(TURNED),
            lambda: slope(lambda b: weighed(plain_turned)(PICTURE, b), (TURNED,), (0,)),
        ),
        "crop_rotated: vmap over both": (
            lambda: vmap(turned)(PICTURES, TURNED + BOXES[:, :1]),
            lambda: each(plain_turned, PICTURES, TURNED + BOXES[:, :1]),
        ),
        "crop_quad: vmap(grad)": (
            lambda: vmap(grad(weighed(cornered)), (None, 0))(PICTURE, QUADS),
            lambda: each(lambda q: rows(weighed(plain_cornered), (PICTURE, q), (0,))[0], QUADS),
        ),
        "crop_quad: jacrev": (lambda: jacrev(cornered, BOTH)(PICTURE, QUADS[0]), QUAD_JACOBIANS),
        "crop_quad: jacfwd": (lambda: jacfwd(cornered, BOTH)(PICTURE, QUADS[0]), QUAD_JACOBIANS),
        "warp: jacrev": (lambda: jacrev(warped)(MATRIX), WARP_JACOBIAN),
        "warp: jacfwd": (lambda: jacfwd(warped)(MATRIX), WARP_JACOBIAN),
        "warp: hessian": (
            lambda: hessian(lambda m: warped(m).square().sum())(MATRIX),
            lambda: slope(lambda m: plain_warp(PICTURE, m).square().sum(), (MATRIX,), (0,)),
        ),
        "warp: vmap": (
            lambda: vmap(warped)(MATRICES), lambda: each(lambda m: plain_warp(PICTURE, m), MATRICES)
        ),
        "warp_with_jacobian": (lambda: warp_slopes(MATRIX), WARP_JACOBIAN),
        "jacrev(warp_with_jacobian)": (lambda: jacrev(warp_slopes)(MATRIX), second_of_warp),
        "vmap(warp_with_jacobian)": (
            lambda: vmap(warp_slopes)(MATRICES),
            lambda: each(lambda m: rows(lambda n: plain_warp(PICTURE, n), (m,), (0,)), MATRICES),
        ),
        "paste: jacrev": (lambda: jacrev(pasted, ALL)(*PASTED), PASTE_JACOBIANS),
        "paste: jacfwd": (lambda: jacfwd(pasted, ALL)(*PASTED), PASTE_JACOBIANS),
        "paste: hessian": (
            lambda: hessian(lambda b: pasted(*PASTED[:2], b, PASTED[3]).square().sum())(PASTED[2]),
            lambda: slope(lambda b: plain_paste(*PASTED[:2], b, PASTED[3]).square().sum(), (PASTED[2],), (0,)),
        ),
        "paste: functionalize(grad)": (
            lambda: functionalize(grad(lambda *t: pasted(*t).square().sum(), ALL))(*PASTED),
            lambda: rows(lambda *t: plain_paste(*t).square().sum(), PASTED, ALL),
        ),
        "paste: vmap": (lambda: vmap(pasted)(*PASTES), lambda: each(plain_paste, *PASTES)),
        "paste: vmap over boxes": (
            lambda: vmap(pasted, (None, None, 0, None))(*PASTED[:2], PASTES[2], PASTED[3]),
            lambda: each(lambda b: plain_paste(*PASTED[:2], b, PASTED[3]), PASTES[2]),
        ),
        "paste: vmap(grad)": (
            lambda: [g.flatten(1) for g in vmap(grad(lambda *t: pasted(*t).square().sum(), ALL))(*PASTES)],
            lambda: [torch.stack(g) for g in zip(
                *(rows(lambda *t: plain_paste(*t).square().sum(), one, ALL) for one in zip(*PASTES, strict=True)),
                strict=True,
            )],
        ),
        "paste: autograd.grad(is_grads_batched=True)": (batched_pastes, PASTE_JACOBIANS),
        "box functions: jacrev, jacfwd, vmap": (box_functions, lambda: box_functions(by_hand=True)),
    }  # fmt: skip


def bins(picture, box):
    """RoIAlign of two samples to a bin, each read where it lies, inside the picture or clamped to it."""
    channels, height, width = picture.shape
    lo, hi = box[:2], box[2:]
    n = torch.tensor([SIZE[1], SIZE[0]])
    parts = [torch.arange(2 * int(k), dtype=f64) / (2 * int(k)) + 0.25 / int(k) for k in n]
    x, y = (lo[a] + parts[a] * (hi[a] - lo[a]) - 0.5 for a in (0, 1))

    def taps(p, count):
        inside = ((p >= -1) & (p <= count)).to(f64)
        p = p.clamp(0, count - 1)
        first = p.detach().floor().clamp(max=count - 2)
        return first.long(), (p - first), inside

    (kx, tx, ix), (ky, ty, iy) = taps(x, width), taps(y, height)
    rows_ = (1 - ty)[:, None] * picture[:, ky] + ty[:, None] * picture[:, ky + 1]
    read = ((1 - tx) * rows_[..., kx] + tx * rows_[..., kx + 1]) * iy[:, None] * ix
    return read.reshape(channels, SIZE[0], 2, SIZE[1], 2).mean((2, 4))


# Not antialiased: how that is done depends on the numbers, which no transform looks at.
FLAT = {"antialias": False, "mode": "bicubic", "padding_mode": "constant", "fill": 0.25}
TURNED = torch.tensor([2.3, 1.9, 4.1, 2.7, 25.0], dtype=f64)
QUADS = torch.tensor([[0.3, 0.2], [4.4, -0.3], [5.1, 3.3], [-0.2, 3.8]], dtype=f64) + BOXES[:, None, :2] * 0.1
MATRIX = torch.tensor([[1.2, 0.3, -0.4], [-0.2, 1.1, 0.6], [0.05, -0.02, 1.0]], dtype=f64)


def plain_warp(picture, matrix):
    """The reference of warps as plain PyTorch."""
    options = WarpOptions("bicubic", False, "constant", (0.25,))
    return warping._warp(picture[None], matrix[None], None, None, SIZE, options)[0]


def plain_turned(picture, box):
    how = {"coords": "pixel", "clockwise": False, "angle_unit": "degrees", "align_corners": False}
    return plain_warp(picture, _homography.from_rotated(box, None, SIZE, **how))


def plain_cornered(picture, quad):
    return plain_warp(picture, _homography.from_quads(quad, None, SIZE, coords="pixel", align_corners=False))


def plain_paste(patches, alpha, boxes, canvas):
    """The reference of paste as plain PyTorch, its mask below."""
    options = Options("bicubic", True, "zeros")
    given = torch.cat([patches * alpha, alpha], -3), boxes, None, canvas[None], pasting.Rules(True, True), True, options
    return torch.cat([t[0] for t in pasting.paste(*given)])


def second_of_warp():
    def first(m):
        one = plain_warp(PICTURE, m)
        return torch.stack([torch.autograd.grad(o, m, create_graph=True)[0] for o in one.flatten()])

    return rows(first, (MATRIX,), (0,))


# Two patches that overlap, their alpha, boxes and the canvas; and three such.
PASTES = (
    torch.rand(3, 2, 2, 2, 3, generator=_SEED, dtype=f64),
    torch.rand(3, 2, 1, 2, 3, generator=_SEED, dtype=f64),
    torch.tensor([[0.3, 0.4, 2.9, 2.2], [3.7, 0.8, 1.2, 3.6]], dtype=f64)
    + 0.2 * torch.rand(3, 2, 4, generator=_SEED, dtype=f64),
    torch.rand(3, 2, 3, 4, generator=_SEED, dtype=f64),
)
PASTED, ALL = tuple(t[0] for t in PASTES), (0, 1, 2, 3)
MATRICES = MATRIX + 0.02 * torch.rand(3, 3, 3, generator=_SEED, dtype=f64)
PASTE_JACOBIANS = functools.cache(lambda: rows(plain_paste, PASTED, ALL))
WARP_JACOBIAN = functools.cache(lambda: rows(lambda m: plain_warp(PICTURE, m), (MATRIX,), (0,)))
QUAD_JACOBIANS = functools.cache(lambda: rows(plain_cornered, (PICTURE, QUADS[0])))
TURNED_JACOBIANS = functools.cache(lambda: rows(plain_turned, (PICTURE, TURNED)))


def fixed_to(picture):
    return lambda b: plain(picture, b)


def second_of_crop():
    def first(b):
        one = plain(PICTURE, b)
        return torch.stack([torch.autograd.grad(o, b, create_graph=True)[0] for o in one.flatten()])

    return rows(first, (BOX,), (0,))


def third(function):
    box = BOX.clone().requires_grad_()
    value = function(box)
    for _ in range(2):
        value = torch.autograd.grad(value, box, create_graph=True)[0] @ PUSH_BOX
    return torch.autograd.grad(value, box)[0]


def moved(nearest):
    """The jacobian by the image of something that moves pixels: what unit images become."""
    units = torch.eye(PICTURE.numel(), dtype=f64).reshape(-1, *PICTURE.shape)
    return torch.stack([nearest(unit) for unit in units], -1)


def box_functions(by_hand=False):
    size, points = (4, 5), BOXES[:, :2]
    functions = [
        lambda b: diffcrop.convert_boxes(b, size, to_format="cxcywh", to_coords="normalized"),
        lambda b: diffcrop.boxes_to_theta(b, size),
        lambda b: diffcrop.theta_to_boxes(diffcrop.boxes_to_theta(b, size), size),
        lambda b: diffcrop.invert_boxes(b, size),
        lambda b: diffcrop.map_points(points, b, SIZE),
        lambda b: diffcrop.map_points(points, b, SIZE, to="crop"),
        lambda b: diffcrop.map_boxes(BOXES, b, SIZE),
        lambda b: diffcrop.rotated_to_quads(turned_by(b), size, coords="normalized", angle_unit="radians"),
        lambda b: diffcrop.rotated_to_matrix(turned_by(b), SIZE),
        lambda b: diffcrop.quads_to_matrix(QUADS[0] + 0.01 * b.view(4, 1), SIZE),
        lambda b: diffcrop.warp_points(points, MATRIX + 0.01 * b[:3]),
        lambda b: diffcrop.warp_points(points, MATRIX + 0.01 * b[:3], to="crop"),
    ]
    if by_hand:
        jacobians = [rows(f, (BOX,), (0,)) for f in functions]
        return [jacobians, jacobians, [torch.stack([f(b) for b in BOXES]) for f in functions]]
    return [[t(f)(BOX) for f in functions] for t in (jacrev, jacfwd)] + [[vmap(f)(BOXES) for f in functions]]


def turned_by(b):
    return torch.cat([b, b[:1] * 3])


COMPILED = {
    "compile": lambda crops: crops(PICTURE, BOX),
    "compile(grad)": lambda crops: grad(weighed(crops), BOTH)(PICTURE, BOX),
    "compile(vjp)": lambda crops: vjp(crops, PICTURE, BOX)[1](WEIGHT),
    "compile(jacrev)": lambda crops: jacrev(crops, BOTH)(PICTURE, BOX),
    "compile(vmap)": lambda crops: vmap(crops)(PICTURES, BOXES),
    "compile(vmap(grad))": lambda crops: vmap(grad(weighed(crops), BOTH))(PICTURES, BOXES),
    "compile(grad(grad))": lambda crops: grad(lambda b: PUSH_BOX @ grad(lambda c: weighed(crops)(PICTURE, c))(b))(BOX),
    "compile(hessian)": lambda crops: hessian(lambda b: weighed(crops)(PICTURE, b))(BOX),
    "compile(jvp)": lambda crops: jvp(crops, (PICTURE, BOX), (PUSH_IMAGE, PUSH_BOX))[1],
    "compile(jacfwd)": lambda crops: jacfwd(crops, BOTH)(PICTURE, BOX),
}


# --- the measurement --------------------------------------------------------------------------------------------------


def verdict(found, expected):
    """ "yes", or what is raised. Whatever else there is is a bug, and ends the run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the older vmap warns that it is slow
            found = flat(found()).detach()
    except Exception as error:
        return raised(error)
    if expected is None:
        raise AssertionError("this should have been refused")
    right = flat(expected()).detach()
    torch.testing.assert_close(found, right, rtol=0, atol=TOLERANCE * max([1.0, *right.abs().tolist()]))
    if right.numel() and not (right != 0).any():
        raise AssertionError("nothing but zeros was compared")
    return "yes"


def raised(error):
    text = re.sub(r"\s+", " ", str(error)).strip()
    if type(error).__module__.startswith("torch._dynamo"):
        text = text.partition(" Explanation:")[0].removesuffix(".")
    if len(text) > 250:
        text = text[:247].rpartition(" ")[0] + " ..."
    return f"raises {type(error).__name__}: {text}".replace("|", "\\|")


def eager(impl):
    """Name -> entry, for everything that is not compiled."""

    def crops(i, b):
        return crop(i, b, SIZE, impl=impl, **SMOOTH)

    result = {}
    for name, (found, expected) in cases(crops, impl).items():
        try:
            result[name] = verdict(found, expected)
        except AssertionError as error:
            raise AssertionError(f"{impl}, {name}: {error}") from error
    return result


def in_a_new_process(impl, name):
    """The same for something that is compiled."""
    command = [sys.executable, __file__, "--compiled", impl, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise AssertionError(f"{impl}, {name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def one_compiled(impl, name):
    def crops(i, b):
        return crop(i, b, SIZE, impl=impl, **SMOOTH)

    right = COMPILED[name](crops)
    function = torch.compile(lambda: COMPILED[name](crops), fullgraph=True, backend="aot_eager")
    return verdict(function, lambda: right)


# --- the page ---------------------------------------------------------------------------------------------------------

_HEAD = """<!-- Written by `python tests/transforms_table.py`, which measures it: do not edit. -->

# Transforms

What each transform gives with each implementation (`impl=`; without it, `cpu` on the CPU and `triton` on a GPU).
**yes**: every number agrees with plain autograd of plain PyTorch, one `torch.autograd.grad` after another, to 1e-10 in
float64. Everything else raises: nothing is a silent zero. The crop is that of one image (C, H, W) at one box where no
batch is named, by images and boxes at once, `mode="bicubic"` with a constant outside. No crop draws random numbers, so
`randomness` of `vmap` has no effect. The kernels of `triton` ran in Triton's interpreter, not on a GPU.

"""
_TAIL = """
What raises, and what to do instead:

* `mode="nearest"` has no gradient by the box: `boxes.detach()`, or another mode.
* Second derivatives by the box under the older vmap (`is_grads_batched=True`, `vectorize=True`), and with
  `impl="reference"` those by images too: `torch.func.hessian`, `torch.func.jacrev`, or one cotangent at a time.

`torch.func.functionalize`, forward mode over forward mode and transforms under the compiler run through the reference
whatever `impl` says, as PyTorch has no rule for operators with derivatives of their own there: right, and as slow as
plain PyTorch.

`torchvision.tv_tensors.BoundingBoxes` and whatever else says its own format break graphs of `torch.compile`, so that
`fullgraph=True` refuses them: the compiler has no rule for taking such a class off (`as_subclass`). Pass
`boxes.as_subclass(torch.Tensor)` and `box_format` into what is compiled.
"""


def document(entries):
    """``entries``: implementation -> name -> entry."""
    names = list(dict.fromkeys(name for column in entries.values() for name in column))
    lines = [f"| transform | {' | '.join(entries)} |", "|---" * (1 + len(entries)) + "|"]
    for name in names:
        lines.append(f"| `{name}` | {' | '.join(column.get(name, 'not measured') for column in entries.values())} |")
    return _HEAD + "\n".join(lines) + "\n" + _TAIL


def parsed(text):
    """What `document` was given."""
    table = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in text.splitlines() if line.startswith("| ")]
    head, *body = table
    return {impl: {row[0].strip("`"): row[k] for row in body} for k, impl in enumerate(head[1:], 1)}


def on_cpu():
    """The implementations that serve tensors of the CPU here."""
    return [name for name in IMPLEMENTATIONS if name != "triton"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compiled"]:
        print(json.dumps(one_compiled(*sys.argv[2:])))
    else:
        kept = parsed(PAGE.read_text()) if PAGE.exists() else {}  # what was measured on other machines
        wanted = sys.argv[1:] or on_cpu()
        found = {impl: {**eager(impl), **{name: in_a_new_process(impl, name) for name in COMPILED}} for impl in wanted}
        PAGE.write_text(document({**kept, **found}))
