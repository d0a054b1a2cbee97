"""The commands of ``fedbpt``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import orjson
import typer

from fedbpt_api import __version__
from fedbpt_api.cli import cache, flower
from fedbpt_api.cli.bench import bench
from fedbpt_api.cli.estimate import estimate
from fedbpt_api.cli.export import export
from fedbpt_api.cli.output import Json, err, overrides, print_json, print_result
from fedbpt_api.cli.probe import probe
from fedbpt_api.cli.running import replay, resume, tune
from fedbpt_api.data import Columns, read_examples
from fedbpt_api.errors import ConfigError, FedbptError
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.classify import Classifier, overall
from fedbpt_api.run.config import example_config
from fedbpt_api.run.folder import read_result
from fedbpt_api.run.inputs import read_settings
from fedbpt_api.run.present import show_whitespace
from fedbpt_api.task import Example

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    name="fedbpt",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Tune one prompt for a model you can only query, over texts that nobody shares.",
)
models_app = typer.Typer(no_args_is_help=True, help="The model files of the embedded backend.")
app.add_typer(models_app, name="models")
flower_app = typer.Typer(
    no_args_is_help=True,
    help="Parties in other organisations, reached over Flower: pip install 'fedbpt-api[flower]'.",
)
app.add_typer(flower_app, name="flower")
cache_app = typer.Typer(
    no_args_is_help=True,
    help="The shared store: answers that runs with cache.scores = true have paid for, for later ones. Off "
    "unless asked for.",
)
app.add_typer(cache_app, name="cache")

RunPath = Annotated[Path, typer.Argument(help="A run folder, or a prompt.json from one.")]
Backend = Annotated[
    str | None,
    typer.Option(
        help="Backend to ask; where not given the prompt's own, of a run folder as the run asked it."
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A backend option, e.g. model=/path/to/model.gguf."),
]


def _exits(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the package's errors into a sentence and an exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except FedbptError as error:
            err.print(f"error: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
        except KeyboardInterrupt:
            err.print("stopped")
            raise typer.Exit(3) from None

    return wrapped


_PLACE = {"base_url", "model"}  # a server or a file: another one is not asked beside the run's own


async def _classifier(
    run: Path, prompt: TunedPrompt, backend: str | None, options: list[str] | None
) -> Classifier:
    """Of a run folder its own server, unless another is named; `options` win over the run's settings."""
    kind, given = backend or prompt.model["kind"], overrides(options)
    if backend is None and (run / "settings.json").exists():
        own = read_settings(run).backend
        if own.kind == kind:  # clients may have had servers of their own
            elsewhere = given.keys() & _PLACE - own.options.keys()
            given = {k: v for k, v in own.options.items() if not elsewhere or k not in _PLACE} | given
    classifier = await Classifier.open(prompt, kind, **given)
    for warning in classifier.warnings:
        err.print(f"warning: {warning}", markup=False, soft_wrap=True)
    return classifier


@app.command("eval")
@_exits
def evaluate(
    run: RunPath,
    data: Annotated[Path, typer.Option(help="Labelled texts: .jsonl, .csv or .tsv.")],
    text: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    label: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    text_b: Annotated[str | None, typer.Option(help="Column of the second text of a pair.")] = None,
    backend: Backend = None,
    options: Options = None,
    as_json: Json = False,
) -> None:
    """Accuracy of a tuned prompt on other labelled texts, with its 95 % interval and macro-F1."""
    examples = read_examples(data, Columns(text, label, text_b))
    prompt = TunedPrompt.load(run)

    async def work() -> None:
        async with await _classifier(run, prompt, backend, options) as classifier:
            report = await classifier.evaluate(examples)
            row = overall(report)
            if as_json:
                print_json(row.to_dict() | {"scored": classifier.usage.scored})
                return
            typer.echo(
                f"{row.n} texts: accuracy {row.accuracy:.3f}, 95% interval {row.ci_low:.3f} to "
                f"{row.ci_high:.3f}, macro-F1 {row.macro_f1:.3f}"
            )
            width = max(map(len, report.labels))
            typer.echo("true \\ predicted  " + "  ".join(report.labels))
            for name, counts in zip(report.labels, row.confusion, strict=True):
                cells = "  ".join(
                    f"{n:>{len(other)}}" for n, other in zip(counts, report.labels, strict=True)
                )
                typer.echo(f"  {name:<{width}}  {'':<{max(14 - width, 0)}}{cells}")

    asyncio.run(work())


@app.command()
@_exits
def predict(
    run: RunPath,
    texts: Annotated[
        Path | None,
        typer.Argument(help="One text a line (.txt), or .jsonl, .csv, .tsv; standard input where not given."),
    ] = None,
    column: Annotated[str, typer.Option(help="Column of the text, for .jsonl, .csv and .tsv.")] = "text",
    text_b: Annotated[str | None, typer.Option(help="Column of the second text of a pair.")] = None,
    backend: Backend = None,
    options: Options = None,
) -> None:
    """Label texts with a tuned prompt: one JSON line a text, with all labels' probabilities."""
    prompt = TunedPrompt.load(run)
    if texts is not None and texts.suffix in (".jsonl", ".csv", ".tsv"):
        examples = list(read_examples(texts, Columns(column, "label", text_b)))
    else:
        try:
            lines = texts.read_text(encoding="utf-8") if texts else sys.stdin.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{texts or 'standard input'} cannot be read: {error}") from None
        examples = [Example(line) for line in lines.splitlines() if line.strip()]

    async def work() -> None:
        async with await _classifier(run, prompt, backend, options) as classifier:
            async for prediction in classifier.stream(examples):
                typer.echo(orjson.dumps(prediction.to_dict()).decode())

    asyncio.run(work())


@app.command()
@_exits
def show(run: RunPath, as_json: Json = False) -> None:
    """What a run came to: the prompt, accuracies, paired tests, what was spent."""
    if run.is_dir() and (run / "result.json").exists():
        print_result(read_result(run), as_json)
        return
    prompt = TunedPrompt.load(run)
    if as_json:
        print_json(prompt.to_dict())
        return
    typer.echo(
        f"prompt ({len(prompt.ids)} tokens of {prompt.model['name']}):\n{show_whitespace(prompt.text)}"
    )
    for text, ids in prompt.joined:
        typer.echo(f"joined with ({len(ids)} tokens):\n{show_whitespace(text)}")
    typer.echo(f"template: {prompt.template.source!r}")
    for name, value in prompt.scores.items():
        typer.echo(f"{name}: {value:.4f}")


@app.command()
@_exits
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("fedbpt.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented configuration to start from."""
    if path.exists() and not force:
        raise ConfigError(f"{path} exists already", "name another file, or replace it with --force")
    try:
        path.write_text(example_config(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    typer.echo(f"wrote {path}; fill in your files and prompts, then: fedbpt tune {path}")


_COMMANDS: tuple[Callable[..., None], ...] = (tune, estimate, resume, replay, probe, export, bench)
_CACHE_COMMANDS: tuple[Callable[..., None], ...] = (cache.size, cache.prune, cache.off, cache.on)
for _command in _COMMANDS:
    app.command()(_exits(_command))
cache_app.command("list")(_exits(cache.list_))
for _command in _CACHE_COMMANDS:
    cache_app.command()(_exits(_command))
for _command in (flower.init, flower.link, flower.node, flower.demo):
    flower_app.command()(_exits(_command))


@models_app.command("install")
@_exits
def models_install(
    name: Annotated[
        str | None, typer.Argument(help="A known model; the default one where not given.")
    ] = None,
) -> None:
    """Fetch a known model's pinned file, check its hash and keep it in the user's cache."""
    from fedbpt_backends import models

    path = models.install(name or models.DEFAULT, progress=lambda line: err.print(line, markup=False))
    typer.echo(str(path))


@models_app.command("list")
@_exits
def models_list(as_json: Json = False) -> None:
    """Model files that are installed."""
    from fedbpt_backends import models

    found = models.installed()
    if as_json:
        print_json([{"name": m.name, "path": str(m.path), "bytes": m.size} for m in found])
        return
    for model in found:
        typer.echo(f"{model.name}  {model.size / 1e6:.0f} MB  {model.path}")
    if not found:
        typer.echo("none; fetch the default one with: fedbpt models install")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedbpt {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before a command."""
