"""Published demonstrations: where they are, which version of them is meant, and how they are known again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class HubData:
    """A folder of a data set on the hub.

    Attributes:
        repo: Name of the repository.
        revision: The commit that is fetched; later changes there change nothing here.
        folder: Whose files are fetched, and become the destination.
        pattern: Of those files.
        licence: Of the data.
        then: What to do next, with ``{path}`` for the destination.
    """

    repo: str
    revision: str
    folder: str
    pattern: str
    licence: str
    then: str

    @property
    def source(self) -> str:
        """Where the data come from."""
        return f"https://huggingface.co/datasets/{self.repo}/tree/{self.revision}/{self.folder}"

    @property
    def name(self) -> str:
        """Name of the destination."""
        return self.folder


@dataclass(frozen=True, kw_only=True)
class ArchiveData:
    """A zip archive behind an address.

    Attributes:
        url: Its address.
        member: The folder in it that becomes the destination.
        bytes, sha256: Of the archive, where its publisher or we know them.
        arrays: Digest of arrays of the zarr store that it holds, by their names: what is verified where the
            archive
            itself may be packed anew.
        unpacked: Bytes that it may take unpacked.
        licence: Of the data.
        then: What to do next, with ``{path}`` for the destination.
    """

    url: str
    member: str
    bytes: int | None = None
    sha256: str | None = None
    arrays: Mapping[str, str] | None = None
    unpacked: int
    licence: str
    then: str

    @property
    def source(self) -> str:
        """Where the data come from."""
        return self.url

    @property
    def name(self) -> str:
        """Name of the destination."""
        return Path(self.member).name


def _libero(suite: str) -> HubData:
    return HubData(
        repo="yifengzhu-hf/LIBERO-datasets",
        revision="f13aa24a3da8c43c7225569f28c562979fa0e35a",
        folder=suite,
        pattern="*.hdf5",
        licence="CC-BY-4.0 (LIBERO's README; the hub's card says Apache-2.0)",
        then="mode-data convert {path} {path}.zarr",
    )


#: What can be fetched by name.
CATALOGUE: dict[str, HubData | ArchiveData] = {
    **{
        suite: _libero(suite)
        for suite in ("libero_90", "libero_10", "libero_goal", "libero_object", "libero_spatial")
    },
    "pusht": ArchiveData(
        url="https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip",
        member="pusht/pusht_cchi_v7_replay.zarr",
        arrays={
            "data/state": "2625e2871735cb4ab5d5f86cb04e292f8a64999163045208f4c25e92fded8d21",
            "data/action": "05a52f8a4ddc32080d46150963734bba33af9e7b1fad863bbf016bc99197d835",
            "meta/episode_ends": "4597870c04f936f73e7f7437d902d19660d8180a110d732a5f7ba5f94533700a",
        },
        unpacked=8 * 2**30,
        licence="MIT",
        then="uv run train.py task=pusht dataset.path={path}",
    ),
}
