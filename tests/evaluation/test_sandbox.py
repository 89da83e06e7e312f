"""Hostile programs: none may harm the evaluation or the machine, with all of its layers and with some."""

import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sandbox_here import LAYERS, needs_sandbox

from radistill.evaluation.sandbox import Limits, Outcome, layers, run, run_code

pytestmark = needs_sandbox

SMALL = Limits(cpu_seconds=1, wall_seconds=2.0, memory_bytes=192 * 2**20)
BRIEF = Limits(cpu_seconds=1, wall_seconds=0.7, memory_bytes=192 * 2**20)

ENDLESS = {
    "infinite loop": "while True: pass",
    "infinite loop that swallows exceptions": """
while True:
    try:
        while True: pass
    except BaseException: pass""",
    "sleep": "import time\ntime.sleep(1000)",
    "ignored signals": """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass""",
    "generator without end": "list(iter(int, 1)) if False else sum(iter(int, 1))",
    "huge power": "x = 7 ** (10 ** 9)",
    "catastrophic regular expression": "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')",
    "waits for input that never comes": "import os\nr, w = os.pipe()\nos.read(r, 1)",
    "closed descriptors, then a loop": "import os\nos.closerange(0, 60)\nwhile True: pass",
    "an equality that never ends": "class V:\n def __eq__(s, o):\n  while True: pass\nV() == 1",
}
GREEDY = {
    "huge string": "x = 'a' * 10**10",
    "list that grows": "x = []\nwhile True: x.append(' ' * 10**6)",
    "huge range as a list": "x = list(range(10**10))",
}
LOUD = {
    "huge output": "while True: print('x' * 10000)",
    "huge output on standard error": "import sys\nwhile True: sys.stderr.write('x' * 10000)",
    "huge output past Python": "import os\nwhile True: os.write(1, b'x' * 10000)",
    "huge output on every descriptor": """
import os
while True:
    for number in range(3, 60):
        try: os.write(number, b'x' * 10000)
        except OSError: pass""",
}
REFUSED = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()",
    "daemon": "import os\nif os.fork() == 0:\n os.setsid()\n while True: pass",
    "shell": "import os\nassert os.system('touch /tmp/radistill-escaped') == 0",
    "subprocess": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'id'], check=True)",
    "exec": "import os\nos.execv('/bin/sh', ['sh', '-c', 'sleep 100'])",
    "multiprocessing": "import multiprocessing\np = multiprocessing.Process(target=print)\np.start()",
    "kill the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "signal the parent through a pipe": """
import fcntl, os, signal
r, w = os.pipe()
fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())
fcntl.fcntl(r, 10, signal.SIGKILL)
fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)
os.write(w, b'x')""",
    "kill everything": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "connect": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)",
    "listen": "import socket\nsocket.socket().listen()",
    "resolve a name": "import socket\nsocket.getaddrinfo('example.org', 80)",
    "download": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:PORT/')",
    "write outside": "open('OUTSIDE/new', 'w').write('x')",
    "append to a file": "open('OUTSIDE/precious', 'a').write('x')",
    "write into the temporary folder": "open('/tmp/radistill-escaped', 'w').write('x')",
    "write by a path that climbs": "open('../radistill-escaped', 'w').write('x')",
    "delete a file": "import os\nos.remove('OUTSIDE/precious')",
    "delete a tree": "import shutil\nshutil.rmtree('OUTSIDE')",
    "rename a file": "import os\nos.rename('OUTSIDE/precious', 'mine')",
    "symlink to outside": "import os\nos.symlink('OUTSIDE', 'link')\nopen('link/new', 'w').write('x')",
    "hard link": "import os\nos.link('OUTSIDE/precious', 'mine')\nopen('mine', 'w').write('x')",
    "change a mode": "import os\nos.chmod('OUTSIDE/precious', 0)",
    "import of the project": "import radistill",
    "raise its own limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "read through ctypes": "import ctypes\nctypes.string_at(0)",
    "deep recursion": "def f(n): return f(n + 1)\nf(0)",
    "system exit": "import sys\nsys.exit(0)",
    "interrupt": "raise KeyboardInterrupt",
    "a number too long to print": "x = str(10 ** 10000)",
    "an exception that cannot be shown": "class E(Exception):\n def __str__(s): raise E\nraise E",
    "a syntax error": "def f(:",
    "a null character": "x = 1\0",
    "nesting": "x = " + "(" * 500 + ")" * 500,
}
CRASHING = {
    "leaves at once": "import os\nos._exit(0)",
    "aborts": "import os\nos.abort()",
    "segmentation fault": "import signal\nsignal.raise_signal(signal.SIGSEGV)",
    "broken bytecode": "f = lambda: 0\nf.__code__ = f.__code__.replace(co_code=b'd\\xff' * 50)\nf()",
    "closed descriptors": "import os\nos.closerange(0, 60)",
}
NO_AUDIT = "from radistill.evaluation.sandbox.inside import audit; audit.install = lambda folder: None; main("
NO_NAMESPACES = "from radistill.evaluation.sandbox.inside import namespaces; namespaces.enter = lambda disk: None; "
LANDLOCK = (
    "from radistill.evaluation.sandbox.inside import landlock; own = landlock.version; landlock.version = lambda: "
)
NO_LANDLOCK = LANDLOCK + "0; "
NO_SCOPES = LANDLOCK + "min(own(), 5); "  # Linux before 6.12
OLD_LANDLOCK = LANDLOCK + "min(own(), 2); "  # before 6.2: files can be emptied anywhere
NO_SECCOMP = "from radistill.evaluation.sandbox.inside import seccomp; seccomp.filter_calls = lambda writable: False; "
SECCOMP_ALONE = NO_NAMESPACES + NO_LANDLOCK
NO_KERNEL = NO_NAMESPACES + NO_LANDLOCK + NO_SECCOMP + "main("

linux = pytest.mark.skipif(sys.platform != "linux", reason="layers of the Linux kernel")


@pytest.fixture(scope="module")
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file; afterwards both must be as they were, and nothing that was started may be left."""
    (tmp_path / "precious").write_text("kept")
    os.chmod(tmp_path / "precious", 0o666)
    os.chmod(tmp_path, 0o777)
    children = set(psutil.Process().children(recursive=True))
    yield tmp_path
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious").read_text() == "kept"
    assert (tmp_path / "precious").stat().st_mode & 0o777 == 0o666
    assert not Path("/tmp/radistill-escaped").exists()
    assert set(psutil.Process().children(recursive=True)) <= children


def hostile(code: str, outside: Path, listener: int, limits: Limits = SMALL) -> Outcome:
    started = time.monotonic()
    outcome = run._run(code.replace("OUTSIDE", str(outside)).replace("PORT", str(listener)), "1", limits)[0]
    assert time.monotonic() - started < limits.wall_seconds + 2
    assert len(outcome.output) <= limits.output_bytes
    return outcome


@pytest.mark.parametrize("name", ENDLESS)
def test_programs_that_do_not_end_are_ended(name: str, outside: Path, listener: int) -> None:
    limits = SMALL if name == "ignored signals" else BRIEF  # the limit of processor time, and that of the clock
    assert hostile(ENDLESS[name], outside, listener, limits).status == "time"


@pytest.mark.parametrize("name", GREEDY)
def test_programs_that_want_all_memory_get_no_more_than_theirs(name: str, outside: Path, listener: int) -> None:
    assert hostile(GREEDY[name], outside, listener).status == "memory"


@pytest.mark.parametrize("name", LOUD)
def test_programs_that_never_stop_writing_are_stopped(name: str, outside: Path, listener: int) -> None:
    assert hostile(LOUD[name], outside, listener).status == "output"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_an_error_of_the_program(name: str, outside: Path, listener: int) -> None:
    outcome = hostile(REFUSED[name], outside, listener)
    assert outcome.status == "error", outcome


@pytest.mark.parametrize("name", CRASHING)
def test_programs_that_end_their_process_give_no_value(name: str, outside: Path, listener: int) -> None:
    assert hostile(CRASHING[name], outside, listener).status == "crash"


@linux
@pytest.mark.parametrize("name", [name for name in REFUSED if name != "read through ctypes"])
def test_the_kernel_refuses_the_same_without_the_audit_hook(
    name: str, outside: Path, listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_START", run._START.replace("main(", NO_AUDIT))
    assert hostile(REFUSED[name], outside, listener).status == "error"


# Native code, which no audit hook sees; numbers of calls are those of x86-64.
NATIVE = {
    "fork": "fork()",
    "clone": "syscall(56, 0, 0, 0, 0, 0)",
    "vfork by number": "syscall(58)",
    "socket": "socket(2, 1, 0)",
    "kill": "kill(getppid(), 9)",
    "signal to another by thread": "syscall(234, getppid(), getppid(), 9)",
    "owner of a pipe": "fcntl(1, 8, getppid())",
    "owner of a pipe by a structure": "fcntl(1, 15, struct.pack('ii', 1, getppid()))",
    "signal of a pipe": "fcntl(1, 10, 9)",
    "signals of a pipe": "fcntl(1, 4, 0x2000)",
    "signals of a pipe, among other flags": "fcntl(1, 4, 0x2802)",
    "signals of a pipe by ioctl": "ioctl(1, 0x5452, b'\\1\\0\\0\\0')",
    "watching a folder": "fcntl(os.open('.', 0), 1026, 0x80000002)",
    "a lease": "fcntl(os.open('/dev/null', 0), 1024, 0)",
    "broken memory pages": "madvise(0, 0, 100)",
    "ptrace": "ptrace(16, getppid(), 0, 0)",
    "mount": "mount(b'none', b'/mnt', b'tmpfs', 0, 0)",
    "unshare": "unshare(0x10000000)",
    "setsid": "setsid()",
    "set a limit of the parent": "syscall(302, getppid(), 7, b'0' * 16, 0)",
    "io_uring": "syscall(425, 1, b'0' * 120)",
    "memfd": "syscall(319, b'x', 0)",
    "the other numbering": "syscall(0x40000000 + 39)",
    "write outside": "open(b'OUTSIDE/precious', 1)",
    "create outside": "open(b'OUTSIDE/new', 0x41, 0o600)",
    "read a secret": "open(b'OUTSIDE/precious', 0)",
    "remove outside": "unlink(b'OUTSIDE/precious')",
    "steal from outside": "rename(b'OUTSIDE/precious', b'mine')",
    "empty outside": "truncate(b'OUTSIDE/precious', 0)",
    "empty outside by opening": "open(b'OUTSIDE/precious', 0x200)",
    "times outside": "utimensat(-100, b'OUTSIDE/precious', 0, 0)",
    "mode outside": "chmod(b'OUTSIDE/precious', 0)",
}


# Tried one after the other, so that a program is started once for all of them.
EACH = """
import fcntl, os, resource, signal, socket, struct, subprocess
for name, code in ATTEMPTS:
    try: exec(code, globals() | {'c': c})
    except BaseException: continue
    print(name, flush=True)"""


def succeeding(attempts: dict[str, str], start: str, outside: Path, listener: int, c: str = "None") -> list[str]:
    """Names of the attempts that are not refused in a process that starts so."""
    code = f"c = {c}\n" + EACH.replace("ATTEMPTS", repr(list(attempts.items())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_START", run._START.replace("main(", start))
        outcome = hostile(code, outside, listener)
    assert outcome.status == "value", outcome
    return outcome.output.splitlines()


@linux
@pytest.mark.parametrize(
    "missing",
    ["", NO_NAMESPACES, NO_LANDLOCK, SECCOMP_ALONE, OLD_LANDLOCK, NO_NAMESPACES + OLD_LANDLOCK],
    ids=["", "n", "l", "nl", "old", "n old"],
)
def test_the_kernel_refuses_native_code(missing: str, outside: Path, listener: int) -> None:
    """Containers often have seccomp alone; then the program can write nowhere, and read what everybody can."""
    calls = {
        name: f"assert c.{call.replace('getppid()', 'c.getppid()')} >= 0"
        for name, call in NATIVE.items()
        # The numbers of calls are those of x86-64.
        if platform.machine() == "x86_64" or "syscall" not in call
    }
    if "landlock" not in LAYERS or NO_LANDLOCK in missing:
        del calls["read a secret"]
    calls["an allowed one"] = "assert c.getpid() > 0"
    library = "__import__('ctypes').CDLL(None)"
    assert succeeding(calls, missing + NO_AUDIT, outside, listener, library) == ["an allowed one"]


ENDINGS = {
    name: status
    for programs, status in ((ENDLESS, "time"), (GREEDY, "memory"), (LOUD, "output"), (CRASHING, "crash"))
    for name in programs
}
HOSTILE = ENDLESS | GREEDY | LOUD | CRASHING | REFUSED


@linux
@pytest.mark.slow
@pytest.mark.parametrize("missing", [SECCOMP_ALONE, OLD_LANDLOCK], ids=["seccomp", "old landlock"])
@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "read through ctypes"])
def test_no_hostile_program_needs_more_layers_than_seccomp(
    name: str, missing: str, outside: Path, listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_START", run._START.replace("main(", missing + NO_AUDIT))
    assert hostile(HOSTILE[name], outside, listener).status == ENDINGS.get(name, "error")


# What would reach the evaluation, the parent of the program, or what is its user's; a signal sent here is harmless.
REACHING = {
    "signal": "os.kill(os.getppid(), signal.SIGUSR1)",
    "signal of a pipe": (
        "r, w = os.pipe()\n"
        "for command, value in ((8, os.getppid()), (10, int(signal.SIGUSR1)), (4, os.O_ASYNC)):\n"
        " fcntl.fcntl(r, command, value)\n"
        "os.write(w, b'x')"
    ),
    "limit": "resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, -1))",
    "memory": "open(f'/proc/{os.getppid()}/mem', 'rb')",
    "change memory": "open(f'/proc/{os.getppid()}/mem', 'rb+')",
    "environment": "open(f'/proc/{os.getppid()}/environ')",
    "read": "open('OUTSIDE/precious')",
    "write": "open('OUTSIDE/precious', 'a')",
    "empty": "os.truncate('OUTSIDE/precious', 4)",
    "times": "os.utime('OUTSIDE/precious')",
    "network": "socket.create_connection(('127.0.0.1', PORT), 1)",
    "execute": "subprocess.run(['/bin/sh', '-c', ':'], check=True)",
    "processor": "os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0))",
}
_READING = {"memory", "environment", "read"}
HELD_ALONE = {
    "namespaces": (NO_LANDLOCK + NO_SECCOMP + NO_AUDIT, {"memory", "change memory", "environment", "network"}),
    "landlock": (
        NO_NAMESPACES + NO_SECCOMP + NO_AUDIT,
        {*_READING, "signal", "change memory", "write", "empty", "execute"},
    ),
    "landlock before 6.12": (
        NO_NAMESPACES + NO_SECCOMP + NO_SCOPES + NO_AUDIT,
        {*_READING, "change memory", "write", "empty", "execute"},
    ),
    "landlock before 6.2": (
        NO_NAMESPACES + NO_SECCOMP + OLD_LANDLOCK + NO_AUDIT,
        {*_READING, "change memory", "write", "execute"},
    ),
    "seccomp": (SECCOMP_ALONE + NO_AUDIT, REACHING.keys() - _READING),
    "audit": (NO_KERNEL, REACHING.keys() - _READING - {"processor"}),
    "all": ("main(", REACHING.keys()),
    "all with landlock before 6.2": (OLD_LANDLOCK + "main(", REACHING.keys()),
}


@linux
@pytest.mark.parametrize("layer", HELD_ALONE)
def test_what_each_layer_alone_keeps_from_the_evaluation(layer: str, outside: Path, listener: int) -> None:
    """The table in docs/evaluation.md says it too."""
    needed = {"landlock", "namespaces"} if layer.startswith("all") else {layer.split()[0]}
    if not needed <= set(LAYERS):
        pytest.skip(f"this machine has {', '.join(LAYERS)}")
    start, held = HELD_ALONE[layer]
    core = resource.getrlimit(resource.RLIMIT_CORE)
    came = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        attempts = {name: code for name, code in REACHING.items() if name in held}
        assert succeeding(attempts | {"nothing": "1"}, start, outside, listener) == ["nothing"]
        time.sleep(0.05)
        assert not came
        assert resource.getrlimit(resource.RLIMIT_CORE) == core
    finally:
        signal.signal(signal.SIGUSR1, before)
        resource.setrlimit(resource.RLIMIT_CORE, core)


@pytest.mark.parametrize(
    "name",
    [
        "shell", "subprocess", "exec", "kill the parent", "signal the parent through a pipe",
        "connect", "write outside", "append to a file",
        "write by a path that climbs", "delete a file", "delete a tree", "rename a file", "symlink to outside",
        "hard link", "change a mode", "raise its own limits", "daemon",
    ],
)  # fmt: skip
def test_the_audit_hook_alone_refuses_what_python_does(
    name: str, outside: Path, listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tested by itself, but `run_code` runs nothing with it alone."""
    monkeypatch.setattr(run, "_START", run._START.replace("main(", NO_KERNEL))
    outcome = hostile(REFUSED[name], outside, listener)
    assert outcome.status == "error", outcome
    assert "PermissionError" in outcome.text or name == "connect"


@linux
@pytest.mark.parametrize("missing", ["", NO_NAMESPACES, NO_LANDLOCK, SECCOMP_ALONE, OLD_LANDLOCK])
def test_no_pipe_signals_the_evaluation(
    missing: str, outside: Path, listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by any one step: each is tried, whatever became of the others."""
    monkeypatch.setattr(run, "_START", run._START.replace("main(", missing + NO_AUDIT))
    code = """
import fcntl, os, signal, struct
r, w = os.pipe()
flags = fcntl.fcntl(r, fcntl.F_GETFL)
for end in (0, 1, 2, r, w):
    for command, value in ((8, os.getppid()), (15, struct.pack("ii", 1, os.getppid())), (10, int(signal.SIGUSR1)),
                           (4, flags | os.O_ASYNC)):
        try: fcntl.fcntl(end, command, value)
        except OSError: pass
os.write(w, b"x")
os.write(1, b"x")
os.read(r, 1)"""
    came = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        assert hostile(code, outside, listener).status == "value"
        time.sleep(0.05)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not came


@linux
def test_what_python_does_with_descriptors_is_allowed() -> None:
    code = """
import os
r, w = os.pipe()
copy = os.dup(r)
os.set_inheritable(copy, True)
file = open(os.dup(w), "w")
file.write("x" * 10)
file.close()
x = [b"y" * 10**6 for _ in range(50)]
del x"""
    assert run_code(code, "os.get_inheritable(copy), os.read(copy, 9)").text == ("(True, b'xxxxxxxxx')")


def test_without_seccomp_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_START", run._START.replace("main(", NO_SECCOMP + "main("))
    run.layers.cache_clear()
    try:
        with pytest.raises(run.RadistillError, match="this system has no seccomp filters"):
            run_code("", "1")
    finally:
        run.layers.cache_clear()


@linux
def test_all_layers_are_reported() -> None:
    assert layers()[0] == "limits"
    assert layers()[-1] == "audit"


def test_values() -> None:
    assert run_code("def f(x): return sorted(x)", "f([3, 1])") == Outcome("value", "[1, 3]", "")
    assert run_code("print('said')", "2 ** 10") == Outcome("value", "1024", "said\n")
    assert run_code("import sys; print('a'); print('b', file=sys.stderr)").output == "a\nb\n"
    assert run_code("", "'\\ud800\\n'").text == "'\\ud800\\n'"
    assert run_code("", "1 / 0") == Outcome("error", "ZeroDivisionError: division by zero", "")
    assert run_code("import collections, decimal, json, math, re, statistics, string", "math.pi").status == "value"


def test_a_set_has_one_order() -> None:
    texts = {run_code("", "{'a', 'b', 'c', 'd', 'e', 'f'}").text for _ in range(3)}
    assert len(texts) == 1


def test_nothing_of_the_caller_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    code = "import os, sys\ntry: proc = open('/proc/self/environ').read()\nexcept OSError: proc = ''"
    outcome = run_code(code, "(dict(os.environ), proc, sys.stdin.read(), os.listdir('.'), sys.argv)")
    # Landlock and namespaces hide /proc; without them the program sees what we set ourselves, and no more.
    own = "" if {"landlock", "namespaces"} & set(LAYERS) else "PYTHONHASHSEED=0\\x00"
    assert outcome.text == f"({{}}, '{own}', '', [], ['program'])"


@linux
def test_the_working_folder_is_empty_each_time_and_of_limited_size() -> None:
    if not {"namespaces", "landlock"} <= set(LAYERS):
        assert run_code("open('a', 'w')").status == "error"
        return
    assert run_code("open('a', 'w').write('x' * 100)", "open('a').read() == 'x' * 100").text == "True"
    assert run_code("import os", "os.listdir('.')").text == "[]"
    fill = "n = 0\nwhile True:\n open(str(n), 'w').write('x' * 60000)\n n += 1"
    assert "No space left" in run_code(fill).text
    assert "File too large" in run_code("f = open('a', 'wb', 0)\nwhile True: f.write(b'x' * 10000)").text
    many = "n = 0\nwhile True:\n open(str(n), 'w')\n n += 1"
    assert "No space left" in run_code(many).text


@pytest.mark.parametrize(
    "code",
    [
        "import builtins\nbuiltins.repr = lambda x: '42'",
        "import builtins\nbuiltins.eval = lambda *a: 42",
        'import json\njson.dumps = lambda x: \'["value", "42"]\'',
        "import os\nos.write = lambda *a: 42\nos._exit = lambda *a: 42",
        "import sys\nsys.stdout = None",
        "import sys\nsys.settrace(lambda *a: None)",
        "import atexit\natexit.register(print, 'late')",
        "import gc\ngc.disable()\nclass D:\n def __del__(s): print('late')\nx = D()",
    ],
)
def test_a_program_that_meddles_with_its_own_process_meddles_with_nothing_else(code: str) -> None:
    assert run_code(code).status in ("value", "error", "crash")
    assert run_code("", "40 + 1") == Outcome("value", "41", "")


def test_reports_that_a_program_forges_are_only_claims_of_its_own_value() -> None:
    """The channel can be written to by the program; that is why nobody takes what comes from it for a verdict."""
    forged = """
import os
for number in range(3, 60):
    try: os.write(number, b'["value", "42"]\\n')
    except OSError: pass
os._exit(0)"""
    assert run_code(forged, "1") == Outcome("value", "42", "")
    garbage = forged.replace('["value", "42"]', "[[[[ rubbish")
    assert run_code(garbage, "1").status == "crash"
    assert run_code(forged.replace('["value", "42"]', '{"a": 1}'), "1").status == "crash"


@pytest.mark.parametrize(
    ("code", "expression", "status"),
    [
        ("class V:\n def __repr__(s): return 5", "V()", "error"),
        ("class V:\n def __repr__(s): raise SystemExit", "V()", "error"),
        ("class V:\n def __repr__(s):\n  while True: pass", "V()", "time"),
        ("", "'x' * 10**6", "output"),
        ("", "10 ** 10000", "error"),
        ("x = []\nfor _ in range(100000): x = [x]", "x", "error"),
    ],
)
def test_values_that_cannot_be_written_down(code: str, expression: str, status: str) -> None:
    assert run_code(code, expression, SMALL).status == status


@linux
def test_the_program_dies_with_the_evaluation(tmp_path: Path) -> None:
    """A killed evaluation leaves no model's program behind."""
    script = (
        "from radistill.evaluation.sandbox import Limits, run_code\n"
        "run_code('import time\\ntime.sleep(60)', limits=Limits(wall_seconds=60.0))"
    )
    with subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}) as evaluation:
        parent, deadline = psutil.Process(evaluation.pid), time.monotonic() + 20
        programs: list[psutil.Process] = []
        while time.monotonic() < deadline and len(programs) < 2:
            found = parent.children()
            # First layers() tries the sandbox; the program that sleeps is the one that stays.
            if found and time.time() - found[-1].create_time() > 1:
                programs = found
                break
            time.sleep(0.05)
        assert programs
        evaluation.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(programs, timeout=5)
    assert gone
    assert not alive


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="cpu_seconds is 0"):
        Limits(cpu_seconds=0)
