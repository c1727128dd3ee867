"""A taxonomy made from a corpus: a proposal for a person to edit, in the shape of the shipped tree.

Documents become TF-IDF vectors over words and pairs of words, reduced by singular values (latent semantic analysis,
Deerwester et al. 1990), and k-means groups them twice: into fields, and each field into topics. A group is described by
the terms that set it apart (class-based TF-IDF, arXiv 2203.05794) and by its most central sentence.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from align.core.artifact import write_text
from align.core.errors import UserError
from align.core.language import content_units, detect, sentences
from align.core.rows import Document

LEVELS = ("domain", "field", "topic")
DOMAIN_NAMES = {"en": "Corpus", "ko": "말뭉치"}
MAX_TOPICS = 400
WIDTH = 100  # of the reduced vectors, as usual in latent semantic analysis
NAME_TERMS, INCLUDE_TERMS = 3, 12
CENTRAL = 20  # documents that a group's definition is looked for in
EXAMPLES, EXAMPLE_CHARS = 3, 300
DEFINITION_CHARS = {"en": (40, 200), "ko": (20, 120)}

Namer = Callable[[Sequence[str], Sequence[str]], tuple[str, str]]

_MARKUP = re.compile(r"https?://\S+|www\.\S+|<[^<>]{0,200}>|\[[A-Z_-]+-\d+\]")  # addresses, tags, masked personal data
_BREAK = re.compile(r"[^\w\s'’-]+|_+|\n+")  # no pair of words across it
_WORD = re.compile(r"[^\W\d_]\w*(?:['’][^\W\d_]+)?")
# Particles, and endings of the verbs that nouns become with 하다 and 되다; a stem is what several of them follow.
_PARTICLES = frozenset(
    re.findall(
        r"\S+",
        "은 는 이 가 을 를 의 에 에서 에게 와 과 랑 이랑 로 으로 도 만 까지 부터 처럼 보다 마다 조차 밖에 나 이나 란 "
        "이란 라는 이라는 라고 이라고 에는 에서는 에도 에서도 에만 에서만 에서의 로는 으로는 로도 으로도 로의 으로의 "
        "로서 으로서 로써 으로써 로부터 으로부터 와의 과의 와는 과는 들 들은 들이 들을 들의 들에 들과 들도 에게는 에게서 "
        "이다 입니다 이며 이고 이지만 이었다 였다 인 일 임 하다 하는 하고 하며 하면 하여 하지 하지만 하기 하도록 하게 "
        "하세요 해 해서 해야 했다 했고 했던 한 한다 할 함 합니다 했습니다 하였다 되다 되는 되고 되며 되면 되어 되지 되기 "
        "되도록 돼 됐다 된 된다 될 됨 됩니다 되었다 되었습니다 시키는 시키고 시킨 시킬 시킵니다",
    )
)
# Endings of words that are no nouns: of any word, and of one that no second particle follows anywhere.
_VERB = re.compile(r"(니다|니까|세요|어요|아요|네요|군요|았다|었다|했다|는다|인다|하다|되다|것이|것은)$")
_MAYBE_VERB = re.compile(r"(다|요|고|며|면|서|게|지|려면|거나|여|어|아|라|려|러|든|던|까|죠|니|듯|큼|록|데)$")
# Nouns and adverbs without a meaning of their own.
_EMPTY_NOUNS = frozenset(
    re.findall(
        r"\S+",
        "경우 때문 다음 위해 통해 대해 대한 대하여 관련 아래 이때 그때 여기 여러 모든 다른 다시 새로 함께 바로 먼저 매우 "
        "가장 하나 우리 당신 이것 그것 무엇 사실 정도 이상 이하 이후 이전 그리고 그러나 하지만 따라서 그래서 또는 또한 "
        "만약 예를 들어 수도 모두 각각 자신 가지 부분 동안 사이 이유 방법 필요 사용 가능 있음 없음 그런 이런 어떤 같은 "
        "같이 이미 아직 계속 항상 다만 제외",
    )
)


class _Terms:
    """Words and pairs of neighbouring words of a corpus, each by the key that its forms have in common.

    English words lose their plural, Korean ones the particles: the stem is the beginning that the corpus has with the most
    different particles, so that a noun which only looks as if it ended in one stays whole.
    """

    def __init__(self, texts: Sequence[str], lang: str) -> None:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        self._korean, self._stop_words = lang == "ko", ENGLISH_STOP_WORDS
        self._forms: dict[str, Counter[str]] = defaultdict(Counter)
        self._known: dict[str, tuple[str, str]] = {}
        words = {word for text in texts for word in _WORD.findall(text)} if self._korean else set[str]()
        self._followed = Counter(stem for word in words for stem in _stems(word))

    def __call__(self, text: str) -> list[tuple[str, str]]:
        """(key, form) of the words and pairs of a text, in order."""
        found = []
        for part in _BREAK.split(_MARKUP.sub("\n", text)):
            before = "", ""
            for word in _WORD.findall(part):
                if word not in self._known:
                    self._known[word] = self._key(word)
                key, form = self._known[word]
                if key:
                    found.append((key, form))
                if key and before[0]:
                    found.append((f"{before[0]} {key}", f"{before[1]} {form}"))
                before = key, form
        return found

    def counting(self, text: str) -> list[str]:
        """The keys of a text; its forms count for `written`."""
        found = self(text)
        for key, form in found:
            self._forms[key][form] += 1
        return [key for key, _ in found]

    def written(self, key: str) -> str:
        """As it was written most often."""
        return min(self._forms[key].items(), key=lambda item: (-item[1], item[0]))[0]

    def _key(self, word: str) -> tuple[str, str]:
        """Key and form of a word, empty for one that is no term."""
        stem = max(_stems(word), key=lambda s: (self._followed[s], len(s)), default="") if self._korean else word
        if not self._korean or stem.isascii():
            form = re.sub(r"['’]s$", "", stem)
            small = re.sub(r"ies$", "y", form.lower())
            empty = len(form) < 3 or small in self._stop_words or re.search(r"['’]", form)
            key = "" if empty else next(iter(content_units(small, "en")), "")
            return key, form
        ends = any(stem[i:] in _PARTICLES for i in range(1, len(stem))) or _MAYBE_VERB.search(stem)
        if stem in _EMPTY_NOUNS | _PARTICLES or _VERB.search(stem) or (ends and self._followed[stem] < 2):
            return "", ""
        return stem, stem


def _stems(word: str) -> list[str]:
    """What a Korean word may be without its particles, itself among them; at least two letters."""
    return [word[:end] for end in range(2, len(word) + 1) if end == len(word) or word[end:] in _PARTICLES]


@dataclass(frozen=True)
class Groups:
    """Documents with terms, in their groups.

    Attributes:
        documents: (n,) index of each in what was given; texts that share no term with another are left out.
        field, topic: (n,) numbers from 0, the larger groups first; a topic belongs to one field.
        vectors: (n, width) of length 1.
        counts: (n, terms) sparse, how often each term is in each document.
        keys: of the columns of `counts`.
        finder: of keys in further texts, and of their forms.
    """

    documents: np.ndarray
    field: np.ndarray
    topic: np.ndarray
    vectors: np.ndarray
    counts: Any
    keys: Sequence[str]
    finder: _Terms


def group(
    texts: Sequence[str], lang: str, *, topics_per_field: int | None = None, fields: int | None = None, seed: int
) -> Groups:
    """Fields and topics of texts.

    Args:
        texts: of the documents.
        lang: en or ko.
        topics_per_field: on average, larger fields have more; by default so many that there are sqrt(n / 2) topics.
        fields: how many; by default the square root of the number of topics. Few or equal texts give fewer of both.
        seed: of k-means and the reduction; the same gives the same groups.

    Raises:
        UserError: no text has a term, or a number below 1 is asked for.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if any(number is not None and number < 1 for number in (topics_per_field, fields)):
        raise UserError("taxonomy: fields and topics_per_field must be at least 1")
    finder = _Terms(texts, lang)
    counts, keys = _counted(texts, finder)
    used = np.flatnonzero(np.asarray(counts.sum(axis=1)).ravel())
    counts = counts[used]
    topics = min(MAX_TOPICS, max(1, round((len(used) / 2) ** 0.5)))
    fields = fields or max(1, round(topics**0.5))
    topics = fields * topics_per_field if topics_per_field else topics
    topic = np.zeros(len(used), int)
    with threadpool_limits(limits=1):  # threads add up in any order, and the last digits would depend on it
        vectors = _reduced(counts, seed)
        field = _clusters(vectors, fields, seed)
        for number in range(field.max() + 1):
            inside = np.flatnonzero(field == number)
            first = topic.max() + 1 if number else 0
            topic[inside] = first + _clusters(vectors[inside], round(topics * len(inside) / len(used)), seed)
    return Groups(used, field, topic, vectors, counts, keys, finder)


def _counted(texts: Sequence[str], finder: _Terms) -> tuple[Any, list[str]]:
    """(texts, keys) counts, sparse, and the keys; one that a single text has says nothing of what several share."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(analyzer=finder.counting)
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # an empty vocabulary
        raise UserError("taxonomy: no document in this language has words to make topics from") from None
    in_texts = np.asarray((counts > 0).sum(axis=0)).ravel()
    shared = np.flatnonzero(in_texts > 1) if (in_texts > 1).any() else np.arange(len(in_texts))
    return counts[:, shared], vectorizer.get_feature_names_out()[shared].tolist()


def _reduced(counts: Any, seed: int) -> np.ndarray:
    """(documents, width) of length 1."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.preprocessing import normalize

    vectors = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    width = min(WIDTH, min(vectors.shape) - 1)
    if width < 2:
        return np.asarray(vectors.toarray())
    with np.errstate(invalid="ignore"):  # the variance of equal documents, which is not used, is 0 / 0
        return np.asarray(normalize(TruncatedSVD(width, random_state=seed).fit_transform(vectors)))


def _clusters(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(documents,) numbers from 0 of at most `count` clusters, the largest first."""
    from sklearn.cluster import KMeans

    count = min(count, len(np.unique(vectors.round(6), axis=0)))
    if count < 2:
        return np.zeros(len(vectors), int)
    found = KMeans(count, n_init=10, random_state=seed).fit_predict(vectors)
    labels, first, sizes = np.unique(found, return_index=True, return_counts=True)
    return np.asarray(np.argsort(np.lexsort((first, -sizes)))[np.searchsorted(labels, found)])


def induce(
    documents: Sequence[Document],
    lang: str,
    *,
    topics_per_field: int | None = None,
    fields: int | None = None,
    seed: int,
    namer: Namer | None = None,
) -> dict[str, Any]:
    """A tree from the documents of one language, as `load_taxonomy` reads it; `about` says how it was made.

    Args:
        documents: those in other languages are left out. Some ten thousands fit in memory; of more, give a sample.
        lang: en or ko.
        topics_per_field, fields, seed: as in `group`.
        namer: (terms, beginnings of the most central documents) -> (name, definition), of every field and topic; what it
            leaves empty, and all without it, is the first terms and the most central sentence.

    Raises:
        UserError: no document has a word, or a number below 1 is asked for.
    """
    mine = [document for document in documents if document.lang == lang]
    found = group([d.text for d in mine], lang, topics_per_field=topics_per_field, fields=fields, seed=seed)
    mine = [mine[i] for i in found.documents]
    describe = _Describer(found, [d.text for d in mine], lang, namer)
    seen: set[str] = set()

    def new_id(name: str) -> str:
        """Unique in all languages."""
        slug = "-".join([lang, *re.findall(r"[^\W_]+", name.lower())])[:60].rstrip("-")
        own = next(i for n in range(1, len(seen) + 2) if (i := slug if n == 1 else f"{slug}-{n}") not in seen)
        seen.add(own)
        return own

    nodes: list[Any] = []
    domain = {"id": new_id("corpus"), "name": {lang: DOMAIN_NAMES[lang]}, "children": nodes}
    for field in range(found.field.max() + 1):
        name, _, _ = describe(found.field, field)
        children: list[Any] = []
        nodes.append({"id": new_id(name), "name": {lang: name}, "children": children})
        for topic in np.unique(found.topic[found.field == field]).tolist():
            name, definition, terms = describe(found.topic, topic)
            children.append({
                "id": new_id(name), "name": {lang: name}, "definition": {lang: definition}, "include": {lang: terms},
            })  # fmt: skip
    about = (
        f"{len(mine)} documents in {lang}, seed {seed}: {found.topic.max() + 1} topics in {found.field.max() + 1} fields, "
        f"named by {'a model' if namer else 'their terms'}"
    )
    licences = ", ".join(sorted({d.license for d in mine}))
    return {"about": [about], "version": 1, "name": "induced", "license": licences, "levels": [*LEVELS], "nodes": [domain]}


class _Describer:
    """What a group of documents is about: (name, definition, terms)."""

    def __init__(self, groups: Groups, texts: Sequence[str], lang: str, namer: Namer | None) -> None:
        self._groups, self._texts, self._lang, self._namer = groups, texts, lang, namer
        self._totals = np.asarray(groups.counts.sum(axis=0)).ravel()
        self._column = {key: i for i, key in enumerate(groups.keys)}
        pairs = [(i, *map(self._column.get, key.split(" "))) for key, i in self._column.items() if " " in key]
        self._pairs = np.asarray(pairs, int).reshape(-1, 3).T  # the words of a pair are in as many documents at least

    def __call__(self, label: np.ndarray, number: int) -> tuple[str, str, list[str]]:
        inside = np.flatnonzero(label == number)
        score = self._telling(inside, label.max() + 1)
        best = [i for i in np.argsort(-score, kind="stable")[:INCLUDE_TERMS] if score[i] > 0]
        terms = [self._groups.finder.written(self._groups.keys[i]) for i in best]
        vectors = self._groups.vectors[inside]
        central = inside[np.argsort(-(vectors @ vectors.mean(axis=0)), kind="stable")[:CENTRAL]]
        name, definition = _name(terms), self._sentence(central, score)
        if self._namer:
            examples = [" ".join(self._texts[i].split())[:EXAMPLE_CHARS] for i in central[:EXAMPLES]]
            given = [" ".join(text.split()) for text in self._namer(terms, examples)]
            name, definition = given[0] or name, given[1] or definition
        return name, definition, terms

    def _telling(self, inside: np.ndarray, groups: int) -> np.ndarray:
        """(terms,) what sets a group apart: count times log(1 + mean words of a group / count anywhere), as c-TF-IDF has it.

        A word is counted as often as it stands outside the pair that it is in most (nested terms, Frantzi et al. 2000).
        """
        count = np.asarray(self._groups.counts[inside].sum(axis=0)).ravel()
        nested = np.zeros_like(count)
        for word in self._pairs[1:]:
            np.maximum.at(nested, word, count[self._pairs[0]])
        return np.asarray((count - nested) * np.log1p(self._totals.sum() / groups / self._totals))

    def _sentence(self, central: np.ndarray, score: np.ndarray) -> str:
        """The sentence of some documents that is nearest to a group's terms by cosine, or else their beginning."""
        low, high = DEFINITION_CHARS[self._lang]
        best, found = 0.0, ""
        for i in central:
            for sentence in (" ".join(s.split()) for s in sentences(self._texts[i])):
                if not (low <= len(sentence) <= high and sentence[0].isalnum() and sentence.endswith(".")):
                    continue
                keys = dict.fromkeys(key for key, _ in self._groups.finder(sentence))
                columns = [self._column[key] for key in keys if key in self._column]
                value = score[columns].sum() / max(1, len(columns)) ** 0.5
                if value > best and detect(sentence) == self._lang:
                    best, found = value, sentence
        beginning = " ".join(self._texts[central[0]].split())
        return found or (beginning if len(beginning) <= high else beginning[:high].rpartition(" ")[0] or beginning[:high])


def _name(terms: Sequence[str]) -> str:
    """The first terms that have no word in common."""
    chosen: list[str] = []
    for term in terms:
        if len(chosen) < NAME_TERMS and not {*term.lower().split()} & {*" ".join(chosen).lower().split()}:
            chosen.append(term)
    name = ", ".join(chosen)
    return name[0].upper() + name[1:]


def side_by_side(trees: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One tree with the nodes of several, such as those of two languages."""
    return {
        **trees[0],
        "about": [line for tree in trees for line in tree["about"]],
        "license": ", ".join(sorted({name for tree in trees for name in tree["license"].split(", ")})),
        "nodes": [node for tree in trees for node in tree["nodes"]],
    }


def write_tree(path: Path, tree: dict[str, Any]) -> None:
    """Write a tree as YAML like the shipped one, whole or not at all; `about` becomes the comment on top."""
    lines = [
        "# A taxonomy induced from a corpus, a proposal to edit: names, definitions, terms and what lies where.",
        "# Documents were grouped by k-means on reduced TF-IDF vectors, into fields and each of them into topics; terms",
        "# are by class-based TF-IDF, definitions are sentences of the documents (under their licences) or by a model.",
        *(f"# {line}" for line in tree.get("about", ())),
        *(f"{key}: {_flow(value)}" for key, value in tree.items() if key not in ("about", "nodes")),
        "nodes:",
    ]

    def add(node: dict[str, Any], indent: str) -> None:
        for number, (key, value) in enumerate(node.items()):
            start = indent + ("  " if number else "- ")
            if key == "children":
                lines.append(f"{start}children:")
                for child in value:
                    add(child, indent + "    ")
            else:
                lines.append(f"{start}{key}: {_flow(value)}")

    for top in tree["nodes"]:
        add(top, "  ")
    write_text(path, "\n".join(lines) + "\n")


def _flow(value: Any) -> str:
    """A value on one line."""
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=2**31, sort_keys=False).strip()[1:-1]
