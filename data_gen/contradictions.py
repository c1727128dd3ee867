"""Requests that cannot be met: demands that exclude each other, or a denial of what the original takes as given."""

from __future__ import annotations

import math
import re

from align.core import formats
from data_gen.request_parts import sentence_list, stems

BRIEF = {"words": 150, "characters": 400, "sentences": 10, "paragraphs": 3}  # more than that is not brief
LONGEST_SENTENCE = {"words": 100, "characters": 250}
DENIED = 0.7  # of the original's content words stand in its denial

# Where these stand, two demands may be about two parts of the answer.
_PARTS = re.compile(
    r"\b(?:each|every|per|then|next|finally|followed by|after that|afterwards|introduction|conclusion|title|respectively)\b"
    r"|\bfirst[, ]|각각|각 |씩|마다|먼저|그다음|그 다음|이어서|그런 다음|마지막|제목|첫째",
    re.IGNORECASE,
)
# "the cause in one sentence and the effect in two": each has its own object.
_JOINED = {
    "en": re.compile(r"\band (?!(?:in|with|at|use|using|be|exactly|answer|also|please)\b)\w+ ", re.IGNORECASE),
    "ko": re.compile(r"[은는을를] [^.]*로[,고]? [^.]*(?<!답)(?<!변)(?<!글)[은는을를] "),
}
# What is used here may be avoided there.
_COMPARED = re.compile(
    r"\b(?:compare[sd]?|comparing|comparison|versus|differences?|differs?|instead|rather than|either|both|while)\b"
    r"|비교|차이|대신|모두",
    re.IGNORECASE,
)
_BRIEFLY = re.compile(
    r"\b(?:briefly|concisely|succinctly) (?:explain|describe|answer|state|summari[sz]e|outline|discuss|tell)\b|\bin brief\b"
    r"|\b(?:explain|describe|answer|respond|reply|summari[sz]e|it|this) (?:very )?(?:briefly|concisely|succinctly)\b"
    r"|\b(?:be|keep (?:it|this|(?:the|your) answer)) (?:very )?(?:brief|short|concise)\b|\b(?:brief|short) answer\b"
    r"|(?:짧게|간단히|간단하게|간략히|간략하게),? (?:설명|답|요약|서술|써|적어|말|정리|소개)"
    r"|(?:답|답변|대답|글)은 (?:짧게|간단|간략)",
    re.IGNORECASE,
)
_IN_DETAIL = re.compile(
    r"\bin (?:\w+ )?detail\b|\bin depth\b|\bat length\b|\bdetailed (?:answer|explanation|essay)\b|자세히|자세하게|상세",
    re.IGNORECASE,
)
_PROSE = re.compile(
    r"\bas an? (?:\w+ )?(?:essay|poem|story|letter|speech)\b|\bin (?:\w+ )?prose\b"
    r"|(?:에세이|수필|줄글|편지|산문)(?:로|으로|\s?형식으로)",
    re.IGNORECASE,
)
_TONGUES = "English|Korean|French|German|Spanish|Japanese|Chinese|Italian"
_ANSWER_IN = re.compile(
    r"\b(?:(?:answer|respond|reply|write(?: it| everything)?|your (?:answer|response|reply)(?: (?:must|should|has to) be)?"
    rf"(?: written)?)(?: only| entirely)?|(?:explain|describe|summari[sz]e)(?: it)?) in (?:only )?(?P<en>{_TONGUES})\b"
    r"(?=[.,;:!?]|$| (?:only|and|but|how|why|what|the)\b)"
    r"|(?P<ko>영어|한국어|우리말|일본어|중국어|프랑스어|독일어|스페인어)로(?:만)? "
    r"(?:답(?:하|해|변)|대답|작성(?:하|해)|설명(?:하|해)|서술(?:하|해)|적어|써|쓰(?!인|여))",
    re.IGNORECASE,
)
_THING = (
    r"[\"'“‘]?(?:(?:the|any|an?) )?(?:(?:word|term)s? )?[\"'“‘]?(?P<x>[\w-]+(?: [\w-]+)?)[\"'”’]?"
    r"(?=\s*(?:[.,;:!?]|$)|\s(?:and|or|but|in|to|for|with|as|at)\b)"
)
_KO_THING = r"[\"'“‘「]?(?P<x>[\w-]+?)[\"'”’」]?(?:이?라는 (?:말|단어|낱말|용어))?[을를]? (?:(?:전혀|절대|꼭|반드시) )?"
_AVOID = {
    "en": rf"\b(?:without (?:using|mentioning)|(?:do not|don['’]t|never) (?:use|mention|include)|avoid using) {_THING}",
    "ko": _KO_THING + r"(?:(?:사용|이용|언급|활용)하지|쓰지) ?(?:말|않|마)",
}
_USE = {
    "en": rf"(?:^|[.!?;:,] )(?:(?:and|but|please|also|you must) )*(?:use|mention|include) {_THING}",
    "ko": _KO_THING + r"(?:(?:사용|이용|활용)(?:해|하여|하세요)|써서|쓰세요|써 주세요|넣어|언급(?:해|하여|하세요))",
}
_NOT = {
    "en": re.compile(r"\b(?:not|never|no longer|cannot|fails? to|failed to)\b|\b\w+n['’]t\b", re.IGNORECASE),
    "ko": re.compile(r"지(?:[는도를])? ?(?:않|못하(?=[는나며고])|못)|(?<!\S)(?:안|못) (?=\S)"),
}
_WHY = {
    "en": re.compile(r"\bwhy\b|\bhow\b(?! (?:many|much|often|long|far|old)\b)", re.IGNORECASE),
    "ko": re.compile(r"왜|까닭|이유|어째서|어떻게"),
}


def contradictory_demands(request: str, lang: str) -> bool:
    """What a request demands of its answer cannot all be met: its form, length, language, the words to use.

    Where it speaks of parts of the answer or compares two things, no two demands need be about the same.
    """
    if _PARTS.search(request):
        return False
    tongues = {m["en"] or m["ko"].replace("우리말", "한국어") for m in _ANSWER_IN.finditer(request)}
    if len(tongues) > 1 or _wrong_form(request, lang):
        return True
    return not _COMPARED.search(request) and bool(_things(_USE, request, lang) & _things(_AVOID, request, lang))


def _wrong_form(request: str, lang: str) -> bool:
    """Two demands on form that exclude each other, or one and a word on length or style that nothing counts."""
    found = formats.demands(request, lang)
    if formats.contradiction(found):
        joined = [sentence for sentence in sentence_list(request) if _JOINED[lang].search(sentence)]
        return not any(formats.contradiction(formats.demands(sentence, lang)) for sentence in joined)
    kinds = {demand.kind for demand in found}
    if "json" in kinds and _PROSE.search(request):
        return True
    least: dict[str, int] = {}
    for unit, low, _ in (demand.limits for demand in found):
        least[unit] = max(low, least.get(unit, 0))
    if _BRIEFLY.search(request) and any(least.get(unit, 0) > limit for unit, limit in BRIEF.items()):
        return True
    longest = min((high for unit, _, high in (demand.limits for demand in found) if unit == "sentences"), default=math.inf)
    if any(least.get(unit, 0) > limit * longest for unit, limit in LONGEST_SENTENCE.items()):
        return True
    return bool((longest <= 1 or "yes_no" in kinds) and _IN_DETAIL.search(request))


def _things(patterns: dict[str, str], request: str, lang: str) -> set[str]:
    """What is to be used or avoided, in one form: small letters, no plural s."""
    return {m["x"].lower().removesuffix("s") for m in re.finditer(patterns[lang], request, re.IGNORECASE)}


def denies_premise(parent: str, child: str, lang: str) -> bool:
    """The child asks why or how something is not so that its parent takes as given, without a new word that could be why.

    A child that keeps the parent's question beside the denial asks for the limits of it, which is no contradiction.
    """
    asked = [(bool(_NOT[lang].search(s)), _affirmed(s, lang)) for s in sentence_list(parent) if _WHY[lang].search(s)]
    mine = [(bool(_NOT[lang].search(s)), _affirmed(s, lang)) for s in sentence_list(child) if _WHY[lang].search(s)]

    def same(old: set[str], new: set[str]) -> bool:
        return bool(old) and new <= old and len(new) >= DENIED * len(old)

    return any(
        negated != denied and same(old, new) and not any(kept == negated and old <= other for kept, other in mine)
        for negated, old in asked
        for denied, new in mine
    )


def _affirmed(sentence: str, lang: str) -> set[str]:
    """The stems of a sentence without its negation."""
    return stems(_NOT[lang].sub("", sentence), lang)
