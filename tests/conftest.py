"""Shapes are checked at run time in the tests, and only there."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from jaxtyping import install_import_hook

install_import_hook(["methods"], "beartype.beartype")

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jaxtyping
import pytest
import torch
from torch import Tensor

from methods.deployment.pruning import diff_pruning
from methods.deployment.runtime import torch_compile
from methods.deployment.runtime._shared import Handed

if TYPE_CHECKING:
    from playwright.sync_api import Browser

torch.set_num_threads(1)
checked_forward = Handed.forward


def unchecked_forward(handed: Handed, *inputs: Tensor) -> Tensor:
    """Without the checks of shapes: a compiler reads the code of a network, and cannot read theirs."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return checked_forward(handed, *inputs)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


Handed.forward = unchecked_forward


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diff_pruning, "LEVELS", 3)
        patch.setattr(torch_compile, "BACKEND", "aot_eager")
        torch._dynamo.reset()  # which gives up on code that others had it read several times
        yield
