"""Tile tables: complete, valid, read by rows and type, with a default for unknown GPUs."""

import json
import sys
from pathlib import Path

import pytest
import torch

from mode_kernels import tile_table
from mode_kernels.tile_table import Tile, lookup, table
from tests.conftest import ROOT

FOLDER = Path(tile_table.__file__).parent / "tiles"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
INFERENCE = {"norm_linear", "attention", "expert_up", "expert_down"}
TRAINING = {"grouped_up", "grouped_rows", "grouped_hidden", "grouped_outer"}


@pytest.fixture
def on(monkeypatch):
    def choose(name: str) -> torch.device:
        monkeypatch.setattr(tile_table, "architecture", lambda device: name)
        return torch.device("cuda")

    return choose


def test_every_architecture_has_a_table():
    assert NAMES == ["default", "sm_100", "sm_120", "sm_80", "sm_87", "sm_89", "sm_90"]


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_complete_and_valid(name):
    document = json.loads((FOLDER / f"{name}.json").read_text())
    assert document["architecture"] == name
    assert document["source"]
    assert set(document["tiles"]) == INFERENCE | TRAINING
    for kernel, entries in document["tiles"].items():
        for bits in (16, 32) if kernel in TRAINING else (8, 16, 32):
            rows = [entry["rows"] for entry in entries if entry["bits"] == bits]
            assert rows
            assert rows == sorted(set(rows))
        for entry in entries:
            assert set(entry) == {"bits", "rows", *Tile._fields}
            for field in ("block_m", "block_n", "block_k", "warps"):
                assert entry[field].bit_count() == 1, (kernel, entry)
            assert entry["block_m"] >= 16
            assert entry["stages"] >= 1
            assert entry["split"] == 0 or kernel in ("attention", "expert_down")


def test_lookup_takes_the_first_entry_that_is_made_for_as_many_rows(on):
    device = on("sm_90")
    entries = [e for e in table("sm_90")["expert_up"] if e["bits"] == 16]
    for rows, index in [(1, 0), (14, 0), (16, 0), (17, 1), (32, 1), (33, 2), (10**6, -1)]:
        expected = Tile(*(entries[index][field] for field in Tile._fields))
        assert lookup("expert_up", device, torch.bfloat16, rows) == expected
    assert lookup("expert_up", device, torch.int8, 14) == lookup("expert_up", device, torch.float8_e4m3fn, 14)


def test_unknown_gpus_use_the_default(on):
    assert lookup("expert_down", on("sm_999"), torch.bfloat16, 14) == lookup(
        "expert_down", on("default"), torch.bfloat16, 14
    )


def test_a_cpu_uses_the_default():
    assert tile_table.architecture(torch.device("cpu")) == "default"


@pytest.fixture
def tuner(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import tune_kernels

    return tune_kernels


@pytest.mark.parametrize("name", NAMES)
def test_the_tuner_writes_what_it_reads(tuner, name):
    text = (FOLDER / f"{name}.json").read_text()
    source = json.loads(text)["source"]
    assert tuner.document(name, source, table(name)) == text


def test_the_tuner_descends(tuner):
    """On times whose best tile is known, with some that fail; fields that a kernel lacks stay as they are."""
    best = Tile(16, 64, 256, 0, 4, 5)

    def time(tile: Tile) -> float:
        if tile.block_k * tile.stages > 1280:
            return float("inf")
        return 1.0 + sum(abs(a - b) / (a + b + 1) for a, b in zip(tile, best, strict=True))

    assert tuner.descend("expert_up", Tile(32, 16, 64, 0, 8, 2), time)[0] == best
    tried = []
    tuner.descend("attention", best, lambda tile: tried.append(tile) or time(tile))
    assert {(t.block_m, t.block_k) for t in tried} == {(16, 256)}
    assert len({t.split for t in tried}) > 3
