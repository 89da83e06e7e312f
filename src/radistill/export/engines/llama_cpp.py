"""llama.cpp through xllamacpp's server: token ids in, token ids out, no tokenizer and no cache in between."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader

from radistill.errors import RadistillError
from radistill.evaluation.savings.measure import Reader, Room
from radistill.evaluation.savings.speed import Pass, by_difference
from radistill.export.gguf import write_gguf
from radistill.models.loading import Model
from radistill.models.server.client import Client
from radistill.models.server.settings import ServerSettings

_QUIET, _SAYS_SIZES = -1, 4


def as_gguf(model: Model, path: Path, dtype: str | None = None) -> Path:
    """Write a loaded model to the GGUF file `path`, by way of a folder beside it.

    Raises:
        RadistillError: naming the model, if it has no GGUF.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        model.save(Path(place))
        try:
            write_gguf(Path(place), path, dtype)
        except RadistillError as error:  # when this is read, the folder is gone
            raise RadistillError(str(error).replace(place, model.source)) from None
    return path


class LlamaCpp(Client):
    """A GGUF file, loaded by llama.cpp on the CPU, behind its HTTP server on this machine.

    Attributes:
        version: of the package that brings llama.cpp.
    """

    def __init__(
        self,
        path: Path,
        context: int = 512,
        draft: Path | None = None,
        draft_length: int = 4,
        *,
        exact: bool = True,
        threads: int = 1,
        slots: int = 1,
        verbosity: int = _QUIET,
    ) -> None:
        """Load a file, and the file of another model that drafts for it.

        Args:
            path: the GGUF file.
            context: most tokens of a text, prompt included.
            draft: a GGUF file with the same tokens.
            draft_length: tokens drafted in a round.
            exact: keep keys and values in float32, and do without flash attention; otherwise as llama.cpp would itself.
            threads: of the CPU. llama.cpp's wait for one another by spinning, so that more than are free slow it down.
            slots: texts that it works on at once, each with `context` tokens.
            verbosity: how much llama.cpp writes to standard error.

        Raises:
            RadistillError: if xllamacpp is not installed, or llama.cpp cannot load a file.
        """
        xllamacpp = _package()
        self.version = f"xllamacpp {xllamacpp.__version__}"
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup = context * slots, slots, False
        params.verbosity = verbosity
        params.sampling.temp = 0.0
        parts = [params]
        if draft is not None:
            drafting = params.speculative.draft
            drafting.mparams.path = str(draft)
            drafting.n_max, drafting.n_min, drafting.p_min = draft_length, 0, 0.0
            params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
            parts.append(drafting)
        if exact:
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        for part in parts:
            for cpu in (part.cpuparams, part.cpuparams_batch):
                cpu.n_threads = threads
                if exact or draft is not None:
                    cpu.poll = 0  # threads that spin while they wait take the time of those that work
            if exact:
                part.cache_type_k = part.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise RadistillError(f"{path}: llama.cpp cannot load this ({error})") from None
        super().__init__(ServerSettings(url=self._server.listening_address, requests=slots, retries=0))
        # Ended before its loop runs, the server waits for ever; an answer shows that it does. It also warms up.
        self.greedy([0], 1)

    def greedy(self, prompt: Sequence[int] | str, count: int, **options: Any) -> dict[str, Any]:
        """The server's answer to `prompt`: `tokens` holds the most likely token, `count` times; `timings` how fast, and
        of a draft how many tokens were proposed (`draft_n`) and accepted (`draft_n_accepted`)."""
        request = {"prompt": prompt, "n_predict": count, "temperature": 0, "cache_prompt": False, "return_tokens": True}
        return self.ask("/completion", {**request, "ignore_eos": False, **options})

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it included."""
        return list(self.ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"])


def _package() -> Any:
    try:
        import xllamacpp
    except ImportError:
        raise RadistillError("llama.cpp: xllamacpp is not installed; pip install 'radistill[serve]'") from None
    return xllamacpp


def with_cache_bytes(path: Path, context: int, threads: int = 1, slots: int = 1) -> tuple[LlamaCpp, int]:
    """A file as llama.cpp would load it itself, and the bytes of keys, values and states that it makes room for.

    It says these only where it says everything, and goes on doing so; so the file is loaded once for the sizes, and
    once more, while nobody listens.
    """
    with _standard_error() as log:
        LlamaCpp(path, context, exact=False, slots=slots, verbosity=_SAYS_SIZES)
        engine = LlamaCpp(path, context, exact=False, threads=threads, slots=slots)
        text = log()
    sizes = re.findall(r"(?:KV|RS) buffer size = +([0-9.]+) MiB", text)
    return engine, round(sum(map(float, sizes)) * 2**20)


class LlamaCppEngine:
    """llama.cpp as an engine of `savings`: each model is written as a GGUF file once."""

    def __init__(self, dtype: str, folder: Path) -> None:
        """Let the files, with matrices of `dtype`, lie in a folder that the caller removes."""
        self.name = f"llama.cpp by xllamacpp {_package().__version__}"
        self.dtype: str | None = dtype
        self._folder = folder

    @contextmanager
    def reading(self, model: Model, room: Room, batch_size: int) -> Iterator[Reader]:
        """As `Engine`; the first token is decoded with the context, as servers do.

        Raises:
            RadistillError: for a model that has no GGUF.
        """
        path = self._folder / f"{model.fingerprint[:16]}.gguf"
        if not path.exists():
            as_gguf(model, path, self.dtype)
        longest, steps = room.context + room.steps + 1, room.steps
        if model.context_length is not None and longest > model.context_length:
            _claim_context(path, longest)
        server, held = with_cache_bytes(path, longest, torch.get_num_threads(), batch_size)

        def read(tokens: Sequence[int]) -> Pass:
            def answer(count: int) -> dict[str, Any]:
                return server.greedy(list(tokens), count, ignore_eos=True)

            def batch(count: int) -> list[Any]:
                """Every sequence as a request of its own."""
                return list(server.at_once(lambda _: answer(count), range(batch_size)))

            if batch_size > 1:
                return Pass.of_whole(*by_difference(batch, steps), steps, held)
            found = answer(steps + 1)["timings"]
            # Its time is that of the steps after the first token, which it counts all the same.
            return Pass.of_whole(found["prompt_ms"] / 1000, found["predicted_ms"] / 1000, steps, held)

        yield read


def _claim_context(path: Path, tokens: int) -> None:
    """Let a GGUF file say that its model reads so many tokens: llama.cpp's server takes no text beyond what it says."""
    file = GGUFReader(path, "r+")
    architecture = file.fields["general.architecture"].contents()
    file.fields[f"{architecture}.context_length"].parts[-1][0] = tokens


@contextmanager
def _standard_error() -> Iterator[Any]:
    """Take what this process, libraries included, writes to standard error; the value is called for the text."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def text() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield text
        finally:
            os.dup2(kept, 2)
            os.close(kept)
