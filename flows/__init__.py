"""Runs the catalog: the same pure function behind Prefect, DVC and the command line."""

import logging
import os
from pathlib import Path

# Two OpenMP threads that spin on busy cores can be eight times slower than one. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("ATLAS_THREADS", "1"))
# Prefect's state belongs to the project, not to the user's home; nothing reports to anyone.
os.environ.setdefault("PREFECT_HOME", str(Path(__file__).resolve().parent.parent / "work" / "prefect"))
Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_RESULTS_DEFAULT_SERIALIZER", "json")  # never pickle
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# torchao looks for CUDA kernels and says that a CPU build has none; torch comments on how torchao registers an enum.
logging.getLogger("torchao").setLevel(logging.ERROR)
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
