"""How many tokens vLLM's cache keeps together, as its metrics say."""

from __future__ import annotations

import pytest

from backends.fake_vllm import FakeVllm
from fedbpt_api.scoring.registry import open_backend

OTHER = """# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
"""


def line(size: str, on: str) -> str:
    """As vLLM 0.32 writes it, shortened."""
    return (
        f'vllm:cache_config_info{{_block_size_resolved="True",block_size="{size}",cache_dtype="auto",'
        f'effective_attention_block_size="7",enable_prefix_caching="{on}",engine="0",hash_block_size="None",'
        f'kv_cache_dtype_skip_layers="[]",mamba_block_size="None",user_specified_block_size="True"}} 1.0\n'
    )


@pytest.mark.parametrize(
    ("metrics", "block"),
    [
        (OTHER + line("32", "True"), 32),
        (OTHER + line("16", "True") + line("16", "True").replace('engine="0"', 'engine="1"'), 16),
        (line("16", "True") + line("32", "True"), 32),
        (OTHER + line("16", "False"), 1),
        (line("None", "True"), 1),
        (OTHER, 1),
        ("", 1),
        ('{"not": "metrics"}', 1),
        (None, 1),  # a gateway that hides it
    ],
)
async def test_the_block_is_read_from_the_server(metrics: str | None, block: int) -> None:
    async with FakeVllm(metrics=metrics).serve() as url:
        backend = await open_backend("vllm", base_url=url)
        assert backend.info.block == block
        assert backend.info.details["cache block"] == str(block)
        await backend.aclose()
