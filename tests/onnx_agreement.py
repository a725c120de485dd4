"""How far onnxruntime is from eager mode, for every filter and padding.

python tests/onnx_agreement.py docs/onnx.md       (some minutes)
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch

import diffcrop
from helpers import MODES, PADDINGS, options

SIZE = (5, 6)
IMAGE = (20, 24)
# Inside, over the edges, mirrored, empty, reductions of 40 and 10^9, far away, and what no crop can be made of.
BOXES = [
    (2.0, 3, 15, 12), (-3.2, 4.1, 30.3, 18), (1.3, 1, 5, 4.7), (20.1, 2.3, 3.3, 17.9), (7, 7.5, 7, 7.5),
    (-90, -80, 150, 120.5), (-3e9, 1, 3e9, 19), (1e7, 3, 1e7 + 30, 21), (-1e15, -1e12, 1e16, 1e13),
    (float("nan"), 1, 5, 5), (1, 2, float("inf"), 5),
]  # fmt: skip


class Module(torch.nn.Module):
    def __init__(self, **given):
        super().__init__()
        self.given = given

    def forward(self, images, boxes, index=None):
        return diffcrop.crop(images, boxes, SIZE, batch_index=index, **self.given)


def exported(module, arguments, dynamic):
    """The ONNX model, with which PyTorch's exporter has no quarrel but its own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module.eval(), arguments, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    return program.model_proto


def run(model, arguments):
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    values = [tensor.numpy() for tensor in arguments]
    return torch.from_numpy(session.run(None, dict(zip(names, values, strict=True)))[0])


@dataclass(frozen=True)
class Agreement:
    """The largest difference, in parts of the image's range, and the nodes of the graph."""

    error: float
    nodes: int


def agreement(mode, antialias, padding_mode, align_corners, dtype=torch.float32):
    """Of crops of another number of boxes and images than those of the export, each box naming its image."""
    generator = torch.Generator().manual_seed(0)
    module = Module(**options(mode, antialias, padding_mode), align_corners=align_corners)
    scale = 255 if dtype == torch.uint8 else 1
    images = (torch.rand(3, 2, *IMAGE, generator=generator) * scale).to(dtype)
    boxes, index = torch.tensor(BOXES), torch.arange(len(BOXES)) % 3
    rows = torch.export.Dim("boxes")
    dynamic = {0: torch.export.Dim("batch")}, {0: rows}, {0: rows}
    model = exported(module, (images[:2], boxes[:3], index[:3] % 2), dynamic)
    expected, result = module(images, boxes, index), run(model, (images, boxes, index))
    assert result.dtype == expected.dtype
    assert expected[:6].double().std() > 0.01
    if expected.is_floating_point():
        assert torch.equal(result.isnan(), expected.isnan())
    difference = (result.double() - expected.double()).nan_to_num().abs().max() / scale
    return Agreement(float(difference), len(model.graph.node))


def table(align_corners=False):
    """Markdown: a row for each filter, a column for each padding."""
    lines = ["| | " + " | ".join(PADDINGS) + " |", "| --- " * (len(PADDINGS) + 1) + "|"]
    for mode in (*MODES, "nearest"):
        cells = []
        for padding_mode in PADDINGS:
            found = agreement(mode, True, padding_mode, align_corners)
            cells.append(f"{found.error:.1e}, {found.nodes}")
            print(mode, padding_mode, cells[-1], file=sys.stderr, flush=True)
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Other:
    """A function of other kinds of boxes: what the page says of it, the call, and its arguments.

    The first argument are images; of the others, which have a row for each box, ``few`` are exported, and all are run.
    """

    said: str
    function: Callable[..., torch.Tensor]
    arguments: tuple[torch.Tensor, ...]
    few: int = 3


def _others():
    generator = torch.Generator().manual_seed(0)
    image, small = torch.rand(2, 2, *IMAGE, generator=generator), torch.rand(2, 2, 7, 8, generator=generator)
    volume, signal = torch.rand(2, 2, 7, 8, 9, generator=generator), torch.rand(2, 2, 30, generator=generator)
    nan = float("nan")
    boxes = torch.tensor([(2.0, 3, 15, 12), (-3.2, 4.1, 30.3, 18), (7, 7.5, 7, 7.5), (20.1, 2.3, 3.3, 17.9),
                          (-90, -80, 150, 120.5), (1e7, 3, 1e7 + 30, 21), (nan, 1, 5, 5)])  # fmt: skip
    turned = torch.tensor([(10.0, 9, 8, 6, 30), (4, 12, 7, 20, -70), (12, 8, -5, 4, 200), (3, 3, 30, 41, 12),
                           (8, 8, 0, 0, 1), (-60, 3, 2e3, 9e4, 77), (1, nan, 2, 2, 0)])  # fmt: skip
    quads = torch.tensor([(2.0, 3, 14, 4, 15, 13, 1, 12), (1, 1, 9, 2, 8, 8, 2, 9), (5, 5, 20, 4, 22, 18, 4, 17),
                          (-9, -9, 40, 1, 30, 30, -5, 22), (nan, 0, 1, 0, 1, 1, 0, 1)])  # fmt: skip
    quads = quads.unflatten(1, (4, 2))
    matrices = torch.tensor([(0.8, 0.1, 2, -0.1, 0.9, 3, 0, 0, 1), (1.7, 0, -3, 0.4, 2, 1, 0.02, -0.01, 1),
                             (-1, 0, 20, 0, 1, 0, 0, 0, 1), (1, 0, 0, 0, nan, 0, 0, 0, 1)])  # fmt: skip
    matrices = matrices.unflatten(1, (3, 3))
    bricks = torch.tensor([(1.0, 1, 1, 7, 6, 5), (-1, 0.5, 0.2, 9, 8, 7), (5, 6, 4, 2, 1, 1), (0, 0, 0, 900, 8, 7)])
    spans = torch.tensor([(1.0, 20), (5, 9.5), (17, 3), (-200, 400), (8, 8), (3, nan)])

    def owners(places):
        return torch.arange(len(places)) % 2

    def named(places):
        return torch.cat([owners(places)[:, None], places], 1)

    def indexed(function, **given):
        return lambda images, places, index: function(images, places, (3, 2), batch_index=index, **given)

    def pooled(*given, **more):
        return lambda images, rois: diffcrop.roi_align(images, rois, 3, 0.9, *given, **more)

    def along(size):
        return lambda images, places, index: diffcrop.crop(images, places, size, batch_index=index)

    sharp = {"antialias": False, "mode": "bicubic", "padding_mode": "zeros"}
    yield Other("`roi_align`, `sampling_ratio=2`", pooled(2, True), (image, named(boxes)))
    yield Other("`roi_align`, adaptive", pooled(), (image, named(boxes)))
    yield Other('`roi_align`, `mode="exact"`', pooled(mode="exact"), (image, named(boxes)))
    yield Other("`roi_align` of volumes", pooled(2, True), (volume, named(bricks)))
    for text, function, places in (
        ("`crop_rotated`", diffcrop.crop_rotated, turned),
        ("`crop_quad`", diffcrop.crop_quad, quads),
        ("`warp`", diffcrop.warp, matrices),
    ):
        yield Other(f"{text}, bicubic, `antialias=False`", indexed(function, **sharp), (image, places, owners(places)))
    yield Other(
        "`crop_rotated`, antialiased, images of 7 x 8", indexed(diffcrop.crop_rotated), (small, turned, owners(turned))
    )
    yield Other("`crop` of volumes", along((3, 4, 2)), (volume, bricks, owners(bricks)))
    yield Other("`crop` of signals", along(7), (signal, spans, owners(spans)))


OTHERS = {other.said: other for other in _others()}


def other_agreement(other):
    """Of boxes in another number than in the export."""
    images, *places = other.arguments
    rows = torch.export.Dim("rows")
    few = tuple(t[: other.few] for t in places)
    module = Called(other.function)
    model = exported(module, (images, *few), {"given": ({}, *[{0: rows} for _ in few])})
    expected, result = module(*other.arguments), run(model, other.arguments)
    assert result.dtype == expected.dtype
    assert {node.domain for node in model.graph.node} == {""}
    assert expected[0].double().std() > 0.01
    assert torch.equal(result.isnan(), expected.isnan())
    return Agreement(float((result - expected).nan_to_num().abs().max()), len(model.graph.node))


class Called(torch.nn.Module):
    """A function as a module, which is what is exported."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *given):
        return self.function(*given)


def other_table():
    """Markdown: a row for each of the other functions."""
    lines = ["| | largest difference, nodes |", "| --- | --- |"]
    for said, other in OTHERS.items():
        found = other_agreement(other)
        lines.append(f"| {said} | {found.error:.1e}, {found.nodes} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


TEXT = """# Export

## ONNX

It needs the packages onnx and onnxscript, and onnxruntime to run the result: the extra `onnx`.

```python
import onnxruntime
import torch
import diffcrop

model, images = diffcrop.nn.Crop(16), torch.rand(1, 3, 48, 64)
boxes = torch.tensor([[[4.0, 8, 40, 44], [0, 0, 64, 48]]])
several = torch.export.Dim("several")
torch.onnx.export(model.eval(), (images, boxes), "model.onnx", dynamo=True, dynamic_shapes=({{}}, {{1: several}}))

session = onnxruntime.InferenceSession("model.onnx")
three = torch.rand(1, 3, 4) * 40
(crops,) = session.run(None, {{"images": images.numpy(), "boxes": three.numpy()}})
print(abs(crops - model(images, three).numpy()).max())
```

exports a model with a crop in it as a graph of standard operators, those of the reference. The size of the crops is
fixed; the numbers of boxes and of images, and the size of the images, may change where `dynamic_shapes` says so. There
must be **at least one box**: with none, onnxruntime divides by the number of boxes (Einsum) and the process ends.

The largest difference between onnxruntime {onnxruntime} and eager mode of torch {torch}, images in [0, 1], and the
number of nodes of a crop. The boxes are {boxes}, among them mirrored and empty ones, ones 10^16 pixels wide, NaN and
infinite ones; of other images and in another number than in the export.
Written by `python tests/onnx_agreement.py docs/onnx.md`.

{table}

## Other kinds of boxes

The same of `roi_align`, of boxes that do not lie upright, of volumes and of signals, as functions of images, of boxes
and of `batch_index`. Boxes are in another number than in the export, empty, mirrored, far and NaN ones among them.

{others}

* An **antialiased warp** is a graph for every level of its image (the whole of it, a half, a quarter and so on), all of
  which are computed. Its nodes are some 400 for each level, and exporting them takes minutes. With `antialias=False`
  there is one level. How many levels there are depends on the image's height and width, so **these must be fixed**
  for an antialiased warp: sizes that may change are an error.
* **`paste`** serves as many patches as it was exported with, also where `dynamic_shapes` names another number: each is
  drawn over those before, by nodes of its own. onnxruntime says which dimension it did not expect.
* Lists of images, `compat.kornia.crop_by_boxes` and `compat.torchvision.resized_crop` with tensors look at values, and
  `locate`, `fit_boxes` and `normal_equations` search or solve: they are not exported.
* `impl="cpu"` is refused, as for crops: graphs of ONNX have no operators of ours.

## torch.export

`torch.export.export` keeps the crop as one operator, `diffcrop::crop`, with its kernels and its gradients. Import
diffcrop before `torch.export.load`, which must find the operator. For ONNX export the model itself, not such a program,
or name `impl="reference"` in it.

Antialiased warps are exported for one height and width of their images here, too, and sizes that may change are an
error; with `strict=True` it is one of PyTorch's own words, about `_sym_log2`. `torch.compile` takes any size, and
compiles again for another length of the longer side.
"""


if __name__ == "__main__":
    versions = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__}
    made = TEXT.format(**versions, boxes=len(BOXES), table=table(), others=other_table())
    Path(sys.argv[1]).write_text(made)
