"""Whole runs of the programs, in processes of their own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import load_file

from tests.apps.conftest import ROOT, TINY, program

HEADLINE = re.compile(r"success: [01]\.\d\d \[[01]\.\d\d, [01]\.\d\d\] \((\d+) episodes\)")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run of everything: collect, train, roll out, report."""
    folder = tmp_path_factory.mktemp("run")
    done = program(
        "train",
        *TINY,
        f"run_dir={folder}/run",
        f"dataset.path={folder}/demos.zarr",
        "dataset.episodes=3",
        "evaluation.episodes=2",
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_train_ends_with_the_headline_and_says_where_everything_is(trained):
    folder, output = trained
    lines = [line.strip() for line in output.strip().splitlines()]
    assert HEADLINE.fullmatch(lines[-1]).group(1) == "2"
    for name in ("checkpoints/last", "metrics.jsonl", "evaluation.json", "report.html"):
        assert any(line.endswith(f"{folder}/run/{name}") for line in lines), name
        assert (folder / "run" / name).exists()
    assert "collected  3 demonstrations in" in output


def test_evaluation_json_holds_the_headline_by_task(trained):
    folder, _output = trained
    data = json.loads((folder / "run" / "evaluation.json").read_text())
    assert [t["name"] for t in data["tasks"]] == ["reach-v3"]
    assert len(data["episodes"]) == 2
    assert data["settings"]["denoising_steps"] == 10
    assert data["settings"]["noise_levels"][-1] == 0.0
    assert "torch" in data["settings"]["versions"]


def test_the_report_is_one_page(trained):
    folder, _ = trained
    external = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            external.extend(
                v for k, v in attrs if k in ("src", "href") and v and v.startswith(("http", "//"))
            )

    Parser().feed((folder / "run" / "report.html").read_text())
    assert external == []


def test_evaluate_repeats_the_result_with_any_number_of_workers(trained):
    folder, _ = trained
    outcomes = []
    for workers in (0, 2):
        done = program(
            "evaluate",
            f"checkpoint={folder}/run",
            "episodes=2",
            "videos=0",
            "lanes=2",
            f"workers={workers}",
            "device=cpu",
            f"output={folder}/again{workers}",
        )
        assert done.returncode == 0, done.stderr
        assert HEADLINE.fullmatch(done.stdout.strip().splitlines()[-1])
        outcomes.append(json.loads((folder / f"again{workers}" / "evaluation.json").read_text())["episodes"])
    first = json.loads((folder / "run" / "evaluation.json").read_text())["episodes"]
    assert outcomes[0] == outcomes[1] == first


def test_evaluate_accepts_other_samplers_and_refuses_bad_ones(trained):
    folder, _ = trained
    common = (
        f"checkpoint={folder}/run/checkpoints/last",
        "task=reach-v3",
        "episodes=1",
        "videos=0",
        "device=cpu",
    )
    done = program("evaluate", *common, "sampler.steps=2", f"output={folder}/two")
    assert done.returncode == 0, done.stderr
    settings = json.loads((folder / "two" / "evaluation.json").read_text())["settings"]
    assert settings["denoising_steps"] == 2
    bad = program("evaluate", *common, "sampler.name=dimm")
    assert bad.returncode == 2
    assert "unknown sampler 'dimm'. Did you mean 'ddim'" in bad.stderr


def test_a_checkpoint_meets_a_foreign_environment(trained):
    folder, _ = trained
    done = program("evaluate", f"checkpoint={folder}/run", "task=pusht", "episodes=1")
    assert done.returncode == 2
    assert "the policy and mode/pusht-v0 do not mean the same by their numbers" in done.stderr
    assert "Traceback" not in done.stderr
    done = program("evaluate", f"checkpoint={folder}/run", "task=push-v3", "episodes=1")
    assert done.returncode == 2
    assert "unknown instruction" in done.stderr


def long_run(folder, store, steps=60):
    """The command of a run that lasts long enough to be interrupted."""
    return [
        sys.executable,
        "train.py",
        *TINY,
        f"trainer.steps={steps}",
        "trainer.checkpoint_every=5",
        "dataset.source=path",
        f"dataset.path={store}",
        "evaluation.episodes=0",
        f"run_dir={folder}",
    ]


def wait_for_checkpoint(process, folder):
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path, reach_store):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    subprocess.run(long_run(whole, reach_store), cwd=ROOT, check=True, capture_output=True)
    process = subprocess.Popen(
        long_run(parts, reach_store), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for_checkpoint(process, parts)
    process.send_signal(signal.SIGKILL)
    process.wait()
    at = int(os.readlink(parts / "checkpoints" / "last").removeprefix("step_"))
    assert at < 60, "the run ended before it could be killed"
    done = program("train", f"resume={parts}")
    assert done.returncode == 0, done.stderr
    assert f"continuing at step {at}" in done.stdout
    for name in ("weights.safetensors", "weights_raw.safetensors", "training/optimizer.safetensors"):
        a, b = (load_file(run / "checkpoints" / "last" / name) for run in (whole, parts))
        assert all(torch.equal(a[k], b[k]) for k in a), name


def test_ctrl_c_saves_and_says_how_to_continue(tmp_path, reach_store):
    folder = tmp_path / "my run"
    process = subprocess.Popen(
        long_run(folder, reach_store, steps=100_000),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        # A test run in the background inherits an ignored SIGINT, which Python respects.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for_checkpoint(process, folder)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert f"continue with: uv run train.py 'resume={folder}'" in output
    assert "Traceback" not in errors
