"""Dialogues: follow-ups that need the turns before them, each fault of one, and the account of what was asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from align.core.rows import Instruction, Made
from align.engines.complete import Ask, Reply
from align.engines.protocol import Sampling
from data_gen.answers import answer_messages
from data_gen.dialogue import (
    DialogueRules,
    chosen_for_follow_up,
    follow_up_fault,
    follow_ups,
    needs_earlier_turns,
)
from data_gen.instruct import MAX_WORDS, asked_text, difficulty
from data_gen.prompts import Prompts
from data_gen.tasks import INPUT_TASKS, PLAIN_TASKS
from tests.jobs import FACTS, SAMPLING, failed, instruction, run_job, said

PROMPTS = Prompts()
SEED = 17
QUESTION = {"en": "Why does honey keep for years?", "ko": "꿀은 왜 여러 해 동안 상하지 않나요?"}
ANSWER = {
    "en": "Its water content is low. Bacteria cannot grow in it.",
    "ko": "수분이 적기 때문입니다. 그래서 세균이 자라지 못합니다.",
}
FOLLOW_UP = {
    "en": "Does it still last that long after somebody opens the jar?",
    "ko": "그렇다면 병을 한 번 열고 난 다음에도 그것은 상하지 않나요?",
}
# A question, and what a user asks next: "+" needs the turns before it, "-" stands alone.
LABELLED = {
    "en": """\
Why does honey keep for years?
+ Does it still keep that long once the jar has been opened?
+ Can you give an example?
- How do bees make honey from nectar?
- Why does honey keep for years when it is stored in a jar?
- Can you explain why salt preserves meat and fish?
Name two large rivers in France.
+ Which cities lie on the second one?
+ How long are they?
- Which river flows through Lyon?
- What is the longest river in Germany?
How should I store tomatoes at home?
+ And what if my kitchen has no window?
+ You said the fridge is a bad place. Why?
- How should I store potatoes so that they do not sprout?
- What is the best way to keep bread fresh?
What caused the Great Smog of London?
+ How many people died because of it?
+ What did the government do in response?
- What was the Clean Air Act of 1956?
- How does smog form in large cities?
Explain how vaccines protect against disease.
+ Can you explain the third step in more detail?
+ Why do some of them need a second dose?
- What is the difference between a virus and a bacterium?
- Who invented the smallpox vaccine?
Write a Python function that reverses a string.
+ Can you make it work for lists too?
+ What is the time complexity of that function?
+ Now do the same without slicing.
- Write a Python function that checks whether a word is a palindrome.
- How do I sort a dictionary by its values in Python?
Who was King Sejong?
+ What else is he known for?
+ How old was he when he died?
- What is the Korean alphabet called?
- Which king built the Gyeongbokgung Palace?
- Who was the first president of South Korea?
Compare solar and wind power.
+ Which of the two is cheaper in the long run?
+ Could you put your comparison into a table?
- What are the disadvantages of nuclear power?
- How much energy does a solar panel produce each year?
What is photosynthesis?
+ Does this also happen at night?
+ What would happen to a plant that cannot do so?
+ Please explain that again in simpler words.
- What gas do plants take in, and what gas do they give off?
- Is it true that trees produce most of the oxygen on Earth?
List three ways to save energy at home.
+ Which of these saves the most money?
+ Can you give me two more?
- What is the average electricity use of a refrigerator?
- Are there appliances that use no energy in standby mode?
How does a microwave oven heat food?
+ Why does the plate stay cooler then?
+ Is that safe for plastic containers?
- Why is metal dangerous in a microwave oven?
- How does an induction stove work?
When did the Berlin Wall fall?
+ What happened in the weeks after that?
+ Who gave the order to open it?
- Who was the last leader of East Germany?
- What was life like for people in East Berlin during the Cold War?
How do I start composting?
+ What should I never put into it?
+ How will I know when it is ready to use?
- Which vegetables grow well in the shade?
- How often should I water tomato plants in summer?
What is the capital of Australia?
+ Why was that city chosen instead of Sydney?
+ How many people live there?
- What is the capital of New Zealand?
- Why are there so many kangaroos in Australia?
Describe the life cycle of a butterfly.
+ Which stage lasts the longest?
+ Do moths go through the same stages?
- How do spiders build webs that are stronger than steel?
- What do caterpillars eat before they turn into moths?
Give three arguments for a four-day week.
+ Now give me the strongest argument against it.
+ Can you back up the first argument with a study?
- What is the minimum wage in Germany?
- How did labor unions change working conditions in the last century?
How does a vaccine against measles work?
+ How long does the protection from it last?
- What are antibodies made of?
Write an email asking for a day off.
+ Make it sound a bit more formal, please.
+ Could you shorten your draft to three sentences?
- Write a thank-you note to a colleague who is leaving.
- How do I end a formal letter in British English?
What causes tides?
+ Why are they higher at some times of the month?
+ So does the Sun play a role in this too?
- How deep is the Mariana Trench?
- When the Moon passes in front of the Sun, what do people on Earth see?
Who was Ada Lovelace?
+ What machine did she write her program for?
+ Why is her work considered so important today?
- Who built the first computer that could be programmed?
- What is Alan Turing best known for?
Suggest a vegetarian dinner.
+ What could I use instead of the cheese you suggested?
- How much protein does an adult need per day?""",
    "ko": """\
꿀은 왜 여러 해 동안 상하지 않나요?
+ 그럼 뚜껑을 연 뒤에도 그만큼 오래 가나요?
+ 예를 하나 들어 주시겠어요?
- 꿀벌은 꽃에서 어떻게 꿀을 만드나요?
- 꿀은 왜 병에 담아 두어도 여러 해 동안 상하지 않나요?
- 소금이 고기와 생선을 오래 보존하는 까닭을 설명해 주세요.
프랑스의 큰 강을 두 개 알려 주세요.
+ 그중 두 번째 강은 어떤 도시를 지나나요?
+ 두 강의 길이는 각각 얼마나 되나요?
- 리옹을 지나는 강은 무엇인가요?
- 독일에서 가장 긴 강은 무엇인가요?
토마토를 집에서 어떻게 보관해야 하나요?
+ 냉장고에 넣으면 왜 안 된다고 하셨나요?
- 감자는 어떻게 보관해야 싹이 나지 않나요?
- 빵을 오래 두고 먹으려면 어떻게 해야 하나요?
런던 스모그는 왜 일어났나요?
+ 그 일로 몇 명이 숨졌나요?
+ 이후 정부는 어떤 조치를 취했나요?
- 1956년의 대기 오염 방지법은 어떤 법인가요?
- 대도시에서 스모그가 생기는 까닭은 무엇인가요?
백신이 병을 막는 원리를 설명해 주세요.
+ 세 번째 단계를 더 자세히 설명해 주세요.
+ 그런데 왜 두 번 맞아야 하나요?
- 바이러스와 세균의 차이는 무엇인가요?
- 천연두 백신은 누가 처음 만들었나요?
문자열을 뒤집는 파이썬 함수를 작성해 주세요.
+ 이 함수를 리스트에도 쓸 수 있게 고쳐 주세요.
+ 방금 쓴 코드의 시간 복잡도는 얼마인가요?
+ 슬라이싱을 쓰지 않고도 같은 일을 할 수 있나요?
- 낱말이 회문인지 확인하는 파이썬 함수를 작성해 주세요.
- 파이썬에서 사전을 값에 따라 정렬하려면 어떻게 하나요?
세종대왕은 어떤 업적을 남겼나요?
+ 그 밖에 또 무엇으로 유명한가요?
+ 그분은 몇 살에 돌아가셨나요?
- 훈민정음은 어떤 글자인가요?
- 조선의 마지막 왕은 누구인가요?
- 블로그 글을 쓸 때 맞춤법을 검사하는 방법은 무엇인가요?
태양광 발전과 풍력 발전을 비교해 주세요.
+ 둘 중 어느 쪽이 더 저렴한가요?
+ 방금 비교한 내용을 표로 정리해 주세요.
- 원자력 발전의 단점은 무엇인가요?
- 태양광 패널은 한 해에 얼마나 많은 전기를 만드나요?
광합성이란 무엇인가요?
+ 이 과정은 밤에도 일어나나요?
+ 그것을 하지 못하는 식물은 어떻게 되나요?
+ 좀 더 쉬운 말로 다시 설명해 주시겠어요?
- 식물은 낮과 밤에 어떤 기체를 내보내나요?
- 어린이들에게 식물의 한살이를 가르치는 방법은 무엇인가요?
집에서 에너지를 아끼는 방법을 세 가지 나열해 주세요.
+ 이 가운데 돈이 가장 적게 드는 것은 무엇인가요?
+ 두 가지만 더 알려 주세요.
- 냉장고의 평균 전력 사용량은 얼마인가요?
- 대기 전력을 쓰지 않는 가전제품에는 무엇이 있나요?
전자레인지는 음식을 어떻게 데우나요?
+ 그렇다면 접시는 왜 뜨거워지지 않나요?
+ 플라스틱 그릇에도 그렇게 해도 안전한가요?
- 전자레인지에 금속을 넣으면 왜 위험한가요?
- 인덕션은 어떤 원리로 냄비를 데우나요?
베를린 장벽은 언제 무너졌나요?
+ 그 뒤 몇 주 동안 무슨 일이 있었나요?
+ 누가 그것을 열라고 명령했나요?
+ 왜 하필 그때였나요?
- 동독의 마지막 지도자는 누구였나요?
- 냉전 시기 동베를린 사람들의 생활은 어떠했나요?
음식물 퇴비는 어떻게 만들기 시작하나요?
+ 거기에 절대 넣으면 안 되는 것은 무엇인가요?
+ 언제쯤 쓸 수 있나요?
- 그늘에서도 잘 자라는 채소는 무엇인가요?
- 여름에는 토마토에 물을 얼마나 자주 주어야 하나요?
오스트레일리아의 수도는 어디인가요?
+ 왜 시드니가 아니라 그 도시가 수도로 정해졌나요?
+ 그곳에는 몇 명이 살고 있나요?
- 뉴질랜드의 수도는 어디인가요?
- 오스트레일리아에는 왜 캥거루가 많은가요?
나비의 한살이를 설명해 주세요.
+ 그중 가장 오래 걸리는 단계는 무엇인가요?
+ 나방도 이런 단계를 거치나요?
- 거미는 어떻게 강철보다 질긴 줄을 만드나요?
- 애벌레는 나방이 되기 전에 무엇을 먹나요?
주 4일 근무제에 찬성하는 근거를 세 가지 들어 주세요.
+ 이번에는 반대하는 근거를 알려 주세요.
+ 첫 번째 근거를 뒷받침하는 연구가 있나요?
- 독일의 최저 임금은 얼마인가요?
- 노동조합은 지난 세기에 노동 조건을 어떻게 바꾸었나요?
홍역 백신은 어떤 원리로 작용하나요?
+ 그렇게 생긴 면역은 얼마나 오래가나요?
- 항체는 무엇으로 이루어져 있나요?
하루 휴가를 요청하는 이메일을 써 주세요.
+ 조금 더 격식 있게 고쳐 주세요.
+ 방금 쓴 글을 세 문장으로 줄여 주세요.
- 회사를 떠나는 동료에게 보낼 감사 편지를 써 주세요.
- 영어로 격식 있는 편지를 마칠 때는 어떻게 쓰나요?
밀물과 썰물은 왜 생기나요?
+ 한 달 중 어떤 때는 왜 더 높아지나요?
+ 그럼 태양도 여기에 영향을 주나요?
- 마리아나 해구의 깊이는 얼마인가요?
- 달이 태양 앞을 지나가면 지구에서는 무엇이 보이나요?
에이다 러브레이스는 누구인가요?
+ 그녀가 프로그램을 만든 기계는 무엇인가요?
+ 그 업적이 오늘날 왜 중요하게 여겨지나요?
- 프로그램을 바꿔 넣을 수 있는 컴퓨터를 처음 만든 사람은 누구인가요?
- 앨런 튜링은 무엇으로 가장 유명한가요?
채식 저녁 식단을 추천해 주세요.
+ 추천하신 치즈 대신 쓸 수 있는 재료는 무엇인가요?
- 어른에게 하루에 필요한 단백질은 얼마인가요?""",
}


def labelled(lang: str) -> list[tuple[str, str, bool]]:
    found, question = [], ""
    for line in LABELLED[lang].splitlines():
        if line[:2] in ("+ ", "- "):
            found.append((question, line[2:], line[0] == "+"))
        else:
            question = line
    return found


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_follow_ups_that_need_the_earlier_turns_are_told_from_those_that_do_not(lang: str) -> None:
    cases = labelled(lang)
    need = sum(needs for _, _, needs in cases)
    assert len(cases) >= 60 and need == len(cases) / 2
    taken = [(text, needs) for question, text, needs in cases if needs_earlier_turns(text, question, lang)]
    hits = sum(needs for _, needs in taken)
    assert hits / len(taken) >= 0.95, [text for text, needs in taken if not needs]
    assert hits / need >= 0.9, [t for q, t, needs in cases if needs and not needs_earlier_turns(t, q, lang)]


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_good_follow_ups_have_no_fault(lang: str) -> None:
    good = [(q, t) for q, t, needs in labelled(lang) if needs and needs_earlier_turns(t, q, lang)]
    assert [(t, fault) for q, t in good if (fault := follow_up_fault(t, q, ANSWER[lang], lang))] == []


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("When water freezes, does it expand?", False),
        ("Does it expand when water freezes?", True),
        ("How does a cat clean its fur?", False),
        ("How many people live on its banks?", True),
        ("What happened in the weeks after it?", True),
        ("How long does it take to boil an egg?", False),
        ("How long does it take?", True),
        ("Is it used to treat wounds?", True),
        ("Is it safe to eat raw eggs?", False),
        ("Which countries have both a king and a parliament?", False),
        ("What is the second law of thermodynamics?", False),
        ("What does the second step change?", True),
        ("What can I use instead of sugar?", False),
        ("What can I use instead?", True),
    ],
)
def test_words_that_only_seem_to_point_back(text: str, needs: bool) -> None:
    assert needs_earlier_turns(text, QUESTION["en"], "en") == needs


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("그림을 잘 그리려면 무엇부터 배워야 하나요?", False),
        ("그것을 잘 그리려면 무엇부터 배워야 하나요?", True),
        ("고양이들은 왜 높은 곳을 좋아하나요?", False),
        ("이들은 왜 높은 곳을 좋아하나요?", True),
        ("충치가 생긴 이 닦기를 미루면 어떻게 되나요?", False),
        ("세계에서 두 번째로 높은 산은 무엇인가요?", False),
        ("두 번째 방법은 무엇인가요?", True),
        ("얼마나 자주 먹어야 하나요?", True),
        ("비타민은 얼마나 자주 먹어야 하나요?", False),
    ],
)
def test_korean_words_that_only_seem_to_point_back(text: str, needs: bool) -> None:
    assert needs_earlier_turns(text, QUESTION["ko"], "ko") == needs


@pytest.mark.parametrize(
    ("lang", "text", "fault"),
    [
        ("en", "Why?", "too_short"),
        ("en", "", "too_short"),
        ("ko", "왜요?", "too_short"),
        ("en", "Does it keep " + "very " * MAX_WORDS + "long?", "too_long"),
        ("ko", "그것은 왜 " + "아주 " * MAX_WORDS + "오래 가나요?", "too_long"),
        ("en", FOLLOW_UP["ko"], "off_language"),
        ("ko", FOLLOW_UP["en"], "off_language"),
        ("en", "I'm sorry, but I cannot answer that.", "refusal"),
        ("ko", "죄송합니다. 그 질문에는 답변해 드릴 수 없습니다.", "refusal"),
        ("en", "Sure! How long does it keep?", "chatter"),
        ("ko", "물론입니다. 그것은 얼마나 오래 가나요?", "chatter"),
        ("en", "It keeps for so long because it holds little water.", "not_a_request"),
        ("ko", "그것은 수분이 적어서 오래 갑니다.", "not_a_request"),
        ("en", QUESTION["en"], "repeats_earlier_turn"),
        ("ko", QUESTION["ko"], "repeats_earlier_turn"),
        ("en", "How do bees make wax?", "stands_alone"),
        ("ko", "꿀벌은 밀랍을 어떻게 만드나요?", "stands_alone"),
        ("en", "But why does honey keep for so many years?", "stands_alone"),  # says it all again
        ("ko", "그런데 꿀은 왜 여러 해 동안 상하지 않나요?", "stands_alone"),
        ("en", FOLLOW_UP["en"], ""),
        ("ko", FOLLOW_UP["ko"], ""),
        ("en", "Now explain it to a child.", ""),
        ("ko", "그것을 어린이에게 설명해 주세요.", ""),
    ],
)
def test_each_fault(lang: str, text: str, fault: str) -> None:
    assert follow_up_fault(text, QUESTION[lang], ANSWER[lang], lang) == fault


def test_words_of_the_answer_are_no_follow_up() -> None:
    answer = "You may ask: does it keep after opening?"
    assert follow_up_fault("does it keep after opening?", QUESTION["en"], answer, "en") == "repeats_earlier_turn"


# the job


def rules(**changes: Any) -> DialogueRules:
    options: dict[str, Any] = {
        "share": 1.0, "grounded": True, "max_repetition": 0.3, "answer_sampling": Sampling(max_tokens=160),
        "sampling": SAMPLING,
    }  # fmt: skip
    return DialogueRules(**options | changes)


def said_by(answer: str | Reply, follow_up: str | Reply) -> Callable[[Ask], str | Reply]:
    return lambda ask: {"first-answer": answer, "follow-up": follow_up}[ask.purpose]


def job(
    rows: list[Instruction], answer: Callable[[Ask], str | Reply], lang: str = "en", **changes: Any
) -> tuple[Made, list[Ask]]:
    made, asked = run_job(follow_ups(rows, FACTS[lang], PROMPTS, rules(**changes), SEED), answer)
    assert made.asked == len(made.rows) + len(made.rejects), "every follow-up asked for is a row or a reject"
    assert len({row.id for row in made.rows}) == len(made.rows) and len({r.id for r in made.rejects}) == len(made.rejects)
    return made, asked


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_a_follow_up_goes_on_from_the_answer(lang: str) -> None:
    system = {"role": "system", "content": "You are brief."}
    first = instruction("", lang, messages=[system, {"role": "user", "content": QUESTION[lang]}], persona="a baker")
    made, (answered, asked) = job([first], said_by(ANSWER[lang], FOLLOW_UP[lang]), lang)
    (row,) = made.rows
    assert [(m["role"], m["content"]) for m in row.messages] == [
        ("system", "You are brief."), ("user", QUESTION[lang]), ("assistant", ANSWER[lang]), ("user", FOLLOW_UP[lang]),
    ]  # fmt: skip
    assert (row.operator, row.parent_id, row.generation, row.knowledge_id) == ("follow_up", first.id, 0, "k1")
    assert (row.persona, row.split, row.license, row.pii) == ("a baker", "sft", "CC0-1.0", "email")
    assert row.id != first.id and row.difficulty == difficulty(FOLLOW_UP[lang])
    assert asked_text(row) == f"{QUESTION[lang]}\n{FOLLOW_UP[lang]}"
    assert answered.messages == answer_messages(first, FACTS[lang], PROMPTS)
    assert (answered.sampling, asked.sampling) == (Sampling(max_tokens=160), SAMPLING)
    shown = asked.messages[-1]["content"]
    assert QUESTION[lang] in shown and ANSWER[lang] in shown and "You are brief." not in shown


def test_without_grounding_the_first_answer_is_the_models_own() -> None:
    first = instruction(QUESTION["en"])
    _, asked = job([first], said_by(ANSWER["en"], FOLLOW_UP["en"]), grounded=False)
    assert asked[0].messages == first.messages


BROKEN: list[tuple[str | Reply, str | Reply, str, str]] = [
    ("", FOLLOW_UP["en"], "follow_up_answer_empty", ""),
    (ANSWER["ko"], FOLLOW_UP["en"], "follow_up_answer_off_language", ANSWER["ko"]),
    ("I'm sorry, but I cannot answer that.", "", "follow_up_answer_refusal", "I'm sorry, but I cannot answer that."),
    ("Honey is sweet and good. " * 8, "", "follow_up_answer_repetitive", "Honey is sweet and good. " * 8),
    (said(ANSWER["en"], cut=True), "", "follow_up_answer_truncated", ANSWER["en"]),
    (failed("prompt_too_long: 900 tokens"), "", "follow_up_answer_prompt_too_long", "prompt_too_long: 900 tokens"),
    (ANSWER["en"], "", "follow_up_too_short", ""),
    (ANSWER["en"], said("Does it still keep", cut=True), "follow_up_truncated", "Does it still keep"),
    (ANSWER["en"], failed("http_400: no"), "follow_up_http_400", "http_400: no"),
    (ANSWER["en"], "How do bees make wax?", "follow_up_stands_alone", "How do bees make wax?"),
    (ANSWER["en"], "Here is a question:\nWhy?", "follow_up_not_a_request", "Here is a question:\nWhy?"),
]


@pytest.mark.parametrize(("answer", "follow_up", "reason", "raw"), BROKEN, ids=[case[2] for case in BROKEN])
def test_each_failure_is_a_reject(answer: str | Reply, follow_up: str | Reply, reason: str, raw: str) -> None:
    made, asked = job([instruction(QUESTION["en"])], said_by(answer, follow_up))
    assert [(r.reason, r.raw, r.topic_id) for r in made.rejects] == [(reason, raw, "honey")]
    assert list(made.rows) == [] and len(asked) == (1 if "answer" in reason else 2)


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_a_worked_example_is_not_taken_for_an_answer(lang: str) -> None:
    shown = PROMPTS.render("follow-up", lang, question="x", answer="x")
    for example in [m["content"] for m in shown if m["role"] == "assistant"]:
        made, _ = job([instruction(QUESTION[lang], lang)], said_by(ANSWER[lang], example), lang)
        assert [r.reason for r in made.rejects] == ["follow_up_copied_example"]


def test_a_copied_label_is_taken_off() -> None:
    made, _ = job(
        [instruction(QUESTION["en"])], said_by(ANSWER["en"], said(f"Question: {FOLLOW_UP['en']}\nAnswer:", cut=True))
    )
    assert [row.messages[-1]["content"] for row in made.rows] == [FOLLOW_UP["en"]]


def test_a_share_of_the_plain_requests_is_followed_up() -> None:
    rows = [instruction(QUESTION["en"], id=f"i{n}") for n in range(600)]
    chosen = [row.id for row in rows if chosen_for_follow_up(row, 0.2, SEED)]
    assert abs(len(chosen) - 120) < 4 * math.sqrt(600 * 0.2 * 0.8)
    made, asked = job(rows, said_by(ANSWER["en"], FOLLOW_UP["en"]), share=0.2)
    assert [row.parent_id for row in made.rows] == chosen and made.asked == len(chosen)
    assert {ask.id for ask in asked} == set(chosen)
    assert not job(rows, said_by("", ""), share=0.0)[1]
    assert [row.id for row in rows[:60] if chosen_for_follow_up(row, 0.2, SEED)] == [c for c in chosen if int(c[1:]) < 60]


def test_a_request_about_an_input_is_not_followed_up() -> None:
    rows = [instruction(QUESTION["en"], id=task, task_type=task) for task in (*PLAIN_TASKS, *INPUT_TASKS)]
    made, _ = job(rows, said_by(ANSWER["en"], FOLLOW_UP["en"]))
    assert [row.parent_id for row in made.rows] == list(PLAIN_TASKS)


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_worked_examples_need_what_they_follow(lang: str) -> None:
    turns = [m["content"] for m in PROMPTS.render("follow-up", lang, question="x", answer="x") if m["role"] != "system"]
    assert len(turns) >= 3
    for shown, follow_up in zip(turns[:-1:2], turns[1::2], strict=True):
        question, answer = (line.partition(": ")[2] for line in shown.splitlines()[:2])
        assert follow_up_fault(follow_up, question, answer, lang) == ""
