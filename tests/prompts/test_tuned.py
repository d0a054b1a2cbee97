"""The tuned prompt's file: it comes back as it was, and no file of others can do more than be refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedbpt_api.errors import RunFolderError
from fedbpt_api.prompts.tuned import TunedPrompt, read_json, write_json
from fedbpt_api.task import LabelWords, Template, template_problems
from fedbpt_api.verbalizer import Committee, Reading, Verbalizer
from fedbpt_api.verbalizer.committee import label_logits

WORDS = (11, 12, 13, 40, 41)
GROUPS = ((0, 1), (2,))


def weighted() -> Verbalizer:
    rng = np.random.default_rng(0)
    return Verbalizer(
        words=WORDS,
        groups=GROUPS,
        scale=0.9,
        bias=np.array([0.25, -0.125]),
        weights=rng.normal(size=(2, 5)),
        mean=rng.normal(size=5),
        spread=rng.uniform(0.5, 2.0, size=5),
        kind="weighted",
    )


def tuned(verbalizer: Reading) -> TunedPrompt:
    return TunedPrompt(
        text='Décide: "good" or <bad>? 日本 \n',
        ids=(1, 2, 300, 49151),
        template=Template.parse("Tweet: {text}\nSentiment:"),
        label_words=LabelWords(("negative", "positive"), ((" negative", " bad"), (" positive",))),
        word_texts=(" negative", " bad", " positive", " the", "\ufffd"),
        verbalizer=verbalizer,
        model={"kind": "toy", "name": "toy", "fingerprint": "toy-0"},
        space={"space": "codebook", "codebook": "0123", "positions": 4},
        scores={"held_out_loss": 0.1 + 0.2, "dev_accuracy": 2 / 3},
    )


VERBALIZERS = {
    "words": Verbalizer.from_words(WORDS, GROUPS),
    "bias": Verbalizer.from_bias(WORDS, GROUPS, 0.3, np.array([1 / 3, -1 / 7])),
    "weighted": weighted(),
}
JOINED = replace(
    tuned(Committee((weighted(), VERBALIZERS["bias"], VERBALIZERS["words"]))),
    joined=(("", ()), ("Mood? ", (5, 6))),
)
PLAIN: dict[str, Any] = orjson.loads(orjson.dumps(tuned(weighted()).to_dict()))
TOGETHER: dict[str, Any] = orjson.loads(orjson.dumps(JOINED.to_dict()))


@pytest.mark.parametrize("kind", VERBALIZERS)
def test_a_prompt_comes_back_to_the_last_bit(tmp_path: Path, kind: str) -> None:
    prompt = tuned(VERBALIZERS[kind])
    prompt.save(tmp_path / "prompt.json")
    assert TunedPrompt.load(tmp_path / "prompt.json") == prompt
    assert TunedPrompt.load(tmp_path) == prompt
    assert TunedPrompt.load(str(tmp_path)) == prompt
    assert [path.name for path in tmp_path.iterdir()] == ["prompt.json"]


def test_joined_prompts_come_back_each_with_its_verbalizer(tmp_path: Path) -> None:
    JOINED.save(tmp_path / "prompt.json")
    assert TunedPrompt.load(tmp_path) == JOINED
    data = JOINED.to_dict()
    assert data["format"] == 3
    assert [part["verbalizer"]["kind"] for part in (data, *data["joined"])] == ["weighted", "bias", "words"]
    del data["joined"][1]["verbalizer"]
    with pytest.raises(RunFolderError, match="damaged"):
        TunedPrompt.from_dict(data)
    del data["joined"][0]["verbalizer"]  # not taken for one that reads the mean
    with pytest.raises(RunFolderError, match="damaged"):
        TunedPrompt.from_dict(data)
    data["joined"] = data["joined"][:1]
    data["joined"][0]["verbalizer"] = data["verbalizer"] | {"words": [1, 2, 3, 4, 5]}
    with pytest.raises(RunFolderError, match="same words"):
        TunedPrompt.from_dict(data)


def test_joined_prompts_of_an_earlier_version_have_one_verbalizer(tmp_path: Path) -> None:
    old = replace(JOINED, verbalizer=weighted())
    data = old.to_dict()
    assert data["format"] == 2 and all(set(part) == {"text", "ids"} for part in data["joined"])
    assert TunedPrompt.from_dict(orjson.loads(orjson.dumps(data))) == old


@given(
    st.text(st.characters(codec="utf-8")),
    st.lists(st.integers(0, 2**20)).map(tuple),
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.floats(-1e9, 1e9)),
)
def test_any_prompt_comes_back(text: str, ids: tuple[int, ...], scores: dict[str, float]) -> None:
    whole = tuned(VERBALIZERS["bias"]).to_dict() | {"prompt": {"text": text, "ids": ids}, "scores": scores}
    prompt = TunedPrompt.from_dict(orjson.loads(orjson.dumps(whole)))
    assert (prompt.text, prompt.ids, prompt.scores) == (text, ids, scores)
    assert TunedPrompt.from_dict(orjson.loads(orjson.dumps(prompt.to_dict()))) == prompt


def test_a_person_can_read_the_file(tmp_path: Path) -> None:
    tuned(VERBALIZERS["words"]).save(tmp_path / "prompt.json")
    written = (tmp_path / "prompt.json").read_text(encoding="utf-8")
    assert 'Décide: \\"good\\" or <bad>? 日本 \\n' in written
    assert '"template": "{prompt}Tweet: {text}\\nSentiment:"' in written
    assert orjson.loads(written)["labels"] == {"negative": [" negative", " bad"], "positive": [" positive"]}


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "prompt.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path, 100) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


# Hostile files ----------------------------------------------------------------------------------


def refused(path: Path, said: str) -> None:
    with pytest.raises(RunFolderError, match=said) as caught:
        TunedPrompt.load(path)
    assert caught.value.hint


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing.json", "does not exist")
    refused(tmp_path, "does not exist")
    empty = tmp_path / "empty.json"
    empty.touch()
    refused(empty, "not valid JSON")
    refused(empty / "prompt.json", "empty.json")  # a file where a folder should be
    (tmp_path / "prompt.json").mkdir()
    refused(tmp_path, "prompt.json")


def test_a_file_that_is_far_too_large_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "prompt.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    refused(path, "more than 4000000 bytes")


def test_another_format_is_named(tmp_path: Path) -> None:
    for number in (4, "1", None, [1]):
        path = tmp_path / "prompt.json"
        write_json(path, PLAIN | {"format": number})
        refused(path, "format")


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b'"prompt"', b"[[1]]", b"true"])
def test_json_that_is_not_an_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prompt.json").write_bytes(content)
    refused(tmp_path, "prompt")


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=6)
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abi{}", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(data: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON value."""
    if path:
        yield path
    if isinstance(data, dict):
        for key, value in data.items():
            yield from places(value, (*path, key))
    if isinstance(data, list):
        for index, value in enumerate(data):
            yield from places(value, (*path, index))


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """A prompt file's content with one to three places lost, replaced, repeated or swapped."""
    data: Any = copy.deepcopy(draw(st.sampled_from([PLAIN, TOGETHER])))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(sorted(places(data), key=repr)))
        inner = data
        for step in way:
            inner = inner[step]
        match draw(st.sampled_from(["lose", "replace", "repeat"])):
            case "lose":
                del inner[last]
            case "replace":
                inner[last] = draw(anything)
            case "repeat":
                inner[last] = [inner[last], inner[last]]
        if not data:
            break
    return data


def load(tmp_path: Path, content: bytes) -> TunedPrompt | None:
    (tmp_path / "prompt.json").write_bytes(content)
    try:
        return TunedPrompt.load(tmp_path)
    except RunFolderError:
        return None


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged())
def test_a_damaged_file_is_refused_as_such_and_never_otherwise(tmp_path: Path, data: Any) -> None:
    load(tmp_path, orjson.dumps(data))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=50) | anything.map(orjson.dumps), st.integers(0, 2000), st.integers(0, 2000))
def test_bytes_of_any_kind_are_refused_as_such_and_never_otherwise(
    tmp_path: Path, junk: bytes, start: int, end: int
) -> None:
    load(tmp_path, junk)
    whole = orjson.dumps(PLAIN)
    load(tmp_path, whole[:start] + junk + whole[max(start, end) :])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged())
def test_what_is_accepted_can_be_used(tmp_path: Path, data: Any) -> None:
    """`predict` works from this file alone, so its parts must fit each other."""
    prompt = load(tmp_path, orjson.dumps(data))
    if prompt is None:
        return
    labels, groups = prompt.label_words, prompt.verbalizer.groups
    assert len(labels.labels) == len(labels.words) == len(groups) >= 2
    assert len(prompt.word_texts) == len(prompt.verbalizer.words)
    assert not template_problems(prompt.template.source)
    assert all(0 <= token < 2**31 for token in (*prompt.ids, *prompt.verbalizer.words))
    assert {"kind", "name", "fingerprint"} <= set(prompt.model)
    assert all(math.isfinite(score) for score in prompt.scores.values())
    with np.errstate(all="ignore"):  # weights may be as large as a float can be
        answer = (
            np.zeros((1, len(prompt.verbalizer.words))),
            np.ones((1, len(prompt.verbalizer.words)), bool),
        )
        logits = label_logits(prompt.verbalizer, [answer] * (1 + len(prompt.joined)))
    assert logits.shape == (1, len(labels.labels))
    assert TunedPrompt.from_dict(orjson.loads(orjson.dumps(prompt.to_dict()))) == prompt


def test_a_word_below_zero_stands_at_its_own_place() -> None:
    data = tuned(Verbalizer.from_words((-1, -2, *WORDS[2:]), GROUPS)).to_dict()
    assert TunedPrompt.from_dict(data).verbalizer.words[:2] == (-1, -2)
    for words in ((-2, -1, *WORDS[2:]), (-1, -1, *WORDS[2:]), (-9, *WORDS[1:])):
        with pytest.raises(RunFolderError, match="token ids do not fit"):
            TunedPrompt.from_dict(data | {"verbalizer": data["verbalizer"] | {"words": list(words)}})
