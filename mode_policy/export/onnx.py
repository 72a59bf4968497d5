"""The target ``onnx``: a plan's graph for ONNX Runtime and others, with each weight once.

The loop stays a loop (`mode_policy.export.loop`), so the file is as large as the weights that the plan needs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from mode_policy.errors import ExportError
from mode_policy.export.graph import ActionGraph, example_inputs, inputs_of, quiet
from mode_policy.export.loop import LoopNetwork, looped
from mode_policy.export.manifest import MODEL
from mode_policy.inference.plan import InferencePlan


def write_onnx(plan: InferencePlan, folder: Path) -> list[str]:
    """Write a plan's graph; return the names of the files.

    Raises:
        ExportError: if a package that this needs is not installed.
    """
    lacking = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if lacking:
        raise ExportError(f"target=onnx needs {', '.join(lacking)}: uv sync --extra onnx")
    from onnx_ir.traversal import RecursiveGraphIterator

    graph = ActionGraph(LoopNetwork(plan), looped).eval()
    names = [array.name for array in inputs_of(plan)]
    with torch.no_grad(), quiet():
        program = torch.export.export(graph, example_inputs(plan))
        exported = torch.onnx.export(program, input_names=names, output_names=["action"], verbose=False)
    assert exported is not None
    # Each node carries the stack of Python calls that it came from: more bytes than a small policy's weights.
    for node in RecursiveGraphIterator(exported.model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    exported.save(folder / MODEL["onnx"])
    return sorted(path.name for path in folder.glob(MODEL["onnx"] + "*"))
