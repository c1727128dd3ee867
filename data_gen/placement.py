"""Placement of texts in the taxonomy: a text goes to the nearest topic of its language.

Similarity is the cosine of TF-IDF vectors over character n-grams, which works alike for English and Korean and needs no
model; with a sentence encoder it is the mean of that and the cosine of embeddings. Documents of a batch help to place each
other: what a short or general text leaves open, its neighbours often tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from align.core.errors import UserError
from data_gen.taxonomy import Taxonomy


class _Vectors(NamedTuple):
    """Of some texts: sparse TF-IDF rows and, with an encoder, embeddings, all of length 1."""

    tfidf: Any
    embedded: np.ndarray | None


class TopicIndex:
    """The topics of one language, to compare texts with.

    Args:
        taxonomy: the tree.
        lang: of the topics and of the texts.
        embedder: (texts, width) of length 1, such as `data_gen.embedding.Embedder`; None compares by TF-IDF alone.

    Attributes:
        ids: of the topics of this language, in file order.
        texts: name, definition and terms of each.
        about: id -> name and definition, to show to whoever chooses.

    Raises:
        UserError: the tree has no topic in this language.
    """

    def __init__(self, taxonomy: Taxonomy, lang: str, embedder: Callable[[Sequence[str]], np.ndarray] | None = None) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        leaves = [leaf for leaf in taxonomy.leaves if lang in leaf.name]
        if not leaves:
            raise UserError(f"the taxonomy has no topic in language {lang}")
        self.ids = [leaf.id for leaf in leaves]
        self.texts = [" ".join([leaf.name[lang], leaf.definition[lang], " ".join(leaf.include[lang])]) for leaf in leaves]
        self.about = {leaf.id: f"{leaf.name[lang]} - {leaf.definition[lang]}" for leaf in leaves}
        self._embedder = embedder
        self._vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit(self.texts)
        self._topics = self._vectors(self.texts)

    def _vectors(self, texts: Sequence[str]) -> _Vectors:
        return _Vectors(self._vectorizer.transform(texts), None if self._embedder is None else self._embedder(texts))

    def similarity(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, topics) float64 in [0, 1]: TF-IDF cosine, or its mean with that of embeddings, where below 0 is 0."""
        if not texts:
            return np.zeros((0, len(self.ids)))
        return _cosine(self._vectors(texts), self._topics)

    def of_documents(self, texts: Sequence[str], neighbours: int = 5) -> np.ndarray:
        """(documents, topics) float64 in [0, 1]: similarity of each, averaged with that of its nearest documents.

        A document counts 1, a neighbour as much as it resembles the document: k-nearest-neighbour smoothing with the
        similarity as its kernel (Nadaraya 1964, Watson 1964). In a batch where no two documents are alike, each stays
        where it is. The time goes with the square of the batch; some hundreds of documents are a good one.

        Args:
            texts: a batch of documents.
            neighbours: how many of the others to look at, at most; 0 gives `similarity`.
        """
        if not texts:
            return np.zeros((0, len(self.ids)))
        vectors = self._vectors(texts)
        table = _cosine(vectors, self._topics)
        alike = _cosine(vectors, vectors)
        np.fill_diagonal(alike, -1.0)
        nearest = np.argsort(-alike, axis=1, kind="stable")[:, : min(neighbours, len(texts) - 1)]
        weights = np.take_along_axis(alike, nearest, axis=1)
        summed = table + np.einsum("dn,dnt->dt", weights, table[nearest])
        return np.asarray(summed / (1 + weights.sum(axis=1, keepdims=True)))

    def of_units(self, facts: Sequence[str], text: str, document_row: np.ndarray) -> np.ndarray:
        """(facts, topics) float64 in [0, 1] for statements taken from a document.

        Args:
            facts: the statements.
            text: of the document, which tells what a short statement is about.
            document_row: (topics,) of the document, from `of_documents`; counts half.
        """
        return (self.similarity([f"{fact} {text}" for fact in facts]) + document_row) / 2

    def shortlist(self, scores_row: np.ndarray, k: int) -> list[str]:
        """Ids of the `k` topics with the highest scores, best first; ties go to the first in the file."""
        return [self.ids[j] for j in np.argsort(-scores_row, kind="stable")[:k]]

    def nearest(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """(leaf id, similarity in [0, 1]) for each text by itself; ties go to the first in the file."""
        table = self.similarity(texts)
        return [(self.ids[j], float(row[j])) for row, j in zip(table, table.argmax(axis=1), strict=True)]


def _cosine(a: _Vectors, b: _Vectors) -> np.ndarray:
    """(rows of a, rows of b), in [0, 1]."""
    found = (a.tfidf @ b.tfidf.T).toarray()
    if a.embedded is not None and b.embedded is not None:
        found = (found + np.maximum(a.embedded @ b.embedded.T, 0)) / 2
    return np.asarray(np.minimum(found, 1.0))  # a cosine of equals is a little more than 1
