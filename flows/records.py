"""The record store: what was measured, as JSON files that are written whole or not at all."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows.home import HOME

SCHEMA = 2


class FileProblem(RuntimeError):
    """Something is wrong with a file, not with what was measured."""


class Damaged(FileProblem):
    """A file of weights, samples or results cannot be read; it is never overwritten silently."""

    def __init__(self, path: Path, remedy: str) -> None:
        super().__init__(f"{path} is damaged and was left as it is; delete it to {remedy}.")


class Unwritten(FileProblem):
    """A file could not be written: the disk is full, or not ours. What was there before is as it was."""

    def __init__(self, path: Path, error: Exception) -> None:
        with suppress(OSError):
            partial(path).unlink()
        why = error.strerror if isinstance(error, OSError) else error
        super().__init__(f"{path} could not be written ({why}); what was there before is as it was.")


def partial(path: Path) -> Path:
    """Where this process writes a file until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file atomically: a reader, or a crash, sees the old content or the new, never half of it.

    What is not `durable` may be lost with the power, for it is made again in seconds. Raises Unwritten.
    """
    temporary = partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise Unwritten(path, error) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with sorted keys, so that equal values are equal bytes."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises Damaged if the file is not one."""
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Damaged(path, "measure again") from error
    if not isinstance(value, dict):
        raise Damaged(path, "measure again")
    return value


def readable(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if it is not there, or damaged, which is said where it is needed."""
    try:
        return read_json(path) if path.exists() else None
    except Damaged:
        return None


def provenance() -> dict[str, Any]:
    """Where and with what this process runs: the part of a record that differs between machines."""
    import torch  # a reader of records needs none

    return {
        "commit": commit(),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "methods", "flows", "catalog")),
        "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "host": {
            "cpu": _processor(),
            "cores": os.cpu_count(),
            **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
            "threads": int(os.environ["OMP_NUM_THREADS"]),
            "load": round(os.getloadavg()[0], 2),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "torchao", "numpy")},
    }


def commit() -> str | None:
    """The commit that is checked out, None where the project lies in no repository."""
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str | None:
    """What git says of the checkout; a worker runs in a folder of its own, outside of any repository."""
    done = subprocess.run(["git", "-C", str(HOME), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    """The processor's name, with family and model: virtual machines call processors alike that round differently."""
    fields = (line.partition(":") for line in _lines("/proc/cpuinfo"))
    said = {key.strip(): value.strip() for key, _, value in fields}
    if "model name" not in said:
        return platform.processor()
    return f"{said['model name']} (family {said.get('cpu family')}, model {said.get('model')})"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def on_the_way(record: Mapping[str, Any], name: str) -> dict[float, str]:
    """The cells that differ from one in nothing but how much of training has passed, by that share, it included."""
    if name not in record["cells"]:
        return {}
    whole = record["cells"][name]
    found = {
        share_of(cell): other
        for other, cell in record["cells"].items()
        if (cell["methods"], cell["steps"]) == (whole["methods"], whole["steps"])
    }
    return dict(sorted(found.items()))


def share_of(cell: Mapping[str, Any]) -> float:
    """The share of base training after which the weights of a cell were taken."""
    return cell.get("trained", 1.0)
