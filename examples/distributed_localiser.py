r"""Train a localiser on many processes: it finds a textured blob in noise by the gradient of its crop's box alone.

A small network looks at an image and names a box. The loss compares the crop at that box with the blob's texture; no
true box enters the training, they serve to measure the overlap (IoU) that is printed. Every process draws its own part
of every batch, so the numbers are those of one process with the whole batch, up to rounding.

One process:

    python examples/distributed_localiser.py

One machine, one process for each GPU (or, here, two on its processor):

    torchrun --standalone --nproc-per-node 2 examples/distributed_localiser.py

Many machines, the same line on each; any of them can be HOST, and the port must be open to the others:

    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id crop --rdzv-endpoint HOST:29400 \
        examples/distributed_localiser.py

DistributedDataParallel keeps a copy of the network in every process; ``--fsdp`` splits its parameters, their gradients
and the optimizer's state among them (FSDP2, `torch.distributed.fsdp.fully_shard`). GPUs with NCCL serve where there are
any, else processors with gloo.
"""

from __future__ import annotations

import argparse
import gc
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

import diffcrop

SIDE = 32
CROP = 8


class Localiser(nn.Module):
    """(B, 1, SIDE, SIDE) -> boxes (B, 4), cxcywh in unit coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 24, 5, stride=2, padding=2), nn.ReLU()
        )
        self.box = nn.Sequential(nn.Linear(24 * (SIDE // 4) ** 2, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, images: Tensor) -> Tensor:
        numbers = self.box(self.features(images).flatten(1))
        centre = 0.5 + 0.4 * numbers[:, :2].tanh()
        side = 0.4 + 0.15 * numbers[:, 2:].tanh()
        return torch.cat([centre, side], 1)


def texture() -> Tensor:
    """What is looked for: two smooth waves under a bell, so that boxes beside it feel where it lies."""
    at = (torch.arange(CROP) + 0.5) / CROP * 2 - 1
    bell = torch.exp(-1.5 * (at[:, None] ** 2 + at**2))
    return (bell * (1 + 0.5 * at[:, None] - 0.5 * at))[None, None]


def batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of noise with the texture somewhere, and the boxes it lies in."""
    numbers = torch.rand(count, 4, generator=generator)
    boxes = torch.cat([0.3 + 0.4 * numbers[:, :2], 0.35 + 0.1 * numbers[:, 2:]], 1)
    # The inverse box places the texture: outside of it the crop is zero.
    convention = {"coords": "unit", "box_format": "cxcywh"}
    placed = diffcrop.crop(
        texture().expand(count, 1, CROP, CROP), diffcrop.invert_boxes(boxes, **convention), SIDE,
        padding_mode="zeros", mode="bicubic", **convention,
    )  # fmt: skip
    return placed + 0.1 * torch.randn(placed.shape, generator=generator), boxes


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of cxcywh boxes."""
    low = torch.maximum(a[:, :2] - a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = torch.minimum(a[:, :2] + a[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    shared = (high - low).clamp(min=0).prod(1)
    return shared / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - shared)


def wrap(model: nn.Module, fsdp: bool, device: torch.device) -> nn.Module:
    if not dist.is_initialized():
        return model
    if not fsdp:
        return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in model.children():
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(options: argparse.Namespace, device: torch.device) -> None:
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if options.batch % world:
        raise SystemExit(f"--batch {options.batch} must be divisible by the {world} processes")
    mine = slice(rank * options.batch // world, (rank + 1) * options.batch // world)
    torch.manual_seed(options.seed)  # the same network everywhere
    model = wrap(Localiser().to(device), options.fsdp, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    target = texture().to(device)
    generator = torch.Generator().manual_seed(options.seed)
    for step in range(1, options.steps + 1):
        images, truth = (t[mine].to(device) for t in batch(options.batch, generator))
        boxes = model(images)
        crops = diffcrop.crop(images, boxes, CROP, coords="unit", box_format="cxcywh", padding_mode="zeros")
        loss = (crops - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (1, options.steps) or step % options.every == 0:
            said = torch.stack([loss.detach(), overlap(boxes.detach(), truth).mean()])
            if world > 1:
                dist.all_reduce(said)
                said /= world
            if rank == 0:
                print(f"step {step:4d}  loss {said[0]:.5f}  IoU {said[1]:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a localiser by the box gradient of its crops.")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64, help="images in a step, of all processes together")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--every", type=int, default=50, help="steps between two lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fsdp", action="store_true", help="FSDP2 instead of DistributedDataParallel")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    device = torch.device(options.device)
    if "LOCAL_RANK" not in os.environ:  # not started by torchrun
        if options.fsdp:
            raise SystemExit("--fsdp splits parameters among processes: start them with torchrun")
        train(options, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        train(options, device)
        # DistributedDataParallel is in a cycle of references: left to the interpreter's end, it may abort there.
        gc.collect()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
