"""Trained networks in formats that other programs read: ONNX and torch.export."""

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from bam_exp.errors import ConfigError, DataError
from bam_exp.files import write_output
from bam_exp.weights.metadata import Metadata, read_metadata, weights_file
from bam_exp.weights.network import load_network

SUFFIXES = (".safetensors", ".onnx", ".pt2")
"""File name extensions of the formats."""


def export(source: Path, target: Path) -> None:
    """Write a trained network in the format that the extension of `target` names; the file appears as a whole or not at all.

    `.safetensors` is a copy of the weights file. `.onnx` and `.pt2` (torch.export) contain the network in evaluation mode, from
    `images`, normalised float32 N x 3 x size x size for any N, to `logits` N x classes. The metadata of the weights file is
    in all of them: in ONNX as the model's property `bam_exp`, in torch.export as the extra file `bam_exp.json`.

    Args:
        source: a weights file, or the folder of a run.

    Raises:
        ConfigError: if the extension is none of these, or a library is missing.
        DataError: if the weights cannot be read, or the file cannot be written.
    """
    if target.suffix not in SUFFIXES:
        raise ConfigError(f"{target}: should end in one of {', '.join(SUFFIXES)}")
    metadata = read_metadata(source)
    if metadata is None:
        raise DataError(f"{source}: does not say of which network it is, so it cannot be exported")
    network = load_network(source)  # before anything is written, it refuses what is damaged
    if target.suffix == ".safetensors":
        content = weights_file(source).read_bytes()
    else:
        program = _program(network, metadata)
        content = _onnx(program, metadata) if target.suffix == ".onnx" else _pt2(program, metadata)
    write_output(target, content)


def _program(network: torch.nn.Module, metadata: Metadata) -> ExportedProgram:
    size = metadata.preprocessing.size if metadata.preprocessing else 224
    # A batch of one would be taken for a constant.
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes={"x": {0: Dim("batch")}})


def _onnx(program: ExportedProgram, metadata: Metadata) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401  # the exporter of PyTorch needs it
    except ImportError as error:
        raise ConfigError(f"ONNX needs the library {error.name}: pip install 'bam_exp[export]'") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        exported = torch.onnx.export(
            program, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
        )
    assert exported is not None
    model: onnx.ModelProto = exported.model_proto
    onnx.helper.set_model_props(model, metadata.to_header())
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _pt2(program: ExportedProgram, metadata: Metadata) -> bytes:
    file = io.BytesIO()
    text = json.dumps(metadata.model_dump(mode="json"), sort_keys=True)
    torch.export.save(program, file, extra_files={"bam_exp.json": text})
    return file.getvalue()
