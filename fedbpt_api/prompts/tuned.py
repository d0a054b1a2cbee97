"""The tuned prompt as one readable JSON file: all that `predict` and `eval` need, and nothing private."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fedbpt_api.errors import ConfigError, FedbptError, RunFolderError
from fedbpt_api.prompts.soft import rebuild
from fedbpt_api.prompts.space import AnyPrompt, Ids
from fedbpt_api.scoring.backend import Backend
from fedbpt_api.task import LabelWords, Template
from fedbpt_api.verbalizer import Reading, Verbalizer
from fedbpt_api.verbalizer.committee import together, verbalizers_of

FORMAT = 3
_MEAN = 2  # joined prompts whose mean is read by one verbalizer: with noise, and in earlier versions
_SINGLE = 1  # what is written without joined prompts, so that earlier versions can read it
_JOINED = "\n--- and ---\n"
_EMPTY = "(no prompt)"
_LIMIT = 4_000_000  # bytes; the largest honest file (128 words, 20 labels) is a twentieth of that


@dataclass(frozen=True, slots=True)
class TunedPrompt:
    """A prompt with everything that gives its scores a meaning.

    Attributes:
        text: The prompt as text.
        ids: The prompt as token ids of `model`.
        template: Where text and prompt stand.
        label_words: Labels and their words.
        word_texts: The T named tokens as text, label words first; the whole of a word that has a number
            below 0 (-1 - i for the i-th), because it begins as others do.
        verbalizer: From their log-probabilities to label probabilities; a committee of one for each prompt,
            where prompts are joined (one for their mean with noise, and in files of earlier versions).
        model: Kind, name and fingerprint of the backend it was tuned on.
        space: Identity of the prompt space (codebook, positions), or empty for a prompt given by hand.
        scores: What it reached, such as {"dev_loss": 0.71, "dev_accuracy": 0.7}.
        fallback: Label words with a bias, for servers that do not answer for all words.
        soft: For a continuous prompt, z and how A is drawn; `ids` are those that it started from.
        joined: Prompts that answer together with this one, as text and ids: each text is asked once a prompt.
    """

    text: str
    ids: Ids
    template: Template
    label_words: LabelWords
    word_texts: tuple[str, ...]
    verbalizer: Reading
    model: Mapping[str, str]
    space: Mapping[str, object]
    scores: Mapping[str, float]
    fallback: Verbalizer | None = None
    soft: Mapping[str, Any] | None = None
    joined: tuple[tuple[str, Ids], ...] = ()

    @property
    def shown(self) -> str:
        """The prompt for people, with those that are joined to it."""
        return shown_together([self.text, *(text for text, _ in self.joined)])

    def to_dict(self) -> dict[str, Any]:
        first, *readers = [verbalizer.to_dict() for verbalizer in verbalizers_of(self.verbalizer)]
        joined: dict[str, Any] = {"joined": [{"text": text, "ids": list(ids)} for text, ids in self.joined]}
        for part, reader in zip(joined["joined"], readers, strict=False):
            part["verbalizer"] = reader
        return {
            "format": (FORMAT if readers else _MEAN) if self.joined else _SINGLE,
            "prompt": {"text": self.text, "ids": list(self.ids)},
            **(joined if self.joined else {}),
            "template": self.template.source,
            "labels": dict(zip(self.label_words.labels, map(list, self.label_words.words), strict=True)),
            "scores": dict(self.scores),
            "model": dict(self.model),
            "space": dict(self.space),
            "words": list(self.word_texts),
            "verbalizer": first,
            "fallback": self.fallback.to_dict() if self.fallback else None,
            "soft": dict(self.soft) if self.soft else None,
        }

    async def on(self, backend: Backend) -> tuple[AnyPrompt, ...]:
        """What that model is asked with: the prompt's token ids, or its vectors, and those joined to it.

        Raises:
            ConfigError: It is a continuous prompt, and the backend takes none or has other embeddings.
        """
        if self.soft is None:
            return (self.ids, *(ids for _, ids in self.joined))
        table = await backend.token_table() if backend.info.soft else None
        if table is None:
            raise ConfigError(
                f"this prompt is continuous, and {backend.info.model} takes no vectors",
                "ask a vLLM that was started with --enable-prompt-embeds, and name the model's folder in "
                "backend.weights",
            )
        try:
            return (rebuild(self.ids, self.soft, table),)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ConfigError(
                f"this prompt was made for embeddings of another shape ({type(error).__name__}: {error})",
                f"use the model it was tuned on: {self.model['name']}",
            ) from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TunedPrompt:
        """Raises RunFolderError where `data` is not such a file's content."""
        if not isinstance(data, Mapping):
            raise RunFolderError("it holds no JSON object", "is this really a prompt file?")
        if data.get("format") not in (_SINGLE, _MEAN, FORMAT):
            raise RunFolderError(
                f"this prompt file has format {data.get('format')!r}, this version reads up to {FORMAT}",
                "use the version of fedbpt_api that wrote it",
            )
        try:
            labels = data["labels"]
            joined = data.get("joined", ())
            several = joined if data["format"] == FORMAT else ()
            readers = [data["verbalizer"], *(part["verbalizer"] for part in several)]
            prompt = cls(
                text=str(data["prompt"]["text"]),
                ids=tuple(int(i) for i in data["prompt"]["ids"]),
                template=Template.parse(str(data["template"])),
                label_words=LabelWords(tuple(labels), tuple(tuple(map(str, w)) for w in labels.values())),
                word_texts=tuple(map(str, data["words"])),
                verbalizer=together([Verbalizer.from_dict(reader) for reader in readers]),
                model={str(k): str(v) for k, v in data["model"].items()},
                space=dict(data["space"]),
                scores={str(k): float(v) for k, v in data["scores"].items()},
                fallback=Verbalizer.from_dict(data["fallback"]) if data.get("fallback") else None,
                soft=dict(data["soft"]) if data.get("soft") else None,
                joined=tuple((str(part["text"]), tuple(int(i) for i in part["ids"])) for part in joined),
            )
            prompt._check()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, FedbptError) as error:
            raise RunFolderError(
                f"the prompt file is damaged: {type(error).__name__} {error}", "copy it again from its source"
            ) from error
        return prompt

    def _check(self) -> None:
        """Raise ValueError where the parts do not fit each other."""
        fits = {
            "labels and their groups": len(self.label_words.labels) == len(self.verbalizer.groups) >= 2,
            "words and their texts": len(self.word_texts) == len(self.verbalizer.words),
            "fallback": self.fallback is None or len(self.fallback.groups) == len(self.verbalizer.groups),
            "label words": [len(words) for words in self.label_words.words]
            == [len(group) for group in self.verbalizer.groups],
            "joined prompts": (self.soft is None or not self.joined)
            and len(verbalizers_of(self.verbalizer)) in (1, 1 + len(self.joined)),
            "token ids": all(0 <= i < 2**31 for ids in (self.ids, *(i for _, i in self.joined)) for i in ids)
            and all(0 <= i < 2**31 or i == -1 - at for at, i in enumerate(self.verbalizer.words)),
            "model": {"kind", "name", "fingerprint"} <= set(self.model),
            "scores": all(math.isfinite(score) for score in self.scores.values()),
        }
        for what, fit in fits.items():
            if not fit:
                raise ValueError(f"its {what} do not fit")

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path | str) -> TunedPrompt:
        """Read a prompt file, or the one in a run folder."""
        path = Path(path)
        return cls.from_dict(read_json(path / "prompt.json" if path.is_dir() else path, _LIMIT))


def write_json(path: Path, data: object) -> None:
    """Write indented JSON to `path` atomically."""
    temporary = path.with_name(path.name + ".tmp")
    text = orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    with temporary.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # its name must not be on disk before what it holds
    temporary.replace(path)


def read_json(path: Path, limit: int) -> Any:
    """Read JSON of at most `limit` bytes.

    Raises:
        RunFolderError: No such file, too large, or not JSON.
    """
    try:
        if path.stat().st_size > limit:
            raise RunFolderError(f"{path} has more than {limit} bytes", "it was not written by fedbpt_api")
        return orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise RunFolderError(
            f"{path} does not exist", "is this a run folder, and did the run get that far?"
        ) from None
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}", "is it a file?") from error
    except orjson.JSONDecodeError as error:
        raise RunFolderError(f"{path} is not valid JSON: {error}", "copy it again from its source") from error


def shown_together(texts: Sequence[str]) -> str:
    """Prompts that answer together, for people; one alone is shown as it is."""
    return texts[0] if len(texts) == 1 else _JOINED.join(text or _EMPTY for text in texts)
