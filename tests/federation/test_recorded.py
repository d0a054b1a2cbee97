"""What is written down of parties' answers, and what is asked again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedbpt_api.errors import FedbptError
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.messages import MessageError
from fedbpt_api.federation.recorded import Records

QUESTION, OTHER = b"a question", b"another one"


@dataclass
class Party:
    """Answers with what it is told to; None does not."""

    says: list[str | None]
    asked: list[bytes] = field(default_factory=list)

    async def exchange(self, question: bytes) -> bytes:
        self.asked.append(question)
        if (kind := self.says.pop(0)) is None:
            raise TimeoutError
        return seal(Envelope(kind, {}))


async def ask(records: Records, party: Party, question: bytes = QUESTION, name: str = "a") -> str:
    """What a party is heard to answer; "" for nothing."""
    try:
        return opened(await records.of(name, party.exchange)(question)).kind
    except (FedbptError, TimeoutError):
        return ""


@pytest.mark.parametrize("failure", [None, "failed", "quota", "stopped"])
@pytest.mark.parametrize("gone_on", [True, False])
async def test_a_failure_is_final_only_once_the_run_has_gone_on(
    failure: str | None, gone_on: bool, tmp_path: Path
) -> None:
    records = Records(tmp_path, opened=True)
    assert await ask(records, Party([failure])) == (failure or "")
    other = Party(["sums"])
    assert await ask(records, other, name="b") == "sums"  # that others answer decides nothing
    if gone_on:
        records.go_on(["a"])
    records.close()
    again = Records(tmp_path, opened=True)
    party = Party(["sums"])
    assert await ask(again, party) == ((failure or "") if gone_on else "sums")
    assert party.asked == ([] if gone_on else [QUESTION])
    again.close()


async def test_the_run_goes_on_without_those_that_are_named_or_without_all(tmp_path: Path) -> None:
    records = Records(tmp_path, opened=True)
    for name in ("a", "b"):
        await ask(records, Party([None]), name=name)
    records.go_on([])
    records.go_on(["a"])
    sizes = [(tmp_path / f"answers-{name}.records").read_bytes().rstrip(b"\0") for name in ("a", "b")]
    assert len(sizes[0]) > len(sizes[1])
    records.go_on(["all of them as one"])
    assert len((tmp_path / "answers-b.records").read_bytes().rstrip(b"\0")) > len(sizes[1])
    records.close()


async def test_who_cannot_take_part_is_asked_anew_what_it_is(tmp_path: Path) -> None:
    """Its user may mend that; whose answers are more than that keeps them."""
    records = Records(tmp_path)
    assert [await ask(records, Party(["facts"]), name=name) for name in "ab"] == ["facts"] * 2
    b = records._open["b"]
    assert opened(await Party(["sums"]).exchange(OTHER)).kind == "sums"
    b._exchange = Party(["sums"]).exchange
    await b(OTHER)
    records.forget("a")
    records.forget("b")
    records.close()
    again = Records(tmp_path)
    assert await ask(again, Party(["other facts"]), name="a") == "other facts"
    assert await ask(again, Party([]), name="b") == "facts"
    again.close()


async def test_an_empty_answer_is_none(tmp_path: Path) -> None:
    """Now, and when the run that went on without it is computed anew."""

    async def nothing(question: bytes) -> bytes:
        return b""

    records = Records(tmp_path, opened=True)
    for _ in range(2):
        with pytest.raises(FedbptError) as failed:
            await records.of("a", nothing)(QUESTION)
        assert not isinstance(failed.value, MessageError)
        records.go_on()
        records.close()
        records = Records(tmp_path, opened=True)


async def test_nothing_is_final_before_the_run_is_open(tmp_path: Path) -> None:
    records = Records(tmp_path)
    await ask(records, Party(["failed"]))
    records.go_on(None)
    records.close()
    again = Records(tmp_path)
    assert await ask(again, Party(["facts"])) == "facts"
    again.close()


async def test_what_was_answered_the_second_time_did_not_fail(tmp_path: Path) -> None:
    records, party = Records(tmp_path, opened=True), Party([None, "sums", None])
    exchange = records.of("a", party.exchange)
    with pytest.raises(TimeoutError):
        await exchange(QUESTION)
    assert opened(await exchange(QUESTION)).kind == "sums"
    with pytest.raises(TimeoutError):
        await exchange(OTHER)
    records.go_on(None)
    records.close()
    again, silent = Records(tmp_path, opened=True), Party(["late"])
    exchange = again.of("a", silent.exchange)
    assert opened(await exchange(QUESTION)).kind == "sums"
    with pytest.raises(FedbptError, match="no answer, when it was asked first"):
        await exchange(OTHER)
    assert opened(await exchange(QUESTION)).kind == "late"
    again.close()
