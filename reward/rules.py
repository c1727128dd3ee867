"""Verifiable reward: checks that code can decide, such as kept format demands or the right final answer.

Each check gives every response of a group a mark in [0, 1], or does not apply to the group. Whether it applies depends on
the prompt alone, so the responses of a prompt are always measured by the same checks. Nothing here raises on model text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby

from align.core.errors import UserError
from align.core.format_wording import FENCE, MARKER
from align.core.formats import Demand, broken, demands, split_input
from align.core.language import detect, letter_counts, repetition, script_shares
from reward.interface import Group

# Marks of the group's responses, or None where the check does not apply to the group.
Check = Callable[[Group], list[float] | None]


class Rules:
    """The weighted mean of the checks that apply to a prompt, in [0, 1]. An empty response scores 0.

    Where no check applies the scores are NaN, so the prompt is rejected as not scored: a constant would look like a verdict,
    and with a length penalty on top it would rank responses by length alone. `language`, `format` and `repetition` apply to
    every prompt.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Checks by name, see `CHECKS`, and their weights, which need not sum to 1.

        Raises:
            UserError: no weights, an unknown check, or a weight that is not a number above 0.
        """
        if not weights:
            raise UserError(f"rules: give at least one check a weight; there are {', '.join(CHECKS)}")
        for name, weight in weights.items():
            if name not in CHECKS:
                raise UserError(f"rules: there is no check {name}; there are {', '.join(CHECKS)}")
            if not 0 < weight < math.inf:
                raise UserError(f"rules: the weight of {name} is {weight}; give a number above 0")
        self.weights = dict(weights)

    def marks(self, group: Group) -> dict[str, list[float]]:
        """N marks of each check that applies to the group, by the check's name."""
        found = {name: CHECKS[name](group) for name in self.weights}
        written = [bool(response.strip()) for response in group.responses]
        return {
            name: [mark * some for mark, some in zip(marks, written, strict=True)]
            for name, marks in found.items()
            if marks is not None
        }

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[float]]]:
        """See `reward.interface.RewardModel`."""
        for place, group in enumerate(groups):
            marks = self.marks(group)
            total = sum(self.weights[name] for name in marks)
            yield (
                place,
                [
                    sum(self.weights[name] * row[i] for name, row in marks.items()) / total if marks else math.nan
                    for i in range(len(group.responses))
                ],
            )


# Checks.
def _demands(group: Group) -> list[Demand]:
    """The format demands of the last user turn, read in the language that it is written in."""
    asked = next((turn["content"] for turn in reversed(group.prompt) if turn["role"] == "user"), "")
    request, _ = split_input(asked)
    written = detect(request)
    return demands(request, group.lang if written == "other" else written)


def constraints(group: Group) -> list[float] | None:
    """Share of the instruction's format demands that a response keeps; applies where there are demands."""
    if not (asked := _demands(group)):
        return None
    return [sum(not broken(demand, text, group.lang) for demand in asked) / len(asked) for text in group.responses]


def valid_json(group: Group) -> list[float] | None:
    """1 for one JSON object or array, in a Markdown fence or not; applies where the instruction asks for JSON.

    Whether the object has the keys that were asked for is left to `constraints`.
    """
    if not any(demand.kind == "json" for demand in _demands(group)):
        return None
    return [float(not broken(Demand("json"), text, group.lang)) for text in group.responses]


_CODE = re.compile(r"`[^`\n]+`|\\[A-Za-z]+")
_SCRIPT = {"en": "latin", "ko": "hangul"}


def language(group: Group) -> list[float] | None:
    """1 where `align.core.language.detect` names the group's language, else the share of letters in its script.

    Code and LaTeX commands are left out, and what then has no letters (a number, say) is right in every language. English
    is not told from other languages in Latin script. Applies to en and ko.
    """
    if (script := _SCRIPT.get(group.lang)) is None:
        return None

    def mark(text: str) -> float:
        prose = _CODE.sub(" ", FENCE.sub("\n", text))
        return 1.0 if not any(letter_counts(prose)) or detect(prose) == group.lang else script_shares(prose)[script]

    return [mark(text) for text in group.responses]


_RULE = re.compile(r"\s*:?-+:?\s*")


def _cells(line: str) -> list[str]:
    """The cells of a Markdown table row; a line without a bar has none."""
    return re.split(r"(?<!\\)\|", re.sub(r"^\||(?<!\\)\|$", "", line.strip())) if "|" in line else []


def _tables(text: str) -> list[bool]:
    """For each Markdown table (a row, a rule under it and what follows), whether its rows are equally wide."""
    rows = [_cells(line) for line in FENCE.sub("\n", text).split("\n")]
    found = []
    for filled, block in groupby(rows, bool):
        lines = list(block) if filled else []
        rule = next((i for i, row in enumerate(lines) if i and all(_RULE.fullmatch(cell) for cell in row)), None)
        if rule is not None:
            found.append(len({len(row) for row in lines[rule - 1 :]}) == 1)
    return found


def markdown(group: Group) -> list[float]:
    """Share of a response's code fences that are closed and of its tables whose rows are equally wide; 1 without either."""
    marks = []
    for text in group.responses:
        parts = [bool(fence[3]) for fence in FENCE.finditer(text)] + _tables(text)
        marks.append(sum(parts) / len(parts) if parts else 1.0)
    return marks


def no_repetition(group: Group) -> list[float]:
    """1 - the share of word 4-grams that occurred before in the response."""
    return [1 - repetition(text) for text in group.responses]


def exact_answer(group: Group) -> list[float] | None:
    """1 where the final answer equals the reference, else 0; applies where there is a reference. See `answers_equal`."""
    if not group.reference.strip():
        return None
    return [float(answers_equal(text, group.reference)) for text in group.responses]


CHECKS: dict[str, Check] = {
    "constraints": constraints,
    "language": language,
    "format": markdown,
    "json": valid_json,
    "repetition": no_repetition,
    "exact_answer": exact_answer,
}


# Final answers.
@dataclass(frozen=True)
class _Number:
    """Digits as written and what a word or sign after them multiplies them by: "7만" and "50%" are 7 and 50, scaled."""

    digits: Fraction
    scale: Fraction = Fraction(1)

    def equals(self, other: _Number) -> bool:
        """Equal values; or equal digits where one side leaves its scale to the question ("How many percent?")."""
        unscaled = self.scale == 1 or other.scale == 1
        return self.digits * self.scale == other.digits * other.scale or (unscaled and self.digits == other.digits)


_SCALES = {
    "십": 10, "백": 100, "천": 1000, "만": 10**4, "억": 10**8, "조": 10**12,
    "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?+"
_NUMBER = re.compile(
    r"(?P<sign>(?<![A-Za-z0-9)%])(?<![0-9)%] )(?:[-−–]|\b(?:negative|minus) |마이너스 ?|영하 ?))?"
    r"(?:(?:\bUS)?[$€£¥₩] ?(?P<inner>[-−])?)?"
    r"(?<![A-Za-z0-9_^])(?<![0-9]\.)(?<![_^]\{)"  # not within a word or a decimal, no exponent, no index
    rf"(?:(?P<korean>(?:{_DIGITS}(?:[십백천]?[만억조]|[십백천]) ?)++(?:{_DIGITS})?+)"
    r"|(?P<whole>[0-9]{1,6}) (?P<part>[0-9]{1,3})/(?P<of>[0-9]{1,3})(?![0-9/])"
    rf"|(?P<top>{_DIGITS}|(?<!\.)\.[0-9]++)(?: ?/ ?(?P<bottom>{_DIGITS}))?+)(?! ?\^)"
    r"(?: ?(?P<scale>%|(?:percent|thousand|million|billion|trillion)\b|퍼센트|프로(?![가-힣])))?",
    re.I,
)
_LONGEST = 100  # characters of a number


def _number(match: re.Match[str]) -> _Number | None:
    """The value of a match of `_NUMBER`; None for a fraction over 0 and for endless digits."""
    if len(match[0]) > _LONGEST:
        return None
    sign = -1 if match["sign"] or match["inner"] else 1
    if match["korean"]:
        parts = [
            (Fraction(digits.replace(",", "")), math.prod(_SCALES[unit] for unit in units))
            for digits, units in re.findall(rf"({_DIGITS})([십백천만억조]*)", match["korean"])
        ]
        scales = [scale for _, scale in parts]
        if scales == sorted(set(scales), reverse=True) and len(parts) > 1:
            return _Number(sign * sum((digits * scale for digits, scale in parts), Fraction(0)))
        return _Number(sign * parts[-1][0], Fraction(parts[-1][1]))  # "5만 10만" are two numbers
    if match["whole"]:
        over = int(match["of"])
        return _Number(sign * (int(match["whole"]) + Fraction(int(match["part"]), over))) if over else None
    top, bottom = (Fraction(text.replace(",", "")) for text in (match["top"], match["bottom"] or "1"))
    word = (match["scale"] or "").lower()
    scale = Fraction(_SCALES[word]) if word in _SCALES else Fraction(1, 100) if word else Fraction(1)
    return _Number(sign * top / bottom, scale) if bottom else None


_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x2044: "/", 0xA0: " ", 0x3000: " "}
_LATEX = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"(?<=[0-9])\\frac(?![A-Za-z])"), r" \\frac"),  # a mixed number
    (re.compile(r"\\frac ?\{ ?(-?[0-9.,]+) ?\} ?\{ ?([0-9.,]+) ?\}|\\frac ?([0-9]) ?([0-9])"), r"\1\3/\2\4"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox) ?\{([^{}]*)\}"), r" \1"),
    (re.compile(r"\^(?:\{?\\circ\}?|°)"), "°"),
    (re.compile(r"(?<=[0-9])\{,\}(?=[0-9])"), ","),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[,!;:()\[\]]"), ""),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\*\*|__|`"), ""),
)


def _plain(text: str) -> str:
    """Without emphasis, LaTeX around numbers, full-width characters and characters that are fractions."""
    text = re.sub("[¼-¾⅐-⅞]", lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFC", text).translate(_FULL_WIDTH)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text.strip()


def _boxed(text: str) -> str | None:
    """What the last \\boxed{...} holds; None without one that is closed."""
    if (start := text.rfind("\\boxed{")) < 0:
        return None
    depth = 0
    for match in re.finditer("[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return text[start + len("\\boxed{") : start + match.start()]
    return None


_NAMED = re.compile(
    r"\banswer\b(?: (?:to|for|of) [^.\n:]{1,80}?)?[ \"*_]*"
    r"(?:\b(?:is|equals|(?:w|sh)ould be|will be|comes to)\b|[:=\n])"
    r"|(?<![가-힣])(?:최종 ?)?(?:정답|해답|답안|답변|답)[ \"*_]*[은는이:=\n]",
    re.I,
)
_LEAD = re.compile(
    r"[\s*_\"'“‘(\[:]*(?:(?:about|approximately|roughly|exactly|only|a total of|총|약|모두|바로|대략|정확히) ?)?"
    r"(?:[A-Za-z]\w{0,2} ?= ?)?[*_(\[]*"
)
_NO_RESULT = re.compile(r"\s*[-−–*×÷+/x]\s*[$(]?[0-9]|\s?[xyznπ√](?![A-Za-z])|[이가] 아니")  # 9 * 2, 5x, 5가 아니라
# One lower-case letter that names no unit is a variable: 5 m, but 5x.
_UNIT = re.compile(
    r"°?[CF]?[\s.)\]*_$%°!。]*"
    r"|(?:\s*-?(?![abcefijknopqruvwxyzπ]\b)[^\W\d_π√]++(?:(?<=[mt])\^\{?[23]\}?|/[^\W\d_]++)?){1,3}[\s.)\]*_$!。]*"
)


def _number_at(text: str, place: int) -> re.Match[str] | None:
    """The number that begins at a place of a text, after "about", an opening bracket or "x ="."""
    lead = _LEAD.match(text, place)
    return _NUMBER.match(text, lead.end() if lead else place)


def _quantity(text: str) -> _Number | None:
    """The number that a text is as a whole, with at most three words for its unit; "9 * 2 = 18" is 18."""
    start = text.find("=") + 1 if text.count("=") == 1 else 0
    match = _number_at(text, start)
    return _number(match) if match and _UNIT.fullmatch(text, match.end()) else None


def _named_number(text: str) -> _Number | None:
    """The number that the last "the answer is" (정답은) leads to, directly or by an equation."""
    for marker in reversed(list(_NAMED.finditer(text))):
        match = _number_at(text, marker.end())
        if match is None or _NO_RESULT.match(text, match.end()):
            line = text[marker.end() :].lstrip().partition("\n")[0]
            match = _number_at(line, line.rfind("=") + 1) if "=" in line else None
        if match and (found := _number(match)):
            return found
    return None


def _last_number(text: str) -> _Number | None:
    found = [number for match in _NUMBER.finditer(text) if (number := _number(match))]
    return found[-1] if found else None


def _final_number(text: str) -> _Number | None:
    """The number that a solution ends in: boxed, else on a last line after ####, else named, else the last one."""
    boxed, text = _boxed(text), _plain(text)
    if boxed is not None:
        return _quantity(_plain(boxed))
    last = text.rpartition("\n")[2]
    return (
        (_quantity(last.lstrip("# ")) if last.startswith("####") else None)
        or _named_number(text)
        or _last_number(MARKER.sub("", text))
        or _last_number(text)
    )


def _words(text: str) -> str:
    """A text for comparison: case, emphasis, quotation marks, outer punctuation and a leading article do not count."""
    text = re.sub(r"[*`_$\"'“”‘’]", "", unicodedata.normalize("NFKC", _plain(text)).casefold())
    return re.sub(r"^(?:the|an?) ", "", " ".join(text.split()).strip(" .,:;!?。()[]"))


def _final_texts(text: str) -> list[str]:
    """What a solution's final answer may be as words: boxed, after ####, named; the whole of it and its last line else."""
    boxed, plain = _boxed(text), text.strip()
    last = plain.rpartition("\n")[2]
    if boxed is not None:
        return [boxed]
    if last.startswith("####"):
        return [last.lstrip("# ")]
    if named := list(_NAMED.finditer(plain)):
        line = plain[named[-1].end() :].lstrip(" \n*_:").partition("\n")[0]
        return [plain, line, re.split(r"[.!?。](?:\s|$)", line)[0]]
    return [plain, last]


def answers_equal(response: str, reference: str) -> bool:
    """Whether the final answer of a response is the reference, in English or Korean.

    The reference may be the answer or a solution that ends in one (GSM8K's ####, \\boxed{}). If it is a number with at most
    three words of unit, numbers are compared as exact fractions: 1,234 = 1234, 42.0 = 42, 0.5 = 1/2 = 50%, $5 = 5 dollars,
    7만 = 70,000; units are not compared. Otherwise words are compared without case and outer punctuation, and a Korean
    answer may end in 입니다 or 이다. A number in words (five, 다섯) is not read, and no expression is worked out.

    Args:
        response: the model's text; its answer is what is boxed, else after #### on the last line, else what follows the
            last "the answer is" or 답은, else the last number, or for words the whole text or its last line.
        reference: the right answer.
    """
    boxed, last = _boxed(reference), reference.strip().rpartition("\n")[2]
    stated = boxed or (last.lstrip("# ") if last.startswith("####") else "") or reference
    if wanted := _quantity(_plain(stated)):
        found = _final_number(response)
        return found is not None and found.equals(wanted)
    right = _words(stated) or stated.strip()
    forms = [words for text in _final_texts(response) for words in (_words(text), text.strip())]
    return any(right in (words, re.sub("(?:입니다|이에요|예요|이다)$", "", words).strip()) for words in forms)
