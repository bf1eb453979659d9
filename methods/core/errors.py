"""The three errors the core can raise on purpose; everything else is a broken internal contract."""


class Conflict(ValueError):
    """Two techniques want the same slot, or one needs what another has replaced."""


class NothingMatched(ValueError):
    """A transform found nothing to change. Silence would look exactly like a free lunch."""


class Unavailable(RuntimeError):
    """An optional package or device is missing; the sentence carries the way to get it."""
