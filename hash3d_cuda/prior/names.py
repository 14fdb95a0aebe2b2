"""Words to vocabulary names, and a helpful answer for the words that are not there."""

from __future__ import annotations

import difflib

from hash3d_cuda.prior.vocabulary import OBJECTS


def canonical_name(word: str, vocabulary: list[str]) -> str | None:
    """The vocabulary's name for ``word`` (case, hyphens, underscores, an article and known aliases do not matter)."""
    plain = " ".join(word.lower().replace("-", " ").replace("_", " ").split())
    for article in ("a ", "an ", "the "):
        plain = plain.removeprefix(article)
    if plain in vocabulary:
        return plain
    for item in OBJECTS:
        if plain in item.aliases and item.name in vocabulary:
            return item.name
    return None


def unknown_word(word: str, vocabulary: list[str]) -> str:
    """One line: what came, the nearest name when one is near, and everything the prior knows."""
    near = difflib.get_close_matches(word.lower(), vocabulary, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"subject: the shipped prior does not know {word!r}.{hint} It knows: {', '.join(sorted(vocabulary))}. "
        "For any other prompt or picture give --prior a diffusers folder."
    )
