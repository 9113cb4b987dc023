"""Strategic grams: a file of phrases, where they stand in what an agent says, and how they are mined from its resolved episodes.

Knows texts and episodes; no tokens (planning.py) and no model but a small one of word embeddings, whose weights are in its package
(wordllama, 16 MB, nothing is fetched). Only reasoning is read: no action, no observation; in it, what stands in backquotes and words
with digits, dots, slashes or underscores are code and paths, and end a phrase.

Mining (arXiv:2509.03646): phrases of 3 to 5 words of resolved episodes -> embeddings -> clusters -> the share of episodes that have a
phrase of the cluster -> the top 20 % of clusters -> their phrases. The paper gives no number of clusters: 100, or a fifth of the
phrases where there are fewer than 500. Phrases of connectives alone, and those of a single episode, are left out.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from .action import ActionFormat, prose
from .config_io import read_text
from .types import Episode, Stop

BUILT_IN = Path(__file__).with_name("grams.txt")
SIZES = (3, 4, 5)
CLUSTERS = 100
TOP = 0.2
MOST = 20_000
"""Phrases that are embedded: those of most episodes."""
CONNECTIVES = frozenset(
    """a an and are as at be been but by for from had has have he her his if in into is it its of on or our she so than that the their them
    then there these they this those to was we were which who will with would you your also just very i""".split()  # noqa: SIM905
)
_LINE = re.compile(r"[a-z']+(?: [a-z']+)+")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_CODE = re.compile(r"`[^`\n]*`|(?<![^\s`])[^\s`]*[\d_/\\.=<>(){}\[\]]\w[^\s`]*")
_GAP = r"[\s,]+"


@dataclass(frozen=True, slots=True)
class Match:
    """A gram in a text."""

    start: int
    end: int
    """Characters of the text."""
    gram: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """Phrases that say much the same."""

    grams: tuple[str, ...]
    episodes: int
    """That have one of them."""


@cache
def load_grams(path: Path | None) -> tuple[str, ...]:
    """The grams of a file, case-folded, each once; ValueError where a line is no phrase, or there is none."""
    file = path or BUILT_IN
    grams: dict[str, None] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        gram = " ".join(line.partition("#")[0].casefold().split())
        if gram and not _LINE.fullmatch(gram):
            raise ValueError(f"{file}, line {number}: {gram!r} is no gram: two or more words of letters and apostrophes")
        if gram:
            grams[gram] = None
    if not grams:
        raise ValueError(f"{file}: holds no gram")
    return tuple(grams)


def find_grams(text: str, grams: Sequence[str]) -> list[Match]:
    """Where they stand, from left to right, the longest of several at one place; case and kind of apostrophe do not matter, words may
    be a line apart."""
    return [
        Match(*found.span(), " ".join(re.split(_GAP, found[0].casefold().replace("\u2019", "'"))))
        for found in _pattern(tuple(grams)).finditer(text)
    ]


@cache
def _pattern(grams: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(grams, key=len, reverse=True)
    words = "|".join(_GAP.join(map(re.escape, gram.split())) for gram in longest_first).replace("'", "['\u2019]")
    return re.compile(rf"(?<![\w']){'(?:' + words + ')'}(?![\w'])", re.IGNORECASE)


def phrases(text: str) -> Iterator[list[str]]:
    """The words of each stretch of a text that is neither code nor ended by punctuation."""
    plain = _CODE.sub(".", text).casefold().replace("\u2019", "'")
    for stretch in re.split(r"[^\w\s',]+", plain):
        if words := _WORD.findall(stretch):
            yield words


def grams_of(text: str) -> set[str]:
    """Its phrases of 3 to 5 words that are more than connectives."""
    found = set()
    for words in phrases(text):
        for size in SIZES:
            for start in range(len(words) - size + 1):
                part = words[start : start + size]
                if not set(part) <= CONNECTIVES and all(word.isascii() for word in part):
                    found.add(" ".join(part))
    return found


def mine_grams(episodes: Iterable[Episode], action_format: ActionFormat = "fenced", seed: int = 0) -> list[Cluster]:
    """The clusters to keep, those of most episodes first; ValueError where no phrase comes in two resolved episodes."""
    where: dict[str, set[str]] = defaultdict(set)
    for episode in episodes:
        if episode.stop is Stop.INFRA or episode.reward != 1.0:
            continue
        for turn in episode.turns:
            for gram in grams_of(prose(turn.completion.text, action_format)):
                where[gram].add(episode.episode_id)
    common = Counter({gram: len(names) for gram, names in where.items() if len(names) > 1})
    if not common:
        raise ValueError(f"no phrase of 3 to 5 words comes in two resolved episodes ({len(where)} phrases were looked at)")
    chosen = sorted(common, key=lambda gram: (-common[gram], gram))[:MOST]
    members: dict[int, list[str]] = defaultdict(list)
    for gram, label in zip(chosen, cluster(chosen, seed), strict=True):
        members[label].append(gram)
    found = [Cluster(tuple(grams), len(set().union(*(where[gram] for gram in grams)))) for grams in members.values()]
    found.sort(key=lambda one: (-one.episodes, one.grams))
    return found[: max(1, round(TOP * len(found)))]


def cluster(grams: Sequence[str], seed: int) -> list[int]:
    """The number of each gram's cluster."""
    import wordllama  # heavy, and only here

    logging.getLogger("kmeans_logger").setLevel(logging.WARNING)
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    count = min(CLUSTERS, max(1, len(grams) // 5))
    labels, _ = model.cluster(list(grams), k=count, random_state=np.random.RandomState(seed))
    return [int(label) for label in labels]


def write_grams(path: Path, clusters: Sequence[Cluster], episodes: int) -> None:
    """A file to be read and edited."""
    lines = [f"# {sum(len(one.grams) for one in clusters)} strategic grams of {episodes} resolved episodes; a # begins a comment."]
    for number, one in enumerate(clusters, 1):
        lines += ["", f"# cluster {number}, in {one.episodes} episodes", *one.grams]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
