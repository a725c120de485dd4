"""How far onnxruntime is from eager mode, for every filter and padding.

python tests/onnx_agreement.py docs/onnx.md       (some minutes)
"""

from __future__ import annotations

import sys
import warnings
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

## torch.export

`torch.export.export` keeps the crop as one operator, `diffcrop::crop`, with its kernels and its gradients. Import
diffcrop before `torch.export.load`, which must find the operator. For ONNX export the model itself, not such a program,
or name `impl="reference"` in it.
"""


if __name__ == "__main__":
    made = TEXT.format(onnxruntime=onnxruntime.__version__, torch=torch.__version__, boxes=len(BOXES), table=table())
    Path(sys.argv[1]).write_text(made)
