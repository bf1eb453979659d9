"""Whether a technique did anything at all: its activation counters, counted by `methods.core.activation`."""

from collections.abc import Collection, Mapping


def fired(counters: Mapping[str, int], names: Collection[str]) -> bool:
    """True when every named counter counted something. No names is False: silence is failure."""
    return bool(names) and all(counters.get(name, 0) > 0 for name in names)
