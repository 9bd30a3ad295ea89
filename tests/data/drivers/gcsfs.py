"""Stands in for the driver of gs://: buckets are folders below $BUCKETS, in whatever process looks."""

from __future__ import annotations

import os
from pathlib import Path

from fsspec import AbstractFileSystem


class GCSFileSystem(AbstractFileSystem):
    protocol = ("gcs", "gs")
    cachable = False

    def _at(self, path: str) -> Path:
        return Path(os.environ["BUCKETS"]) / self._strip_protocol(path)

    def info(self, path, **_):
        at = self._at(path)
        if not at.exists() or (at.is_dir() and not any(at.iterdir())):  # a bucket has no empty folders
            raise FileNotFoundError(path)
        status = at.stat()
        kind = "directory" if at.is_dir() else "file"
        return {"name": self._strip_protocol(path), "size": status.st_size, "type": kind, "mtime": status.st_mtime}

    def ls(self, path, detail=True, **_):
        about = self.info(path)
        below = sorted(self._at(path).iterdir()) if about["type"] == "directory" else []
        found = [self.info(f"{about['name']}/{entry.name}") for entry in below] if below else [about]
        return found if detail else [entry["name"] for entry in found]

    def _open(self, path, mode="rb", **_):
        if "w" in mode:
            self._at(path).parent.mkdir(parents=True, exist_ok=True)
        return open(self._at(path), mode)

    def rm_file(self, path):
        self._at(path).unlink()
