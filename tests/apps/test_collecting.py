"""Collections for training: experts that fail cost their own tasks; incomplete stores are used knowingly."""

from dataclasses import replace

import pytest

from mode_datasets import open_store
from mode_envs import demonstrate, env_task
from mode_envs.worker import Worker
from mode_policy.apps.collecting import check_recipe, collect_store
from mode_policy.apps.config import DatasetConfig, TaskConfig
from mode_policy.apps.dataset import get_store
from mode_policy.errors import DataError, SimulatorError

pytest.importorskip("metaworld")

REACH, NEVER = env_task("reach-v3"), env_task("drawer-close-v3")
TASK = TaskConfig(name="two", suite="metaworld_mt10", tasks=("reach-v3", "drawer-close-v3"))


@pytest.fixture
def faulty(monkeypatch):
    """Experts that raise: now and then in reaching, always in closing the drawer."""
    monkeypatch.setattr(demonstrate, "_spawn", lambda: Worker("tests.envs.faulty_expert:make"))


def test_a_task_whose_expert_always_raises_is_given_up_by_name(tmp_path, capsys, faulty):
    config, path = DatasetConfig(source="scripted", episodes=2), tmp_path / "two.zarr"
    named = (
        r"1 of 2 tasks lack .*'drawer-close-v3': 0 of (\d+) attempts \(0%, \1 ended in an exception\).*"
        r"allow_incomplete=true.*task.tasks="
    )
    with pytest.raises(SimulatorError, match=named):
        collect_store(path, config, [REACH, NEVER], None)
    assert not path.exists()
    said = capsys.readouterr().out
    assert "failed     drawer-close-v3: attempt 0, as its expert raised an exception; others go on\n" in said
    assert said.count("failed     drawer-close-v3") == 1, "the same exception is shown once"
    assert "ZeroDivisionError" in said
    assert "given up   drawer-close-v3: 0 of " in said


def test_an_incomplete_store_is_made_and_used_where_that_is_allowed(tmp_path, capsys, faulty):
    path = tmp_path / "two.zarr"
    config = DatasetConfig(source="scripted", episodes=2, path=str(path), allow_incomplete=True)
    store = get_store(config, TASK, "minilm-l6-v2")
    assert [task.name for task in store.tasks] == ["reach-v3"]
    assert store.num_episodes == 2
    assert "incomplete 1 of 2 tasks lack demonstrations" in capsys.readouterr().out
    # The policy is evaluated on the other task, too.
    known = store.instruction_table.instructions
    assert set(known) == {REACH.task.instruction, NEVER.task.instruction}
    with pytest.raises(DataError, match=r"fewer than 2 .* of 1 tasks.*'drawer-close-v3' .*with 0\). To use"):
        check_recipe(path, replace(config, allow_incomplete=False), [REACH, NEVER])
    assert get_store(config, TASK, "minilm-l6-v2").num_episodes == 2


def test_nothing_at_all_is_not_incomplete(tmp_path, faulty):
    config = DatasetConfig(source="scripted", episodes=1, allow_incomplete=True)
    with pytest.raises(SimulatorError, match=r"1 of 1 tasks lack .*Lower noise, or choose other tasks"):
        collect_store(tmp_path / "one.zarr", config, [NEVER], None)
    with pytest.raises(DataError):
        open_store(tmp_path / "one.zarr")
