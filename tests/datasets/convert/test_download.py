"""Published data: fetched with the hub's real client from a server on this machine, resumed and verified."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mode_datasets.convert.archives import unpack
from mode_datasets.convert.description import download_record, provenance_of
from mode_datasets.download import array_digest, download
from mode_datasets.published import CATALOGUE, ArchiveData, HubData
from mode_policy.errors import DataError

from .hub import REVISION, Site, served

RNG = np.random.default_rng(0)
FILES = {
    "suite/a_demo.hdf5": RNG.bytes(200_000),
    "suite/b_demo.hdf5": RNG.bytes(3_000),
    "suite/readme.txt": b"not asked for",
    "other/c_demo.hdf5": RNG.bytes(3_000),
}
SUITE = HubData(
    repo="someone/demos",
    revision=REVISION,
    folder="suite",
    pattern="*.hdf5",
    licence="MIT",
    then="convert {path}",
)


@pytest.fixture(autouse=True)
def _no_caches(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The client's caches and tokens are the test's own."""
    pytest.importorskip("huggingface_hub")
    home = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # The client keeps whole chunks of what arrives.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)


@pytest.fixture
def site() -> Iterator[Site]:
    with served(Site(files=dict(FILES))) as hub:
        yield hub


def test_a_folder_of_the_hub_is_fetched_and_verified(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = tmp_path / "suite"
    assert download(SUITE, folder, endpoint=site.url, progress=lambda *x: seen.append(x))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        name: FILES[f"suite/{name}"] for name in ("a_demo.hdf5", "b_demo.hdf5")
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == [".suite.download.json", "suite"]
    assert seen[-1] == ("verifying", 203_000, 203_000)
    assert ("fetching", 203_000, 203_000) in seen
    record = json.loads(download_record(folder).read_text())
    assert record["sha256"]["suite/a_demo.hdf5"] == hashlib.sha256(FILES["suite/a_demo.hdf5"]).hexdigest()
    known = provenance_of(folder / "a_demo.hdf5", "LIBERO HDF5", None)
    assert (known.source, known.licence) == (SUITE.source, "MIT")
    requests = len(site.log)
    assert not download(SUITE, folder, endpoint=site.url)  # it is all there
    assert len(site.log) == requests


def test_an_interrupted_download_goes_on(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a file while the client runs, and afterwards with the files that are not there yet."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    site.cut_after = {
        "suite/a_demo.hdf5": [20_000, 30_000] + [0] * 20
    }  # it tries again while anything arrives
    with pytest.raises(DataError, match="files that have arrived are kept"):
        download(SUITE, tmp_path / "suite", endpoint=site.url)
    assert not (tmp_path / "suite").exists()
    asked = [r for method, path, r in site.log if method == "GET" and path.endswith("a_demo.hdf5")]
    assert asked[:3] == ["", "bytes=20000-", "bytes=50000-"]
    site.cut_after.clear()
    site.log.clear()
    assert download(SUITE, tmp_path / "suite", endpoint=site.url)
    assert (tmp_path / "suite" / "a_demo.hdf5").read_bytes() == FILES["suite/a_demo.hdf5"]
    assert [path[-11:] for method, path, _ in site.log if method == "GET" and path.endswith("5")] == [
        "a_demo.hdf5"
    ]


def test_files_that_are_not_the_published_ones_are_deleted(site: Site, tmp_path: Path) -> None:
    wrong = bytearray(FILES["suite/a_demo.hdf5"])
    wrong[1000] ^= 1
    site.replaced = {"suite/a_demo.hdf5": bytes(wrong)}
    with pytest.raises(DataError, match=r"a_demo.hdf5 is not the published file"):
        download(SUITE, tmp_path / "suite", endpoint=site.url)
    assert not (tmp_path / "suite").exists()
    site.replaced = {}
    assert download(SUITE, tmp_path / "suite", endpoint=site.url)


def test_what_is_not_there_is_said(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files sweet/"):
        download(replace(SUITE, folder="sweet"), tmp_path / "x", endpoint=site.url)
    with pytest.raises(DataError, match="cannot be fetched"):
        download(replace(SUITE, repo="nobody/demos"), tmp_path / "y", endpoint=site.url)
    with pytest.raises(DataError, match="answered ffff"):
        download(replace(SUITE, revision="a" * 40), tmp_path / "z", endpoint=site.url)
    site.files["suite/../../evil.hdf5"] = b"x"
    with pytest.raises(DataError, match="would leave its folder"):
        download(SUITE, tmp_path / "w", endpoint=site.url)


def test_other_folders_are_not_touched(site: Site, tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    with pytest.raises(DataError, match="exists and was not downloaded from"):
        download(SUITE, tmp_path / "suite", endpoint=site.url)


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def zarr_files(tmp_path: Path) -> dict[str, bytes]:
    import zarr

    group = zarr.create_group(str(tmp_path / "made.zarr"), zarr_format=2)
    group.create_array("data/action", data=RNG.normal(size=(400, 50)).astype(np.float32))
    group.create_array("meta/episode_ends", data=np.array([400]))
    return {
        f"demos/push.zarr/{p.relative_to(tmp_path / 'made.zarr')}": p.read_bytes()
        for p in (tmp_path / "made.zarr").rglob("*")
        if p.is_file()
    }


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[tuple[Site, ArchiveData]]:
    data = packed(zarr_files(tmp_path))
    digest = array_digest(tmp_path / "made.zarr", "data/action")
    with served(Site(files={"demos.zip": data})) as server:
        item = ArchiveData(
            url=f"{server.url}/demos.zip",
            member="demos/push.zarr",
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            arrays={"data/action": digest},
            unpacked=10**6,
            licence="MIT",
            then="",
        )
        yield server, item


def test_an_archive_is_fetched_verified_and_unpacked(
    archive: tuple[Site, ArchiveData], tmp_path: Path
) -> None:
    server, item = archive
    server.cut_after["demos.zip"] = [20_000, 20_000]
    for _ in range(2):
        with pytest.raises(DataError, match=r"stopped after \d+ of|cannot be fetched"):
            download(item, tmp_path / "push.zarr")
        assert not (tmp_path / "push.zarr").exists()
    assert download(item, tmp_path / "push.zarr")
    assert [r for _, _, r in server.log] == ["", "bytes=20000-", "bytes=40000-"]
    assert array_digest(tmp_path / "push.zarr", "data/action") == item.arrays["data/action"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".push.zarr.download.json",
        "made.zarr",
        "push.zarr",
    ]


def test_a_server_without_ranges_starts_anew(archive: tuple[Site, ArchiveData], tmp_path: Path) -> None:
    server, item = archive
    server.ranges = False
    server.cut_after["demos.zip"] = [20_000]
    with pytest.raises(DataError, match="run this again"):
        download(item, tmp_path / "push.zarr")
    assert download(item, tmp_path / "push.zarr")


def test_another_archive_is_refused(archive: tuple[Site, ArchiveData], tmp_path: Path) -> None:
    server, item = archive
    right = server.files["demos.zip"]
    wrong = bytearray(right)
    wrong[500] ^= 1
    server.files["demos.zip"] = bytes(wrong)
    with pytest.raises(DataError, match="is not the published file"):
        download(item, tmp_path / "push.zarr")
    server.files["demos.zip"] = right + b"x"
    with pytest.raises(DataError, match=f"has {len(right) + 1} bytes, expected are {len(right)}"):
        download(item, tmp_path / "push.zarr")
    server.files["demos.zip"] = right
    other = replace(item, arrays={"data/action": "0" * 64})
    with pytest.raises(DataError, match=r"data/action of .* holds other values"):
        download(other, tmp_path / "push.zarr")
    with pytest.raises(DataError, match=r"holds no folder demos/pull.zarr"):
        download(replace(item, member="demos/pull.zarr"), tmp_path / "pull.zarr")
    with pytest.raises(DataError, match=r"cannot be fetched \(HTTP Error 404"):
        download(replace(item, url=f"{server.url}/gone.zip"), tmp_path / "gone.zarr")
    assert not list(tmp_path.glob("p*.zarr"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../evil": b"x"}, "would leave its folder"),
        ({"a/../../evil": b"x"}, "would leave its folder"),
        ({"/etc/evil": b"x"}, "would leave its folder"),
        ({"C:/evil": b"x"}, "would leave its folder"),
        ({"big": bytes(2 * 10**6)}, "declares more than"),
    ],
)
def test_archives_that_are_not_to_be_trusted_are_not_unpacked(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    (tmp_path / "x.zip").write_bytes(packed({"good": b"x", **files}))
    with pytest.raises(DataError, match=message):
        unpack(tmp_path / "x.zip", tmp_path / "out", limit=10**6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.zip"]


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(DataError, match="link or device"):
        unpack(tmp_path / "x.zip", tmp_path / "out", limit=10**6)


def test_archives_that_lie_about_sizes_do_not_grow(tmp_path: Path) -> None:
    """The declared size is what was checked, so no more than that is unpacked."""
    data = packed({"bomb": bytes(10**6)})
    declared = (10**6).to_bytes(4, "little")
    assert data.count(declared) == 2  # of the member, and of the directory
    (tmp_path / "x.zip").write_bytes(data.replace(declared, (100).to_bytes(4, "little")))
    with pytest.raises(DataError, match="damaged or cut short"):
        unpack(tmp_path / "x.zip", tmp_path / "out", limit=10**6)
    assert not (tmp_path / "out").exists()


def test_what_can_be_fetched_is_pinned() -> None:
    for item in CATALOGUE.values():
        if isinstance(item, HubData):
            assert len(item.revision) == 40
        else:
            assert item.sha256 or item.arrays
        assert "{path}" in item.then


def test_push_t_is_what_is_pinned(shared: Path) -> None:
    item = CATALOGUE["pusht"]
    assert isinstance(item, ArchiveData)
    store = shared / "data" / item.name
    if not store.is_dir():
        pytest.skip(f"the Push-T demonstrations are not at {store}")
    for name, digest in (item.arrays or {}).items():
        assert array_digest(store, name) == digest
