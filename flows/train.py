"""Train the weights that a composition of techniques starts from.

python -m flows.train --bed digits --methods v_prediction
"""

from typing import TYPE_CHECKING, Annotated

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows import forms, parallel
from flows.artifacts import links, progress, show_links
from flows.forms import KNOWN, Bed, Blocks, Budget, Given, Methods, Request, command_line, form, request, run_name
from flows.progress import share
from flows.study import main

if TYPE_CHECKING:
    Together = int
else:
    Together = Annotated[int, forms.asks("Share each batch out over so many processes, one per device.", ge=1)]


@task(cache_policy=NO_CACHE, task_run_name="weights, seed {seed}")
def train_weights(asked: Request, seed: int, processes: int) -> str:
    """Train one seed, or find its file; returns the path."""
    spec = asked.study().subject
    with progress(f"train {spec.training.name}, seed {seed}", share(spec, asked.place, "train", seed)) as report:
        return str(parallel.train(spec, seed, asked.place, report, processes))


@flow(name="train", flow_run_name=run_name("train"))
@form
def train(
    bed: Bed = "digits", methods: Methods = [], parameters: Given = [], budget: Budget = 1.0,
    blocks: Blocks = None, processes: Together = 1,
) -> list[str] | State:  # fmt: skip
    """Train a network (with its autoencoder, if it has one) for every training seed of the bed."""
    asked = request(bed, methods, parameters, budget, blocks)
    this = asked.study()
    made = [train_weights(asked, seed, processes) for seed in this.subject.train_seeds]
    show_links(links(KNOWN, this.id, asked.bed, asked.records, made))
    return made


if __name__ == "__main__":
    main(command_line(train, __doc__))
