"""Retrieval texts: what they say, how long they are, and where a run keeps them."""

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import tiny
from radistill.data.prepare import prepare
from radistill.data.records import RETRIEVAL, DataSplits, Record
from radistill.data.retrieval import retrieval_records
from radistill.data.settings import JsonlData, RetrievalSettings
from radistill.errors import RadistillError

SETTINGS = RetrievalSettings(contexts=[300, 700], train=3, calibration=4, heldout=5)


def records(split: str = "calibration", seed: int = 0, settings: RetrievalSettings = SETTINGS) -> list[Record]:
    return retrieval_records(tiny.tokenizer(), settings, split, seed)


@pytest.mark.parametrize("split", ["train", "calibration", "heldout"])
def test_every_number_that_is_asked_for_stands_in_the_text(split: str) -> None:
    found = records(split)
    assert len(found) == 2 * getattr(SETTINGS, split)
    for record in found:
        text, response = record.example.text, record.example.response
        assert text is not None
        assert response is not None
        stated = dict(re.findall(r"^(.+) was paid (\d{5})\.$", text, flags=re.MULTILINE))
        asked = re.findall(r"^(.+) was paid (\d{5})$", (text + response).replace(".\n", "\n"), flags=re.MULTILINE)
        questions = [pair for pair in asked if pair[0] in stated][len(stated) :]
        assert questions
        assert all(stated[key] == number for key, number in questions)
        assert len(questions) == (1 if split != "train" else min(8, len(stated)))
        assert len(set(questions)) == len(questions)
        document = record.document
        assert tiny.tokenizer().decode(document.tokens[document.response_start :]) == response
        assert tiny.tokenizer().decode(document.tokens[: document.response_start]) == text


def test_tokens_are_those_of_the_whole_text_and_no_end() -> None:
    """Also where a token spans the border and the tokenizer ends every text, as one that is made of SentencePiece."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Replace(" ", "_")])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"])
    backend.train_from_iterator([str(record.example.text) for record in records()], trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    ends = [("<s>", 1), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    for record in retrieval_records(tokenizer, SETTINGS, "heldout", 0):
        text, document = f"{record.example.text}{record.example.response}", record.document
        assert document.tokens == (1, *whole(text)["input_ids"])
        response = "".join(tokenizer.convert_ids_to_tokens(document.tokens[document.response_start :]))
        assert text.replace(" ", "_").endswith(response)
        assert re.fullmatch(r"\D*\d{5}", response)


def test_a_text_is_the_longest_that_fits() -> None:
    for record in records():
        length = next(length for length in SETTINGS.contexts if f" {length} " in record.document.id)
        assert length - 60 < len(record.document.tokens) <= length  # a line of this tokenizer has up to 50


def test_texts_follow_from_the_seed_and_no_two_splits_share_one() -> None:
    assert records() == records()
    texts = [record.example.text for split in ("train", "calibration", "heldout") for record in records(split)]
    texts += [record.example.text for record in records(seed=1)]
    assert len(set(texts)) == len(texts)


def test_half_of_the_texts_state_nothing_but_facts() -> None:
    shares = {}
    for record in records():
        lines = str(record.example.text).splitlines()[:-2]
        shares[record.document.id[-1]] = sum(" was paid " in line for line in lines) / len(lines)
    assert shares["0"] == shares["2"] == 1
    assert max(shares["1"], shares["3"]) < 0.2


@pytest.mark.parametrize(
    ("contexts", "complaint"),
    [
        ([4096], r"data\.retrieval\.contexts: 4096 tokens are more than the 512 of data\.max_length or the model's"),
        ([64], r"data\.retrieval\.contexts: no text fits into 64 tokens; name longer ones"),
    ],
)
def test_lengths_that_cannot_be_are_refused_before_a_response_is_written(
    tmp_path: Path, contexts: list[int], complaint: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"prompt": "What is {n}?"}}\n' for n in range(9)))
    retrieval = RetrievalSettings(contexts=contexts, calibration=60)
    settings = JsonlData(path=path, train=4, calibration=2, heldout=3, retrieval=retrieval)
    with pytest.raises(RadistillError, match=complaint):
        prepare(tiny.model("llama"), settings, seed=0, folder=tmp_path / "data")
    assert not (tmp_path / "data" / "responses.jsonl").exists()


def test_a_run_keeps_them_beside_its_documents(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"prompt": "What is {n}?", "response": "It is {n}."}}\n' for n in range(9)))
    settings = JsonlData(path=path, train=4, calibration=2, heldout=3, retrieval=SETTINGS)
    model = tiny.model("llama", max_position_embeddings=1024)
    found = prepare(model, settings, seed=0, folder=tmp_path / "data")
    assert [len(found.records(split)) for split in ("train", "calibration", "heldout", *RETRIEVAL)] == [10, 2, 3, 8, 10]
    assert DataSplits.load(tmp_path / "data") == found
    without = prepare(model, settings.model_copy(update={"retrieval": None}), seed=0, folder=tmp_path / "data")
    assert [len(without.records(split)) for split in ("train", "calibration", "heldout", *RETRIEVAL)] == [4, 2, 3, 0, 0]
    assert DataSplits.load(tmp_path / "data") == without
