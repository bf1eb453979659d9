"""Where the project lies: the checkout, or $ATLAS_HOME. A worker starts its runs in folders of its own."""

import os
from pathlib import Path

HOME = Path(os.environ.get("ATLAS_HOME") or Path(__file__).resolve().parent.parent)
WORK, RESULTS, PUBLIC = HOME / "work", HOME / "results", HOME / "public"
QUICK = WORK / "quick"
"""Where a quick look, at less than full effort, leaves its files: never among the results."""
