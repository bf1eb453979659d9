"""Activation counters: the proof that a technique did something. One whose counters read zero gets no verdict."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_tally: ContextVar[Counter[str] | None] = ContextVar("tally", default=None)


def count(name: str, times: int = 1) -> None:
    """Add `times` to the counter `name` of the enclosing `tallied` block; outside of one, nothing is kept."""
    tally = _tally.get()
    if tally is not None:
        tally[name] += int(times)


@contextmanager
def tallied() -> Iterator[Counter[str]]:
    """Collect what is counted inside the block. Blocks nest: the outer one also sees what the inner one counted."""
    inner: Counter[str] = Counter()
    token = _tally.set(inner)
    try:
        yield inner
    finally:
        _tally.reset(token)
        outer = _tally.get()
        if outer is not None:
            outer.update(inner)
