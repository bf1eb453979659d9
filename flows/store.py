"""What several machines share: finished files in one folder, bucket or server, by what they were made from.

The address is a URL of fsspec (`file:///mnt/atlas`, `s3://bucket/atlas`, `sftp://host/atlas`). A machine of its own
needs none: its work folder is all there is.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec


@dataclass(frozen=True)
class Store:
    """Files under a URL. They appear whole or not at all."""

    url: str

    def push(self, path: Path, key: str) -> None:
        """Copy a local file to `key`, in place of what is there."""
        system, root = fsspec.url_to_fs(self.url)
        target = PurePosixPath(root) / key
        partial = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}")
        system.makedirs(str(target.parent), exist_ok=True)
        system.put_file(str(path), str(partial))
        system.mv(str(partial), str(target))

    def fetch(self, key: str, path: Path) -> bool:
        """Copy `key` to a local file, whole or not at all; False if it is not there."""
        system, root = fsspec.url_to_fs(self.url)
        source = str(PurePosixPath(root) / key)
        if not system.exists(source):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        system.get_file(source, str(partial))
        partial.replace(path)
        return True

    def list(self, folder: str) -> list[str]:
        """The names of the files in a folder, in order."""
        system, root = fsspec.url_to_fs(self.url)
        place = str(PurePosixPath(root) / folder)
        system.invalidate_cache()  # others have put files there since it was last asked
        if not system.exists(place):
            return []
        names = (PurePosixPath(found).name for found in system.ls(place, detail=False))
        return sorted(name for name in names if not name.startswith("."))
