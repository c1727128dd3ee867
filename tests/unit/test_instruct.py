"""Instructions: what a model is asked, what is made of its answers, each fault, splits, key terms and difficulty."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from align.core.formats import demands, split_input
from align.core.rows import Instruction, Made, Reject
from align.engines.complete import Ask, Reply
from data_gen.instruct import (
    MAX_WORDS,
    Subject,
    WritingRules,
    asked_text,
    clean_instruction,
    copied_subject,
    difficulty,
    instruction_fault,
    instruction_job,
    keyword,
    passage_around,
    split_of,
    wish_messages,
)
from data_gen.prompts import Prompts
from data_gen.request_parts import is_statement
from data_gen.tasks import INPUT_TASKS, LEVELS, PLAIN_TASKS, Wish
from data_gen.taxonomy import Node
from tests.jobs import FACTS, SAMPLING, TEXTS, failed, run_job, said, unit

GOOD = {
    "en": [
        "Why does honey keep for years?",
        "Explain why bacteria cannot grow in honey.",
        "List what keeps honey from spoiling.",
    ],
    "ko": ["꿀은 왜 여러 해 동안 상하지 않나요?", "꿀에서 세균이 자라지 못하는 까닭을 설명해 주세요."],
}
TOPIC = Node(
    "honey", "food/honey", {"en": "Bees and honey", "ko": "꿀벌과 꿀"}, {"en": "d", "ko": "d"},
    {"en": ["water", "Water content", "wax"], "ko": ["수분", "벌집"]},
)  # fmt: skip
PROMPTS = Prompts()
TASKS = (*PLAIN_TASKS, *INPUT_TASKS)
PASSAGE = {lang: text.partition(" ")[2] for lang, text in TEXTS.items()}
BELOW = {"en": "Summarize the text below in one sentence.", "ko": "아래 글을 한 문장으로 요약해 주세요."}


def wished(lang: str = "en", task_type: str = "question", **changes: Any) -> Wish:
    return replace(Wish(unit=unit(lang), task_type=task_type, number=0), **changes)


def job(lang: str, wishes: list[Wish], answer: Any, writer: str = "model", seed: int = 17) -> tuple[Made, list[Ask]]:
    subject = Subject(unit=unit(lang), topic=TOPIC, passage=PASSAGE[lang], split="sft")
    rules = WritingRules(writer={"en": writer, "ko": writer}, sampling=SAMPLING)
    made, asked = run_job(instruction_job(subject, wishes, PROMPTS, rules, seed), answer)
    assert made.asked == len(made.rows) + len(made.rejects) == len(wishes), "every wish is a row or a reject"
    return made, asked


def made(reply: str | Reply, lang: str = "en", task_type: str = "question", **changes: Any) -> Instruction | Reject:
    """What becomes of one wish."""
    result, _ = job(lang, [wished(lang, task_type, **changes)], lambda ask: reply)
    row: Instruction | Reject
    (row,) = result.rows or result.rejects
    return row


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Question: Why does honey keep?", "Why does honey keep?"),
        ("  request :  “Why does honey keep?” \n\nAnswer: because", "Why does honey keep?"),
        ('"Why does honey keep?"', "Why does honey keep?"),
        ("질문: 꿀은 왜 상하지 않나요?\n답: 수분", "꿀은 왜 상하지 않나요?"),
        ("\n\nWhy?\n", "Why?"),
        ("", ""),
        ("The question: why?", "The question: why?"),
        ("**Question:** Why does honey keep?", "Why does honey keep?"),
        ("**Why does honey keep?**", "Why does honey keep?"),
        ("1. Why does honey keep?\n2. What is honey?", "Why does honey keep?"),
        ("**질문**: “꿀은 왜 상하지 않나요?”", "꿀은 왜 상하지 않나요?"),
        ('Explain the term "umami."', 'Explain the term "umami."'),
        ('"Salt" or "sugar"?', '"Salt" or "sugar"?'),
        ("3 bees or 4?", "3 bees or 4?"),
        ("Next question: Is it dry?", "Is it dry?"),
    ],
)
def test_clean_instruction(raw: str, clean: str) -> None:
    assert clean_instruction(raw) == clean


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_good_instructions_have_no_fault(lang: str) -> None:
    for text in GOOD[lang]:
        assert instruction_fault(text, FACTS[lang], lang, "question") == ""
        row = made(said(f"Question: {text}\nmore", cut=True), lang)  # cut in a further line: the first one is whole
        assert isinstance(row, Instruction)
        assert row.messages == [{"role": "user", "content": text}]
        assert (row.parent_id, row.knowledge_id, row.topic_id, row.split, row.generation) == ("k1", "k1", "honey", "sft", 0)


@pytest.mark.parametrize(
    ("lang", "text", "fault"),
    [
        ("en", "Why honey?", "too_short"),
        ("en", "", "too_short"),
        ("ko", "왜?", "too_short"),
        ("en", "Why does honey keep " + "for very many years " * 15 + "?", "too_long"),
        ("ko", "꿀은 왜 " + "여러 해 동안 오래 " * 20 + "상하지 않나요?", "too_long"),
        ("en", GOOD["ko"][0], "off_language"),
        ("ko", GOOD["en"][0], "off_language"),
        ("en", "What does this fact say about honey?", "refers_to_source"),
        ("en", "Explain why, according to the text, honey keeps.", "refers_to_source"),
        ("ko", "주어진 글에서 꿀은 왜 상하지 않나요?", "refers_to_source"),
        ("ko", "이 사실은 꿀에 대해 무엇을 말하나요?", "refers_to_source"),
        ("en", "How do penguins hunt for krill?", "not_about_the_fact"),
        ("ko", "펭귄들이 먹이를 사냥하는 방법은 무엇인가요?", "not_about_the_fact"),
    ],
)
def test_each_fault(lang: str, text: str, fault: str) -> None:
    assert instruction_fault(text, FACTS[lang], lang, "question") == fault
    rejected = made(text, lang)
    assert isinstance(rejected, Reject)
    assert (rejected.reason, rejected.raw, rejected.topic_id) == (fault, text, "honey")


def test_what_repeats_the_fact_or_answers_is_no_instruction() -> None:
    for text in (FACTS["en"], FACTS["en"].rstrip("."), "honey is sweet and keeps for years."):
        assert instruction_fault(text, "Well, " + FACTS["en"], "en", "question") in ("copies_the_fact", "not_a_request")
    assert instruction_fault(FACTS["ko"], FACTS["ko"], "ko", "question") in ("copies_the_fact", "not_a_request")
    # Words of the fact inside a real question are no copy.
    assert instruction_fault("What stops bacteria from growing?", FACTS["en"], "en", "question") == ""


def test_faults_of_the_call_itself() -> None:
    cut = made(said("Why does honey keep for", cut=True))
    assert isinstance(cut, Reject) and cut.reason == "truncated"
    lost = made(failed("http_500: overloaded"))
    assert isinstance(lost, Reject) and (lost.reason, lost.raw) == ("http_500", "http_500: overloaded")
    assert made(failed("a: 1")).id == made(failed("b: 2")).id, "a wish has one id, whatever became of it"


def test_longest_allowed_instruction() -> None:
    text = "Why does honey keep " + "years " * (MAX_WORDS - 4)
    assert instruction_fault(text, FACTS["en"], "en", "question") == ""
    assert instruction_fault(text + "more", FACTS["en"], "en", "question") == "too_long"


def test_keyword_is_the_longest_term_that_the_fact_names() -> None:
    assert keyword(FACTS["en"], TOPIC, "en") == "Water content"
    assert keyword(FACTS["ko"], TOPIC, "ko") == "수분"
    assert keyword("Penguins hunt krill.", TOPIC, "en") == "Bees and honey"


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("task_type", ["question", "explain", "list", "compare", "advise"])
def test_templates_name_the_key_term(lang: str, task_type: str) -> None:
    result, asked = job(lang, [wished(lang, task_type)], None, writer="template")
    (row,) = result.rows
    assert asked == []
    text = row.messages[0]["content"]
    assert keyword(FACTS[lang], TOPIC, lang) in text and TOPIC.name[lang] in text
    assert (row.operator, row.task_type, row.lang, row.split) == ("template", task_type, lang, "sft")


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("task_type", TASKS)
def test_templates_ask_for_something(lang: str, task_type: str) -> None:
    result, _ = job(lang, [wished(lang, task_type)], None, writer="template")
    request, given = split_input(result.rows[0].messages[0]["content"])
    assert not is_statement(request, lang) and (given == PASSAGE[lang] if task_type in INPUT_TASKS else not given)


def test_splits_follow_the_shares_and_do_not_move_when_documents_come() -> None:
    shares = {"sft": 0.5, "M1": 0.2, "M2": 0.2, "heldout": 0.1}
    before = {f"doc-{i}": split_of(f"doc-{i}", 17, shares) for i in range(2000)}
    after = {f"doc-{i}": split_of(f"doc-{i}", 17, shares) for i in reversed(range(4000))}
    assert all(after[name] == split for name, split in before.items())
    counts = Counter(before.values())
    assert all(abs(counts[name] / 2000 - share) < 0.04 for name, share in shares.items())
    assert {f"doc-{i}": split_of(f"doc-{i}", 18, shares) for i in range(2000)} != before


def test_a_split_always_exists_even_where_shares_sum_to_less_by_rounding() -> None:
    shares = {"sft": 0.0, "heldout": 1 - 1e-16}
    assert {split_of(str(i), 17, shares) for i in range(200)} == {"heldout"}
    assert split_of("x", 17, {"a": 0.0, "b": 0.0}) == "b"


@pytest.mark.parametrize(
    ("easy", "hard"),
    [
        ("Why does honey keep?", "Why does honey keep, and how do bees dry it?"),
        ("Which river flows through Paris?", "Which river flows through Paris in exactly two sentences?"),
        ("꿀은 왜 상하지 않나요?", "꿀은 왜 상하지 않으며, 물에 탄 꿀은 어떻게 되나요?"),
        ("", "Why?"),
    ],
)
def test_difficulty_orders_prompts(easy: str, hard: str) -> None:
    assert 0 <= difficulty(easy) < difficulty(hard) < 1


def test_difficulty_by_hand() -> None:
    values: dict[str, Any] = {
        "one two three four five": 1 - 2.718281828**-0.2,
        "": 0.0,
        "why 12?": 1 - 2.718281828 ** -(2 / 25 + 1),
    }
    for text, value in values.items():
        assert difficulty(text) == pytest.approx(value, abs=1e-4)
    assert difficulty("somehow whyever") == difficulty("other words"), "only whole words count"


# requests of all task types

ABOUT = {
    "honey": {
        "en": "Honey keeps for years because its low water content stops bacteria from growing.",
        "ko": "꿀은 수분이 적어 세균이 자라지 못하므로 여러 해 동안 상하지 않는다.",
    },
    "seine": {
        "en": "The Seine flows through Paris and reaches the sea at Le Havre.",
        "ko": "센강은 파리를 지나 르아브르에서 바다로 흘러든다.",
    },
    "law": {
        "en": "The Clean Air Act of 1956 was passed after the Great Smog had killed thousands of people in London.",
        "ko": "1956년의 대기 오염 방지법은 런던에서 스모그로 수천 명이 숨진 뒤에 만들어졌다.",
    },
}
# Requests as a strong model writes them, by task type: (what it is about in `ABOUT`, the request).
REQUESTS = {
    "en": {
        "question": [
            ("honey", "Why does honey stay edible for years without refrigeration?"),
            ("honey", "Is it true that honey never spoils, and if so, what keeps bacteria from growing in it?"),
            ("seine", "At which port does the Seine reach the sea after it has left Paris?"),
            ("law", "Which disaster in London led to the passage of the Clean Air Act?"),
        ],
        "explain": [
            ("honey", "Explain how the low water content of honey keeps bacteria from growing."),
            ("honey", "In simple terms, explain why honey can last for years in a closed jar."),
            ("seine", "Describe the course of the Seine from Paris to the sea."),
            ("law", "Explain the fact that Britain passed a law on clean air only after thousands of people had died."),
        ],
        "list": [
            ("honey", "List three properties of honey that prevent bacteria from growing."),
            ("honey", "Provide a list of foods that, like honey, keep for years."),
            ("seine", "Name the major cities that the Seine passes on its way to the sea."),
        ],
        "compare": [
            ("honey", "Compare honey and maple syrup in terms of water content and shelf life."),
            ("seine", "Discuss the differences between the Seine and the Thames as shipping routes."),
            ("law", "Contrast the air in London before and after the Clean Air Act of 1956."),
        ],
        "advise": [
            ("honey", "I bought a large jar of honey. How should I store it so that it keeps for years?"),
            ("honey", "My honey has too much water. Please advise me on how to lower its water content."),
            ("seine", "We want to follow the Seine from Paris to the coast by bike. Recommend where to stop for the night."),
        ],
        "reason": [
            ("honey", "If a jar of honey is left open in a humid kitchen, what happens to its water content?"),
            ("honey", "One honey holds 17 percent water and another holds 25. Work out which one spoils first."),
            ("honey", "Suppose honey contained twice as much water. Would it still keep for years? Explain your reasoning."),
            ("seine", "Given that the Seine flows at two kilometers an hour, calculate when it reaches the sea."),
        ],
        "plan": [
            ("honey", "Make a plan in five steps for storing a large harvest of honey so that it keeps for years."),
            ("seine", "Create a three-day itinerary along the Seine from Paris to Le Havre."),
            ("law", "Draw up a lesson plan about the Great Smog of London for a class of fourteen-year-olds."),
        ],
        "code": [
            ("honey", "Write a Python function that tells from the water content of honey whether bacteria can grow."),
            ("honey", "Given a list of honey samples with their water content, write a program that sorts them."),
            ("seine", "Implement a Python class for a river such as the Seine, with its length and the cities on it."),
        ],
        "format": [
            ("honey", "Tell me why honey keeps for years."),
            ("seine", "Describe how the Seine reaches the sea."),
            ("law", "Say in your own words what the Clean Air Act of 1956 was meant to prevent."),
        ],
        "role_play": [
            ("honey", "You are a beekeeper. A customer asks why your honey keeps for years. Answer the customer."),
            ("honey", "As a food inspector, explain to an apprentice why bacteria cannot grow in honey."),
            ("seine", "Imagine you are a guide on a boat on the Seine. Tell the passengers where the river goes."),
            ("law", "Take on the role of a London doctor in 1952 and tell a reporter what you see during the Great Smog."),
        ],
        "summarize": [
            ("honey", "Summarize the text below in two sentences."),
            ("honey", "Read the text below and give a one-sentence summary for a busy reader."),
            ("honey", "Condense the following passage into three key points."),
            ("honey", "In no more than 30 words, summarize the text below."),
        ],
        "extract": [
            ("honey", "Find all the dates that the text below mentions."),
            ("honey", "From the text below, extract the names of all places."),
            ("honey", "Identify the cause and the effect that the text below describes."),
        ],
        "rewrite": [
            ("honey", "Rewrite the text below so that a ten-year-old can understand it."),
            ("honey", "Rephrase the text below in a formal tone."),
            ("honey", "Turn the text below into a cheerful post for social media."),
        ],
        "translate": [
            ("honey", "Translate the text below into Korean."),
            ("honey", "Please render the text below in natural Korean, and leave proper names in English."),
            ("honey", "Could you provide a Korean translation of the text below?"),
        ],
        "classify": [
            ("honey", "Decide whether the text below is about food, history or sports."),
            ("honey", "Determine whether the text below states a fact or an opinion."),
            ("honey", "Which label fits the text below best: science, travel or business?"),
        ],
    },
    "ko": {
        "question": [
            ("honey", "꿀은 왜 냉장고에 넣지 않아도 여러 해 동안 상하지 않나요?"),
            ("honey", "꿀 속에서 세균이 자라지 못하는 것은 무엇 때문인가요?"),
            ("seine", "파리를 지난 센강은 어느 항구에서 바다와 만나나요?"),
            ("law", "런던의 어떤 사건이 대기 오염 방지법을 만드는 계기가 되었습니까?"),
        ],
        "explain": [
            ("honey", "꿀의 수분이 적으면 세균이 자라지 못하는 원리를 설명해 주세요."),
            ("seine", "센강이 파리에서 바다까지 흘러가는 과정을 차근차근 설명해 주시기 바랍니다."),
            ("law", "1956년에 대기 오염 방지법이 만들어진 배경을 알기 쉽게 풀어 줘."),
        ],
        "list": [
            ("honey", "꿀이 상하지 않게 하는 성질을 세 가지 들어 주세요."),
            ("honey", "꿀처럼 여러 해 동안 상하지 않는 음식을 다섯 가지 알려 주세요."),
            ("seine", "센강이 바다로 흘러들기까지 지나는 도시를 순서대로 나열하시오."),
        ],
        "compare": [
            ("honey", "꿀과 메이플 시럽의 수분 함량과 보존 기간을 비교해 주세요."),
            ("seine", "센강과 한강은 바다로 흘러드는 모습이 어떻게 다른가요?"),
            ("law", "대기 오염 방지법이 시행되기 전과 후의 런던 공기를 비교하여 설명하라."),
        ],
        "advise": [
            ("honey", "꿀을 큰 병으로 샀습니다. 여러 해 동안 상하지 않게 두려면 어떻게 해야 할까요?"),
            ("honey", "양봉을 시작했는데 꿀의 수분이 너무 많아 걱정입니다. 수분을 줄이는 방법을 알고 싶습니다."),
            ("seine", "센강을 따라 자전거로 여행하려고 합니다. 어디에서 묵으면 좋을지 조언 부탁드립니다."),
        ],
        "reason": [
            ("honey", "꿀병을 습한 부엌에 열어 두면 수분은 어떻게 변하고, 그 결과 세균은 어떻게 될까요?"),
            ("honey", "한 병의 꿀은 수분이 17%이고 다른 병은 25%입니다. 어느 쪽이 먼저 상할지 근거를 들어 답해 주세요."),
            ("seine", "센강의 물이 파리에서 한 시간에 2km씩 흐른다면 바다까지 며칠이 걸리는지 계산해 보세요."),
        ],
        "plan": [
            ("honey", "수확한 꿀을 여러 해 동안 상하지 않게 보관하기 위한 계획을 다섯 단계로 세워 주세요."),
            ("seine", "파리에서 르아브르까지 센강을 따라가는 2박 3일 일정을 짜 주세요."),
            ("law", "런던 스모그를 주제로 한 중학교 수업 계획안을 작성해 주십시오."),
        ],
        "code": [
            ("honey", "꿀의 수분 함량을 받아 세균이 자랄 수 있는지 알려 주는 파이썬 함수를 작성해 주세요."),
            ("honey", "꿀 시료와 수분이 담긴 목록에서 상하지 않을 시료만 출력하는 프로그램을 짜 줘."),
            ("seine", "센강처럼 여러 도시를 지나는 강을 나타내는 파이썬 클래스를 만들어 보세요."),
        ],
        "format": [
            ("honey", "꿀이 여러 해 동안 상하지 않는 까닭을 알려 주세요."),
            ("seine", "센강이 어디로 흘러드는지 말해 주세요."),
            ("law", "대기 오염 방지법이 왜 만들어졌는지 이야기해 주세요."),
        ],
        "role_play": [
            ("honey", "당신은 시장에서 꿀을 파는 양봉가입니다. 꿀이 왜 상하지 않느냐고 묻는 손님에게 대답해 주세요."),
            ("seine", "센강 유람선의 안내원이 되어 승객들에게 이 강이 어디로 흘러드는지 소개해 주세요."),
            ("law", "너는 1952년 런던의 의사야. 스모그로 무슨 일이 벌어지는지 기자에게 말해 봐."),
        ],
        "summarize": [
            ("honey", "아래 글을 두 문장으로 요약해 주세요."),
            ("honey", "아래 글의 핵심을 바쁜 독자를 위해 한 문장으로 간추려 주세요."),
            ("honey", "아래 글에서 가장 중요한 내용은 무엇인가요?"),
        ],
        "extract": [
            ("honey", "아래 글에 나오는 날짜를 모두 찾아 적어 주세요."),
            ("honey", "아래 글에서 지명만 골라 쉼표로 구분해 쓰시오."),
            ("honey", "아래 글에 나타난 원인과 결과를 각각 뽑아 주시기 바랍니다."),
        ],
        "rewrite": [
            ("honey", "아래 글을 열 살 아이도 알 수 있게 고쳐 써 주세요."),
            ("honey", "아래 글을 격식 있는 문체로 바꿔 주세요."),
            ("honey", "아래 글을 누리 소통망에 올릴 만한 밝은 글로 다시 써 줄 수 있나요?"),
        ],
        "translate": [
            ("honey", "아래 글을 영어로 번역해 주세요."),
            ("honey", "아래 글을 고유 명사는 그대로 두고 자연스러운 영어로 옮겨 주세요."),
            ("honey", "다음 글을 영어로 번역해 주시면 감사하겠습니다."),
        ],
        "classify": [
            ("honey", "아래 글이 음식, 역사, 운동 가운데 무엇에 관한 글인지 골라 주세요."),
            ("honey", "아래 글이 사실인지 의견인지 판단해 주세요."),
            ("honey", "아래 글에 가장 알맞은 분류는 과학, 여행, 경제 중 어느 것인가요?"),
        ],
    },
}  # fmt: skip
STATEMENTS = {
    "en": [
        "Honey keeps for years because it holds little water.",
        "The Seine flows through Paris, and its mouth is at Le Havre.",
        "Bacteria cannot grow in honey. That is why it does not spoil.",
        "If honey is kept dry, it lasts for years.",
        "When honey takes up water, bacteria begin to grow.",
        "What makes honey last is its low water content.",
        "I think that honey keeps for years because it is dry.",
        "Use of honey goes back thousands of years.",
        "You are right that honey keeps for years.",
        "A question about honey and its water content.",
        "Honey and bacteria: why low water content matters",
    ],
    "ko": [
        "꿀은 수분이 적어서 여러 해 동안 상하지 않는다.",
        "꿀은 수분이 적어 세균이 자라지 못합니다.",
        "꿀은 여러 해 동안 상하지 않아요.",
        "센강은 파리를 지나 바다로 흘러들어요.",
        "꿀의 수분이 적어 세균이 자라지 못하기 때문입니다.",
        "꿀의 수분과 세균에 관한 질문입니다.",
        "꿀이 여러 해 동안 상하지 않는 이유",
        "꿀은 수분이 적어 상하지 않음.",
        "파리를 지난 센강은 르아브르에서 바다로 흘러든다고 합니다.",
    ],
}  # fmt: skip

GIVEN = [(lang, task, about, text) for lang, of in REQUESTS.items() for task, texts in of.items() for about, text in texts]


@pytest.mark.parametrize(("lang", "task_type", "about", "text"), GIVEN, ids=[f"{g[0]}-{g[1]}" for g in GIVEN])
def test_a_strong_models_requests_pass(lang: str, task_type: str, about: str, text: str) -> None:
    fact = ABOUT[about][lang]
    assert instruction_fault(text, fact, lang, task_type) == ""
    assert clean_instruction(text) == text
    subject = Subject(unit=unit(lang, statement=fact), topic=TOPIC, passage=fact, split="sft")
    assert not copied_subject(text, fact, wish_messages(subject, wished(lang, task_type), PROMPTS), lang)


def test_there_are_requests_of_every_task_type() -> None:
    for of in REQUESTS.values():
        assert set(of) == set(TASKS) and all(len(texts) >= 3 for texts in of.values())


@pytest.mark.parametrize(("lang", "text"), [(lang, text) for lang, texts in STATEMENTS.items() for text in texts])
def test_statements_are_no_requests(lang: str, text: str) -> None:
    assert is_statement(text, lang)
    assert instruction_fault(text, "", lang, "summarize") == "not_a_request"


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("task_type", TASKS)
def test_worked_examples_are_what_they_ask_for(lang: str, task_type: str) -> None:
    given = {"fact": "x", "passage": "x", "brief": "", "topic": ""}
    turns = [m["content"] for m in PROMPTS.render(f"instruct-{task_type}", lang, **given) if m["role"] != "system"]
    assert len(turns) >= 3
    for shown, request in zip(turns[:-1:2], turns[1::2], strict=True):
        assert instruction_fault(request, shown.partition(": ")[2], lang, task_type) == ""


@pytest.mark.parametrize("task_type", INPUT_TASKS)
def test_only_a_request_with_an_input_may_point_at_it(task_type: str) -> None:
    assert instruction_fault("What does the text say about penguins?", FACTS["en"], "en", task_type) == ""
    assert instruction_fault("What does the text say about honey?", FACTS["en"], "en", "question") == "refers_to_source"
    assert instruction_fault("아래 글을 요약해 주세요.", FACTS["ko"], "ko", task_type) == ""
    assert (
        instruction_fault("아래 글에서 꿀이 상하지 않는 까닭을 찾아 주세요.", FACTS["ko"], "ko", "list")
        == "refers_to_source"
    )


# what a wish adds to its request


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("task_type", INPUT_TASKS)
def test_an_input_stands_below_its_request(lang: str, task_type: str) -> None:
    result, (ask,) = job(lang, [wished(lang, task_type)], lambda ask: BELOW[lang])
    (row,) = result.rows
    assert row.messages == [{"role": "user", "content": f"{BELOW[lang]}\n\n{PASSAGE[lang]}"}]
    assert split_input(row.messages[0]["content"]) == (BELOW[lang], PASSAGE[lang])
    assert row.difficulty == difficulty(BELOW[lang]), "a long passage makes no request difficult"
    assert PASSAGE[lang] in ask.messages[-1]["content"], "the model is shown what its request is about"
    assert row.answer_lang == ({"en": "ko", "ko": "en"}[lang] if task_type == "translate" else lang)


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("task_type", PLAIN_TASKS)
def test_a_plain_request_stands_alone(lang: str, task_type: str) -> None:
    result, (ask,) = job(lang, [wished(lang, task_type)], lambda ask: GOOD[lang][0])
    (row,) = result.rows
    assert "\n" not in row.messages[0]["content"] and row.messages[0]["content"].startswith(GOOD[lang][0])
    assert (row.messages[0]["content"] == GOOD[lang][0]) == (task_type != "format")
    assert ask.messages[-1]["content"].endswith(FACTS[lang])
    assert (row.task_type, row.answer_lang, row.operator) == (task_type, lang, "generate")


@pytest.mark.parametrize(
    ("lang", "text"),
    [
        *[
            ("en", text)
            for text in (*GOOD["en"], "Tell me why honey keeps for years", 'Describe what "low water" means in honey')
        ],
        *[("ko", text) for text in (*GOOD["ko"], "꿀이 상하지 않는 까닭을 알려 주세요")],
    ],
)
def test_a_demand_can_be_found_again(lang: str, text: str) -> None:
    """In whatever request it stands, also in one that does not end as a sentence does."""
    kinds = set()
    for seed in range(60):
        result, _ = job(lang, [wished(lang, "format")], lambda ask: text, seed=seed)
        content = result.rows[0].messages[0]["content"]
        found = demands(content, lang)
        assert len(found) == 1 and content.startswith(text), content
        assert demands(content.removeprefix(text).lstrip(". "), lang) == found, content
        kinds.add(found[0].kind)
    assert len(kinds) >= 5


def test_wishes_of_a_unit_demand_different_things() -> None:
    wishes = [wished("en", "format", number=n) for n in range(20)]
    result, _ = job("en", wishes, lambda ask: GOOD["en"][0])
    assert len({row.messages[0]["content"] for row in result.rows}) > 5
    again, _ = job("en", wishes, lambda ask: GOOD["en"][0])
    assert again == result


@pytest.mark.parametrize("writer", ["model", "template"])
@pytest.mark.parametrize("lang", ["en", "ko"])
def test_a_system_prompt_stands_first(lang: str, writer: str) -> None:
    wishes = [wished(lang, system="You are brief."), wished(lang, "list")]
    result, asked = job(lang, wishes, lambda ask: GOOD[lang][0], writer=writer)
    drawn, none = result.rows
    assert [m["role"] for m in drawn.messages] == ["system", "user"] and drawn.messages[0]["content"] == "You are brief."
    assert [m["role"] for m in none.messages] == ["user"]
    assert asked_text(drawn) == drawn.messages[-1]["content"]
    assert not any("You are brief." in m["content"] for ask in asked for m in ask.messages), "it is for the answer"


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_a_model_is_told_who_asks_and_how_hard_it_is_to_be(lang: str) -> None:
    wishes = [wished(lang, persona="a baker", level=level, number=i) for i, level in enumerate(("", *LEVELS))]
    result, asked = job(lang, wishes, lambda ask: GOOD[lang][0])
    seen = ["\n".join(m["content"] for m in ask.messages) for ask in asked]
    assert len(set(seen)) == 4 and all("a baker" in text for text in seen)
    for level, text in zip(LEVELS, seen[1:], strict=True):
        assert PROMPTS.render(f"brief-{level}", lang)[-1]["content"] in text
    assert [(row.persona, row.level) for row in result.rows] == [("a baker", level) for level in ("", *LEVELS)]
    assert "a baker" not in "".join(m["content"] for m in job(lang, [wished(lang)], lambda ask: "")[1][0].messages)


def test_a_unit_asks_all_its_wishes_at_once() -> None:
    wishes = [wished("en", task) for task in TASKS]
    rounds: list[int] = []

    def answer(ask: Ask) -> str:
        rounds.append(len(rounds))
        return BELOW["en"] if ask.id.split("/")[1] in INPUT_TASKS else "Penguins?"

    result, asked = job("en", wishes, answer)
    assert [ask.id for ask in asked] == [wish.id for wish in wishes]
    assert {row.task_type for row in result.rows} == set(INPUT_TASKS)
    assert [r.reason for r in result.rejects] == ["too_short"] * len(PLAIN_TASKS)
    assert len({r.id for r in result.rejects}) == len(PLAIN_TASKS)
    assert job("en", [], None) == (Made(asked=0, rows=[], rejects=[]), [])


def test_rows_differ_by_wish_and_text() -> None:
    texts = ["Why does honey keep for years?", "What stops bacteria from growing in honey?"]
    rows = [made(text, number=number) for text in texts for number in (0, 1)]
    assert len({row.id for row in rows}) == 4
    assert made(texts[0]) == made(texts[0])


# passages


@pytest.mark.parametrize("max_chars", [60, 100, 160])
def test_a_passage_begins_with_its_statement_and_is_short(max_chars: int) -> None:
    text = (
        "꿀은 달다. 꿀은 수분이 적어 세균이 자라지 못한다. 꿀벌은 꽃에서 꿀을 모은다. "
        + "벌집에는 방이 아주 많이 있다. " * 20
    )
    passage = passage_around(text, unit("ko", statement="꿀은 수분이 적어 세균이 자라지 못한다."), max_chars)
    assert passage.startswith("꿀은 수분이 적어 세균이 자라지 못한다. 꿀벌은 꽃에서 꿀을 모은다.")
    assert passage in text
    assert max_chars / 2 < len(passage) <= max_chars + 10


def test_a_passage_is_whole_sentences() -> None:
    def passage(text: str, statement: str, max_chars: int, quote: str = "") -> str:
        return passage_around(text, unit("ko", statement=statement, quote=quote), max_chars)

    assert passage("One. Two.", "Two.", 100) == "Two."
    assert passage("One. Two.", "Not there.", 100) == "One. Two."
    assert passage("One. Two.", "One.", 6) == "One."
    assert passage("One. Two. Three.", "What two and three say.", 100, "Two. Three.") == "Two. Three.", "from the quote on"
    long = "아주 긴 문장은 그대로 둔다" + "고 말했다" * 100 + "."
    assert passage(long + " 다음 문장.", long, 100) == long, "a first sentence is never cut"


@pytest.mark.parametrize(
    ("lang", "task_type", "text"),
    [
        ("en", "extract", "Find the reason that the text below gives for the long life of honey."),
        ("en", "plan", "Make a plan for a trip along the Seine from Paris to Le Havre."),
        ("ko", "extract", "아래 글에서 에펠탑의 높이를 찾아 주세요."),
    ],
)
def test_a_request_about_a_worked_example_is_a_copy(lang: str, task_type: str, text: str) -> None:
    sleep = {
        "en": "Deep sleep repairs the body, and dreams come in another stage. Both return several times in a night.",
        "ko": "깊은 잠은 몸을 회복시키고 꿈은 다른 단계에서 꾼다. 두 단계는 하룻밤에 여러 번 되풀이된다.",
    }
    prompt = Prompts().render(f"instruct-{task_type}", lang, brief="", fact=sleep[lang], passage=sleep[lang])
    assert copied_subject(text, sleep[lang], prompt, lang)
    assert not copied_subject(text, f"{sleep[lang]} {text}", prompt, lang), "a source may be about the same thing"
    own = {"en": "Find the two stages of sleep that the text below names.", "ko": "아래 글에서 잠의 두 단계를 찾아 주세요."}
    assert not copied_subject(own[lang], sleep[lang], prompt, lang)


def test_apologies_and_chatter_are_no_instructions() -> None:
    assert instruction_fault("I'm sorry, but I cannot answer what honey is.", FACTS["en"], "en", "question") == "refusal"
    sure = "Sure, here is a question: Why does honey keep for years?"
    assert instruction_fault(sure, FACTS["en"], "en", "question") == "chatter"
