"""Shapes are checked at run time in the tests, and only there."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import shutil
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

import jaxtyping
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from torch import Tensor

LIBRARIES = ("torch._dynamo", "torch_pruning", "torchao.quantization", "scipy.optimize", "scipy.stats")
"""Imported by a module of `methods`, under the hook that adds the checks, they would be compiled anew each time."""


def pytest_collection(session: pytest.Session) -> None:
    """Prepare the process, unless it only hands tests out to others."""
    if session.config.getoption("numprocesses", None) and not hasattr(session.config, "workerinput"):
        return
    for library in LIBRARIES:
        import_module(library)
    jaxtyping.install_import_hook(["methods"], "beartype.beartype")
    import torch

    torch.set_num_threads(1)
    leave_compilers_alone()


def leave_compilers_alone() -> None:
    """No checks of shapes in what was handed over: a compiler reads the code of a network, and cannot read theirs."""
    from methods.deployment.runtime._shared import Handed

    checked = Handed.forward

    def forward(handed: Handed, *inputs: "Tensor") -> "Tensor":
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return checked(handed, *inputs)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    Handed.forward = forward


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Chromium as the system has it."""
    from playwright.sync_api import sync_playwright  # the other tests run where it is not installed

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def less_work() -> Iterator[None]:
    """Pruning listens to three noise levels instead of a hundred; graphs are read from code, but run as they are."""
    import torch

    from methods.deployment.pruning import diff_pruning
    from methods.deployment.runtime import torch_compile

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diff_pruning, "LEVELS", 3)
        patch.setattr(torch_compile, "BACKEND", "aot_eager")
        torch._dynamo.reset()  # which gives up on code that others had it read several times
        yield
