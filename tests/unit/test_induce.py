"""Induction: themes of a corpus become fields and topics, terms are readable, and the file is a tree that can be used."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from align.core.errors import UserError
from align.core.rows import Document
from data_gen.corpus import Read, Rules, read_record
from data_gen.induce import _Terms, group, induce, side_by_side, write_tree
from data_gen.placement import TopicIndex
from data_gen.sources import read_files
from data_gen.taxonomy import load_taxonomy

ROOT = Path(__file__).parents[2]
THEMES = {
    "en": {
        "bees": ["The honey bees fill a comb.", "Queen bees leave the hive.", "A hive of honey bees needs nectar.",
                 "Bees carry pollen and nectar to the comb.", "Honey bees heat the hive in winter."],
        "ships": ["The ship crosses an ocean.", "Sailors load the cargo ship.", "A harbour shelters ships and sailors.",
                  "The cargo ship leaves the harbour.", "Sailors steer by the ocean current."],
        "stars": ["The telescope shows a galaxy.", "Stars of the galaxy shine.", "A planet circles its star.",
                  "The telescope follows the planet.", "Every galaxy has a billion stars."],
    },
    "ko": {
        "bees": ["꿀벌은 벌집을 짓는다.", "벌집에서 꽃가루를 모은다.",
                 "꿀벌이 꽃가루로 벌집을 채운다.", "여왕벌과 꿀벌은 벌집에 산다."],
        "ships": ["선박은 항구를 떠난다.", "선원이 항구에서 화물을 싣는다.",
                  "화물은 선박으로 나른다.", "선원과 화물이 항구에 있다."],
    },
}  # fmt: skip


def documents(lang: str, per_theme: int = 12, seed: int = 1) -> list[Document]:
    """Documents of some sentences each; the source is the theme."""
    draw = random.Random(seed)
    texts = [(theme, " ".join(draw.sample(lines, 3))) for theme, lines in THEMES[lang].items() for _ in range(per_theme)]
    draw.shuffle(texts)
    return [document(text, lang, source=theme) for theme, text in texts]


def document(text: str, lang: str = "en", source: str = "s", license: str = "CC0-1.0") -> Document:
    return Document(id=text, text=text, lang=lang, source=source, license=license, pii="")


def purity(label: Sequence[Any], truth: Sequence[Any]) -> float:
    """Share of documents that are of their group's most frequent class."""
    found: dict[Any, Counter[Any]] = {}
    for a, b in zip(label, truth, strict=True):
        found.setdefault(a, Counter())[b] += 1
    return sum(max(count.values()) for count in found.values()) / len(label)


def saved(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    write_tree(path, tree)
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_themes_become_fields_with_their_terms(tmp_path: Path, lang: str) -> None:
    given = documents(lang)
    themes = [d.source for d in given]
    found = group([d.text for d in given], lang, fields=len(THEMES[lang]), topics_per_field=2, seed=3)
    assert purity(found.field.tolist(), themes) == 1 and found.field.max() == len(THEMES[lang]) - 1
    assert purity(found.topic.tolist(), found.field.tolist()) == 1, "a topic belongs to one field"
    sizes = np.bincount(found.topic).reshape(-1, 2)
    assert len(sizes) == len(THEMES[lang]) and (sizes[:, 0] >= sizes[:, 1]).all() and sizes.min() > 0
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1)
    write_tree(tmp_path / "tree.yaml", induce(given, lang, fields=len(THEMES[lang]), topics_per_field=2, seed=3))
    tree = load_taxonomy(tmp_path / "tree.yaml")
    assert tree.levels == ("domain", "field", "topic") and len(tree.leaves) == 2 * len(THEMES[lang])
    field = {leaf.id: leaf.path.split("/")[1] for leaf in tree.leaves}
    placed = [field[topic] for topic, _ in TopicIndex(tree, lang).nearest([d.text for d in given])]
    assert purity(placed, themes) == 1
    everything = " ".join(d.text for d in given)
    for leaf in tree.leaves:
        assert set(leaf.name) == {lang} and leaf.definition[lang] in everything and leaf.include[lang]
        words = leaf.name[lang].lower().replace(",", "").split()
        assert (
            len({*words}) == len(words)
            and leaf.id.startswith(f"{lang}-")
            and leaf.name[lang].split(", ")[0].lower() == leaf.include[lang][0].lower()
        )


def test_english_terms_are_without_plural_stop_words_and_addresses_and_written_as_most_often() -> None:
    texts = ["The Bees of NASA keep bees; parties and a party.", "bees https://x.org/honey <b>wax</b> [EMAIL-1] don't",
             "NASA’s bee, 42 honey-bees"]  # fmt: skip
    terms = _Terms(texts, "en")
    keys = Counter(key for text in texts for key in terms.counting(text))
    assert keys["bee"] == 5 and keys["party"] == 2 and keys["nasa"] == 2
    assert {*keys} == {"bee", "party", "nasa", "wax", "honey", "nasa bee", "honey bee"}, "no pairs across stop words"
    assert terms.written("bee") == "bees" and terms.written("nasa") == "NASA"
    assert [key for key, _ in _Terms([], "en")("cold dark matter, dark energy")] == [
        "cold", "dark", "cold dark", "matter", "dark matter", "dark", "energy", "dark energy",
    ]  # fmt: skip


def test_korean_terms_are_without_particles_and_verbs() -> None:
    texts = ["국가는 벌집을 사용한다. 국가의 벌집이 React를 사용합니다.",
             "벌집에서 만들었습니다. 있는 것이 국가를 위해 React는 사용하는 state",
             "없습니다 없습니다만 만들었다 만들었다는",
             "회의를 했다. 회의에서 그 사용자가 사용자의 벌집과 벌집은 같은"]  # fmt: skip
    terms = _Terms(texts, "ko")
    keys = {key for text in texts for key in terms.counting(text) if " " not in key}
    assert keys == {"국가", "벌집", "react", "state", "회의", "사용자"}
    assert terms.written("react") == "React"


def test_a_namer_is_asked_of_every_field_and_topic_and_may_leave_things_open(tmp_path: Path) -> None:
    asked: list[tuple[Sequence[str], Sequence[str]]] = []

    def namer(terms: Sequence[str], examples: Sequence[str]) -> tuple[str, str]:
        asked.append((terms, examples))
        return ("", "A\nmodel's  words.") if len(asked) == 2 else (f"Name: no {len(asked)}, {{really}}", "  ")

    given = documents("en")
    tree = induce(given, "en", fields=1, topics_per_field=2, seed=3, namer=namer)
    own = induce(given, "en", fields=1, topics_per_field=2, seed=3)
    assert len(asked) == 3 and all(0 < len(examples) <= 3 and len(terms) > 2 for terms, examples in asked)
    assert all(any(d.text.startswith(example) for d in given) for _, examples in asked for example in examples)
    (field,), (own_field,) = tree["nodes"][0]["children"], own["nodes"][0]["children"]
    assert field["name"] == {"en": "Name: no 1, {really}"} and field["id"] == "en-name-no-1-really"
    first, second = field["children"]
    assert first["name"] == own_field["children"][0]["name"] and first["definition"] == {"en": "A model's words."}
    assert second["name"] == {"en": "Name: no 3, {really}"}
    assert second["definition"] == own_field["children"][1]["definition"]
    assert "named by a model" in tree["about"][0] and "named by their terms" in own["about"][0]
    assert saved(tmp_path / "tree.yaml", tree)["nodes"] == tree["nodes"], "YAML keeps odd names"


def test_two_languages_side_by_side(tmp_path: Path) -> None:
    mixed = [*documents("en"), *documents("ko"), document("꿀벌은 벌집에 산다.", "ko", license="MIT")]
    trees = [induce(mixed, lang, fields=2, topics_per_field=1, seed=3) for lang in ("en", "ko")]
    tree = side_by_side(trees)
    data = saved(tmp_path / "tree.yaml", tree)
    assert data == {key: value for key, value in tree.items() if key != "about"} and data["license"] == "CC0-1.0, MIT"
    head = [line for line in (tmp_path / "tree.yaml").read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert "# 36 documents in en, seed 3: 2 topics in 2 fields, named by their terms" in head
    assert "# 25 documents in ko, seed 3: 2 topics in 2 fields, named by their terms" in head
    loaded = load_taxonomy(tmp_path / "tree.yaml")
    by_lang = {lang: TopicIndex(loaded, lang).ids for lang in ("en", "ko")}
    assert by_lang["en"] + by_lang["ko"] == [leaf.id for leaf in loaded.leaves] and len(loaded.leaves) == 4
    assert {row.name for row in loaded.topic_rows({}) if row.level == "domain"} == {"Corpus", "말뭉치"}


def test_ids_are_unique_where_names_are_not() -> None:
    tree = induce(
        documents("en"), "en", fields=1, topics_per_field=3, seed=3, namer=lambda terms, examples: ("Corpus", "D.")
    )
    field = tree["nodes"][0]["children"][0]
    assert [tree["nodes"][0]["id"], field["id"], *(leaf["id"] for leaf in field["children"])] == [
        "en-corpus", "en-corpus-2", "en-corpus-3", "en-corpus-4", "en-corpus-5",
    ]  # fmt: skip


def test_terms_set_groups_apart_and_words_of_a_pair_do_not_stand_twice() -> None:
    given = [
        document(f"{theme}. {theme}. " + "Report. " * 3 + "United States. " * 2) for theme in ["Hive", "Ship", "Star"] * 6
    ]
    tree = induce(given, "en", fields=3, topics_per_field=1, seed=3)
    fields = tree["nodes"][0]["children"]
    terms = [leaf["include"]["en"] for field in fields for leaf in field["children"]]
    assert sorted(terms) == [[theme, "Report", "United States"] for theme in ("Hive", "Ship", "Star")]
    assert [field["name"]["en"] for field in fields] == [", ".join(own) for own in terms]


def test_examples_are_the_most_central_documents() -> None:
    alike = [f"{a} {b}" for a in THEMES["en"]["bees"] for b in THEMES["en"]["bees"] if a < b][:6]
    given = [document(text) for text in ["The galaxy has a ship.", *alike, "Sailors see the hive and the galaxy."]]
    shown: list[Sequence[str]] = []

    def namer(terms: Sequence[str], examples: Sequence[str]) -> tuple[str, str]:
        shown.append(examples)
        return "", ""

    induce(given, "en", fields=1, topics_per_field=1, seed=3, namer=namer)
    assert all({*examples} < {*alike} for examples in shown) and len(shown) == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("texts", "topics", "at_most"),
    [
        (["Honey bees fill a comb."], 1, 1),
        (["Honey bees fill a comb.", "A ship crosses the ocean."], 1, 2),
        (["Honey bees fill a comb.", "A ship crosses the ocean.", "Telescopes show the galaxy."], 1, 3),
        (["Honey bees fill a comb."] * 50, 1, 1),
        (["Honey bees fill a comb."] * 25 + ["A ship crosses the ocean."] * 25, 2, 2),
        (["Honey bees fill a comb.", "12 34 56", "Bees."], 1, 1),
    ],
)
def test_few_or_equal_documents_give_a_small_tree(tmp_path: Path, texts: list[str], topics: int, at_most: int) -> None:
    given = [document(text) for text in texts]
    trees = [(induce(given, "en", seed=3), topics), (induce(given, "en", fields=40, topics_per_field=40, seed=3), at_most)]
    for made, expected in trees:
        write_tree(tmp_path / "tree.yaml", made)
        tree = load_taxonomy(tmp_path / "tree.yaml")
        assert len(tree.leaves) == expected
        assert TopicIndex(tree, "en").nearest(texts[:1])[0][1] > 0.3


@pytest.mark.parametrize(
    ("texts", "lang", "fields", "topics", "message"),
    [
        ([], "en", None, None, "no document in this language has words"),
        (["12 34.", "!"], "en", None, None, "no document in this language has words"),
        (["Honey bees fill a comb."], "ko", None, None, "no document in this language has words"),
        (["Honey bees."], "en", 0, None, "must be at least 1"),
        (["Honey bees."], "en", None, 0, "must be at least 1"),
    ],
)
def test_nothing_to_make_a_tree_from_is_one_clear_error(
    texts: list[str], lang: str, fields: int | None, topics: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=f"^taxonomy: .*{message}"):
        induce([document(text) for text in texts], lang, fields=fields, topics_per_field=topics, seed=3)


def test_a_definition_is_a_whole_sentence_or_the_beginning() -> None:
    long = "The honey bees " + "and honey bees " * 30
    (leaf,) = induce([document(long), document(long + "!")], "en", seed=3)["nodes"][0]["children"][0]["children"]
    assert long.startswith(leaf["definition"]["en"]) and 180 < len(leaf["definition"]["en"]) <= 200
    assert long[len(leaf["definition"]["en"])] == " ", "cut between words"
    title, sentence = (
        "Honey bees: honey, honey bees and all the honey of the bees",
        "In the hive, bees fill every comb with honey.",
    )
    given = [document(f"{title}\n\n{sentence} Is it all the honey that the honey bees need?")] * 2
    (leaf,) = induce(given, "en", seed=3)["nodes"][0]["children"][0]["children"]
    assert leaf["definition"]["en"] == sentence


def test_a_tree_that_cannot_be_written_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tree.yaml"
    tree = induce(documents("en"), "en", seed=3)
    write_tree(path, tree)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_tree(path, tree | {"name": "other"})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["tree.yaml"]


def test_the_same_seed_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from data_gen.induce import induce, write_tree; import sys\n"
        "from tests.unit.test_induce import documents\n"
        "write_tree(Path(sys.argv[1]), induce(documents('en', 30), 'en', fields=4, topics_per_field=3, seed=5))"
    )
    digests = set()
    for number, threads in enumerate("12"):
        path = tmp_path / f"{number}.yaml"
        env = os.environ | {"PYTHONHASHSEED": str(number), "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT, env=env)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    write_tree(tmp_path / "other.yaml", induce(documents("en", 30), "en", fields=4, topics_per_field=3, seed=6))
    assert len(digests) == 1


# Measured with seed 17: purity of fields 0.893 (en, chance 0.25) and 0.958 (ko, chance 0.64); of the fields that the same
# documents are placed in 0.809 and 0.954, and 0.857 and 0.912 of them in the field that they were grouped in.
@pytest.mark.shared_data
@pytest.mark.parametrize(("lang", "pure", "placed_pure", "same"), [("en", 0.84, 0.74, 0.78), ("ko", 0.9, 0.9, 0.85)])
def test_fields_of_real_documents_are_their_sources(
    shared_data: Path, tmp_path: Path, lang: str, pure: float, placed_pure: float, same: float
) -> None:
    rules = Rules(
        languages=(lang,), allow_licenses=None, min_chars=1, max_chars=2000, filters=False, mask_pii=False, run_seed=0
    )
    found = [read_record(line, rules) for line in read_files([shared_data / f"corpus/web_{lang}.jsonl"])]
    given = [read.document for read in found if isinstance(read, Read)]
    sources = [d.source.split(" / ")[0] for d in given]
    texts = [d.text for d in given]
    groups = group(texts, lang, seed=17)
    assert purity(groups.field.tolist(), [sources[i] for i in groups.documents]) > pure
    write_tree(tmp_path / "tree.yaml", induce(given, lang, seed=17))
    tree = load_taxonomy(tmp_path / "tree.yaml")
    names = list(dict.fromkeys(leaf.path.split("/")[1] for leaf in tree.leaves))
    field = {leaf.id: names.index(leaf.path.split("/")[1]) for leaf in tree.leaves}
    placed = [field[topic] for topic, _ in TopicIndex(tree, lang).nearest(texts)]
    assert purity(placed, sources) > placed_pure
    assert np.mean([placed[i] == own for i, own in zip(groups.documents, groups.field, strict=True)]) > same
