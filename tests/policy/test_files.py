"""Writes are whole or absent, and failures name the place and the way out."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mode_policy.errors import ModePolicyError
from mode_policy.files import atomic_folder, held, replacing, write_text
from tests.conftest import ROOT


def test_a_failed_write_leaves_what_was_there(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def fail(partial: Path):
        partial.write_text("new")
        raise RuntimeError

    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as partial:
        fail(partial)
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder") as partial:
        fail(partial / "b.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_places_that_take_no_files_are_explained(tmp_path):
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "inside"
    message = r"cannot write .*inside.*: (Not a directory|File exists) \(.*file.*\); choose another place"
    with pytest.raises(ModePolicyError, match=message):
        write_text(inside / "a.txt", "")
    with pytest.raises(ModePolicyError, match=message), atomic_folder(inside):
        pass
    with pytest.raises(ModePolicyError, match=message), held(inside):
        pass


@pytest.mark.parametrize("place", ["/proc/page.html", "{folder}"])
def test_places_that_cannot_be_this_file_are_explained(place, tmp_path):
    with pytest.raises(ModePolicyError, match=r"cannot write .*; choose another place"):
        write_text(Path(place.format(folder=tmp_path)), "")


def test_a_missing_file_that_was_to_be_read_is_no_bad_place(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        (tmp_path / "b.txt").read_text()


def test_a_full_disk_is_explained_and_given_back(full_disk):
    write_text(full_disk / "a.txt", "old")
    with pytest.raises(
        ModePolicyError, match=r"no space left while writing .*a.txt \(0 MB free\); free some"
    ):
        write_text(full_disk / "a.txt", "x" * 10**6)
    assert [p.name for p in full_disk.iterdir()] == ["a.txt"]
    assert (full_disk / "a.txt").read_text() == "old"


def test_text_is_utf8_whatever_the_locale(tmp_path):
    code = f"from mode_policy.files import *; write_text(Path({str(tmp_path / 'a.txt')!r}), chr(0x3C3))"
    settings = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | settings, cwd=ROOT)
    assert (tmp_path / "a.txt").read_bytes() == "σ".encode()


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds a folder until it is killed."""
    code = (
        "import time\nfrom mode_policy.files import *\n"
        f"with held(Path({str(folder)!r})):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_held_by_one_process_and_free_when_it_dies(tmp_path):
    other = holder(tmp_path / "run")
    try:
        with pytest.raises(ModePolicyError, match=r"another process writes to .*run"), held(tmp_path / "run"):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    with held(tmp_path / "run"):
        (tmp_path / "run" / "result").touch()
    assert (tmp_path / "run" / "result").exists()


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(RuntimeError), held(tmp_path / "run"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
