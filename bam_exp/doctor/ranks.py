"""An examination of two ranks on one GPU, over gloo: batch norms that are synchronised give what one process gives."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn

from bam_exp.attention import BAM
from bam_exp.doctor.finding import Finding
from bam_exp.training.batch_norm import synchronise


def two_ranks(folder: Path, device: str = "cuda") -> Finding:
    """Outputs and gradients of two ranks with synchronised batch norms equal those of one process, eager and compiled."""
    x = _network(device)[1]
    expected = _gradients(_network(device)[0], x)
    found = []
    for mode in ("eager", "compiled") if device == "cuda" else ("eager",):
        file = folder / f"gradients-{mode}.pt"
        context = multiprocessing.get_context("spawn")
        ranks = [context.Process(target=_rank, args=(rank, device, mode, folder / mode, file)) for rank in range(2)]
        for one in ranks:
            one.start()
        for one in ranks:
            one.join()
        if any(one.exitcode for one in ranks):
            found.append((mode, float("inf")))
            continue
        got: Tensor = torch.load(file, weights_only=True)
        found.append((mode, float((got - expected).norm() / expected.norm())))
    text = ", ".join(f"{mode}: gradients off by {error:.1e}" for mode, error in found)
    if any(error > 1e-9 for mode, error in found if mode == "eager"):
        return Finding("wrong", text)
    if any(error > 1e-9 for _, error in found):
        return Finding(
            "note", text, "SyncBatchNorm and torch.compile: leave trainer.compile at auto, which is eager there"
        )
    return Finding("ok", text)


def _network(device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(16, 64, 8, 8, dtype=torch.float64).to(device).contiguous(memory_format=torch.channels_last)
    network = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), BAM(64, 8)).double().to(device)
    return network.to(memory_format=torch.channels_last), x


def _gradients(network: Any, x: Tensor) -> Tensor:
    network(x).square().sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()]).cpu()


def _rank(rank: int, device: str, mode: str, store: Path, file: Path) -> None:
    """One of the ranks: half of the batch, and the sum of both ranks' gradients."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    network, x = _network(device)
    synchronise(network, gpu=device == "cuda")
    forward = torch.compile(network, dynamic=False) if mode == "compiled" else network
    half = len(x) // 2
    forward(x[rank * half : (rank + 1) * half]).square().sum().backward()
    total = torch.cat(
        [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    ).cpu()
    distributed.all_reduce(total)
    if rank == 0:
        torch.save(total, file)
    distributed.destroy_process_group()
