"""Everything that ``fedbpt probe`` asks of a server, in its order, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbpt_api.scoring.backend import TokenTable
from fedbpt_backends.advice import Advice, advise, backend_table
from fedbpt_backends.asking import Finding
from fedbpt_backends.checkpoint import read_table
from fedbpt_backends.dialects import Chat, Dialect, LlamaNative, SglangNative
from fedbpt_backends.headers import bearer
from fedbpt_backends.http_json import Http
from fedbpt_backends.identify import LLAMA, SGLANG, VLLM, Identity, by_fingerprint, identify, wants_key
from fedbpt_backends.pacing import Pacer
from fedbpt_backends.probe import CHOICES, Probe

_LONGEST = 50_000  # entries of a list: more is no cheap request


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found out about a server.

    Attributes:
        url: Where it is.
        identity: Which server it is.
        topics: Findings by topic, in the order of the questions.
        advice: What follows for a run.
        backend: The ``[backend]`` table of a configuration for it; empty where nothing can score.
        requests: Requests sent in all.
    """

    url: str
    identity: Identity
    topics: dict[str, tuple[Finding, ...]]
    advice: Advice
    backend: dict[str, str]
    requests: int

    @property
    def findings(self) -> dict[str, Finding]:
        return {finding.name: finding for topic in self.topics.values() for finding in topic}


async def survey(
    url: str,
    model: str | None = None,
    *,
    api_key_env: str | None = None,
    labels: Sequence[str] = CHOICES,
    timeout: float = 60.0,
    progress: Callable[[str], None] = lambda topic: None,
) -> Survey:
    """Ask a server everything.

    Args:
        url: Its address, with or without ``/v1``.
        model: The served model that is meant; the first one where None.
        api_key_env: Environment variable that holds the key.
        labels: Label words to look at.
        timeout: Seconds without a byte after which a request counts as stalled.
        progress: Told each topic before its questions.

    Raises:
        ConfigError: The address is none, or the variable is not set.
        BackendError: It does not answer, wants a key, or does not say which models it serves.
    """
    http = Http(url.rstrip("/").removesuffix("/v1"), Pacer(1, 1), bearer(api_key_env), timeout)
    try:
        progress("which server it is")
        seen = await identify(http, model)
        probe = Probe(http, seen.model, server=seen.server)
        routes = await _routes(probe, seen)
        seen = by_fingerprint(seen, probe.system_fingerprint)
        probe.server = seen.server
        table = _table(seen.root) if seen.server == VLLM else None
        topics = {"Routes": routes}
        for topic, questions in (
            ("Prompts", (probe.id_prompts, probe.list_prompts, lambda: probe.vectors(table))),
            ("Numbers", (probe.named_tokens, probe.top_list, probe.keys_by_id, probe.echo,
                         probe.prompt_logprobs)),
            ("What changes them", (probe.temperature, probe.bias, probe.grammar, probe.noise)),
            ("Cost", (probe.prefix_cache,)),
        ):  # fmt: skip
            progress(topic.lower())
            topics[topic] = tuple([await question() for question in questions])
        topics["Label words"] = tuple([await probe.label(word) for word in dict.fromkeys(labels)])
    finally:
        await http.aclose()
    found = {f.name: f for topic in topics.values() for f in topic}
    advice = advise(seen, found)
    backend = backend_table(advice, http.base_url, seen.model, api_key_env)
    return Survey(http.base_url, seen, topics, advice, backend, seen.requests + probe.requests)


async def _routes(probe: Probe, seen: Identity) -> tuple[Finding, ...]:
    """Find the routes, and let the probe ask the most able one from then on."""
    completions, chat = await probe.completions(), await probe.chat()
    refused = [f for f in (completions, chat) if f.how.startswith(("status 401", "status 403"))]
    if len(refused) == 2:
        raise wants_key(probe.http.base_url, int(refused[0].how[7:10]), refused[0].how.partition(": ")[2])
    found = [completions, chat]
    native: dict[str, Dialect] = {
        LLAMA: LlamaNative(most=min(seen.vocabulary or 1000, _LONGEST)),
        SGLANG: SglangNative(),
    }
    if seen.server in native:
        found.append(await probe.native(native[seen.server]))
    found.append(await probe.tokenizer())
    if seen.server in native and found[2].found:
        probe.dialect = native[seen.server]
    elif not completions.found and chat.found:
        probe.dialect = Chat()
    return tuple(found)


def _table(root: str) -> TokenTable | None:
    """Embeddings of the served model, if its folder is on this machine."""
    folder = Path(root)
    return read_table(folder) if root and (folder / "tokenizer.json").is_file() else None


def as_data(done: Survey) -> dict[str, object]:
    """A survey as JSON."""
    seen = done.identity
    return {
        "url": done.url,
        "server": {
            "name": seen.server, "version": seen.version, "model": seen.model, "models": list(seen.models),
            "context": seen.context, "how": seen.how,
        },
        "findings": [
            {"topic": topic, "name": f.name, "found": f.found, "value": f.value, "how": f.how}
            for topic, findings in done.topics.items() for f in findings
        ],
        "scoring": {"way": done.advice.way, "why": done.advice.why, "backend": done.backend},
        "advice": list(done.advice.steps),
        "cost": {"requests": done.requests},
    }  # fmt: skip
