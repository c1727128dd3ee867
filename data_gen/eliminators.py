"""Why a child of instruction evolution is dropped: predicates on texts, each with the reason it gives.

Evol-Instruct (arXiv 2304.12244, section 3) names four failures: no information gain, a refusal, nothing but punctuation and
function words, words copied from the evolving prompt. The others are failures of the rewriting itself, such as those that
Auto Evol-Instruct (arXiv 2406.00770) collects. What is read as a refusal, chatter or a demand must stand in the request;
what an instruction carries is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from align.core.language import detect, words
from data_gen.contradictions import contradictory_demands, denies_premise
from data_gen.normal_form import normal_form
from data_gen.request_parts import (
    QUOTES,
    REWORDING,
    asks,
    content,
    is_statement,
    points_at_nothing,
    request_and_inputs,
    sentence_list,
    stems,
)

COPIED_WORDS = 5  # in a row, from a worked example
KEPT_INPUT = 0.5  # of the words of the parent's input
SIMILAR = 0.95  # of the letters and digits
FEW_WORDS = 2  # that a child adds to its parent, if it hardly changes it
MIN_LEAKED = {"en": 3, "ko": 5}  # content units; Korean bigrams are about two to a word
LEAKED = 0.8
MAX_SCORE = 10  # of a judge
BREADTH = "breadth"  # the one operator that asks about something else


def only_punctuation_or_stop_words(child: str, lang: str) -> bool:
    """Nothing but function words."""
    return not content(child, lang)


def switches_language(child: str, lang: str) -> bool:
    """The request is not in its parent's language; what it carries or quotes may be in another."""
    request, _ = request_and_inputs(child)
    return detect(request) != lang and detect(QUOTES.sub(" ", request)) != lang


# The first sentence alone: later ones may quote an apology, as an example or in a letter.
_APOLOGY = {
    "en": re.compile(
        r"^(?:(?:oh|no),? )?(?:(?:i['’]m|i am|we['’]re|we are) )?(?:(?:so|very|really|truly) )?sorry\b"
        r"\s*(?:$|[,.!;—–]|but\b|(?:that )?(?:i|we) (?:can|could|am|do)(?:not|n['’]t|\b))"
        r"|^(?:unfortunately|regrettably),? i (?:cannot|can['’]?t|am (?:unable|not able)|do(?: not|n['’]t) have access)\b"
        r"|^(?:my|our) apologies\s*(?:$|[,.!]|but\b)|^i apologi[sz]e\s*(?:$|[,.!]|but\b)"
        r"|^as an? (?:ai|artificial intelligence)(?: (?:language )?(?:model|assistant|system))?,? (?:i|we)\b",
        re.IGNORECASE,
    ),
    "ko": re.compile(
        r"^(?:정말 |대단히 |매우 |너무 )?(?:죄송|미안)(?:합니다만|합니다|해요|하지만|한데|스럽지만)"
        r"(?!\s?(?:[\"'”’」]|라|란|와|는|은|를))"
    ),
}
_REFUSAL = {
    "en": re.compile(
        r"^(?:(?:i['’]m|i am) (?:\w+ )?sorry,? (?:but )?|(?:unfortunately|however|regrettably|but),? )?"
        r"(?:i|we)(?:['’]m| am| are)? ?"
        r"(?:cannot|can['’]?t|can not|could(?: not|n['’]t)|won['’]t|will not|unable to|not able to|decline to) (?:\w+ly )?"
        r"(?:(?:answer|fulfil+|rewrite|provide|generate|create|discuss|complete|do) "
        r"(?:that|this|it|such|any|your|an? (?:answer|response)|the (?:question|request|prompt|instruction|answer))\b"
        r"|(?:help|assist)(?: you)?(?: with (?:that|this|your)\b|\.|$)|comply\b)[^?]*$",
        re.IGNORECASE,
    ),
    "ko": re.compile(
        r"^(?:저는 )?(?:AI|인공지능)(?: ?언어)?(?: ?(?:모델|비서))?(?:로서|으로서|라서|이라서|이기 때문에|이므로)(?!의)"
        r"[^?]*(?:없|못|모르|모릅)[^?]*$"
        r"|(?:답변?|대답|도움|도와|응답|말씀)[을를은는]? ?(?:해 ?)?드(?:릴|리지|리기)[^?]{0,8}(?:없|못|어렵)[^?]*$"
        r"|^(?:(?:저는|제가|이|그|해당|그런|이런|요청하신) [^?]{0,25})?(?:답변?|대답)[을를]? ?(?:할|하지) ?(?:수 없|못)"
        r"[^?]*[다요][.!]?$"
    ),
}  # fmt: skip


def is_refusal(text: str, lang: str) -> bool:
    """Begins with an apology, or has a sentence that refuses. A text about apologies or refusals is none."""
    found = sentence_list(request_and_inputs(text)[0])
    return any(map(_APOLOGY[lang].search, sentence_list(text)[:1])) or any(map(_REFUSAL[lang].search, found))


_CHATTER = re.compile(
    r"^(?:(?:sure|certainly|absolutely|of course|great question|good question)\s*[!:]|sure,"
    r"|(?:certainly|absolutely),? (?:here|i)\b"
    r"|(?:okay|ok|alright|of course|great|yes)[,!.]? (?:here(?:['’]s| is| are)|i['’]ll|let me|i can)\b"
    r"|here(?:['’]s| is| are) (?:(?:the|your|an?|my|some|one|two|three|\d) )*(?:(?:more|slightly|rewritten|revised|evolved|"
    r"improved|new|updated|modified|complex|deeper|harder|possible|alternative) )+"
    r"(?:question|prompt|version|instruction|request|rewrite)s?\b)"
    r"|(?:^|[.?!] )(?:(?:i )?hope (?:this|that) helps|let me know if you (?:need|would|have|['’]d|want)"
    r"|this (?:rewritten|new|revised|evolved) (?:question|prompt|version|instruction)\b"
    r"|도움이 되(?:었|셨|길|기를|시길)[^?]*$)"
    r"|^(?:물론입니다|물론이죠|물론이에요|알겠습니다|좋은 질문입니다|좋습니다)\s*[.,!:]|^(?:네|예)[,.!](?! ?아니)"
    r"|^(?:다음은|아래는|여기) [^.?]{0,25}(?:질문|프롬프트|지시문|버전)(?:입니다|이에요|예요|이 있습니다)",
    re.IGNORECASE,
)


def has_chatter(child: str) -> bool:
    """The model talks to the one who asked for the rewriting, before or after the child."""
    return bool(_CHATTER.search(request_and_inputs(child)[0].lstrip()))


_PROMPT_WORDING = re.compile(
    r"#\s?(?:(?:the|finally|rewritten|given|new|original) )*(?:prompt|instruction|question|plan|methods? list)\b"
    r"|\b(?:given|rewritten|new|original) prompt\b|\brewritten (?:question|instruction|version)\b"
    r"|\bgiven (?:question|instruction)\b"
    r"|^\W*(?:new|original) (?:question|instruction)\s*[:#]|주어진 (?:질문|프롬프트|지시문)|질문을 고쳐 (?:쓴|썼|쓰면|써)"
    r"|(?:고친|고쳐 쓴|수정된|다시 쓴) (?:질문|프롬프트|지시문)|새(?:로운)? (?:질문|프롬프트|지시문)\s*[:：]",
    re.IGNORECASE | re.MULTILINE,
)


def copies_prompt_wording(parent: str, child: str) -> bool:
    """The child talks about the rewriting task itself, in words that its parent does not hold."""
    found = _PROMPT_WORDING.finditer(request_and_inputs(child)[0])
    return any(match[0].lower() not in parent.lower() for match in found)


def copies_example(parent: str, child: str, examples: Sequence[str]) -> bool:
    """The child repeats words in a row of a worked example of its prompt, which its parent does not hold."""

    def grams(text: str) -> set[tuple[str, ...]]:
        w = words(text)
        return {tuple(w[i : i + COPIED_WORDS]) for i in range(len(w) - COPIED_WORDS + 1)}

    own = grams(child) - grams(parent)
    return any(own & grams(example) for example in examples)


_ITEM = re.compile(
    r"(?:^|(?<=\s))(?:\(?\d{1,2}[.)]|[-*•]"
    r"|(?:question|option|version|alternative|q|질문|버전|대안|선택지) ?\d{1,2}\s*[.:)]?)\s+",
    re.IGNORECASE,
)


def several_requests(child: str) -> bool:
    """The child is a list of requests to choose from. One request that leads into numbered parts or demands is none."""
    request = request_and_inputs(child)[0].strip()
    items = [item for item in _ITEM.split(request) if item.strip()]
    return bool(_ITEM.match(request)) and len(items) >= 2 and all(any(map(asks, sentence_list(item))) for item in items)


def lost_input(parent: str, child: str) -> bool:
    """Most of the parent's input is not in an input of its kind in the child; a passage may stand anywhere in it."""
    kept = request_and_inputs(child)[1]
    for kind, text in request_and_inputs(parent)[1]:
        wanted = set(words(text))
        texts = [child] if kind == "passage" else [other.text for other in kept if other.kind == kind]
        if wanted and max((len(wanted & set(words(t))) / len(wanted) for t in texts), default=0.0) < KEPT_INPUT:
            return True
    return False


def contradicts(parent: str, child: str, lang: str) -> bool:
    """The child demands what excludes itself, or denies what its parent takes as given."""
    request, _ = request_and_inputs(child)
    return contradictory_demands(request, lang) or denies_premise(request_and_inputs(parent)[0], request, lang)


def no_information_gain(parent: str, child: str, lang: str) -> bool:
    """The child says nothing that the parent did not: no new content unit."""
    return not content(child, lang) - content(parent, lang)


def too_close(parent: str, child: str, operator: str, lang: str) -> bool:
    """The parent reworded, or with hardly a letter changed. In breadth one added word makes no new prompt either."""
    if lost_input(child, parent):
        return False  # it carries what its parent does not
    asked, now = request_and_inputs(parent)[0], request_and_inputs(child)[0]
    before, after = stems(asked, lang), stems(now, lang)
    if before <= after and len(after - before) <= (operator == BREADTH):
        return True
    if len(set(words(now)) - set(words(asked))) > FEW_WORDS:
        return False
    matcher = SequenceMatcher(None, normal_form(asked), normal_form(now), autojunk=False)
    return matcher.quick_ratio() > SIMILAR and matcher.ratio() > SIMILAR


def loses_subject(parent: str, child: str, lang: str) -> bool:
    """An in-depth child shares no content with its parent but words of asking, such as "explain"."""
    return not content(child, lang) & content(parent, lang) - REWORDING


# Words and Korean endings that join what a fact says; a child that gives it away puts them otherwise.
_LINKING = frozenset([
    "because", "since", "while", "until", "after", "before", "during", "too", "only", "just", "even", "both", "thus", "due",
    "하므", "므로", "때문", "문에", "으로", "에서", "하여", "해서",
])  # fmt: skip


def answer_leak(parent: str, child: str, fact: str, lang: str) -> bool:
    """The request holds nearly all that the fact says beyond the parent; what stands in a carried passage is no leak."""
    secret = {unit for unit in content(fact, lang) - content(parent, lang) - _LINKING if not unit.endswith("다")}
    told = secret & content(request_and_inputs(child)[0], lang)
    return len(secret) >= MIN_LEAKED[lang] and len(told) >= LEAKED * len(secret)


def blows_up(parent: str, child: str) -> bool:
    """A request longer than three times the parent's plus 20 words: Evol-Instruct's prompts allow 10 to 20 added words."""
    return len(words(request_and_inputs(child)[0])) > 3 * len(words(request_and_inputs(parent)[0])) + 20


def asks_nothing(child: str, lang: str) -> bool:
    """A statement: no sentence of the request is a question or an imperative, wherever it stands."""
    return is_statement(request_and_inputs(child)[0], lang)


def no_rise_in_difficulty(parent_score: float | None, child_score: float | None) -> bool:
    """The child is no harder than its parent; both scored by the same judge (1 to 10) or measure (in [0, 1)).

    Above a judge's 10 nothing can rise, so a child that keeps it passes, as does one without both scores.
    """
    return parent_score is not None and child_score is not None and child_score <= parent_score and child_score < MAX_SCORE


def elimination_reason(
    parent: str,
    child: str,
    operator: str,
    lang: str,
    *,
    fact: str,
    examples: Sequence[str],
    parent_score: float | None = None,
    child_score: float | None = None,
) -> str:
    """Why a child is dropped (the first reason in a fixed order), or an empty text.

    Args:
        parent, child: whole instructions, with the inputs that they carry.
        operator: breadth may leave its parent's words and input behind, and need not be harder; any other is in-depth.
        fact: the statement of the knowledge unit that the parent asks for; an empty text where there is none.
        examples: the children among the worked examples of the evolving prompt.
        parent_score, child_score: their difficulty, by the same judge or measure; without both, it is not compared.
    """
    in_depth = operator != BREADTH
    checks = (
        ("no_content", lambda: only_punctuation_or_stop_words(child, lang)),
        ("language_switch", lambda: switches_language(child, lang)),
        ("refusal", lambda: is_refusal(child, lang)),
        ("chatter", lambda: has_chatter(child)),
        ("copied_prompt_wording", lambda: copies_prompt_wording(parent, child)),
        ("copied_example", lambda: copies_example(parent, child, examples)),
        ("several_requests", lambda: several_requests(child)),
        ("lost_input", lambda: in_depth and lost_input(parent, child)),
        ("points_at_nothing", lambda: points_at_nothing(child)),
        ("contradiction", lambda: contradicts(parent, child, lang)),
        ("no_information_gain", lambda: no_information_gain(parent, child, lang)),
        ("too_close", lambda: too_close(parent, child, operator, lang)),
        ("lost_subject", lambda: in_depth and loses_subject(parent, child, lang)),
        ("answer_leak", lambda: answer_leak(parent, child, fact, lang)),
        ("length_blow_up", lambda: blows_up(parent, child)),
        ("not_a_request", lambda: asks_nothing(child, lang)),
        ("no_rise_in_difficulty", lambda: in_depth and no_rise_in_difficulty(parent_score, child_score)),
    )
    return next((reason for reason, fails in checks if fails()), "")
