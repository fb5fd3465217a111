"""A shell in a folder of this machine, instead of one in a Pod that mounts a claim."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from deployer.store.volume_shell import ExitError


class FolderShell:
    """Implements deployer.store.volume_shell.Shell; counts the scripts and the bytes that it received."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0
        self.received = 0

    def run(self, script: str, *arguments: str, source: Iterable[bytes] = ()) -> Iterator[bytes]:
        self.runs += 1
        self.folder.mkdir(exist_ok=True)
        with subprocess.Popen(
            ["sh", "-c", script, "sh", *arguments],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            errors: list[bytes] = []
            reader = threading.Thread(target=lambda: errors.append(child.stderr.read()))
            reader.start()
            try:
                for data in self.passing(source):
                    child.stdin.write(data)
                    self.received += len(data)
            except BrokenPipeError:
                pass  # the script ended; stderr has the reason
            finally:
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.close()
            yield from iter(lambda: child.stdout.read1(65536), b"")
            reader.join()
        if child.returncode:
            raise ExitError(child.returncode, errors[0].decode())

    def close(self) -> None:
        pass

    def passing(self, source: Iterable[bytes]) -> Iterable[bytes]:
        """Return the bytes that arrive; a test can lose or change some."""
        return source
