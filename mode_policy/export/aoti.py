"""The target ``aoti``: a plan's graph as native code with its weights, by torch.export and AOTInductor.

The loop is written out step by step: which experts run is then part of the code, and nothing is looked up. On
a processor tokens are columns (`mode_policy.export.columns`).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from torch._inductor import aoti_compile_and_package, config
from torch._inductor.exc import CppCompileError, InductorError

from mode_policy.errors import ExportError
from mode_policy.export.columns import ColumnNetwork
from mode_policy.export.graph import ActionGraph, example_inputs, quiet, unrolled
from mode_policy.export.manifest import MODEL
from mode_policy.inference.network import PlannedNetwork
from mode_policy.inference.plan import InferencePlan


def write_aoti(plan: InferencePlan, folder: Path) -> list[str]:
    """Compile a plan; return the names of the files.

    Raises:
        ExportError: if there is no C++ compiler, or the compilation fails.
    """
    compile_plan(plan, folder / MODEL["aoti"])
    return [MODEL["aoti"]]


def compile_plan(plan: InferencePlan, file: Path) -> None:
    """Write a plan's graph as a ``.pt2``.

    Raises:
        ExportError: see `write_aoti`.
    """
    compilers = [name for name in config.cpp.cxx if name]
    if not any(map(shutil.which, compilers)):
        raise ExportError(
            f"target=aoti needs a C++ compiler, and there is no {compilers[0]!r}: install one (Debian: "
            "apt-get install g++), or name it in the variable CXX"
        )
    graph = ActionGraph(_network(plan), unrolled).eval()
    # The compiler's files hold the weights, too: they go where they are removed.
    with tempfile.TemporaryDirectory(prefix="mode-export-") as scratch, torch.no_grad(), quiet():
        program = torch.export.export(graph, example_inputs(plan))
        try:
            with config.patch({"aot_inductor.output_path": scratch}):
                aoti_compile_and_package(program, package_path=str(file))
        except (CppCompileError, InductorError) as error:
            raise ExportError(f"the compilation failed: {str(error)[:2000]}") from error


def _network(plan: InferencePlan) -> PlannedNetwork:
    columns = plan.policy.device.type == "cpu" and not plan.uses_goal and plan.precision == "float32"
    return ColumnNetwork(plan) if columns else PlannedNetwork(plan)
