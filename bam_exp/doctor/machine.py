"""Checks of Python, packages, processor, memory, disk, compiler and SLURM."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from bam_exp import __version__
from bam_exp.cpu import available_cores
from bam_exp.doctor.finding import Check, Finding

CORE = ("torch", "numpy", "pydantic")
TRAIN = (
    "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "hydra-joblib-launcher", "tensorboard", "pandas", "scipy",
    "jinja2", "matplotlib", "captum", "faster-coco-eval", "pyyaml", "pillow", "rich", "filelock", "safetensors",
)  # fmt: skip
OPTIONAL = ("hydra-submitit-launcher", "hydra-optuna-sweeper", "onnx", "onnxruntime", "onnxscript", "timm")

GB = 10**9


def checks(output_dir: Path) -> list[Check]:
    """The checks of the machine."""
    return [
        Check("bam_exp", _package),
        Check("python", _python),
        Check("core packages", _core),
        Check("extra train", _train),
        Check("other packages", _optional),
        Check("cpu", _cpu),
        Check("memory", _memory),
        Check("compiler", _compiler),
        Check("output_dir", lambda: _folder(output_dir)),
        Check("slurm", _slurm),
    ]


def _package() -> Finding:
    return Finding("ok", f"{__version__} in {Path(__file__).resolve().parent.parent}")


def _python() -> Finding:
    text = f"{platform.python_version()}, {platform.platform()}"
    if sys.platform != "linux":
        return Finding("note", text, "the tests run on Linux only; signals, locks and GPUs may behave otherwise here")
    return Finding("ok", text)


def _versions(names: tuple[str, ...]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _listed(found: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found.items() if number) or "none"


def _too_old(found: dict[str, str | None]) -> list[str]:
    """The packages whose versions are not those that bam_exp declares; empty where that cannot be told."""
    try:
        from packaging.requirements import Requirement

        declared = [Requirement(line) for line in importlib.metadata.requires("bam_exp") or []]
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return []
    return [
        f"{one.name} {found[one.name]} (needs {one.specifier})"
        for one in declared
        if (number := found.get(one.name)) and not one.specifier.contains(number, prereleases=True)
    ]


def _core() -> Finding:
    found = _versions(CORE)
    missing = [name for name, number in found.items() if number is None]
    if wrong := [f"{name} is missing" for name in missing] + _too_old(found):
        return Finding("wrong", f"{_listed(found)}; {', '.join(wrong)}", "pip install --upgrade bam_exp")
    return Finding("ok", _listed(found))


def _train() -> Finding:
    found = _versions(TRAIN)
    if missing := [name for name, number in found.items() if number is None]:
        some = ", ".join(missing[:4]) + (" ..." if len(missing) > 4 else "")
        advice = "only BAM in your own network works; pip install 'bam_exp[train]' brings the commands"
        return Finding("note", f"not complete: {some} missing", advice)
    if wrong := _too_old(found):
        return Finding("wrong", ", ".join(wrong), "pip install --upgrade 'bam_exp[train]'")
    return Finding("ok", _listed(found))


def _optional() -> Finding:
    found = _versions(OPTIONAL)
    if wrong := _too_old(found):
        return Finding("wrong", ", ".join(wrong), "pip install --upgrade the package that is named")
    return Finding("ok", _listed(found))


def _cpu() -> Finding:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = entries.get("model name") or platform.processor() or platform.machine()
    flags = set((entries.get("flags") or entries.get("Features") or "").split())
    native = sorted(flags & {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})
    cores, all_cores = available_cores(), os.cpu_count() or 1
    bfloat16 = f"native bfloat16 ({', '.join(native)})" if native else "no native bfloat16"
    text = f"{name}, {cores} of {all_cores} cores, {bfloat16}"
    if (quota := _quota()) is not None and quota < cores - 0.5:
        return Finding(
            "note",
            f"{text}, of which a container grants {quota:.1f}",
            f"trainer.threads={max(1, int(quota))}: more threads than that wait for each other",
        )
    return Finding("ok", text)


def _quota() -> float | None:
    """The CPU cores that a container may use, or None if it is not limited."""
    try:
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(most) / int(period)
    except (OSError, ValueError):  # "max": no limit
        return None


def _memory() -> Finding:
    info = Path("/proc/meminfo")
    if not info.is_file():
        return Finding("not run", "this system does not say")
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in info.read_text().splitlines()}
    free, all_of_it = sizes["MemAvailable"], sizes["MemTotal"]
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None
    text = f"{free / GB:.1f} of {all_of_it / GB:.1f} GB free"
    if shared is not None:
        text += f", room for {shared / GB:.1f} GB in /dev/shm"
    if free < 2 * GB:
        return Finding("note", text, "a run of CIFAR-100 takes 1 to 3 GB: train one at a time")
    if shared is not None and shared < GB:
        return Finding("note", text, "photos are handed over in /dev/shm; for Docker add --ipc host")
    return Finding("ok", text)


def _compiler() -> Finding:
    found = shutil.which("g++") or shutil.which("clang++")
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    missing = [name for name, there in (("g++", found), ("Python.h", header.is_file())) if not there]
    if missing:
        return Finding(
            "note",
            f"{' and '.join(missing)} missing",
            "torch.compile needs both, and runs go on in eager mode without them; apt-get install g++ python3-dev",
        )
    return Finding("ok", f"{found}, {header}")


def _folder(folder: Path) -> Finding:
    """Whether runs can be written to a folder, and locked there."""
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return Finding("note", f"{folder}: this system has no flock", "do not start one run twice at the same time")
    except OSError as error:
        advice = "output_dir=DIR must exist, be writable and have file locks, or two processes could train one run"
        return Finding("wrong", f"{folder}: {error.strerror}", advice)
    text = f"{folder}: {free / GB:.1f} GB free, writable, has file locks"
    if free < 2 * GB:
        return Finding(
            "wrong", text, "a run of ResNet-50 keeps 0.4 GB while it trains; output_dir=DIR chooses a folder"
        )
    return Finding("ok", text)


def _slurm() -> Finding:
    if shutil.which("sbatch") is None:
        return Finding("ok", "not here, and not needed on one machine")
    asked = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, check=False)
    version = " ".join((asked.stdout or asked.stderr).split()[:20])
    if asked.returncode != 0:
        return Finding(
            "note", f"sbatch does not work: {version}", "ask your administrator; one machine does without it"
        )
    job = f", in job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    text = f"{version}{job}"
    if not _versions(("hydra-submitit-launcher",))["hydra-submitit-launcher"]:
        return Finding("note", text, "pip install 'bam_exp[train,slurm]' brings hydra/launcher=submitit_slurm")
    sacct = shutil.which("sacct")
    if sacct is None or subprocess.run([sacct, "-n", "-X", "-S", "now"], capture_output=True, check=False).returncode:
        advice = "without accounting a sweep never learns of a job that is lost: Ctrl-C, and type the command again"
        return Finding("note", f"{text}, without accounting (sacct)", advice)
    return Finding("ok", f"{text}, with accounting")
