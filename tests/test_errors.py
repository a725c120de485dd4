"""Every error of cropping: its type, the argument it names, what it shows, what it advises, and that nothing ran."""

from __future__ import annotations

import ast
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.tensor import Partial, Replicate, Shard

import diffcrop
import test_boxes
from diffcrop import _check, _check_crop, _ops, coverage, crop, crop_with_jacobian, normal_equations

IMAGES = torch.zeros(2, 3, 8, 9)
IMAGE = IMAGES[0]
BOX = torch.tensor([1.0, 2.0, 5.0, 6.0])
BOXES = torch.stack([BOX, BOX])
INDEX = torch.tensor([0, 1])
GRAD = BOX.clone().requires_grad_()
PICTURE, READ = Image.new("RGB", (9, 8)), "numpy.array(picture)).permute(2, 0, 1)"
OTHERS = (crop_with_jacobian, diffcrop.nn.Crop(4))


def images(value, boxes=BOX, **options):
    return lambda: crop(value, boxes, 4, **options)


def boxes(value, image=IMAGES, **options):
    return lambda: crop(image, value, 4, **options)


def nested(parts, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, as it says
        return torch.nested.nested_tensor(parts, layout=layout)


def masked(value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.masked.masked_tensor(value, torch.ones_like(value, dtype=torch.bool))


def size(value, **options):
    return lambda: crop(IMAGES, BOX, value, **options)


def options(images=IMAGES, boxes=BOX, **options):
    return lambda: crop(images, boxes, 4, **options)


def jacobian(*args, **options):
    return lambda: crop_with_jacobian(*args, **options)


def equations(images=IMAGES, boxes=BOXES, targets=IMAGES, **options):
    return lambda: normal_equations(images, boxes, targets, **options)


def with_tangent(value):
    """A call inside forward mode, with a tangent on the boxes."""

    def call():
        with torch.autograd.forward_ad.dual_level():
            normal_equations(IMAGES, torch.autograd.forward_ad.make_dual(value, value), IMAGES)

    return call


def covered(*args, **options):
    return lambda: coverage(*args, **options)


def with_implementations(found, call):
    """A call on a machine where these implementations are there."""

    def patched():
        with mock.patch.object(_ops, "implementations", return_value=found):
            call()

    return patched


THERE = {"cpu": None, "triton": None, "reference": None}
NOT_BUILT = {"cpu": "there was no compiler", "triton": "no GPU", "reference": None}


class Shards(torch.Tensor):
    """What the checks see of a DTensor, without processes; `test_distributed.py` has real ones."""


PAIR = SimpleNamespace(ndim=1, size=lambda _: 2)


def shards(tensor, placement, mesh=PAIR):
    made = tensor.as_subclass(Shards)
    made.device_mesh, made.placements = mesh, (placement,)
    return made


# Error, the call, and what the message must hold: the argument, what came, what would be right.
CASES = [
    # DTensors
    (ValueError, images(shards(IMAGES, Shard(2)), shards(BOXES, Shard(0))), "images", "Shard(dim=2)", "redistribute"),
    (ValueError, images(shards(IMAGE, Shard(1)), shards(BOX, Replicate())), "images", "Shard(0)", "Shard(dim=1)"),
    (ValueError, images(shards(IMAGES, Partial()), shards(BOXES, Shard(0))), "images", "Partial(sum)", "redistribute"),
    (TypeError, images(shards(IMAGES, Shard(0)), BOXES), "boxes must be a DTensor", "(2, 4)", "distribute_tensor"),
    (TypeError, boxes(shards(BOXES, Shard(0))), "images must be a DTensor", "(2, 3, 8, 9)", "distribute_tensor"),
    (TypeError, images([shards(IMAGE, Shard(0))], BOXES[:1]), "a list of images", "plain tensors"),
    (TypeError, boxes([shards(BOXES, Shard(0))] * 2, shards(IMAGES, Shard(0))), "a list of boxes", "plain tensors"),
    (ValueError, images(shards(IMAGES, Shard(0)), shards(BOXES, Shard(0), None)), "images and boxes", "same mesh"),
    (
        ValueError,
        images(shards(IMAGES, Shard(0)), shards(BOXES, Shard(0)), batch_index=shards(INDEX, Shard(0))),
        "batch_index",
        "Shard(dim=0)",
        "(B, K, 4)",
    ),
    (
        ValueError,
        images(shards(IMAGES[[0, 1, 1]], Shard(0)), shards(BOXES.expand(3, 2, 4), Shard(0))),
        "boxes",
        "(3, 2, 4)",
        "2 parts",
        "pad the batch",
    ),
    # images
    (TypeError, images(None), "images must be a tensor", "(C, H, W) or (B, C, H, W)", "None", "torch.as_tensor"),
    (TypeError, images(np.zeros((8, 9, 3))), "images", "ndarray of shape (8, 9, 3)", "channels in front"),
    (TypeError, images(PICTURE), "images must be a tensor", "size=9x8", f"torch.from_numpy({READ}", "a grey one by"),
    (
        TypeError,
        images([PICTURE] * 2, BOXES),
        "images[0] must be a tensor of shape (C, H, W), got",
        "size=9x8",
        f"torch.from_numpy({READ}",
    ),
    (TypeError, equations(targets=PICTURE), "targets must be a tensor", "size=9x8", f"torch.from_numpy({READ}"),
    (TypeError, images("photo.jpg"), "images", "'photo.jpg' (str)"),
    (TypeError, images("x" * 200), "images", "xxx... (str)"),
    (TypeError, images(None, torch.zeros(2)), "images", "(C, W) or (B, C, W)"),
    (TypeError, images(None, torch.zeros(6)), "images", "(C, D, H, W) or (B, C, D, H, W)"),
    (TypeError, images(IMAGE.to(torch.complex64)), "images must be floating-point", "complex64", "(3, 8, 9)"),
    (ValueError, images(IMAGE[0]), "images must have shape (C, H, W)", "4 numbers", "(8, 9)", "images[None]"),
    (ValueError, images(IMAGES[None]), "(1, 2, 3, 8, 9)", "images.flatten(0, 1); volumes take boxes of 6 numbers"),
    (ValueError, images(IMAGES, torch.zeros(2)), "2 numbers", "(2, 3, 8, 9)", "; images take boxes of 4 numbers"),
    (ValueError, images(torch.zeros(9)), "images must have shape", "4 numbers", "(9,)"),
    (ValueError, images(torch.zeros(())), "images must have shape", "4 numbers", "shape ()"),
    (ValueError, images(IMAGE, torch.zeros(6)), "images must have shape (C, D, H, W)", "6 numbers", "images[None]"),
    (ValueError, images(IMAGE[0, 0], torch.zeros(2)), "(C, W) or (B, C, W)", "2 numbers", "(9,)", "images[None]"),
    (ValueError, images(torch.zeros(3, 0, 9)), "images must have at least one pixel", "(3, 0, 9)"),
    (ValueError, images(torch.zeros(2, 3, 8, 0)), "images must have at least one pixel", "(2, 3, 8, 0)"),
    # a list of images
    (ValueError, images([]), "images must not be an empty list", "dtype", "channels"),
    (TypeError, images([IMAGE, 3]), "images[1] must be a tensor", "3 (int)"),
    (
        ValueError,
        images([IMAGE, IMAGES]),
        "images[1] must have shape (C, H, W) where",
        "(2, 3, 8, 9)",
        "apart: *images[1]; volumes take boxes of 6",
    ),
    (ValueError, images([IMAGE, IMAGES[:1]]), "images[1]", "(1, 3, 8, 9)", "without the batch it is images[1][0]"),
    (ValueError, images([IMAGE, IMAGE[0]]), "images[1]", "(8, 9)", "images[1][None]"),
    (ValueError, images([IMAGE, IMAGE[:1]]), "agree in channels", "channels 1 for images[1]", "3 for images[0]"),
    (ValueError, images([IMAGE, IMAGE.double()]), "dtype torch.float64 for images[1]", "torch.float32 for images[0]"),
    (ValueError, images([IMAGE, IMAGE.to("meta")]), "device meta for images[1]", "cpu for images[0]"),
    (ValueError, images([IMAGE, IMAGE], [BOXES]), "one tensor per image", "1 for 2 images"),
    (ValueError, images([IMAGE, IMAGE], BOXES[:1]), "must have B = 2", "(1, 4)", "boxes.expand(2, -1, -1)"),
    (ValueError, images([IMAGE], [BOXES], batch_index=INDEX), "batch_index", "list of boxes", "one of them"),
    (ValueError, images([IMAGE], BOXES, batch_index=INDEX), "batch_index must lie in 0..0", "got 1"),
    # boxes
    (TypeError, boxes((1.0, 2.0, 5.0, 6.0), IMAGE), "boxes", "(1.0, 2.0, 5.0, 6.0)", "torch.as_tensor"),
    (TypeError, boxes(3), "boxes must be a tensor", "3 (int)", "torch.as_tensor(boxes"),
    (TypeError, boxes(BOX.numpy()), "boxes must be a tensor", "ndarray of shape (4,)", "torch.as_tensor(boxes"),
    (TypeError, boxes(BOX.bool()), "boxes must hold real numbers", "torch.bool", "boxes.to(torch.float32)"),
    (TypeError, boxes(BOX.to(torch.complex64)), "boxes must hold real numbers", "complex64"),
    (ValueError, boxes(torch.tensor(1.0)), "boxes must have 2, 4 or 6 numbers", "shape ()"),
    (ValueError, boxes(torch.zeros(2, 3)), "boxes must have 2 (signals), 4 (images) or 6 (volumes)", "(2, 3)"),
    (ValueError, boxes(torch.zeros(7, 5)), "boxes", "(7, 5)", "batch_index=boxes[:, 0].long()", "for crop_rotated"),
    (ValueError, jacobian(IMAGES, torch.zeros(2, 5), 4), "batch_index=boxes[:, 0].long()", "for crop_rotated"),
    (ValueError, equations(boxes=torch.zeros(2, 5)), "batch_index=boxes[:, 0].long()", "for crop_rotated"),
    (ValueError, images([IMAGE] * 2, torch.zeros(2, 5)), "batch_index=boxes[:, 0].long()", "for crop_rotated"),
    (ValueError, boxes([BOXES, torch.zeros(7, 5)]), "boxes[1]", "(7, 5)", "pass boxes[1][..., 1:]", "for crop_rotated"),
    (ValueError, covered(torch.zeros(2, 5), 4, 8), "boxes", "no part of a box", "for crop_rotated"),
    (ValueError, boxes(torch.zeros(2, 2, 4), IMAGE), "(4,) or (K, 4) for one image", "(2, 2, 4)", "batch dimension"),
    (ValueError, boxes(torch.zeros(2, 2, 2, 4)), "(4,), (B, 4) or (B, K, 4)", "(2, 2, 2, 4)"),
    (ValueError, boxes(torch.zeros(5, 4)), "B = 2", "(5, 4)", "boxes.expand(2, -1, -1)", "batch_index of shape (5,)"),
    (ValueError, boxes(torch.zeros(5, 2, 4)), "B = 2", "(5, 2, 4)"),
    (ValueError, boxes(BOX.to("meta")), "images and boxes", "same device", "cpu and meta", "boxes.to('cpu')"),
    # a list of boxes
    (TypeError, boxes(diffcrop.nn.LearnableBox(8)), "boxes must be a tensor", "module LearnableBox", "call it"),
    (ValueError, boxes([]), "one tensor per image", "an empty list", "(0, 4)"),
    (ValueError, boxes([], torch.zeros(0, 3, 8, 9)), "boxes must be a list of one tensor per image", "(0, 4)"),
    (TypeError, boxes([[8.0, 4, 40, 30]], IMAGE), "got [[8.0, 4, 40, 30]] (list)", "torch.as_tensor(boxes, dtype="),
    (TypeError, boxes([[[8.0, 4, 40, 30]], [[0, 0, 1, 1]] * 2]), "[torch.as_tensor(b, dtype=torch.float32) for b in b"),
    (ValueError, boxes(list(BOX), IMAGE), "got a list of 4, the first a", "a box of numbers is torch.stack(boxes)"),
    (ValueError, boxes([*BOX[:3], 9.0], IMAGE), "a box of numbers is torch.stack([torch.as_tensor(v) for v in boxes])"),
    (ValueError, boxes([BOX, BOX]), "got a list of 2, the first a", "boxes of one tensor each are torch.stack(boxes)"),
    (TypeError, boxes([None, BOXES]), "boxes[0] must be a tensor, got None", "no boxes are torch.zeros(0, 4)"),
    (TypeError, boxes([BOXES, []]), "boxes[1] must be a tensor, got []", "no boxes are torch.zeros(0, 4)"),
    (ValueError, boxes([BOXES, BOX[:0]]), "boxes[1] must have 4 numbers", "(0,)", "no boxes are torch.zeros(0, 4)"),
    (ValueError, boxes(BOX[:0]), "boxes must have 2", "shape (0,)", "no boxes are torch.zeros(0, 4)"),
    (ValueError, boxes([BOXES]), "one tensor per image", "1 for 2 images"),
    (ValueError, boxes([BOXES, BOX]), "boxes[1] must have shape (K, 4)", "(4,)", "one box is boxes[1][None]"),
    (ValueError, boxes([BOXES, torch.zeros(1, 6)]), "boxes[1] must have 4 numbers", "(1, 6)"),
    (TypeError, boxes([BOXES, [1, 2, 3, 4]]), "boxes[1] must be a tensor", "[1, 2, 3, 4] (list)"),
    (ValueError, boxes([BOXES, BOXES.double()]), "agree in dtype", "float64", "boxes[1]", "float32", "boxes[0]"),
    (ValueError, boxes([BOXES, BOXES.to("meta")]), "agree in", "device", "meta", "boxes[1]", "cpu", "boxes[0]"),
    (ValueError, boxes([BOXES] * 3, IMAGE), "list of boxes", "batch of images", "(3, 8, 9)"),
    (ValueError, boxes([BOXES] * 2, IMAGE), "list of boxes", "batch of images", "(3, 8, 9)"),
    (ValueError, boxes([BOXES], torch.zeros(())), "images", "shape ()"),
    (ValueError, boxes([BOXES] * 2, batch_index=INDEX), "batch_index", "list of boxes", "one of them"),
    (TypeError, images(None, [BOXES]), "images must be a tensor", "or a list of B tensors", "None"),
    # batch_index
    (TypeError, boxes(BOXES, batch_index=[0, 1]), "batch_index must be an integer tensor", "[0, 1]", "torch.as_tensor"),
    (TypeError, boxes(BOXES, batch_index=INDEX.float()), "batch_index", "torch.float32", "(2,)", ".long()"),
    (TypeError, boxes(BOXES, batch_index=INDEX.bool()), "batch_index", "torch.bool", ".long()"),
    (TypeError, boxes(BOXES, batch_index=INDEX.to(torch.complex64)), "batch_index", "complex64", ".long()"),
    (ValueError, boxes(BOXES, batch_index=INDEX[:1]), "batch_index must have shape (R,)", "(1,)", "(2, 4)"),
    (ValueError, boxes(BOX, batch_index=INDEX), "batch_index must have shape (R,)", "(2,)", "(4,)"),
    (ValueError, boxes(BOXES[None], batch_index=INDEX), "batch_index must have shape (R,)", "(1, 2, 4)"),
    (ValueError, boxes(BOXES, batch_index=INDEX[None]), "batch_index must have shape (R,)", "(1, 2)"),
    (ValueError, boxes(BOXES, batch_index=INDEX + 1), "batch_index must lie in 0..1", "batch of 2", "got 2", "(2,)"),
    (ValueError, boxes(BOXES, IMAGES[:0], batch_index=INDEX), "batch_index names images, but there are none"),
    (ValueError, boxes(BOXES, batch_index=INDEX - 1), "batch_index must lie in 0..1", "got -1"),
    (ValueError, boxes(BOXES, IMAGE, batch_index=INDEX), "batch_index needs a batch of images", "(3, 8, 9)"),
    (ValueError, boxes(BOXES, batch_index=INDEX.to("meta")), "images and batch_index", "same device", "cpu and meta"),
    # size
    (TypeError, size(None), "size must be an int or (h, w)", "None"),
    (TypeError, size(4.0), "size must be an int or (h, w)", "4.0 (float)"),
    (TypeError, size(True), "size must be an int", "True (bool)"),
    (TypeError, size((4, 4.5)), "size", "(4, 4.5)", "4.5 (float) is not an int"),
    (ValueError, size((4,)), "size must be an int or (h, w)", "4 numbers", "(4,)", "length 1"),
    (ValueError, size(torch.Size([2, 3, 8, 9])), "size", "length 4", "shape[-2:]"),
    (TypeError, size(IMAGE), "size must be an int or (h, w)", "(3, 8, 9)", "of an image pass its shape[-2:]"),
    (TypeError, size(torch.tensor([4, 4])), "size must be an int or (h, w)", "torch.int64", "size.tolist()"),
    (TypeError, size(np.array([4, 4])), "size must be an int or (h, w)", "got an int64 ndarray", "size.tolist()"),
    (
        TypeError,
        size([IMAGE, IMAGE]),
        "size must be",
        "a list of 2, the first a torch.float32 tensor of",
    ),
    (ValueError, size(2**31), "size must be below 2**31", "2147483648 (int)"),
    (ValueError, size((4, 2**40)), "size must be below 2**31"),
    (ValueError, size(10**400), "size must be below 2**31", "00000... (int)"),
    (ValueError, size(0), "size must be at least 1", "0 (int)"),
    (ValueError, size((4, -3)), "size must be at least 1", "(4, -3)"),
    # options
    (ValueError, options(box_format="xyhw"), "box_format must be one of 'xyxy', 'xywh', 'cxcywh'", "'xyhw'"),
    (ValueError, options(box_format="ltrb"), "box_format", "'ltrb'", "did you mean 'xyxy'?"),
    (TypeError, options(box_format=None), "box_format must be one of", "None"),
    (ValueError, options(coords="relative"), "coords must be one of", "'relative'", "did you mean 'unit'?"),
    (TypeError, options(coords=1), "coords must be one of", "1 (int)"),
    (ValueError, options(mode="linear"), "mode must be one of", "'linear'", "did you mean 'bilinear'?"),
    (ValueError, options(mode="box"), "mode", "'box'", "did you mean 'area'?"),
    (ValueError, options(mode="LANCZOS"), "mode", "'LANCZOS'", "did you mean 'lanczos3'?"),
    (ValueError, options(mode="quintic"), "mode must be one of 'bilinear'", "'gaussian', 'nearest'", "'quintic'"),
    (TypeError, options(mode=None), "mode must be one of", "None"),
    (ValueError, options(padding_mode="replicate"), "padding_mode must be one of", "did you mean 'border'?"),
    (ValueError, options(padding_mode="reflect"), "padding_mode", "'reflect'", "did you mean 'reflection'?"),
    (ValueError, options(padding_mode="wrap"), "padding_mode", "'wrap'", "did you mean 'circular'?"),
    (TypeError, options(padding_mode=0), "padding_mode must be one of 'border', 'zeros', 'constant'", "0 (int)"),
    (TypeError, options(antialias=1), "antialias must be True or False", "1 (int)"),
    (TypeError, options(antialias=None), "antialias must be True or False", "None"),
    (TypeError, options(antialias=np.bool_(True)), f"got {np.True_!r} (bool", "pass bool(antialias)"),
    (TypeError, options(antialias=torch.tensor(True)), "got a torch.bool tensor of shape ()", "pass bool(antialias)"),
    (TypeError, options(align_corners=None), "align_corners must be True or False", "None"),
    (ValueError, options(mode="area", antialias=False), "mode='area'", "antialias=True", "got False", "'bilinear'"),
    (
        ValueError,
        images(torch.zeros(1, 1, 1).expand(1, 1, 2**31)),
        "images must have fewer than 2**31 pixels",
        "(1, 1, 2147483648)",
    ),
    (TypeError, images(torch.eye(3)[None].to_sparse()), "images must be a dense tensor", "sparse_coo", "to_dense()"),
    (TypeError, boxes(BOX.to_sparse()), "boxes must be a dense tensor", "sparse_coo", "boxes.to_dense()"),
    (TypeError, boxes(BOXES, batch_index=INDEX.to_sparse()), "batch_index must be a dense tensor", "to_dense()"),
    (TypeError, lambda: diffcrop.convert_boxes(BOX.to_sparse()), "boxes must be a dense tensor", "boxes.to_dense()"),
    *[
        (TypeError, wrong, f"{name} must be a dense tensor", "a nested one", f"{name}.unbind()")
        for layout in (torch.strided, torch.jagged)
        for name, wrong in (
            ("boxes", lambda layout=layout: coverage(nested([BOXES, BOXES[:1]], layout), 4, 8)),
            ("batch_index", lambda layout=layout: boxes(BOXES, batch_index=nested([INDEX, INDEX[:1]], layout))()),
        )
    ],
    (TypeError, lambda: crop(masked(IMAGES), BOX, 4), "images must be a dense tensor", "images.to_tensor(value)"),
    (TypeError, lambda: crop(IMAGES, masked(BOX), 4), "boxes must be a dense tensor", "boxes.to_tensor(value)"),
    # sigma
    (ValueError, options(sigma=0.5), "sigma belongs to mode='gaussian'", "sigma=0.5", "mode='bilinear'", "leave it"),
    (TypeError, options(mode="gaussian", sigma="1"), "sigma must be a number", "'1' (str)"),
    (TypeError, options(mode="gaussian", sigma=True), "sigma must be a number", "True (bool)"),
    (ValueError, options(mode="gaussian", sigma=0.0), "sigma must be at least 0.1", "0.0"),
    (ValueError, options(mode="gaussian", sigma=-1), "sigma must be at least 0.1", "-1"),
    (ValueError, options(mode="gaussian", sigma=float("nan")), "sigma must be at least", "nan"),
    (ValueError, options(mode="gaussian", sigma=float("inf")), "at most 1e+06", "inf"),
    # fill
    (ValueError, options(padding_mode="constant", fill=GRAD), "fill is not differentiable", "(4,)", "fill.detach()"),
    (ValueError, options(padding_mode="constant", fill=torch.zeros(1, 3)), "fill must be a number", "(1, 3)"),
    (ValueError, options(padding_mode="constant", fill=torch.tensor(1j)), "fill must be a number", "complex64"),
    (TypeError, options(fill="0"), "fill must be a number or a sequence", "'0' (str)"),
    (TypeError, options(fill=True), "fill must be a number", "True (bool)"),
    (TypeError, options(fill=None), "fill must be a number", "None"),
    (
        TypeError,
        options(padding_mode="constant", fill=[1.0, None, 1.0]),
        "fill must hold numbers",
        "None",
        "[1.0, None",
    ),
    (TypeError, options(padding_mode="constant", fill=[True]), "fill must hold numbers", "True (bool)"),
    (ValueError, options(padding_mode="constant", fill=float("nan")), "fill must be finite", "nan", "coverage"),
    (ValueError, options(padding_mode="constant", fill=(0, 0, float("inf"))), "fill must be finite", "inf"),
    (ValueError, options(padding_mode="constant", fill=1e39), "fill must be finite", "1e+39", "float32"),
    (ValueError, options(padding_mode="constant", fill=10**400), "fill must be finite"),
    (ValueError, options(fill=1.0), "fill belongs to padding_mode='constant'", "fill=1.0", "padding_mode='border'"),
    (ValueError, options(padding_mode="zeros", fill=[0, 0, 2]), "fill belongs to", "[0, 0, 2]", "'zeros'"),
    (
        ValueError,
        options(padding_mode="constant", fill=(0.5, 0.5)),
        "fill must be one number or one",
        "3 channels",
        "2",
    ),
    (ValueError, options(padding_mode="constant", fill=()), "fill must be one number or one", "got 0"),
    (
        ValueError,
        options(images=IMAGES.to(torch.uint8), mode="nearest", padding_mode="constant", fill=0.5),
        "fill must be a whole number in 0..255",
        "torch.uint8",
        "0.5",
    ),
    (
        ValueError,
        options(images=IMAGES.to(torch.int8), mode="nearest", padding_mode="constant", fill=(0, 0, -129)),
        "fill must be a whole number in -128..127",
        "-129",
    ),
    (
        ValueError,
        options(images=IMAGES.bool(), mode="nearest", padding_mode="constant", fill=2),
        "fill must be a whole number in 0..1",
        "torch.bool",
        "2",
    ),
    # a mode without a gradient by the box
    (ValueError, options(mode="nearest", boxes=GRAD), "mode='nearest' has no gradient", "boxes.detach()", "mode"),
    (
        ValueError,
        images([IMAGE, IMAGE], [BOXES, GRAD[None]], mode="nearest"),
        "mode='nearest' has no gradient",
        "boxes[1].detach()",
    ),
    (
        ValueError,
        lambda: torch.func.grad(lambda b: crop(IMAGE, b, 4, mode="nearest").sum())(BOX),
        "mode='nearest' has no gradient",
    ),
    (
        ValueError,
        lambda: torch.func.jvp(lambda b: crop(IMAGE, b, 4, mode="nearest"), (BOX,), (BOX,)),
        "mode='nearest' has no gradient",
    ),
    # impl
    (ValueError, options(impl="cuda"), "impl must be one of 'cpu', 'triton', 'reference'", "'cuda'"),
    (TypeError, options(impl=0), "impl must be one of", "0 (int)"),
    (
        ValueError,
        with_implementations(NOT_BUILT, options(impl="cpu")),
        "impl='cpu' is not available",
        "there was no compiler",
        "impl=None",
    ),
    (
        ValueError,
        with_implementations(THERE, options(images=IMAGES.to("meta"), boxes=BOX.to("meta"), impl="cpu")),
        "impl='cpu' serves CPU tensors",
        "meta",
        "impl=None",
    ),
    (
        ValueError,
        with_implementations(THERE, images(torch.zeros(3, 9), torch.zeros(2), impl="triton")),
        "impl='triton' serves images",
        "boxes of 2 numbers",
        "impl=None",
    ),
    (
        ValueError,
        with_implementations(THERE, options(impl="triton")),
        "impl='triton' serves tensors on a GPU",
        "got images on cpu",
        "impl=None",
    ),
    (ValueError, jacobian(IMAGES, BOX, 4, mode="linear"), "'area', 'gaussian', got 'linear'", "mean 'bilinear'?"),
    (TypeError, jacobian(IMAGES, BOX, 4, mode=np.zeros(2)), "mode must be one of", "float64 ndarray of shape (2,)"),
    (
        ValueError,
        with_implementations(THERE, equations(torch.zeros(3, 9), torch.zeros(2), torch.zeros(3, 4), impl="cpu")),
        "impl='cpu' serves images (boxes of 4 numbers), got boxes of 2 numbers; leave impl=None",
    ),
    # crop_with_jacobian
    (ValueError, jacobian([], BOX, 4), "images must not be an empty list"),
    (ValueError, jacobian([IMAGE], BOXES, 4), "B = 1", "(2, 4)"),
    (ValueError, jacobian([IMAGE], [BOXES], 4, mode="nearest"), "mode='nearest' has no derivative"),
    (ValueError, jacobian(IMAGES, BOX, 4, mode="nearest"), "mode='nearest' has no derivative", "another mode"),
    (TypeError, jacobian(None, BOX, 4), "images must be a tensor", "None"),
    (TypeError, jacobian(IMAGES, None, 4), "boxes must be a tensor", "None"),
    (ValueError, jacobian(IMAGES, BOXES[:1], 4), "B = 2", "(1, 4)"),
    (ValueError, jacobian(IMAGES, BOXES, 0), "size must be at least 1", "0 (int)"),
    (ValueError, jacobian(IMAGES, BOXES, 4, batch_index=INDEX + 1), "batch_index must lie in 0..1", "got 2"),
    (ValueError, jacobian(IMAGES, BOXES, 4, mode="area", antialias=False), "mode='area'", "antialias=True"),
    # normal_equations
    (ValueError, equations([IMAGE, IMAGE[:1]]), "agree in channels", "images[1]"),
    (ValueError, equations(boxes=[BOXES]), "one tensor per image", "1 for 2 images"),
    (
        ValueError,
        equations([IMAGE, IMAGE], targets=torch.zeros(3, 3, 4, 4)),
        "targets must have the shape of the crops",
    ),
    (ValueError, equations([IMAGE.clone().requires_grad_()] * 2), "images[0] requires grad"),
    (TypeError, equations(None), "images must be a tensor", "None"),
    (TypeError, equations(boxes=None), "boxes must be a tensor", "None"),
    (ValueError, equations(boxes=BOXES[:1]), "B = 2", "(1, 4)"),
    (ValueError, equations(batch_index=INDEX + 1), "batch_index must lie in 0..1", "got 2"),
    (ValueError, equations(mode="nearest"), "mode='nearest' has no derivative", "another mode"),
    (ValueError, equations(impl="cuda"), "impl must be one of", "'cuda'"),
    (TypeError, equations(targets=None), "targets must be a tensor of shape (..., C, h, w)", "None", "torch.as_tensor"),
    (TypeError, equations(targets=IMAGES.to(torch.complex64)), "targets must be floating-point", "complex64"),
    (TypeError, equations(targets=torch.eye(3).to_sparse()), "targets must be a dense tensor", "targets.to_dense()"),
    (ValueError, equations(targets=torch.zeros(4)), "targets must have shape (..., C, h, w)", "(4,)"),
    (ValueError, equations(targets=torch.zeros(3, 0, 4)), "targets must have shape", "one pixel", "(3, 0, 4)"),
    (ValueError, equations(targets=torch.zeros(2, 4, 4)), "shape of the crops, (2, 3, 4, 4)", "got (2, 4, 4)"),
    (ValueError, equations(targets=torch.zeros(5, 3, 4, 4)), "targets", "(2, 3, 4, 4)", "(5, 3, 4, 4)", "leading"),
    (ValueError, equations(targets=torch.zeros(1, 2, 3, 4, 4)), "targets", "(2, 3, 4, 4)", "(1, 2, 3, 4, 4)"),
    (ValueError, equations(targets=IMAGES.to("meta")), "images and targets", "cpu and meta", "targets.to('cpu')"),
    (ValueError, equations(metric="ncc"), "metric must be one of 'l2', 'zncc'", "did you mean 'zncc'?"),
    (TypeError, equations(metric=2), "metric must be one of", "2 (int)"),
    (ValueError, equations(metric="zncc", huber=1.0), "huber belongs to metric='l2'", "huber=1.0", "leave it out"),
    (TypeError, equations(huber="1"), "huber must be a number", "'1' (str)"),
    (TypeError, equations(huber=True), "huber must be a number", "True (bool)"),
    (ValueError, equations(huber=0), "huber must be more than 0", "got 0"),
    (ValueError, equations(huber=float("nan")), "huber must be more than 0", "nan"),
    (ValueError, equations(boxes=BOXES.clone().requires_grad_()), "boxes requires grad", "no_grad", "boxes.detach()"),
    (ValueError, equations(IMAGES.clone().requires_grad_()), "images requires grad", "crop_with_jacobian"),
    (ValueError, equations(targets=IMAGES.clone().requires_grad_()), "targets requires grad", "targets.detach()"),
    (ValueError, with_tangent(BOXES), "boxes requires grad or has a tangent"),
    (
        ValueError,
        lambda: torch.func.vmap(lambda b: normal_equations(IMAGES, b, IMAGES).loss)(BOXES[None]),
        "torch.func transforms",
        "crop_with_jacobian",
    ),
    (
        ValueError,
        lambda: torch.func.grad(lambda b: normal_equations(IMAGES, b, IMAGES).loss.sum())(BOXES),
        "torch.func transforms",
    ),
    (TypeError, equations(shards(IMAGES, Shard(0)), shards(BOXES, Shard(0))), "DTensor of images", "images.to_local()"),
    # coverage
    (TypeError, covered([1, 2, 3, 4], 4, 8), "boxes must be a tensor", "[1, 2, 3, 4] (list)"),
    (ValueError, covered(BOX, 0, 8), "size must be at least 1", "0 (int)"),
    (TypeError, covered(BOX, 4, None), "image_size must be an int or (h, w)", "None"),
    (ValueError, covered(BOX, 4, (8, 0)), "image_size must be at least 1", "(8, 0)"),
    (ValueError, covered(BOX, 4, IMAGES.shape), "image_size", "length 4", "shape[-2:]"),
    (ValueError, covered(BOX, 4, 8, mode="cubic"), "mode", "'cubic'", "did you mean 'bicubic'?"),
    (ValueError, covered(BOX, 4, 8, sigma=1.0), "sigma belongs to mode='gaussian'"),
    (ValueError, covered(GRAD, 4, 8, mode="nearest"), "mode='nearest' has no gradient", "boxes.detach()"),
]


@pytest.fixture
def no_work(monkeypatch):
    def worked(*args, **options):
        pytest.fail("the crop ran before the error was found")

    monkeypatch.setattr(_ops, "crop", worked)
    monkeypatch.setattr(_ops, "jacobian", worked)
    monkeypatch.setattr(_ops, "gram", worked)


@pytest.mark.parametrize(("error", "call", "words"), [
    pytest.param(error, call, words, id=f"{i}-{re.sub('[^a-z0-9]+', '-', words[0].lower())[:40]}")
    for i, (error, call, *words) in enumerate(CASES)
])  # fmt: skip
@pytest.mark.usefixtures("no_work")
def test_message(error, call, words):
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error  # not a subclass that something deeper raised
    text = str(caught.value)
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.usefixtures("no_work")
def test_the_guard_against_work_works():
    with pytest.raises(pytest.fail.Exception, match="ran before"):
        crop(IMAGES, BOX, 4)


@pytest.mark.parametrize("function", OTHERS, ids=["crop_with_jacobian", "nn.Crop"])
def test_the_other_names_check_alike(function):
    """The same checks, with the same texts, stand before them."""
    arguments = () if isinstance(function, diffcrop.nn.Crop) else (4,)
    for image, box in ((IMAGE[0], BOX), (IMAGES, torch.zeros(5, 4)), (IMAGES, BOX.to("meta")), (None, BOX)):
        with pytest.raises((TypeError, ValueError)) as expected:
            crop(image, box, 4)
        with pytest.raises(type(expected.value), match=re.escape(str(expected.value))):
            function(image, box, *arguments)


def test_values_are_looked_at_only_where_that_is_free():
    """Where nobody may look, an index out of range is no error but a NaN crop for its box alone."""
    wrong = INDEX + 1
    with pytest.raises(ValueError, match="batch_index must lie in"):
        crop(IMAGES, BOXES, 4, batch_index=wrong)
    for given in (IMAGES, [IMAGE, IMAGE]):

        def mapped(b, given=given):
            return crop(given, b, 4, batch_index=wrong)

        result = torch.func.vmap(mapped)(BOXES[None])[0]
        assert result.shape == (2, 3, 4, 4)
        assert result[0].isfinite().all()
        assert result[1].isnan().all()


CHECKING = (_check, _check_crop, sys.modules[crop.__module__])


def raises_in(module):
    """First and last line of every `raise` of a module."""
    tree = ast.parse(Path(module.__file__).read_text())
    return {(node.lineno, node.end_lineno) for node in ast.walk(tree) if isinstance(node, ast.Raise)}


def test_every_raise_has_a_case():
    """Run the cases (and those of the box functions) under a tracer: no `raise` of the checks is left out."""
    modules = {module.__file__: module for module in CHECKING}
    seen = {name: set() for name in modules}

    def trace(frame, event, argument):
        lines = seen.get(frame.f_code.co_filename)
        if lines is None:
            return None
        if event == "line":
            lines.add(frame.f_lineno)
        return trace

    boxes_cases = next(mark for mark in test_boxes.test_errors.pytestmark if mark.name == "parametrize").args[1]
    calls = [call for _, call, *_ in CASES] + [case.values[1] for case in boxes_cases]
    before = sys.gettrace()
    for call in calls:
        sys.settrace(trace)
        try:
            call()
        except Exception:
            continue
        finally:
            sys.settrace(before)
    for name, module in modules.items():
        spans = raises_in(module)
        assert spans
        missed = [span for span in sorted(spans) if not seen[name] & set(range(span[0], span[1] + 1))]
        assert not missed, f"{Path(name).name}: no test reaches the `raise` at lines {missed}"


@pytest.mark.skipif(diffcrop.implementations()["cpu"] is not None, reason="no compiled library")
@pytest.mark.parametrize("make", [
    lambda image, box, n: diffcrop.crop(image, box, n),
    lambda image, box, n: diffcrop.crop([image, image], box, n),
    lambda image, _, n: diffcrop.crop_rotated(image, torch.tensor([3.0, 3, 2, 2, 5]), n),
    lambda image, box, n: diffcrop.paste(image, box, n),
])  # fmt: skip
def test_what_memory_does_not_hold_is_told_by_its_shape(make):
    n = 2**26
    with pytest.raises(RuntimeError, match=rf"not enough memory for a result of \d+ x 3 x {n} x {n} numbers"):
        make(torch.rand(3, 6, 6), torch.tensor([1.0, 1, 4, 5]), n)
