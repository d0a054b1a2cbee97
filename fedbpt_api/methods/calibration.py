"""Contextual calibration (Zhao et al. 2021, arXiv 2102.09690, section 5): three calls, and no label.

The label probabilities p are divided by those that the prompt gives for texts without content,

    q = softmax(W p + b),   W = diag(p_cf)^-1,   b = 0,

p_cf being their mean over "N/A", "[MASK]" and the empty text. On logits that is a bias of -log p_cf. (Their
softmax over W p, which is a ratio of probabilities, ranks labels as W p itself does.)
"""

from __future__ import annotations

import numpy as np

from fedbpt_api.methods.searching import Searching, Stop
from fedbpt_api.run.assess import START
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.task import Example
from fedbpt_api.verbalizer import Verbalizer

CONTENT_FREE = ("N/A", "[MASK]", "")


async def search(run: Searching) -> Stop:
    """The first prompt, calibrated by the first client, on whose account the three calls are."""
    run.phase("starting prompts")
    parties = run.parties
    prompt = parties.start_ids
    encoder = Encoder(parties.backend, parties.task.template, parties.task.label_words)
    texts = await encoder.texts([Example(text, text_b=text) for text in CONTENT_FREE])
    plain = Verbalizer.from_words(parties.words, parties.groups)
    shares = plain.probabilities(*await parties.local[0].scorer.scores(prompt, texts))
    bias = -np.log(shares.mean(axis=0))
    calibrated = Verbalizer.from_bias(parties.words, parties.groups, 1.0, bias - bias.mean())
    await run.assessor.assess(prompt, START, fixed=calibrated)
    run.note(run.begun, run.assessor.best(), None, run.settings.search.sigma)
    return "rounds"
