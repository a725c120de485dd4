"""What `test_distributed.py` launches by torchrun: checks that each process makes with the others.

    torchrun --standalone --nproc-per-node 2 tests/distributed_worker.py FOLDER [CHECK ...]

Writes one JSON object per process, the check's name -> None or its traceback, to the folder given, and prints nothing.
A check that fails on one process alone ends the launch there: what the others wait for will not come.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor import distribute_tensor as _distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

import diffcrop
from diffcrop import coverage, crop, crop_with_jacobian

f64 = torch.float64
# Every process has the whole already, and gloo does not send all dtypes.
distribute_tensor = functools.partial(_distribute_tensor, src_data_rank=None)
SECONDS = 60
SIZE = (2, 3)
R, S0, S1, S2, S3 = Replicate(), Shard(0), Shard(1), Shard(2), Shard(3)
# A fill for every channel, boxes partly outside and in coordinates that need the size of the image: all of it must be
# that of the shard or of the whole, whichever is right.
OPTIONS = {
    "mode": "bicubic",
    "padding_mode": "constant",
    "fill": (0.1, 0.5, 0.7),
    "coords": "unit",
    "box_format": "xywh",
}
IMPLEMENTATIONS = [name for name in ("cpu", "reference") if diffcrop.implementations()[name] is None]
ORDER = {"all_reduce": 0, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 2}


def data(*leading, batch=4, channels=3):
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(batch, channels, 9, 11, generator=generator, dtype=f64)
    boxes = torch.rand(*leading, 4, generator=generator, dtype=f64) / 3
    return images, boxes + torch.tensor([-0.2, 0.1, 0.5, 0.8], dtype=f64)


def here(tensor, mesh, placements):
    return distribute_tensor(tensor.detach(), mesh, placements).requires_grad_(tensor.is_floating_point())


def near(actual, expected, atol=1e-13):
    assert (expected != 0).any()
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual.full_tensor(), expected, rtol=0, atol=atol * max(1, float(expected.abs().max())))


def counts(comm):
    return [sum(n for op, n in comm.get_comm_counts().items() if name in str(op)) for name in ORDER]


def gradients(images, boxes, index, twice, **options):
    """The crop, both gradients of a sum of squares of it, and both derivatives of the box gradient's own square."""
    result = crop(images, boxes, SIZE, batch_index=index, **options)
    # Numbers that depend on where in the whole result an element lies.
    weight = torch.arange(1, result.numel() + 1, dtype=f64).sin().reshape(result.shape)
    if isinstance(result, DTensor):
        weight = distribute_tensor(weight, result.device_mesh, result.placements)
    first = torch.autograd.grad((weight * result).square().sum(), (images, boxes), create_graph=True)
    second = torch.autograd.grad(first[1].square().sum(), (images, boxes)) if twice else ()
    return result, *first, *second


def compare(mesh, images, boxes, by_images, by_boxes, result, image_grad, *, index=None, forward=(0, 0, 0),
            twice=True, impls=IMPLEMENTATIONS, **options):  # fmt: skip
    """A sharded call gives the whole one's numbers, in the placements named, by the collectives counted."""
    for impl in impls:
        named = {**OPTIONS, **options, "impl": impl}
        expected = gradients(images.requires_grad_(), boxes.requires_grad_(), index, twice, **named)
        mine = here(images, mesh, by_images), here(boxes, mesh, by_boxes)
        owner = None if index is None else here(index, mesh, by_boxes)
        with CommDebugMode() as comm:
            crop(*mine, SIZE, batch_index=owner, **named)
        assert counts(comm) == list(forward), comm.get_comm_counts()
        actual = gradients(*mine, owner, twice, **named)
        assert actual[0].placements == tuple(result)
        assert actual[1].placements == tuple(image_grad)
        assert actual[2].placements == mine[1].placements
        assert actual[0].stride() == expected[0].stride()
        for a, e in zip(actual, expected, strict=True):
            near(a, e)
        # And the communication of the backward pass: the images are never gathered, box gradients summed where split.
        with CommDebugMode() as comm:
            crop(*mine, SIZE, batch_index=owner, **named).backward(actual[0].detach())
        back = counts(comm)
        if mesh.ndim == 1 and by_images == [S1] and by_boxes == [R]:
            assert back == [1, 0, 0], comm.get_comm_counts()
        if mesh.ndim == 1 and by_boxes == [S0] and by_images != [S1] and not any(forward):
            assert back == [0, 0, 0], comm.get_comm_counts()


# --- two processes ----------------------------------------------------------------------------------------------------


def batch(mesh):
    compare(mesh, *data(4), [S0], [S0], [S0], [S0], impls=[None, *IMPLEMENTATIONS])
    compare(mesh, *data(4, 3), [S0], [S0], [S0], [S0])
    compare(mesh, *data(5, batch=5), [S0], [S0], [S0], [S0])  # uneven
    compare(mesh, *data(4), [S0], [R], [S0], [S0])
    compare(mesh, *data(), [S0], [R], [S0], [S0])  # one box for all
    compare(mesh, *data(4, 3), [S0], [S1], [S0], [S0], forward=(0, 1, 0))  # only boxes travel


def channels(mesh):
    compare(mesh, *data(4), [S1], [R], [S1], [S1], impls=[None, *IMPLEMENTATIONS])  # uneven: two channels and one
    compare(mesh, *data(4, 3), [S1], [R], [S2], [S1])
    compare(mesh, *data(4), [S1], [S0], [S1], [S1], forward=(0, 1, 0))
    compare(mesh, *data(4, channels=4), [S1], [R], [S1], [S1], fill=0.5)
    images, boxes = (here(t, mesh, p) for t, p in zip(data(4), ([S1], [R]), strict=True))
    crop(images, boxes, SIZE, coords="unit").sum().backward()  # a gradient that is the same everywhere
    assert images.grad.placements == (S1,)
    images, boxes = data()
    compare(mesh, images[0].detach(), boxes, [S0], [R], [S0], [S0])  # a single image: dimension 0 is its channels
    index = torch.tensor([2, 0, 3, 3, 0])
    compare(mesh, *data(5), [S1], [R], [S1], [S1], index=index)


def rows(mesh):
    """Replicated images: the gradient of a shared one is a sum that is left for the layers below to make."""
    images, boxes = data(5)
    compare(mesh, images[0].detach(), boxes, [R], [S0], [S0], [Partial()])
    compare(mesh, *data(5), [R], [S0], [S0], [Partial()], index=torch.tensor([2, 0, 3, 3, 0]))
    compare(mesh, *data(4), [R], [S0], [S0], [S0])  # one box each: no other process needs the rest of the images
    # Uneven: the boxes are gathered.
    compare(mesh, *data(3, 2, batch=3), [R], [S0], [R], [R], forward=(0, 1, 0), twice=False)
    compare(mesh, *data(4), [R], [R], [R], [R])


def layouts_and_dtypes(mesh):
    images, boxes = data(4)
    last = images.to(memory_format=torch.channels_last)
    result = crop(distribute_tensor(last, mesh, [S0]), here(boxes, mesh, [S0]), SIZE)
    assert result.stride() == crop(last, boxes, SIZE).stride()
    assert result.to_local().is_contiguous(memory_format=torch.channels_last)
    whole = (images * 255).to(torch.uint8)
    for mode in ("bilinear", "nearest"):
        for image in (whole, whole.to(torch.int16)):
            mine = crop(distribute_tensor(image, mesh, [S1]), distribute_tensor(boxes, mesh, [R]), SIZE, mode=mode,
                        coords="unit")  # fmt: skip
            expected = crop(image, boxes, SIZE, mode=mode, coords="unit")
            assert mine.dtype == expected.dtype
            assert mine.shape == expected.shape
            assert torch.equal(mine.to_local(), expected.chunk(2, 1)[mesh.get_rank()])
    nothing = here(boxes[:0], mesh, [S0])
    assert crop(here(images[0], mesh, [R]), nothing, SIZE).shape == (0, 3, *SIZE)


def other_functions(mesh):
    images, boxes = data(4)
    for by_images, by_boxes, placed in (([S0], [S0], (S0,)), ([S1], [R], (S1,)), ([R], [S0], (S0,))):
        for impl in IMPLEMENTATIONS:
            named = {**OPTIONS, "box_format": "cxcywh", "impl": impl}
            expected = crop_with_jacobian(images, boxes, SIZE, **named)
            mine = distribute_tensor(images, mesh, by_images), distribute_tensor(boxes, mesh, by_boxes)
            actual = crop_with_jacobian(*mine, SIZE, **named)
            near(actual.crop, expected.crop)
            near(actual.jacobian, expected.jacobian)
            assert actual.jacobian.placements == placed
    expected = torch.autograd.grad(coverage(boxes.requires_grad_(), SIZE, 1).square().sum(), boxes)[0]
    mine = here(boxes, mesh, [S0])
    near(coverage(mine, SIZE, 1), coverage(boxes, SIZE, 1))
    near(torch.autograd.grad(coverage(mine, SIZE, 1).square().sum(), mine)[0], expected)


def compiled(mesh):
    torch._dynamo.reset()
    images, boxes = data(4)
    for by_images, by_boxes in (([S0], [S0]), ([S1], [R])):
        mine = here(images, mesh, by_images), here(boxes, mesh, by_boxes)
        function = torch.compile(lambda i, b: crop(i, b, SIZE, **OPTIONS), backend="aot_eager", fullgraph=True)
        result = function(*mine)
        near(result, crop(images, boxes, SIZE, **OPTIONS))
        plain = images.requires_grad_(), boxes.requires_grad_()
        expected = torch.autograd.grad(crop(*plain, SIZE, **OPTIONS).square().sum(), plain)
        for a, e in zip(torch.autograd.grad(result.square().sum(), mine), expected, strict=True):
            near(a, e)


@contextlib.contextmanager
def raises(kind, *texts):
    try:
        yield
    except kind as error:
        for text in texts:
            assert text in str(error), str(error)  # noqa: PT017
        return
    raise AssertionError(f"no {kind.__name__} with {texts}")


def errors(mesh):
    """What cannot be had without gathering the images says so, with the placement and what would do."""
    images, boxes = data(4)
    i0, b0 = here(images, mesh, [S0]), here(boxes, mesh, [S0])
    for dim in (2, 3):
        with raises(ValueError, f"Shard(dim={dim})", "images.redistribute(placements=[Replicate()]"):
            crop(here(images, mesh, [Shard(dim)]), b0, SIZE)
    with raises(ValueError, "Shard(dim=1)", "Shard(0)"):
        crop(here(images[0], mesh, [S1]), b0, SIZE)
    with raises(ValueError, "Partial(sum)"):
        crop(DTensor.from_local(images, mesh, [Partial()]), b0, SIZE)
    index = torch.arange(4)
    with raises(ValueError, "batch_index", "Shard(dim=0)", "(B, K, 4)"):
        crop(i0, b0, SIZE, batch_index=here(index, mesh, [S0]))
    images, many = data(5, 2, batch=5)
    with raises(ValueError, "divisible by the 2 parts", "(5, 2, 4)"):
        crop(here(images, mesh, [S0]), here(many, mesh, [R]), SIZE)
    for i, b, k, name in ((i0, boxes, None, "boxes"), (images[:4], b0, None, "images"), (i0, b0, index, "batch_index")):
        with raises(TypeError, f"{name} must be a DTensor", "distribute_tensor"):
            crop(i, b, SIZE, batch_index=k)
    for i, b, name in (([i0[0]], b0, "images"), (i0, [boxes] * 4, "boxes")):
        with raises(TypeError, f"a list of {name}"):
            crop(i, b, SIZE)
    other = init_device_mesh("cpu", (1, mesh.size()))
    with raises(ValueError, "same mesh"):
        crop(i0, here(boxes, other, [R, R]), SIZE)
    with raises(NotImplementedError, "Jacobian", "to_local()"):
        crop_with_jacobian(i0, b0, SIZE)
    # The operator itself, called with rows that fall between the parts.
    images, boxes = data(6, batch=3)
    with raises(ValueError, "6 boxes of 3 images"):
        torch.ops.diffcrop.crop(here(images, mesh, [S0]), here(boxes, mesh, [S0]), None, SIZE, False,
                                "bilinear", True, "border", [0.0], 0.5, False)  # fmt: skip


class Localiser(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.features = torch.nn.Conv2d(2, 3, 3, stride=3)
        self.box = torch.nn.Linear(27, 4)

    def forward(self, images):
        box = self.box(self.features(images).tanh().flatten(1)).sigmoid()
        return crop(images, box, (4, 5), coords="unit", box_format="cxcywh", mode="bicubic")


def train(model, parameters, images, target, steps=4):
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(images) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def training(mesh, wrap):
    """Each process has its part of the batch; parameters and losses end where one process with all of it ends."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(8, 2, 9, 9, generator=generator, dtype=f64)
    target = torch.rand(8, 2, 4, 5, generator=generator, dtype=f64)
    torch.manual_seed(7)
    alone, shared = Localiser().to(f64), Localiser().to(f64)
    start = [p.detach().clone() for p in alone.parameters()]
    shared.load_state_dict(alone.state_dict())
    expected = train(alone, alone.parameters(), images, target)
    model = wrap(shared)
    mine = slice(4 * mesh.get_rank(), 4 * mesh.get_rank() + 4)
    losses = train(model, model.parameters(), images[mine], target[mine])
    dist.all_reduce(losses)
    torch.testing.assert_close(losses / 2, expected, rtol=0, atol=1e-13)
    for p, q, was in zip(shared.parameters(), alone.parameters(), start, strict=True):
        p = p.detach().full_tensor() if isinstance(p, DTensor) else p
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
        assert not torch.allclose(q, was, rtol=0, atol=1e-3)


def ddp(mesh):
    training(mesh, DistributedDataParallel)


def fsdp2(mesh):
    def wrap(model):
        for part in model.children():
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(p, DTensor) and p.placements == (S0,) for p in model.parameters())
        return model

    training(mesh, wrap)


# --- four processes ---------------------------------------------------------------------------------------------------


def grid(mesh):
    """Two ways at once: over the batch and the channels, or twice over the same."""
    alike = functools.partial(compare, impls=IMPLEMENTATIONS[:1])
    alike(mesh, *data(4), [S0, S1], [S0, R], [S0, S1], [S0, S1])
    alike(mesh, *data(4), [S1, S0], [R, S0], [S1, S0], [S1, S0])
    alike(mesh, *data(4, 3), [S0, S1], [S0, R], [S0, S2], [S0, S1])
    alike(mesh, *data(4, 3), [S0, S0], [S0, S0], [S0, S0], [S0, S0])
    alike(mesh, *data(5, batch=5), [S0, S0], [S0, S0], [S0, S0], [S0, S0])
    alike(mesh, *data(4, channels=6), [S1, S1], [R, R], [S1, S1], [S1, S1], fill=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    alike(mesh, *data(6), [R, S1], [S0, R], [S0, S1], [Partial(), S1], index=torch.tensor([2, 0, 3, 3, 0, 1]))
    alike(mesh, *data(4), [R, S0], [S0, S0], [R, S0], [R, S0], forward=(0, 2, 0))  # boxes
    with raises(ValueError, "divisible by the 4 parts"):
        images, boxes = data(6, 2, batch=6)
        crop(here(images, mesh, [S0, S0]), here(boxes, mesh, [S0, S0]), SIZE)


CHECKS = {
    2: (batch, channels, rows, layouts_and_dtypes, other_functions, compiled, errors, ddp, fsdp2),
    4: (grid,),
}


def main(folder, *names):
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", timeout=timeout)
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (2,) * (world // 2))
    # Not by a collective: those are what a failed check leaves out of step.
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    said = {}
    for check in [c for c in CHECKS[world] if c.__name__ in names or not names]:
        try:
            check(mesh)
            said[check.__name__] = None
        except Exception:
            said[check.__name__] = traceback.format_exc()
        Path(folder, f"{rank}.json").write_text(json.dumps(said))
        store.set(f"diffcrop/{check.__name__}/{rank}", "failed" if said[check.__name__] else "passed")
        all_of_them = {store.get(f"diffcrop/{check.__name__}/{r}") for r in range(world)}
        if all_of_them != {b"passed"}:
            os._exit(1)  # without the farewells of a group that is out of step
    gc.collect()  # a DistributedDataParallel that is left to the interpreter's end may abort there
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
