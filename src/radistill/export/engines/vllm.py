"""vLLM through its OpenAI server, in a process of its own: token ids in, any number of sequences at once."""

import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from radistill.errors import RadistillError
from radistill.evaluation.savings.measure import Reader, Room
from radistill.evaluation.savings.speed import Pass, by_difference
from radistill.models.loading import Model
from radistill.models.server.client import Client
from radistill.models.server.vllm import no_vllm, vllm_server

_PAUSE, _SOON = 0.02, 10.0
_SPENT = "request_prefill_time_seconds", "request_decode_time_seconds"
_ROOM = 1.5, 2**28
"""Cache that vLLM gets: this times what the model needs, and so many bytes more. It rounds blocks of tokens up until
those of attention and of state spaces have one size."""


class VllmEngine:
    """vLLM as an engine of `savings`: each model is saved as a folder and served once, for all contexts."""

    def __init__(self, dtype: str, folder: Path, stack: ExitStack, python: Path | str = sys.executable) -> None:
        """Start nothing yet.

        Args:
            dtype: of weights, keys and values.
            folder: where models go; the caller removes it.
            stack: what has been started ends with it. vLLM compiles a model when it starts, which takes minutes.
            python: of the environment that has vLLM, which may be another one than this.

        Raises:
            RadistillError: if there is none.
        """
        asked = [str(python), "-c", "import vllm; print(vllm.__version__)"]
        try:
            found = subprocess.run(asked, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            raise no_vllm(str(python)) from None
        self.name = f"vLLM {found.stdout.split()[-1]}"
        self.dtype: str | None = dtype
        self._folder, self._stack, self._python = folder, stack, str(python)
        self._servers: dict[str, tuple[Client, int]] = {}

    @contextmanager
    def reading(self, model: Model, room: Room, batch_size: int) -> Iterator[Reader]:
        """As `Engine`; the first token is decoded with the context, as servers do.

        Raises:
            RadistillError: if vLLM cannot serve the model.
        """
        place, steps, held = self._folder / model.fingerprint[:16], room.steps, list[int]()
        if place.name not in self._servers:
            self._servers[place.name] = self._served(model, place, room.longest + steps + 1, batch_size)
        server, cache = self._servers[place.name]

        def read(tokens: Sequence[int]) -> Pass:
            def answer(count: int) -> Any:
                asked = {"model": str(place), "prompt": [list(tokens)] * batch_size, "max_tokens": count}
                return server.ask("/v1/completions", asked | {"temperature": 0, "ignore_eos": True})

            def spent() -> tuple[float, float]:
                """On the first token, and on the steps after it."""
                if batch_size > 1:
                    return by_difference(answer, steps)
                # Over a long context, two prefills differ by more than all steps take: both are of one request.
                before = _told(server.address)
                answer(steps + 1)
                return _spent(server.address, before)

            watch: AbstractContextManager[list[float]] = nullcontext([]) if held else _fullest(server.address)
            with watch as share:
                prefill, decoding = spent()
            held.extend(round(one * cache) for one in share)
            return Pass.of_whole(prefill, decoding, steps, held[0])

        yield read

    def _served(self, model: Model, place: Path, longest: int, batch_size: int) -> tuple[Client, int]:
        """A server that holds so many tokens of each sequence, and the bytes of its cache."""
        model.save(place)
        number = getattr(torch, str(self.dtype)).itemsize
        needs = batch_size * model.anatomy.cache_bytes(longest, number)
        cache = round(_ROOM[0] * needs) + _ROOM[1]
        options = ["--dtype", str(self.dtype), "--max-model-len", str(longest), "--max-num-seqs", str(batch_size)]
        options += ["--kv-cache-memory-bytes", str(cache), "--no-enable-prefix-caching"]
        served = vllm_server(self._python, place, *options, name=model.source)
        return self._stack.enter_context(served), cache


@contextmanager
def _fullest(address: str) -> Iterator[list[float]]:
    """Watch how full the cache is while the block runs: the list holds its largest share, by vLLM's own account."""
    share, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(_PAUSE):
            share[0] = max(share[0], _told(address)["kv_cache_usage_perc"])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield share
    finally:
        done.set()
        thread.join()


def _told(address: str) -> dict[str, float]:
    """What vLLM tells of itself, by name."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        found = re.findall(r"^vllm:(\w+)\S* (\S+)$", answer.read().decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def _spent(address: str, before: dict[str, float]) -> tuple[float, float]:
    """Seconds to the first token, and from it to the last, of the one request since `before`.

    Raises:
        RadistillError: if vLLM does not tell, which it does soon after it has answered.
    """
    deadline = time.monotonic() + _SOON
    while time.monotonic() < deadline:
        told = _told(address)
        if told.get(f"{_SPENT[-1]}_count", 0) > before.get(f"{_SPENT[-1]}_count", 0):
            prefill, decoding = (told[f"{name}_sum"] - before.get(f"{name}_sum", 0) for name in _SPENT)
            return prefill, decoding
        time.sleep(_PAUSE)
    raise RadistillError(f"vLLM does not tell how long it decodes: its metrics have no new {_SPENT[-1]}")
