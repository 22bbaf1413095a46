"""Newest request wins: of the requests that one panel of one page sent, only the last is worth an answer."""

from __future__ import annotations

import threading
from collections import OrderedDict

REMEMBERED = 1000  # panels of pages


class Superseded(Exception):
    """A newer request of the same panel has come: nobody looks at this one's answer."""


class Turn:
    """A request's place among those of its panel. One without a panel is never superseded."""

    def __init__(self, turns: Turns | None = None, panel: str = "", number: int = 0):
        self._turns, self._panel, self._number = turns, panel, number

    @property
    def superseded(self) -> bool:
        return self._turns is not None and self._turns.newest(self._panel) > self._number

    def check(self) -> None:
        """Raises Superseded when a newer request has come. Called before each piece of work that takes long."""
        if self.superseded:
            raise Superseded


class Turns:
    """The newest number of each panel."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: OrderedDict[str, int] = OrderedDict()

    def take(self, said: str | None) -> Turn:
        """`said`: 'PAGE/PANEL NUMBER', numbers rising; None, or what cannot be read, for a request that always wants its answer."""
        panel, _, digits = (said or "").rpartition(" ")
        if not panel or len(panel) > 100 or not digits.isdecimal() or len(digits) > 15:
            return Turn()
        number = int(digits)
        with self._lock:
            self._newest[panel] = max(number, self._newest.pop(panel, 0))
            if len(self._newest) > REMEMBERED:
                self._newest.popitem(last=False)
        return Turn(self, panel, number)

    def newest(self, panel: str) -> int:
        with self._lock:
            return self._newest.get(panel, 0)
