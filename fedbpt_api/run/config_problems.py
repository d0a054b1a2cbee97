"""What can be wrong with settings, in sentences: where it is, what was expected, what to do.

`describe` translates what the schema found. `cross_problems` and `file_problems` look at the raw values, so
that they are told together with the schema's and not only once those are put right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from fedbpt_api.data import SUFFIXES
from fedbpt_api.task import LabelWords, did_you_mean, template_problems

DATA_FILES = ("train", "dev", "test")
PRICES = ("input", "cached", "output")
RESERVED_NAME = "*"
# What pydantic says and what a user of a TOML file reads instead; later patterns see what earlier ones made.
PLAIN_WORDS = (
    (re.compile(r"^Input should be "), "expected "),
    (re.compile(r"^Input is not a valid path.*"), "expected a path in quotes"),
    (re.compile(r"^expected (?=greater|less)"), "expected a number "),
    (re.compile(r"^.* should have at least (\d+) .*"), r"expected at least \1 entry"),
    (re.compile(r"a valid dictionary( or (instance|object) .*)?"), "a section of keys"),
    (re.compile(r"a valid tuple"), "a list"),
    (re.compile(r"a valid string"), "a text in quotes"),
    (re.compile(r"a valid integer(, .*)?"), "a whole number"),
    (re.compile(r"a valid number(, .*)?"), "a number"),
)
EXAMPLES = {
    "prompts": 'prompts = [""]',
    "template": 'template = "Text: {text}\\nLabel:"',
    "labels": 'the section [labels] with a line such as positive = " positive" for each label',
    "budget": "the section [budget] with scored = 4000",
    "name": 'name = "one"',
    "train": 'train = "train.jsonl"',
    "clients": "clients = 4",
}


# What noise needs, and what is set beneath a config's own settings where its privacy.mode is "gaussian".
NOISE_NEEDS: Mapping[str, Mapping[str, object]] = {
    "verbalizer": {"kind": "bias"},
    "search": {"choice": "held-out", "proposals": 0},
}


def describe(detail: Mapping[str, object], schema: type[BaseModel]) -> str:
    """One sentence for one of pydantic's error details.

    Args:
        detail: An entry of `ValidationError.errors()`.
        schema: The model that was validated, to find the known keys of a section.
    """
    found = detail["loc"]
    location = tuple(found) if isinstance(found, tuple) else ()
    key = ".".join(str(part) for part in location) or "the whole"
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = list(_section(schema, location[:-1]).model_fields)
        near = _elsewhere(schema, str(location[-1])) or did_you_mean(str(location[-1]), known)
        return f"{key}: unknown key{near}; expected one of {', '.join(known)}, so correct or remove it"
    if kind == "missing":
        such = EXAMPLES.get(str(location[-1]))
        return f"{key}: this key is missing; add it" + (f", such as {such}" if such else "")
    expected = str(detail["msg"])
    for pattern, plain in PLAIN_WORDS:
        expected = pattern.sub(plain, expected)
    return f"{key}: {expected}, got {_short(detail.get('input'))}; correct it"


SECRET = re.compile(r"api_?key|secret|password|passwd|authorization|credential|(^|[_-])token$", re.IGNORECASE)
"""Names of what must not be written anywhere."""


def _secret_problems(values: Mapping[str, object]) -> Iterator[str]:
    """Secrets that stand in the file itself: they would be written into the run folder."""
    places = [("backend", values.get("backend"))]
    places += [
        (f"clients.{number}.backend", client.get("backend"))
        for number, client in enumerate(_sections(values.get("clients")))
    ]
    for place, backend in places:
        headers = backend.get("headers") if isinstance(backend, Mapping) else None
        for name, value in headers.items() if isinstance(headers, Mapping) else ():
            if SECRET.search(str(name)) and "${" not in str(value):
                yield (
                    f"{place}.headers.{name}: a secret does not belong into the file; put it into an "
                    "environment variable and name that: ${NAME}"
                )


def cross_problems(values: Mapping[str, object]) -> Iterator[str]:
    """What is wrong between keys, for the keys whose own types are right."""
    clients, data = values.get("clients"), values.get("data")
    if clients and data:
        yield "clients, data: expected one of them, got both; remove [[clients]] or [data]"
    if (clients or data) and values.get("parties") is not None:
        yield "parties: they are behind a network, so their texts are not here; remove [[clients]] or [data]"
    parties = values.get("parties")
    if isinstance(parties, list | tuple) and (not parties or len(set(map(str, parties))) < len(parties)):
        yield "parties: expected names that differ, at least one"
    if not clients and not data and parties is None:
        yield "clients, data: expected one of them, got none; add a [[clients]] for each party, or one [data]"
    budget = values.get("budget")
    if isinstance(budget, Mapping) and all(
        budget.get(key) is None for key in ("scored", "tokens", "seconds", "money")
    ):
        kinds = "scored, tokens, seconds or money"
        yield f"budget: expected {kinds}, got none; set at least one, such as scored = 4000"
    yield from _price_problems(values)
    yield from _private_problems(values)
    yield from _secret_problems(values)
    search, prompts = values.get("search"), values.get("prompts")
    soft = isinstance(search, Mapping) and search.get("space") == "soft"
    if soft and isinstance(prompts, list | tuple) and not any(prompts):
        yield "prompts: a search over vectors starts from a prompt's embeddings; give one that is not empty"
    yield from _name_problems(_sections(clients))
    yield from _template_problems(values)
    labels = values.get("labels")
    if isinstance(labels, Mapping):
        # Words of a wrong type are told by the schema; here a stand-in that collides with nothing is enough.
        sound = {label: words if _is_words(words) else f"\0{label}" for label, words in labels.items()}
        yield from LabelWords.from_mapping(sound).problems()
    verbalizer = values.get("verbalizer")
    if isinstance(labels, Mapping) and isinstance(verbalizer, Mapping):
        needed = sum(
            1 if isinstance(words, str) else len(words) for words in labels.values() if _is_words(words)
        )
        words = verbalizer.get("words")
        if isinstance(words, int) and 2 <= words < needed:
            yield f"verbalizer.words: expected at least the {needed} label words, got {words}; raise it"


def file_problems(values: Mapping[str, object], base: Path) -> Iterator[str]:
    """Data files that are not there or have an unknown ending.

    Args:
        values: The raw settings.
        base: Folder that relative paths start from.
    """
    places = [(f"clients.{i}", client) for i, client in enumerate(_sections(values.get("clients")))]
    places += [("data", data) for data in _sections([values.get("data")])]
    sections = [("price", values.get("price"))]
    sections += [(f"{where}.price", client.get("price")) for where, client in places]
    for where, price in sections:
        file = price.get("file") if isinstance(price, Mapping) else None
        if isinstance(file, str | Path) and not (path := Path(base, file).resolve()).is_file():
            yield f"{where}.file: no file {path}; correct the path or create it"
    for where, section in places:
        for part in DATA_FILES:
            value = section.get(part)
            if isinstance(value, str | Path):
                yield from _file_problem(f"{where}.{part}", Path(base, value).resolve())


def _file_problem(key: str, path: Path) -> Iterator[str]:
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            yield f"{key}: expected one of {', '.join(SUFFIXES)}, got the file {path}; convert or rename it"
    elif path.is_dir():
        yield f"{key}: expected a file, but {path} is a folder; name a file in it"
    elif not path.parent.is_dir():
        yield f"{key}: no file {path}, not even its folder is there; correct the path or create it"
    else:
        near = did_you_mean(path.name, (other.name for other in path.parent.iterdir()))
        yield f"{key}: no file {path}{near}; correct the path or create it"


def _price_problems(values: Mapping[str, object]) -> Iterator[str]:
    """Prices that say too little or twice, and money that nothing says the price of."""
    clients = _sections(values.get("clients"))
    prices = [("price", values.get("price"))]
    prices += [(f"clients.{i}.price", client.get("price")) for i, client in enumerate(clients)]
    for where, price in prices:
        if not isinstance(price, Mapping):
            continue
        own = [key for key in PRICES if price.get(key) is not None]
        if price.get("file") is not None:
            if own:
                yield f"{where}: expected either file or {', '.join(own)}, got both; remove one of them"
            continue
        if price.get("model") is not None:
            yield f"{where}.model: it chooses a table of a file; add file, or remove it"
        yield from (f"{where}.{problem}" for problem in amount_problems(price))
    budgets: list[tuple[str, object, Mapping[str, object] | None]] = [("budget", values.get("budget"), None)]
    budgets += [(f"clients.{i}.budget", c.get("budget"), c) for i, c in enumerate(clients)]
    for where, budget, client in budgets:
        if not isinstance(budget, Mapping) or budget.get("money") is None:
            continue
        payers = clients if client is None and clients else [client or {}]
        for payer in payers:
            elsewhere = payer.get("backend") is not None  # the run's price is not that server's
            if payer.get("price") is None and (elsewhere or values.get("price") is None):
                place = f"clients.{clients.index(payer)}.price" if elsewhere else "price"
                yield f"{where}.money: nothing says what tokens cost; give {place}.input and {place}.output"
                break
    currencies = {
        str(price.get("currency") or "USD")
        for _, price in prices
        if isinstance(price, Mapping) and price.get("file") is None
    }
    if len(currencies) > 1:
        named = ", ".join(sorted(currencies))
        yield f"price.currency: expected one currency, got {named}; convert the prices"


def amount_problems(price: Mapping[str, object]) -> Iterator[str]:
    """What is wrong with the amounts of a price table, each beginning with its key."""
    cached, full = price.get("cached"), price.get("input")
    for key in ("input", "output"):
        if price.get(key) is None:
            yield f"{key}: this key is missing; give the price of a million tokens, 0 if they are free"
    if isinstance(cached, int | float) and isinstance(full, int | float) and cached > full:
        yield f"cached: expected at most input, {full:g}, got {cached:g}; correct it"


def _name_problems(clients: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """Client names that are taken or that reports use for something else."""
    seen: dict[str, int] = {}
    for index, client in enumerate(clients):
        name = client.get("name")
        if not isinstance(name, str):
            continue
        if name in seen:
            first = f"clients.{seen[name]}"
            yield f"clients.{index}.name: {name!r} is the name of {first} already; give it a name of its own"
        elif name == RESERVED_NAME:
            yield f"clients.{index}.name: {name!r} means all clients together in reports; take another name"
        seen.setdefault(name, index)


def _template_problems(values: Mapping[str, object]) -> Iterator[str]:
    template, columns = values.get("template"), values.get("columns")
    if not isinstance(template, str):
        return
    yield from template_problems(template)
    second = columns.get("text_b") if isinstance(columns, Mapping) else None
    if "{text_b}" in template and second is None:
        yield 'columns.text_b: the template asks for a pair; name the column of its second text, as "text_b"'
    if "{text_b}" not in template and second is not None:
        yield "columns.text_b: the template has no {text_b}; put it in the template or remove this key"


def _sections(value: object) -> list[Mapping[str, object]]:
    """The tables of an array of tables; what is something else is the schema's business."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list | tuple) else []


def _is_words(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)
    )


def _section(schema: type[BaseModel], location: Iterable[object]) -> type[BaseModel]:
    """The model of the section at a location; a part that is no field is a name in a table of sections."""
    for part in location:
        if isinstance(part, str) and part in schema.model_fields:
            schema = next(_models(schema.model_fields[part].annotation), schema)
    return schema


def _elsewhere(schema: type[BaseModel], key: str) -> str:
    """A remark that names the section in which a key is known, or nothing."""
    if key in schema.model_fields:
        return f" (did you mean {key!r} at the top of the file, before any section?)"
    for name, field in schema.model_fields.items():
        if any(key in model.model_fields for model in _models(field.annotation)):
            return f" (did you mean '{name}.{key}'?)"
    return ""


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """The models somewhere in a type, such as the one in `tuple[Model, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _private_problems(values: Mapping[str, object]) -> Iterator[str]:
    """Settings that do not go with noise."""
    private = values.get("privacy")
    if not isinstance(private, Mapping) or private.get("mode") != "gaussian":
        return
    for section, needs in NOISE_NEEDS.items():
        found = values.get(section)
        for key, needed in needs.items():
            value = found.get(key, needed) if isinstance(found, Mapping) else needed
            if value != needed:
                yield (
                    f"{section}.{key}: {value!r} does not go with privacy.mode 'gaussian'; "
                    f"remove it, or set {needed!r}"
                )
