"""The language of texts, and their words as lexical search takes them: its stop words, its stems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache

from utils.records import WITHOUT_SPACES

SAMPLE = 2000  # characters of a text that its language is told from
TEXTS = 100  # texts that the language of all is told from
STOP_WORDS = {"da", "de", "en", "es", "fr", "it", "ko", "nl", "no", "pt", "ru", "sv", "tr"}  # those bm25s has
NORWEGIAN = {"nb", "nn"}  # its two written forms
WORD = rf"(?u){WITHOUT_SPACES.pattern}|[^\W{WITHOUT_SPACES.pattern[1:-1]}]{{2,}}"  # or one such character


def language(text: str) -> str:
    """The ISO 639 code of a text's language; "und" where its first characters do not tell it."""
    found = _identifier().classify(text[:SAMPLE])[0]
    return "und" if found == "zxx" else found  # zxx: numbers and codes, no language at all


def main_language(texts: Sequence[str]) -> str:
    """The language of most of the texts, from a hundred spread over them; "en" where none can be told."""
    some = [text for text in texts[:: max(1, len(texts) // TEXTS)] if text.strip()]
    told = Counter(language(text) for text in some)
    told.pop("und", None)
    together = language(" ".join(some)) if not told else told.most_common(1)[0][0]
    return "en" if together == "und" else together


def word_rules(spoken: str) -> dict[str, object]:
    """Arguments for `bm25s.tokenize`: what is a word, which words say nothing, how endings go.

    A language without a stemmer keeps its words whole; characters that no spaces set apart are taken singly.
    """
    import Stemmer

    spoken = "no" if spoken in NORWEGIAN else spoken  # both know it by this code
    try:
        stemmer = Stemmer.Stemmer(spoken)
    except KeyError:
        stemmer = None
    stop = spoken if spoken in STOP_WORDS else []
    return {"token_pattern": WORD, "stopwords": stop, "stemmer": stemmer, "show_progress": False}


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=0.9)
