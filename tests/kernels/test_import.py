"""Importing the package loads no compiler: that would take seconds at the start of every program."""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    "mode_policy",
    "mode_kernels",
    "mode_policy.policy",
    "mode_policy.inference.auto",
    "mode_policy.export.runtime",
)
COMPILERS = {"torch._dynamo", "torch._inductor", "triton"}


def test_no_compiler_is_imported():
    code = f"""
import importlib, sys
for name in {MODULES}:
    importlib.import_module(name)
    print(name, *sorted({COMPILERS} & set(sys.modules)))
"""
    found = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert found == list(MODULES)
