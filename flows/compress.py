"""Make the weights that ship: fit the start, distil, prune, quantize. Trains first what is not trained yet.

python -m flows.compress --bed digits --methods diff_pruning
"""

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows import cell
from flows.artifacts import links, progress, show_links
from flows.forms import KNOWN, Bed, Blocks, Budget, Given, Methods, Request, command_line, form, request, run_name
from flows.progress import share
from flows.study import main


@task(cache_policy=NO_CACHE, task_run_name="shipped weights, seed {seed}")
def compress_weights(asked: Request, seed: int) -> str:
    """Compress one seed, or find its file; returns the path."""
    spec = asked.study().subject
    with progress(f"compress {spec.name}, seed {seed}", share(spec, asked.place, "compress", seed)) as report:
        return str(cell.compress(spec, seed, asked.place, report))


@flow(name="compress", flow_run_name=run_name("compress"))
@form
def compress(
    bed: Bed = "digits", methods: Methods = [], parameters: Given = [], budget: Budget = 1.0,
    blocks: Blocks = None,
) -> list[str] | State:  # fmt: skip
    """Write the weights as they would ship, for every training seed of the bed."""
    asked = request(bed, methods, parameters, budget, blocks)
    this = asked.study()
    made = [compress_weights(asked, seed) for seed in this.subject.train_seeds]
    show_links(links(KNOWN, this.id, asked.bed, asked.records, made))
    return made


if __name__ == "__main__":
    main(command_line(compress, __doc__))
