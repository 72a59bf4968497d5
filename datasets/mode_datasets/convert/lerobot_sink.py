"""Writing LeRobotDataset v3 with LeRobot's own writer.

Videos are LeRobot's default and small, but not lossless; ``lossless`` keeps each image as PNG inside Parquet.
A data set that was being written when its writer was killed cannot be continued, so these conversions start
anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mode_datasets.convert.description import NAME
from mode_datasets.convert.sink import PartialSink, SinkOptions
from mode_policy.errors import ConfigError, DataError
from mode_policy.files import write_text
from mode_policy.types import Episode, Features


class LeRobotSink(PartialSink):
    """Write a LeRobotDataset.

    Args:
        path: Its folder.
        options: How.
        lossless: Keep images as PNG instead of videos.

    Raises:
        ConfigError: if LeRobot is not installed.
        DataError: if the control rate is no whole number, which LeRobot needs.
    """

    def __init__(self, path: Path, options: SinkOptions, *, lossless: bool = False) -> None:
        super().__init__(path, options, "lerobot")
        rate = options.convention.fps
        if rate is None or rate != int(rate):
            raise DataError(
                f"LeRobot's frame rates are whole numbers, and the control rate is {rate}; write another "
                "format"
            )
        self._lossless = lossless
        self._dataset: Any = None

    def _begin(self) -> None:
        try:
            from lerobot.datasets.lerobot_dataset import LeRobotDataset
        except ImportError as error:
            raise ConfigError("LeRobotDatasets need: pip install 'mode-policy[lerobot]'") from error
        assert self.options.convention.fps is not None
        self._dataset = LeRobotDataset.create(
            repo_id=f"local/{self.path.name}",
            fps=int(self.options.convention.fps),
            features=_features(self.options.features, self._lossless),
            root=self.partial,
            use_videos=not self._lossless,
        )

    def _write(self, episode: Episode) -> None:
        for i in range(len(episode)):
            frame: dict[str, Any] = {key: episode.arrays[key][i] for key in self.options.features}
            self._dataset.add_frame({**frame, "task": episode.task.instruction})
        self._dataset.save_episode()

    def _complete(self) -> None:
        self._dataset.finalize()
        text = self.describe({key: (key,) for key in self.options.features})
        write_text(self.partial / "meta" / f"{NAME}.json", text)

    def _close(self) -> None:
        if self._dataset is not None:
            self._dataset.finalize()
            self._dataset = None


def _features(features: Features, lossless: bool) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for key, feature in features.items():
        if len(feature.shape) == 3:
            dtype, names = ("image" if lossless else "video"), ["height", "width", "channels"]
        else:
            dtype = "float32"
            names = list(feature.names) or [f"{key.split('.')[-1]}_{i}" for i in range(feature.shape[0])]
        described[key] = {"dtype": dtype, "shape": feature.shape, "names": names}
    return described
