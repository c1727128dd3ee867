"""The parts of an instruction: its request, the inputs that it carries, and whether what it points at is there.

Read from the wording, in English and Korean. Patterns are precise rather than complete.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from align.core.language import content_units, sentences, words

PASSAGE_WORDS = 8  # at least, in a paragraph that is taken for an input though nothing marks it

_FENCE = re.compile(r"^[ \t]*(```|~~~)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)|```([^\n`]+)```", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(
    r"^[^\n|]*\|[^\n]*\n[ \t]*\|?[ \t]*:?-+:?[ \t]*\|[-:| \t]*(?:\n|\Z)(?:^[^\n]*\|[^\n]*(?:\n|\Z))*", re.MULTILINE
)
MAX_BRACKETS = 50  # looked at for the beginning of JSON; text that is nothing but brackets is none
_BRACKET = re.compile(r"[\[{]")
_MARKED = re.compile(
    r"(?is)>.*|\"\"\".*|[\"“”'‘「『«].*[\"”'’」』»](?:\s*[(—–-][^\n]*)?[.,]?"
    r"|(?:text|passage|article|input|document|excerpt|본문|지문|글|텍스트|입력|원문)\s*[:：].*"
)
QUOTES = re.compile(
    r"\"[^\"\n]+\"|“[^”\n]+”|‘[^’\n]+’|(?<![A-Za-z])'[^'\n]+'(?![A-Za-z])|「[^」\n]+」|『[^』\n]+』|`[^`\n]+`"
)

_VERBS = (
    "act|add|analy[sz]e|answer|argue|arrange|assess|assume|avoid|brainstorm|build|calculate|change|check|choose|"
    "classify|combine|come up|compare|complete|compose|compute|consider|continue|convert|correct|craft|create|"
    "critique|debug|decide|define|demonstrate|derive|describe|design|detect|determine|develop|discuss|distinguish|"
    "do not|don['’]t|draft|draw|edit|elaborate|enter|estimate|evaluate|examine|expand|explain|express|extract|fill|"
    "find|finish|fix|generate|give|help|identify|illustrate|imagine|implement|improve|include|indicate|infer|"
    "interpret|invent|judge|justify|keep|label|let me know|link|list|look|make|match|mention|name|outline|output|"
    "pick|plan|play|predict|prepare|present|pretend|propose|prove|provide|put|rank|read|recommend|repeat|rephrase|"
    "replace|reply|report|respond|restate|return|review|rewrite|select|shorten|show|simplify|solve|sort|start|state|"
    "structure|suggest|summari[sz]e|support|teach|tell|think|trace|translate|use|verify|walk|work|wrap|write"
)
_ASKS = re.compile(
    r"[?？]"
    r"|^(?:(?:using|given|based|with|without|for|as|in|on|from|after|before|assuming|considering|if|when|once|while|to|by|at|"
    r"you are|you['’]re|suppose|imagine|then|now|next|also|first|finally)\b[^.]*?,\s*)?(?:(?:then|also|first)\s+)?"
    rf"(?:please\s+\w+|(?:can|could|would|will) you|{_VERBS})\b"
    r"(?!:|\s+(?:of|is|was|are|were|has|have|had|can|may|will|does|did)\b)"
    r"|(?:세요|시오|까요|나요|가요|줘|주라|하라|해라|써라|보라|[아어]라|봐|하자|바랍니다|부탁드립니다|부탁해요)[.!]?$",
    re.IGNORECASE,
)
# The request goes on in a further paragraph, though no sentence of it asks.
_ON_THE_ANSWER = re.compile(
    r"(?:your|the) (?:whole |entire )?(?:answer|response|output|reply)\b|(?:답|답변|대답)[은는에을]", re.IGNORECASE
)

_NOUN = (
    r"(?P<noun>text|passage|article|paragraph|excerpt|sentence|statement|story|poem|table|chart|graph|figure|diagram|image|"
    r"picture|photo|code|snippet|function|program|script|json|data|dataset|list|document|email|letter|review|transcript|"
    r"conversation|dialogue|information|quote)s?\b"
)
_SHOWN = (
    r"(?P<noun>text|passage|article|paragraph|excerpt|table|chart|graph|diagram|image|picture|photo|code|snippet|"
    r"document)s?\b"
)
_KO_PARTICLE = r"들?(?:에서는|에서|에는|으로|[은는이가을를의에로와과도만]|처럼|대로)?(?![가-힣A-Za-z])"
_KO_SHOWN = r"(?P<noun>글|본문|지문|기사|문단|단락|예문|표|도표|그래프|그림|사진|코드|자료)" + _KO_PARTICLE
_KO_NOUN = (
    r"(?P<noun>글|본문|지문|기사|문단|단락|문장|예문|표|도표|그래프|그림|사진|코드|함수|프로그램|데이터|자료|목록|JSON|텍스트|대화|이메일|"
    r"내용|보기|정보|문서)" + _KO_PARTICLE
)
# After a noun it is the place of something: 책상 위의 사진, 표면 아래의 글.
_KO_FREE = r"(?:^|(?<=[\n(])|(?<=[.,?!\n(은는을를에서로고며과와면한여해도] ))"
_POINTERS = [
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        rf"\b(?:the|these|this)\s+(?:\w+\s+){{0,2}}?{_NOUN}\s+(?:\w+\s+)?(?:below|above)\b(?!\s+(?:\d|the|an?|zero|sea|ground)\b)",
        r"(?<!all )\b(?:the|these)\s+(?:above|following|attached|provided|given|accompanying|preceding)\s+"
        rf"(?:\w+\s+){{0,2}}?{_NOUN}",
        rf"\b(?:this|these)\s+{_SHOWN}(?!\s+(?:message|book|editor|file|of)\b)",
        r"\b(?:shown|listed|given|provided|described|see|mentioned)\s+(?:above|below)\b(?!\s+(?:\d|the|an?|zero)\b)",
        rf"\b(?:according to|based on) the {_SHOWN}(?!\s+(?:of|by|in|on|that|which|from)\b)",
        rf"{_KO_FREE}(?:위|아래|앞|상기)(?:의|에 (?:있는|제시된|주어진|나온))?\s+(?:[가-힣A-Za-z]+\s+)?{_KO_NOUN}",
        r"(?<!그 )(?<!바로 )(?<![가-힣])다음(?:의)?\s+(?!(?:해|달|주|날|번|세대|시간|학기)\s)"
        rf"(?:[가-힣A-Za-z]+\s+)?{_KO_NOUN}",
        rf"(?:주어진|제시된|제공된|첨부된|첨부한)\s+(?:[가-힣]+\s+)?{_KO_NOUN}",
        rf"(?<![가-힣])이\s+{_KO_SHOWN}",
        rf"{_KO_FREE}(?:다음|아래|위)[을를]?\s(?:요약|번역|읽고|분석|참고|보고|수정)",
        rf"{_KO_FREE}(?:위|아래|앞)에(?:서)? (?:나온|말한|언급한|언급된|설명한|제시한|제시된|나열한)",
    )
]
_AHEAD = re.compile(r"below|following|attached|다음|아래|첨부", re.IGNORECASE)

# Bigrams of Korean question words and endings: two questions share them whatever they ask about.
_ASKING = frozenset([
    "왜", "나요", "가요", "까요", "인가", "런가", "은가", "는가", "일까", "무엇", "엇인", "엇을", "어떤", "어떻", "떻게",
    "어느", "그런", "해주", "주세", "세요", "하세", "하나", "되나", "있나",
])  # fmt: skip
# What a question is reworded with and stays the same question.
REWORDING = frozenset([
    "reason", "cause", "explain", "describe", "tell", "list", "name", "please", "say", "me", "us", "happen", "really",
    "이유", "까닭", "원인", "무엇", "왜", "어째서", "때문", "설명", "명해", "명하", "알려", "말", "말씀", "대해", "주",
])  # fmt: skip
_SUFFIX = re.compile(r"(?<=\w{3})(?:ing|ed|e)$")
_ENDING = re.compile(
    r"(?:[이하해되]?(?:인가요|은가요|는가요|나요|가요|까요|세요|십시오|시오|는지)|습니다|니다|하는|하다|해|에서는|에서|으로|에는|이란|라는"
    r"|[은는이가을를의에로와과도만])$"
)


class Carried(NamedTuple):
    """An input within an instruction; kind is code, table, json or passage."""

    kind: str
    text: str


def request_and_inputs(text: str) -> tuple[str, list[Carried]]:
    """The request of an instruction, and the inputs that it carries: code, Markdown tables, JSON, passages.

    A passage is a paragraph in quotation marks, behind `>` or a label, the one that another paragraph points at, or a longer
    one after the first that asks nothing. [1] and [0, 1] are no input: a citation, an interval.
    """
    found: list[Carried] = []

    def fence(match: re.Match[str]) -> str:
        body = (match[2] or match[3] or "").strip()
        kind = "table" if _TABLE.fullmatch(body) else "json" if body and _json_end(body, 0) == len(body) else "code"
        found.append(Carried(kind, body))
        return "\n\n"

    def table(match: re.Match[str]) -> str:
        found.append(Carried("table", match[0]))
        return "\n\n"

    rest, place = _TABLE.sub(table, _FENCE.sub(fence, text)), 0
    for _ in range(MAX_BRACKETS):
        if (opening := _BRACKET.search(rest, place)) is None:
            break
        place = opening.start()
        if end := _json_end(rest, place):
            found.append(Carried("json", rest[place:end]))
            rest = f"{rest[:place]}\n{rest[end:]}"
        place += 1
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", rest) if p.strip()]
    pointing = [bool(_pointers(paragraph)) for paragraph in paragraphs]
    request = []
    for i, paragraph in enumerate(paragraphs):
        length = len(words(paragraph))
        silent = not asks(sentence_list(paragraph)[0]) and not _ON_THE_ANSWER.match(paragraph)
        pointed = any(pointing) and not pointing[i] and (silent or length >= 3 * PASSAGE_WORDS)
        plain = silent and length >= PASSAGE_WORDS and not pointing[i]
        if pointed or (i and (plain or _MARKED.fullmatch(paragraph))):
            found.append(Carried("passage", paragraph))
        else:
            request.append(paragraph)
    return "\n".join(request), found


def _json_end(text: str, start: int) -> int:
    """Where the JSON value that begins at `start` ends; 0 where there is none, or none that counts as input."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return 0
    rows = isinstance(value, list) and (len(value) >= 3 or any(isinstance(v, dict | list) for v in value))
    return end if rows or (isinstance(value, dict) and value) else 0


def sentence_list(text: str) -> list[str]:
    """Sentences, each line of the text on its own."""
    return [sentence for line in text.splitlines() for sentence in sentences(line)]


def asks(sentence: str) -> bool:
    """A question or an imperative, also behind a clause such as "Using the table below, ..."."""
    return bool(_ASKS.search(sentence))


def points_at_nothing(text: str) -> bool:
    """The request refers to a text, table, picture or the like that the instruction does not hold."""
    request, carried = request_and_inputs(text)
    return not carried and any(not _stands(request, pointer) for pointer in _pointers(request))


def _pointers(text: str) -> list[re.Match[str]]:
    return [match for pattern in _POINTERS for match in pattern.finditer(text)]


def _stands(request: str, pointer: re.Match[str]) -> bool:
    """What is pointed at is in the same paragraph: made or said before, after a colon, quoted, as options, on a line."""
    before, after = request[: pointer.start()], request[pointer.end() :]
    noun = pointer.groupdict().get("noun")
    made = rf"\ban?\b[^.?!]{{0,40}}\b{noun}|{noun}[을를]? ?(?:하나|한|만들|써|쓰|작성|그리|그려)"
    if pointer[0].lower().startswith("th") and not _AHEAD.search(pointer[0]):
        made += r"|\b(?:write|create|draw|make|design|build)\b"
    if noun and re.search(made, before, re.IGNORECASE):
        return True
    if not _AHEAD.search(pointer[0]):
        said = [s for s in sentence_list(before) if s.endswith((".", "!", "?")) and len(words(s)) >= 3]
        if any(noun in ("sentence", "문장") or not asks(s) for s in said):
            return True
    colon = re.search(r"[:：]\s*(\S.*)", after, re.DOTALL)
    others = [line for line in request.splitlines() if pointer[0] not in line]
    return (
        bool(colon and len(words(colon[1])) >= 2)
        or any(len(words(quote)) >= 2 for quote in QUOTES.findall(request))
        or len(re.findall(r"(?:^|\s)\(?[A-Ea-e1-5][.)]\s", after)) >= 2
        or any(len(words(line)) >= 4 and not asks(line) for line in others)
    )


def content(text: str, lang: str) -> set[str]:
    """Content units without those of asking itself."""
    return content_units(text, lang) - _ASKING if lang == "ko" else content_units(text, lang)


def stems(text: str, lang: str) -> set[str]:
    """Content words that a rewording keeps, without their endings; Korean ones without particles."""
    if lang == "ko":
        return {_ENDING.sub("", _ENDING.sub("", word)) or word for word in words(text)} - REWORDING
    units = content_units(text, lang) - REWORDING
    return {_SUFFIX.sub("", re.sub(r"(?<=\w\w)(?:ie|ied)$", "y", unit)) for unit in units}


_OPENING = re.compile(r"^(?:(?:now|and|but|so|then|also|ok(?:ay)?|great|thanks|thank you)[,!.]?\s+)+", re.IGNORECASE)
# What `asks` takes for statements: further verbs, and wishes.
_WISHES = {
    "en": re.compile(
        r"(?:^|,\s+)(?:please\s+)?(?:advise|assign|categori[sz]e|condense|construct|contrast|count|devise|do|"
        r"formulate|group|highlight|map|organi[sz]e|paraphrase|point|produce|render|reword|say|schedule|set|sketch|specify|"
        r"split|tag|take|transform|turn|weigh)\b(?!:|\s+(?:of|is|was|are|were|has|have|had|can|may|will|does|did|not)\b)"
        r"|^(?:i|we)(?: (?:want|need|wish)|(?: would|['’]d) (?:like|love))\b|\bplease[.!]?$"
        r"|^(?:what|when|where|which|who|whose|why|how)\b[^.!]*$",
        re.IGNORECASE,
    ),
    "ko": re.compile(r"(?:싶습니다|싶어요?|궁금합니다|궁금해요?|감사하겠습니다|고맙겠습니다|부탁합니다|부탁해)[.!]?$"),
}


def is_statement(text: str, lang: str) -> bool:
    """The model answered or explained instead of asking: no sentence is a question, an imperative or a wish."""
    found = [_OPENING.sub("", sentence) for sentence in sentence_list(text)]
    return not any(asks(sentence) or _WISHES[lang].search(sentence) for sentence in found)
