"""Personal data in text: ten types, found by their form, their check digits and the words before them, and masked.

Types are tried from the most to the least certain (`_RULES`); a character belongs to one value. One exception: what
has the form of a phone number is an account only with 계좌 or "account" directly before it, not after a bank's name.
Words that ask for a type (계좌, 여권, RRN ...) or speak against it (주문번호, ISBN ...) count up to the last placeholder,
so that masking one value does not change what is said about the next.

Sources: Luhn and issuer prefixes, ISO/IEC 7812-1. IBAN, ISO 13616-1, lengths of the SWIFT registry, mod 97 of ISO 7064.
Resident number, public descriptions as in python-stdnum `kr.rrn`; for foreigners the same sum from 13 in place of 11.
Business number, `kr.brn`. Phones, E.164, North American Numbering Plan, Korean area codes. IP, RFC 6890.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from calendar import monthrange
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address

PII_TYPES = (
    "email", "phone", "card", "ip", "resident_number", "business_number", "passport", "driver_license",
    "account_number", "vehicle_number",
)  # fmt: skip
Found = tuple[int, int] | None
# A rule's last word: gets a match in the text without the values found so far, and up to 64 characters before it in the
# text with them (room for a label and the reach of 40), in lower case and backwards, so that the nearest come first.
Accept = Callable[[re.Match[str], str], Found]


@dataclass(frozen=True)
class Span:
    """One value, `text[start:stop]`. It does not hold the value, so printing or logging it gives nothing away."""

    type: str
    start: int
    stop: int


# One for one: full-width ASCII, hyphens and dashes (with ㅡ and ー, typed in their place), unusual spaces.
_LOOKALIKES = (
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\ufe58\ufe63\u3161\u30fc", "-")
    | dict.fromkeys("\u00a0\u2002\u2003\u2005\u2007\u2009\u200a\u202f\u3000", " ")
)
_ODD = re.compile(f"[{''.join(_LOOKALIKES)}\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff]")
_PLACEHOLDER = re.compile(rf"\[({'|'.join(t.upper() for t in PII_TYPES)})-([0-9]{{1,9}})\]")

# "\0" stands in place of placeholders and of values found before. Hangul may touch a number: particles do.
_LEFT, _RIGHT = r"(?<![\w\0+])(?<!\d[-.])", r"(?![\w\0]|-[0-9A-Za-z]|\.\d)"
_END = re.compile(_RIGHT, re.A)
_NO_DIGIT = re.compile("[^0-9]+")
# Labels; a space stands for any blanks and punctuation, or nothing.
_CALLS = "전화|휴대폰|핸드폰|연락처|고객 센터|콜 센터|문의|팩스|☎|📞|tel|phone|telephone|mobile|cell|fax|whatsapp"
_THINGS = "운송장|송장|택배|시리얼|바코드|isbn|issn|imei|ean|sku|serial|s/n|tracking|invoice|barcode|ticket|ref|reference"
_THINGS += "|주문 번호|접수 번호|예약 번호|승인 번호|거래 번호|문서 번호|상품 번호|상품 코드|관리 번호|고객 번호|회원 번호"
_THINGS += "|일련 번호|제품 번호|모델 번호|등기 번호|사건 번호|청구 번호|order number|order no|order id|order #"
_BANKS = "은행|뱅크|농협|수협|신협|신한|새마을 금고|우체국|kb|nh|sc|ibk|kdb|bank"


def _form(pattern: str) -> re.Pattern[str]:
    """A number in groups that is no part of a longer one."""
    return re.compile(f"{_LEFT}(?:{pattern}){_RIGHT}", re.A)


def _backwards(labels: str) -> str:
    """A pattern for labels in text that is read backwards; Latin ones are whole words, short ones no units (9 KB)."""
    # A set of first characters and no look-around before them: `re` then skips to the next such character.
    parts = [(part[0], part[1:].replace(" ", r"[\W_]{0,3}"), part.isascii()) for part in labels[::-1].split("|")]
    latin = r"{0}(?<![a-z]{0}){1}(?![a-z]{2})"
    units = (r"|[0-9]| [0-9]" if len(rest) < 2 else "" for _, rest, _ in parts)
    return "|".join(latin.format(a, b, u) if ascii_ else a + b for (a, b, ascii_), u in zip(parts, units, strict=True))


def _directly(labels: str) -> re.Pattern[str]:
    """Matches backwards: spaces and punctuation, a particle, "number", and a label."""
    between = r"[\W_]{0,12}(?:(?:si|saw)\s|[은는이가의을를로도와과])?(?:(?:호번|rebmun|on)\s?)?"
    return re.compile(f"{between}(?:{_backwards(labels)})")


_CALL, _THING = _directly(f"{_CALLS}|call|text"), _directly(_THINGS)
_AGAINST = re.compile(_backwards(f"{_THINGS}|{_CALLS}|카드|일시|사업자|주민"))
# Not `git@github.com:org/repo.git`, `user@host.com:~`, `pkg@1.2.3-rc.x`, `logo@2x.png`, `getty@tty1.service` of systemd.
_EMAIL = re.compile(
    r"(?a)@(?!\d+\.\d+\.)(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,10}(?!(?i:png|jpe?g|gif|svg|webp|avif"
    r"|bmp|ico|[cm]?js|jsx|tsx?|s?css|html?|json|txt|pdf|xml|ya?ml|service|socket|timer|slice|scope|swap|mount)"
    r"(?![A-Za-z0-9-]))(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,24})(?![\w\0]|\.[A-Za-z]{2}|:(?:[~/]|[\w.\0-]+/))"
)
_LOCAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-'"
_IBANS = (  # countries and lengths
    "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18"
    "FR27GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27"
    "MD24ME22MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27"
    "SO23ST25SV28TL23TN24TR26UA29VA22VG24XK20YE30"
)
_IBAN_FORMS = (rf"(?<={c})(?:[ -]?[0-9A-Z]){{{int(n) - 2}}}" for c, n in re.findall("([A-Z]+)([0-9]+)", _IBANS))
_IBAN = re.compile(rf"[A-Z](?<![\w\0].)[A-Z](?=\d\d)(?:{'|'.join(_IBAN_FORMS)})(?![\w\0])", re.A)
_CARD = _form(r"(?P<head>\d{4}(?:[- ]\d{4}){3})(?:[- ]\d{1,3})?|(?:\d{4}[- ]){3}\d|\d{4}[- ]\d{6}[- ]\d{4,5}|\d{13,19}")
_ISSUER = re.compile(  # with the lengths that each gives out
    r"4(?:.{12}|.{15}|.{18})|5[1-5].{14}|2(?:22[1-9]|2[3-9].|[3-6]..|7[01].|720).{12}|3[47].{13}"
    r"|(?:6011|65..|64[4-9].|62..|35..).{12,15}|3[68].{12}|9.{15}"
)
_DOUBLED = str.maketrans("0123456789", "0246813579")  # twice the digit, and of that the sum of its digits
_RESIDENT = _form(r"\d{6}(?: - |[- ])?\d{7}")
_RESIDENT_LABEL = _directly("주민 등록 번호|주민 번호|외국인 등록 번호|resident registration|alien registration|rrn")
_LICENSE = _form(r"(?:1[1-9]|2[0-8])(?:-\d\d-\d{6}-\d\d|\d{10})")
_LICENSE_LABEL = _directly("운전 면허|운전 면허증|면허 번호|driver s license|driver s licence|driver license|driver licence")
_BUSINESS = _form(r"(?!0)(?:\d{3} ?- ?\d\d ?- ?\d{5}|\d{10})")
_BUSINESS_LABEL = _directly("사업자 등록 번호|사업자 번호|business registration")
_ACCOUNT = _form(r"(?:\d{2,7}(?:-\d{1,8}){1,4}|\d{10,16})(?! ?(?:원|명|개|건|달러|won\b|KRW))")
_ACCOUNT_LABEL = re.compile(_backwards(f"{_BANKS}|계좌|입금|송금|이체|iban|acct|a/c|account number|account no|account #"))
_ACCOUNT_NAMED = _directly("계좌|account")
_AREA = r"1[016-9]|2|3[1-3]|4[1-4]|5[1-5]|6[1-4]|70|80|50[0-9]"
_PHONE = re.compile(
    rf"(?a)(?:(?=\()|{_LEFT})(?:(?:(?P<open>\()?0|82-0?)(?P<area>{_AREA})(?(open)\)|\)?)"
    r"|(?:1[-. ])?(?:\([2-9]\d\d\)|[2-9]\d\d)(?=[-. ]?[2-9]\d\d[-. ]?\d{4}(?!\d)))"
    rf"(?P<first> - |[-. ]?)\d{{3,4}}(?P<second> - |[-. ]?)\d{{4}}{_RIGHT}"
)
_WORLD = re.compile(
    r"(?a)(?:\(\+[1-9]\d{0,2}\)\d{0,12}|(?<![\w\0)])\+[1-9]\d{0,14})"
    r"(?:[-. ]?\(\d{1,4}\)\d{0,8}|[-. ](?:\d{2,12}|\d(?=[-. ]\d\d))){0,7}"
)
_WORLD_DIGITS = re.compile(  # the country codes of E.164; the two countries whose lengths are known here come first
    rf"1[2-9]\d\d[2-9]\d{{6}}|820?(?:{_AREA})\d{{7,8}}|(?=\d{{8,15}}$)(?:7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[146]"
    r"|9[0-58]|(?:2[1-69]|3[578]|42|5[09]|6[7-9]|8[0578]|9[679])\d)(?!00)\d+"
)
_IPV4 = re.compile(r"(?<![\w\0])(?<!\d\.)\d{1,3}(?:\.\d{1,3}){3}(?![\w\0]|\.\w|-[A-Za-z]| ?(?:버전|버젼|절))", re.A)
# Only 2000::/3 is given out, so that `std::abs` and 12:30:45 are no candidates.
_IPV6 = re.compile(r"[23](?<![\w:.\0].)[0-9A-Fa-f]{3}:[0-9A-Fa-f:.]{2,41}(?![\w:\0])", re.A)
_VERSIONS = (
    "version|versions|ver|v|rev|revision|patch|hotfix|item|items|release|releases|"
    "firmware|build|oid|section|sections|sec|chapter|버전|버젼|펌웨어|§"
)
_VERSION = re.compile(  # "version: 1.2.3.4", "versions 1.2.3.4 and 1.2.3.5", "Chrome/1.2.3.4"
    r"(?:[^\w§]|[_은는이가의및]|\d++(?:\.\d++)+|(?:si|dna|o[t]|ro|rebmun)(?![a-z]))*+"
    rf"(?:절(?![가-힣])|{_backwards(_VERSIONS)})|/\w*[a-z](?![\w/.:-])"
)
_PASSPORT = _form(
    r"[MSRGD]\d{3}[A-Z]\d{4}|[A-Z]{1,2}\d{6,8}|\d{9}|[CFGHJK](?=.*\d)[CFGHJKLMNPRTVWXYZ\d]{8}"
)  # Germany: last
_PASSPORT_LABEL, _PASSPORT_WORD = (
    re.compile(_backwards("여권|passport|passportno|passportnumber")),
    re.compile("여권|passport", re.I),
)
_PLATE = r"[0-9][0-9]{1,2}[가나다라마거너더러머버서어저고노도로모보소오조구누두루무부수우주바사아자허하호배] ?[0-9]{4}"
_REGIONS = "서울|부산|대구|인천|대전|광주|울산|세종|경기|강원|충북|충남|전북|전남|경북|경남|제주"
_COUNTERS = (
    "(?:[명원개년호대건억만천조권장점회세살시분초일월주배리평톤병잔편채층쪽여]|가구|세대|마리|달러|미터|바이트|글자|단어|쪽"
    "|페이지|그램|킬로|센티|퍼센트|포인트|pcs|won|ea|krw|usd|eur)"
)
# "12조 3000억", "10주 2000명"; after a space only whole words count, because 대기 begins with 대.
# Behind a comma stands a column, or the rest of a number: "0,188호2204" and "1,200조 3000".
_VEHICLE = re.compile(
    rf"(?:(?<![0-9A-Za-z_\0])(?:{_REGIONS}) ?|(?<![^\W_])(?<!\0)(?<![0-9][-.:/~])(?!(?<=[0-9],)[0-9]{{3}}[가-힣] )){_PLATE}"
    rf"(?![0-9A-Za-z_\0%]|[-.:/~][0-9]|{_COUNTERS}| {_COUNTERS}[이가을를은는의에도과와로씩]?(?![가-힣]))"
)


def _asked(labels: re.Pattern[str], back: str, reach: int) -> bool:
    """Whether a label stands at most `reach` characters before, and none that speaks against it nearer."""
    label = labels.search(back)
    return label is not None and label.start() <= reach and not _AGAINST.search(back, 0, label.start())


def _email(m: re.Match[str], _: str) -> Found:
    text, at = m.string, m.start()
    head = text[max(0, at - 65) : at]
    # `rstrip` finds the local part in one pass; a pattern tried from every position would take quadratic time.
    local = head[len(head.rstrip(_LOCAL)) :].lstrip(".-+%'")
    before = text[max(0, at - len(local) - 64) : at - len(local)]
    bad = not 1 <= len(local) <= 64 or local.endswith(".") or ".." in local or before.endswith(("@", "\0"))
    return None if bad or re.search(r"://[^\s/@]*$", before) else (at - len(local), m.end())  # https://user:pass@host


def _iban(m: re.Match[str], _: str) -> Found:
    compact = re.sub("[ -]", "", m[0])
    return m.span() if int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1 else None


def _card(m: re.Match[str], back: str) -> Found:
    # A security code may stand behind sixteen digits: "4111 1111 1111 1111 123".
    for value in (m[0], m["head"] or ""):
        digits, stop = _NO_DIGIT.sub("", value), m.start() + len(value)
        luhn = digits[-1::-2] + digits[-2::-2].translate(_DOUBLED)  # "0" is 48
        if _ISSUER.fullmatch(digits) and (sum(luhn.encode()) - 48 * len(luhn)) % 10 == 0 and _END.match(m.string, stop):
            thing = value.isdigit() and (back.startswith("/") or _THING.match(back))  # an order number, an id in a link
            return None if thing else (m.start(), stop)
    return None


def _resident(m: re.Match[str], back: str) -> Found:
    digits = _NO_DIGIT.sub("", m[0])
    year = 100 * (18 + (digits[6] not in "90") + (digits[6] in "3478")) + int(digits[:2])
    if not ("01" <= digits[2:4] <= "12" and 1 <= int(digits[4:6]) <= monthrange(year, int(digits[2:4]))[1]):
        return None
    total = sum(int(d) * w for d, w in zip(digits, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), strict=False))
    if ((13 if digits[6] in "5678" else 11) - total % 11) % 10 == int(digits[12]):
        return None if m[0] == digits and _THING.match(back) else m.span()
    # Since October 2020 the last six digits are drawn at random: only the label tells.
    return m.span() if _RESIDENT_LABEL.match(back) else None


def _business(m: re.Match[str], back: str) -> Found:
    digits = [int(d) for d in _NO_DIGIT.sub("", m[0])]
    total = sum(d * w for d, w in zip(digits, (1, 3, 7, 1, 3, 7, 1, 3, 5, 1), strict=True)) + digits[8] * 5 // 10
    return m.span() if total % 10 == 0 and (not m[0].isdigit() or _BUSINESS_LABEL.match(back)) else None


def _account(m: re.Match[str], back: str) -> Found:
    if not 10 <= len(_NO_DIGIT.sub("", m[0])) <= 16 or not _asked(_ACCOUNT_LABEL, back, 30):
        return None
    return None if _PHONE.fullmatch(m[0]) and not _ACCOUNT_NAMED.match(back) else m.span()


def _phone(m: re.Match[str], back: str) -> Found:
    area, first = m["area"] or "", m["first"] or ")" in m[0]
    if _CALL.match(back) or (area.startswith("1") and (first or m["second"])):
        return m.span()
    # Three groups with spaces are as well three numbers of a table, ten digits without separators anything.
    plain = len(m[0]) == 11 if area == "10" else first and m["second"] and re.search(r"[-.)]", m[0])
    return m.span() if plain and not _THING.match(back) else None


def _world(m: re.Match[str], _: str) -> Found:
    # What follows may look like one more group: "+49 30 901820 2024". With separators, 13 digits are the most in use.
    for group in reversed([*re.finditer("[0-9]+", m[0])]):
        value = m[0][: group.end()]
        digits = _NO_DIGIT.sub("", value.replace("(0)", ""))
        usual = len(digits) <= 13 or len(digits) == len(value) - 1
        if usual and _WORLD_DIGITS.fullmatch(digits) and _END.match(m.string, m.start() + len(value)):
            return m.start(), m.start() + len(value)
    return None


def _ip(m: re.Match[str], back: str) -> Found:
    value = re.sub(r"(?<!:):$", "", m[0].rstrip("."))
    try:
        address = ip_address(value)
    except ValueError:
        return None
    public = address.is_global and not address.is_multicast
    return (m.start(), m.start() + len(value)) if public and not _VERSION.match(back) else None


# Type, where to look (`places` in `find_pii`), form, last word.
_RULES: tuple[tuple[str, str, re.Pattern[str], Accept], ...] = (
    ("email", "text", _EMAIL, _email),
    ("account_number", "text", _IBAN, _iban),
    ("card", "numbers", _CARD, _card),
    ("resident_number", "numbers", _RESIDENT, _resident),
    ("driver_license", "numbers", _LICENSE, lambda m, b: m.span() if "-" in m[0] or _LICENSE_LABEL.match(b) else None),
    ("business_number", "numbers", _BUSINESS, _business),
    ("account_number", "numbers", _ACCOUNT, _account),
    ("phone", "numbers", _WORLD, _world),
    ("phone", "numbers", _PHONE, _phone),
    ("ip", "dots", _IPV4, _ip),
    ("ip", "colons", _IPV6, _ip),
    ("passport", "passports", _PASSPORT, lambda m, b: m.span() if _asked(_PASSPORT_LABEL, b, 40) else None),
    ("vehicle_number", "plates", _VEHICLE, lambda m, _: m.span()),
)
_RUN = re.compile(r"[0-9][-0-9 .()]{6,}")


def _normalise(text: str) -> tuple[str, list[int]]:
    """The text with look-alikes replaced one for one and invisible characters taken out, and where those were."""
    odd = [] if text.isascii() else [*_ODD.finditer(text)]
    clean = _replace(text, ((m.start(), m.end(), _LOOKALIKES.get(m[0], "")) for m in odd))
    return clean, [m.start() for m in odd if m[0] not in _LOOKALIKES]


def _replace(text: str, edits: Iterable[tuple[int, int, str]]) -> str:
    parts, position = [], 0
    for start, stop, new in edits:
        parts += [text[position:start], new]
        position = stop
    return "".join(parts) + text[position:]


def find_pii(text: str) -> list[Span]:
    """Personal data in a text, in order and without overlap, in linear time; placeholders of `mask_pii` are no data.

    Full-width digits, invisible characters and dashes of any kind do not hide a value; positions are those in `text`.
    """
    clean, gone = _normalise(text)
    base = work = _PLACEHOLDER.sub(lambda m: "\0" * len(m[0]), clean)
    # Prose has few places for a value: from where to where one may start, and the end of what the pattern sees.
    runs = [(m[0], (max(0, m.start() - 2), m.end(), m.end() + 6)) for m in _RUN.finditer(base)]
    passports = _PASSPORT_WORD.finditer(base) if "여권" in base or "assport" in base or "ASSPORT" in base else ()
    places = {
        "text": [(0, len(base), len(base))],
        "numbers": [place for run, place in runs if len(_NO_DIGIT.sub("", run)) >= 7],
        "dots": [place for run, place in runs if run.count(".") >= 3],
        "colons": [(0, len(base), len(base))] if re.search(":[0-9A-Fa-f]{0,4}:", base) else [],
        "plates": [(max(0, m.start() - 3), m.end(), m.end() + 12) for m in re.finditer(_PLATE, base)],
        "passports": [(m.end(), m.end() + 41, m.end() + 64) for m in passports],
    }
    found: list[tuple[int, int, str]] = []
    for kind, place, pattern, accept in _RULES:
        known, position, sure = len(found), 0, set[str]()
        for start, stop, end in places[place]:
            position = max(position, start)
            while (match := pattern.search(work, position, end)) and match.start() < stop:
                back = base[max(0, match.start() - 64) : match.start()].rpartition("\0")[2].lower()[::-1]
                # Who says once what a number is need not say it again.
                if hit := accept(match, back) or (match.span() if match[0] in sure and kind != "ip" else None):
                    found.append((*hit, kind))
                    sure.add(work[hit[0] : hit[1]])
                position = hit[1] if hit else match.start() + 1
            position = max(position, stop)
        work = _replace(work, ((start, stop, "\0" * (stop - start)) for start, stop, _ in found[known:]))
    # `shifts[i]` is the first position behind i + 1 invisible characters.
    shifts = [position - i for i, position in enumerate(gone)]
    return [Span(kind, a + bisect_right(shifts, a), b + bisect_right(shifts, b - 1)) for a, b, kind in sorted(found)]


def mask_pii(text: str) -> tuple[str, dict[str, int]]:
    """The text with `[EMAIL-1]`, `[PHONE-2]` ... in place of personal data, and how many by type, types found only.

    Numbers count a type's values in this text by first appearance, after those of placeholders that it has already; a
    value with other separators or in other case gets its number again. Masking twice changes nothing. A placeholder
    says nothing about its value. A hash would: phone numbers are so few that hashing all of them gives each one back.
    """
    counts: Counter[str] = Counter()
    names: dict[tuple[str, str], str] = {}
    last: dict[str, int] = {}
    while spans := find_pii(text):  # the second time, as a rule, to see that nothing is left
        for m in _PLACEHOLDER.finditer(_normalise(text)[0]):
            last[m[1]] = max(last.get(m[1], 0), int(m[2]) % 10**8)
        edits = []
        for span in spans:
            value = _normalise(text[span.start : span.stop])[0].lower()
            key = (span.type, value if span.type in ("email", "ip") else "".join(filter(str.isalnum, value)))
            if key not in names:
                label = span.type.upper()
                last[label] = last.get(label, 0) + 1
                names[key] = f"[{label}-{last[label]}]"
            edits.append((span.start, span.stop, names[key]))
        counts.update(span.type for span in spans)
        text = _replace(text, edits)
    return text, dict(counts)
