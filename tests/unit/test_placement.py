"""Placement: similarities follow their formulas, neighbours help and do no harm, embeddings do not depend on the batch."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.core.errors import UserError
from data_gen.corpus import Read, Rules, read_record
from data_gen.embedding import Embedder
from data_gen.placement import TopicIndex
from data_gen.sources import read_files
from data_gen.taxonomy import Node, Taxonomy, load_taxonomy

ROOT = Path(__file__).parents[2]
TOPICS = ("honey", "bread", "stars")


def own_tree(langs: Sequence[str] = ("en",)) -> Taxonomy:
    leaves = [
        Node(i, f"all/{i}", {x: i for x in langs}, {x: f"About {i}." for x in langs}, {x: [f"{i} term"] for x in langs})
        for i in TOPICS
    ]
    return Taxonomy(("domain", "topic"), tuple(leaves), (("all", "", "all", "domain", {"en": "All"}),))


class Angles:
    """Embeds a text as the direction that its first number says, in degrees; a topic as 0, 90 and 180."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        of_topic = {topic: 90.0 * i for i, topic in enumerate(TOPICS)}
        angles = [of_topic[first] if (first := text.split()[0]) in of_topic else float(first) for text in texts]
        radians = np.deg2rad(np.asarray(angles, np.float32))
        return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def shipped(lang: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / f"recipes/data/corpus/{lang}.jsonl").read_text("utf-8").splitlines()]


def test_nearest_in_a_tree_of_ones_own() -> None:
    index = TopicIndex(own_tree(), "en")
    assert [name for name, _ in index.nearest(["About stars at night.", "Fresh bread, honey!", "honey honey"])] == [
        "stars", "bread", "honey",
    ]  # fmt: skip
    assert index.nearest([]) == []
    (_, nothing), (_, itself) = index.nearest(["12345", "bread About bread. bread term"])
    assert nothing == 0.0 and itself == pytest.approx(1.0)
    assert index.about == {i: f"{i} - About {i}." for i in TOPICS} and index.ids == list(TOPICS)
    with pytest.raises(UserError, match="no topic in language ko"):
        TopicIndex(own_tree(), "ko")


def test_a_leaf_may_hold_one_language_only() -> None:
    both, only = own_tree(("en", "ko")), own_tree(("en",))
    mixed = Taxonomy(both.levels, (*both.leaves[:1], *only.leaves[1:]), both.inner)
    assert TopicIndex(mixed, "ko").ids == ["honey"] and TopicIndex(mixed, "en").ids == list(TOPICS)


def test_with_an_embedder_similarity_is_the_mean_of_both_cosines_and_below_0_is_0() -> None:
    plain, both = TopicIndex(own_tree(), "en"), TopicIndex(own_tree(), "en", Angles())
    texts = ["30 honey stars", "120 bread", "180 xyz"]
    cosines = np.maximum(np.cos(np.deg2rad(np.asarray([[30, 60, 150], [120, 30, 60], [180, 90, 0]]))), 0)
    np.testing.assert_allclose(both.similarity(texts), (plain.similarity(texts) + cosines) / 2, atol=1e-6)
    assert plain.similarity([]).shape == both.of_documents([]).shape == both.of_units([], "1", np.zeros(3)).shape == (0, 3)
    longer = TopicIndex(own_tree(), "en", lambda texts: Angles()(texts) * np.float32(1.001))
    assert longer.similarity(longer.texts).max() == 1, "rounding does not lead above 1"
    assert [index.nearest(["90 stars honey bread"])[0][0] for index in (plain, both)] == ["honey", "bread"]


@pytest.mark.parametrize("embedder", [None, Angles()])
def test_documents_are_averaged_with_their_nearest_by_resemblance(embedder: Angles | None) -> None:
    index = TopicIndex(own_tree(), "en", embedder)
    draw = random.Random(3)
    words = ["honey", "bread", "stars", "term", "night", "about", "fresh"]
    texts = [f"{draw.randrange(360)} {' '.join(draw.choices(words, k=4))}" for _ in range(12)]
    alone, vectors = index.similarity(texts), index._vectors(texts)
    tfidf = (vectors.tfidf @ vectors.tfidf.T).toarray()
    alike = tfidf if vectors.embedded is None else (tfidf + np.maximum(vectors.embedded @ vectors.embedded.T, 0)) / 2
    for neighbours in (1, 3, 11, 50):
        found = index.of_documents(texts, neighbours)
        for i, row in enumerate(found):
            nearest = sorted((j for j in range(12) if j != i), key=lambda j: -alike[i, j])[:neighbours]
            weights = [1.0, *(alike[i, j] for j in nearest)]
            expected = sum(w * alone[j] for w, j in zip(weights, [i, *nearest], strict=True)) / sum(weights)
            np.testing.assert_allclose(row, expected, atol=1e-6)
    np.testing.assert_array_equal(index.of_documents(texts, 0), alone)
    np.testing.assert_allclose(index.of_documents(texts[:1]), alone[:1], atol=1e-6)
    backwards = index.of_documents(texts[::-1])[::-1]
    np.testing.assert_allclose(index.of_documents(texts), backwards, atol=1e-6)


def test_neighbours_settle_what_a_document_leaves_open_and_strangers_change_nothing() -> None:
    index = TopicIndex(own_tree(), "en", Angles())
    texts = ["46 qqq", "10 honey", "20 honey", "226 stars"]
    assert index.similarity(texts)[0].argmax() == 1
    found = index.of_documents(texts)
    assert found[0].argmax() == 0, "its neighbours lie nearer to honey"
    np.testing.assert_allclose(found[3], index.similarity(texts)[3], atol=1e-6)


def test_units_are_half_their_document() -> None:
    index = TopicIndex(own_tree(), "en", Angles())
    row = np.asarray([0.0, 0.2, 0.8])
    found = index.of_units(["10 honey", "80 bread"], "stars", row)
    np.testing.assert_allclose(found, (index.similarity(["10 honey stars", "80 bread stars"]) + row) / 2)


def test_shortlist_is_best_first_and_ties_go_by_the_file() -> None:
    index = TopicIndex(own_tree(), "en")
    assert index.shortlist(np.asarray([0.2, 0.5, 0.2]), 2) == ["bread", "honey"]
    assert index.shortlist(np.asarray([0.0, 0.0, 0.1]), 9) == ["stars", "honey", "bread"]


# Measured: 56 of 56 and 28 of 28, by themselves as among each other; a plain mean of neighbours would leave 0.32 and 0.36.
@pytest.mark.parametrize("lang", ["en", "ko"])
def test_shipped_documents_land_in_their_own_topic_even_among_documents_on_others(lang: str) -> None:
    index = TopicIndex(load_taxonomy(None), lang)
    documents = shipped(lang)
    own = [d["id"].removeprefix(f"{lang}-") for d in documents]
    texts = [d["text"] for d in documents]
    alone = index.nearest(texts)
    assert all(0.05 < similarity <= 1 for _, similarity in alone)
    assert sum(a == b for a, (b, _) in zip(own, alone, strict=True)) >= 0.95 * len(documents)
    among = [index.shortlist(row, 1)[0] for row in index.of_documents(texts)]
    assert sum(a == b for a, b in zip(own, among, strict=True)) >= 0.95 * len(documents)


# Measured without an embedder, all 1,040: 0.774 each by itself, 0.830 with neighbours (benchmarks/placement.py).
@pytest.mark.shared_data
def test_neighbours_help_real_documents(shared_data: Path) -> None:
    rules = Rules(
        languages=("en",), allow_licenses=None, min_chars=1, max_chars=2000, filters=False, mask_pii=False, run_seed=0
    )
    found = [read_record(line, rules) for line in read_files([shared_data / "corpus/web_en.jsonl"])][:512]
    documents = [read.document for read in found if isinstance(read, Read)]
    domains = {
        "statistics": "mathematics-and-statistics", "psychology": "psychology", "political": "politics-and-government",
        "sociology": "sociology",
    }  # fmt: skip
    wanted = [next(domain for word, domain in domains.items() if word in d.source) for d in documents]
    tree = load_taxonomy(None)
    index = TopicIndex(tree, "en")
    top = np.asarray([leaf.path.split("/")[0] for leaf in tree.leaves])
    texts = [d.text for d in documents]
    alone, helped = (
        float(np.mean(top[t.argmax(1)] == wanted)) for t in (index.similarity(texts), index.of_documents(texts))
    )
    assert len(documents) == 512 and alone > 0.72 and helped > max(0.79, alone + 0.03), (alone, helped)


TEXTS = ["Honey keeps.", "Bees make honey from the nectar of flowers, and they keep it in combs of wax.", "x", "", "꿀벌"]


def test_embeddings_have_length_1_whatever_the_batch(tiny_bert: Path) -> None:
    embedder = Embedder(tiny_bert)
    together = embedder(TEXTS * 20)
    assert together.dtype == np.float32 and together.shape[0] == 100 and embedder([]).shape == (0, together.shape[1])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(embedder([text])[0], together[i], atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-3)


def test_an_embedding_is_the_mean_of_the_states_of_all_tokens(tiny_bert: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(tiny_bert)(TEXTS[1], return_tensors="pt")
    with torch.inference_mode():
        mean = AutoModel.from_pretrained(tiny_bert, dtype=torch.float32).eval()(**inputs).last_hidden_state[0].mean(dim=0)
    np.testing.assert_allclose(Embedder(tiny_bert)([TEXTS[1], TEXTS[0]])[0], (mean / mean.norm()).numpy(), atol=1e-5)


def test_only_the_first_tokens_count(tiny_bert: Path) -> None:
    long = "Honey keeps for years. "
    short = Embedder(tiny_bert, max_tokens=12)
    np.testing.assert_allclose(short([long * 2]), short([long * 9]), atol=1e-6)
    whole = Embedder(tiny_bert, max_tokens=100)
    assert not np.allclose(whole([long * 2]), whole([long * 3]), atol=1e-6)
    np.testing.assert_allclose(Embedder(tiny_bert)([long * 20]), Embedder(tiny_bert)([long * 50]), atol=1e-6)


def test_what_is_no_encoder_is_refused_in_one_line(tiny_bert: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_bert, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    for folder in (tmp_path / "nowhere", tmp_path, pickled):
        with pytest.raises(UserError, match=f"^{folder}: no encoder in safetensors") as caught:
            Embedder(folder)
        assert "\n" not in str(caught.value)


def test_an_encoder_of_another_pooling_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    with pytest.raises(UserError, match="pooling is not the mean"):
        Embedder(tmp_path)


def test_a_model_that_writes_is_no_encoder(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="a model that writes, not a sentence encoder"):
        Embedder(tiny_llama)
