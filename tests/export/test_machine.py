"""Native code is refused where it cannot run, by a reason that says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mode_policy.export.machine import Machine, instruction_sets, obstacle, this_machine

ROBOT = Machine(
    system="Linux",
    processor="x86_64",
    cpu_capability="AVX2",
    instruction_sets=("avx", "avx2", "fma", "sse4_2"),
    torch="2.11",
)
GPU = replace(ROBOT, gpu_capability="8.9")


def test_it_runs_where_it_was_made() -> None:
    here = this_machine("cpu")
    assert obstacle(here, here) is None
    assert here.gpu_capability is None


def test_it_runs_on_a_processor_that_can_do_more() -> None:
    here = replace(ROBOT, cpu_capability="AVX512", instruction_sets=(*ROBOT.instruction_sets, "avx512f"))
    assert obstacle(ROBOT, here) is None
    assert obstacle(here, ROBOT) == "it was made for a processor with AVX512; this one lacks avx512f"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"processor": "aarch64"}, "it was made for Linux on x86_64, this is Linux on aarch64"),
        ({"system": "Darwin"}, "it was made for Linux on x86_64, this is Darwin on x86_64"),
        ({"torch": "2.12"}, "it was made for torch 2.11, this is torch 2.12"),
    ],
)
def test_another_machine_is_named(change: dict[str, str], reason: str) -> None:
    assert obstacle(ROBOT, replace(ROBOT, **change)) == reason


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        (None, "it was made for a GPU of compute capability 8.9, and there is none"),
        ("8.9", None),
        ("8.7", "it was made for GPUs of compute capability 8.9, this one has 8.7"),
        ("9.0", "it was made for GPUs of compute capability 8.9, this one has 9.0"),
        ("12.0", "it was made for GPUs of compute capability 8.9, this one has 12.0"),
    ],
)
def test_the_gpu_must_be_of_the_same_generation(capability: str | None, reason: str | None) -> None:
    assert obstacle(GPU, replace(GPU, gpu_capability=capability)) == reason


def test_a_newer_gpu_of_the_same_generation_will_do() -> None:
    assert obstacle(replace(GPU, gpu_capability="8.0"), GPU) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("processor\t: 0\nflags\t\t: fpu tsc sse2 avx2 nopl fma\nflags : sse2\n", ("avx2", "fma", "sse2")),
        ("processor\t: 0\nFeatures\t: fp asimd sve\n", ("asimd", "fp", "sve")),
        ("nothing of the kind\n", ()),
    ],
)
def test_the_processor_is_read_from_what_the_kernel_says(tmp_path, text: str, found: tuple[str, ...]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert instruction_sets(tmp_path / "cpuinfo") == found
    assert instruction_sets(Path(tmp_path / "absent")) == ()
