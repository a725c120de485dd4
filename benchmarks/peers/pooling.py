"""RoIAlign elsewhere: onnxruntime's operator, and `grid_sample` with as many outputs as samples, averaged by bins."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from benchmarks.cases import Case
from benchmarks.problem import SAMPLES, Outcome, Prepared, Problem

from .base import Meaning, Peer, Tolerance, torch_call
from .sampling import normalized, theta


def _refuses(case: Case) -> str | None:
    return None if case.shape == "roi" else "only for RoIAlign"


def _meaning(problem: Problem) -> Meaning:
    return Meaning(problem.boxes.double(), problem.options())


def _prepare_onnxruntime(problem: Problem, pass_: str) -> Prepared:
    del pass_
    onnx, onnxruntime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    case, kinds = problem.case, onnx.TensorProto
    names = {"x": kinds.FLOAT, "rois": kinds.FLOAT, "index": kinds.INT64}
    node = onnx.helper.make_node(
        "RoiAlign", list(names), ["y"], output_height=case.size[0], output_width=case.size[1], spatial_scale=1.0,
        sampling_ratio=SAMPLES, mode="avg", coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    inputs = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in names.items()]
    output = onnx.helper.make_tensor_value_info("y", kinds.FLOAT, None)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "roi_align", inputs, [output]),
        opset_imports=[onnx.helper.make_opsetid("", 16)], ir_version=8,
    )  # fmt: skip
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    feed = {
        "x": problem.images.contiguous().numpy(),
        "rois": problem.boxes.numpy(),
        "index": problem.owner.numpy(),
    }

    def outcome(result: Any) -> Outcome:
        return Outcome(torch.from_numpy(result))

    return Prepared(lambda: session.run(None, feed)[0], outcome)


def _prepare_recipe(problem: Problem, pass_: str) -> Prepared:
    """All boxes of an image in one tall grid, with a sample for every output."""
    case = problem.case
    count, (b, channels, _, _) = case.boxes, case.images
    h, w = SAMPLES * case.size[0], SAMPLES * case.size[1]

    def function(images: Tensor, boxes: Tensor) -> Tensor:
        grid = affine_grid(theta(boxes), [b * count, channels, h, w], align_corners=False)
        read = grid_sample(images, grid.view(b, count * h, w, 2), padding_mode="border", align_corners=False)
        pooled = avg_pool2d(read, SAMPLES)
        return pooled.view(b, channels, count, *case.size).transpose(1, 2).flatten(0, 1)

    return torch_call(function, problem.images, normalized(problem), problem.cotangent, pass_, problem)


def _recipe_meaning(problem: Problem) -> Meaning:
    return Meaning(normalized(problem).double(), problem.options() | {"coords": "normalized"})


ONNXRUNTIME = Peer(
    "onnxruntime",
    "onnxruntime's `RoiAlign`, which has no gradient",
    _prepare_onnxruntime,
    _meaning,
    Tolerance(2e-5, 0, 0, "positions in float32"),
    passes=("forward",),
    needs=("onnx", "onnxruntime"),
    refuses=_refuses,
    pool="onnxruntime",
)
ROI_RECIPE = Peer(
    "roi recipe",
    "`grid_sample` of all samples in one grid, and `avg_pool2d`",
    _prepare_recipe,
    _recipe_meaning,
    Tolerance(2e-5, 2e-5, 2e-2, "positions in float32; where a sample lies on a pixel, its slope may be the other one"),
    refuses=_refuses,
)
