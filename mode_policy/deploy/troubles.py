"""What a person is told of a loop's troubles: their beginnings and their end, not every tick."""

from __future__ import annotations

from collections.abc import Callable

from mode_policy.deploy.interventions import NONE, Intervention

#: Seconds without any, after which they are said to be over.
CALM = 1.0


class Troubles:
    """Says what is wrong when it begins, and when it has been over for a while.

    Troubles may come and go many times a second; then only the first is told of.

    Attributes:
        text: what is wrong, or was a moment ago; "" while all is well.

    Args:
        say: called with a line of text.
        rate: ticks per second.
    """

    def __init__(self, say: Callable[[str], None], rate: float) -> None:
        self.text = ""
        self._say, self._calm = say, CALM * rate
        self._kinds, self._last = NONE, 0

    def report(self, tick: int, kinds: Intervention, text: str) -> None:
        """Take note of a tick: which kinds of trouble there are, and in words."""
        if text:
            if not self.text or kinds & ~self._kinds:
                self._say(text)
            self.text, self._kinds, self._last = text, self._kinds | kinds, tick
        elif self.text and tick >= self._last + self._calm:
            self.text, self._kinds = "", NONE
            self._say("all is well again")
