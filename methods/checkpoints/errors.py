"""The one error of checkpoints."""

from methods.core.errors import Unavailable


class Unusable(Unavailable):
    """A checkpoint that is not there or cannot be used; the sentence says why, and what to do if something can be."""
