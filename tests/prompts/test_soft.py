"""Continuous prompts: p0 + A z as BBT has it, rebuilt bit for bit from what an artefact stores."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api import TunedPrompt, make_tuner
from fedbpt_api.errors import ConfigError
from fedbpt_api.prompts.soft import MOST_VECTORS, SoftSpace, rebuild
from fedbpt_api.run.classify import Classifier
from fedbpt_api.scoring.backend import Soft, TokenTable
from toy import PROMPT, TEXTS, ToyBackend, Toys, make_examples, make_task


async def _table() -> TokenTable:
    table = await ToyBackend().token_table()
    assert table is not None
    return table


TABLE = asyncio.run(_table())


def space(
    origin: tuple[int, ...] = (270, 300, 280), table: TokenTable = TABLE, **changes: float
) -> SoftSpace:
    options = {"dimension": 40, "alpha": 1.0, "sigma": 1.0, "seed": 3} | changes
    return SoftSpace.around(
        origin,
        table,
        dimension=int(options["dimension"]),
        alpha=options["alpha"],
        sigma=options["sigma"],
        seed=int(options["seed"]),
    )


def test_the_origin_is_the_discrete_prompt_itself() -> None:
    assert space().decode(np.zeros(40)) == (270, 300, 280)


def test_a_step_of_sigma_moves_as_far_as_alpha_embeddings() -> None:
    """BBT: A z has standard deviation alpha s per entry for z ~ N(0, sigma^2 I)."""
    rng = np.random.default_rng(0)
    wide = TokenTable(TEXTS[:300], rng.normal(0.0, 0.3, (300, 64)).astype(np.float32))
    for alpha, sigma in ((1.0, 1.0), (0.2, 1.0), (1.0, 0.5), (0.5, 2.0)):
        soft = space(tuple(range(30)), wide, dimension=100, alpha=alpha, sigma=sigma)
        moves = []
        for _ in range(20):
            moved = soft.decode(rng.normal(0.0, sigma, 100))
            assert isinstance(moved, Soft)
            moves.append(moved.vectors - wide.embeddings[:30])
        assert np.std(moves) == pytest.approx(alpha * 0.3, rel=0.05)


@given(st.integers(0, 5), st.integers(1, 80))
def test_it_is_linear_and_only_the_first_vectors_move(seed: int, length: int) -> None:
    soft = space(tuple(np.arange(length) % 256), seed=seed)
    a, b = np.random.default_rng(seed).normal(size=(2, 40))
    first, second, both = soft.decode(a), soft.decode(b), soft.decode(a + b)
    assert isinstance(first, Soft) and isinstance(second, Soft) and isinstance(both, Soft)
    np.testing.assert_allclose(
        both.vectors - soft.base, first.vectors + second.vectors - 2 * soft.base, atol=1e-4
    )
    np.testing.assert_array_equal(both.vectors[MOST_VECTORS:], soft.base[MOST_VECTORS:])
    assert len(both) == soft.vectors == length


def test_an_artefact_s_recipe_gives_the_same_vectors_bit_for_bit() -> None:
    soft, z = space(), np.random.default_rng(1).normal(size=40)
    made, again = soft.decode(z), rebuild(soft.origin, {**soft.identity, "z": z.tolist()}, TABLE)
    assert made == again and isinstance(again, Soft) and isinstance(made, Soft)
    np.testing.assert_array_equal(again.vectors, made.vectors)
    assert space(seed=4).decode(z) != made


def test_equal_vectors_are_the_same_prompt() -> None:
    z = np.random.default_rng(1).normal(size=40)
    assert len({space().decode(z), space().decode(z), space().decode(z + 1e-3)}) == 2


def test_a_prompt_without_a_token_has_no_vectors_to_move() -> None:
    with pytest.raises(ValueError, match="one token"):
        space(())


async def tuned(toys: Toys, folder: Path) -> TunedPrompt:
    toys["toy"] if "toy" in toys.opened else toys.opened.setdefault("toy", ToyBackend(soft=True))
    settings = {
        "prompts": [PROMPT],
        "template": "Text: {text}\nMood:",
        "labels": {"negative": " negative", "positive": " positive"},
        "backend": {"kind": "toy"},
        "budget": {"scored": 3000},
        "verbalizer": {"kind": "bias"},
        "search": {"space": "soft", "form": "words", "dimensions": 20, "alpha": 2.0, "rounds": 8},
    }
    await make_tuner(settings, task=make_task(), run_dir=folder).run()
    return TunedPrompt.load(folder)


async def test_a_run_over_vectors_ends_with_a_prompt_that_can_be_used_and_stored(
    toys: Toys, tmp_path: Path
) -> None:
    prompt = await tuned(toys, tmp_path / "run")
    assert prompt.soft is not None and len(prompt.soft["z"]) == 20  # better than what it started from
    (vectors,) = await prompt.on(toys["toy"])
    assert isinstance(vectors, Soft) and len(vectors) == len(prompt.ids)
    prompt.save(tmp_path / "copy.json")
    assert await TunedPrompt.load(tmp_path / "copy.json").on(toys["toy"]) == (vectors,)
    async with await Classifier.open(prompt) as classifier:
        report = await classifier.evaluate(make_examples(60, seed=9))
    assert report.rows[0].accuracy > 0.6


async def test_a_server_that_takes_no_vectors_is_refused_before_anything_is_scored(
    toys: Toys, tmp_path: Path
) -> None:
    prompt = await tuned(toys, tmp_path / "run")
    toys.opened["toy"] = hard = ToyBackend()
    with pytest.raises(ConfigError, match="continuous"):
        await prompt.on(hard)
    with pytest.raises(ConfigError, match=r"search\.space"):
        await tuned(toys, tmp_path / "second")
    assert hard.requests == 0


async def test_embeddings_of_another_width_are_refused(toys: Toys, tmp_path: Path) -> None:
    prompt = await tuned(toys, tmp_path / "run")
    assert prompt.soft is not None
    damaged = replace(prompt, soft={key: value for key, value in prompt.soft.items() if key != "scale"})
    with pytest.raises(ConfigError, match="another shape"):
        await damaged.on(toys["toy"])
