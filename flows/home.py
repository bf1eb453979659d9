"""Where the project lies and where its servers listen. Everything here can be set in the environment, as ATLAS_<NAME>.

A worker starts its runs in folders of its own, and is told the checkout by ATLAS_HOME.
"""

import os
import re
from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What differs between machines. Nothing of it changes a number."""

    model_config = SettingsConfigDict(env_prefix="ATLAS_")

    home: Path = Path(__file__).resolve().parent.parent
    """The checkout."""
    host: str = "127.0.0.1"
    """The address servers listen on: other machines reach them only if this is changed."""
    prefect_port: int = 4200
    mlflow_port: int = 5000
    site_port: int = 8000
    store: str | None = None
    """A URL of fsspec (s3://..., sftp://..., file:///...) through which several machines share weights and records."""
    jobs: int = os.cpu_count() or 1
    """Processes that work side by side on this machine, one thread each."""

    @property
    def shared(self) -> str:
        """The store as it may be shown; empty for none."""
        return without_password(self.store or "")

    @property
    def prefect_api(self) -> str:
        """Where flows find the Prefect server that `make up` starts."""
        return f"http://{self.host}:{self.prefect_port}/api"

    @property
    def mlflow_uri(self) -> str:
        """Where the MLflow server of `make up` listens."""
        return f"http://{self.host}:{self.mlflow_port}"

    @property
    def site_url(self) -> str:
        """Where `make up` shows the site."""
        return f"http://{self.host}:{self.site_port}"


def without_password(text: str) -> str:
    """The text, its URLs without what stands before an @."""
    return re.sub(r"//[^/@\s]*@", "//", text)


SETTINGS = Settings()
HOME = SETTINGS.home.resolve()
WORK, RESULTS, PUBLIC = HOME / "work", HOME / "results", HOME / "public"
TRIES = 3
"""How often a run is tried that crashes: its machine went away, or its process was killed."""
QUICK = WORK / "quick"
"""Where a quick look, at less than full effort, leaves its files: never among the results."""
