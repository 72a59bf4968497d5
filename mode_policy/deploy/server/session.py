"""What the server remembers of a client: observations, instruction, and the chunk that it sent last.

A client may send whole requests (`mode_policy.deploy.inference`), or leave to the session what openpi's
clients do not know of: they send one observation at a time, under names with slashes. For real-time
chunking a request may carry ``rtc`` → ``{"tick": k, "fixed": d}`` instead of the actions: the server then
continues the chunk that it sent for an earlier tick.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from mode_policy.errors import DataError
from mode_policy.types import IMAGE_PREFIX, STATE, Feature, feature_kind

OTHERS = ("prompt", "rtc", "seed")


class Session:
    """One client.

    Args:
        features: of the policy's observations.
        history: observations that the policy sees.
        keys: the client's names → ours.
    """

    def __init__(self, features: Mapping[str, Feature], history: int, keys: Mapping[str, str]) -> None:
        self._features, self._keys, self._length = features, keys, history
        self._seen: dict[str, deque[np.ndarray]] = {key: deque(maxlen=history) for key in features}
        self._prompt: str | None = None
        self._sent: tuple[int, np.ndarray] | None = None
        self._tick: int | None = None

    def complete(self, message: Any) -> dict[str, Any]:
        """Return the request that a message stands for.

        Raises:
            DataError: if it is no map of names.
        """
        if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
            raise DataError("a request is a map from names to arrays")
        request = {key: self._history(key, value) for key, value in self._named(message).items()}
        self._prompt = request.get("prompt", self._prompt)
        if self._prompt is not None:
            request["prompt"] = self._prompt
        self._tick = None
        if isinstance(rtc := request.get("rtc"), dict) and "actions" not in rtc:
            continued = self._continue(rtc)
            request.pop("rtc")
            if continued is not None:
                request["rtc"] = continued
        return request

    def sent(self, actions: np.ndarray) -> None:
        """Remember the answer to the last request."""
        if self._tick is not None:
            self._sent = (self._tick, actions)

    def _named(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Rename what the client calls differently, and drop what the policy does not read."""
        named: dict[str, Any] = {}
        for key, value in message.items():
            if key == "images" and isinstance(value, dict):
                named |= {IMAGE_PREFIX + str(camera): picture for camera, picture in value.items()}
                continue
            ours = self._keys.get(key) or (STATE if key == "state" else key.replace("/", "."))
            named[ours] = value
        return {key: value for key, value in named.items() if key in self._features or key in OTHERS}

    def _history(self, key: str, value: Any) -> Any:
        """Turn one observation into the last few, where a client sends them one by one."""
        if key in OTHERS or not isinstance(value, np.ndarray):
            return value
        shape = self._features[key].shape
        if feature_kind(key) == "image" and value.shape == (shape[2], *shape[:2]) != shape:
            value = value.transpose(1, 2, 0)  # channels first, as some clients send them
        if value.shape != shape:
            return value
        seen = self._seen[key]
        seen.append(value)
        return np.stack([seen[0]] * (self._length - len(seen)) + list(seen))

    def _continue(self, rtc: Mapping[str, Any]) -> dict[str, Any] | None:
        tick, fixed = rtc.get("tick"), rtc.get("fixed", 0)
        if type(tick) is not int or tick < 0:
            raise DataError(
                f"'rtc' has tick={tick!r}; give the tick of the observation, or the actions to continue"
            )
        self._tick = tick
        if self._sent is None or tick < self._sent[0]:
            return None
        rest = self._sent[1][tick - self._sent[0] :]
        return {**rtc, "actions": rest, "fixed": fixed} if len(rest) else None
