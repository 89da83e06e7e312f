"""Predictions where they count: at the positions that predict response tokens."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from radistill.models.sequences import Batch, packed

CHUNK_NUMBERS = 2**24
"""Logits of one network that exist at a time: 64 MiB for each float32 copy that is made of them."""

PACKS = "_reads_documents_packed"
"""Of a network: that it reads the documents of a batch in one row; see `distillation.packing`."""


def chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    """Rows of so many tokens whose logits are made at once."""
    chunk = max(1, CHUNK_NUMBERS // vocabulary)
    return (slice(start, start + chunk) for start in range(0, tokens, chunk))


class ResponseLogits(NamedTuple):
    """Predictions of the response tokens of a batch, row after row.

    Attributes:
        logits: [tokens, vocab], the distribution before each response token.
        targets: [tokens], long, the response tokens themselves.
        rows: [tokens], long, the row of the batch that each token belongs to.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor


class OutputEmbedding(NamedTuple):
    """What turns final hidden states into logits.

    Attributes:
        weight: [vocab, hidden].
        bias: [vocab] or None.
        shape: what the architecture does to every logit after that: a factor, a soft cap, or nothing.
    """

    weight: Tensor
    bias: Tensor | None
    shape: Callable[[Tensor], Tensor]


class ResponseStates(NamedTuple):
    """What the response tokens of a batch are predicted from, row after row.

    Attributes:
        hidden: [tokens, hidden], the input of the output embedding, so after the last norm.
        output: the output embedding.
        targets: [tokens], long, the response tokens themselves.
    """

    hidden: Tensor
    output: OutputEmbedding
    targets: Tensor

    @property
    def vocabulary(self) -> int:
        """Entries of the logits."""
        return len(self.output.weight)

    def at(self, tokens: Tensor) -> "ResponseStates":
        """The states of some of the tokens, [kept], whose places may be on another device."""
        places = tokens.to(self.hidden.device)
        return self._replace(hidden=self.hidden[places], targets=self.targets[places])

    def logits(self, rows: slice, vocabulary: int | None = None) -> Tensor:
        """[rows, vocab], the network's logits of some of the tokens.

        Args:
            rows: which tokens.
            vocabulary: only this many entries, from the first; None is all of them.
        """
        return self.output.shape(self.raw_logits(rows, vocabulary))

    def raw_logits(self, rows: slice, vocabulary: int | None = None) -> Tensor:
        """`logits` before the output's `shape`."""
        weight, bias, _ = self.output
        return nn.functional.linear(self.hidden[rows], weight[:vocabulary], None if bias is None else bias[:vocabulary])


class _Positions(NamedTuple):
    """Where response tokens are predicted: the columns `kept` of some row, and of those [batch, kept] `selected`."""

    kept: Tensor
    selected: Tensor
    targets: Tensor


def response_logits(network: PreTrainedModel, batch: Batch) -> ResponseLogits:
    """Run `network` over a batch and return its logits for the response tokens only.

    The output embedding is applied only where a response token is predicted: for a long prompt and a large vocabulary
    that saves most of its cost and memory. Gradients flow as in a plain forward.
    """
    read = _as_read(network, batch)
    positions = _positions(read)

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0][positions.selected],)

    with extract_model_from_parallel(network).get_output_embeddings().register_forward_pre_hook(select):
        output = _forward(network, read, positions)
    rows = torch.nonzero(batch.response_mask[:, 1:])[:, 0]
    return ResponseLogits(logits=output.logits, targets=positions.targets, rows=rows)


def response_states(network: PreTrainedModel, batch: Batch) -> ResponseStates:
    """Run `network` over a batch and return what its logits for the response tokens are made from, not the logits.

    For a network that is not sharded: the weights of one that is are gone when its forward ends; see `at_output`.
    """
    found: list[ResponseStates] = []

    def keep(states: ResponseStates) -> Tensor:
        found.append(states)
        return states.hidden

    at_output(network, batch, keep)
    return found[0]


def at_output(network: PreTrainedModel, batch: Batch, compute: Callable[[ResponseStates], Tensor]) -> Tensor:
    """Run `network` over a batch with `compute` in the place of its output embedding, and return what that returns.

    `compute` runs inside the forward of the network, and its result leaves through the network's own output. Both
    matter to wrappers: FSDP has the output embedding's weight whole only during the forward, and hangs the hooks that
    gather weights for the backward on the tensors that the forward returns; DDP, looking for unused parameters, follows
    those tensors. So a loss may use weight and hidden states as it likes, and its gradient still takes the usual way.
    Gradient checkpointing repeats decoder layers in the backward; nothing here is inside one.

    Args:
        network: perhaps wrapped for several processes.
        batch: on the network's device.
        compute: called once, with the states of the response tokens.
    """
    batch = _as_read(network, batch)
    positions = _positions(batch)
    inner = extract_model_from_parallel(network)
    results: list[Tensor] = []

    def replace(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        assert isinstance(head, nn.Linear)  # in every architecture that `anatomy` knows
        hidden = args[0][positions.selected]
        output = OutputEmbedding(head.weight, head.bias, _shape_of_logits(inner.config))
        results.append(compute(ResponseStates(hidden, output, positions.targets)))
        return (hidden[:0],)  # the output embedding itself has nothing left to do

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        output.logits = results.pop()
        return output

    with (
        inner.get_output_embeddings().register_forward_pre_hook(replace),
        # Before the hooks of wrappers, so that they see the result.
        inner.register_forward_hook(leave, prepend=True),
    ):
        return _forward(network, batch, positions).logits


def _as_read(network: nn.Module, batch: Batch) -> Batch:
    """The batch as this network reads it: padded, or packed; response tokens are in the same order in both."""
    packs = vars(extract_model_from_parallel(network)).get(PACKS, False)
    return packed(batch) if packs and not batch.arguments else batch


def _positions(batch: Batch) -> _Positions:
    predicts = batch.response_mask[:, 1:]  # [batch, time - 1]: position t predicts token t + 1
    kept = predicts.any(dim=0).nonzero().squeeze(1)
    selected = predicts[:, kept]
    return _Positions(kept, selected, batch.input_ids[:, 1:][:, kept][selected])


def _forward(network: PreTrainedModel, batch: Batch, positions: _Positions) -> Any:
    # `logits_to_keep` cuts the same positions out of every row; rows of different lengths need different ones, which
    # a hook on the output embedding selects.
    return network(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        logits_to_keep=positions.kept,
        use_cache=False,
        **batch.arguments,
    )


def _shape_of_logits(config: PreTrainedConfig) -> Callable[[Tensor], Tensor]:
    """What an architecture does to its logits; a test compares every architecture with its own forward."""
    divisor = getattr(config, "logits_scaling", None)  # Granite
    if divisor is not None:
        return lambda logits: logits / divisor
    for name in ("lm_head_multiplier", "logit_scale"):  # Falcon-H1; Cohere 2
        factor = getattr(config, name, None)
        if factor is not None:
            return lambda logits: logits * factor
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    if cap is not None:
        return lambda logits: torch.tanh(logits / cap) * cap
    return lambda logits: logits
