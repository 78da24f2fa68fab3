"""Weights as safetensors files, and copying them into a network."""

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, contiguous_format, nn

from bam_exp.errors import DataError
from bam_exp.files import WEIGHTS, write_output

_CLASSIFIERS = ("head.", "heads.", "roi_heads.box_predictor.")
"""Layers whose shape depends on the number of classes."""


def save_weights(weights: Mapping[str, Tensor], path: str | Path, *, header: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that `load_weights` reads; it appears as a whole or not at all. Raises DataError.

    The same weights and header give the same bytes. header: the metadata of the file, see `metadata`.
    """
    # safetensors refuses tensors that share memory, as tied weights do.
    copies = {name: weight.clone(memory_format=contiguous_format) for name, weight in weights.items()}
    try:
        content = save(copies, metadata=dict(header or {}))
    except SafetensorError as error:
        raise DataError(f"{path}: cannot be written ({first_line(error)})") from error
    write_output(Path(path), content)


def load_weights(network: nn.Module, path: str | Path, *, onto: bool = False) -> list[str]:
    """Apply `put_weights` to the weights in a safetensors file. Raises DataError."""
    return put_weights(network, read_weights(path), source=path, onto=onto)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a safetensors file. Raises DataError."""
    try:
        return load_file(path)
    except MemoryError:
        raise
    except Exception as error:  # SafetensorError, OSError, and for unknown types of numbers KeyError, among others
        raise not_weights(Path(path), error) from error


def check_weights(network: nn.Module, path: str | Path, *, onto: bool = False) -> None:
    """Check that `load_weights` would succeed, for a network on any device; nothing is changed. Raises DataError."""
    _fitting(network, read_weights(path), source=path, onto=onto)


def put_weights(network: nn.Module, weights: Mapping[str, Tensor], *, source: object, onto: bool = False) -> list[str]:
    """Copy weights into a network in place, and return the names of the weights that keep their values.

    By default every weight of the network must be there and fit, so that none keeps its value. With `onto`, attentions that
    are missing and a classifier of another shape keep theirs: for training on from the weights of a network without an
    attention or with other classes. A detector takes the weights of its backbone, and all its other layers keep theirs.
    Raises DataError, which names `source` and the first weight that is missing, superfluous, of another shape or type, or
    not finite; the network is then unchanged.
    """
    fitting, kept = _fitting(network, weights, source=source, onto=onto)
    network.load_state_dict(fitting, strict=False)
    return kept


def _fitting(
    network: nn.Module, weights: Mapping[str, Tensor], *, source: object, onto: bool
) -> tuple[Mapping[str, Tensor], list[str]]:
    """The weights that `put_weights` copies, and the names of those that keep their values. Raises DataError."""
    own = network.state_dict()
    kept: list[str] = []
    from_backbone = getattr(network, "from_backbone", None) if onto else None
    if from_backbone is not None and not any(name.startswith("backbone.") for name in weights):
        weights = _of_backbone(from_backbone, weights, source)
        kept = [name for name in own if name not in weights and not name.startswith("backbone.")]
    if onto:
        reshaped = {_layer(name) for name, weight in weights.items() if name in own and weight.shape != own[name].shape}
        replaced = {layer for layer in reshaped if layer.startswith(_CLASSIFIERS)}
        weights = {name: weight for name, weight in weights.items() if _layer(name) not in replaced}
        kept += [
            name
            for name in own
            if name not in (*kept, *weights) and (_layer(name) in replaced or _of_an_attention(name))
        ]
    # PyTorch 0.4.0 did not have the counter num_batches_tracked, which is not used with a momentum.
    missing = [n for n in own if n not in weights and n not in kept and not n.endswith(".num_batches_tracked")]
    superfluous = [name for name in weights if name not in own]
    if missing or superfluous:
        first = f"it lacks {missing[0]}" if missing else f"it has a {superfluous[0]}"
        hint = ""
        if all(map(_of_an_attention, missing + superfluous)):
            hint = f"; the {'file' if missing else 'network'} has no such attention"
        raise DataError(
            f"{source}: not of this network: {first} ({len(missing)} missing, {len(superfluous)} too many){hint}"
        )
    for name in filter(weights.__contains__, own):
        _check(weights[name], own[name], name, source)
    return weights, kept


def _of_backbone(
    from_backbone: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], weights: Mapping[str, Tensor], source: object
) -> dict[str, Tensor]:
    try:
        return from_backbone(weights)
    except ValueError as error:
        raise DataError(f"{source}: not of this network's backbone: {error}") from error


def _check(weight: Tensor, own: Tensor, name: str, source: object) -> None:
    """Refuse a weight that cannot take the place of `own`. Raises DataError."""
    if weight.shape != own.shape:
        sizes = " and should be ".join(" x ".join(map(str, size)) or "a number" for size in (weight.shape, own.shape))
        raise DataError(f"{source}: not of this network: {name} is {sizes}")
    if weight.is_floating_point() != own.is_floating_point():
        types = " and should be ".join(str(tensor.dtype).removeprefix("torch.") for tensor in (weight, own))
        raise DataError(f"{source}: not of this network: {name} is {types}")
    if not weight.isfinite().all():
        raise DataError(f"{source}: {name} holds a NaN or an infinity; the training that made it has diverged")
    if not weight.to(own.dtype).isfinite().all():
        raise DataError(f"{source}: {name} holds numbers that are too large for this network's {own.dtype}")


def not_weights(path: Path, error: Exception) -> DataError:
    """The error for a file that safetensors could not read."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: there is no such file")
    hint = "; `bam-weights import` makes one from a checkpoint"
    if path.suffix in (".onnx", ".pt2"):
        hint = "; exports are for other programs, and the run's own file is " + WEIGHTS
    elif path.suffix == ".safetensors":
        hint = ""
    return DataError(f"{path}: not a file of weights that bam_exp has written ({first_line(error)}){hint}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _of_an_attention(name: str) -> bool:
    *modules, _ = name.split(".")
    return "attention" in modules[1:] or any(module.endswith("_attention") for module in modules)
