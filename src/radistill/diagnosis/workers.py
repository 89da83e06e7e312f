"""Further processes on this machine that join a search: what `workers` starts.

A worker is what the same command on another machine would be: it loads the model, opens the study's storage and judges
sets until there are enough. It ends when the process that started it does, however that ends.
"""

import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

import torch

from radistill.console import note
from radistill.errors import RadistillError


class Workers:
    """Processes that are at work on the same study as this one."""

    def __init__(self, join: Callable[[], object], count: int, threads: int) -> None:
        """Start `count` processes, each of which calls `join` on so many threads."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        job = pickle.dumps((threads, pickle.dumps(join))) if count else b""
        self._processes: list[tuple[subprocess.Popen[bytes], IO[str]]] = []
        for _ in range(count):
            log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed when the worker has ended
            process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the others
            )
            self._processes.append((process, log))
        for process, _ in self._processes:
            assert process.stdin is not None
            # The pipe stays open: its end tells the worker that this process is gone. It also keeps a storage URL,
            # which may hold a password, off the command line.
            with suppress(BrokenPipeError):  # it has ended; `fallen` says so
                process.stdin.write(job)
                process.stdin.flush()

    def fallen(self) -> tuple[str, ...]:
        """Of processes that have ended since the last call, what their trials' `worker` attribute begins with."""
        ended = [(process, log) for process, log in self._processes if process.poll() is not None]
        for process, log in ended:
            self._processes.remove((process, log))
            if process.returncode:
                note(f"search: a worker ended ({_reason(process, log)}); the others go on")
            log.close()
        return _names(ended)

    def end(self) -> tuple[str, ...]:
        """End all processes that are left; the names are those of `fallen`."""
        ended, self._processes = self._processes, []
        for process, _ in ended:
            process.kill()
        for process, log in ended:
            process.wait()
            log.close()
        return _names(ended)


@contextmanager
def working(join: Callable[[], object], workers: int) -> Iterator[Workers]:
    """Let `workers` processes, this one among them, search inside the block; they share the CPU threads.

    Args:
        join: by which each further process, to which pickle takes it, joins in; it ends when the search does.
        workers: 1 starts nothing.
    """
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    started = Workers(join, workers - 1, share)
    try:
        if workers > 1:
            torch.set_num_threads(share)
        yield started
    finally:
        started.end()
        torch.set_num_threads(threads)


def serve() -> None:
    """What a worker does: it reads its job from standard input, and joins in."""
    threads, job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        pickle.loads(job)()
    except RadistillError as error:
        print(error, file=sys.stderr)
        os._exit(2)
    os._exit(0)  # without waiting for the thread, which is blocked in a read


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _names(processes: list[tuple[subprocess.Popen[bytes], IO[str]]]) -> tuple[str, ...]:
    return tuple(f"{socket.gethostname()}:{process.pid}:" for process, _ in processes)


def _reason(process: subprocess.Popen[bytes], log: IO[str]) -> str:
    log.seek(0)
    lines = log.read().strip().splitlines()
    return lines[-1] if lines and process.returncode > 0 else f"exit code {process.returncode}"
