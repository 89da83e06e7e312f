"""The side of the sandbox that is trusted: it starts the process, listens to it, and ends it with all that it started.

What comes back from a process in which a model's code ran is a claim, whatever the channel: the code could have written
it itself. Whoever judges an answer must therefore ask only for what the code may as well decide (the value of an
expression that it wrote), and compare in this process; see `evaluation.tasks.cruxeval`.
"""

import contextlib
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from radistill.errors import RadistillError

Status = Literal["value", "error", "memory", "time", "output", "crash"]

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from radistill.evaluation.sandbox.inside.start import main; main(int(sys.argv[2]))"
)
_IMPORT_ROOT = str(Path(__file__).parents[3])  # the folder that holds the package
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Limits:
    """What a program may use before it is stopped.

    Attributes:
        cpu_seconds: processor time.
        wall_seconds: time by the clock, which a sleeping program uses too.
        memory_bytes: address space, the interpreter's own 30 MiB included.
        output_bytes: standard output, standard error and the value together, and the size of a file.
        disk_bytes: all files of the working folder together.
    """

    cpu_seconds: int = 2
    wall_seconds: float = 5.0
    memory_bytes: int = 256 * 2**20
    output_bytes: int = 64 * 2**10
    disk_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"sandbox limits: {name} is {value}, but must be above 0")


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: `value`: it ran to its end. `error`: it raised. `memory`, `time`, `output`: it went beyond a limit.
            `crash`: its process ended without a word, by a signal or by `os._exit`.
        text: `repr` of the value, or what went wrong.
        output: what it printed, standard error after standard output, as far as the limit allows.
    """

    status: Status
    text: str
    output: str


def run_code(code: str, expression: str = "None", limits: Limits | None = None) -> Outcome:
    """Run Python code in a process of its own, then the expression in the same namespace, and return its `repr`.

    Nothing that the program does raises here.

    Args:
        code: statements, such as the definition of a function.
        expression: what to evaluate after them.
        limits: what the process may use.

    Raises:
        RadistillError: if this machine offers too few layers to hold the process; see `layers`.
    """
    layers()
    return _run(code, expression, limits or Limits())[0]


@functools.cache
def layers() -> tuple[str, ...]:
    """The layers of the sandbox that work on this machine, tried once: of limits, namespaces, landlock, seccomp, audit.

    Seccomp is the one that must be there: alone it refuses processes, sockets, signals and every change of a file, to
    native code too. Namespaces and landlock together give the program a folder that it may write to, and landlock
    hides the machine's files from it.

    Raises:
        RadistillError: if the sandbox cannot start, or if this system has no seccomp filters.
    """
    outcome, applied = _run("", "1", Limits())
    if outcome != Outcome("value", "1", ""):
        raise RadistillError(f"sandbox: cannot run code here ({outcome.text}: {outcome.output.strip()[-200:]})")
    if "seccomp" not in applied:
        raise RadistillError(
            "sandbox: this system has no seccomp filters, and without them nothing here could hold native code; judge "
            "the answers on Linux (x86-64 or AArch64), in a container that allows seccomp"
        )
    return applied


def _run(code: str, expression: str, limits: Limits) -> tuple[Outcome, tuple[str, ...]]:
    request = {"code": code, "expression": expression, "limits": vars(limits)}
    result_read, result_write = os.pipe()
    with (
        tempfile.TemporaryDirectory(prefix="radistill-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as stdin,
    ):
        stdin.write(json.dumps(request).encode())
        stdin.seek(0)
        with os.fdopen(result_read, "rb") as result:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-s", "-S", "-B", "-c", _START, _IMPORT_ROOT, str(result_write)],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=(result_write,),
                    cwd=folder,
                    # A fixed seed: the order of a set must not decide whether an answer is right.
                    env={"PYTHONHASHSEED": "0"},
                    start_new_session=True,
                )
            finally:
                os.close(result_write)
            with process:
                heard, stopped = _listen(process, result, limits)
    printed = (heard["stdout"] + heard["stderr"]).decode(errors="replace")[: limits.output_bytes]
    return _outcome(heard["result"], stopped, process.returncode, printed)


def _listen(
    process: "subprocess.Popen[bytes]", result: Any, limits: Limits
) -> tuple[dict[str, bytes], Literal["time", "output"] | None]:
    """Read what the process writes until it ends or goes beyond a limit, and kill it with its whole group."""
    heard = {"stdout": b"", "stderr": b"", "result": b""}
    deadline = time.monotonic() + limits.wall_seconds
    stopped: Literal["time", "output"] | None = None
    with selectors.DefaultSelector() as selector:
        for name, stream in (("stdout", process.stdout), ("stderr", process.stderr), ("result", result)):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ, name)
        while stopped is None:
            ended = process.poll() is not None
            # With every stream closed, all that is awaited is the end of the process, which comes at once.
            pause = 0.0 if ended else _POLL_SECONDS if selector.get_map() else _POLL_SECONDS / 50
            events = selector.select(min(pause, max(0.0, deadline - time.monotonic())))
            for key, _ in events:
                data = os.read(key.fd, 2**16)
                heard[key.data] += data
                if not data:
                    selector.unregister(key.fileobj)
            if sum(map(len, heard.values())) > limits.output_bytes + 2**10:  # room for the frame of the result
                stopped = "output"
            elif ended and not events:
                break
            elif time.monotonic() >= deadline:
                stopped = "time"
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return heard, stopped


def _outcome(
    result: bytes, stopped: Literal["time", "output"] | None, returncode: int, printed: str
) -> tuple[Outcome, tuple[str, ...]]:
    """Read the two lines of the result: the layers, written before the program ran, and how it ended."""
    first, _, second = result.partition(b"\n")
    applied, ending = _json(first), _json(second)
    applied = tuple(map(str, applied)) if isinstance(applied, list) else ()
    if stopped is not None:
        return Outcome(stopped, f"stopped: beyond its limit of {stopped}", printed), applied
    if (
        isinstance(ending, list)
        and len(ending) == 2
        and ending[0] in ("value", "error", "memory", "output")
        and isinstance(ending[1], str)
    ):
        return Outcome(ending[0], ending[1], printed), applied
    if returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome("time", "stopped: beyond its limit of time", printed), applied
    ended = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return Outcome("crash", f"ended by {ended} without a value", printed), applied


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
