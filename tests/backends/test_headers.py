"""Headers: the environment's values, and nothing that a config should not hold."""

import pytest

from fedbpt_api.errors import ConfigError
from fedbpt_backends.headers import bearer, filled

SECRET = "hunter2-do-not-show"


def test_variables_are_filled_in_and_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST", f" {SECRET}\n")
    monkeypatch.setenv("SECOND", "two")
    sent, secrets = filled(
        {"X-Both": "${FIRST} and ${SECOND}", "X-Team": "risk", "X-Empty": "", "X-No": "$FIRST"}
    )
    assert sent == {"X-Both": f"{SECRET} and two", "X-Team": "risk", "X-Empty": "", "X-No": "$FIRST"}
    assert secrets == [SECRET, "two"]


def test_a_bearer_token_stands_beside_a_configs_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", SECRET)
    headers = {"X-Token": "for ${A_KEY}"}
    assert bearer("A_KEY", headers) == {"X-Token": f"for {SECRET}", "Authorization": f"Bearer {SECRET}"}
    assert bearer(None, headers) == {"X-Token": f"for {SECRET}"}


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"X-Token": "${NOT_THERE}"}, r"backend\.headers: the environment variable NOT_THERE is not set"),
        ({"authorization": "Bearer abc"}, "expected authorization to name an environment variable"),
        ({"X-Token": "${BROKEN}"}, "the value of X-Token holds characters"),
        ({"two words": "x"}, "'two words' is no header"),
        ({"X-Number": 3}, "its value is no text"),
    ],
)
def test_what_cannot_be_sent_is_refused_and_not_shown(
    headers: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", f"{SECRET}\nHost: evil")
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(ConfigError, match=said) as caught:
        bearer(None, headers)
    assert SECRET not in f"{caught.value} {caught.value.hint}"
