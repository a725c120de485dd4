"""Exported modules: programs that others run, and ONNX."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch.export import Dim

import diffcrop
from diffcrop import crop
from helpers import FILTERS, MODES, PADDINGS, rand
from onnx_agreement import BOXES, OTHERS, Called, Module, agreement, exported, other_agreement, run
from plain import SIZE, SMOOTH, agree, boxes, image, needs_kernels


class Glimpse(torch.nn.Module):
    """A model with a crop in the middle: a box for each image is predicted, and what is there is looked at."""

    def __init__(self, **given):
        super().__init__()
        self.where = torch.nn.Linear(2, 4).double()
        self.what = torch.nn.Conv2d(2, 3, 2).double()
        self.given = given

    def forward(self, images):
        centre = torch.sigmoid(self.where(images.mean((2, 3))))
        return (
            self.what(crop(images, centre, 4, coords="unit", box_format="cxcywh", **self.given))
            .square()
            .mean((1, 2, 3))
        )


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("strict", [False, True])
def test_export(impl, strict, generator):
    """A module with a crop in it becomes a graph that gives the same, also for other numbers of images and of boxes."""
    module = diffcrop.nn.Crop(SIZE, impl=impl, **SMOOTH)
    given = image(generator, 2), boxes(generator, 2, 3)
    batch = Dim("batch")
    dynamic = {0: batch}, {0: batch, 1: Dim("boxes")}
    program = torch.export.export(module, given, dynamic_shapes=dynamic, strict=strict)
    for count, several in ((2, 3), (5, 4), (3, 1)):
        i, b = image(generator, count), boxes(generator, count, several)
        agree(program.module()(i, b), module(i, b), 1e-14)


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")  # torch's own
@pytest.mark.parametrize("decomposed", [False, True])
def test_export_saved_and_loaded(decomposed, generator):
    """In a model, by the implementation that is chosen, through a file, and trained by it."""
    torch.manual_seed(0)
    module = Glimpse()
    program = torch.export.export(module, (image(generator, 2),), dynamic_shapes=({0: Dim("batch")},))
    if decomposed:
        program = program.run_decompositions()
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    if diffcrop.implementations()["cpu"] is None:
        assert "diffcrop.crop.default" in operators(loaded)  # the kernels serve
    i = image(generator, 5)
    again = loaded.module()
    agree(again(i), module(i), 1e-13)
    if not decomposed:  # a decomposed program has no derivative by its parameters to offer
        for model in (again, module):
            model(i).sum().backward()
        grads = dict(again.named_parameters())
        for name, parameter in module.named_parameters():
            agree(grads[name].grad, parameter.grad, 1e-12)


# --- ONNX -------------------------------------------------------------------------------------------------------------

QUICK = {
    ("nearest", True, "circular", False),
    ("nearest", True, "constant", True),
    ("area", True, "renormalize", False),
    ("bilinear", True, "border", False),
    ("bilinear", False, "reflection", True),
}
GRID = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in ((m, a, p, c) for m, a in [*FILTERS, ("nearest", True)] for p in PADDINGS for c in (False, True))
]


@pytest.mark.parametrize(("mode", "antialias", "padding_mode", "align_corners"), GRID)
def test_onnx(mode, antialias, padding_mode, align_corners):
    """For ordinary and for wild boxes, other ones than those of the export, and more of them."""
    found = agreement(mode, antialias, padding_mode, align_corners)
    assert found.error <= 1e-5
    assert found.nodes < 4000


@pytest.mark.parametrize(("mode", "dtype"), [
    ("nearest", torch.uint8),
    pytest.param("bilinear", torch.uint8, marks=pytest.mark.slow),
    pytest.param("bilinear", torch.float16, marks=pytest.mark.slow),
    pytest.param("bicubic", torch.float64, marks=pytest.mark.slow),
])  # fmt: skip
def test_onnx_dtypes(mode, dtype):
    assert agreement(mode, True, "zeros", False, dtype).error <= (1e-3 if dtype == torch.float16 else 1e-5)


def test_onnx_in_a_model(generator):
    """With boxes that the model makes, in unit coordinates, for any number of images."""
    torch.manual_seed(0)
    module, given = Glimpse(mode="area").float(), image(generator, 2).float()
    model = exported(module, (given,), ({0: Dim("batch")},))
    assert {node.domain for node in model.graph.node} == {""}
    i = image(generator, 5).float()
    agree(run(model, (i,)), module(i), 1e-6)


def test_onnx_rows_of_boxes(generator):
    """(B, K, 4), both to change, in the older way of saying so."""
    module = Module(mode="area", padding_mode="zeros")
    given = image(generator, 2).float(), boxes(generator, 2, 3).float()
    model = exported(module, given, ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}))
    i, b = image(generator, 3).float(), boxes(generator, 3, 5).float()
    agree(run(model, (i, b)), module(i, b), 1e-6)


# Those that take longest; an antialiased warp a minute.
LENGTHY = ("antialiased", "volumes", "crop_quad", "exact")


@pytest.mark.parametrize(
    "said", [pytest.param(n, marks=pytest.mark.slow if any(w in n for w in LENGTHY) else ()) for n in OTHERS]
)
def test_onnx_of_other_boxes(said):
    found = other_agreement(OTHERS[said])
    assert found.error <= 1e-6
    assert found.nodes < 4000


def test_onnx_of_paste(generator):
    """As many patches as were there at the export, wherever they are put."""
    patches, boxes_ = rand(3, 2, 4, 5, generator=generator).float(), torch.tensor([[1.0, 2, 6, 7]]).repeat(3, 1)
    module = Called(lambda p, b: diffcrop.paste(p, b, (9, 8)))
    model = exported(module, (patches, boxes_), {"given": ({}, {})})
    boxes_ = torch.tensor([[1.3, 2.1, 6.2, 7.9], [-2, 4, 3, 12], [2, 2, 9, 5.5]])
    agree(run(model, (patches * 0.7, boxes_)), module(patches * 0.7, boxes_), 1e-6)


def turned(**given):
    return Called(lambda i, b: diffcrop.crop_rotated(i, b, 3, **given))


ANY_SIZE = ({1: Dim.DYNAMIC, 2: Dim.DYNAMIC}, {})
TURNED = torch.tensor([1.5, 1.5, 2, 2, 20.0])


@pytest.mark.parametrize("sizes", [ANY_SIZE[0], {2: Dim.AUTO}, {1: Dim("height", max=512)}])
def test_exported_antialiased_warps_are_of_one_size(sizes, generator):
    """How many levels their graph has depends on it, so another size would be read from the wrong ones."""
    i = rand(1, 3, 4, generator=generator).float()
    for given in ({}, {"impl": "reference"}):
        with pytest.raises(ValueError, match=r"images must have a fixed height and width.*antialias=False"):
            torch.export.export(turned(**given), (i, TURNED), dynamic_shapes={"given": (sizes, {})})
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"images must have a fixed height and width"):
        exported(turned(), (i, TURNED), {"given": (sizes, {})})
    more = rand(5, 3, 4, generator=generator).float()
    any_channels = torch.export.export(turned(), (more[:2], TURNED), dynamic_shapes={"given": ({0: Dim.AUTO}, {})})
    agree(any_channels.module()(more, TURNED), turned()(more, TURNED), 1e-6)


def test_exported_warps_of_any_size(generator):
    """Without antialiasing, or by the nearest pixel, there is one level."""
    wide = rand(1, 40, 33, generator=generator).float()
    box = torch.tensor([15.0, 20, 30, 25, 20])
    i = rand(1, 3, 4, generator=generator).float()
    for given in ({"antialias": False}, {"mode": "nearest"}):
        program = torch.export.export(turned(**given), (i, TURNED), dynamic_shapes={"given": ANY_SIZE})
        agree(program.module()(wide, box), turned(**given)(wide, box), 1e-6)
    model = exported(turned(antialias=False), (i, TURNED), {"given": ANY_SIZE})
    agree(run(model, (wide, box)), turned(antialias=False)(wide, box), 1e-6)


@needs_kernels
@pytest.mark.parametrize("function", ["roi_align", "crop_rotated", "paste"])
def test_onnx_refuses_the_kernels_of_other_boxes(function, generator):
    i, box = image(generator, 1), torch.tensor([[1.0, 1, 3, 3]])
    call = {
        "roi_align": lambda i, b: diffcrop.roi_align(i, [b], 2, impl="cpu"),
        "crop_rotated": lambda i, b: diffcrop.crop_rotated(i, torch.cat([b, b[:, :1]], 1), 2, impl="cpu"),
        "paste": lambda i, b: diffcrop.paste(i, b, 8, impl="cpu"),
    }[function]
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"No ONNX function found for .*diffcrop\."):
        exported(Called(call), (i, box), {"given": ({}, {})})


@needs_kernels
def test_onnx_refuses_the_kernels(generator):
    """A named implementation never gives way to another."""
    given = image(generator, 2), boxes(generator, 2)
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"No ONNX function found for .*diffcrop\.crop"):
        exported(Module(impl="cpu"), given, ({}, {}))


def test_the_table_in_the_documents():
    """It has every filter and padding, no larger error than is promised, and says what the code says of itself."""
    text = (Path(__file__).parents[1] / "docs" / "onnx.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0][1:] == list(PADDINGS)
    filters = [*MODES, "nearest"]
    rows, others = rows[: 2 + len(filters)], rows[2 + len(filters) :]
    assert [row[0] for row in rows[2:]] == filters
    assert [row[0] for row in others[2:]] == list(OTHERS)
    assert all(0 < float(row[1].split(",")[0]) <= 1e-6 for row in others[2:])
    errors = [float(cell.split(",")[0]) for row in rows[2:] for cell in row[1:]]
    assert len(errors) == len(filters) * len(PADDINGS)
    assert 0 < max(errors) <= 1e-5
    assert f"The boxes are {len(BOXES)}," in text


def test_the_code_in_the_documents(tmp_path, monkeypatch, capsys):
    """It runs, with another number of boxes than it was exported with."""
    text = (Path(__file__).parents[1] / "docs" / "onnx.md").read_text()
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {})
    assert float(capsys.readouterr().out.splitlines()[-1]) < 1e-5
