"""Activation counters: the proof that a technique did something. One whose counters read zero gets no verdict."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_tally: ContextVar[Counter[str] | None] = ContextVar("tally", default=None)


def count(name: str, times: int = 1) -> None:
    """Add `times` to the counter `name` of the enclosing `tallied` block; outside of one, nothing is kept."""
    tally = _tally.get()
    if tally is not None:
        tally[name] += int(times)


def count_all(counted: Mapping[str, int]) -> None:
    """Add what was counted elsewhere."""
    for name, times in counted.items():
        count(name, times)


@contextmanager
def tallied() -> Iterator[Counter[str]]:
    """Collect what is counted inside the block. Blocks nest: the outer one also sees what the inner one counted."""
    inner: Counter[str] = Counter()
    try:
        with _tallying(inner):
            yield inner
    finally:
        count_all(inner)


@contextmanager
def tallied_apart() -> Iterator[Counter[str]]:
    """As `tallied`, but an outer block sees nothing of it."""
    inner: Counter[str] = Counter()
    with _tallying(inner):
        yield inner


@contextmanager
def _tallying(tally: Counter[str]) -> Iterator[None]:
    token = _tally.set(tally)
    try:
        yield
    finally:
        _tally.reset(token)
