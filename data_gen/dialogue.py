"""Multi-turn instructions: a first question is answered, and a follow-up is asked that needs those turns.

As in EXAONE 3.0 (arXiv 2408.03541, section 3.1), where later turns of the dialogues depend on the earlier ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from align.core.hashing import content_id, unit_interval
from align.core.language import content_units
from align.core.rows import Instruction, Made, Reject
from align.engines.complete import Ask, Asking
from align.engines.protocol import Sampling
from data_gen.answers import answer_messages, demand_fault, text_fault
from data_gen.eliminators import copies_example
from data_gen.instruct import difficulty, request_fault, written_line
from data_gen.prompts import Prompts
from data_gen.tasks import INPUT_TASKS

MAX_RESTATED = 0.6  # share of the first question's content that a follow-up may repeat
# What a model is asked for, and what it may have written so far.
_PARTS = (
    r"(?:one|two|three|step|point|option|reason|item|example|part|method|way|tip|case|suggestion|answer|idea|sentence|line|"
    r"paragraph|term|cause|factor|stage|phase|question|type|list|explanation|reply|response|plan|comparison|summary|code|"
    r"function|version|text|poem|haiku|story|translation|recommendation|description|table|advice|solution|claim|argument|"
    r"recipe|itinerary|schedule|outline|draft|essay|letter|proof|calculation|reasoning|day|verse)s?"
)
_END = r"(?=\s*(?:[?.!,;]|$))"
# Wording that makes sense only after earlier turns.
_POINTS_BACK = {
    "en": (
        r"\bthis\b(?! (?:year|week|month|century|morning|evening)\b)|\bthese\b(?! days)",
        r"\bthose\b(?! (?:who|that|which|of|with|in)\b)",
        r"(?<!so )\b(?:after|before|about|like|with|without|from|by|for|of|in|on|at|to|than|despite) that\b",
        r"^(?:\w+,? ){0,2}?(?:is|was|does|did|do|would|could|can|will|has|should|isn['’]t|wasn['’]t|doesn['’]t) that\b",
        rf"\bthat (?:long|much|many|far|fast|often|early|late|{_PARTS})\b|\bthat{_END}",
        r"\b(?:explain|say|repeat|do|put|show|write|rephrase) that (?:again|in|with|for|to|as)\b",
        r"(?<!is )(?<!are )(?<!was )(?<!were )\bthere\b(?! (?:is|are|was|were|be|been|will|has|have)\b)",
        rf"\bthen{_END}|^(?:and |so )?then\b|\bhappens? then\b|\b(?:do|does|did|doing|done|why|how|think|if) so{_END}",
        rf"\binstead\b(?! of)|\b(?:both|either|neither)(?: of\b| one\b| way\b|{_END})|\bof the (?:two|three)\b",
        rf"\b(?:the|your) (?:first|last|next|previous|final|other) {_PARTS}\b(?! of (?:the|an?)\b)",
        r"\bthe (?:second|third|fourth|fifth|sixth) (?-i:[a-z])\w*(?<!est)\b(?! (?:of|from|in) )",
        rf"\bthe (?:first|second|third|last|former|latter|others?|rest){_END}|\bthe same\b(?! (?:\w+ )?as\b)",
        r"\b(?:what|who|where|how|anything|anyone) else\b|\bany others?\b(?! than)|\bwhich ones?\b(?! of)",
        rf"\banother(?: (?:one|example|way|reason|method|option|idea|tip)\b|{_END})",
        r"\b(?:one|two|three|four|five|some|a few|a couple) more\b|\bmore (?:details?|examples?)\b(?! (?:of|on)\b)",
        rf"\bsomething similar\b|\btell me more{_END}|\b(?:write|make|give me|add) one\b",
        rf"\b(?:an?|some|any)(?: [a-z-]+){{0,2}} examples?{_END}",
        r"\byou(?: have|['’]ve)?(?: just| also)? (?:said|mentioned|named|listed|described|explained|wrote|gave|suggested)\b",
        rf"\byour (?:\w+ )?{_PARTS}\b|\bwould you (?:change|add|leave)\b|^(?:and|but|or)\b|^(?:what|how) about\b",
        rf"\b(?:in (?:response|return|turn|such cases?)|as a result|afterwards?|above|earlier){_END}",
        r"\b(?:mentioned|listed|named) (?:above|earlier)\b|\b(?:explain|say|repeat|write|tell me|show me)\b[^?.!]* again\b",
        rf"\b(?:simpler|shorter|fewer|other|plainer) (?:words|terms|language)\b|\b(?:why|if) not{_END}|^how (?:so|come)\b",
    ),
    "ko": (
        r"(?<![가-힣])그(?:것|게|건|걸|거|럼|렇(?!게 [가-힣]+[게이히리] )|러|런|중|때|곳|들|녀|분|다음|밖|외|래[서도])",
        r"(?<![가-힣])그(?:뒤|후|전|와|만큼|쪽|해|날|동안| )|(?<![가-힣])그(?:는|가|를|의|에게|도)(?![가-힣])",
        r"(?<![가-힣])이(?:것|게|건|걸|거|런|렇|러한|들|때|곳|후| 중|중에| (?!닦|빠|썩|갈))",
        r"(?<![가-힣])(?:이(?:는|를|로|에)(?! 닦| 뽑)|저것|거기|여기(?:에|서|까지|부터|로))(?![가-힣])",
        r"거기에|^그(?:리고|대로)|^또|^(?:조금|좀) 더|^이번에|^다음(?:으로|에|은|엔)|^(?:근데|하지만)|방금|아까|앞서",
        r"위의 (?:답|예|코드|목록|방법|표|내용|글)|(?:앞|위)에서 (?:말|언급|설명|알려|나온|든|본|소개|제시)",
        r"(?:말씀|설명|추천|언급|소개|제안)하신|(?:알려|설명해|말해|추천해|적어|써|들어) ?주신",
        r"(?:다고|라고|말씀|설명|추천) ?하셨|더 (?:자세|구체|길게|짧게|쉽게|쉬운|간단|희망)|더 (?:있|없)[나을는]",
        r"더 (?:알려|설명해|들어|말해|추천해|보여|소개해|써|적어) ?[주줘줄]|다시 (?:한번|설명|말|써|정리|알려|적)",
        r"한 ?번 더|나머지|반대로|또 (?:다른|무엇|어떤|뭐|있)|다른 (?:것|건|거|게|예|방법|경우|이유|원인|사례)",
        r"(?<![와과] )같은 (?:일|방법|방식|결과|내용|질문|문제|이유|현상)",
        r"(?<!의 )(?<!서 )(?:[첫두세네]|다섯|여섯) ?번째(?!로)|(?<!의 )(?<![가-힣])[둘셋넷]째 ",
        r"(?<!의 )마지막 ?(?:것|방법|단계|항목|이유|원인|예|경우|문장|문단|줄|행|연|날|부분)",
        r"(?<!의 )마지막 ?(?:점|조언|요소|질문|으?로 |[은는을를에])",
        r"^[두세네] (?:가지 )?[가-힣]+ ?(?:의|은|는|중)[^.?]*(?:각각|중 |가운데|어느|더 )",
        r"(?<![가-힣])[둘셋넷] ?(?:중|다|의|은|사이|가운데)|^(?:[가-힣]+[한운] )?예(?:를|시를|도) ",
        r"(?<!의 )예(?:시)?를 (?:하나|한|두|몇)",
        # A question without its subject, as Korean leaves out what is known: 얼마나 자주 해야 하나요?
        r"^(?:(?:왜|언제\S*|얼마나?|어떻게|어디\S*|누가|며칠\S*|몇 \S+|오래|자주|많이|보통|정말|실제로|처음|하필|꼭|이미|"
        r"벌써|혹시|지금[은도]?|아직도?|나중에\S*) )+(?:\S+(?:야|면|서|고|지|게|된|진|한|할|될| 수) ){0,2}"
        r"(?:(?:어떻게|언제|어디서|왜) )?(?:\S+야 )?\S+(?:요|까|죠|줘)[?.!]*$",
    ),
}  # fmt: skip
_POINTER = {lang: re.compile("|".join(parts), re.IGNORECASE) for lang, parts in _POINTS_BACK.items()}
_PRONOUN = re.compile(r"\b(?:it|its|itself|they|them|their|theirs|themselves|he|him|his|she|her|hers)\b", re.IGNORECASE)
# "Is it true that ...", "how long does it take to ..."
_NO_THING = re.compile(
    r"(?:\b(?:is|was|isn['’]t|wasn['’]t|would|will) it (?:be )?|\bit(?:['’]s| is| was| would be| will be) )"
    r"(?!\w+e[dn]\b|due\b|next\b|close\b|similar\b|able\b|ready\b|going\b|likely\b)"
    r"(?:\w+ )?\w+ (?:that|to|if|whether|for \w+ to)\b"
    r"|\bit (?:takes?|costs?|hurts?|helps?|matters?) (?:\w+ ){0,2}?(?:to|if|whether)\b"
    r"|\bit (?:rain|snow)"
    r"|\b(?:makes?|made|finds?) it \w+ to\b",
    re.IGNORECASE,
)
# Where a clause begins whose pronoun may stand for something in the clause before it.
_CLAUSE = re.compile(
    r"[,;:.!?]\s|\b(?:and|or|but|when|if|because(?! of)|while|so(?: that)?|before|after|until|unless|since|although|though|"
    r"whether|where|whose|which|that|who)\s",
    re.IGNORECASE,
)
_VERBS = frozenset(["do", "go", "happen", "know", "make", "mean", "need", "say", "see", "tell", "think", "use", "want"])
_OWNER = re.compile(r"\b(?:an?|each|every)\s+\w|(?!^)\b[A-Z][a-z]|\b[a-z]{2,}s\b(?=.*\btheir\b)")


@dataclass(frozen=True, kw_only=True)
class DialogueRules:
    """How follow-ups are made: of which share of the instructions, and how answers and follow-ups are drawn and checked."""

    share: float
    grounded: bool
    max_repetition: float
    answer_sampling: Sampling
    sampling: Sampling


def needs_earlier_turns(text: str, question: str, lang: str) -> bool:
    """The text points back at what was said, and does not say it again."""
    if not (_POINTER[lang].search(text) or (lang == "en" and _has_open_pronoun(text))):
        return False
    before = content_units(question, lang)
    return not before or len(content_units(text, lang) & before) / len(before) < MAX_RESTATED


def _has_open_pronoun(text: str) -> bool:
    """An English pronoun stands for nothing in the text itself.

    One in a further clause may stand for what the clauses before it name ("When water freezes, does it expand?"), a
    possessive also for what its own clause names ("Does a cat clean its fur?").
    """
    dummies = [match.span() for match in _NO_THING.finditer(text)]
    for pronoun in _PRONOUN.finditer(text):
        start, stop = pronoun.span()
        if any(first <= start < last for first, last in dummies):
            continue
        clauses = [match.start() for match in _CLAUSE.finditer(text, 0, start)]
        if clauses and (stop == len(text) or text[stop] in "?.!,") and not text[clauses[-1] : start].split()[1:]:
            clauses.pop()  # "the weeks after it"
        before = text[: clauses[-1]] if clauses else ""
        own = text[len(before) : start]
        possessive = pronoun[0].lower() in ("its", "their", "his", "her")
        if not content_units(before, "en") - _VERBS and not (possessive and _OWNER.search(own + pronoun[0])):
            return True
    return False


def follow_up_fault(text: str, question: str, answer: str, lang: str) -> str:
    """Why a follow-up cannot be used, or an empty text."""
    if fault := request_fault(text, lang, 2):
        return fault
    if text in question or text in answer:
        return "repeats_earlier_turn"
    if not needs_earlier_turns(text, question, lang):
        return "stands_alone"
    return ""


def chosen_for_follow_up(row: Instruction, share: float, run_seed: int) -> bool:
    """Whether an instruction is continued: by hash, and only where the request is about the unit, not about an input."""
    return row.task_type not in INPUT_TASKS and unit_interval(run_seed, "multi-turn", row.id) < share


def follow_ups(
    rows: Sequence[Instruction], fact: str, prompts: Prompts, rules: DialogueRules, run_seed: int
) -> Asking[Made]:
    """One two-turn dialogue for each chosen row of a unit, or a reject with its reason; the rows themselves stay."""
    made: list[Instruction | Reject] = []
    for row in rows:
        if chosen_for_follow_up(row, rules.share, run_seed):
            made.append((yield from _follow_up(row, fact, prompts, rules)))
    return Made(
        rows=[row for row in made if isinstance(row, Instruction)],
        rejects=[row for row in made if isinstance(row, Reject)],
        asked=len(made),
    )


def _follow_up(row: Instruction, fact: str, prompts: Prompts, rules: DialogueRules) -> Asking[Instruction | Reject]:
    def reject(reason: str, raw: str) -> Reject:
        key = content_id("follow-up-reject", row.id)
        return Reject(id=key, reason=f"follow_up_{reason}", raw=raw, topic_id=row.topic_id)

    messages = answer_messages(row, fact if rules.grounded else None, prompts)
    (reply,) = yield [Ask(id=row.id, purpose="first-answer", messages=messages, sampling=rules.answer_sampling)]
    fault = reply.fault or text_fault(reply.texts[0], row.answer_lang, rules.max_repetition)
    if fault := fault or demand_fault(reply.texts[0], row):
        return reject(f"answer_{fault}", reply.raw)
    question, answer = row.messages[-1]["content"], reply.texts[0]
    asked = prompts.render("follow-up", row.lang, question=question, answer=answer)
    (reply,) = yield [Ask(id=row.id, purpose="follow-up", messages=asked, sampling=rules.sampling)]
    text, fault = written_line(reply)
    fault = fault or follow_up_fault(text, question, answer, row.lang)
    if not fault and copies_example(f"{question} {answer}", text, [m["content"] for m in asked if m["role"] == "assistant"]):
        fault = "copied_example"
    if fault:
        return reject(fault, reply.raw)
    return replace(
        row,
        id=content_id("instruction", row.id, text),
        parent_id=row.id,
        messages=[*row.messages, {"role": "assistant", "content": answer}, {"role": "user", "content": text}],
        operator="follow_up",
        difficulty=difficulty(text),
    )
