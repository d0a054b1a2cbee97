"""Files of every released format, kept here and read for ever; a new format adds one, none is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedbpt_api.scoring.backend import Usage
from fedbpt_api.scoring.facts import Facts, Remembering, known_info
from fedbpt_api.scoring.journal import Journal, read_journal
from fedbpt_api.scoring.scorer import Stopped
from toy import ToyBackend

GOLDEN = Path(__file__).with_name("golden")
SECRET = b"golden secret"


def test_the_journal_of_version_1() -> None:
    named, lists, cost, stored = read_journal(GOLDEN / "journal-1.journal")
    assert named.keys == tuple(bytes([i]) * 16 for i in range(3))
    np.testing.assert_array_equal(np.array(named.answers), [[-0.5, -1.25], [0.75, -2.0], [-3.0, -0.0625]])
    assert (named.usage, named.seconds) == (Usage(3, 120, 64, 1), 1.5)
    assert (lists.keys, lists.answers) == ((b"a" * 16, b"b" * 16), ({7: -0.25, 300: -4.5}, {}))
    assert (cost.keys, cost.answers, cost.usage, cost.seconds) == ((), (), Usage(0, 33, 0, 1), 3.0)
    np.testing.assert_array_equal(stored.answers[0], [-1.0, -2.0, -3.0])
    past = Journal(GOLDEN / "journal-1.journal", SECRET, Stopped()).past
    assert (past.scored, past.lost(), past.seconds) == (5, Usage(0, 33, 0, 1), 4.0)
    (pair,) = past.find([b"s" * 16])
    assert pair is not None and past.usage([pair]) == Usage()
    assert past.find([b"s" * 16], test=True) == [pair]  # it did not say whose it was


def test_the_journal_of_version_2() -> None:
    """Since then a record says whether it was the test's."""
    records = list(read_journal(GOLDEN / "journal-2.journal"))
    assert [len(record.keys) for record in records] == [2, 1, 0, 0]
    np.testing.assert_array_equal(records[1].answers[0], [-3.0, -0.0625])
    past = Journal(GOLDEN / "journal-2.journal", SECRET, Stopped()).past
    assert (past.paid(), past.lost()) == (Usage(2, 113, 0, 2), Usage(0, 33, 0, 1))
    assert (past.paid(test=True), past.lost(test=True)) == (Usage(1, 61, 8, 2), Usage(0, 21, 0, 1))
    assert (past.scored, past.seconds) == (3, 3.5)
    (pair,) = past.find([b"t" * 16], test=True)
    assert pair is not None and past.usage([pair]) == Usage(1, 40, 8, 1)


async def test_the_facts_of_version_1() -> None:
    facts = Facts(GOLDEN / "facts-1.facts", SECRET, writable=False)
    backend, toy = Remembering(None, facts, "server"), ToyBackend()
    assert await backend.tokenize("Is the mood good or bad?\n") == await toy.tokenize(
        "Is the mood good or bad?\n"
    )
    assert await backend.detokenize([300, 301]) == await toy.detokenize([300, 301])
    info = known_info(facts, "server")
    assert info is not None and (info.kind, info.fingerprint, info.context) == ("toy", "toy-0", 512)
