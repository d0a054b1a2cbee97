"""The probe against a real vLLM: every finding against what is known of it (and was measured)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from fedbpt_backends.asking import Finding
from fedbpt_backends.survey import survey
from servers import vllm_cpu


def check_vllm(findings: Mapping[str, Finding]) -> None:
    """vLLM 0.32 on the CPU, started with --enable-prompt-embeds and --max-logprobs 200."""
    expected = {
        "completions route": True,
        "chat route": True,
        "tokenise route": True,
        "token-id prompts": True,
        "list prompts": True,
        "soft prompts": True,
        "named-token logprobs": True,
        "top-k list": True,
        "lists keyed by id": True,
        "echo logprobs": True,
        "prompt_logprobs": True,
        "temperature changes logprobs": False,  # raw_logprobs: before the sampler
        "bias changes logprobs": False,
        "grammar changes logprobs": True,  # its mask is written before the sampler takes its copy
        "prefix cache": True,
        "label ' yes'": True,
        "label ' no'": True,
    }
    wrong = [findings[name] for name, found in expected.items() if findings[name].found is not found]
    assert not wrong
    assert findings["list prompts"].value == "up to 1024"
    assert findings["named-token logprobs"].value == "up to 128"
    assert findings["top-k list"].value == "200"
    assert float(findings["noise"].value) < vllm_cpu.STEP


@pytest.mark.servers
async def test_vllm_is_what_its_source_says(vllm_url: str) -> None:
    done = await survey(vllm_url)
    check_vllm(done.findings)
    assert (done.identity.server, done.identity.version) == ("vLLM", "0.32.0")
    assert done.advice.way == "logprob_token_ids"
    assert done.backend["kind"] == "vllm"
