"""Finished runs of one claim, kept in files so that an interrupted command goes on.

A file holds the runs of one arm on one problem, by seed. Its name contains a hash of
all that decides them: the arm's settings, the protocol, the commit and the versions.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.provenance import git_commit, package_versions
from experiments.reproduce.report import encode

Run = dict[str, Any]  # JSON-able, of one seed


class RunStore:
    """Runs by problem, arm and seed, in one folder."""

    def __init__(self, root: pathlib.Path, setting: Mapping[str, Any]):
        """Opens the folder, which need not exist.

        Args:
          root: where the files lie.
          setting: what all runs share, JSON-able.
        """
        self._root = root
        self._setting = {
            **setting,
            "commit": git_commit(),
            "versions": package_versions(),
        }

    def _path(self, problem: str, arm: str, settings: Mapping[str, Any]):
        identity = {"shared": self._setting, "settings": dict(settings)}
        text = json.dumps(encode(identity), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self._root / f"{problem}_{arm}_{digest}.json"

    def read(
        self, problem: str, arm: str, settings: Mapping[str, Any]
    ) -> dict[int, Run]:
        """The finished runs of an arm by seed; empty where nothing has been run."""
        path = self._path(problem, arm, settings)
        if not path.exists():
            return {}
        return {int(seed): run for seed, run in json.loads(path.read_text()).items()}

    def write(
        self,
        problem: str,
        arm: str,
        settings: Mapping[str, Any],
        runs: Mapping[int, Run],
    ) -> None:
        """Replaces the runs of an arm."""
        path = self._path(problem, arm, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(encode(runs)))
        os.replace(temporary, path)

    def complete(
        self,
        problem: str,
        arm: str,
        settings: Mapping[str, Any],
        seeds: Sequence[int],
        make: Callable[[int], Run],
    ) -> list[Run]:
        """The runs of these seeds, in this order; `make` is asked for the missing ones.

        Each is kept as soon as it is finished.
        """
        found = self.read(problem, arm, settings)
        for seed in seeds:
            if seed not in found:
                # What comes out of a file and what was just run must not differ.
                found[seed] = json.loads(json.dumps(encode(make(seed))))
                self.write(problem, arm, settings, found)
        return [found[seed] for seed in seeds]

    def lacks(
        self,
        problem: str,
        arm: str,
        settings: Mapping[str, Any],
        seeds: Sequence[int],
    ) -> bool:
        """Whether some of these seeds have not been run."""
        return not set(seeds) <= set(self.read(problem, arm, settings))
