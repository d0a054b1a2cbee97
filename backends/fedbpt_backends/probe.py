"""What a server's route really does, found out by a handful of cheap requests.

Each question below is one or two requests and answers with a `Finding`: what was looked for, whether it
is there, and how that was seen. An answer with status 200 proves nothing (unknown fields are ignored),
so values are looked at: the named ids must be there and agree with the server's own list, a changed
temperature must change what it would change, each prompt of a list must have its own answer. Where a
server was too busy to answer, nothing is concluded.
"""

from __future__ import annotations

import base64
import math
import random
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from fedbpt_api.errors import BackendError
from fedbpt_api.scoring.backend import TokenTable
from fedbpt_backends.asking import APART, SAMPLE, Asker, Finding, Heard, alike, apart, at
from fedbpt_backends.dialects import Chat, Completions, Dialect, Fields, Text
from fedbpt_backends.http_json import SHAPE_ERRORS
from fedbpt_backends.identify import VLLM, served_model
from fedbpt_backends.tensor_file import torch_bytes
from fedbpt_backends.ways import MOST_NAMED, NamedTokens, checked

__all__ = ["Finding", "Probe", "served_model"]

T = TypeVar("T")
CHOICES = (" yes", " no")
_LIMIT = re.compile(r"(?:max\w*|most|equal to|<=|between 0 and|up to)\D{0,40}?(\d+)", re.IGNORECASE)
_CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_REPEATS = 4


class Probe(Asker):
    """The questions; an ability that was asked about is not asked about again."""

    # Prompts ----------------------------------------------------------------------------------

    async def tokenizer(self) -> Finding:
        """A tokenise route, in vLLM's and SGLang's, llama.cpp's or TGI's form; fills in `ids`."""
        self.ids, refused = await self.find_tokenizer()
        if not self.ids:
            return self.refused("tokenise route", refused)
        return self.note("tokenise route", True, "/tokenize", f"{len(self.ids)} ids for a sentence")

    async def id_prompts(self) -> Finding:
        """Token ids as a prompt: the server must count exactly as many."""
        name = "token-id prompts"
        if not self.dialect.takes_ids or not self.ids:
            why = "no tokenise route to make ids with" if self.dialect.takes_ids else "chat takes text only"
            return self.note(name, None if self.dialect.takes_ids else False, "", why)
        heard = await self.ask([self.ids])
        if not heard.replies:
            return self.refused(name, heard)
        counted = heard.replies[0].counted
        found = None if counted is None else counted == len(self.ids)
        return self.note(name, found, "", f"{len(self.ids)} ids sent, {_or_none(counted)} counted")

    async def list_prompts(self, size: int = 64) -> Finding:
        """Several prompts in one request: each must have its own answer."""
        name = "list prompts"
        if not self.dialect.takes_ids:
            return self.note(name, False, "", "chat takes one conversation a request")
        here = self.prompt()
        other = here[: len(here) // 2]
        heard = await self.ask([here, other] * (size // 2))
        if not heard.replies:
            return self.refused(name, heard)
        alone, tops = (await self.plain()).top, [reply.top for reply in heard.replies]
        if alone and not all(alike(alone, top) for top in tops[::2]):
            return self.note(name, False, "", "the answers in a list are not those of the same prompts alone")
        if alone and any(alike(alone, top) for top in tops[1::2]):
            return self.note(name, False, "", f"{size} prompts of two kinds got one and the same answer")
        limit = await self._list_limit() if self.server == VLLM else ""
        how = f"{size} prompts of two kinds, each with its own answer"
        return self.note(name, True, limit or f"at least {size}", how)

    async def _list_limit(self) -> str:
        """vLLM refuses too long a list before it looks at anything else; max_tokens 0 is refused anyway."""
        heard = await self.ask([[self.ids[0]] if self.ids else "a"] * 4096, fields={"max_tokens": 0})
        limits = [n for n in map(int, _LIMIT.findall(heard.words)) if 64 < n < 4096]
        return f"up to {min(limits)}" if limits else ""

    async def vectors(self, table: TokenTable | None = None) -> Finding:
        """``prompt_embeds``: the embeddings of a text must score as its token ids do.

        Without a table, bytes that are no tensor are sent: a server that takes tensors says so, one
        without --enable-prompt-embeds names that flag. (A tensor of a wrong shape can crash older ones.)
        """
        name = "soft prompts"
        if table is None or not self.ids:
            heard = await self.ask(fields={"prompt_embeds": ["AAAA"], "prompt": None})
            if heard.replies:
                return self.note(name, False, "", "prompt_embeds is ignored")
            if "--enable-prompt-embeds" in heard.words:
                return self.note(name, False, "", "it asks for --enable-prompt-embeds")
            if "prompt_embeds" in heard.words and "torch tensor" in heard.words:
                return self.note(name, True, "", "it only complains that our bytes are no tensor")
            known = "prompt_embeds" in heard.words or heard.passing
            return self.note(name, None if known else False, "", heard.words)
        words, way = sorted(set(self.ids)), NamedTokens()
        payload = base64.b64encode(torch_bytes(table.embeddings[list(self.ids)])).decode()
        embeds = {"prompt_embeds": [payload], "prompt": None}
        soft = await self.ask(fields=embeds | way.fields(words))
        hard = await self.ask([self.ids], fields=way.fields(words))
        if not soft.replies:
            return self.refused(name, soft)
        try:
            values = [way.read(heard.raw["choices"][0], words) for heard in (soft, hard)]
            rows, _ = checked(values, len(words), "the server")
        except (*SHAPE_ERRORS, BackendError) as error:
            return self.note(name, False, "", _why(error))
        apart = float(np.abs(rows[0] - rows[1]).max())
        how = f"a text's embeddings and its ids score {apart:.1g} nats apart"
        return self.note(name, apart < APART, f"width {table.embeddings.shape[1]}", how)

    # Numbers ----------------------------------------------------------------------------------

    async def named_tokens(self) -> Finding:
        """Ids that no list of the most probable would hold must be there, and agree with the list."""
        name, way = "named-token logprobs", self.dialect.named_field
        if way and not self.ids:
            return self.note(name, None, "", "no token ids to name")
        if not way:
            return self.note(name, False, "", "chat routes are not asked")
        await self.top_list()
        probable = [
            int(key.removeprefix("token_id:")) for key in self._longest if key.startswith("token_id:")
        ]
        words = sorted({*self.ids, *probable[:5]})
        heard = await self.ask([self.ids], fields=self.dialect.named(words), sane=False)
        try:
            if heard.words:
                raise ValueError(heard.words)
            reading = self.dialect.read_named(heard.raw, words)
            rows, exact = checked([reading], len(words), "the server")
            if not exact.all():
                raise ValueError(f"{int((~exact).sum())} of {len(words)} named ids are missing")
        except (*SHAPE_ERRORS, BackendError) as error:
            return self.note(name, None if heard.passing else False, "", f"{way}: {_why(error)}")
        at_once = f"up to {MOST_NAMED}" if way == NamedTokens().name else "any number"
        listed = [i for i, word in enumerate(words) if f"token_id:{word}" in self._longest]
        gaps = np.array([rows[0, i] - self._longest[f"token_id:{words[i]}"] for i in listed])
        if way == "equal bias":  # exact relative to each other only
            gaps = gaps - np.median(gaps) if listed else gaps
        if listed and np.abs(gaps).max() > APART:
            return self.note(name, False, "", f"{way}: its values contradict the server's own list")
        agreed = f", {len(listed)} agree with the list" if listed else ""
        return self.note(name, True, at_once, f"{way}: all of {len(words)} ids came back{agreed}")

    async def keys_by_id(self) -> Finding:
        """``return_tokens_as_token_ids``: without it, tokens that decode alike collapse into one entry."""
        name = "lists keyed by id"
        if name in self.findings:
            return self.findings[name]
        if self.dialect.keyed:
            return self.note(name, True, "", f"{self.dialect.path} always does")
        if not self.dialect.takes_ids:
            return self.note(name, False, "", "chat lists texts")
        heard = await self.ask(fields={"return_tokens_as_token_ids": True})
        if not heard.top:
            return self.refused(name, heard)
        by_id = all(key.startswith("token_id:") for key in heard.top)
        return self.note(name, by_id, "", f"keys like {next(iter(heard.top))!r}")

    async def top_list(self) -> Finding:
        """The longest list of probable tokens: a refusal says what is allowed, and what comes is counted."""
        name = "top-k list"
        if name in self.findings:
            return self.findings[name]
        by_id = not self.dialect.keyed and (await self.keys_by_id()).found
        fields = {"return_tokens_as_token_ids": True} if by_id else {}
        heard, asked = await self.ask(k=self.dialect.most, fields=fields), self.dialect.most
        tries = [20, 5, 1]
        while not heard.top and not heard.passing and tries and (heard.status != 200 or not heard.words):
            told = [n for n in map(int, _LIMIT.findall(heard.words)) if 0 < n < asked]
            asked, tries = (min(told), tries) if told else (tries[0], tries[1:])
            heard = await self.ask(k=asked, fields=fields)
        self._longest = heard.top
        if not heard.top:
            return self.refused(name, heard)
        got = len(heard.top)
        how = f"asked for {asked}, got {got}"
        if got < asked and not by_id and not self.dialect.keyed:
            how += " (tokens of one text are one entry)"
        return self.note(name, True, str(min(got, asked)), how)

    async def touched_by(self, what: str, fields: Fields, *, temperature: float = 0.0) -> Finding:
        """Whether `fields` change the numbers that are reported, and whether what is generated obeys them."""
        name = f"{what} changes logprobs"
        plain = await self.plain(temperature)
        other = await self.ask(temperature=temperature, fields=fields)
        if not plain.top or not other.top:
            return self.refused(name, other if plain.top else plain)
        moved = apart(plain.top, other.top)
        how = f"by {moved:.2g} nats" if moved < math.inf else "the list is another"
        if moved <= APART:
            obeyed = plain.replies[0].text != other.replies[0].text and not temperature
            how = "the generated token obeys, the numbers stay" if obeyed else "the numbers stay the same"
        return self.note(name, moved > APART, "", how)

    async def temperature(self) -> Finding:
        return await self.touched_by("temperature", {"temperature": 2.0}, temperature=1.0)

    async def bias(self) -> Finding:
        """A bias of 100 on the first token of the sample, which is not a likely one after it."""
        if not self.ids:
            return self.note("bias changes logprobs", None, "", "no token ids to name")
        return await self.touched_by("bias", self.dialect.bias(self.ids[0], 100.0))

    async def grammar(self) -> Finding:
        return await self.touched_by("grammar", self.dialect.grammar(CHOICES))

    async def echo(self) -> Finding:
        """``echo`` with log-probabilities: the prompt's own tokens are scored (teacher forcing)."""
        heard = await self.ask(
            fields={"echo": True, "max_tokens": 0, "logprobs": 1}, dialect=Completions(), sane=False
        )
        values = at(heard.raw, "choices", 0, "logprobs", "token_logprobs")
        return self._own_tokens(
            "echo logprobs", values[1:] if isinstance(values, list) else None, heard.words
        )

    async def prompt_logprobs(self) -> Finding:
        """vLLM's ``prompt_logprobs``."""
        heard = await self.ask(fields={"prompt_logprobs": 0}, dialect=Completions(), sane=False)
        rows = at(heard.raw, "choices", 0, "prompt_logprobs")
        values = None
        if isinstance(rows, list):
            keys = [str(i) for i in self.ids[1:]] or [next(iter(row or [""])) for row in rows[1:]]
            values = [at(row, key, "logprob") for row, key in zip(rows[1:], keys, strict=False)]
        return self._own_tokens("prompt_logprobs", values, heard.words)

    def _own_tokens(self, name: str, values: list[Any] | None, refused: str) -> Finding:
        if not values:
            return self.note(name, False, "", refused or "the field is ignored")
        numbers = [v for v in values if isinstance(v, int | float) and -9000.0 < v <= 0.0]
        if len(numbers) < len(values) or not any(numbers) or (self.ids and len(values) + 1 < len(self.ids)):
            return self.note(name, False, "", f"only {len(numbers)} of {len(values)} values can be right")
        return self.note(name, True, "", f"{len(values)} values for the prompt's own tokens")

    # Running ----------------------------------------------------------------------------------

    async def noise(self) -> Finding:
        """Standard deviation of a log-probability over repeats, alone and in a list, in nats."""
        heard = [await self.ask() for _ in range(_REPEATS)]
        listed = await self.ask([self.prompt()] * 8) if self.dialect.takes_ids else heard[0]
        rows = [h.top for h in heard]
        if self.dialect.takes_ids:
            rows += [reply.top for reply in listed.replies]
        common = set.intersection(*(set(row) for row in rows)) if all(rows) else set()
        if not common:
            return self.note("noise", None, "0", "no lists to compare")
        names = {reply.name for h in heard for reply in h.replies}
        if len(names) == 1 and names != {""}:
            return self.note("noise", None, "0", "repeats are copies of one answer: something caches answers")
        values = np.array([[row[key] for key in sorted(common)] for row in rows])
        spread = float((values - values[0]).std(axis=0).max())  # exactly 0 where all are the same
        where = "alone and in a list" if len(rows) > _REPEATS else "alone"
        return self.note(
            "noise", spread > 0, f"{spread:.2g}", f"standard deviation in nats, {len(rows)} repeats, {where}"
        )

    async def prefix_cache(self) -> Finding:
        """A long prompt that no one has sent before, twice: only the second time may it be cached."""
        name = "prefix cache"
        prompt: Text = " ".join(_shuffled(SAMPLE.split()))
        if self.ids and self.dialect.takes_ids:
            prompt = _shuffled(self.ids)
        heard = [await self.ask([prompt]) for _ in range(2)]
        if not heard[1].replies:
            return self.refused(name, heard[1])
        first, second = (h.replies[0].cached if h.replies else None for h in heard)
        if second is None:
            return self.note(name, None, "", "answers do not say how much of a prompt was cached")
        block = await self.block_size() if self.server == VLLM else 1
        unit = f"blocks of {block}" if block > 1 else ""
        size = heard[1].replies[0].counted or len(prompt)
        how = f"{second} of {size} tokens cached when asked again, {first or 0} at first"
        return self.note(name, second > (first or 0), unit, how)

    async def block_size(self) -> int:
        """Tokens of a block of vLLM's prefix cache, by its metrics; 1 where it has none or does not say."""
        self.requests += 1
        _, text = await self.http.peek("GET", "/metrics")
        caches = [dict(_LABEL.findall(labels)) for labels in _CACHE.findall(str(text))]
        sizes = [c.get("block_size", "") for c in caches if c.get("enable_prefix_caching") == "True"]
        return max([1, *(int(size) for size in sizes if size.isdigit())])

    # Routes and words -------------------------------------------------------------------------

    async def completions(self) -> Finding:
        heard = await self.ask(dialect=Completions())
        return self._route("completions route", heard, Completions().path)

    async def chat(self) -> Finding:
        """The chat route with a list of probable first tokens."""
        heard = await self.ask(dialect=Chat())
        return self._route("chat route", heard, Chat().path)

    async def native(self, dialect: Dialect) -> Finding:
        """A server's own route."""
        return self._route("native route", await self.ask(dialect=dialect), dialect.path)

    def _route(self, name: str, heard: Heard, path: str) -> Finding:
        if not heard.replies:
            return self.refused(name, heard)
        numbers = f"{len(heard.top)} log-probabilities" if heard.top else "no log-probabilities"
        return self.note(name, True, path, f"it answers, {numbers}")

    async def label(self, word: str) -> Finding:
        """Whether a label word is a single token, alone and after the sample, and the same one."""
        name = f"label {word!r}"
        if not self.ids:
            return self.note(name, None, "", "no tokenise route to ask")
        alone, after = await self.tokenize(word), await self.tokenize(SAMPLE + word)
        n = len(self.ids)
        if not alone or not after:
            return self.note(name, None, "", "the tokenise route did not answer")
        if len(alone) != 1:
            return self.note(name, False, "", f"{len(alone)} tokens: {alone[:8]}")
        if tuple(after) != (*self.ids, alone[0]):
            return self.note(name, False, "", f"token {alone[0]} alone, but {after[n - 1 :]} within a text")
        twins = [
            f.name
            for f in self.findings.values()
            if f.name.startswith("label ") and f.value == f"id {alone[0]}"
        ]
        if twins and name not in twins:
            return self.note(name, False, "", f"the same token as {twins[0]}")
        return self.note(name, True, f"id {alone[0]}", "one token, alone and within a text")


def _shuffled(parts: Sequence[T]) -> list[T]:
    """24 times `parts`, each time in an order of its own."""
    return [part for _ in range(24) for part in random.sample(parts, len(parts))]


def _why(error: Exception) -> str:
    return error.message if isinstance(error, BackendError) else str(error)


def _or_none(value: object) -> str:
    return "none" if value is None else str(value)
