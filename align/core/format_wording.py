"""How English and Korean instructions word format demands (see `align.core.formats`): patterns, and what they may not touch.

A wording counts where a sentence asks for it and it is about the whole answer. It does not where a sentence speaks of the
format or forbids it, in pasted or quoted text, for a part ("a title of at most five words") or for each of several things.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n(.*?)(?:(^[ \t]*\1[`~]*[ \t]*$)|\Z)", re.M | re.S)
MARKER = re.compile(r"^[ \t]*(?:[-*•‣·]|\(?\d{1,3}[.)])[ \t]+", re.M)

_LONGEST = 2_000  # characters of a sentence that may hold a demand; longer ones are no sentences
# Quotations become "⟦i⟧" (code in them "⟦`i⟧"), and pasted text and code go, so that nothing in them is read as a demand.
_QUOTE = re.compile(
    r"[\"“”„](\s*[^\s\"“”,][^\"“”]{0,600}?)[\"“”]|「([^」]{1,300})」|『([^』]{1,300})』|`([^`\n]{1,200})`"
    r"|(?<![\w'’])['‘]([^'‘’\n]{1,120}?(?:['’](?=[a-z])[^'‘’\n]{1,120}?){0,3})['’](?![A-Za-z0-9])"
)
_PASSAGE = re.compile(
    r"^[ \t#*]*(?:(?:the )?(?:following )?(?:text|passage|article|input|paragraph|email|document|sentence|context|story"
    r"|code|poem|review|letter)s?|지문|본문|글|문장|원문|내용|입력|기사|시|편지)[ \t*]*:"
    r"(?:[ \t*]*\S[^\n]*|[ \t*]*\n.*?(?:\n[ \t]*\n|\Z))", re.M | re.S | re.I,
)  # fmt: skip
# Words that are listed without quotation marks: "the following keywords: hive, wax", "the words hive or wax."
_LISTED = re.compile(
    r"\b((?:key)?words?:[^\S\n]*|the (?:key)?word(?:s (?=[\w-]+(?:, [\w-]+)*,? (?:and|or) )| (?=[\w-]+ in (?:the|your) )))"
    r"((?!(?:in|of|and|or|on|that|from)\b)[^\W_][\w-]*(?:,? (?:and |or )?(?!(?:in|and|or)\b)[^\W_][\w-]*)*?)"
    r"(?=[^\S\n]*(?:[.\n]|\Z|(?:anywhere )?in (?:the|your) ))", re.I,
)  # fmt: skip
_YES_NO = re.compile(r"(?<!say )(?<!use )['‘\"“](yes|예|네)['’\"”],? (or|또는|혹은) ['‘\"“](no|아니[요오])['’\"”]", re.I)
_SPLIT = re.compile(r"(?<=[.!?。])\s+|(?<=[.!?]\))\s+|\s*\n+\s*|;\s*")
_ASIDE = r"(?:^|(?<=\s))\(([^()\n]*)\)"
_AND = r"\s*(?:,|/|and|or|nor|와|과|이?나|또는|및)?\s*(?:(?:and|or)\s+)?"
_TOKENS = rf"[\[(]?\s*(?P<words>⟦`?\d+⟧(?:{_AND}⟦`?\d+⟧)*)\.?\s*[\])]?"
_NUMBERS = {
    "a single": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30, "fifty": 50, "a hundred": 100,
    "한": 1, "하나": 1, "두": 2, "둘": 2, "세": 3, "셋": 3, "서": 3, "네": 4, "넷": 4, "너": 4, "다섯": 5, "여섯": 6,
    "일곱": 7, "여덟": 8, "아홉": 9, "열": 10, "스무": 20, "서른": 30, "마흔": 40, "쉰": 50, "백": 100, "이백": 200,
}  # fmt: skip
_NUMBER = rf"(?:\d[\d,]*|{'|'.join(sorted(_NUMBERS, key=len, reverse=True))})"
# Units by the first letters that are enough to tell them.
_UNITS = {
    "s": "sentences", "w": "words", "p": "paragraphs", "c": "characters", "b": "bullets", "n": "numbered",
    "문장": "sentences", "단어": "words", "어절": "words", "문단": "paragraphs", "단락": "paragraphs", "자": "characters",
    "글자": "characters", "글머": "bullets", "불릿": "bullets", "항목": "items",
}  # fmt: skip


def demanded(text: str, lang: str) -> Iterator[tuple[str, int, str]]:
    """(kind, count, word) of each demand in an English ("en") or Korean ("ko") instruction, sentence by sentence."""
    pieces, quotes = _sentences(text)
    counts, asked, limits = (_EN_COUNTS, _en_asked, _en_limits) if lang == "en" else (_KO_COUNTS, _ko_asked, _ko_limits)
    for i, piece in enumerate(pieces):
        for match in (match for pattern in counts for match in pattern.finditer(piece)):
            unit, low, high = limits(piece, match)
            if low + high and asked(pieces, i, *match.span(), whole=unit not in ("bullets", "numbered")):
                bounds = [(unit, low)] if low == high else [(f"{unit}_min", low), (f"{unit}_max", high)]
                yield from ((kind, count, "") for kind, count in bounds if count)
        for kind, pattern in _FORMS[lang]:
            for match in pattern.finditer(piece):
                if not _stands(kind, pieces, i, match, lang):
                    continue
                found = match.groupdict()
                said = re.findall(_KEY, re.sub(r"\b(?:and|n?or)\b", "", found.get("words") or found.get("keys") or ""))
                named = [quotes[int(word.strip("⟦`⟧"))] if word[0] == "⟦" else word for word in said]
                if kind == "json":
                    yield kind, 0, ",".join(word.strip(" ,") for word in named)
                elif "words" in found:  # "a," in a list of quotations is a
                    yield from ((kind, 0, word if kind.endswith("with") else word.strip(" ,")) for word in named)
                else:
                    yield kind, 2 if kind.endswith("_min") else 0, ""
                if kind == "yes_no" and (found["only"] or found["alone"]):
                    yield "words", 1, ""


def _sentences(text: str) -> tuple[list[str], list[str]]:
    """The sentences and parentheses of an instruction, and the quotations that stand behind their ⟦i⟧."""
    quotes: list[str] = []

    def keep(match: re.Match[str]) -> str:
        quotes.append(next(filter(None, match.groups())).strip())
        code, end = "`" if match[0][0] == "`" else "", "." if quotes[-1].endswith((".", "!", "?")) else ""
        return f"⟦{code}{len(quotes) - 1}⟧{end}"

    def keep_listed(match: re.Match[str]) -> str:
        return match[1] + re.sub(r"\b(?!(?:and|or)\b)([\w-]+)", keep, match[2])

    text = re.sub(r"[^\S\n]+", " ", _PASSAGE.sub("\n", FENCE.sub("\n", text.replace("⟦", "[").replace("⟧", "]"))))
    text = _LISTED.sub(keep_listed, _QUOTE.sub(keep, _YES_NO.sub(r"\1 \2 \3", text)))
    parts = [part for whole in _SPLIT.split(text) for part in (re.sub(_ASIDE, " ", whole), *re.findall(_ASIDE, whole))]
    return [piece for part in parts if 0 < len(piece := MARKER.sub("", part).strip()) <= _LONGEST], quotes


def _range(match: re.Match[str]) -> tuple[int, int]:
    """The lowest and highest count that a wording asks for, 0 for no limit; (0, 0) for vague ones."""
    word = match.groupdict()
    numbers = (word["n"].lower(), (word.get("m") or word["n"]).lower())
    first, last = (_NUMBERS.get(number) or int(number.replace(",", "")) for number in numbers)
    behind = f"{word.get('after') or ''} {word.get('behind') or ''}"
    below, above = bool(word.get("below")) or "미만" in behind, bool(word.get("above"))
    if word["vague"] or not 0 < first <= last or re.search("내외|정도|가량|쯤|안팎", behind):
        return 0, 0
    if below or word["max"] or re.search("less|fewer|most|max|이내|이하|넘|초과|안으로", behind):
        return 0, last - below
    if above or word["min"] or re.search(r"more|least|min|\+|이상", behind):
        return first + above, 0
    return first if first > 1 or last == 1 else 0, last  # "one or two sentences"


# English. A verb commands where a clause begins or somebody is asked; whole verbs and subjects mean the answer itself.
_WHOLE = (
    "answer|reply|respond|use|keep|limit|restrict|format|present|put|return|output|wrap|make sure|ensure|have|finish|end"
    "|begin|start|be|structure|organi[sz]e|include|mention|avoid|refrain|exclude|do not|don['’]t|never|contain|add"
)
_CONTENT = (
    "write|explain|describe|summari[sz]e|give|list|name|tell|state|compare|discuss|define|outline|provide|produce|create|build"
    "|compose|make|generate|show|rewrite|rephrase|paraphrase|translate|identify|draft|express|elaborate|expand|shorten|condense"
    "|argue|justify|analy[sz]e|suggest|recommend|extract|continue|convince|introduce|illustrate|contrast|evaluate|say|propose"
    "|design|develop|craft|help|clarify|solve|calculate|convert|complete|predict|classify|draw|report"
)
_COMMAND = re.compile(
    r"(?:^|[,:]\s+|\b(?:and|but|then|you|you to|please|(?:sure|remember|forget) to)\s+)(?:(?:please|then|now|also|finally"
    rf"|next|kindly|briefly|simply|just|always)\s+)*(?P<verb>(?P<whole>{_WHOLE})|{_CONTENT})\b(?!['’]| (?:is|are)\b)", re.I,
)  # fmt: skip
_THING = (
    "(?:answers?|response|reply|output|text|essay|story|poem|song|rap|summary|article|post|letter|email|paragraph|explanation"
    "|description|review|report|speech|message|note|limerick|haiku|rant|joke|riddle|ad|advertisement|pitch|tweet|proposal"
    "|itinerary|resume|biography|list|result|definition|overview|conversation|dialogue|template|slogan|rubric|page)"
)
_SUBJECT = re.compile(
    rf"\b(?:(?:(?:your|the|this|its)\s+(?:[\w-]+\s+){{0,2}}?{_THING}|it|there)\s+(?:also\s+)?(?:should|must|needs?\s+to"
    rf"|has\s+to|have\s+to|is\s+to|can(?:not|['’]t)?|may)|your\s+(?:\w+\s+)?{_THING}\s+(?:to|in)|(?:number|length) of|"
    rf"(?:answer|output|response) format:|(?:keep|make|limit|want) (?:it|(?:your|the) (?:\w+ ){{0,2}}?{_THING}))", re.I,
)  # fmt: skip
_NOT = re.compile(r"\b(?:not|never|no|without|avoid|refrain|cannot|rather than|instead of|exclude)\b|n['’]t\b", re.I)
_EACH = re.compile(r"(?<!separate )\beach\b(?! (?:\w+ ){0,3}separated)|\b(?:every|apiece|respectively|one of|per)\b", re.I)
_PART = re.compile(
    r"\b(?:titles?|headlines?|headings?|subject line|caption|intro(?:duction)?|conclusion|abstract|stanzas?|verses?"
    r"|sections?|(?:first|second|third|fourth|last|next|final|opening|closing|topic) (?:word|sentence|paragraph|line"
    r"|part))\b|\b(?:sentences|paragraphs|bullets|points|items|lines|steps|answers)(?:\s+\w+){0,2}\s*$", re.I,
)  # fmt: skip
# "how to store data in JSON", "a function that prints two sentences", "a man who told his life in six words"
_ABOUT = re.compile(
    r"\b(?:(?:who(?:se|m)?|how|ways?|methods?|tips|possible)\s+(?:\w+\s+){0,3}?(?:wr[io]t|summari|stor|serial|pars"
    r"|encod|sen[dt]|save|return|output|format|represent|print|express|convey|t[eo]l[ld]|sa[iy]|sp[eo]|descri|expla|present"
    r"|display|fit|answer|load|export|convert)\w*|(?:advantages?|benefits?|importance|point) of (?:writ|stor|us|send"
    r"|return|format|present)ing|SQL|HTML|LaTeX|database|periodic|Excel)\b|\b(?:an?|the|some)\s+"
    r"(?:[\w+#-]+\s+){0,3}(?:function|program|script|method|query|endpoint|parser|command|regex|api|server|schema"
    r"|library|tool|code|database|app)\b", re.I,
)  # fmt: skip
_QUANTITY = (
    r"(?:(?:(?P<max>at most|up to|within|(?:a )?(?:strict )?max(?:imum|\.)?(?: length)?(?: of)?|not? (?:more|longer) than"
    r"|(?:do not|don['’]t|should not|must not|cannot|not)(?: \w+)? exceed|not exceed(?:ing)?"
    r"|(?:do not|don['’]t)(?: \w+){1,3} (?:more|longer) than)|(?P<min>at least|(?:a )?min(?:imum|\.)?(?: of)?"
    r"|not? (?:less|fewer|shorter) than)|(?P<below>(?:less|fewer|shorter) than|under|below)|(?P<above>(?:more|longer) than"
    r"|over)|(?P<exact>exactly|precisely)|between|from|range of|(?P<vague>about|around|roughly|approximately|nearly|almost"
    r"|the|these|those|this|my|both|following|first|last|next|other|all|any|half|every|another|step|part|line|chapter"
    rf"|number))\s+(?:a total of\s+)?)?(?<![\w-])(?P<n>{_NUMBER})(?:\s*(?:to|-|–|or|and)\s*(?P<m>{_NUMBER}))?(?P<after>\+"
    r"|\s+or\s+(?:more|less|fewer))?"
)
_UNIT = r"sentences?|words?|paragraphs?|characters?|bullet(?:ed)?[ -](?:point|item)s?|bullets|numbered (?:item|point|step)s?"
_SIZE = r"complete|full|short|brief|concise|simple|clear|plain|long|very|separate|distinct|detailed|markdown|key|main|total"
_EN_COUNTS = tuple(re.compile(pattern, re.I) for pattern in (
    r"(?:\b(?P<lead>in|using|use|with|into|as|to|of|write|give|provide|include|contains?|containing|has|have|having|be)\s+)?"
    rf"(?:(?:just|only)\s+)?{_QUANTITY}(?P<gap>[\s-]+)(?:(?:{_SIZE}),?\s+){{0,3}}(?P<unit>{_UNIT})\b"
    r"(?P<behind>,? or (?:more|less|fewer)\b|,? at (?:most|least)\b|,? (?:max|min)(?:imum)?\b)?",
    rf"(?:^|[,:]\s+|\b(?:please|you|and|then)\s+)(?P<lead>list|name)\s+{_QUANTITY}\s+(?!(?:of|(?:\w+ ){{0,3}}?(?:sentences?"
    r"|words?|paragraphs?|bullets?)|lines?|sections?|parts?|responses?|versions?|or|to|numbered)\b)[a-z]",
    r"(?:\b(?:as|in|make|write|create|give|provide|me|with|into|return|output|produce)\s+|^)an?\s+(?P<unit>numbered|bulleted"
    rf"|bullet(?:[- ]point)?)?\s*(?P<lead>list)\s+(?:of|with|containing)\s+{_QUANTITY}\s+(?!(?:\w+ ){{0,2}}bullet)[a-z]",
))  # fmt: skip
_OTHER_USE = re.compile(
    r"(?<=words)\s+(?:that|which|with|and an?)\b|\s+(?:of(?! (?:plain|simple))|from (?:the|this)|below|above|with all|be\b"
    r"|each(?! separated)|apart|in (?:all|capital|upper|lower)|whose|related|starting|beginning|ending|or (?:phrases|words)"
    r"|(?:is|are|was|were|do|did|say|said)\b)|-", re.I,
)  # fmt: skip


def _verb_of(piece: str, place: int) -> re.Match[str] | None:
    """The commanding verb that a place in a sentence belongs to."""
    found = list(_COMMAND.finditer(piece))
    before = [verb for verb in found if verb.start("verb") <= place]
    return before[-1] if before else next(iter(found), None)


def _en_asked(pieces: Sequence[str], i: int, start: int, stop: int, *, whole: bool) -> bool:
    """Whether a sentence asks for what stands between two places, of the whole answer if that matters."""
    piece, verb = pieces[i], _verb_of(pieces[i], start)
    before, after = piece[:start].strip(" ([-*").lower(), piece[stop:].strip(" )].!*")
    begin = verb.start("verb") if verb and verb.start("verb") <= start else 0
    if _NOT.search(re.split(r"\b(?:and|but) (?:should|must|contain|have|has)\b", piece[begin:start])[-1]):
        return False
    aside = before[-1:] == "," or (not before and after[:1] == ",")  # "What is honey, in two sentences?"
    if (not before and len(after) < 12) or (aside and piece.endswith("?")) or _SUBJECT.search(piece, 0, stop):
        return True
    if verb is None or _ABOUT.search(piece, begin, start):
        return False
    alone = verb["verb"].lower() == "write" and start <= verb.end() + 1  # "Write at least 300 words."
    alone = alone and bool(re.match(r"$|,|(?:each )?separated\b", after))
    if not whole or verb["whole"] or alone or re.match(r"[\s-]+(?:\w+ )?(?:answer|response|reply)\b", piece[stop:], re.I):
        return True
    # "Name the capital and describe it in two sentences": the limit is for one of several things.
    here = [v for v in _COMMAND.finditer(piece) if not v["whole"]]
    others = [other for j, other in enumerate(pieces) if j != i and not _SUBJECT.search(other)]
    return not (
        any(b.start("verb") - a.end() > 6 for a, b in pairwise(here))
        or any(not v["whole"] for other in others for v in _COMMAND.finditer(other))
        or (any(other.endswith("?") for other in others) and verb.end() < start - 2)
    )


def _en_limits(piece: str, match: re.Match[str]) -> tuple[str, int, int]:
    """The unit, lowest and highest count of a wording; zeros where it does not limit the answer."""
    word, (low, high), start, stop = match.groupdict(), _range(match), match.start(), match.end()
    lead, unit = (word["lead"] or "").lower(), _UNITS.get((word.get("unit") or "")[:1].lower(), "items")
    exact = bool(word["exact"]) or low != high
    clause = re.split(r"[,;]|\band\b", piece[:start])[-1]
    if _EACH.search(piece) or (unit == "characters" and high + low < 20):
        clear = False
    elif lead == "list" or unit == "items":
        clear = (exact or lead == "list") and max(low, high) > 1 and not re.search(rf"\band {_NUMBER}\b", piece[stop:])
    elif word["gap"][0] == "-" or (word["unit"][-1] != "s" and high != 1 and unit != "bullets"):
        article = re.search(r"(?<!about)(?<!of)(?<!on) an?(?: [\w-]+,?)? $", f" {piece[: match.start('n')]}", re.I)
        thing = re.match(rf"[\s-]+(?:[\w-]+\s+){{0,2}}?{_THING}\b", piece[stop:], re.I)  # "a two-sentence summary"
        clear = bool(article and thing) and (unit != "words" or exact or high <= 10)
    elif _OTHER_USE.match(piece, stop) or _PART.search(clause):
        clear = False
    elif lead == "to" and re.search(r"\b(?:keep|(?:limit|restrict)(?:ing)?)\b", piece[:start], re.I):
        low, clear = 0 if low == high else low, True
    else:
        clear = exact or (lead in ("in", "using", "use", "with", "into", "as") and (unit != "words" or high <= 10))
        clear |= bool(lead) and unit in ("bullets", "numbered")
        clear |= bool(lead) and unit != "words" and bool(_SUBJECT.search(piece, 0, stop))
        clear |= lead == "write" and bool(re.match(r"\s+(?:about|on|that|explaining|describing|to)\b", piece[stop:]))
        clear |= piece[stop:].strip(" .!") == "only"
    return (unit, low, high) if clear else (unit, 0, 0)


# Korean. What is asked stands before its verb, and the sentence ends with a request.
_KO_UNIT = r"(?P<unit>문장|문단|단락|단어|어절|글자|자(?!리|씩|마다)|항목|글머리 ?(?:기호|표)|불릿(?: ?포인트)?)"
_KO_BEFORE = (
    r"(?:(?P<vague>약|대략|이|그|저|다음|위의?|아래의?|앞의|뒤의|주어진|첫|마지막|처음|제시된)\s+|(?P<max>최대(?:한)?)\s*"
    r"|(?P<min>최소(?:한)?|적어도)\s*|(?:정확히|딱|오직|단)\s*)?(?P<below>\0)?(?P<above>\0)?(?<![가-힣\d.])"
)
_KO_AFTER = (
    r"\s*(?P<after>이내|이하|미만|이상|내외|정도|가량|쯤|안팎|안으로|[을를]? ?(?:넘지|넘기지|초과하지) ?(?:않|말|마))?"
    r"(?P<list>의? (?:(?:번호|글머리) ?(?:표 |기호 )?)?(?:목록|리스트))?(?P<tail>으?로만|만으로|으?로(?!서)|이?어야)?"
)
_KO_N = rf"(?P<n>{_NUMBER})(?:\s*[~-]?\s*(?P<m>{_NUMBER}))?\s*"
_KO_COUNTS = tuple(
    re.compile(_KO_BEFORE + pattern + _KO_AFTER)
    for pattern in (rf"{_KO_N}(?:(?:개|가지)의?\s*)?{_KO_UNIT}", rf"{_KO_UNIT}\s*{_KO_N}(?:개|가지)")
)
_KO_VERB = (
    "(?:답|대답|응답|설명|요약|정리|서술|기술|작성|써|쓰|쓸|적|말|표현|소개|묘사|비교|알려|제시|나열|출력|반환|만들|구성|제한|간추|줄|정의|보여"
    "|나타|고쳐|바꾸|바꿔|합치|합쳐|논|전달|생성|완성|제공|맞추|맞춰|유지|마무리|그려|그리|번역|넣|끝내|끝맺|마치|매겨|붙여|합니다|한다|할|해|하)"
)
_KO_ASK = re.compile(
    r"(?:세요|십시오|시오|하라|해라|써라|어라|아라|여라|다오|줘라?|줘요|바랍니다|바라요|부탁\S*|봐요?|[할쓸] 것|하기"
    r"|(?:주시겠|줄 수 있|주실 수 있|주실래|줄래)\S*|[해어아여]야 (?:합니다|한다|해요?)|되|하고|며)[.,!?~)\s]*$"
)
_KO_OTHER = re.compile(r"\s*\S*(?:된|진|쓴|쓰인|끝나는|나뉜)\s|.*(?:방법|요령|함수|코드를|프로그램|스크립트|쿼리|API|서버)")
_KO_FIRST = re.compile(
    r"(?:(?:설명|말|서술|제시|소개|요약|나열|비교|정의|작성|번역|계산|분석|평가|정리|답|구)하|쓰|찾|고르|만들|예를 들"
    r"|주)고[,\s]|[한쓴든은푼준] (?:뒤|후|다음)[,\s에]"
)
_KO_PART = re.compile(r"씩|각각|(?<![가-힣])각\s|마다|별로|(?:제목|첫 문장|첫 문단|마지막 문장|결론|서론)[은는을를이가의]")
_KO_THEN = re.compile(
    r"\s*\S*?(?:설명|요약|소개|정리|비교|정의|말|서술|알려|간추|줄)\s?(?:[하이리]고|한 (?:뒤|후|다음)|(?:해 ?)?주고)"
)


def _ko_asked(pieces: Sequence[str], i: int, start: int, stop: int, *, whole: bool) -> bool:
    """As `_en_asked`."""
    piece, before, rest = pieces[i], pieces[i][:start], pieces[i][stop:]
    if not before.strip(" ([단,길이형식:") and not rest.strip(" .)]!"):
        return True
    verb = re.search(_KO_VERB, rest) if _KO_ASK.search(piece) and not _KO_OTHER.match(rest) else None
    if verb is None or re.match(r"\S*지\s*(?:말|마|않)", rest[verb.end() :]):
        return False
    others = any(_KO_ASK.search(other) or other.endswith("?") for j, other in enumerate(pieces) if j != i)
    object_of = re.findall(r"(\S+)[을를]\s", before)[-1:]  # the nearest one: "꿀을 다룬 글을 세 문단으로"
    of_something = others and object_of and not re.search("(?:답|답변|대답|응답|글|질문|물음|내용|이것|그것)$", object_of[0])
    return not (whole and (of_something or _KO_FIRST.search(before) or _KO_PART.search(before) or _KO_THEN.match(rest)))


def _ko_limits(piece: str, match: re.Match[str]) -> tuple[str, int, int]:
    """As `_en_limits`."""
    unit, (low, high) = _UNITS[match["unit"][:2]], _range(match)
    if unit == "items" and match["list"]:
        unit = "numbered" if "번호" in match["list"] else "bullets" if "글머리" in match["list"] else unit
    loose = low == high and (not match["tail"] or unit == "characters" or (unit == "words" and high > 10))
    return (unit, 0, 0) if loose or not (match["tail"] or match["after"]) else (unit, low, high)


# What is not counted: (kind, what asks for it). The groups `words` and `keys` hold what the demand is about.
_KEY = r"(?:⟦`?\d+⟧|[A-Za-z_][A-Za-z0-9_]*)"
_KEYS = rf"(?P<keys>{_KEY}(?:(?:,\s*and\s+|,\s*|\s+and\s+|[와과]\s+){_KEY})*)"
_ADJ = r"(?:(?:short|simple|small|neat|clear|concise|brief|markdown|conversational|comparison|several|some|\w+-column)\s+)*"
_IN = r"\b(?:in|as|into|using|with|use|(?:form|list|format) of)\s+(?:(?:an?|one|(?:the )?form of|few)\s+)*"
_MAKE = r"\b(?:create|make|draw|write|give|provide)\s+(?:me\s+)?an?\s+"
_NO_COUNT = rf"(?!\s+(?:of|with|containing)\s+(?:\w+ ){{0,2}}?{_NUMBER}\b)"
_DO = "(?:^|(?<=[,:] )|(?<=and )|(?<=but )|(?<=also )|(?<=then )|(?<=must )|(?<=sure )|(?<=please )|(?<=should )|(?<=to ))"
_SAY = r"(?:(?:exactly|the|this|an?|exact|following|same|very|phrase|sentence|question|words?|line|statement|of|:)\s*)*"
_NAMED = (
    r"(?:(?:the|these|any|following|such|negative|exact)\s+)*(?:(?:key)?words?|terms?|phrases?|expressions?|names?|line)\s*"
    r"(?:(?:such as|like|of|:)\s*)?"
)
_KO_NOUN = r"\s*(?:이?라는|이?란)?\s*(?:말|단어|표현|낱말|용어|키워드|구절|문구)(?:들)?"
_KO_WITH = (
    r"(?:^|(?<=[,고며되] )|(?:답|답변|대답|응답|글|출력)[은는을를] )(?:반드시 |꼭 )?(?P<words>⟦`?\d+⟧)\.?\s*"
    r"(?:이?라는 (?:말|문장|문구|구절))?으?로\s*(?:답변?을 |글을 )?"
)
_KO_SOON = r"\s*(?:(?:모두|다시|간단히|바로|짧게|보기 좋게|한눈에 보기 쉽게)\s*)?"
_KO_SURELY = r"(?:꼭|반드시|모두|한 번 이상|적어도 한 번)?\s*"
_KO_NEW = r"(?<!아래 )(?<!위 )(?<!이 )(?<!다음 )(?<![가-힣A-Za-z])"
_KO_LIST = r"(?:글머리 ?(?:기호|표)|불릿(?: ?포인트)?)(?: 목록)?"
_FORMS = {lang: tuple((kind, re.compile(pattern, re.I)) for kind, pattern in forms) for lang, forms in {
    "en": (
        ("json", r"(?:\b(?P<how>in|as|into|use|return|output|produce|provide|give|using|with)\s+(?:only\s+)?(?:(?:an?|one"
         r"|the|valid|single|pure|raw|strict|form of)\s+)*|^(?:only )?)json\b(?P<form>(?:\s+(?:object|array|format|block"
         r"|list|form|only))*)(?:(?:,?\s+(?:with|containing|that has|using)\s+(?:(?:exactly|only|the|following|two|three"
         rf"|four)\s+)*(?:keys|fields|properties)\s*:?\s*{_KEYS})?(?=\s*(?:$|[.,;:!?()]|and (?:nothing|no|do|add|return"
         r"|use)\b|for\b|instead))|(?=\s*(?:with|that has|containing|using)\b))"),
        ("table", rf"{_IN}{_ADJ}table\b(?! (?:of contents|tennis|top|salt|called|named|in (?:an?|the|your|my))\b)"
         rf"|\bin (?:table|tabular) form|{_MAKE}{_ADJ}table\s+(?:of the|comparing|showing|listing|that (?:shows|lists"
         r"|compares)|summari[sz]ing|with (?:the )?(?:following )?(?:\w+ )?columns)\b"),
        ("code", r"\b(?:in|as|inside|into|using|use)\s+(?:(?:an?|one|[\w+#]+)\s+){0,4}?code (?:block|fence)s?\b"),
        ("numbered_min", rf"(?:{_IN}|{_MAKE}){_ADJ}(?:numbered|ordered) list\b{_NO_COUNT}"),
        ("bullets_min", rf"(?:{_IN}|{_MAKE}){_ADJ}(?:bullet(?:ed)?[- ](?:point )?list\b{_NO_COUNT}|bullet[- ]points\b"
         r"|bullet[- ]point form|bullets\b)"),
        ("yes_no", r"\b(?:answer|reply|respond|output|tell me)\s+(?:(?:(?P<only>only|just|simply)|with|either"
         r"|an?)\s+)*yes or no\b(?P<alone> only| and nothing else)?"),
        ("avoid", rf"(?:{_DO}(?:do not|don['’]t|never|not(?: to)?|avoid|exclude|refrain from|cannot)|\bwithout|\b(?:must"
         r"|should|can)n['’]t|\bcannot)\s+(?:(?:us(?:e|ing)|inclu(?:de|ding)|mention(?:ing)?|contain|say(?:ing)?|writ(?:e"
         rf"|ing)|have)\s+)?(?:any of |either of |both )?(?:{_NAMED}|(?!⟦`)){_TOKENS}(?!\s*(?:more|to\b|as\b|too\b|in (?:the"
         r"|an?|any|your) (?:first|second|last|title|opening|intro|heading)))"),
        ("avoid", rf"\bwords?\s+{_TOKENS}\s*(?:(?:should|must|may|can|do|does)\s*(?:not|n['’]t)|cannot)\s+(?:appear|be"
         r"|occur)\b"),
        ("keyword", r"\b(?:(?:us(?:e|es|ing)|contain(?:s|ing)?|incorporat(?:e|es|ing)|features?|add)\s+(?:both |all )?"
         rf"{_NAMED}|(?:inclu(?:des?|ding)|mention(?:s|ing)?)\s+(?:both |all )?(?:{_NAMED}|(?=⟦\d+⟧(?:[.,;!?]|$|\s+(?:in|and"
         rf"|at least|somewhere|for)\b)))){_TOKENS}(?!\s*(?:at most|less|fewer|no more|once or less|to\b|as\b|if\b))"),
        ("keyword", rf"\bwords?\s+{_TOKENS}\s*(?:should|must)\s+(?:appear|be (?:used|included|mentioned)|occur)\b"
         r"(?! (?:less|fewer|at most|no))"),
        ("ends_with", rf"{_DO}(?:end|finish|conclude)\s+(?:(?:your|the|this|it|entire|whole|up)\s+)*"
         rf"(?:(?:blog\s+)?{_THING}\s+)?with\s+{_SAY}(?P<words>⟦`?\d+⟧)"),
        ("starts_with", rf"{_DO}(?:start|begin)\s+(?:(?:your|the|entire|whole)\s+)*(?:(?:answer|response|reply|output"
         rf"|text)\s+)?with\s+{_SAY}(?P<words>⟦`?\d+⟧)"),
    ),
    "ko": (
        ("json", rf"{_KO_NEW}JSON\s*(?:형식|형태|포맷|객체|배열)?(?:으?로만|만으로|으?로|만){_KO_SOON}(?={_KO_VERB})"
         rf"(?:(?=.*키는?\s+{_KEYS}))?"),
        ("table", rf"(?<![가-힣])표(?: ?형식| ?형태)?으?로{_KO_SOON}(?={_KO_VERB})|{_KO_NEW}표를\s+(?=만들|작성|그려)"),
        ("numbered_min", r"번호를 (?=매겨|붙여)|(?<!개의 )(?<!항목의 )(?<!가지 )번호 (?:목록|리스트)으?로"),
        ("bullets_min", rf"(?<![가-힣])(?<!개의 ){_KO_LIST}(?:[를을] (?=사용|써|이용)|으?로{_KO_SOON}(?={_KO_VERB}))"),
        ("code", rf"코드 ?블록(?:으로|에|안에){_KO_SOON}(?={_KO_VERB})|코드 ?블록을 (?=사용|써)"),
        ("yes_no", r"(?<![가-힣])[예네]\s*(?:,|/|또는|나|혹은|아니면)?\s*아니[오요]\s*(?:(?P<only>으?로만|라고만"
         rf"|중 하나로만)|중 하나로|로|라고){_KO_SOON}(?=답|대답|말)(?P<alone>\0)?"),
        ("avoid", rf"{_TOKENS}(?:{_KO_NOUN}|(?=[을를은는]? ?(?:언급|말하|포함)))[을를은는도]?\s*(?:절대로?\s*|직접\s*)?"
         r"(?:쓰|사용하|언급하|포함하|넣|말하)지\s*(?:말(?!아야 하)|마|않(?:고|게|도록|아야|으면서))"),
        ("avoid", rf"{_TOKENS}{_KO_NOUN}\s*없이"),
        ("keyword", rf"{_TOKENS}(?:{_KO_NOUN}[을를도]?\s*{_KO_SURELY}(?=사용|활용|써|쓰|포함|언급|넣)"
         rf"|\s*[을를]?\s*{_KO_SURELY}"
         r"(?=포함|언급|넣))(?=\S{1,3}(?:하세요|하십|하시|해|하라|할|하여|시켜|어|세요|고\b|하되|되\b|서\b| 주))"),
        ("ends_with", rf"{_KO_WITH}(?=끝내|끝맺|마치|마무리|끝나)"),
        ("starts_with", rf"{_KO_WITH}(?=시작[하해])"),
    ),
}.items()}  # fmt: skip
_TELLING = re.compile("identify|name|list|translate|define|extract|classify|compare|evaluate|analy[sz]e|tell", re.I)
_OBJECT = re.compile(r"\b(?:what|how|why|where|stored|rows?|columns?|keys?|types?|examples? of)\b", re.I)


def _stands(kind: str, pieces: Sequence[str], i: int, match: re.Match[str], lang: str) -> bool:
    """Whether a wording in _FORMS is a demand where it stands."""
    piece, (start, stop) = pieces[i], match.span()
    if lang == "ko":
        if "words" in match.groupdict() and _KO_PART.search(piece, 0, start):
            return False
        return kind == "avoid" or _ko_asked(pieces, i, start, stop, whole=kind == "json")
    verb = _verb_of(piece, start)
    begin = verb.end("verb") if verb and verb.end("verb") < start else 0
    if kind == "avoid":
        told = verb is not None and not _ABOUT.search(piece, begin, start)
        return told or match[0].lower().startswith("word") or bool(_SUBJECT.search(piece))
    if not _en_asked(pieces, i, start, stop, whole=kind == "json"):
        return False
    telling = verb is not None and _TELLING.fullmatch(verb["verb"]) is not None
    if kind in ("json", "table", "code"):
        bare = kind == "json" and (match["how"] or "").lower() in ("in", "using", "with") and not match["form"]
        return not (_OBJECT.search(piece, begin, start) or (bare and telling))
    if kind.endswith("with"):
        return not _PART.search(piece, 0, start)
    return not (telling and kind == "keyword")
