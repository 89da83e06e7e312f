"""Text by a server: the tokens that the network writes, whatever happens on the way, and nothing asked twice."""

import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import tiny
from fake_server import Fake, serving
from radistill.errors import RadistillError
from radistill.models.generation import generate
from radistill.models.loading import Model, load, load_without_weights
from radistill.models.server import client
from radistill.models.server.served import Server
from radistill.models.server.settings import ServerSettings

PROMPTS = [[5, 6, 7], [9] * 30, [1, 2], [200, 100, 3, 4], [8], [77, 78, 79]]
MOST = 10


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.0)
    monkeypatch.delenv(client.KEY, raising=False)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("llama")


def opened(fake: Fake, of: Model, **settings: Any) -> Server:
    return Server(ServerSettings(**{"url": fake.address, "retries": 2, **settings}), of.tokenizer)


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp"])
def test_a_server_writes_what_the_network_writes(kind: Any, model: Model) -> None:
    """Also where its own end tokens are others: those that are not ours are written like any token."""
    free = generate(model, PROMPTS, max_new_tokens=MOST, stops=frozenset())
    stops = frozenset({free[0][4], free[1][0], free[3][2]})
    expected = generate(model, PROMPTS, max_new_tokens=MOST, stops=stops)
    assert expected[0][-1] in stops
    assert max(map(len, expected)) == MOST
    others = {free[0][2], *free[4][::3], free[5][MOST - 1]}
    with serving(Fake(model, kind, ends=stops | others)) as fake:
        without = Model(tiny.build("llama").to("meta"), model.tokenizer, model.anatomy, "elsewhere")
        server = opened(fake, model)
        assert generate(without, PROMPTS, max_new_tokens=MOST, stops=stops, server=server) == expected
        assert generate(without, [], max_new_tokens=MOST, server=server) == []


def test_many_requests_are_under_way_and_no_more_than_are_allowed(model: Model) -> None:
    with serving(Fake(model, meet=threading.Barrier(3))) as fake:
        generate(model, PROMPTS, max_new_tokens=2, server=opened(fake, model, requests=3))
    assert fake.together == 3


def test_what_the_interface_leaves_open_is_said(model: Model) -> None:
    with serving(Fake(model)) as fake:
        generate(
            model,
            [[5, 6], [5, 6]],
            max_new_tokens=3,
            temperature=0.5,
            top_p=0.9,
            seed=4,
            stops=frozenset({7, 3}),
            vocabulary=258,
            server=opened(fake, model),
        )
    first, second = (content for path, content in fake.asked if path == "/v1/completions" and content["prompt"] != [0])
    assert first.pop("seed") != second.pop("seed")
    assert first == second
    assert {name: first[name] for name in ("prompt", "temperature", "top_p", "max_tokens", "stop_token_ids")} == {
        "prompt": [5, 6], "temperature": 0.5, "top_p": 0.9, "max_tokens": 3, "stop_token_ids": [3, 7],
    }  # fmt: skip
    assert (first["top_k"], first["min_p"], first["repetition_penalty"], first["ignore_eos"]) == (0, 0, 1, True)
    assert first["logit_bias"] == {"258": -100, "259": -100}


# ---- troubles ----


def test_a_request_is_made_again(model: Model) -> None:
    expected = generate(model, PROMPTS, max_new_tokens=3)
    with serving(Fake(model)) as fake:
        server = opened(fake, model, requests=1)
        fake.troubles = [503, 0]
        assert generate(model, PROMPTS, max_new_tokens=3, server=server) == expected
        assert fake.texts == len(PROMPTS) + 2
        fake.troubles = [429] * 3
        with pytest.raises(
            RadistillError, match=r"server http://127.0.0.1:\d+: /v1/completions failed \(429: not now\)"
        ):
            generate(model, PROMPTS[:1], max_new_tokens=3, server=server)


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp"])
def test_a_server_that_dies_loses_nothing(kind: Any, model: Model, tmp_path: Path) -> None:
    cache = tmp_path / "responses.jsonl"
    with serving(Fake(model, kind, dies_after=3)) as fake:
        server = opened(fake, model, requests=2, retries=1)
        with pytest.raises(RadistillError, match=r"cannot be reached \(.*closed connection.*\); start it"):
            generate(model, PROMPTS, max_new_tokens=5, cache=cache, server=server)
    assert len(cache.read_text().splitlines()) == 3
    told: list[int] = []
    with serving(Fake(model, kind)) as again:  # at another address
        server = opened(again, model)
        found = generate(
            model, PROMPTS, max_new_tokens=5, cache=cache, server=server, on_response=lambda at, _: told.append(at)
        )
        assert again.texts == 3
        assert generate(model, PROMPTS, max_new_tokens=5, cache=cache, server=server) == found
        assert again.texts == 3
    assert found == generate(model, PROMPTS, max_new_tokens=5)
    assert sorted(told) == list(range(len(PROMPTS)))


def test_the_cache_tells_models_apart(model: Model, tmp_path: Path) -> None:
    cache = tmp_path / "responses.jsonl"
    for names, texts in ((("tiny",), 2), (("tiny",), 0), (("other",), 2)):
        with serving(Fake(model, names=names)) as fake:
            generate(model, PROMPTS[:2], max_new_tokens=2, cache=cache, server=opened(fake, model))
        assert fake.texts == texts
    assert generate(model, PROMPTS[:2], max_new_tokens=2, cache=cache) == generate(model, PROMPTS[:2], max_new_tokens=2)
    assert len(cache.read_text().splitlines()) == 5  # the network's batch is one


# ---- what is refused ----


def test_another_tokenizer_is_refused(model: Model) -> None:
    for change in ("swapped", "special"):
        other = tiny.model("llama")
        state = other.tokenizer.backend_tokenizer.to_str()
        vocabulary = other.tokenizer.get_vocab()
        if change == "swapped":  # two of the rarest bytes
            one, two = (token for token, at in vocabulary.items() if at in (250, 251))
            state = state.replace(f'"{one}":{vocabulary[one]}', f'"{one}":@').replace(
                f'"{two}":{vocabulary[two]}', f'"{two}":{vocabulary[one]}'
            ).replace("@", str(vocabulary[two]))  # fmt: skip
        else:
            state = state.replace("<|im_start|>", "<|in_start|>")
        other.tokenizer._tokenizer = type(other.tokenizer.backend_tokenizer).from_str(state)
        assert other.tokenizer.get_vocab() != vocabulary
        with (
            serving(Fake(other)) as fake,
            pytest.raises(RadistillError, match=r"tiny has another tokenizer: '.*' is not token \d+ there; serve the"),
        ):
            opened(fake, model)


def test_keys(model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving(Fake(model, key="secret-1")) as fake:
        with pytest.raises(RadistillError, match=r"wants the key in RADISTILL_SERVER_KEY \(401: wrong: None\)"):
            opened(fake, model)
        monkeypatch.setenv(client.KEY, "secret-2")
        with pytest.raises(RadistillError, match=r"refuses the key in RADISTILL_SERVER_KEY \(401: wrong: Bearer …\)"):
            opened(fake, model)
        monkeypatch.setenv(client.KEY, " secret-1\n")
        generate(model, PROMPTS, max_new_tokens=2, cache=tmp_path / "cache", server=opened(fake, model))
        assert "secret" not in (tmp_path / "cache").read_text()
        monkeypatch.setenv(client.KEY, "secret\n1")
        with pytest.raises(RadistillError, match="RADISTILL_SERVER_KEY: has characters that no key has"):
            opened(fake, model)


def test_servers_that_will_not_do(model: Model) -> None:
    with serving(Fake(model, names=("a", "b"))) as fake:
        for name, message in ((None, "has more than one model; name"), ("c", r"has no model c; name one .*\(a, b\)")):
            with pytest.raises(RadistillError, match=message):
                opened(fake, model, model=name)
        assert opened(fake, model, model="b").model == "b"
    with pytest.raises(RadistillError, match=r"cannot be reached \(.*refused.*\); start it, or correct the address"):
        opened(fake, model)
    with serving(Fake(model, kind="other")) as fake, pytest.raises(RadistillError, match="does not say which tokens"):
        opened(fake, model)
    with serving(Fake(model)) as fake:
        server = opened(fake, model)
        with pytest.raises(
            RadistillError, match=r"failed \(400: This model's maximum context length is 512 tokens\.\)"
        ):
            generate(model, [[5] * 512], max_new_tokens=20, server=server)
        with pytest.raises(RadistillError, match=r"its context ends after 512 tokens, prompt .* lower max_new_tokens"):
            generate(model, [[5] * 500], max_new_tokens=20, stops=frozenset(), server=server)
        with pytest.raises(RadistillError, match="vocabulary"):
            generate(model, [[10**6]], max_new_tokens=20, server=server)
        with pytest.raises(RadistillError, match=r"has no /v1/models \(404: .*Not Found.*\); vLLM and"):
            opened(fake, model, url=f"{fake.address}/elsewhere")


def test_addresses() -> None:
    for url in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"):
        assert ServerSettings.model_validate(url) == ServerSettings(url="http://h:1")
    for url in ("h:1", "ftp://h", "http://", "http://h:x", "http://me@h", "http://h?key=1", "http://h#1", "http://[h"):
        with pytest.raises(ValidationError, match="must be an address"):
            ServerSettings(url=url)


def test_a_model_without_weights(tmp_path: Path) -> None:
    """All that is known of it, but its numbers."""
    folder = tiny.save("llama", tmp_path / "model")
    whole = load(folder)
    (folder / "model.safetensors").unlink()
    found = load_without_weights(folder)
    assert found.network.device.type == "meta"
    assert found.network.generation_config.eos_token_id == whole.network.generation_config.eos_token_id == 259
    assert (found.context_length, found.pad_token_id, found.source) == (512, 256, str(folder))
    assert found.anatomy == whole.anatomy
    assert found.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
