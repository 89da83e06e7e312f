"""A model on a server, in token ids: nothing is left to the server's own tokenizer, template or settings.

vLLM and llama.cpp's server take prompts as ids and hand out the ids that they wrote. What their interface leaves open
(penalties, samplers, end tokens) is said in every request, so that they write by the rules of `models.generation`.
"""

from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from radistill.errors import RadistillError
from radistill.files import hash_json
from radistill.models.server.client import Client
from radistill.models.server.settings import ServerSettings

# Tokenizers differ in digits, white space, accents, scripts, emoji, and in what they take for special tokens.
_PROBES = (
    "The quick brown fox jumps over 13 lazy dogs, doesn't it? WON'T!",
    "  two  spaces\n\n\tand a tab \n def f(x):\n    return x**2 != 3.14e-10 # so\r\n ",
    "Straße, naïve, 東京, Привет, नमस्ते, שלום, 👩‍👩‍👧 🇩🇪 e\u0301\u200b\u00a0",
    "1234567890 ²½ ... ---- {}[]()<>/\\|@$%^&*~`",
)
_PIECES = 256
"""Tokens from all over the vocabulary that one more probe is made of."""


class Server(Client):
    """A model on a server whose tokens have proved to be those of a tokenizer.

    Attributes:
        model: its name there.
        identity: a hash of what the server says of the model, and of the tokenizer. Weights cannot be seen from here:
            other ones that are served under the same name have the same identity.
        dtype: of its weights.
    """

    dtype = "unknown"

    def __init__(self, settings: ServerSettings, tokenizer: PreTrainedTokenizerBase) -> None:
        """Ask the server what it has.

        Raises:
            RadistillError: if it cannot be reached, refuses the key, does not have the model, has another tokenizer, or
                does not say which tokens it writes.
        """
        super().__init__(settings)
        card = self._card(settings.model)
        self.model = str(card["id"])
        # The context is a setting of llama.cpp's server, and not of the model.
        meta = {name: value for name, value in (card.get("meta") or {}).items() if name != "n_ctx"}
        self.identity = hash_json([self.model, card.get("root"), meta, tokenizer.get_vocab()])
        self._check_tokenizer(tokenizer)
        self._is_vllm = self._hands_out_ids()

    def _card(self, wanted: str | None) -> dict[str, Any]:
        """What the server says of the model."""
        said = self.ask("/v1/models", first=True)
        cards = said.get("data") if isinstance(said, dict) else None
        if not isinstance(cards, list) or not all(isinstance(card, dict) and "id" in card for card in cards):
            raise self.error("does not say what it serves; is this an OpenAI-compatible server?")
        found = [card for card in cards if wanted in (None, card["id"])]
        if len(found) != 1:
            names = ", ".join(str(card["id"]) for card in cards) or "none"
            asked = "more than one model" if wanted is None and cards else f"no model {wanted or ''}".strip()
            raise self.error(f"has {asked}; name one of its models ({names}) as server.model or with --server-model")
        return found[0]

    def _check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        ids = sorted(tokenizer.get_vocab().values())
        special = "".join(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        for text in (*_PROBES, tokenizer.decode(ids[:: max(1, len(ids) // _PIECES)]), f"a{special}b"):
            # The names that each of the two servers has for the same.
            asked = {"model": self.model, "prompt": text, "add_special_tokens": False}
            asked |= {"content": text, "add_special": False, "parse_special": True}
            said = self.ask("/tokenize", asked)
            ours: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            theirs = said.get("tokens") if isinstance(said, dict) else None
            if ours != theirs:
                at = next((at for at, (one, two) in enumerate(zip(ours, theirs or [], strict=False)) if one != two), 0)
                token = f"{tokenizer.decode(ours[at : at + 1])!r} is not token {ours[at]} there"
                raise self.error(
                    f"{self.model} has another tokenizer: {token}; serve the model that is named here, or name the one "
                    "that is served"
                )

    def _hands_out_ids(self) -> bool:
        """Whether the OpenAI interface does, as vLLM's; False if it is llama.cpp's, which has another that does."""
        if "token_ids" in self.complete([0], {"max_tokens": 1, "temperature": 0, "return_token_ids": True}):
            return True
        try:
            if "tokens" in self.ask("/completion", {"prompt": [0], "n_predict": 1, "return_tokens": True}):
                return False
        except RadistillError:
            pass
        raise self.error("does not say which tokens it writes; vLLM and llama.cpp's server do")

    def make_room(self, tokens: int) -> None:
        """Hear how long the longest text can be, before the first; who serves has to know that itself."""

    def complete(self, text: Sequence[int], asked: dict[str, Any]) -> dict[str, Any]:
        """The choice of `/v1/completions` for a text in token ids.

        Raises:
            RadistillError: if the server cannot or will not.
        """
        answer = self.ask("/v1/completions", {"model": self.model, "prompt": list(text), **asked})
        try:
            choice: dict[str, Any] = dict(answer["choices"][0])
        except (LookupError, TypeError, ValueError):
            raise self.error("/v1/completions completes nothing; is this an OpenAI-compatible server?") from None
        return choice

    def write(self, prompt: Sequence[int], config: GenerationConfig, seed: int) -> list[int]:
        """The tokens that the model writes after a prompt, as the network's `generate` would with this config.

        Raises:
            RadistillError: if the server cannot or will not.
        """
        stops, written, is_full = list(config.eos_token_id or []), list[int](), False
        while len(written) < config.max_new_tokens and (not written or written[-1] not in stops):
            text, room = [*prompt, *written], config.max_new_tokens - len(written)
            if is_full:
                raise self.error(
                    f"its context ends after {len(text):,} tokens, prompt included; give it a longer one (vLLM: "
                    "--max-model-len, llama.cpp: --ctx-size, which its slots share) or lower max_new_tokens"
                )
            by = self._by_vllm if self._is_vllm else self._by_llama_cpp
            new, is_full = by(text, room, config, seed % 2**31)
            end = next((at for at, token in enumerate(new, start=1) if token in stops), len(new))
            written += new[:end]
        return written

    def _by_vllm(self, text: list[int], room: int, config: GenerationConfig, seed: int) -> tuple[list[int], bool]:
        """Tokens, and whether the context is full. vLLM ends at our end tokens alone, and hands them out."""
        asked = {**_sampling(config), "max_tokens": room, "seed": seed, "return_token_ids": True}
        asked |= {"ignore_eos": True, "stop_token_ids": list(config.eos_token_id or [])}
        # The checkpoint's own would count otherwise.
        asked |= {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
        if config.suppress_tokens:
            asked["logit_bias"] = dict.fromkeys(map(str, config.suppress_tokens), -100)
        found: list[int] = self.complete(text, asked)["token_ids"]
        return found, len(found) < room  # unless it has ended, when nobody asks

    def _by_llama_cpp(self, text: list[int], room: int, config: GenerationConfig, seed: int) -> tuple[list[int], bool]:
        """The same by llama.cpp's own interface, because its OpenAI answers have no ids.

        It ends at the end tokens of its file, and no others: `write` cuts, or asks on.
        """
        asked = {**_sampling(config), "prompt": text, "n_predict": room, "seed": seed, "return_tokens": True}
        # No other samplers, and these in the order of transformers.
        asked |= {"samplers": ["temperature", "top_p"], "cache_prompt": False}
        asked["logit_bias"] = [[token, False] for token in config.suppress_tokens or []]
        found = self.ask("/completion", asked)
        return found["tokens"], found.get("stop_type") == "limit" and len(found["tokens"]) < room


def _sampling(config: GenerationConfig) -> dict[str, Any]:
    return {"temperature": config.temperature, "top_p": config.top_p} if config.do_sample else {"temperature": 0}
