"""From log-probabilities of named words to label probabilities: applying a verbalizer, and fitting one.

`verbalizer` applies it; `words` chooses its word list; `client` and `server` fit it over clients with
the messages of `messages`; `regression` and `descent` are the numbers underneath.
"""

from fedbpt_api.verbalizer.client import ClientFit
from fedbpt_api.verbalizer.committee import Committee, Reading
from fedbpt_api.verbalizer.messages import WordSums, decode, encode
from fedbpt_api.verbalizer.problem import FitError
from fedbpt_api.verbalizer.server import Answering, FitReport, fit, fit_over_clients
from fedbpt_api.verbalizer.verbalizer import Kind, Verbalizer
from fedbpt_api.verbalizer.words import deviations, label_groups, merge_words, questions, ranked, word_sums

__all__ = [
    "Answering",
    "ClientFit",
    "Committee",
    "FitError",
    "FitReport",
    "Kind",
    "Reading",
    "Verbalizer",
    "WordSums",
    "decode",
    "deviations",
    "encode",
    "fit",
    "fit_over_clients",
    "label_groups",
    "merge_words",
    "questions",
    "ranked",
    "word_sums",
]
