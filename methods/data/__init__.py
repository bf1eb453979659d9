"""The data a survey is run on: real images with labels, and 2-D mixtures whose density is known.

`load(name)` reads each set from the standard published files; nothing else in the project
touches the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from jaxtyping import Float, Int
from torch import Tensor

from methods.data.mixture import Mixture


class MissingData(Exception):
    """The files of a data set are not there; the message says which file to put where."""


@dataclass(frozen=True, eq=False)
class Images:
    """A labelled image set, pixels in [-1, 1].

    `source` names the copy that was read and carries the sha256 of its sorted image bytes, so results on
    another copy, or another selection, are told apart, while the order of the files does not matter. Classes that are
    `withheld` are there, but a model is to be trained without them and to learn them later.
    """

    name: str
    train: Float[Tensor, "n c h w"]
    train_labels: Int[Tensor, "n"]
    held_out: Float[Tensor, "m c h w"]
    held_out_labels: Int[Tensor, "m"]
    classes: int
    source: str
    withheld: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        c, h, w = self.train.shape[1:]
        return c, h, w


LOADERS = {
    "digits": "methods.data.digits:load",
    "adaptation": "methods.data.digits:seven_of_ten",
    "mnist": "methods.data.mnist:load",
    "cifar10": "methods.data.cifar10:load",
    "mixture": "methods.data.mixture:ring",
}


def load(name: str) -> Images | Mixture:
    """The data set called `name`: one of `LOADERS`. Raises `MissingData` when its files are nowhere."""
    if name not in LOADERS:
        raise MissingData(f"No data set is called {name!r}; there are {', '.join(sorted(LOADERS))}.")
    module, function = LOADERS[name].split(":")
    loader: Callable[[], Images | Mixture] = getattr(import_module(module), function)
    return loader()
