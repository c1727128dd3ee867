"""Format demands that code can verify: read from an instruction's wording, checked in answers, drawn for new instructions.

The idea and several kinds are IFEval's (Zhou et al., arXiv 2311.07911), here for English and Korean. A demand is read only
where the wording clearly makes it. What a text leaves open, such as whether "U.S." ends a sentence or a title is a
paragraph, is counted each way, and an answer breaks a demand only if no way of counting fits.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from align.core.errors import UserError
from align.core.format_wording import FENCE, MARKER, demanded
from align.core.hashing import derive_seed
from align.core.language import sentences

# An answer has at least as many of a unit as of one with a higher number. Items may share a sentence.
_UNITS = {"characters": 0, "words": 1, "sentences": 2, "items": 2, "paragraphs": 3, "bullets": 3, "numbered": 3}


@dataclass(frozen=True)
class Demand:
    """What an instruction asks of the form of its answer.

    Attributes:
        kind: a unit (sentences, words, characters, paragraphs, bullets, numbered, items), alone for an exact count or with
            _min or _max; or json, table, code, yes_no, keyword, avoid, starts_with, ends_with. Words of Korean are eojeol.
        count: of the unit.
        word: the quoted words; for json the keys that its objects need, joined by commas.
    """

    kind: str
    count: int = 0
    word: str = ""

    @property
    def limits(self) -> tuple[str, int, float]:
        """Unit, lowest and highest count; no unit for demands that count nothing."""
        unit, _, bound = self.kind.partition("_")
        if unit not in _UNITS:
            return "", 0, 0
        return unit, 0 if bound == "max" else self.count, float("inf") if bound == "min" else self.count


def split_input(text: str) -> tuple[str, str]:
    """(the request, the input that follows it after an empty line, or an empty text)."""
    request, _, given = text.partition("\n\n")
    return request, given


def demands(text: str, lang: str) -> list[Demand]:
    """The demands that an instruction's wording makes, without repetition; none where in doubt.

    Args:
        text: of the instruction, one line or many.
        lang: en or ko; nothing is read in others.
    """
    if lang not in ("en", "ko"):
        return []
    return [Demand(*found) for found in dict.fromkeys(demanded(unicodedata.normalize("NFC", text), lang))]


def broken(demand: Demand, answer: str, lang: str) -> str:
    """Why an answer does not meet a demand ("format_" and its kind), or an empty text.

    Raises:
        UserError: no such kind.
    """
    answer = unicodedata.normalize("NFC", answer)
    unit, low, high = demand.limits
    if unit:
        kept = any(low <= count <= high for count in _readings(unit, answer, lang))
    elif demand.kind == "json":
        kept = _holds_keys(_json(answer), [key for key in demand.word.split(",") if key])
    elif demand.kind == "table":
        kept = _has_table(answer)
    elif demand.kind == "code":
        kept = any(match[2].strip() and match[3] for match in FENCE.finditer(answer))  # closed, not empty
    elif demand.kind == "yes_no":
        kept = bool(_YES_NO["ko" if lang == "ko" else "en"].match(answer))
    elif demand.kind in ("keyword", "avoid"):
        kept = _uses(demand.word, answer) == (demand.kind == "keyword")
    elif demand.kind in ("starts_with", "ends_with"):
        text, word = _bare(answer), _bare(demand.word)
        kept = text.startswith(word) if demand.kind == "starts_with" else text.endswith(word) or text[:-1].endswith(word)
    else:
        raise UserError(f"format demand: there is no kind {demand.kind}")
    return "" if kept else f"format_{demand.kind}"


def contradiction(found: Sequence[Demand]) -> str:
    """Two demands of an instruction that no answer meets together, as "kind count/kind count"; or an empty text."""
    for one, other in permutations(found, 2):
        (unit, low, _), (smaller, _, high) = one.limits, other.limits
        listed = {unit, smaller} in ({"items", "bullets"}, {"items", "numbered"})
        if unit and smaller:
            clash = low > high and (unit == smaller or _UNITS[unit] > _UNITS[smaller] or listed)
        elif one.kind == "json":
            clash = other.kind in _NOT_IN_JSON
        elif one.kind == "avoid":
            clash = other.kind in ("keyword", "starts_with", "ends_with") and _uses(one.word, other.word)
        else:
            a, b = sorted((_bare(one.word), _bare(other.word)), key=len)
            clash = one.kind == other.kind and (
                (one.kind == "starts_with" and not b.startswith(a)) or (one.kind == "ends_with" and not b.endswith(a))
            )
        if clash:
            return "/".join(f"{demand.kind} {demand.word or demand.count or ''}".strip() for demand in (one, other))
    return ""


# Answers.
# The entries of an array are items.
_NOT_IN_JSON = {f"{unit}{bound}" for unit in ("sentences", "paragraphs", "bullets", "numbered") for bound in ("", "_min")}
_NOT_IN_JSON |= {"table", "yes_no", "starts_with", "ends_with"}
_YES_NO = {"en": re.compile(r"\W*(?:yes|no)\b", re.I), "ko": re.compile(r"\W*(?:예|네|아니[요오])(?![가-힣])")}
_BULLET = re.compile(r"^([ \t]*)[-*•‣·](?![-*\s]*$)[ \t]+\S", re.M)
_ITEM = re.compile(r"^([ \t]*)(?:#+ |\*\*)?\(?\d{1,3}[.)](?:\*\*)?[ \t]+\S", re.M)
_DIVIDER = re.compile(r"^[ \t]*(?:[*_-][ \t]*){3,}$", re.M)
_TITLE = re.compile(r"\s*(?:#[^\n]*|\*\*[^\n]*\*\*)\s*")
# Full stops that end no sentence, and marks of which only the meaning tells whether one ends.
_DOTTED = r"(?:[A-Z]|(?<![A-Za-z]\.)(?:[A-Za-z]\.)+[A-Za-z]|etc|al|Inc|Ltd|Co|Corp|Jr|Sr|Ph\.D)"
_NO_END = re.compile(
    r"\b(?:e\.g|i\.e|cf|vs|viz|ca|approx|est|pp|vol|eds?|[Ff]igs?|[Ee]qs?|Dr|Mrs?|Ms|Prof|St|Mt|Gen|Sen|Rep|Gov|Capt|Col|Lt|Rev"
    rf"|Hon)\.(?=\s)|\b(?:[Nn]os?|p|Ch|Sec|Art|A\.D)\.(?=\s+\d)|\b{_DOTTED}\.(?=\s+[a-z(])"
)
_UNCLEAR = re.compile(
    rf"\b(?:{_DOTTED}|\d{{1,2}})\.(?=\s)|(?:(?<!\.)\.{{2,}}|[!?])(?=\s+[a-z])|[.!?](?=[\"”’')]+\s+[a-z])|(?<!\.)\.{{2,}}(?=\s+[가-힣])"
)
_QUOTED = re.compile(r"[\"“][^\"“”\n]*[.!?]\s[^\"“”\n]*?(?=[.!?]?[\"”])")


def _sentence_counts(answer: str, lang: str) -> set[int]:
    """The numbers of sentences that a text can be read as having. Headings are none; items of lists begin new ones."""
    unclear = 0

    def hide(match: re.Match[str]) -> str:
        return re.sub("[.!?]", "\u2024", match[0])

    def doubt(match: re.Match[str]) -> str:
        nonlocal unclear
        unclear += len(re.findall(r"[.!?]+(?=\s|$)", match[0]))
        return hide(match)

    text = re.sub(r"^[ \t]*#.*$", "\n", answer.replace("…", "...").strip().strip('"“”'), flags=re.M)
    text = MARKER.sub("\n\n", text)
    if lang == "ko":  # dates, sentences without a space between them, lines without full stops
        text = re.sub(r"(?<=\d)\.(?=\s\d)", "\u2024", re.sub(r"(?<=[가-힣][.!?])(?=[가-힣])", " ", text))
        text = re.sub(r"(?<=[다요까죠음함])\n", "\n\n", text)
    text = _UNCLEAR.sub(doubt, _NO_END.sub(hide, _QUOTED.sub(doubt, text)))
    text = re.sub(r"([.!?。][\"'”’)\]*_」』]+)\s", r"\1\n\n", text)
    count = sum(any(map(str.isalnum, sentence)) for sentence in sentences(text))
    return set(range(count, count + unclear + 1))


def _outer(pattern: re.Pattern[str], text: str) -> int:
    """Matching lines with the least indentation: what is nested in an item is none itself."""
    depths = [len(match[1].expandtabs()) for match in pattern.finditer(text)]
    return depths.count(min(depths, default=0))


def _readings(unit: str, answer: str, lang: str) -> set[int]:
    """The counts of a unit in an answer; several where the wording or the answer leaves open what counts."""
    prose = FENCE.sub("\n", answer)
    if unit == "sentences":
        return _sentence_counts(prose, lang)
    if unit == "words":
        tokens = [token for token in MARKER.sub("", answer).split() if any(map(str.isalnum, token))]
        parts = sum(len(re.findall(r"[^\W_]+(?:['’.,][^\W_]+)*", token)) for token in tokens)
        return {len(tokens)} if lang == "ko" else {len(tokens), parts}  # "well-known" is one or two
    if unit == "characters":
        return {len(answer.strip()), len("".join(answer.split()))} if lang == "ko" else {len(answer.strip())}
    if unit == "paragraphs":
        blocks = [
            block for block in re.split(r"\n\s*\n", _DIVIDER.sub("\n\n", FENCE.sub("code\n", answer))) if block.strip()
        ]
        return {len(blocks), sum(not _TITLE.fullmatch(block) for block in blocks)}
    if unit == "bullets":
        return {len(_BULLET.findall(prose)), _outer(_BULLET, prose)}
    if unit == "numbered":
        return {_outer(_ITEM, prose)}
    value = _json(answer)
    if value is not None:
        return {len(value), *(len(v) for v in (value.values() if isinstance(value, dict) else ()) if isinstance(v, list))}
    if _BULLET.search(prose) or _ITEM.search(prose):
        return {_outer(_BULLET, prose), _outer(_ITEM, prose)} - {0}
    lines = [line for line in prose.split("\n") if line.strip()]
    listed = re.split(r"[,;、]\s*(?:and\s+|그리고\s+)?|\s+and\s+|\s+및\s+", " ".join(prose.split()))
    return {len(lines), len(lines) - 1, len(listed), *_sentence_counts(prose, lang)}


def _json(answer: str) -> Any:
    """The one JSON object or array that an answer is, in a Markdown fence or not; None for anything else."""
    fenced = re.fullmatch(r"```\w*[ \t]*\n(.*?)\n?[ \t]*```", answer.strip(), re.S)

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        value = json.loads(fenced[1] if fenced else answer, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _holds_keys(value: Any, keys: Sequence[str]) -> bool:
    """Whether there is a JSON value, and the object or each one of an array has the keys."""
    rows = value if isinstance(value, list) else [value]
    named = bool(rows) and all(isinstance(row, dict) and row.keys() >= set(keys) for row in rows)
    return value is not None and (named or not keys)


def _cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", re.sub(r"^\s*\||(?<!\\)\|\s*$", "", line)) if "|" in line else []


def _has_table(answer: str) -> bool:
    """Whether there is a Markdown table: header, rule and rows, with equally many columns."""
    rows = [_cells(line) for line in FENCE.sub("\n", answer).split("\n")]
    for i in range(1, len(rows) - 1):
        if rows[i] and all(re.fullmatch(r"\s*:?-+:?\s*", cell) for cell in rows[i]):
            body = rows[i + 1 :][: next((j for j, row in enumerate(rows[i + 1 :]) if not row), None)]
            if body and all(len(row) == len(rows[i]) for row in (rows[i - 1], *body)):
                return True
    return False


def _uses(word: str, text: str) -> bool:
    """Whether a text has a word or phrase, in any case. A Korean word may have endings, but nothing before it."""
    word, text = word.replace("’", "'"), text.replace("’", "'")
    before = "(?<![가-힣])" if re.match("[가-힣]", word) else r"(?<![A-Za-z0-9_])" if re.match(r"\w", word) else ""
    after = r"(?![A-Za-z0-9_])" if re.search(r"[^\W가-힣]$", word) else _PARTICLE if re.fullmatch("[가-힣]", word) else ""
    return bool(re.search(before + r"\s+".join(map(re.escape, word.split())) + after, text, re.I))


# A word of one syllable begins many others: 꿀 is in 꿀은, not in 꿀벌.
_PARTICLE = "(?=(?:[은는이가을를의도만와과나]|에[서게]?|으?로|이나|부터|까지|보다|처럼|이라고?|입니다|이[다며])?(?![가-힣]))"


def _bare(text: str) -> str:
    """Without case, quotation marks and emphasis around it, and differences of white space."""
    return " ".join(text.strip(" \n\t\"'“”‘’*_#>`").casefold().split())


# New demands: kind, what it is about, wordings in which {} is that (small numbers as words). Left out are those that only
# some requests can meet: yes or no, one word, code, a list of so many items. Korean words end in a vowel, for 라는 and 로.
_SMALL = {"en": ("", "", "two", "three", "four", "five"), "ko": ("", "", "두", "세", "네", "다섯")}
_CATALOGUE: dict[str, tuple[tuple[str, tuple[int | str, ...], tuple[str, ...]], ...]] = {
    "en": (
        ("sentences", (2, 3, 4), ("Answer in exactly {} sentences.", "Write exactly {} sentences.")),
        ("sentences_max", (2, 3, 5), ("Answer in at most {} sentences.", "Use no more than {} sentences.")),
        ("words_max", (30, 50, 80), ("Answer in at most {} words.", "Keep your answer to no more than {} words.")),
        ("words_min", (60, 100, 150), ("Answer with at least {} words.", "Use at least {} words.")),
        ("paragraphs", (2, 3), ("Answer in exactly {} paragraphs.", "Write exactly {} paragraphs.")),
        ("bullets", (3, 4, 5), ("Use exactly {} bullet points.", "Give your answer as {} bullet points.")),
        ("numbered", (3, 4, 5), ("Present your answer as a numbered list of {} items.",)),
        ("json", ("",), ("Answer only with a JSON object.", "Return your answer as JSON, with nothing else.")),
        ("json", ("answer and reason", "summary and details"), ("Answer as a JSON object with the keys {}.",)),
        ("table", ("",), ("Present your answer in a Markdown table.", "Use a table.")),
        ("keyword", ("because", "for example", "usually"), ('Use the expression "{}".', "Include the phrase '{}'.")),
        ("avoid", ("very", "important", "also"), ("Do not use the word '{}'.", 'Avoid the word "{}".')),
        ("starts_with", ("In short", "First of all"), ('Start your answer with "{}"', "Begin with the words '{}'.")),
        ("ends_with", ("I hope this helps.", "That is all."), ('End your answer with "{}"', 'Finish with "{}"')),
    ),
    "ko": (
        ("sentences", (2, 3, 4), ("정확히 {} 문장으로 답해 주세요.", "{} 문장으로 대답하세요.")),
        ("sentences_max", (2, 3, 5), ("{} 문장 이내로 답해 주세요.", "최대 {} 문장으로 대답하세요.")),
        ("characters_max", (80, 120, 200), ("{}자 이내로 답해 주세요.", "{}자를 넘지 않게 써 주세요.")),
        ("words_max", (20, 30, 50), ("{}어절 이내로 답해 주세요.", "{}단어 이하로 대답하세요.")),
        ("paragraphs", (2, 3), ("{} 문단으로 나누어 답해 주세요.", "정확히 {} 문단으로 써 주세요.")),
        ("bullets", (3, 4, 5), ("글머리 기호 {} 개로 정리해 주세요.", "{} 개의 글머리 기호로 답해 주세요.")),
        ("numbered", (3, 4, 5), ("{} 항목의 번호 목록으로 답해 주세요.",)),
        ("json", ("",), ("JSON 형식으로만 답해 주세요.", "JSON 객체로 대답하세요.")),
        ("json", ("question과 answer", "summary와 details"), ("JSON 객체로 답하되 키는 {}로 하세요.",)),
        ("table", ("",), ("표로 정리해 주세요.", "마크다운 표로 답해 주세요.")),
        ("keyword", ("예를 들어", "그래서", "다시 말해"), ("'{}'라는 말을 꼭 사용하세요.", '"{}"라는 표현을 넣어 주세요.')),
        ("avoid", ("매우", "중요", "아주"), ("'{}'라는 말을 쓰지 마세요.", '"{}"라는 표현은 사용하지 마세요.')),
        ("starts_with", ("한마디로", "간단히 말해"), ("'{}'로 시작하세요.", '"{}"라는 말로 시작해 주세요.')),
        ("ends_with", ("도움이 되기를 바랍니다.", "이상입니다."), ('"{}"로 끝내 주세요.', "'{}'로 마무리하세요.")),
    ),
}  # fmt: skip


def draw(seed: int, lang: str) -> tuple[Demand, str]:
    """A demand and the sentence that asks for it, to be put after a request.

    Args:
        seed: decides both.
        lang: en or ko.

    Raises:
        UserError: no demands are written in that language.
    """
    if lang not in _CATALOGUE:
        raise UserError(f"format demands: there are none in language {lang}, only in {', '.join(_CATALOGUE)}")
    kind, values, wordings = _CATALOGUE[lang][derive_seed(seed, "format", lang) % len(_CATALOGUE[lang])]
    value = values[derive_seed(seed, "format-value", kind) % len(values)]
    wording = wordings[derive_seed(seed, "format-wording", kind) % len(wordings)]
    if isinstance(value, int):
        small = _SMALL[lang]
        return Demand(kind, value), wording.format(small[value] if value < len(small) else value)
    word = ",".join(re.split(" and |[와과] ", value)) if kind == "json" else value
    return Demand(kind, word=word), wording.format(value)
