"""Savings by vLLM. Where there is none, a server stands in that answers what vLLM's answers, at known speeds."""

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path

import psutil
import pytest
import small

from radistill.cli import main
from radistill.conversion import convert
from radistill.errors import RadistillError
from radistill.evaluation.savings.measure import SavingsSettings, measure_savings
from radistill.export.engines import vllm
from radistill.export.engines.vllm import VllmEngine
from radistill.models.server.vllm import vllm_server

FIRST, STEP = 0.05, 0.02
TOLD_FIRST, TOLD_STEP = 3.0, 0.5
SERVER = f"""
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

assert int(os.environ["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"]) > 3600
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
if "mamba" in open(options["--model"] + "/config.json").read() and {{fails!r}}:
    print("ValueError: no room for the state\\nbye")
    sys.exit(1)
busy, spent = [], [0.0, 0.0, 0]
PREFILL, DECODE = "request_prefill_time_seconds", "request_decode_time_seconds"
TOLD = [PREFILL + "_sum", DECODE + "_sum", DECODE + "_count"]

class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/dies":
            print("RuntimeError: out of memory\\nRuntimeError: cancelled\\nEngineDeadError: see above", flush=True)
            os._exit(1)
        if self.path == "/v1/models":
            return self.answer("{{{{}}}}")
        told = {{{{"other": 1, "kv_cache_usage_perc": 0.25 if busy else 0.0}}}}
        if {{tells!r}}:
            told |= zip(TOLD, spent)
        self.answer("".join("vllm:%s{{{{engine=\\"0\\"}}}} %s\\n" % one for one in told.items()))

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["ignore_eos"] and len(asked["prompt"]) == int(options["--max-num-seqs"])
        busy.append(1)
        time.sleep({FIRST} + {STEP} * (asked["max_tokens"] - 1))
        busy.pop()
        self.answer("{{{{}}}}")
        time.sleep(0.1)  # it answers before it tells
        spent[:] = spent[0] + {TOLD_FIRST}, spent[1] + {TOLD_STEP} * (asked["max_tokens"] - 1), spent[2] + 1

    def answer(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass

ThreadingHTTPServer((options["--host"], int(options["--port"])), Answers).serve_forever()
"""
SETTINGS = SavingsSettings((32,), batch_size=3, decode_tokens=4, repeats=2, draft_length=None)


def python(folder: Path, fails: bool = False, tells: bool = True) -> Path:
    """Of an environment in which `vllm` is a server that stands in."""
    server, found = folder / "server.py", folder / "python"
    server.write_text(SERVER.format(fails=fails, tells=tells), encoding="utf-8")
    found.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then echo 0.99.0; else exec {sys.executable} {server} "$@"; fi\n',
        encoding="utf-8",
    )
    found.chmod(0o755)
    return found


def servers() -> list[psutil.Process]:
    """Those that this process has started."""
    return [one for one in psutil.Process().children(recursive=True) if "server.py" in " ".join(one.cmdline())]


def test_speeds_cache_and_the_end_of_its_servers(tmp_path: Path) -> None:
    base = small.model("llama", hidden_size=64)
    hybrid = convert(base, [0, 2], init="random")
    (tmp_path / "models").mkdir()
    with ExitStack() as stack:
        engine = VllmEngine("bfloat16", tmp_path / "models", stack, python(tmp_path))
        found = measure_savings(base, hybrid, replace(SETTINGS, contexts=(16, 32)), tmp_path / "s.json", engine)
        assert len(servers()) == 2  # one a model, for both contexts
    assert (found["engine"], found["dtype"]) == ("vLLM 0.99.0", "bfloat16")
    for row, (name, model) in product(found["contexts"], (("base", base), ("hybrid", hybrid))):
        # A busy machine may take longer.
        assert FIRST <= row[name]["first_token_seconds"] < 100 * FIRST
        assert 3 / STEP / 100 < row[name]["decode_tokens_per_second"] < 3 / STEP * 2
        needs = 3 * (model.anatomy.kv_bytes(37, 2) + model.anatomy.ssm_state_bytes())
        assert row[name]["cache_bytes"] == round(0.25 * (round(1.5 * needs) + 2**28))
    assert servers() == []


def test_a_sequence_alone_is_timed_by_its_own_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill that takes longer than another of the same text does not become a step's time."""
    base = small.model("llama", hidden_size=64)
    settings = replace(SETTINGS, batch_size=1)
    with ExitStack() as stack:
        engine = VllmEngine("bfloat16", tmp_path, stack, python(tmp_path))
        (row,) = measure_savings(base, base, settings, tmp_path / "s.json", engine)["contexts"]
    assert row["base"]["first_token_seconds"] == pytest.approx(TOLD_FIRST)
    assert row["base"]["decode_tokens_per_second"] == pytest.approx(1 / TOLD_STEP)
    monkeypatch.setattr(vllm, "_SOON", 0.5)
    with ExitStack() as stack:
        silent = VllmEngine("bfloat16", tmp_path, stack, python(tmp_path, tells=False))
        with pytest.raises(RadistillError, match="vLLM does not tell how long it decodes"):
            measure_savings(base, base, settings, tmp_path / "other.json", silent)


def test_a_model_that_it_cannot_serve(tmp_path: Path) -> None:
    base = small.model("llama", hidden_size=64)
    hybrid = convert(base, [0, 2], init="random")
    with ExitStack() as stack:
        engine = VllmEngine("bfloat16", tmp_path, stack, python(tmp_path, fails=True))
        with pytest.raises(RadistillError, match=r"vLLM cannot serve this \(ValueError: no room for the state\)"):
            measure_savings(base, hybrid, SETTINGS, tmp_path / "s.json", engine)
    assert servers() == []


def test_an_environment_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small.save(tmp_path / "base", "llama")
    command = ["savings", str(tmp_path / "base"), str(tmp_path / "base"), "--out", str(tmp_path / "s.json")]
    command += ["--engine", "vllm", "--vllm", str(tmp_path / "nowhere"), "--dtype"]
    for dtype, said in (("float32", "/nowhere has none; install it there"), ("q8_0", "vLLM takes float32, bfloat16")):
        monkeypatch.setattr(sys, "argv", ["radistill", *command, dtype])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_a_server_that_dies_says_why_and_one_that_is_stopped_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    small.save(folder, "llama")
    with (
        pytest.raises(RadistillError, match=r"this: vLLM has ended \(RuntimeError: out of memory\)"),
        vllm_server(str(python(tmp_path)), folder, name="this") as client,
    ):
        client.ask("/dies")
    with pytest.raises(KeyboardInterrupt), vllm_server(str(python(tmp_path)), folder):
        raise KeyboardInterrupt
    assert servers() == []


@pytest.mark.slow
def test_a_server_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    script = f"""
import sys, time
sys.path[:0] = {sys.path!r}
import small
from contextlib import ExitStack
from pathlib import Path
from radistill.evaluation.savings.measure import Room
from radistill.export.engines.vllm import VllmEngine
engine = VllmEngine("float32", Path({str(tmp_path)!r}), ExitStack(), {str(python(tmp_path))!r})
with engine.reading(small.model("llama"), Room(8, 4, 8), 1):
    print("serves", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"serves\n"
        (server,) = psutil.Process(owner.pid).children()
        owner.kill()
    server.wait(30)  # raises if it goes on
