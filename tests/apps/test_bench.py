"""``mode-bench``: tables that make sense, records that say where they come from, errors that help."""

from __future__ import annotations

import json

import pytest
import torch

from mode_policy.apps.bench import floor, main
from mode_policy.apps.bench.main import _name, _parser, table
from mode_policy.apps.bench.policies import SIZES, random_observation, random_policy
from mode_policy.checkpoint import save_checkpoint
from mode_policy.errors import PlanError
from mode_policy.inference.plan import InferencePlan

SHORT = ("--engines", "eager", "--rounds", "1", "--no-memory")


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch):
    """Rates from a few megabytes; these tests look at everything but their values."""
    monkeypatch.setattr(floor, "READ", 2**20)
    monkeypatch.setattr(floor, "SIDE", 64)


def record(folder) -> dict:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def name_of(*arguments: str) -> str:
    return _name(_parser().parse_args(arguments))


def test_latency(tmp_path, capsys):
    engines = ("--engines", "cpu", "eager", "triton", "--precisions", "float32", "int8", "bfloat16")
    main(["latency", "--size", "debug", *engines, "--rounds", "2", "--no-memory", "--record", str(tmp_path)])
    found = record(tmp_path)
    rows = {(row["engine"], row["precision"]): row for row in found["rows"]}
    assert set(rows) == {
        ("cpu", "float32"),
        ("cpu", "int8"),
        *(("eager", p) for p in ("float32", "int8", "bfloat16")),
    }
    said = capsys.readouterr().out.replace("\n", " ")
    assert "engine triton, int8, left out: the engine 'triton' cannot run: a cpu device" in said
    assert "engine cpu, bfloat16, left out" in said
    for row in rows.values():
        assert row["min_ms"] <= row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["over_floor"] == pytest.approx(row["p50_ms"] / row["floor_ms"], rel=0.05)
    # Weights of 16 · 16 · (4 + 2 · 12) · 2 layers, 10 steps.
    assert rows["cpu", "float32"]["read_GB"] == round(10 * 4 * 2 * 28 * 256 / 1e9, 4)
    assert rows["eager", "float32"]["error"] == 0
    assert 0 <= rows["cpu", "float32"]["error"] < 1e-4 < rows["cpu", "int8"]["error"] < 0.1
    assert {"commit", "date", "device", "versions"} <= set(found)
    assert found["config"]["read_GBps"] > 0
    assert found["config"]["processors_used_by_others"] >= 0


def test_a_table_holds_what_differs():
    rows = [{"name": "a", "steps": 10, "p50_ms": 1.5}, {"name": "b", "steps": 10, "kernels": 2000}]
    shown, shared = table("times", rows)
    assert shared == {"steps": 10}
    assert [column.header for column in shown.columns] == ["name", "p50 ms", "kernels"]
    assert [list(column.cells) for column in shown.columns] == [["a", "b"], ["1.5", ""], ["", "2,000"]]


def test_what_is_measured_names_the_record():
    plain = name_of("latency", "--size", "tiny")
    assert plain == "latency_tiny_float32"
    assert name_of("latency", "--cameras", "--steps", "5") == "latency_small_cameras_float32_5steps"
    assert name_of("latency", "--batches", "1", "8") == "latency_small_float32_batch_1_8"
    assert name_of("kernels", "--training") == "kernels_training"
    assert name_of("kernels", "--device", "cpu") == "kernels_training"
    assert name_of("kernels", "--device", "cuda", "--types", "int8") == "kernels_int8"


@pytest.mark.slow
def test_memory_of_an_engine(tmp_path):
    """Of a process of its own: weights dominate at this size."""
    main(["latency", "--size", "small", "--engines", "cpu", "--rounds", "1", "--record", str(tmp_path)])
    (row,) = record(tmp_path)["rows"]
    assert 1 < row["over_weights"] < 3
    assert row["acting_GB"] <= row["peak_GB"]


def test_training(tmp_path):
    main(["training", "--sizes", "debug", "--batch", "4", "--rounds", "1", "--record", str(tmp_path)])
    (row,) = record(tmp_path)["rows"]
    assert (row["size"], row["form"], row["precision"]) == ("debug", "eager", "float32")
    # Forward and twice as much backward of 12 tokens, 2 layers, attention and two experts.
    least = 3 * 4 * 2 * 12 * 28 * 256 / 1e9
    assert row["GMAC"] == pytest.approx(least, abs=0.01)


def test_kernels(tmp_path):
    main(["kernels", "--training-batch", "4", "--rounds", "1", "--device", "cpu", "--record", str(tmp_path)])
    found = record(tmp_path)
    (row,) = found["rows"]
    assert row["kernel"] == "experts by PyTorch, no kernel"
    assert row["dense_eager/ours"] > 0
    assert found["config"]["batches"] == found["config"]["types"] == []  # nothing that was not measured


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.replace("\n", " ")


def test_kernels_that_need_a_gpu_are_not_asked_of_a_processor(capsys):
    said = refused(capsys, "kernels", "--device", "cpu", "--types", "float32")
    assert (
        "--batches and --types are of the kernels for inference, which are not measured on a processor"
        in said
    )


def test_a_checkpoint_is_found_in_its_run(tmp_path, capsys):
    policy = random_policy(SIZES["debug"], steps=2)
    run = tmp_path / "run"
    save_checkpoint(run / "checkpoints/step_0000001", policy, policy.state_dict(), about={})
    main(["latency", "--checkpoint", str(run), *SHORT, "--record", str(tmp_path / "records")])
    found = record(tmp_path / "records")
    assert [row["steps"] for row in found["rows"]] == [2]
    assert found["config"]["checkpoint"].endswith("run/checkpoints/step_0000001")
    said = refused(capsys, "latency", "--checkpoint", str(run), "--cameras", *SHORT)
    assert "a checkpoint has the cameras that it was trained on" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("latency", "--checkpoint", "runs/none", "--size", "debug"), "not allowed with"),
        (("latency", "--checkpoint", "runs/none"), "runs/none is no checkpoint"),
        (
            ("latency", "--size", "debug", "--record", "/proc/cpuinfo/records"),
            "records cannot go to /proc/cpuinfo/records: Not a dir",
        ),
        (("data", "--store", "none.zarr"), "no demonstration store at none.zarr"),
    ],
)
def test_wrong_paths_are_refused_before_anything_is_measured(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert message in said.err.replace("\n", " ")
    assert "measuring" not in said.out


def test_nothing_that_can_run_is_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["latency", "--size", "debug", "--engines", "triton", "--rounds", "1", "--no-memory"])
    assert stopped.value.code == 2
    assert "none of the engines triton can run here" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["latency", "training", "kernels"])
def test_a_gpu_that_is_not_there_is_refused(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--device", "cuda"])
    assert stopped.value.code == 2
    assert "--device cuda, but torch finds no GPU; use --device cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("latency", "--rounds", "0"),
        ("latency", "--batches", "1", "-1"),
        ("training", "--threads", "0"),
        ("data", "--episodes", "0"),
    ],
)
def test_numbers_below_one_are_refused(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "must be at least 1, not" in said
    assert arguments[1] in said


@pytest.mark.parametrize("cameras", [False, True])
def test_random_policies_have_the_published_sequence(cameras):
    policy = random_policy(SIZES["debug"], cameras=cameras, steps=1)
    plan = InferencePlan(policy, batch=2)
    tokens, _ = plan.encode(random_observation(policy, 2))
    assert (plan.sequence, tokens.shape[:2]) == (14, (2, 2))
    with pytest.raises(PlanError):
        plan.set_goal(tokens[:1, 0])
