"""IFEval: every kind of instruction on hand-written answers, and the same verdicts as lm-eval's own."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from align.core.errors import UserError
from align.core.language import detect
from align.evaluate import ifeval
from align.evaluate.ifeval import english_sentences, grade_ifeval, read_ifeval
from align.evaluate.suite import Item

pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in ("lm_eval", "langdetect", "immutabledict", "nltk", "punkt")),
    reason="needs align-posttrain[eval]",
)
SHIPPED = Path(__file__).parents[2] / "recipes/data/suites/constraints.jsonl"
WORDS = {"relation": "at least", "num_words": 4}
KINDS = [
    ("keywords:existence", {"keywords": ["tide", "moon"]}, "The Moon moves the tide.", "The moon is far."),
    ("keywords:frequency", {"keyword": "owl", "frequency": 2, "relation": "at least"}, "An owl saw an owl.", "An owl."),
    ("keywords:forbidden_words", {"forbidden_words": ["rain"]}, "Raining again.", "The rain again."),
    ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "less than"}, "A zoo.", "Fizz."),
    ("language:response_language", {"language": "ko"}, "오늘은 날씨가 아주 맑습니다.", "The weather is fine today."),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 3},
        "Dr. Lee sat. He ate.",
        "A. B? C!",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\nTwo.", "One.\n\nTwo."),
    ("length_constraints:number_words", WORDS, "This is four words.", "Only three words."),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        "First.\n\nthen, second.",
        "Then first.\n\nSecond.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name] at home"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\n\nP.S. Call me.", "Bye. Call me."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "A *bright* day.", "A bright day."),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "a: 1"),
    ("detectable_format:title", {}, "<<A day>>\nIt began.", "A day\nIt began."),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Name a tree."}, "Name a tree. The oak.", "The oak."),
    ("startend:end_checker", {"end_phrase": "Good night."}, "Sleep well. Good night.", "Good night. Sleep well."),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "One BIG dog.",
        "TWO BIG dogs.",
    ),
    ("change_case:english_capital", {}, "THIS IS AN ENGLISH SENTENCE.", "This is an English sentence."),
    ("change_case:english_lowercase", {}, "this is an english sentence.", "This is an English sentence."),
    ("punctuation:no_comma", {}, "Red and blue.", "Red, blue."),
    ("startend:quotation", {}, '"All of it."', '"Half" of it.'),
]


def write(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def record(*instructions: tuple[str, dict], key: int | str = 1, prompt: str = "Do it.") -> dict:
    ids, kwargs = [name for name, _ in instructions], [given for _, given in instructions]
    return {"key": key, "prompt": prompt, "instruction_id_list": ids, "kwargs": kwargs}


def grades(item: Item, answer: str) -> dict[str, float]:
    found = grade_ifeval(
        item, [{"role": "user", "content": item.turns[0]}, {"role": "assistant", "content": answer}], "stop"
    )
    assert [g.metric for g in found] == list(ifeval.METRICS)
    return {g.metric: g.value for g in found}


def one(tmp_path: Path, *instructions: tuple[str, dict]) -> Item:
    return read_ifeval(write(tmp_path / "suite.jsonl", record(*instructions)))[0]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), KINDS, ids=[kind[0] for kind in KINDS])
def test_each_kind_tells_a_good_answer_from_a_bad_one(tmp_path, name, arguments, good, bad):
    item = one(tmp_path, (name, arguments))
    assert grades(item, good)["prompt_strict"] == 1
    assert grades(item, bad)["prompt_strict"] == 0


def test_all_kinds_are_tested():
    assert {kind[0] for kind in KINDS} == set(ifeval._checkers()) and len(KINDS) == 25


def test_loose_forgives_a_preamble_a_closing_and_asterisks(tmp_path):
    lower = one(tmp_path, ("change_case:english_lowercase", {}))
    for answer in (
        "Sure, here it is:\nthe tide rises and falls.",
        "the tide rises and falls.\nAnything else?",
        "Sure:\nthe tide rises and falls.\nAnything else?",
    ):
        assert grades(lower, answer)["prompt_strict"] == 0 and grades(lower, answer)["prompt_loose"] == 1
    assert grades(lower, "Sure:\nSo:\nthe tide rises and falls.")["prompt_loose"] == 0
    starred = one(tmp_path, ("keywords:existence", {"keywords": ["high tide"]}))
    assert grades(starred, "A high *tide* comes.") == dict(zip(ifeval.METRICS, (0, 0, 1, 1), strict=True))


def test_an_instruction_weighs_by_how_many_its_prompt_has(tmp_path):
    item = one(tmp_path, ("punctuation:no_comma", {}), ("startend:quotation", {}), ("detectable_format:title", {}))
    found = grade_ifeval(item, [{"role": "assistant", "content": "<<Red>>\nblue"}], "stop")
    values = {g.metric: (g.value, g.weight) for g in found}
    assert values == {
        "prompt_strict": (0, 1),
        "instruction_strict": (2 / 3, 3),
        "prompt_loose": (0, 1),
        "instruction_loose": (2 / 3, 3),
    }
    assert item.category == "several"


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_follows_nothing(tmp_path, answer):
    assert set(grades(one(tmp_path, ("punctuation:no_comma", {})), answer).values()) == {0.0}


def test_a_checker_that_raises_is_a_failure_and_no_zero(tmp_path):
    item = one(tmp_path, ("punctuation:no_comma", {}), ("detectable_format:json_format", {}))
    found = grade_ifeval(item, [{"role": "assistant", "content": "[" * 200_000}], "stop")
    assert [g.failure for g in found] == ["checker_error"] * 4 and all(math.isnan(g.value) for g in found)
    assert [g.weight for g in found] == [1, 2, 1, 2]


# Beside lm-eval.
PARTS = [
    "Sure, here it is:", "\n", "\n\n", "* one", "- two", "***", "******", "*bright*", "**bold**", "<<A title>>", "[name]",
    "P.S. more", "SECTION 1", "SECTION 2", "umbrella", "wet", "patience library", "Dr. Smith arrived.", "He sat.",
    "NASA, ESA", "however, it", "pizzazz", '"', "My answer is yes.", '{"a": [1, 2]}', "```json", "```", "MORE AT NINE.",
    "파도가 친다.", "조용한 햇살이 든다.", "단계 1", "단계 2", "곧 만나!", "반면 그렇다.", "[이름]", "추신: 고맙습니다.",
    "THE TRAIN STOPS HERE.", "the tide comes in and goes out.", "제주도에서 하루를 보내는 계획을 세워 주세요.",
    "e.g. at 3.5 km", " ",
]  # fmt: skip


def random_answer(rng: random.Random) -> str:
    return rng.choice(["", " ", "\n"]).join(rng.choice(PARTS) for _ in range(rng.randrange(14)))


def lm_eval_grades(item: Item, answer: str) -> dict[str, float]:
    from lm_eval.tasks.ifeval.utils import process_results

    found = process_results({"key": item.id, "prompt": item.turns[0], **item.data}, [answer])
    return {
        f"{level}_{kind}": sum(values) / len(values) if isinstance(values, list) else float(values)
        for kind in ("strict", "loose")
        for level, values in (
            ("prompt", found[f"prompt_level_{kind}_acc"]),
            ("instruction", found[f"inst_level_{kind}_acc"]),
        )
    }


def test_verdicts_are_those_of_lm_eval(tmp_path):
    kinds = [record((name, given), key=f"kind-{name}") for name, given, _, _ in KINDS]
    items = read_ifeval(SHIPPED) + read_ifeval(write(tmp_path / "kinds.jsonl", *kinds))
    rng, seen = random.Random(7), {name: set() for name in ifeval.METRICS}
    for _ in range(400):
        item, answer = rng.choice(items), random_answer(rng)
        ours = grades(item, answer)
        assert ours == lm_eval_grades(item, answer), (item.data, answer)
        for metric, value in ours.items():
            seen[metric].add(value)
    assert all({0.0, 1.0} <= values for values in seen.values())


@pytest.mark.shared_data
def test_all_official_prompts_are_read_and_graded_as_by_lm_eval(shared_data):
    items = read_ifeval(shared_data / "benchmarks/ifeval.jsonl")
    assert len(items) == 541 and sum(len(item.data["kwargs"]) for item in items) == 834
    assert {"ko", "en"} == {item.lang for item in items}
    rng, compared = random.Random(3), 0
    for item in items:
        answer = rng.choice([random_answer(rng), item.turns[0], ""])
        ours = grades(item, answer)
        # lm-eval draws another letter at random where the letter is no letter.
        if not any(given.get("letter") in ("#", "!") for given in item.data["kwargs"]):
            assert ours == lm_eval_grades(item, answer), item.id
            compared += 1
    assert compared == 539


def test_a_sign_is_counted_where_the_letter_is_none(tmp_path):
    arguments = {"letter": "#", "let_frequency": 2, "let_relation": "at least"}
    item = one(tmp_path, ("keywords:letter_frequency", arguments))
    for _ in range(20):  # lm-eval's own checker draws a letter each time
        assert grades(item, "#one #two")["prompt_strict"] == 1
        assert grades(item, "abcdefghijklmnopqrstuvwxyz" * 2)["prompt_strict"] == 0


# Sentences and languages.
SENTENCES = [
    ("Dr. Smith arrived. He sat.", ["Dr. Smith arrived.", "He sat."]),
    ("It costs 3.50 dollars. Is that a lot? No!", ["It costs 3.50 dollars.", "Is that a lot?", "No!"]),
    ("Mr. and Mrs. Lee live in the U.S. today.", ["Mr. and Mrs. Lee live in the U.S. today."]),
    ('He said, "Go home." Then he left.', ['He said, "Go home."', "Then he left."]),
    ("Prices rose by 2 p.m. on Monday, e.g. Bread.", ["Prices rose by 2 p.m. on Monday, e.g.", "Bread."]),
    ("She works at Acme Inc. It is new.", ["She works at Acme Inc.", "It is new."]),
    ("Wait . . . what", ["Wait .", ".", ".", "what"]),
    ("봄이 왔다. 꽃이 핀다. 왜일까? 비가 그쳤다.", ["봄이 왔다.", "꽃이 핀다.", "왜일까?", "비가 그쳤다."]),
]


@pytest.mark.parametrize(("text", "expected"), SENTENCES)
def test_sentences_are_those_of_nltks_english_model(text, expected):
    tokenizer = english_sentences()
    assert tokenizer.tokenize(text) == expected
    ifeval._checkers()
    from lm_eval.tasks.ifeval import instructions_util

    assert instructions_util.count_sentences(text) == len(expected)
    import nltk

    if nltk.tokenize.punkt_model_available():
        assert nltk.sent_tokenize(text) == expected


def test_words_are_cut_sentence_by_sentence():
    ifeval._checkers()
    from lm_eval.tasks.ifeval import instructions_util

    words = instructions_util.nltk.word_tokenize("Dr. Smith left NASA. OK.")
    assert words == ["Dr.", "Smith", "left", "NASA", ".", "OK", "."]


def test_the_language_of_a_short_text_is_always_the_same(tmp_path):
    import langdetect

    item = one(tmp_path, ("language:response_language", {"language": "fi"}))
    text = "Otec matka syn."  # Finnish or Polish by chance
    assert len({grades(item, text)["prompt_strict"] for _ in range(30)}) == 1
    assert langdetect.DetectorFactory.seed == 0


def test_importing_the_checkers_needs_no_network_and_no_torch(tmp_path):
    code = """
import socket, sys
def refuse(*arguments):
    raise RuntimeError(f"network: {arguments}")
socket.getaddrinfo = socket.socket.connect = refuse
import align.evaluate.ifeval as ifeval
assert not {"lm_eval", "nltk", "langdetect", "torch"} & set(sys.modules)
import nltk
before = (nltk.data.find, nltk.download, nltk.word_tokenize, nltk.sent_tokenize, list(nltk.data.path))
ifeval._checkers()
assert before == (nltk.data.find, nltk.download, nltk.word_tokenize, nltk.sent_tokenize, list(nltk.data.path))
assert "torch" not in sys.modules
from lm_eval.tasks.ifeval import instructions_util
print(instructions_util.count_sentences("Dr. Smith arrived. He sat."))
"""
    environment = {**os.environ, "HOME": str(tmp_path), "NLTK_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


# Reading.
def test_null_arguments_and_floats_are_read_as_on_the_hub(tmp_path):
    name = "length_constraints:nth_paragraph_first_word"
    hub = {"num_paragraphs": 2.0, "nth_paragraph": 2.0, "first_word": "then", "num_words": None, "keywords": None}
    item = one(tmp_path, (name, hub))
    assert item.data["kwargs"] == [{"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"}]
    assert grades(item, "First.\n\nThen second.")["prompt_strict"] == 1
    json.dumps(dict(item.data))


TITLE = ("detectable_format:title", {})


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no items"),
        ([record(TITLE), record(TITLE)], "2: the id 1 is that of"),
        ([{"key": 1, "prompt": "a", "kwargs": [{}]}], "1: lacks instruction_id_list"),
        ([record(("detectable_format:tilte", {}))], "1: no instruction 'detectable_format:tilte'; there are keywords:exist"),
        ([record()], "at least one id"),
        ([record(TITLE) | {"kwargs": []}], "one object for each"),
        ([record(TITLE) | {"instruction_id_list": [["a"]]}], "1: no instruction ['a']; there are keywords:exist"),
        ([record(("keywords:existence", {"keywords": "tide"}))], "keywords must be a list of texts"),
        ([record(("keywords:existence", {"keywords": ["tide", 3]}))], "keywords must be a list of texts"),
        ([record(("keywords:existence", {"keywords": []}))], "argument is missing"),
        ([record(("keywords:forbidden_words", {"forbidden_words": "rain"}))], "forbidden_words must be a list of texts"),
        ([record(("detectable_format:title", []))], "write an object"),
        ([record(TITLE, prompt=" ")], "prompt is ' '; write a text"),
        ([record(TITLE, key=True)], "key is True"),
        ([record(("length_constraints:number_words", {"relation": "at least"}))], "argument is missing"),
        (
            [record(("length_constraints:number_words", WORDS | {"num_words": -1}))],
            "argument is missing or out of its range",
        ),
        ([record(("length_constraints:number_words", WORDS | {"relation": "at most"}))], "cannot be checked"),
        ([record(("punctuation:no_comma", {"colour": 1}))], "colour"),
        ([record(("keywords:existence", {"keywords": ["(tide"]}))], "cannot be checked"),
        ([record(("language:response_language", {"language": "xx"}))], "cannot be checked"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, records, message):
    path = write(tmp_path / "suite.jsonl", *records)
    with pytest.raises(UserError) as error:
        read_ifeval(path)
    assert str(path) in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    ifeval._checkers.cache_clear()
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(UserError, match=r"langdetect.*pip install '\.\[eval\]'"):
        read_ifeval(SHIPPED)


# The shipped suite.
KOREAN = {
    "language:response_language": ("오늘은 바람이 붑니다.", "It is windy today."),
    "punctuation:no_comma": ("사과와 배", "사과, 배"),
    "detectable_format:number_bullet_lists": ("* 물\n* 빵\n* 떡\n* 귤\n* 차", "* 물\n* 빵"),
    "keywords:existence": ("조용한 방에 햇살이 든다.", "조용히 햇살이 든다."),
    "length_constraints:number_words": ("나는 걷는다 " * 30, "나는 걷는다 " * 29),
    "length_constraints:number_paragraphs": ("하나\n***\n둘\n***\n셋", "하나\n\n둘\n\n셋"),
    "detectable_format:title": ("<<가을 산길>>\n걸었다.", "가을 산길\n걸었다."),
    "detectable_content:number_placeholders": ("[이름] [나이] [전화] [날짜] [장소] [회비]", "[이름] [나이]"),
    "detectable_content:postscript": ("고맙습니다.\n추신: 간식도 있습니다.", "고맙습니다."),
    "detectable_format:json_format": ('{"업적": ["한글"]}', "업적: 한글"),
    "combination:two_responses": ("따끈한 빵\n******\n갓 구운 빵", "따끈한 빵\n******\n따끈한 빵"),
    "detectable_format:multiple_sections": ("단계 1 썰기\n단계 2 볶기\n단계 3 섞기\n단계 4 담기", "단계 1 썰기"),
    "detectable_format:number_highlighted_sections": ("*센 불*에서 *빨리*", "센 불에서 빨리"),
    "length_constraints:number_sentences": ("파도가 친다. 바람이 분다.", "춥다. 춥다. 춥다. 춥다. 춥다."),
    "keywords:frequency": ("파도가 가고 파도가 온다.", "파도가 온다."),
    "startend:quotation": ('"늦어. 곧 만나!"', "늦어. 곧 만나!"),
    "startend:end_checker": ('"늦어. 곧 만나!"', "곧 만나! 늦어."),
    "length_constraints:nth_paragraph_first_word": ("편하다.\n\n반면, 외롭다.", "편하다.\n\n그러나 외롭다."),
    "combination:repeat_prompt": ("제주도에서 하루를 보내는 계획을 세워 주세요.\n아침에는 걷는다.", "아침에는 걷는다."),
}


def test_shipped_prompts_are_half_korean_and_have_all_kinds():
    items = read_ifeval(SHIPPED)
    assert [item.lang for item in items] == ["en"] * 12 + ["ko"] * 12
    assert all(detect(item.turns[0]) == item.lang for item in items)
    used = {lang: {n for i in items if i.lang == lang for n in i.data["instruction_id_list"]} for lang in ("en", "ko")}
    assert used["en"] | used["ko"] == {kind[0] for kind in KINDS}
    assert used["ko"] == set(KOREAN)


def test_checkers_of_the_shipped_korean_prompts_work_on_korean(tmp_path):
    for item in read_ifeval(SHIPPED)[12:]:
        for name, arguments in zip(item.data["instruction_id_list"], item.data["kwargs"], strict=True):
            good, bad = KOREAN[name]
            alone = one(tmp_path, (name, arguments))
            assert grades(alone, good)["prompt_strict"] == 1, name
            assert grades(alone, bad)["prompt_loose"] == 0, name
