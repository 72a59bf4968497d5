"""Bad input is answered before any long work starts, with the way out."""

import shutil

import numpy as np
import pytest
import zarr

from mode_envs import rendering_available
from mode_policy.apps import train
from mode_policy.apps.cli import compose, quote_path, single_runs, to_plain
from mode_policy.apps.config import EvaluateConfig, TrainConfig
from mode_policy.apps.data import main as mode_data
from mode_policy.apps.dataset import store_layout
from mode_policy.apps.evaluate import chosen_tasks
from mode_policy.config import build
from mode_policy.errors import CheckpointError, ConfigError, ConventionError, DataError, ModePolicyError
from tests.apps.conftest import TINY, program
from tests.policy.test_files import holder


def run(tmp_path, *overrides):
    """What ``train.py`` does, in this process."""
    cfg = compose("train", [*TINY, f"run_dir={tmp_path}/run", *overrides])
    data = to_plain(cfg)
    train.run(build(TrainConfig, data), tmp_path / "run", data)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=metaworld_10"], r"unknown task 'metaworld_10'. Did you mean 'metaworld_mt10'"),
        (["model=tinny"], r"unknown model 'tinny'. Did you mean 'tiny'"),
        (["trainer.minuts=3"], r"unknown override 'trainer.minuts'. Did you mean 'trainer.minutes'"),
        (["tsk=pusht"], r"unknown override 'tsk'. Did you mean 'task'"),
        (["seed=3"], r"unknown override 'seed'. Did you mean 'trainer.seed'"),
        (["serve=3"], r"unknown override 'serve'"),
        (["trainer.minutes=[1"], r"cannot read 'trainer.minutes=\[1'"),
        (["=3"], r"unknown override ''"),
        (["task=[metaworld_mt10,pusht]"], r"task takes one choice, .*-m task=metaworld_mt10,pusht"),
        (["sampler=ddim,euler"], r"sampler takes one choice, not several; .*-m sampler=ddim,euler"),
        (["trainer=null"], r"trainer needs a choice; one of default, paper"),
    ],
)
def test_misspelt_overrides(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose("train", overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.tasks=[reach-v2]", r"task 'reach-v2' is not in 'metaworld_mt10'. Did you mean 'reach-v3'"),
        ("task.suite=metaworld_mt11", r"unknown suite 'metaworld_mt11'. Did you mean 'metaworld_mt10'"),
        ("policy.language=minilm", r"unknown text encoder 'minilm'. Did you mean 'minilm-l6-v2'"),
        ("policy.execute=11", r"policy: execute=11 actions of a chunk of 10"),
        ("trainer.batch_size=0", r"trainer.batch_size: .*greater than or equal to 1 \(got 0\)"),
        ("dataset.source=hub", r"dataset.source: .*'scripted', 'published' or 'path'"),
        ("policy.sampler.guidance=nan", r"policy.sampler.guidance: .*finite number \(got nan\)"),
        ("trainer.learning_rate=inf", r"trainer.learning_rate: .*finite number \(got inf\)"),
        ("dataset.mixture=[{path: a, wieght: 1}]", r"mixture.0.wieght: unknown key. Did you mean 'weight'"),
        ("run_dir=", r"run_dir: .*at least 1 character \(got ''\)"),
        ("dataset.source=published", "no data are published for this task"),
        ("dataset.published=libero_9", r"unknown published data 'libero_9'. Did you mean 'libero_90'"),
        ("policy.denoiser.num_heads=3", r"policy.denoiser: dim=16 is not a multiple of num_heads=3"),
    ],
)
def test_values_that_cannot_be_used(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, override, f"dataset.path={tmp_path}/none.zarr")


def test_a_program_prints_the_error_and_exits_with_2():
    done = program("train", "task=push_t")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown task 'push_t'. Did you mean 'pusht'")
    assert "Traceback" not in done.stderr


def test_a_multirun_is_checked_before_it_starts(tmp_path):
    done = program("train", "-m", "trainer.sed=0,1", f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown override 'trainer.sed'. Did you mean 'trainer.seed'")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_a_multirun_names_its_runs():
    command = ["task=pusht,libero90", "trainer.seed=range(0,1000)", "model=glob(*)", "~vision"]
    assert list(single_runs(command)) == [
        ["task=pusht", "trainer.seed=0", "~vision"],
        ["task=libero90", "trainer.seed=0", "~vision"],
    ]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("metaworld_mt11", "unknown task or suite 'metaworld_mt11'. Did you mean 'metaworld_mt10'"),
        (["reach-v3", "push"], "unknown task or suite 'push'. .*Suites: .*metaworld_mt10, .*pusht"),
        (["reach-v3", "reach-v3"], "name each task once"),
        (["metaworld_mt10", "reach-v3"], "has 'reach-v3' twice"),
        (None, "the checkpoint does not say what it was trained on"),
    ],
)
def test_tasks_that_cannot_be_evaluated(tmp_path, task, message):
    config = build(EvaluateConfig, {"checkpoint": str(tmp_path), "task": task})
    with pytest.raises(ConfigError, match=message):
        chosen_tasks(config, {})


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"unit": "px"}, r"dataset.features.action needs the shape of one time step.*got None"),
        ({"shape": 2}, r"dataset.features.action needs the shape of one time step.*got 2"),
        ({"shap": [2]}, r"dataset.features.action: unknown key 'shap'. Did you mean 'shape'"),
        ({"shape": [2], "angles": 1}, r"dataset.features.action cannot be read"),
    ],
)
def test_badly_described_features(feature, message):
    recipe = to_plain(compose("train", ["task=pusht"]))
    recipe["dataset"]["features"]["action"] = feature
    config = build(TrainConfig, recipe)
    with pytest.raises(ConfigError, match=message):
        store_layout(config.dataset, config.task)


def test_a_missing_store_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"no demonstrations at .*none.zarr.*pusht.zip.*MODE_DATA_DIR"):
        run(tmp_path, "task=pusht", "task.tasks=null", f"dataset.path={tmp_path}/none.zarr")


@pytest.mark.skipif(not rendering_available()[0], reason=rendering_available()[1])
def test_published_data_that_cannot_be_had_say_all_ways_forward(tmp_path):
    pytest.importorskip("libero")
    (tmp_path / "libero_90").write_text("in the place where they would be fetched to")
    command = ["task=libero90", f"dataset.folder={tmp_path}", f"run_dir={tmp_path}/run"]
    data = to_plain(compose("train", command))
    with pytest.raises(DataError) as refused:
        train.run(build(TrainConfig, data), tmp_path / "run", data)
    message = str(refused.value)
    for way in ("mode-data download libero_90", "dataset.path=", "dataset.source=scripted", "minilm-l6-v2"):
        assert way in message
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not rendering_available()[0], reason=rendering_available()[1])
def test_more_starts_than_a_benchmark_publishes(tmp_path):
    pytest.importorskip("libero")
    command = ["task=libero_object", "evaluation.episodes=51", f"dataset.folder={tmp_path}"]
    data = to_plain(compose("train", [*command, f"run_dir={tmp_path}/run"]))
    with pytest.raises(ConfigError, match="has 50 published initial states, fewer than episodes=51"):
        train.run(build(TrainConfig, data), tmp_path / "run", data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["scripted", "path"])
def test_weights_are_looked_for_before_demonstrations(tmp_path, source):
    with pytest.raises(ConfigError, match=r"no file vision.weights=.*absent"):
        run(
            tmp_path,
            "policy.cameras=[corner2]",
            "evaluation.episodes=0",
            f"dataset.source={source}",
            f"policy.vision.weights={tmp_path}/absent",
            f"dataset.path={tmp_path}/demos.zarr",
        )
    assert not (tmp_path / "demos.zarr").exists()


def test_data_dir_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("MODE_DATA_DIR", str(tmp_path))
    assert to_plain(compose("train", ["task=pusht"]))["dataset"]["path"].startswith(str(tmp_path))


def damaged(tmp_path, store):
    path = tmp_path / "damaged.zarr"
    shutil.copytree(store, path)
    return path


def test_nan_actions_are_located(tmp_path, reach_store):
    path = damaged(tmp_path, reach_store)
    array = zarr.open_group(path, mode="r+")["data/action"]
    actions = array[:]
    actions[9, 2] = np.nan
    array[:] = actions
    with pytest.raises(DataError, match=r"action.*nan.*"):
        run(tmp_path, "dataset.source=path", f"dataset.path={path}")


def test_episode_ends_beyond_the_data(tmp_path, reach_store):
    path = damaged(tmp_path, reach_store)
    ends = zarr.open_group(path, mode="r+")["meta/episode_ends"]
    ends[-1] = int(ends[-1]) + 100
    with pytest.raises(DataError, match="episode_ends"):
        run(tmp_path, "dataset.source=path", f"dataset.path={path}")


def test_a_dataset_of_another_robot(tmp_path, reach_store):
    """The dataset's states do not fit the environments in which the policy would be evaluated."""
    with pytest.raises(
        ConventionError, match=r"(?s)the dataset and mode/pusht-v0 .*these are different robots"
    ):
        run(
            tmp_path,
            "task.suite=pusht",
            "task.tasks=null",
            "dataset.source=path",
            f"dataset.path={reach_store}",
        )


def test_another_text_encoder(tmp_path, reach_store):
    with pytest.raises(DataError, match=r"embedded by 'minilm-l6-v2', the policy uses 'clip-vit-b32'"):
        run(tmp_path, "policy.language=clip-vit-b32", "dataset.source=path", f"dataset.path={reach_store}")


def test_rollouts_never_start_where_demonstrations_did(tmp_path):
    with pytest.raises(DataError, match=r"initial states of the demonstrations.*choose another seed than 0"):
        run(
            tmp_path,
            f"dataset.path={tmp_path}/demos.zarr",
            "dataset.episodes=2",
            "evaluation.episodes=1",
            "evaluation.seed=0",
            "trainer.steps=1",
        )


def test_a_folder_that_takes_no_files(tmp_path, reach_store):
    (tmp_path / "run").touch()
    with pytest.raises(ModePolicyError, match=r"cannot write .*run: File exists"):
        run(tmp_path, "dataset.source=path", f"dataset.path={reach_store}")


def test_a_folder_in_which_another_process_trains(tmp_path, reach_store):
    other = holder(tmp_path / "run")
    try:
        with pytest.raises(ModePolicyError, match=r"another process writes to .*run"):
            run(tmp_path, "dataset.source=path", f"dataset.path={reach_store}")
    finally:
        other.kill()
        other.communicate()


def test_what_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(DataError, match="no demonstrations"):
        run(tmp_path, "dataset.source=path", f"dataset.path={tmp_path}/none.zarr")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_not_trained_into(tmp_path, reach_store):
    common = ("dataset.source=path", f"dataset.path={reach_store}", "evaluation.episodes=0")
    run(tmp_path, *common)
    with pytest.raises(ConfigError, match=r"holds a run; continue it with resume="):
        run(tmp_path, *common)


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path, reach_store):
    common = ("dataset.source=path", f"dataset.path={reach_store}", "evaluation.episodes=0")
    run(tmp_path, *common)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(CheckpointError, match=r"policy.denoiser.dim=16, now 32"):
        run(tmp_path, *common, f"resume={tmp_path}/run", "policy.denoiser.dim=32")
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.tasks=[]", "name each task once, and at least one"),
        ("task.tasks=[reach-v3,reach-v3]", "name each task once, and at least one"),
        ("evaluation.seed=-1", r"evaluation.seed: .*greater than or equal to 0 \(got -1\)"),
        ("trainer.betas=[1.5,2]", "trainer.betas.0"),
        ("policy.state_tokens=-3", "policy.state_tokens"),
        ("policy.density.sigma_min=100", "sigma_min=100.* must be below sigma_max=80"),
        ("+trainer.sede=1", "trainer.sede: unknown key. Did you mean 'seed'"),
    ],
)
def test_values_out_of_range(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, override, f"dataset.path={tmp_path}/none.zarr")


@pytest.mark.parametrize("value", ["runs/sweep/trainer.seed=0", "a b/(c),[d]", 'quo"te', "null", "'done'"])
def test_paths_are_taken_as_they_are(value):
    quoted = quote_path(f"run_dir={value}")
    expected = None if value == "null" else value.strip("'")
    assert compose("train", [quoted]).run_dir == expected


def test_resuming_nothing(tmp_path):
    for nothing in (f"{tmp_path}/none", ""):
        done = program("train", f"resume={nothing}")
        assert done.returncode == 2
        assert "nothing to resume" in done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["a: [1,", "[1, 2]", "3"])
def test_resuming_by_a_damaged_configuration(tmp_path, monkeypatch, capsys, text):
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.setattr("sys.argv", ["train.py", f"resume={tmp_path}"])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 2
    assert f"cannot read {tmp_path}/config.yaml" in capsys.readouterr().err


def test_mode_data(tmp_path, capsys, reach_store):
    mode_data(["list", str(reach_store.parent)])
    assert "reach.zarr" in capsys.readouterr().out
    mode_data(["info", str(reach_store)])
    output = capsys.readouterr().out
    assert "observation.state" in output
    assert "reach-v3" in output
    for arguments, message in (
        (["list", str(tmp_path / "none")], "there is no folder"),
        (["info", str(tmp_path / "none.zarr")], "none.zarr"),
        (["collect", "pusht"], "has no scripted expert"),
        (["collect", "metaworld_mt1"], "Did you mean 'metaworld_mt10'"),
        (["collect", "metaworld_mt10", "episods=3"], "Did you mean 'dataset.episodes'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            mode_data(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err.replace("\n", "")


def test_a_foreign_store_says_how_to_read_it(tmp_path, capsys):
    group = zarr.create_group(str(tmp_path / "foreign.zarr"), zarr_format=2)
    group.create_array("data/action", data=np.zeros((4, 2), np.float32), chunks=(4, 2))
    with pytest.raises(SystemExit):
        mode_data(["info", str(tmp_path / "foreign.zarr")])
    message = "name a task whose recipe does, e.g. --task pusht"
    assert message in capsys.readouterr().err.replace("\n", "")


def test_mode_data_collects(tmp_path, capsys):
    mode_data(["collect", "metaworld_mt10", "episodes=1", f"path={tmp_path}/ten.zarr", "noise=0.1"])
    assert "collected  10 demonstrations" in capsys.readouterr().out
    before = (tmp_path / "ten.zarr" / "zarr.json").read_bytes()
    mode_data(["collect", "metaworld_mt10", "episodes=1", f"path={tmp_path}/ten.zarr", "noise=0.1"])
    assert (tmp_path / "ten.zarr" / "zarr.json").read_bytes() == before, "an equal store is used again"
