"""What a party tells of itself before it is asked anything: its numbers of texts, and what its model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedbpt_api.federation import plain
from fedbpt_api.federation.messages import MAX_CLIENT, MessageError
from fedbpt_api.prompts.space import Ids
from fedbpt_api.scoring.backend import BackendInfo


@dataclass(frozen=True, slots=True)
class Facts:
    """What a party tells of itself before it is asked anything.

    Attributes:
        name: Its name.
        train, dev, test: Numbers of texts.
        labels: Training texts of each label.
        tokens: What stands for the label words at its server.
        longest: Tokens of its longest input without a prompt.
        info: What its server is.
        limit: Scored examples that it will spend at most; None where it does not say.
    """

    name: str
    train: int
    dev: int
    test: int
    labels: tuple[int, ...]
    tokens: Ids
    longest: int
    info: BackendInfo
    limit: int | None

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Facts:
        """From what `told` gives.

        Raises:
            MessageError: Something is missing, or no such number.
        """
        try:
            info = BackendInfo(
                kind=str(fields["kind"]),
                model=str(fields["model"]),
                fingerprint=str(fields["fingerprint"]),
                context=plain.whole(fields["context"], 1),
                max_words=plain.whole(fields["max_words"], 0),
                noise=plain.finite(fields["noise"]),
                block=plain.whole(fields["block"], 1),
                inputs=tuple(plain.whole(n) for n in fields["inputs"]),
            )
            found = cls(
                name=str(fields["name"]),
                train=plain.whole(fields["train"]),
                dev=plain.whole(fields["dev"]),
                test=plain.whole(fields["test"]),
                labels=tuple(plain.whole(n) for n in fields["labels"]),
                tokens=plain.to_words(fields["tokens"]),
                longest=plain.whole(fields["longest"]),
                info=info,
                limit=None if fields["scored"] is None else plain.whole(fields["scored"], 1),
            )
            if sum(found.labels) != found.train or not 0 < len(found.name) <= MAX_CLIENT:
                raise ValueError("its labels do not add up to its texts, or its name is too long")
            return found
        except (KeyError, TypeError, ValueError) as error:
            raise MessageError(f"a party does not say what it is: {error}") from error

    def told(self) -> dict[str, Any]:
        """As plain values."""
        info = self.info
        return {
            "name": self.name,
            "train": self.train,
            "dev": self.dev,
            "test": self.test,
            "labels": list(self.labels),
            "tokens": list(self.tokens),
            "longest": self.longest,
            "scored": self.limit,
            "kind": info.kind,
            "model": info.model,
            "fingerprint": info.fingerprint,
            "context": info.context,
            "max_words": info.max_words,
            "noise": info.noise,
            "block": info.block,
            "inputs": list(info.inputs),
        }
