"""Errors name arguments that the called function has: every argument of every function is given what does not fit."""

from __future__ import annotations

import inspect
import re
import warnings

import numpy as np
import pytest
import torch

import diffcrop
from diffcrop.compat import jax, kornia, tensorflow, torchvision

IMAGES = torch.rand(2, 3, 8, 9)
BOX = torch.tensor([1.0, 2.0, 5.0, 6.0])
BOXES = torch.stack([BOX, BOX])
TURNED = torch.tensor([[4.0, 4.0, 3.0, 5.0, 30.0]] * 2)
QUADS = torch.tensor([[[1.0, 1.0], [5.0, 0.0], [6.0, 6.0], [0.0, 5.0]]] * 2)
CORNERS = torch.tensor([[[1.0, 1.0], [5.0, 1.0], [5.0, 6.0], [1.0, 6.0]]] * 2)
MATRICES = torch.eye(3)[None].repeat(2, 1, 1)
INDEX = torch.tensor([0, 1])
ROWS = torch.cat([INDEX[:, None].float(), BOXES], 1)
PATCHES = torch.rand(2, 3, 4, 4)
MAPS = {"fine": torch.rand(2, 3, 16, 16), "coarse": torch.rand(2, 3, 8, 8)}
DEVICE = {"dtype": torch.float32, "device": "cpu"}


class Method:
    """A call of a module's method: its arguments and those that the module was made with."""

    def __init__(self, make, **options):
        self.make, self.options = make, options
        self.__name__ = f"{make.__name__}.forward"

    def __call__(self, **arguments):
        return self.make(**self.options)(**arguments)


# What is called, and arguments that it takes; those that are not here have their defaults.
CALLS = [
    (diffcrop.crop, {"images": IMAGES, "boxes": BOXES, "size": 4}),
    (diffcrop.crop, {"images": IMAGES, "boxes": BOXES, "size": 4, "batch_index": INDEX}),
    (diffcrop.crop, {"images": [*IMAGES], "boxes": [BOXES, BOXES], "size": 4}),
    (diffcrop.crop_with_jacobian, {"images": IMAGES, "boxes": BOXES, "size": 4}),
    (diffcrop.normal_equations, {"images": IMAGES, "boxes": BOXES, "targets": PATCHES}),
    (diffcrop.normal_equations_of, {"crops": PATCHES, "jacobian": PATCHES[..., None], "targets": PATCHES}),
    (diffcrop.coverage, {"boxes": BOXES, "size": 4, "image_size": 8}),
    (diffcrop.crop_rotated, {"images": IMAGES, "boxes": TURNED, "size": 4}),
    (diffcrop.crop_rotated, {"images": [*IMAGES], "boxes": [TURNED, TURNED], "size": 4}),
    (diffcrop.crop_quad, {"images": IMAGES, "quads": QUADS, "size": 4}),
    (diffcrop.crop_quad, {"images": IMAGES, "quads": QUADS, "size": 4, "batch_index": INDEX}),
    (diffcrop.warp, {"images": IMAGES, "matrix": MATRICES, "size": 4}),
    (diffcrop.warp, {"images": [*IMAGES], "matrix": MATRICES, "size": 4, "batch_index": INDEX}),
    (diffcrop.warp_with_jacobian, {"images": IMAGES, "matrix": MATRICES, "size": 4}),
    (diffcrop.roi_align, {"input": IMAGES, "boxes": ROWS, "output_size": 4}),
    (diffcrop.roi_align, {"input": IMAGES, "boxes": [BOXES, BOXES], "output_size": 4}),
    (diffcrop.roi_align, {"input": [*IMAGES], "boxes": [BOXES, BOXES], "output_size": 4}),
    (diffcrop.roi_align, {"input": [*IMAGES], "boxes": ROWS, "output_size": 4}),
    (diffcrop.paste, {"patches": PATCHES, "boxes": BOXES, "size": 8}),
    (diffcrop.paste, {"patches": PATCHES, "boxes": BOXES, "canvas": IMAGES}),
    (diffcrop.paste, {"patches": PATCHES, "boxes": BOXES, "size": 8, "batch_size": 2, "batch_index": INDEX}),
    (diffcrop.paste, {"patches": PATCHES, "boxes": BOXES, "canvas": [*IMAGES]}),
    (diffcrop.paste, {"patches": PATCHES, "boxes": [BOXES[:1], BOXES[1:]], "canvas": [*IMAGES]}),
    (diffcrop.convert_boxes, {"boxes": BOXES, "image_size": 8, "to_coords": "unit"}),
    (diffcrop.invert_boxes, {"boxes": BOXES, "image_size": 8}),
    (diffcrop.boxes_to_theta, {"boxes": BOXES, "image_size": 8}),
    (diffcrop.theta_to_boxes, {"theta": MATRICES[:, :2], "image_size": 8}),
    (diffcrop.map_points, {"points": QUADS, "boxes": BOXES, "size": 4, "to": "image"}),
    (diffcrop.map_boxes, {"inner": BOXES[:, None], "boxes": BOXES, "size": 4, "to": "image"}),
    (diffcrop.warp_points, {"points": QUADS, "matrix": MATRICES}),
    (diffcrop.rotated_to_quads, {"boxes": TURNED}),
    (diffcrop.rotated_to_matrix, {"boxes": TURNED, "size": 4}),
    (diffcrop.quads_to_matrix, {"quads": QUADS, "size": 4}),
    (diffcrop.locate, {"image": IMAGES[0], "template": IMAGES[0, :, 2:6, 2:6]}),
    (diffcrop.fit_boxes, {"images": IMAGES[:1], "objective": lambda c: c.mean((1, 2, 3)), "init": BOXES[:1],
                          "size": 4, "steps": 2, "progress": False}),
    (diffcrop.nn.Crop, {"size": 4}),
    (Method(diffcrop.nn.Crop, size=4), {"images": IMAGES, "boxes": BOXES}),
    (diffcrop.nn.LearnableBox, {"image_size": 8, "init": BOX}),
    (diffcrop.nn.RoIAlign, {"output_size": 4}),
    (Method(diffcrop.nn.RoIAlign, output_size=4), {"input": IMAGES, "boxes": ROWS}),
    (diffcrop.nn.MultiScaleRoIAlign, {"featmap_names": ["fine"], "output_size": 4, "sampling_ratio": 2}),
    (
        Method(diffcrop.nn.MultiScaleRoIAlign, featmap_names=["fine", "coarse"], output_size=4, sampling_ratio=2),
        {"x": MAPS, "boxes": [BOXES, BOXES], "image_shapes": [(64, 64), (50, 64)]},
    ),
    (torchvision.roi_align, {"input": IMAGES, "boxes": ROWS, "output_size": 4}),
    (torchvision.roi_align, {"input": IMAGES, "boxes": [BOXES, BOXES], "output_size": 4}),
    (torchvision.resized_crop, {"img": IMAGES, "top": 1, "left": 1, "height": 4, "width": 5, "size": 4}),
    (torchvision.resized_crop, {"img": IMAGES, "top": 1.5, "left": 1, "height": 4, "width": 5, "size": 4}),
    (
        tensorflow.crop_and_resize,
        {"image": IMAGES.permute(0, 2, 3, 1), "boxes": BOXES / 8, "box_indices": INDEX, "crop_size": (4, 5)},
    ),
    (
        jax.scale_and_translate,
        {"image": IMAGES, "shape": (2, 3, 4, 4), "spatial_dims": (2, 3), "scale": torch.ones(2),
         "translation": torch.zeros(2), "method": "linear"},
    ),
    (kornia.crop_and_resize, {"input_tensor": IMAGES, "boxes": CORNERS, "size": (4, 4)}),
    (kornia.crop_and_resize, {"input_tensor": IMAGES, "boxes": QUADS, "size": (4, 4)}),
    (kornia.crop_by_boxes, {"input_tensor": IMAGES, "src_box": CORNERS, "dst_box": CORNERS}),
    (kornia.crop_by_boxes, {"input_tensor": IMAGES, "src_box": QUADS, "dst_box": CORNERS}),
    (kornia.crop_by_transform_mat, {"input_tensor": IMAGES, "transform": MATRICES, "out_size": (4, 4)}),
    (kornia.center_crop, {"input_tensor": IMAGES, "size": (4, 4)}),
]  # fmt: skip


def strange(value):
    """What hardly any argument takes, and near misses of the one that is right."""
    yield from (
        None,
        3,
        -1,
        0,
        2.5,
        float("nan"),
        10**400,
        "nonsense",
        True,
        object(),
        [],
        {},
        [1.0, "a"],
        b"bytes",
        1j,
    )
    yield from (np.zeros((64, 64)), np.zeros(3), [np.zeros((3, 8, 9))] * 2, torch.nn.Linear(2, 2), ("a" * 300,) * 5)
    yield from (2**31, (2**40, 2), (4, 4, 4), (4, 4, 4, 4), (0, 3), (4.5, 2), [True, 2])
    for shape in ((), (0,), (3,), (4,), (5,), (7, 3), (7, 4), (7, 5), (7, 6), (7, 8), (2, 2), (3, 4), (2, 0, 3, 3)):
        yield torch.zeros(shape)
    for shape in ((2, 1, 4), (2, 7, 5), (5, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5), (1, 1, 1, 1, 1, 1)):
        yield torch.ones(shape)
    yield from ([torch.zeros(3, 4)], [torch.zeros(3, 5)] * 2, [torch.zeros(2, 4), None], [torch.zeros(2, 3, 3)] * 3)
    yield from ([torch.zeros(2, 4), torch.zeros(2, 4).double()], [torch.zeros(2, 4), torch.zeros(4)], [[1, 2, 3, 4]])
    yield from ([IMAGES[0], IMAGES[0, :1]], [IMAGES[0], IMAGES[0, 0]], [IMAGES[0], None], [IMAGES], [IMAGES[0]] * 3)
    for tensor in [value] if isinstance(value, torch.Tensor) else [*value] if isinstance(value, list) else []:
        if not isinstance(tensor, torch.Tensor):
            continue
        wrong = [
            tensor.to(torch.complex64), tensor.bool(), tensor.to_sparse(), tensor.to("meta"), tensor[0], tensor[None],
            tensor[..., :1], tensor[:1].repeat(5, *[1] * (tensor.ndim - 1)), tensor * 0, tensor * torch.nan,
            tensor + 100, tensor.float(), tensor.tolist(), tensor.numpy(), tensor[..., None], tensor[:, None],
            tensor.clone().float().requires_grad_(), torch.cat([tensor, tensor], -1), tensor.roll(1, -1),
        ]  # fmt: skip
        yield from wrong
        if isinstance(value, list):
            yield from ([value[0], other] for other in wrong)
            yield from ([other, *value[1:]] for other in wrong)
            yield from ([other] * len(value) for other in wrong)


def parameters(call):
    function = call.make.forward if isinstance(call, Method) else call.__init__ if isinstance(call, type) else call
    return [name for name in inspect.signature(function).parameters if name != "self"]


def known(call):
    """All arguments that a text may name: a module's own, too."""
    if isinstance(call, Method):
        return {*parameters(call), *parameters(call.make)}
    return {*parameters(call)}


EVERY = {name for call, _ in CALLS for name in parameters(call)}


def named(text):
    """The arguments that a text speaks of as such, whosever they are."""
    text = re.sub(r"'[^']*'", "''", text)  # what came
    text = re.sub(r"\bshape\[-\d:\]", "", text)  # a tensor's
    text = re.sub(r"\b(diffcrop\.\w+|torch\.\w[\w.]*|crop(_\w+)?|warp)\([^()]*(\([^()]*\)[^()]*)*\)", "", text)
    found = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text))
    found |= set(re.findall(r"\b([a-z]+)(?:=|\[|\.\w+\(| must\b| is needed| requires| belongs| says)", text))
    found |= {word for pair in re.findall(r"\b([a-z]+) and ([a-z]+) must", text) for word in pair}
    return found & EVERY


# What has no end, or is the caller's own error.
SKIPPED = {("locate", "candidates"), ("fit_boxes", "objective"), ("fit_boxes", "callback"), ("fit_boxes", "optimizer"),
           ("LearnableBox", "device")}  # fmt: skip


def cases():
    for number, (call, valid) in enumerate(CALLS):
        for name in parameters(call):
            if (call.__name__, name) not in SKIPPED:
                yield pytest.param(call, valid, name, id=f"{number}-{call.__name__}-{name}")


def errors(call, valid, name):
    """What the texts are, of all that does not fit."""
    for value in strange(valid.get(name)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(**{**valid, name: value})
        except Exception as error:
            yield error


@pytest.mark.parametrize(("call", "valid", "name"), [*cases()])
def test_texts_name_what_the_function_has(call, valid, name):
    """One line below 400 characters, of the kinds that are promised, that speaks of this function's own arguments."""
    own = known(call)
    found = 0
    for error in errors(call, valid, name):
        text = str(error)
        assert type(error) in (TypeError, ValueError), text
        assert "\n" not in text
        assert len(text) < 400, text
        assert not named(text) - own, text
        assert any(re.search(rf"\b{each}\b", text) for each in own), text
        found += 1
    assert found > 20 or name in ("precision", "dtype", "device"), f"only {found} values of {name} were refused"


def test_every_public_function_is_called():
    functions = [getattr(diffcrop, name) for name in diffcrop.__all__ if name[0].islower()]
    functions = [each for each in functions if inspect.isfunction(each) and inspect.signature(each).parameters]
    functions += [getattr(module, name) for module in (jax, kornia, tensorflow, torchvision) for name in module.__all__]
    functions += [getattr(diffcrop.nn, name) for name in diffcrop.nn.__all__]
    called = [call for call, _ in CALLS]
    assert [each.__qualname__ for each in functions if each not in called] == []


def test_the_search_for_names_finds_them():
    text = "a batch-index column goes into batch_index, got boxes of 'quads=3'; see crop_rotated(images, boxes, size=4)"
    assert named(text) == {"batch_index"}
    assert named("images and boxes must be on the same device") == {"images", "boxes"}
    assert named("pass matrix.to(torch.float64), or canvas=") == {"matrix", "canvas"}
    assert named("input[1] is of another dtype") == {"input"}
