"""``fedbpt export``: a tuned prompt as the tensor that vLLM takes as ``prompt_embeds``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedbpt_api.errors import ConfigError
from fedbpt_api.prompts.soft import rebuild
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.scoring.backend import Soft


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or a prompt.json from one.")],
    out: Annotated[Path, typer.Argument(help="Where to write it, such as prompt.pt.")],
    weights: Annotated[
        Path, typer.Option(help="The model's folder: config.json, tokenizer.json, *.safetensors.")
    ],
) -> None:
    """Write a tuned prompt's vectors as a bfloat16 tensor that `torch.load` and vLLM read.

    A discrete prompt gives the embeddings of its tokens. The tensor has one row a token of the prompt; the
    text's own embeddings go after it.
    """
    from fedbpt_backends.checkpoint import read_table
    from fedbpt_backends.tensor_file import torch_bytes

    prompt = TunedPrompt.load(run)
    if prompt.joined:
        raise ConfigError(
            f"{run}: {len(prompt.joined) + 1} prompts answer together, and one tensor is one prompt",
            "tune with search.ensemble = 1",
        )
    table = read_table(weights)
    if not prompt.ids:
        raise ConfigError(f"{run}: the tuned prompt is empty, so there is nothing to export")
    if max(prompt.ids) >= len(table.texts):
        raise ConfigError(f"{weights} is not the model it was tuned on: {prompt.model['name']}")
    found = rebuild(prompt.ids, prompt.soft, table) if prompt.soft else prompt.ids
    vectors = found.vectors if isinstance(found, Soft) else table.embeddings[list(found)]
    try:
        out.write_bytes(torch_bytes(vectors))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from None
    typer.echo(f"wrote {out}: {vectors.shape[0]} vectors of width {vectors.shape[1]}, bfloat16")
