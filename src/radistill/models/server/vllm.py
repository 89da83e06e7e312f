"""vLLM's own server, started here for the time that it is needed, in a process of its own."""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch

from radistill.console import note
from radistill.errors import RadistillError
from radistill.files import hash_json
from radistill.mixers.gdn import GDN
from radistill.models.loading import Model
from radistill.models.server.client import Client, Found, Job
from radistill.models.server.served import Server
from radistill.models.server.settings import ServerSettings
from radistill.models.sources import locate, signature

PYTHON = "RADISTILL_VLLM"
"""The environment variable that has the Python of the environment in which vLLM is; without it, this one."""

_PATIENCE = 900.0
_SHARE = 0.9
"""Of the memory of a GPU that is free, what vLLM takes."""

_POINTS = re.compile("EngineDeadError|Engine core initialization failed|RuntimeError: cancelled")
_LAST_WORDS = 2.0
"""Seconds that a server may take to end after it has closed its connections."""


@contextmanager
def opened(settings: ServerSettings | None, model: Model) -> Iterator[Server | None]:
    """The server that settings name, while the block runs; None where there are none.

    Raises:
        RadistillError: if it cannot serve this model; of vLLM, which is started with the first text, if there is none.
    """
    with ExitStack() as stack:
        if settings is None:
            yield None
        elif settings.starts_vllm:
            yield Vllm(settings, model, stack)
        else:
            yield Server(settings, model.tokenizer)


class Vllm(Server):
    """A model in vLLM's server on this machine, which is started when the first text is asked for.

    vLLM loads what `model.source` names, in the dtype of the model that was given, which needs no weights here.
    """

    def __init__(self, settings: ServerSettings, model: Model, stack: ExitStack) -> None:
        """Start nothing yet; what has been started ends with `stack`.

        Raises:
            RadistillError: if there is no vLLM, or it cannot compute such a model in this dtype.
        """
        self._python = python_with_vllm()
        self.dtype = str(model.network.dtype).removeprefix("torch.")
        has_delta_blocks = model.anatomy.architecture.mixer is GDN and bool(model.anatomy.ssm_layers)
        check_dtype(model.source, self.dtype, has_delta_blocks)
        self.model = model.source
        self.identity = hash_json(["vllm", self.dtype, *signature(model.source)[1:]])
        self._tokenizer, self._requests, self._stack = model.tokenizer, settings.requests, stack
        self._longest: int | None = None
        self._is_up = False

    def make_room(self, tokens: int) -> None:
        """As `Server`; vLLM then takes no more memory than such a text needs."""
        self._longest = tokens

    def at_once(self, work: Callable[[Job], Found], jobs: Sequence[Job]) -> Iterator[tuple[Job, Found]]:
        """As `Client`, after vLLM has been started if there is something to do."""
        if jobs and not self._is_up:
            self._start()
        yield from super().at_once(work, jobs)

    def _start(self) -> None:
        options = ["--dtype", self.dtype, "--served-model-name", self.model, "--max-num-seqs", str(self._requests)]
        # None of the checkpoint's own settings, one of which would bound every text; and a stored teacher's top k.
        options += ["--generation-config", "vllm", "--max-logprobs", "-1"]
        # With it, Mamba-2 fails on a CPU (vLLM 0.32), and a text would depend on what has been asked before.
        options.append("--no-enable-prefix-caching")
        if self._longest is not None:
            options += ["--max-model-len", str(self._longest)]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            free, total = torch.cuda.mem_get_info()  # this process may have models there
            options += ["--gpu-memory-utilization", f"{_SHARE * free / total:.3f}"]
        else:
            options.append("--enforce-eager")  # on a CPU, compilation takes longer than most tasks
        try:
            served = vllm_server(self._python, locate(self.model), *options, name=self.model)
            address = self._stack.enter_context(served).address
        except RadistillError as error:
            raise RadistillError(f"{error}; leave the server out, and Radistill writes itself") from None
        model, identity = self.model, self.identity
        super().__init__(ServerSettings(url=address, requests=self._requests, retries=0), self._tokenizer)
        self.model, self.identity, self._is_up = model, identity, True


def python_with_vllm() -> str:
    """The Python of an environment that has vLLM: this one, or what the environment variable `PYTHON` names.

    Raises:
        RadistillError: if it has none.
    """
    python = os.environ.get(PYTHON, "").strip() or sys.executable
    asked = "import sys, importlib.util; sys.exit(importlib.util.find_spec('vllm') is None)"  # to import it takes long
    try:
        subprocess.run([python, "-c", asked], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise no_vllm(python) from None
    return python


def no_vllm(python: str) -> RadistillError:
    """What is said of a Python without vLLM."""
    return RadistillError(
        f"vLLM: {python} has none; install it there, or name the Python of an environment that has it in {PYTHON}"
    )


def check_dtype(name: str, dtype: str, has_delta_blocks: bool) -> None:
    """Refuse what vLLM does not compute on this machine: on a CPU, Gated DeltaNet in anything but bfloat16.

    Raises:
        RadistillError: naming the model.
    """
    if has_delta_blocks and dtype != "bfloat16" and not torch.cuda.is_available():
        raise RadistillError(
            f"{name}: on a CPU, vLLM computes Gated DeltaNet in bfloat16 alone, and dtype is {dtype}; set dtype to "
            "bfloat16, or leave the server out"
        )


@contextmanager
def vllm_server(python: str, folder: Path, *options: str, name: str | None = None) -> Iterator[Client]:
    """Serve a model's folder while the block runs.

    Args:
        python: of the environment that has vLLM.
        folder: the model; its path is also the model's name in requests.
        options: further ones of `vllm serve`.
        name: of the model in messages; None is its folder.

    Raises:
        RadistillError: if the server ends or does not answer.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not `vllm serve`: that asks for the metadata of a package `vllm`, which the one for CPUs does not have.
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    settings = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    # By default 300, which a CPU may need to read one long text: vLLM would end there.
    patient = {"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "36000"}
    client = Client(ServerSettings(url=f"http://127.0.0.1:{port}", retries=0))
    with NamedTemporaryFile(suffix=".log") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=patient | os.environ | settings,
            start_new_session=True,
            preexec_fn=_end_with_us,
        )
        try:
            note(f"vLLM loads {name or folder}")
            deadline = time.monotonic() + _PATIENCE
            while not _answers(client):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RadistillError(f"{name or folder}: vLLM cannot serve this ({_reason(Path(log.name))})")
                time.sleep(0.1)
            try:
                yield client
            except RadistillError:
                with suppress(subprocess.TimeoutExpired):  # if it is dead, that is why
                    server.wait(_LAST_WORDS)
                    reason = _reason(Path(log.name))
                    raise RadistillError(f"{name or folder}: vLLM has ended ({reason})") from None
                raise
        finally:
            _end(server)


def _end_with_us() -> None:
    """Let this process, which is about to become the server, be ended if its parent is killed: on Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server with the processes that it has started."""
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(client: Client) -> bool:
    try:
        client.ask("/v1/models")
    except RadistillError:
        return False
    return True


def _reason(log: Path) -> str:
    """The last error that a server has told, but for those that only point to it."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b:", line) and not _POINTS.search(line)]
    return (told or lines or ["it says nothing"])[-1].strip()[-300:]
