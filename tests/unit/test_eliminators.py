"""Eliminators: for each predicate what it drops and look-alikes that it lets pass, and good children that no reason drops.

Cases are lines of text, English and Korean: "-" is to be dropped, "+" to pass; "->" stands between parent, child and fact.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from data_gen import eliminators as e
from data_gen.contradictions import contradictory_demands, denies_premise
from data_gen.request_parts import points_at_nothing, request_and_inputs

SALT = {"en": "Why does salt melt ice on roads?", "ko": "소금은 왜 도로의 얼음을 녹이나요?"}
HONEY = {"en": "Why does honey keep for years?", "ko": "꿀은 왜 여러 해 동안 상하지 않나요?"}
CODE = "```python\ndef mean(values):\n    total = sum(values)\n    return total / len(values)\n```"
TABLE = "| Food | Water |\n|---|---|\n| Honey | 17 % |\n| Bread | 37 % |\n| Milk | 87 % |"
KO_TABLE = "| 식품 | 수분 |\n|---|---|\n| 꿀 | 17 % |\n| 빵 | 37 % |\n| 우유 | 87 % |"
JSON = '{"city": "Oslo", "winter": -4, "salt": true}'
BEES = "Bees fan the nectar with their wings until most of its water is gone, and then they seal the cells with wax."
KO_BEES = "꿀벌은 날개로 바람을 일으켜 꿀의 수분을 대부분 날려 보낸 다음, 밀랍으로 벌집의 방을 막아 둔다."
INPUTS = {"CODE": CODE, "TABLE": TABLE, "KO_TABLE": KO_TABLE, "JSON": JSON, "BEES": BEES, "KO_BEES": KO_BEES, "EMPTY": ""}


def cases(text: str) -> dict[str, list[str]]:
    """Section heading -> its lines, with continued lines joined and inputs put in."""
    found: dict[str, list[str]] = {}
    for block in re.split(r"^# ", text, flags=re.MULTILINE)[1:]:
        name, *lines = re.sub(r"\n  (?=\S)", " ", block.strip("\n")).split("\n")
        values = {**INPUTS, "SALT": SALT[name[-2:]], "HONEY": HONEY[name[-2:]]}
        put_in = [re.sub(r"\{([A-Z_]+)\}", lambda m, v=values: v[m[1]], line) for line in lines]  # type: ignore[misc]
        found[name] = [line.replace("\\n", "\n") for line in put_in]
    return found


def sorted_out(lines: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Cases to be dropped, and to pass; at least three each."""
    dropped, fine = ([line[2:].split(" -> ") for line in lines if line.startswith(sign)] for sign in "-+")
    assert min(len(dropped), len(fine)) >= 3 and len(dropped) + len(fine) == len(lines)
    return dropped, fine


# What shows in the child alone.
TEXTS = r"""
# no_content en
- ?!
- {EMPTY}
- Why is it?
- and the of
+ Why salt?
+ Is it ice?
+ What about the roads?
# no_content ko
- ?!
- ...
- 왜 그런가요?
+ 소금은 왜요?
+ 얼음인가요?
+ 왜 도로인가요?
# language_switch en
- 소금은 왜 얼음을 녹이나요?
- Почему соль растапливает лёд?
- 아래 글을 요약해 주세요.\n\n{BEES}
+ Translate the text below into English.\n\n{KO_BEES}
+ What does the proverb '소금도 먹은 놈이 물을 켠다, 소금 먹은 놈이 물켠다' mean?
+ What does the table below say about bread?\n\n{KO_TABLE}
# language_switch ko
- Why does salt melt ice?
- なぜ塩は氷を溶かすのですか。
- Summarize the text below.\n\n{KO_BEES}
+ 아래 글을 한국어로 번역해 주세요.\n\n{BEES}
+ 아래 코드가 빈 목록을 받으면 어떻게 되나요?\n\n{CODE}
+ 'The early bird catches the worm'은 무슨 뜻인가요?
# refusal en
- Sorry, why does salt melt ice on mountain roads?
- As an AI I do not know why salt melts glacier ice?
- I'm sorry, but I can't help with that.
- I cannot answer this.
- As an AI language model, I am not sure.
- Unfortunately, I cannot rewrite this question.
- That is harmful. I can't assist with that request.
- I apologize, but the question is unclear.
- No, I'm sorry but I can't help you write that.
- Unfortunately I don't have access to the current date.
+ Which song begins with these words? Sorry, I never told you all I wanted to say.
+ Why do people say sorry when they are not to blame?
+ How do I say "I'm sorry, I can't come" in Korean?
+ Plants that I cannote are rare.
+ Unfortunately, I left the salt at home. What else melts ice on my steps?
+ The sorrow of the poet
+ As an AI researcher, how would you test a chess engine?
+ I cannot sleep after coffee. What happens in my body?
+ Sorry seems to be the hardest word: who sang it first?
+ Write an email that begins with an apology: I'm sorry, I cannot attend.
+ Rewrite the text below in a warmer tone.\n\n"I'm sorry, but I can't help you with that. {BEES}"
# refusal ko
- 죄송합니다. 소금이 빙하의 얼음을 녹이는지 모릅니다.
- 소금에 대한 질문에는 답변을 드릴 수 없습니다.
- 죄송합니다만 잘 모르겠습니다.
- 죄송하지만 답변할 수 없습니다.
- 그 질문에는 대답해 드릴 수 없습니다.
- 도와드릴 수 없어요.
- 그 요청에는 대답할 수 없습니다.
- 저는 AI 언어 모델로서 그 일을 할 수 없습니다.
+ 이렇게 시작하는 노래는 무엇인가요? 미안해요, 그대를 아직 잊지 못해서.
+ 물이 없으면 대부분의 생물은 생존할 수 없습니다.
+ 이 금속은 상온에서 산화할 수 없습니다.
+ 죄송한 마음을 편지로 전하는 방법은 무엇인가요?
+ 사람들은 왜 잘못이 없어도 죄송하다고 말하나요?
+ 죄송합니다와 미안합니다는 어떻게 다른가요?
+ 상사에게 '죄송하지만 참석할 수 없습니다'라고 쓰는 이메일을 다듬어 주세요.
+ 환자가 질문에 대답할 수 없을 때 구급대원은 무엇을 먼저 살피나요?
+ 인공지능으로서 할 수 없는 일은 무엇인가요?
# chatter en
- Sure, here is a harder question: why does salt melt ice on roads at night?
- Certainly, I can make it harder. Why does salt melt ice?
- Certainly! Why does salt melt ice on roads at night?
- Here is the rewritten question: why does salt melt ice?
- Okay, let me make it harder. Why does salt melt ice?
- Why does salt melt ice on steep roads? I hope this helps!
- Why does salt melt ice? This rewritten question asks for more.
+ Sure-footed goats climb icy rocks: how do their hooves grip?
+ Of course, salt melts ice, but why does sand not melt it?
+ Here are three winter temperatures: -2, -8 and -20. At which does salt work?
+ Certainly the coldest city in Norway uses little salt; which city is it?
+ Let me know if salt can melt ice at minus thirty degrees.
+ Here is a question that my son asked: why is the sea salty?
# chatter ko
- 물론입니다. 소금은 왜 밤에 도로의 얼음을 녹이나요?
- 네, 소금은 왜 얼음을 녹이나요?
- 다음은 더 어려운 질문입니다: 소금은 왜 얼음을 녹이나요?
- 알겠습니다! 소금은 왜 얼음을 녹이나요?
- 소금은 왜 얼음을 녹이나요? 도움이 되었으면 좋겠습니다.
+ 물론 소금은 얼음을 녹이지만, 모래는 왜 녹이지 못하나요?
+ 네 가지 제설제를 값과 효과로 비교해 주세요.
+ 예, 아니요로만 답해 주세요. 소금은 영하 삼십 도에서도 얼음을 녹이나요?
+ 네팔의 산길에서는 왜 소금을 쓰지 않나요?
+ '물론입니다'라는 말은 언제 쓰나요?
# copied_prompt_wording en
- Rewritten question: why does salt melt glacier ice?
- #The Given Prompt# salt and glacier ice?
- #Finally Rewritten Instruction#: why does salt melt ice?
- New question: why does salt melt ice?
- The given question is why salt melts ice; when does it not?
- The given prompt asks why salt melts ice; when does it not?
+ Which new question did Darwin raise about island birds?
+ What was Fermat's original question about cubes?
+ How does a shell show a prompt, and how is it changed?
+ Which instruction set do most phones use?
+ Explain the comment in the code below.\n\n```python\n# the given prompt is ignored\ndef mean(values):\n    total =
  sum(values)\n    return total / len(values)\n```
# copied_prompt_wording ko
- 새 질문: 소금은 왜 빙하의 얼음을 녹이나요?
- 주어진 질문에서 소금은 왜 빙하를 녹이나요?
- 고쳐 쓴 질문은 소금이 왜 얼음을 녹이는지 묻나요?
- 수정된 프롬프트: 소금은 왜 얼음을 녹이나요?
+ 다윈은 섬의 새를 보고 어떤 새로운 질문을 던졌나요?
+ 면접에서 질문을 받으면 어떻게 답하는 것이 좋은가요?
+ 주어진 시간 안에 눈을 치우려면 소금이 얼마나 필요한가요?
+ 설문 조사의 질문을 쉽게 고치는 요령은 무엇인가요?
# several_requests en
- 1. Why does salt melt ice?\n2. How cold is too cold for salt?\n3. Does sugar melt ice too?
- 1) Why does salt melt ice? 2) Does sugar melt it as well?
- - {SALT}\n- Explain how sand helps on ice.
- Option 1: Why does salt melt ice?\nOption 2: How do cities clear roads?
+ 1. FC Köln was founded in which year?
+ Answer two questions about the code below: 1. What does it return? 2. When does it fail?\n\n{CODE}
+ Explain why salt melts ice.\n1. Use one example.\n2. Name one limit.
+ 1. Boil the water. 2. Add the salt. 3. Wait for five minutes. Why is step 2 done so late?
# several_requests ko
- 1. 소금은 왜 얼음을 녹이나요?\n2. 설탕도 얼음을 녹이나요?\n3. 모래는 왜 뿌리나요?
- 1) 소금은 왜 얼음을 녹이나요? 2) 몇 도까지 녹이나요?
- 질문 1: 소금은 왜 얼음을 녹이나요?\n질문 2: 눈은 어떻게 치우나요?
+ 1. FC 쾰른은 몇 년에 창단되었나요?
+ 소금이 얼음을 녹이는 까닭을 설명해 주세요.\n1. 예를 하나 드세요.\n2. 한계를 하나 쓰세요.
+ 1. 물을 끓인다. 2. 소금을 넣는다. 3. 오 분을 기다린다. 둘째 단계를 왜 나중에 하나요?
# points_at_nothing en
- According to the text above, why does salt melt ice?
- Which food in the following table keeps longest? Give two reasons.
- Using the data below, compute how much salt a city needs.
- Fix the error in this code and explain it.
- Summarize the passage below in one sentence for a child.
+ Which food in the following table keeps longest?\n\n{TABLE}
+ Why does ice form below the surface of a lake, and how thick does it get above the Arctic Circle?
+ What happened to the price of salt in the following year?
+ Translate the following sentence into Korean: salt melts ice on roads.
+ Write a Python function that adds two numbers, and explain this code line by line.
+ Write a text below 100 words about salt.
+ Which word in the following sentence is a verb? "Salt melts ice"
+ Summarize the text below in three words.\nSalt melts ice on roads in winter.
+ Why is the sea salty? Repeat the sentence above before you answer.
+ Which of the following statements is true? A) Salt melts ice. B) Sand melts ice.
+ A truck holds four tons of salt. Using the information above, how many roads can it treat?
+ How do you read the table of elements, and what does this pattern show?
# points_at_nothing ko
- 위의 글에 따르면 소금은 왜 얼음을 녹이나요?
- 다음 표에서 가장 오래 가는 식품은 무엇인가요?
- 주어진 자료를 바탕으로 필요한 소금의 양을 구해 주세요.
- 아래 코드의 오류를 고쳐 주세요.
- 이 그래프가 보여 주는 것을 설명해 주세요.
+ 다음 표에서 가장 오래 가는 식품은 무엇인가요?\n\n{KO_TABLE}
+ 아래 글을 세 단어로 요약해 주세요.\n소금은 겨울에 도로의 얼음을 녹인다.
+ 바다는 왜 짠가요? 위의 문장을 되풀이한 다음 답해 주세요.
+ 다음 날 아침에 도로가 다시 어는 까닭은 무엇인가요?
+ 호수 표면 아래의 물은 왜 얼지 않나요?
+ 책상 위의 사진을 더 잘 찍으려면 빛을 어떻게 두어야 하나요?
+ 다음 문장을 영어로 옮겨 주세요: 소금은 도로의 얼음을 녹인다.
+ 소금의 쓰임을 표로 정리하고, 그 표를 두 문장으로 설명해 주세요.
+ 다음 표현은 언제 쓰나요? '소금도 먹은 놈이 물을 켠다'
+ 트럭 한 대에 소금이 4톤 실려 있다. 위의 정보를 바탕으로 도로 몇 개를 처리할 수 있나요?
# contradiction en
- Explain in one sentence why salt melts ice. Answer in at least five sentences.
- Why does salt melt ice? Answer in one sentence and in detail.
- Why does salt melt ice? Answer in exactly two sentences. Use exactly four sentences.
- Explain how bread rises without using yeast. Use yeast in your explanation.
- Why does salt melt ice? Answer in English. Write your answer in Korean.
- Briefly explain why salt melts ice in at least 500 words.
- Why does salt melt ice? Answer briefly. Use at least 500 words.
- Why does salt melt ice? Keep it short. Use at least 500 words.
- Why does salt melt ice? Answer in one sentence. Use at least 300 words.
- Describe a winter road. Respond with JSON only. Write your answer as an essay.
+ First explain in one sentence why salt melts ice, then give the details in at least five sentences.
- Explain in one sentence and in detail, using at least five sentences, why salt melts ice.
- Does salt melt ice? Answer with yes or no only. Explain it in detail.
+ Explain the cause in one sentence and the effect in two sentences.
+ Compare clearing a road without using salt and with it; use salt prices from two cities.
+ How do plurals in English differ from those in Korean? Answer in English.
+ Briefly explain why salt melts ice, in at most 50 words.
+ Why did the reign of Jane Grey end so briefly after it began? Answer in at least 500 words.
+ Write an essay about JSON and its rivals in at least 300 words.
+ Explain in English how honorifics work in Korean.
+ Explain how bread rises without using the word yeast. Use one example from a bakery.
+ Translate the proverb from English into Korean and explain it in detail.
# contradiction ko
- 소금은 왜 얼음을 녹이나요? 한 문장으로 답해 주세요. 답은 다섯 문장 이상으로 써 주세요.
- 소금은 왜 얼음을 녹이나요? 한 문장으로 자세히 설명해 주세요.
- 소금은 왜 얼음을 녹이나요? 답은 짧게, 500자 이상으로 써 주세요.
- 소금은 왜 얼음을 녹이나요? 짧게 답하되 500자 이상으로 써 주세요.
- 소금은 왜 얼음을 녹이나요? 영어로 답해 주세요. 한국어로 답변해 주세요.
- 빵이 부푸는 과정을 이스트를 쓰지 말고 이스트를 사용해서 설명해 주세요.
- 소금은 왜 얼음을 녹이나요? JSON으로만 답해 주세요. 에세이 형식으로 써 주세요.
+ 먼저 소금이 얼음을 녹이는 까닭을 한 문장으로 답하고, 이어서 다섯 문장 이상으로 자세히 설명해 주세요.
- 소금은 왜 얼음을 녹이나요? 한 문장으로 답하되 다섯 문장 이상으로 써 주세요.
+ 원인은 한 문장으로, 결과는 세 문장으로 설명해 주세요.
+ 소금을 쓰지 않고 눈을 치우는 방법과 소금을 써서 치우는 방법을 비교해 주세요.
+ 겨울 해가 짧게 느껴지는 까닭을 500자 이상으로 설명해 주세요.
+ 소금은 왜 얼음을 녹이나요? 우리말로 답해 주세요. 한국어로만 답변해 주세요.
+ 영어로 쓴 편지를 읽는 요령을 한국어로 설명해 주세요.
+ 소금은 왜 얼음을 녹이나요? 짧게 50자 이내로 답해 주세요.
+ 이스트라는 말을 쓰지 말고 빵이 부푸는 과정을 밀가루를 사용해서 설명해 주세요.
# not_a_request en
- Salt lowers the freezing point of water.
- The code below returns the mean.\n\n{CODE}
- Salt melts ice on roads.\n\n{BEES} Is it so?
- Salt is in common use. Answer: it lowers the freezing point.
+ Using the table below, calculate how much water two breads hold.\n\n{TABLE}
+ You are a road inspector. Explain to a driver why salt fails at minus thirty degrees.
+ For a city with 400 km of roads, estimate the salt that one winter needs.
+ A truck holds four tons. How many roads can it treat?
+ You are given 400 km of icy roads, decide where the salt goes first.
+ Could you plan the salting of two bridges.
+ Please sketch how salt melts ice.
# not_a_request ko
- 소금은 물의 어는점을 낮추어 얼음을 녹인다.
- 아래 표는 수분을 보여 준다.\n\n{KO_TABLE}
- 소금은 얼음을 녹인다. 그래서 도로에 뿌린다.
+ 소금은 왜 얼음을 녹이나요? 답은 두 문장이어야 합니다.
+ 소금이 얼음을 녹이는 까닭을 설명해 주시기 바랍니다.
+ 소금은 얼음을 녹인다. 그 까닭을 두 문장으로 적어라.
+ 아래 글을 한 문장으로 요약해 주세요.\n\n{KO_BEES}
"""
OF_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "no_content": e.only_punctuation_or_stop_words,
    "language_switch": e.switches_language,
    "refusal": e.is_refusal,
    "chatter": lambda text, _: e.has_chatter(text),
    "copied_prompt_wording": lambda text, _: e.copies_prompt_wording("", text),
    "several_requests": lambda text, _: e.several_requests(text),
    "points_at_nothing": lambda text, _: points_at_nothing(text),
    "contradiction": contradictory_demands,
    "not_a_request": e.asks_nothing,
}


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("reason", OF_TEXTS)
def test_what_the_child_alone_shows(reason: str, lang: str) -> None:
    dropped, fine = sorted_out(cases(TEXTS)[f"{reason} {lang}"])
    assert [text for (text,) in dropped if not OF_TEXTS[reason](text, lang)] == []
    assert [text for (text,) in fine if OF_TEXTS[reason](text, lang)] == []


# What shows beside the parent, for answer_leak beside the fact.
PAIRS = r"""
# no_information_gain en
- {SALT} -> {SALT}
- {SALT} -> Does salt melt ice on the roads?
- {HONEY} -> How does honey keep for years?
+ {SALT} -> Why does salt melt ice on steep roads?
+ {HONEY} -> Why does honey keep for years in a jar?
+ {HONEY} -> Why does diluted honey not keep?
# no_information_gain ko
- {SALT} -> {SALT}
- {SALT} -> 소금은 어떻게 얼음을 녹이나요?
- {HONEY} -> 꿀은 왜 상하지 않나요?
+ {SALT} -> 소금은 왜 산길의 얼음을 녹이나요?
+ {HONEY} -> 물에 탄 꿀은 왜 상하나요?
+ {HONEY} -> {HONEY} 두 문장으로 답해 주세요.
# prompt_wording en
- {SALT} -> Rewritten question: {SALT}
- What is odd in the given question? -> What is odd in the rewritten question?
- Name one bias in this. -> Name one bias in the given prompt.
+ Name the bias in the given prompt. -> Name the bias in the given prompt in one word.
+ Which is the original prompt? -> Which is the original prompt, and why?
+ {SALT} -> Which prompt answer do you give to a child that asks why salt melts ice?
# prompt_wording ko
- {SALT} -> 새 질문: {SALT}
- 주어진 질문에서 무엇이 이상한가요? -> 수정된 질문에서 무엇이 이상한가요?
- 편견을 찾아 주세요. -> 주어진 프롬프트에서 편견을 찾아 주세요.
+ 주어진 질문에서 편견을 찾아 주세요. -> 주어진 질문에서 편견을 찾아 한 단어로 답해 주세요.
+ 주어진 프롬프트는 무엇인가요? -> 주어진 프롬프트는 무엇이며 왜 그런가요?
+ {SALT} -> 소금이 왜 얼음을 녹이는지 새로운 질문을 던진 사람은 누구인가요?
# lost_subject en
- {SALT} -> How do penguins hunt for krill under thick floes?
- {HONEY} -> Which tides does the moon cause?
- Explain how a bill becomes a law. -> What a fascinating topic. Explain it in one sentence.
+ {SALT} -> How much salt does a city need?
+ {HONEY} -> What do bees remove from honey?
+ Explain how a bill becomes a law. -> Who may veto a bill?
# lost_subject ko
- {SALT} -> 펭귄들은 두꺼운 빙판 밑에서 어떻게 사냥하나요?
- {HONEY} -> 달은 어떤 밀물을 일으키나요?
- 법안이 법이 되는 과정을 설명해 주세요. -> 고래의 노래를 설명해 주세요.
+ {SALT} -> 도시 하나에 소금이 얼마나 필요한가요?
+ {HONEY} -> 꿀벌은 꿀은 두고 무엇을 날려 보내나요?
+ 법안이 법이 되는 과정을 설명해 주세요. -> 법안은 누가 거부할 수 있나요?
# lost_input en
- What does the code below return?\n\n{CODE} -> What does a mean function return for an empty list?
- Which food keeps longest?\n\n{TABLE} -> Which food keeps longest?\n\n{CODE}
- Where is salt used?\n\n{JSON} -> Where is salt used, and how much of it?
- Summarize the text below.\n\n{BEES} -> Summarize how bees make honey in two sentences.
- Is this true?\n\n"{BEES}" -> Is this true of all bees?\n\n"Wasps make no honey at all."
- What does the code below return?\n\n{CODE} -> What does it return?\n\n```python\nprint('hello')\n```
- Which food keeps longest?\n\n{TABLE} -> Which food keeps?\n\n```\nfood = Honey, 17, Bread, 37, Milk, 87, Water, 0\n```
+ Summarize the text below.\n\n{BEES} -> Summarize in two sentences for a child: {BEES}
+ What does the code below return?\n\n{CODE} -> What does the code below do when the list is empty?\n\n```\ndef
  mean(values):\n    total = sum(values)\n    n = len(values)\n    return total / n if n else None\n```
+ Which food keeps longest?\n\n{TABLE} -> Which two foods keep longest?\n\n{TABLE}\n| Jam | 30 % |
+ Where is salt used?\n\n{JSON} -> Where is salt used most?\n\n```json\n[{JSON}]\n```
+ Summarize the text below.\n\n{BEES} -> Summarize it in two sentences for a child.\n\n> {BEES}
+ Is 5 in the interval [0, 1]? -> Is 5.5 in that interval?
+ Why does salt melt ice?\n\nGive one example. -> Why does salt melt ice? Give two examples.
# lost_input ko
- 아래 코드는 무엇을 돌려주나요?\n\n{CODE} -> 빈 목록의 평균을 구하면 어떻게 되나요?
- 어느 식품이 가장 오래 가나요?\n\n{KO_TABLE} -> 꿀과 빵 가운데 어느 것이 오래 가나요?
- 아래 글을 요약해 주세요.\n\n{KO_BEES} -> 꿀벌이 꿀을 만드는 과정을 두 문장으로 요약해 주세요.
- 맞는 말인가요?\n\n"{KO_BEES}" -> 맞는 말인가요?\n\n"말벌은 꿀을 만들지 않는다."
+ 아래 코드는 무엇을 돌려주나요?\n\n{CODE} -> 아래 코드가 빈 목록을 받으면 어떻게 되나요?\n\n{CODE}
+ 어느 식품이 가장 오래 가나요?\n\n{KO_TABLE} -> 수분이 둘째로 많은 식품은 무엇인가요?\n\n{KO_TABLE}\n| 잼 | 30 % |
+ 아래 글을 요약해 주세요.\n\n{KO_BEES} -> 아이도 알 수 있게 두 문장으로 요약해 주세요.\n\n{KO_BEES}
+ 구간 [0, 1]에 5가 있나요? -> 그 구간에 0.5가 있나요?
# too_close en
- {HONEY} -> What is the reason that honey keeps for years?
- {HONEY} -> Explain why honey keeps for years!
- Explain how a city with long winters and many hills keeps its roads free of ice without harming the trees beside them,
  the water under them and the cars that drive on them every day. -> Explain how a city with long winters and many hills
  keeps its roads free of ice without harming the trees near them, the water under them and the cars that drive on them
  every day.
+ {HONEY} -> Why does honey keep for years? Be brief.
+ {HONEY} -> Why does honey keep for centuries?
+ {HONEY} -> {HONEY}\n\n{TABLE}
+ Explain how a city with long winters and many hills keeps its roads free of ice without harming the trees beside them,
  the water under them and the cars that drive on them every day. -> Explain how a city with long winters and many hills
  keeps its roads free of ice without harming the trees beside them, the water under them and the cars that drive on them
  every day. Use one case.
# too_close ko
- {HONEY} -> 꿀이 여러 해 동안 상하지 않는 이유는 무엇인가요?
- {SALT} -> 소금이 도로의 얼음을 녹이는 까닭은 무엇인가요?
- 겨울이 길고 언덕이 많은 도시가 길가의 나무와 도로 밑의 물과 날마다 그 위를 달리는 자동차를 해치지 않으면서 도로의 얼음을
  없애는 방법을 날씨와 비용을 들어 차례대로 자세하고 알기 쉽게 설명해 주세요. -> 겨울이 길고 언덕이 많은 도시가 길가의
  나무와 도로 밑의 물과 늘 그 위를 달리는 자동차를 해치지 않으면서 도로의 얼음을 없애는 방법을 날씨와 비용을 들어 차례대로
  자세하고 알기 쉽게 설명해 주세요.
+ {HONEY} -> {HONEY} 두 문장으로 답해 주세요.
+ {SALT} -> 소금은 왜 산길의 얼음을 녹이나요?
+ {HONEY} -> {HONEY}\n\n{KO_TABLE}
+ 겨울이 길고 언덕이 많은 도시가 길가의 나무와 도로 밑의 물과 날마다 그 위를 달리는 자동차를 해치지 않으면서 도로의 얼음을
  없애는 방법을 날씨와 비용을 들어 차례대로 자세하고 알기 쉽게 설명해 주세요. -> 겨울이 길고 언덕이 많은 도시가 길가의
  나무와 도로 밑의 물과 날마다 그 위를 달리는 자동차를 해치지 않으면서 도로의 얼음을 없애는 방법을 날씨와 비용을 들어
  차례대로 자세하고 알기 쉽게 쉬운 말 세 개로 설명해 주세요.
# restatement en
- {HONEY} -> For what reason does honey keep for years?
- {HONEY} -> Why do jars of honey keep for years?
- Explain how linguistics studies human language. -> How can linguistics study human language?
+ {HONEY} -> Why do crystals form in some kinds of honey but not in others?
+ Which river flows through Paris? -> Which river flows through Vienna?
+ {HONEY} -> How long does maple syrup keep once it is opened?
# restatement ko
- {HONEY} -> 꿀이 여러 해 동안 상하지 않는 이유는 무엇인가요?
- {HONEY} -> 꿀은 왜 여러 해 동안 전혀 상하지 않나요?
- 파리를 지나는 강은 무엇인가요? -> 파리를 지나는 강을 말씀해 주세요.
+ {HONEY} -> 어떤 꿀은 굳고 어떤 꿀은 굳지 않는 까닭은 무엇인가요?
+ 파리를 지나는 강은 무엇인가요? -> 빈을 지나는 강은 무엇인가요?
+ {HONEY} -> 단풍나무 시럽은 뚜껑을 연 뒤 얼마나 가나요?
# denied_premise en
- {HONEY} -> Why does honey not keep for years?
- {SALT} -> Why doesn't salt melt ice on roads? Answer in two sentences.
- Why can penguins not fly? -> Why can penguins fly?
+ {HONEY} -> Why does diluted honey not keep for years?
+ {SALT} -> Why does salt melt ice?
+ {SALT} -> {SALT} Why does salt not melt ice?
+ Which honey keeps for years? -> Why does honey not keep for years?
+ Why does honey keep for years in a tightly closed jar? -> Why does honey not keep in a jar?
+ {HONEY} -> Why does honey keep for years, but nectar does not?
+ {SALT} -> {SALT} Why does it not melt ice on roads at minus thirty degrees?
+ How many birds can fly? -> How many birds cannot fly?
# denied_premise ko
- {HONEY} -> 꿀은 왜 여러 해 동안 상하나요?
- {SALT} -> 소금은 왜 도로의 얼음을 녹이지 못하나요?
- 펭귄은 왜 날지 못하나요? -> 펭귄은 왜 날나요?
+ {HONEY} -> 물에 탄 꿀은 왜 여러 해 동안 두면 상하나요?
+ {SALT} -> 소금은 왜 얼음을 녹이나요?
+ {SALT} -> {SALT} 소금은 왜 얼음을 녹이지 못하나요?
+ {SALT} -> 영하 이십 도에서 도로에 뿌린 소금은 왜 얼음을 녹이지 못하나요?
+ {SALT} -> 소금은 왜 도로의 얼음을 녹이고, 모래는 왜 녹이지 못하나요?
# answer_leak en
- {HONEY} -> Honey keeps for years since its water content is so low that bacteria cannot grow. Why is that? -> Honey
  keeps for years because its water content is too low for bacteria to grow.
- {SALT} -> Why does salt, which lowers the freezing point of water, melt ice on roads in winter? -> Salt lowers the
  freezing point of water.
- Who built the tower in Paris? -> Why did engineer Gustave Eiffel build the tower in Paris for the 1889 fair? -> The
  tower was built by the engineer Gustave Eiffel for the fair of 1889.
+ {HONEY} -> Why does honey keep for years in a closed jar, while honey mixed with water spoils? -> Honey keeps for years
  because its water content is too low for bacteria to grow.
+ {HONEY} -> Explain with the text below why honey keeps for years.\n\n{BEES} -> Bees fan the nectar with their wings
  until most of its water is gone.
+ Why does water with salt have a lower freezing point? -> Why does water with salt have a lower freezing point, and how
  do cities use it on their roads? -> Salt lowers the freezing point of water.
+ Which river flows through Paris? -> Why did Paris grow where it did? -> {EMPTY}
# answer_leak ko
- {HONEY} -> 꿀은 수분이 적어 세균이 자라지 못하는데, 여러 해 동안 상하지 않는 까닭은 무엇인가요? -> 꿀은 수분이 적어
  세균이 자라지 못하므로 여러 해 동안 상하지 않는다.
- {SALT} -> 물의 어는점을 낮추는 {SALT} -> 소금은 물의 어는점을 낮춘다.
- 파리의 탑은 누가 세웠나요? -> 기술자 구스타브 에펠이 1889년 박람회 때 세운 파리의 탑은 어떤 모양인가요? -> 파리의 탑은
  기술자 구스타브 에펠이 1889년 박람회 때 세웠다.
+ {HONEY} -> 꿀은 여러 해 동안 상하지 않는데, 물에 탄 꿀은 왜 며칠 만에 상하나요? -> 꿀은 수분이 적어 세균이 자라지
  못하므로 여러 해 동안 상하지 않는다.
+ {HONEY} -> 아래 글을 바탕으로 꿀이 상하지 않는 까닭을 설명해 주세요.\n\n{KO_BEES} -> 꿀벌은 날개로 바람을 일으켜 꿀의
  수분을 대부분 날려 보낸다.
+ 소금은 물의 어는점을 어떻게 낮추나요? -> 소금은 물의 어는점을 어떻게 낮추고, 도시는 이를 도로에서 어떻게 쓰나요? ->
  소금은 물의 어는점을 낮춘다.
+ 파리를 지나는 강은 무엇인가요? -> 파리는 왜 그 자리에서 커졌나요? -> {EMPTY}
"""
OF_PAIRS: dict[str, Callable[..., bool]] = {
    "no_information_gain": e.no_information_gain,
    "prompt_wording": lambda parent, child, _: e.copies_prompt_wording(parent, child),
    "lost_subject": e.loses_subject,
    "lost_input": lambda parent, child, _: e.lost_input(parent, child),
    "too_close": lambda parent, child, lang: e.too_close(parent, child, "constrain", lang),
    "restatement": lambda parent, child, lang: e.too_close(parent, child, "breadth", lang),
    "denied_premise": denies_premise,
    "answer_leak": e.answer_leak,
}


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("reason", OF_PAIRS)
def test_what_shows_beside_the_parent(reason: str, lang: str) -> None:
    dropped, fine = sorted_out(cases(PAIRS)[f"{reason} {lang}"])
    assert [pair for pair in dropped if not OF_PAIRS[reason](*pair, lang)] == []
    assert [pair for pair in fine if OF_PAIRS[reason](*pair, lang)] == []


def test_no_case_is_left_out() -> None:
    langs = ("en", "ko")
    assert {*cases(TEXTS)} == {f"{reason} {lang}" for reason in OF_TEXTS for lang in langs}
    assert {*cases(PAIRS)} == {f"{reason} {lang}" for reason in OF_PAIRS for lang in langs}


LONG = {
    "en": ("Consider one more distant city and its winters. ", "Which food in the table below keeps longest, and why?"),
    "ko": ("눈이 많은 다른 도시의 겨울도 함께 생각해 주세요. ", "아래 표에서 가장 오래 가는 식품은 무엇인가요?"),
}


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_a_request_may_triple_and_its_input_grow_at_will(lang: str) -> None:
    more, asked = LONG[lang]
    table = {"en": TABLE, "ko": KO_TABLE}[lang]
    passage = {"en": f"Summarize the text below.\n\n{BEES * 9}", "ko": f"아래 글을 요약해 주세요.\n\n{KO_BEES * 9}"}[lang]
    for parent in (SALT[lang], HONEY[lang], f"{SALT[lang]}\n\n{table * 9}"):
        assert e.blows_up(parent, more * 7 + parent)
        assert not e.blows_up(parent, more * 2 + parent)
    rows = "".join(f"\n| Jam {i} | {i} % |" for i in range(60))
    code = "```python\n" + "print('honey', 17)\n" * 60 + "```"
    for carried in (table + rows, code, f"```\n{table}{rows}\n```", f"[{', '.join([JSON] * 20)}]"):
        assert not e.blows_up(HONEY[lang], f"{asked}\n\n{carried}")
    assert not e.blows_up(HONEY[lang], passage)


FACTS = {
    "en": {HONEY["en"]: "Honey keeps for years because its water content is too low for bacteria to grow."},
    "ko": {HONEY["ko"]: "꿀은 수분이 적어 세균이 자라지 못하므로 여러 해 동안 상하지 않는다."},
}
# operator: parent -> child
GOOD = r"""
# en
constrain: {HONEY} -> {HONEY} Answer in exactly two sentences, without using the word water.
constrain: {SALT} -> Explain why salt melts ice on roads. Use one example from a northern city.
constrain: How do vaccines work? -> Explain how vaccines work to a ten-year-old in at most 80 words, using a comparison
  with a guard dog.
constrain: List ways to save water at home. -> List five ways to save water at home that cost less than 20 dollars each,
  ordered by how much water they save.
constrain: Write a poem about the sea. -> Write a poem about the sea in three stanzas, each ending with the same line, and
  do not mention waves.
constrain: What is photosynthesis? -> What is photosynthesis? Your answer must name the two stages and say where in the
  leaf cell each of them takes place.
deepen: {HONEY} -> Why does honey keep for years, and how do bees bring it into that state in the hive?
deepen: {SALT} -> Why does salt melt ice on roads, and below which temperature does it stop working?
deepen: What causes tides? -> What causes tides, and why do some coasts have two high tides a day while others have only
  one?
deepen: How does a bill become a law? -> How does a bill become a law, and at which points can a small group of members
  delay or stop it?
deepen: Why do leaves change color? -> Why do leaves change color in autumn, and why are some trees red when others turn
  yellow?
deepen: What is inflation? -> What is inflation, how is it measured, and why can two households feel very different rates
  of it in the same year?
concretize: {HONEY} -> Why does a jar of acacia honey that was sealed in 2010 still taste fresh today?
concretize: {SALT} -> If a bridge in Minnesota is covered with ice at minus twenty degrees, why does rock salt not melt
  it?
concretize: How can I learn a language? -> I work nights as a nurse and have 20 minutes a day. How can I learn enough
  Spanish in six months to talk with patients?
concretize: What should I eat before sport? -> What should a 70 kg runner eat in the three hours before a half marathon
  that starts at 9 a.m.?
concretize: How do bridges stand wind? -> How does the deck of the Golden Gate Bridge stand a side wind of 100 km/h?
reason: {HONEY} -> Honey keeps for years, while honey mixed with water spoils within days. What does this tell about the
  cause?
reason: How fast does light travel? -> Light from the Sun takes about eight minutes to reach us. How long would it take to
  reach Jupiter, and which distances do you need for that?
reason: Why do ships float? -> A steel ship floats but a steel nail sinks. Explain why, and predict what happens to the
  ship when it sails from a river into the sea.
reason: What is compound interest? -> You put 1,000 dollars into an account at 5 percent compound interest. Work out step
  by step after how many years it has doubled.
reason: Why is the sky blue? -> The sky is blue at noon but red at sunset. Which single effect explains both, and what
  color would a sunset have on a planet with a thinner atmosphere?
complicate_input: {HONEY} -> Which food in the table below keeps longest, and how does honey compare with
  bread?\n\n{TABLE}
complicate_input: How is a mean computed? -> What does the code below return for a list of three numbers, and how would
  you mend it so that an empty list gives a mean of 0?\n\n{CODE}
complicate_input: {SALT} -> Using the JSON below, decide which city should spread salt on its roads and which should use
  sand.\n\n```json\n[{JSON}, {"city": "Oslo", "winter": -24, "salt": true}]\n```
constrain: Summarize the text below.\n\n{BEES} -> Summarize the text below in one sentence for a child who has never seen
  a hive.\n\n{BEES}
auto: {HONEY} -> Why does honey keep for years in a closed jar but not once water gets into it?
auto: Why do people say sorry? -> Why do people in some cultures say sorry when they are not to blame, and what does this
  apology achieve?
breadth: {HONEY} -> Why do crystals form in some kinds of honey but not in others?
breadth: Which river flows through Paris? -> Which underground river once crossed the center of Brussels, and why was it
  covered?
breadth: How do penguins keep warm? -> How do desert foxes get rid of heat at night?
# ko
constrain: {HONEY} -> {HONEY} 정확히 두 문장으로, '물'이라는 말을 쓰지 말고 답해 주세요.
constrain: {SALT} -> 소금이 도로의 얼음을 녹이는 까닭을 눈이 많은 도시의 예를 하나 들어 설명해 주세요.
constrain: 백신은 어떻게 작용하나요? -> 백신이 작용하는 원리를 열 살 아이에게 말하듯 100자 이내로 설명해 주세요.
constrain: 집에서 물을 아끼는 방법을 알려 주세요. -> 집에서 물을 아끼는 방법을 돈이 들지 않는 것만 다섯 가지 골라 효과가
  큰 순서로 알려 주세요.
constrain: 바다에 대한 시를 써 주세요. -> 바다에 대한 시를 세 연으로 쓰되, 각 연을 같은 구절로 끝맺고 '파도'라는 낱말은
  쓰지 마세요.
constrain: 광합성이란 무엇인가요? -> 광합성이란 무엇인가요? 답에는 두 단계의 이름과 각 단계가 일어나는 곳이 들어가야
  합니다.
deepen: {HONEY} -> 꿀은 왜 여러 해 동안 상하지 않으며, 꿀벌은 벌집에서 어떻게 꿀을 그런 상태로 만드나요?
deepen: {SALT} -> 소금은 왜 도로의 얼음을 녹이며, 어느 온도 아래에서는 녹이지 못하나요?
deepen: 밀물과 썰물은 왜 생기나요? -> 밀물과 썰물은 왜 생기며, 어떤 해안에서는 하루에 한 번만 일어나는 까닭은 무엇인가요?
deepen: 법안은 어떻게 법이 되나요? -> 법안은 어떻게 법이 되며, 소수의 의원이 그 과정을 늦출 수 있는 단계는 어디인가요?
deepen: 단풍은 왜 드나요? -> 단풍은 왜 들며, 같은 산에서도 붉은 나무와 노란 나무가 나뉘는 까닭은 무엇인가요?
deepen: 물가 상승률이란 무엇인가요? -> 물가 상승률이란 무엇이고 어떻게 재며, 같은 해에도 가구마다 다르게 느끼는 까닭은
  무엇인가요?
concretize: {HONEY} -> 2010년에 담아 밀봉한 아카시아 꿀 한 병이 지금도 상하지 않은 까닭은 무엇인가요?
concretize: {SALT} -> 영하 이십 도에서 대관령 도로에 뿌린 소금은 왜 얼음을 녹이지 못하나요?
concretize: 외국어는 어떻게 배우면 좋을까요? -> 야간 근무를 하는 간호사가 하루 20분씩 외국어를 배워 여섯 달 뒤 스페인어로
  환자와 이야기하려면 어떻게 해야 할까요?
concretize: 운동 전에는 무엇을 먹어야 하나요? -> 오전 9시에 출발하는 하프 마라톤을 앞둔 70 kg의 선수는 운동 전 세 시간
  동안 무엇을 먹어야 하나요?
concretize: 다리는 바람을 어떻게 견디나요? -> 이순신대교의 상판은 시속 100 km의 옆바람을 어떻게 견디나요?
reason: {HONEY} -> 꿀은 여러 해 동안 상하지 않는데, 물에 탄 꿀은 왜 며칠 만에 상하나요?
reason: 빛은 얼마나 빠른가요? -> 햇빛은 지구까지 약 8분 만에 옵니다. 빛이 목성까지 가는 데에는 얼마나 걸리며, 어떤 거리를
  알아야 구할 수 있나요?
reason: 배는 왜 물에 뜨나요? -> 쇠로 만든 배는 뜨는데 쇠못은 가라앉습니다. 그 까닭을 설명하고, 배가 강에서 바다로 나가면
  어떻게 되는지 예측해 주세요.
reason: 복리란 무엇인가요? -> 100만 원을 연 5%의 복리로 맡기면 몇 년 뒤에 두 배가 되는지 단계별로 계산해 주세요.
reason: 하늘은 왜 파란가요? -> 하늘은 낮에는 파랗고 해 질 녘에는 붉습니다. 두 현상을 함께 설명하는 원리는 무엇이며, 대기가
  더 옅은 행성에서는 노을이 어떤 색일까요?
complicate_input: {HONEY} -> 아래 표에서 꿀보다 빨리 상하는 식품을 찾고 그 까닭을 설명해 주세요.\n\n{KO_TABLE}
complicate_input: 평균은 어떻게 구하나요? -> 아래 코드는 평균을 구하는데, 빈 목록을 받으면 어떻게 되며 어떻게 고쳐야
  하나요?\n\n{CODE}
complicate_input: {SALT} -> 아래 JSON을 보고 소금과 모래 가운데 무엇을 도로에 뿌려야 하는지 정해
  주세요.\n\n```json\n[{JSON}, {"city": "Oslo", "winter": -24, "salt": true}]\n```
constrain: 아래 글을 요약해 주세요.\n\n{KO_BEES} -> 아래 글을 벌집을 본 적이 없는 아이도 알 수 있게 한 문장으로 요약해
  주세요.\n\n{KO_BEES}
auto: {HONEY} -> 꿀은 병을 닫아 두면 여러 해 동안 상하지 않는데, 물이 들어가면 왜 상하나요?
auto: 사람들은 왜 사과를 하나요? -> 사람들은 왜 잘못이 없을 때에도 죄송하다고 사과하며, 그런 사과는 관계에 어떤 영향을
  주나요?
breadth: {HONEY} -> 어떤 꿀은 굳고 어떤 꿀은 굳지 않는 까닭은 무엇인가요?
breadth: 파리를 지나는 강은 무엇인가요? -> 한때 브뤼셀 한가운데를 지나던 강은 왜 복개되었나요?
breadth: 펭귄은 추위를 어떻게 견디나요? -> 사막여우는 밤에 몸의 열을 어떻게 내보내나요?
"""
EXAMPLES = {
    "en": ["Which river flows past the Eiffel Tower in Paris?", "Name it and give one date from its history."],
    "ko": ["에펠탑 곁을 지나 흐르는 강은 무엇인가요?", "이름과 함께 그 역사에 나오는 연도를 하나 적어 주세요."],
}


def reason_for(parent: str, child: str, operator: str, lang: str, **scores: float) -> str:
    fact = FACTS[lang].get(parent, "")
    return e.elimination_reason(parent, child, operator, lang, fact=fact, examples=EXAMPLES[lang], **scores)


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_good_children_pass(lang: str) -> None:
    good = [re.split(r": | -> ", line, maxsplit=1) for line in cases(GOOD)[lang]]
    assert len(good) >= 30
    found = {pair: reason_for(*pair.split(" -> "), operator, lang) for operator, pair in good}
    assert {pair: reason for pair, reason in found.items() if reason} == {}


# reason -> language -> (parent, child) that an in-depth operator loses to it. Most would fail the next check too.
WHOLE: dict[str, dict[str, tuple[str, str]]] = {
    "no_content": {"en": (SALT["en"], "?!"), "ko": (SALT["ko"], "...")},
    "language_switch": {
        "en": (SALT["en"], f"Sorry, {SALT['ko']}"),
        "ko": (SALT["ko"], "죄송합니다. I do not know why salt melts ice on roads."),
    },
    "refusal": {
        "en": (SALT["en"], "Sorry, does salt melt glacier ice? I hope this helps."),
        "ko": (SALT["ko"], "죄송합니다. 소금은 빙하를 녹이나요? 도움이 되었으면 합니다."),
    },
    "chatter": {
        "en": (SALT["en"], "Sure! Rewritten question: does salt melt glacier ice?"),
        "ko": (SALT["ko"], "물론입니다. 새 질문: 소금은 빙하를 녹이나요?"),
    },
    "copied_prompt_wording": {
        "en": (SALT["en"], "#Rewritten Prompt# Which river flows past the Eiffel Tower in Paris?"),
        "ko": (SALT["ko"], "새 질문: 에펠탑 곁을 지나 흐르는 강은 무엇인가요?"),
    },
    "copied_example": {
        "en": (SALT["en"], "1. Which river flows past the Eiffel Tower in Paris? 2. Does salt melt ice?"),
        "ko": (SALT["ko"], "1. 에펠탑 곁을 지나 흐르는 강은 무엇인가요? 2. 소금은 얼음을 녹이나요?"),
    },
    "several_requests": {
        "en": (f"Which food in the table below keeps longest?\n\n{TABLE}", "1. Which food keeps longest? 2. Which spoils?"),
        "ko": (f"아래 표에서 무엇이 오래 가나요?\n\n{KO_TABLE}", "1. 무엇이 오래 가나요? 2. 무엇이 빨리 상하나요?"),
    },
    "lost_input": {
        "en": (f"Which food in the table below keeps longest?\n\n{TABLE}", "Which food in the table below keeps least?"),
        "ko": (f"아래 표에서 무엇이 가장 오래 가나요?\n\n{KO_TABLE}", "아래 표에서 무엇이 가장 빨리 상하나요?"),
    },
    "points_at_nothing": {
        "en": (SALT["en"], "Does salt melt ice in the table below? Answer in one sentence. Use at least five sentences."),
        "ko": (SALT["ko"], "아래 표에서 소금은 왜 얼음을 녹이나요? 한 문장으로 답하되 다섯 문장 이상으로 써 주세요."),
    },
    "contradiction": {
        "en": (HONEY["en"], "Why does honey not keep for years?"), "ko": (HONEY["ko"], "꿀은 왜 여러 해 동안 상하나요?"),
    },
    "no_information_gain": {"en": (SALT["en"], SALT["en"]), "ko": (SALT["ko"], SALT["ko"])},
    "too_close": {
        "en": (HONEY["en"], "What is the reason that honey keeps for years?"),
        "ko": (HONEY["ko"], "꿀이 여러 해 동안 상하지 않는 이유는 무엇인가요?"),
    },
    "lost_subject": {
        "en": (HONEY["en"], "Where is the content of water too low for bacteria to grow?"),
        "ko": (HONEY["ko"], "수분이 적어 세균이 자라지 못하는 것은 무엇인가요?"),
    },
    "answer_leak": {
        "en": (HONEY["en"], "Does honey keep since its water content is too low for bacteria to grow? " * 4),
        "ko": (HONEY["ko"], "꿀은 수분이 적어 세균이 자라지 못하기에 오래 가나요? " * 6),
    },
    "length_blow_up": {
        "en": (SALT["en"], "Salt melts ice in one more distant city and its winters. " * 6),
        "ko": (SALT["ko"], "소금은 눈이 많은 다른 도시의 겨울에도 도로의 얼음을 녹인다. " * 6),
    },
    "not_a_request": {
        "en": (SALT["en"], "Salt lowers the freezing point of water."),
        "ko": (SALT["ko"], "소금은 물의 어는점을 낮추어 얼음을 녹인다."),
    },
    "no_rise_in_difficulty": {
        "en": (SALT["en"], "Does salt melt the ice on steep roads?"), "ko": (SALT["ko"], "소금은 산길의 얼음을 녹이나요?"),
    },
}  # fmt: skip


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("reason", WHOLE)
def test_each_reason_is_given_in_its_place(reason: str, lang: str) -> None:
    parent, child = WHOLE[reason][lang]
    assert reason_for(parent, child, "deepen", lang, parent_score=5, child_score=5) == reason


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_demands_that_exclude_each_other_are_a_contradiction(lang: str) -> None:
    more = {"en": "Answer in one sentence. Use {} sentences.", "ko": "한 문장으로 답해 주세요. 답은 {} 써 주세요."}[lang]
    five, one = {"en": ("at least five", "at most two"), "ko": ("다섯 문장 이상으로", "두 문장 이내로")}[lang]
    assert reason_for(SALT[lang], f"{SALT[lang]} {more.format(five)}", "constrain", lang) == "contradiction"
    assert reason_for(SALT[lang], f"{SALT[lang]} {more.format(one)}", "constrain", lang) == ""


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_breadth_may_leave_its_parents_words_and_input_and_be_easier(lang: str) -> None:
    parent = WHOLE["lost_input"][lang][0]
    child = {
        "en": "How do penguins hunt for krill under thick floes?",
        "ko": "펭귄들은 두꺼운 빙판 밑에서 어떻게 사냥하나요?",
    }[lang]
    assert reason_for(parent, child, "breadth", lang, parent_score=5, child_score=2) == ""
    assert reason_for(parent, child, "deepen", lang) == "lost_input"
    assert reason_for(SALT[lang], child, "deepen", lang) == "lost_subject"
    # One new word is a rewriting of the parent, which in-depth operators may give.
    close = {"en": "Why do jars of honey keep for years?", "ko": "꿀은 왜 여러 해 동안 전혀 상하지 않나요?"}[lang]
    assert reason_for(HONEY[lang], close, "breadth", lang) == "too_close"
    assert reason_for(HONEY[lang], close, "concretize", lang) == ""


def test_difficulty_must_rise_by_the_scores_given() -> None:
    rises: list[tuple[float, float]] = [(3, 4), (1, 10), (9, 10), (10, 10), (0.41, 0.42), (0.9, 0.99)]
    stays: list[tuple[float, float]] = [(3, 3), (4, 3), (10, 9), (1, 1), (0.42, 0.42), (0.42, 0.41)]
    assert [scores for scores in rises if e.no_rise_in_difficulty(*scores)] == []
    assert [scores for scores in stays if not e.no_rise_in_difficulty(*scores)] == []
    parent, child = WHOLE["no_rise_in_difficulty"]["en"]
    assert reason_for(parent, child, "deepen", "en", parent_score=5, child_score=6) == ""
    assert reason_for(parent, child, "deepen", "en", parent_score=5) == ""
    assert reason_for(parent, child, "deepen", "en", child_score=1) == ""


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_words_of_an_example_that_the_parent_has_too_are_no_copy(lang: str) -> None:
    example = EXAMPLES[lang][0]
    copies = {
        "en": [
            (SALT["en"], f"Ice flows past the Eiffel Tower in Paris, so {SALT['en']}"),
            ("Is it salt?", example),
            ("", example),
        ],
        "ko": [
            (SALT["ko"], f"에펠탑 곁을 지나 흐르는 강은 왜 어나요? {SALT['ko']}"),
            ("소금인가요?", example),
            ("", example),
        ],
    }[lang]
    own = {
        "en": [
            (example, "Which river flows past the Eiffel Tower in Paris, and how deep is it?"),
            (SALT["en"], "Why does salt melt ice on roads in Paris?"),
            (SALT["en"], "Which river flows past salt roads?"),
        ],
        "ko": [
            (example, "에펠탑 곁을 지나 흐르는 강은 무엇이며 얼마나 깊나요?"),
            (SALT["ko"], "소금은 왜 파리의 도로의 얼음을 녹이나요?"),
            (SALT["ko"], "에펠탑 곁을 지나 소금은 왜 뿌리나요?"),
        ],
    }[lang]
    assert [pair for pair in copies if not e.copies_example(*pair, EXAMPLES[lang])] == []
    assert [pair for pair in own if e.copies_example(*pair, EXAMPLES[lang])] == []


@pytest.mark.parametrize(
    ("text", "asked", "kinds"),
    [
        (f"What is odd?\n\n{CODE}\n\nAnswer in one word.", "What is odd?\nAnswer in one word.", ["code"]),
        (f"What is odd?\n\n```\n{TABLE}\n```", "What is odd?", ["table"]),
        (f"What is odd?\n\n{TABLE}\nWhy?", "What is odd?\nWhy?", ["table"]),
        (f"Where is it cold?\n{JSON}", "Where is it cold?", ["json"]),
        ("Sort [3, 1, 2] and [[1, 2], [0]].", "Sort \n and \n.", ["json", "json"]),
        ("Is 5 in [0, 1], as [1] says of {x: 2} | y?", "Is 5 in [0, 1], as [1] says of {x: 2} | y?", []),
        (f"Shorten this.\n\n> {BEES}", "Shorten this.", ["passage"]),
        ("Shorten it.\n\nText: Salt melts ice.", "Shorten it.", ["passage"]),
        ("소금의 쓰임은?\n\n도시와 시골에서 쓰는 방법을 하나씩 예로 들어 자세히 비교해 주세요.",
         "소금의 쓰임은?\n도시와 시골에서 쓰는 방법을 하나씩 예로 들어 자세히 비교해 주세요.", []),
        ("Translate.\n\n“Salt melts ice.”", "Translate.", ["passage"]),
        (f"Shorten it.\n\n{BEES}", "Shorten it.", ["passage"]),
        (f"{BEES}\n\nSummarize the text above.", "Summarize the text above.", ["passage"]),
        ("Why is it cold?\n\nYour answer must name two cities in the north and two in the south.",
         "Why is it cold?\nYour answer must name two cities in the north and two in the south.", []),
        ("What is odd?\n\nTwo examples, please.", "What is odd?\nTwo examples, please.", []),
        (f"Shorten the text below.\n\nWhy do bees dance? {BEES}", "Shorten the text below.", ["passage"]),
        ("아래 글을 요약해 주세요.\n\n소금은 얼음을 녹인다.", "아래 글을 요약해 주세요.", ["passage"]),
        ("[" * 3000, "[" * 3000, []),
        ("```python\nprint(1)", "", ["code"]),
        ("", "", []),
    ],
)  # fmt: skip
def test_a_request_is_told_from_its_inputs(text: str, asked: str, kinds: list[str]) -> None:
    found, carried = request_and_inputs(text)
    assert found == asked
    assert [kind for kind, _ in carried] == kinds
