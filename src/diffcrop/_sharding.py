"""DTensors: how an operation on sharded tensors is made of the same operation on every device's shards.

A crop is independent per box and per channel, so along one dimension of the mesh there are four ways to split it
(`_HELD`), and whatever a device does not hold all of, it contributes to by a summand: G and B (see `_ops`) are sums
over boxes and over channels, so their value there is Partial. Nothing else is communicated.

The rules are registered with the operators (`torch.library.register_torch_dispatch`) when the first DTensor is met, and
the functions of the reference carry them as a decorator. `register_sharding` would not do: it keeps one cached result
for all sizes (only single ints enter its key), gives each device the global ``image_shape``, and has no place for a
fill of its own for every device.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ._context import is_sharded

P = ParamSpec("P")
T = TypeVar("T")

# Along one dimension of a mesh, which dimension of the images, boxes and crops is split; None: each device has all.
_HELD: dict[str, dict[str, int | None]] = {
    "batch": {"images": 0, "boxes": 0, "crops": 0},
    "rows": {"images": None, "boxes": 0, "crops": 0},
    "channels": {"images": 1, "boxes": None, "crops": 1},
    "whole": {"images": None, "boxes": None, "crops": None},
}
# What kind of tensor each argument is.
_KINDS = {
    "images": "images",
    "boxes": "boxes",
    "index": "boxes",
    "d_boxes": "boxes",
    "grad": "crops",
}
# Of each operator: the kind of its result, and whether that is a sum over what is split.
_RESULTS = {
    "crop": (("crops", False),),
    "crop_grad_images": (("images", True),),
    "crop_grad_boxes": (("boxes", True),),
    "crop_jacobian": (("crops", False),),
}
_registered = False


def align(images: Any, boxes: Any, index: Any, batch: int | None) -> tuple[Any, Any]:
    """Boxes (and index) split as their images are; images stay where they are. Checked by `_check_crop.shards`.

    The gradient of the boxes returns to the placements that they came with, summed where it has to be.
    """
    _register()
    from torch.distributed.tensor import Replicate, Shard

    mesh, rows = images.device_mesh, boxes.ndim > 1
    by_image = [batch is not None and p == Shard(0) for p in images.placements]
    split = by_image
    if not any(by_image):
        split = [a.is_replicate() and b == Shard(0) for a, b in zip(images.placements, boxes.placements, strict=True)]
        parts = math.prod([mesh.size(i) for i, s in enumerate(split) if s])
        if batch is not None and boxes.ndim == 3 and batch % parts:
            split = [False] * mesh.ndim
    placements = [Shard(0) if s and rows else Replicate() for s in split]
    boxes = boxes.redistribute(placements=placements)
    return boxes, None if index is None else index.redistribute(placements=placements)


def settled(result: Any) -> Any:
    """The same, but its gradient comes back in its own placements: a sum's would come whole to every device."""
    return result.redistribute(placements=result.placements)


def replicated(tensor: Tensor, like: Any) -> Any:
    """A tensor that every device has made alike, on the mesh of another."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(tensor, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)


def per_shard(**results: bool) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Give a function of the reference its rule: the kinds of its results, and which are sums over what is split."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            if not is_sharded(args[0]):
                return function(*args, **kwargs)
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            if torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in given.values()):
                raise NotImplementedError(
                    "for DTensors there is no derivative of a Jacobian and none beyond the second order; "
                    "detach them, or crop what their to_local() gives"
                )
            return _run(function, given, tuple(results.items()))

        return wrapped

    return decorate


def _register() -> None:
    """Once, and not on import: torch.distributed.tensor takes its time, and is absent from some builds."""
    global _registered
    if _registered:
        return
    from torch.distributed.tensor import DTensor

    for name, results in _RESULTS.items():
        for overload in getattr(torch.ops.diffcrop, name).overloads():
            full_name = name if overload == "default" else f"{name}.{overload}"
            torch.library.register_torch_dispatch(f"diffcrop::{full_name}", DTensor, _rule(results))
    _registered = True


def _rule(results: Sequence[tuple[str, bool]]) -> Callable:
    def rule(_: type, operator: Any, __: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Any:
        names = (argument.name for argument in operator._schema.arguments)
        return _run(operator, dict(zip(names, args, strict=False)) | dict(kwargs or {}), results)

    return rule


@torch.no_grad()
def _run(function: Callable, given: dict[str, Any], results: Sequence[tuple[str, bool]]) -> Any:
    """``function`` on this device's shards, and what it gives as DTensors."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    tensors: dict[str, Any] = {k: given[k] for k in _KINDS if isinstance(given.get(k), Tensor)}
    first = next(iter(tensors.values()))
    mesh = first.device_mesh if isinstance(first, DTensor) else None
    if any(not isinstance(t, DTensor) or t.device_mesh != mesh for t in tensors.values()):
        raise ValueError(f"images, boxes and all that belongs to them must be DTensors on one mesh, got {tensors}")
    image_shape = given["image_shape"] if "image_shape" in given else tensors["images"].shape
    roles = _roles(tensors, image_shape[0])

    def placements(kind: str, is_sum: bool = False) -> list[Any]:
        dims = [_HELD[role][kind] for role in roles]
        return [
            Shard(d) if d is not None else Partial() if is_sum and role != "whole" else Replicate()
            for d, role in zip(dims, roles, strict=True)
        ]

    local = dict(given)
    for name, tensor in tensors.items():
        local[name] = tensor.redistribute(placements=placements(_KINDS[name])).to_local()
    channels = _part(image_shape[1], mesh, [r == "channels" for r in roles])
    if "image_shape" in given:
        images = _part(image_shape[0], mesh, [r == "batch" for r in roles])
        local["image_shape"] = (len(images), len(channels), *image_shape[2:])
    if "fill" in given:
        local["fill"] = _fill(given["fill"], channels)
    elif "options" in given:
        options = given["options"]
        local["options"] = options._replace(fill=_fill(options.fill, channels))

    shapes = {
        "images": tuple(image_shape[:2]),
        "boxes": tuple(tensors["boxes"].shape[:1]),
        "crops": (tensors["boxes"].shape[0], image_shape[1]),
    }
    made = function(*local.values())

    def whole(part: Tensor | None, kind: str, is_sum: bool) -> Tensor | None:
        if part is None:
            return None
        shape = (*shapes[kind], *part.shape[len(shapes[kind]) :])
        spread = placements(kind, is_sum)
        return DTensor.from_local(
            part, mesh, spread, run_check=False, shape=torch.Size(shape), stride=_stride(part, shape)
        )

    if len(results) == 1:
        return whole(made, *results[0])
    return [whole(part, *result) for part, result in zip(made, results, strict=True)]


def _roles(tensors: dict[str, Any], count: int) -> list[str]:
    """How each dimension of the mesh splits the work: a key of `_HELD`. What is placed otherwise is redistributed."""
    from torch.distributed.tensor import Shard

    by_kind = {_KINDS[name]: tensor.placements for name, tensor in reversed(tensors.items())}
    images = by_kind.get("images")
    # Where no image is at hand, its gradient is what is asked for, and split as the crops are.
    over_channels = by_kind["crops"] if images is None else images
    roles = []
    for i in range(tensors["boxes"].device_mesh.ndim):
        own_images = "index" not in tensors and (count > 1 or (images is not None and images[i] == Shard(0)))
        if over_channels[i] == Shard(1):
            roles.append("channels")
        elif any(placement[i] == Shard(0) for placement in by_kind.values()):
            roles.append("batch" if own_images else "rows")
        else:
            roles.append("whole")
    rows, mesh = tensors["boxes"].shape[0], tensors["boxes"].device_mesh
    parts = math.prod([mesh.size(i) for i, role in enumerate(roles) if role == "batch"])
    if rows != count and count % parts:
        raise ValueError(f"{rows} boxes of {count} images cannot be split alike into {parts} parts")
    return roles


def _part(length: int, mesh: Any, split: Sequence[bool]) -> range:
    """Which of ``length`` elements this device has: chunks of chunks, in the order of the mesh."""
    here = range(length)
    for i, cut in enumerate(split):
        if cut:
            step = -(-len(here) // mesh.size(i))
            here = here[step * mesh.get_local_rank(i) :][:step]
    return here


def _fill(fill: Sequence[float], channels: range) -> tuple[float, ...]:
    """One per channel of this device."""
    mine = tuple(fill) if len(fill) == 1 else tuple(fill[channels.start : channels.stop])
    return mine or (0.0,)


def _stride(part: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    last = part.dim() in (4, 5) and part.stride(1) == 1 and part.stride(-1) != 1
    whole = torch.channels_last if part.dim() == 4 else torch.channels_last_3d
    layout = whole if last else torch.contiguous_format
    return torch.empty(shape, device="meta", memory_format=layout).stride()
