"""``mode-doctor``: finds what is missing, and says the fix."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from mode_envs import renderer
from mode_envs.libero_assets import PARTS, find_assets
from mode_policy.apps import doctor
from mode_policy.apps.doctor import Check, check_data, check_libero, check_packages, check_rendering, main
from mode_policy.errors import SimulatorError


def test_the_table_has_every_fix_beside_its_check(capsys, monkeypatch):
    checks = [
        Check("good", True, "found it"),
        Check("absent", None, "lacks sim", "pip install 'mode-policy[libero]'"),
    ]
    monkeypatch.setattr(doctor, "GROUPS", {"python": lambda: checks})
    main(["python"])
    printed = capsys.readouterr().out
    assert "ok" in printed
    assert "fix: pip install 'mode-policy[libero]'" in printed


def test_it_fails_only_for_what_is_broken(monkeypatch):
    monkeypatch.setattr(doctor, "GROUPS", {"python": lambda: [Check("x", False, "broken", "mend it")]})
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 1
    with pytest.raises(SystemExit) as stopped:
        main(["nonsense"])
    assert stopped.value.code == 2


def test_absent_packages_are_named_with_their_extra(monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"pusht": ("no_such_simulator",), "here": ("pytest",)})
    absent, here = check_packages()
    assert (absent.ok, absent.found) == (None, "lacks no_such_simulator")
    assert absent.fix == "pip install 'mode-policy[pusht]'"
    assert here.ok
    assert "pytest" in here.found


def test_a_backend_that_cannot_draw_is_named(monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.setattr(doctor, "BACKENDS", ("no_such_backend",))
    monkeypatch.setenv("MUJOCO_GL", "no_such_backend")
    backend, asked = check_rendering()
    assert backend.ok is False
    assert "no_such_backend" in backend.found
    assert backend.fix == renderer.INSTALL_LINE
    assert (asked.ok, asked.fix) == (None, "unset MUJOCO_GL")


def test_stores_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("MODE_DATA_DIR", str(tmp_path))
    assert any(check.name == "datasets" and check.ok is None for check in check_data())
    (tmp_path / "half.zarr").mkdir()
    half = next(check for check in check_data() if check.name == "dataset half.zarr")
    assert half.ok is None
    assert half.fix


def test_absent_libero_is_not_broken(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libero" else find(name))
    (check,) = check_libero()
    assert check.ok is None
    assert check.found == "this environment needs LIBERO, which is not installed"
    assert check.fix == "pip install 'mode-policy[libero]'"


def test_suites_are_checked_each():
    try:
        find_assets(download=False)
    except SimulatorError as error:
        pytest.skip(str(error))
    checks = {check.name: check for check in check_libero()}
    assert {f"libero {key}" for key in ("spatial", "object", "goal", "10", "90")} < set(checks)
    assert all(check.ok for check in checks.values())


def test_half_downloaded_assets_are_found(tmp_path, monkeypatch):
    try:
        whole = find_assets(download=False)
    except SimulatorError as error:
        pytest.skip(str(error))
    for name in ("scenes", "textures", "stable_hope_objects"):
        shutil.copytree(whole / name, tmp_path / name, copy_function=lambda _, to: Path(to).write_bytes(b"x"))
    monkeypatch.setenv("MODE_LIBERO_ASSETS", str(tmp_path))
    broken = next(check for check in check_libero() if check.ok is False)
    assert "incomplete" in broken.found
    assert str(tmp_path) in broken.found
    monkeypatch.setenv("MODE_LIBERO_ASSETS", str(tmp_path / "none"))
    with pytest.raises(SimulatorError, match=r"MODE_LIBERO_ASSETS is .* where there is no folder"):
        find_assets()


def test_a_missing_part_of_the_assets_is_named(monkeypatch):
    import importlib.metadata

    distribution = importlib.metadata.distribution

    def without(name):
        if name == PARTS[2]:
            raise importlib.metadata.PackageNotFoundError(name)
        return distribution(name)

    try:
        find_assets(download=False)
    except SimulatorError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(importlib.metadata, "distribution", without)
    with pytest.raises(SimulatorError, match=f"{PARTS[2]} missing. Run: pip install --force-reinstall"):
        find_assets(download=False)
