"""llama.cpp through xllamacpp's server: token ids in, token ids out, no tokenizer and no cache in between."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp


class LlamaCpp:
    """A GGUF file, loaded by llama.cpp on the CPU with a float32 cache."""

    def __init__(self, path: Path, context: int = 512) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context
        params.n_parallel = 1
        params.warmup = False
        params.cpuparams.n_threads = 2
        params.cpuparams_batch.n_threads = 2
        params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
        params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.sampling.temp = 0.0
        self._server = xllamacpp.Server(params)

    def greedy(self, prompt: list[int] | str, count: int, **options: Any) -> dict[str, Any]:
        """The server's answer to `prompt`: `tokens` holds the most likely token, `count` times."""
        request = {"prompt": prompt, "n_predict": count, "temperature": 0, "cache_prompt": False, "return_tokens": True}
        return self._post("/completion", {**request, "ignore_eos": False, **options})

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it included."""
        return list(self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"])

    def _post(self, path: str, content: dict[str, Any]) -> Any:
        body = json.dumps(content).encode()
        request = urllib.request.Request(
            self._server.listening_address + path, body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)
