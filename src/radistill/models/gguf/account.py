"""The account of a GGUF file's metadata: each key is taken by the code that understands it, or the file is refused."""

from pathlib import Path
from typing import Any, TypeVar

from radistill.errors import RadistillError

_T = TypeVar("_T", int, float, str, bool, list[Any])

# Keys that change neither what the network computes nor how a text is cut into tokens: where a model comes from, how
# it was quantised, advice to samplers, and roles of tokens that nothing here asks for.
_HARMLESS = (
    "general.",
    "radistill.",  # the lineage of our own exports
    "quantize.",
    "mradermacher.",
    "split.",  # the file's reader has checked them
    "tokenizer.huggingface.json",
    *(f"tokenizer.ggml.{role}_token_id" for role in ("seperator", "cls", "mask", "prefix", "suffix", "middle")),
    *(f"tokenizer.ggml.fim_{role}_token_id" for role in ("pre", "suf", "mid", "pad", "rep", "sep")),
)


class Account:
    """The metadata of the file at `path`, of which every key has to be taken before `close`."""

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        self.path = path
        self._metadata = metadata
        self._taken: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._metadata

    def names(self, prefix: str) -> list[str]:
        """What follows `prefix` in the keys that begin with it."""
        return [key.removeprefix(prefix) for key in self._metadata if key.startswith(prefix)]

    def take(self, key: str, default: _T) -> _T:
        """The value of a key, of the type of `default`, or `default` where the file is silent."""
        return self.need(key, type(default)) if key in self._metadata else default

    def need(self, key: str, kind: type[_T]) -> _T:
        """The value of a key that the file must have.

        Raises:
            RadistillError: if it is missing, or not of type `kind`.
        """
        if key not in self._metadata:
            raise RadistillError(f"{self.path}: the key {key} is missing; take a file that llama.cpp's converter wrote")
        self._taken.add(key)
        value = self._metadata[key]
        if kind is not list and isinstance(value, list) and len(set(value)) == 1:  # some write a number per layer
            value = value[0]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise RadistillError(
                f"{self.path}: {key} is {value!r:.60}, which is not read here (only one {kind.__name__})"
            )
        return value

    def only(self, key: str, *allowed: Any, because: str) -> None:
        """Take a key whose value changes nothing, as long as it is one of those `allowed`.

        Raises:
            RadistillError: with the reason, if it is another.
        """
        self._taken.add(key)
        if key in self._metadata and self._metadata[key] not in allowed:
            raise RadistillError(f"{self.path}: {key} is {self._metadata[key]!r:.60}, but {because}")

    def close(self) -> None:
        """Refuse the file if a key is left that may change what it computes or how it is tokenised.

        Raises:
            RadistillError: naming the first such key.
        """
        for key in self._metadata:
            if key not in self._taken and not key.startswith(_HARMLESS):
                raise RadistillError(
                    f"{self.path}: the key {key} is not known here and may change what the model computes or how it "
                    f"cuts a text; take the model's safetensors folder, or, if the key means nothing, a copy made by "
                    f"`gguf-new-metadata --remove-metadata {key}`"
                )
