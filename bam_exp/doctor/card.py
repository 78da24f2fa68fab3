"""The GPU as PyTorch sees it."""

from pathlib import Path

import torch

from bam_exp.doctor.finding import Finding


def card(_folder: Path) -> Finding | None:
    """Name, compute capability, memory, the kernels that PyTorch has for it and native bfloat16; None without a GPU."""
    built = torch.version.cuda
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return Finding(
            "note", f"torch {torch.__version__} is built without CUDA", "pip install torch brings one with it"
        )
    try:
        count = torch.cuda.device_count()
        torch.ones(2, device="cuda").sum().item()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        return _unusable(reason, built) if torch.cuda.device_count() or "too old" in reason else None
    capability, archs = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    free, total = torch.cuda.mem_get_info()
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    text = (
        f"{count} x {torch.cuda.get_device_name()}, compute capability {capability[0]}.{capability[1]}, "
        f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free, {'native' if native else 'no native'} bfloat16, "
        f"torch {torch.__version__} for CUDA {built} with {' '.join(archs)}, cuDNN {cudnn}"
    )
    if not has_kernels(capability, archs):
        return Finding("note", text, "no kernels of its own for this card: they are compiled at each first use, slowly")
    if not native:
        return Finding("note", text, "trainer.precision=auto is float32 on this card, which only emulates bfloat16")
    if free < 4e9:
        return Finding("note", text, "another process uses this GPU; CUDA_VISIBLE_DEVICES or trainer.gpus chooses one")
    return Finding("ok", text)


def _unusable(reason: str, built: str | None) -> Finding:
    if "too old" in reason:
        advice = f"update the driver to one for CUDA {built}, or install a PyTorch that is built for an older CUDA"
    elif "no kernel image" in reason:
        advice = "this PyTorch has no kernels for this card; install one whose list has its compute capability"
    elif "out of memory" in reason:
        advice = "another process uses the GPU's memory (nvidia-smi says which)"
    else:
        advice = "see the driver's line above; with trainer.device=auto a run trains on the CPU and says why"
    return Finding("wrong", reason, advice)


def has_kernels(capability: tuple[int, int], archs: list[str]) -> bool:
    """Whether one of the architectures of a build (`sm_90`, `compute_120`) has machine code for a compute capability.

    Machine code runs on cards of the same major version and the same or a higher minor version.
    """
    for arch in archs:
        kind, _, number = arch.partition("_")
        major, minor = divmod(int("".join(filter(str.isdigit, number))), 10)
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
    return False
