"""Train one set of weights with several processes, one per device, by torch's own data parallelism.

    torchrun --nproc-per-node 4 -m flows.parallel '{"methods": {}}' --bed cifar10 --seed 0

The train flow starts it where it is asked for more than one process. All processes carry out the same training, the
network's share of it divided among them; the first writes the file.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cyclopts
import psutil
import torch
import torch.distributed as dist

import catalog
from catalog import Cell
from flows import cell
from flows.cell import Spec, Workplace
from flows.home import WORK
from flows.progress import share, shown
from flows.study import main
from methods.core.calibration import Report
from methods.core.errors import Conflict, Unavailable
from methods.core.learning import quiet

LOCAL = "127.0.0.1"


def train(spec: Spec, seed: int, place: Workplace, report: Report = quiet, processes: int = 1) -> Path:
    """Train the weights a cell starts from with so many processes, or find them. Who wants the same meanwhile waits.

    Raises Conflict where they cannot share a batch, and Unavailable.
    """
    cell.require_network(spec)
    if spec.recipe.fit.batch % processes:
        raise Conflict(f"A batch of {spec.recipe.fit.batch} cannot be shared out over {processes} processes.")
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise Unavailable(
            f"Each of {processes} processes needs a CUDA device, and torch sees {torch.cuda.device_count()}."
        )
    if processes > 1:
        path, fingerprint = cell.target(spec, "train", place, seed)
        locks = place.root / spec.bed.name / cell.MADE  # the first process of the group takes another there
        with place.turn(path, locks / f"{fingerprint}.together.lock"):
            if cell.find(path, fingerprint) is None:
                together(spec, seed, place, processes)
    return cell.train(spec, seed, place, report)


def together(spec: Spec, seed: int, place: Workplace, processes: int) -> None:
    """Start the group and wait for it. Raises Unavailable if it leaves no weights."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--local-addr={LOCAL}"]
    launcher = [*torchrun, f"--nproc-per-node={processes}", "-m", "flows.parallel"]
    asked = [spec.cell.model_dump_json(), "--bed", spec.bed.name, "--seed", str(seed)]
    where = ["--budget", str(spec.budget), "--work", str(place.root.resolve())]
    told = {"GLOO_SOCKET_IFNAME": loopback(), **os.environ}
    status = subprocess.run([*launcher, *asked, *where], check=False, env=told).returncode
    if status and not cell.is_made(spec, "train", place, seed):
        raise Unavailable(
            f"{processes} processes did not train {spec.training.name}, seed {seed}, together: torchrun ended with"
            f" status {status}, and what they said stands above."
        )


def loopback() -> str:
    """The interface by which processes of one machine talk, to be told to gloo.

    By itself each asks for the address of the machine's name, and waits for long where that is not the machine's.
    """
    interfaces = psutil.net_if_addrs().items()
    return next(name for name, addresses in interfaces if any(each.address == LOCAL for each in addresses))


app = cyclopts.App(name="torchrun -m flows.parallel", help=__doc__, help_format="plaintext")


@app.default
def member(asked: str, *, bed: str, seed: int, budget: float = 1.0, work: Path = WORK) -> None:
    """One process of the group; `asked` is the cell as JSON."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    known = catalog.load()
    spec = Spec(known, known.bed(bed), Cell.model_validate_json(asked), known.bed(bed).seeds.blocks, budget)
    first = dist.get_rank() == 0
    with tempfile.TemporaryDirectory() as elsewhere:
        place = Workplace(work if first else Path(elsewhere))
        if first:
            with shown(f"train {spec.training.name}, seed {seed}", share(spec, place, "train", seed)) as report:
                cell.train(spec, seed, place, report)
        else:
            cell.train(spec, seed, place)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(app)
