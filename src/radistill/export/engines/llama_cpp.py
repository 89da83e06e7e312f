"""llama.cpp through xllamacpp's server: token ids in, token ids out, no tokenizer and no cache in between."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import torch

from radistill.errors import RadistillError


class LlamaCpp:
    """A GGUF file, loaded by llama.cpp on the CPU with a float32 cache; one text at a time.

    Attributes:
        version: of the package that brings llama.cpp.
        address: of its HTTP server, on this machine.
    """

    def __init__(self, path: Path, context: int = 512, draft: Path | None = None, draft_length: int = 4) -> None:
        """Load a file, and the file of another model that drafts for it.

        Args:
            path: the GGUF file.
            context: most tokens of a text, prompt included.
            draft: a GGUF file with the same tokens.
            draft_length: tokens drafted in a round.

        Raises:
            RadistillError: if xllamacpp is not installed, or llama.cpp cannot load a file.
        """
        try:
            import xllamacpp
        except ImportError:
            raise RadistillError("llama.cpp: xllamacpp is not installed; pip install 'radistill[serve]'") from None
        self.version = f"xllamacpp {xllamacpp.__version__}"
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup = context, 1, True
        params.verbosity = -1  # its log is not for the reader of ours
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.sampling.temp = 0.0
        parts = [params]
        if draft is not None:
            drafting = params.speculative.draft
            drafting.mparams.path = str(draft)
            drafting.n_max, drafting.n_min, drafting.p_min = draft_length, 0, 0.0
            params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
            parts.append(drafting)
        for part in parts:
            part.cpuparams.n_threads = part.cpuparams_batch.n_threads = torch.get_num_threads()
            part.cache_type_k = part.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise RadistillError(f"{path}: llama.cpp cannot load this ({error})") from None
        self.address = self._server.listening_address

    def greedy(self, prompt: list[int] | str, count: int, **options: Any) -> dict[str, Any]:
        """The server's answer to `prompt`: `tokens` holds the most likely token, `count` times; `timings` how fast, and
        of a draft how many tokens were proposed (`draft_n`) and accepted (`draft_n_accepted`)."""
        request = {"prompt": prompt, "n_predict": count, "temperature": 0, "cache_prompt": False, "return_tokens": True}
        return self.ask("/completion", {**request, "ignore_eos": False, **options})

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it included."""
        return list(self.ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"])

    def ask(self, path: str, content: dict[str, Any]) -> Any:
        """The server's answer to a JSON request."""
        return ask(self.address + path, content)


def ask(url: str, content: dict[str, Any]) -> Any:
    """The answer of a server on this machine to a JSON request."""
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)
