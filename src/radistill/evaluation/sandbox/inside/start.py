"""The first and the last thing that happens in the sandboxed process."""

import json
import os
import sys
from collections.abc import Callable

from radistill.evaluation.sandbox.inside import audit, landlock, namespaces, resources, seccomp


def main(result: int) -> None:
    """Read the request from standard input, lock the process down, run the program, report on the descriptor `result`.

    Two lines of JSON are written: the layers, before any of the program runs, and the ending.
    """
    request = json.loads(sys.stdin.buffer.read())
    os.environ.clear()
    parent = os.getppid()
    _no_stdin()
    _forget_ourselves()

    limits = request["limits"]
    applied = ["limits"]
    roomy = namespaces.enter(limits["disk_bytes"])
    if roomy is not None:
        applied.append("namespaces")
    resources.limit(limits)
    version = landlock.version()
    writable = bool(roomy) and version >= landlock.HOLDS_EVERY_CHANGE
    confined = landlock.confine(version, writable)
    if confined:
        applied.append("landlock")
    resources.die_with(parent)
    filtering = seccomp.filter_calls(writable and confined)
    if filtering:
        applied.append("seccomp")
    audit.install(os.getcwd())
    applied.append("audit")
    _write(result, applied)

    _write(result, _ending(request["code"], request["expression"], limits["output_bytes"]))
    _leave()


def _ending(code: str, expression: str, most: int) -> list[str]:
    try:
        namespace: dict[str, object] = {"__name__": "program"}
        exec(compile(code, "<program>", "exec"), namespace)
        text = repr(eval(compile(expression, "<expression>", "eval"), namespace))
        if not isinstance(text, str) or len(text) > most:
            return ["output", "the value is too long to be written down"]
        return ["value", str(text)]
    except MemoryError:
        return ["memory", "MemoryError"]
    except BaseException as error:  # also SystemExit and KeyboardInterrupt: nothing may pass for an end
        return ["error", _described(error)]


def _described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:  # the program may raise what cannot be printed
        return "an exception that cannot be described"


def _write(result: int, content: list[str], write: Callable[[int, bytes], int] = os.write) -> None:
    line = json.dumps(content).encode() + b"\n"
    while line:
        line = line[write(result, line) :]


def _leave(leave: Callable[[int], object] = os._exit) -> None:
    """End here, so that no exit handler, thread or finaliser of the program runs after its value is known."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # the program may have closed or replaced it
            continue
    leave(0)


def _no_stdin() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _forget_ourselves() -> None:
    """The program must not find our modules: neither on the path nor among those that are loaded."""
    del sys.path[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == "radistill"]:
        del sys.modules[name]
    sys.argv[:] = ["program"]
    sys.orig_argv[:] = ["program"]
