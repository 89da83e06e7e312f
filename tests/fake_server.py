"""A server of a tiny model as vLLM or llama.cpp's would be, in a thread, with the troubles that servers have."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import tiny
from radistill.models.generation import generate
from radistill.models.loading import Model, load
from radistill.models.server import vllm
from radistill.models.server.client import Client
from radistill.models.server.settings import ServerSettings


@dataclass
class Fake:
    """What the server is, and what it was asked.

    Attributes:
        model: what it serves.
        kind: whose interface it has.
        ends: its own end tokens.
        key: what it wants to be shown.
        troubles: statuses that it answers before it answers well; 0 closes the connection.
        dies_after: texts that it writes before it closes every connection.
        context: tokens of a text at most, prompt included.
        most_logprobs: as vLLM's `--max-logprobs`.
        asked: path and content of every request.
        together: most requests that were under way at once.
        address: where it listens.
        names: of its models.
        meet: where every text waits for others.
    """

    model: Model = field(default_factory=lambda: tiny.model("llama"))
    kind: Literal["vllm", "llama.cpp", "other"] = "vllm"
    ends: frozenset[int] = frozenset({259})
    key: str | None = None
    troubles: list[int] = field(default_factory=list)
    dies_after: int | None = None
    context: int = 512
    most_logprobs: int = 20
    asked: list[tuple[str, Any]] = field(default_factory=list)
    together: int = 0
    address: str = ""
    names: tuple[str, ...] = ("tiny",)
    under_way: int = 0
    lock: Any = field(default_factory=threading.Lock)
    meet: threading.Barrier | None = None

    @property
    def texts(self) -> int:
        """Texts that it was asked to write, the probe of its kind left out."""
        paths = ("/v1/completions", "/completion")
        return sum(path in paths and content["prompt"] != [0] for path, content in self.asked)

    def answer(self, path: str, content: Any) -> tuple[int, Any]:
        """Status and content of the answer to a request."""
        if path == "/v1/models":
            return 200, {"data": [{"id": name, "created": len(self.asked)} for name in self.names]}
        if path == "/tokenize":
            text = content["content" if self.kind == "llama.cpp" else "prompt"]
            return 200, {"tokens": self.model.tokenizer(text, add_special_tokens=False)["input_ids"]}
        if path == "/v1/completions" and content["model"] not in self.names:
            return 404, {"error": {"message": f"The model `{content['model']}` does not exist."}}
        if path == "/v1/completions" and self.kind != "vllm":
            return 200, {"choices": [{"text": "what ids it has, it keeps to itself"}]}
        if path == "/v1/completions":
            return self._by_vllm(content)
        if path == "/completion" and self.kind == "llama.cpp":
            return self._by_llama_cpp(content)
        return 404, {"detail": "Not Found"}

    def _by_vllm(self, content: dict[str, Any]) -> tuple[int, Any]:
        if (most := content.get("prompt_logprobs", 0)) > self.most_logprobs:
            message = f"Requested prompt logprobs of {most}, which is greater than max allowed: {self.most_logprobs}"
            return 400, {"error": {"message": message}}
        if (room := self.context - len(content["prompt"])) < 1:
            return 400, {"error": {"message": f"This model's maximum context length is {self.context} tokens."}}
        ends = frozenset() if content.get("ignore_eos") else self.ends
        stops = ends | frozenset(content.get("stop_token_ids", []))
        tokens = self._written(content, min(room, content["max_tokens"]), stops)
        choice: dict[str, Any] = {"text": self.model.tokenizer.decode(tokens)}
        if content.get("return_token_ids"):
            choice["token_ids"] = tokens
        if most:
            choice["prompt_logprobs"] = [None, *self._told(content["prompt"], most)]
        return 200, {"choices": [choice]}

    def _by_llama_cpp(self, content: dict[str, Any]) -> tuple[int, Any]:
        tokens = self._written(content, content["n_predict"], self.ends)
        return 200, {"tokens": tokens, "stop_type": "eos" if tokens[-1] in self.ends else "limit"}

    def _written(self, content: dict[str, Any], most: int, stops: frozenset[int]) -> list[int]:
        with self.lock:
            (tokens,) = generate(
                self.model,
                [content["prompt"]],
                max_new_tokens=most,
                temperature=content.get("temperature", 0),
                top_p=content.get("top_p", 1.0),
                seed=content.get("seed", 0),
                stops=stops,
                description=None,
            )
        return tokens

    @torch.no_grad()
    def _told(self, text: list[int], most: int) -> Iterator[dict[str, Any]]:
        """The likeliest tokens at each place and the one that is there, in an order of no meaning."""
        logs = self.model.network(input_ids=torch.tensor([text])).logits[0, :-1].float().log_softmax(-1)
        for row, token in zip(logs, text[1:], strict=True):
            told = sorted({*row.topk(most).indices.tolist(), token})
            yield {str(one): {"logprob": max(row[one].item(), -9999.0), "decoded_token": "?"} for one in told}


@contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    """Serve, and stop at the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content = json.loads(body) if body else None
            with fake.lock:
                fake.asked.append((self.path, content))
                trouble = fake.troubles.pop(0) if fake.troubles else None
                fake.under_way += 1
                fake.together = max(fake.together, fake.under_way)
                dead = fake.dies_after is not None and fake.texts > fake.dies_after
            try:
                if dead or trouble == 0:
                    self.close_connection = True
                    return
                if fake.meet is not None and self.path == "/v1/completions" and content["prompt"] != [0]:
                    fake.meet.wait(10)
                if fake.key is not None and self.headers.get("Authorization") != f"Bearer {fake.key}":
                    status, answer = 401, {"error": {"message": f"wrong: {self.headers.get('Authorization')}"}}
                else:
                    status, answer = (trouble, {"error": "not now"}) if trouble else fake.answer(self.path, content)
            finally:
                with fake.lock:
                    fake.under_way -= 1
            sent = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def vllm_stands_in(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Fake]:
    """Let a server of ours be started wherever vLLM would: each that was, in order; one that has ended has no address.

    It loads the folder that vLLM would load, and has no more room than vLLM was given.
    """
    started: list[Fake] = []

    @contextmanager
    def vllm_server(python: str, folder: Path, *options: str, name: str) -> Iterator[Client]:
        flags = {"--enforce-eager", "--no-enable-prefix-caching"}  # there is no GPU
        assert flags < set(options)
        of_values = [option for option in options if option not in flags]
        given = dict(zip(of_values[::2], of_values[1::2], strict=True))
        assert (name, given["--max-logprobs"], given["--generation-config"]) == (
            given["--served-model-name"], "-1", "vllm",
        )  # fmt: skip
        fake = Fake(
            load(folder, dtype=given["--dtype"]),
            names=(name,),
            context=int(given["--max-model-len"]),
            most_logprobs=tiny.VOCAB_SIZE,
            **settings,
        )
        with serving(fake):
            started.append(fake)
            try:
                yield Client(ServerSettings(url=fake.address, retries=0))
            finally:
                fake.address = ""

    monkeypatch.setattr(vllm, "vllm_server", vllm_server)
    monkeypatch.setenv(vllm.PYTHON, "true")  # finds whatever it is asked for
    return started
