"""Draw samples: a block of n per sampling seed. Trains and compresses first what is not there yet.

python -m flows.sample --bed digits --methods dpm_solver_pp_2m deepcache
"""

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows import cell
from flows.artifacts import links, progress, show_links, show_picture
from flows.forms import KNOWN, Bed, Blocks, Budget, Given, Methods, Request, command_line, form, request, run_name
from flows.picture import picture
from flows.progress import share
from flows.study import main


@task(cache_policy=NO_CACHE, task_run_name="samples, seed {seed}, block {block}")
def sample_block(asked: Request, seed: int, block: int) -> str:
    """Draw one block, or find its file; returns the path."""
    spec = asked.study().subject
    with progress(f"sample {spec.name}, block {block}", share(spec, asked.place, "sample", seed, block)) as report:
        return str(cell.sample(spec, seed, block, asked.place, report))


@flow(name="sample", flow_run_name=run_name("sample"))
@form
def sample(
    bed: Bed = "digits", methods: Methods = [], parameters: Given = [], budget: Budget = 1.0,
    blocks: Blocks = None,
) -> list[str] | State:  # fmt: skip
    """Draw every block of samples: one per sampling seed."""
    asked = request(bed, methods, parameters, budget, blocks)
    this = asked.study()
    made = [sample_block(asked, seed, block) for seed, block in this.subject.blocks]
    if this.subject.bed.network is not None:
        show_picture(picture(this.subject, asked.place), this.id, asked.bed)
    show_links(links(KNOWN, this.id, asked.bed, asked.records, made))
    return made


if __name__ == "__main__":
    main(command_line(sample, __doc__))
