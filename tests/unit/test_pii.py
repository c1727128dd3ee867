"""Personal data: each type's forms and look-alikes, priority, hidden digits, and what masking promises.

All values are invented; those with check digits were computed by a second implementation of the rules. «» marks what
must be found, exactly; a text without marks holds nothing.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.pii import PII_TYPES, Span, find_pii, mask_pii

EMAIL = (
    "Write to «kim@example.com».",
    "«Kim.Min-su+news@Mail.Sub.Example.CO.KR» 로 보내세요",
    "문의는 «kim_99@example.com»으로, 또는 <«lee@example.org»>",
    "[mail](mailto:«park@example.net») «O'BRIEN@EXAMPLE.COM»",
    "이메일:«choi@example.co.kr»입니다. «100%real@a-b.example.io», «yu@xn--9n2bp8q.xn--3e0b707e»",
    "https://shop.example/?to=«jo@example.com»&x=1",
    "（«han＠example．com»）",
    "«kim@exa\u200bmple.com» and «5551234567@example.com»",
    "Who? «me@example.com»? «you@example.com»: hello; ends with «z@example.museum»",
    "@handle and @a.b.co",
    "import x from '@types/node'; npm i @scope/pkg.name lodash@4.17.21 next@13.4.5-rc.beta",
    "ssh user@host: and user@host:/tmp, root@localhost",
    "git clone git@github.com:org/repo.git",
    "scp a.txt deploy@server.example.com:~/www deploy@server.example.com:/var/www",
    "logo@2x.png icon@3x.webp main@next.js",
    "git+https://oauth2:token@git.example.com/x.git https://bob@example.com/a",
    "@kim@mastodon.example follow",
    "a@b a@.com a..b@example.com .@example.com kim.@example.com a@-x.com a@x-.com kim@example.c",
    f"{'x' * 65}@example.com",
)
PHONE = (
    "«010-1234-5678» «01012345678» «010.1234.5678» «010 1234 5678» «010 - 1234 - 5678» «011-234-5678»",
    "«+82 10-1234-5678», «+82-10-1234-5678», «+821012345678»",
    "«(+82)10-1234-5678», «+82 (0)10-1234-5678», «82-10-1234-5678»",
    "«02-123-4567»로 전화; «02)123-4567», «(02) 123-4567»",
    "«031-123-4567», «070-1234-5678», «0505-123-4567», «+82 2-123-4567»",
    "tel: «0212345678», 전화번호는 «031 123 4567», ☎ «02 1234 5678»",
    "«(415) 555-2671», «+1 415-555-2671», «415-555-2671», «1-800-555-0199»",
    "«415.555.2671», «+1 (415) 555-2671», «+14155552671»",
    "call «4155552671» or Phone number: «415 555 2671»",
    "«+44 20 7946 0958», «+49 30 901820», «+49 (0)30 901820», «+33 1 23 45 67 89», «+81-3-1234-5678», «+4915112345678»",
    "Reach me on «+44 20 7946 0958» 24 hours; «+49 30 901820» 2024 in",
    "(«010-1234-5678») 「«010－1234－5678»」 «０１０-１２３４-５６７８»",
    "«010–1234–5678» «010ㅡ1234ㅡ5678» «010\u200b-1234\u200b-5678»",
    "주문 문의 «02-345-6789», 운송장은 아님: «010-2345-6789»",
    "112, 119, 911, 1588-1234, 1577 1577, 1588-12345, 080",
    "2024-01-15 10:20:30, 2010.12.31, 010-123, 12/31/2024, 20240115",
    "ISBN 978-89-6848-123-4, ISBN 89-6848-123-4, ISBN 02-123-4567, ISBN 9780306406157",
    "5010-1234-5678 010-1234-56789 010-1234-5678-9 A010-1234-5678 3.010-1234-5678 12-010-1234-5678 010-1234-5678.5",
    "table 415 555 2671 and 2222222222, 0212345678, +12345678, a+4915112345678, +10 000 000, +20 000 000, +28 123 4567",
    "02-023, 100-200-3000, 115-555-2671, 415-155-2671, 099-123-4567 0.31.123.4567",
    "주문번호 415-555-2671, serial number 01012345678",
)
CARD = (
    "«4000 1234 5678 9017», «4000-1234-5678-9017», «4000123456789017», «5105 1234 5678 9018»",
    "«2221123456789014» «2720123456789010»",
    "«3782-822463-10005» «378282246310005» «6011123456789019» «6500-1234-5678-9017»",
    "«3530 1234 5678 9018», «3612 345678 9013», «36123456789013», «6212345678901232», «9420-1234-5678-9018»",
    "«4000123456788» (13 digits), «6212 3456 7890 1234 569» (19 digits)",
    "card «4000 1234 5678 9017» 123, exp 12/27; «4000 1234 5678 9017» 12/27",
    "９９９９ «４０００ １２３４ ５６７８ ９０１７»; «4000–1234–5678–9017»; «4000\u200b123456789017»",
    "1234 «4000 1234 5678 9017» 카드번호«4000 1234 5678 9017»로",
    "4000 1234 5678 9018, 4000-1234-5678-9016, 4000123456789010",
    "1000 1234 5678 9010, 7000123456789014, 378282246310005000, 2720993456789011, 2220123456789015",
    "id4000123456789017 4000123456789017x 4000-1234-5678-9017-1 3.4000123456789017",
    "https://x.example/status/4000123456789017, order no. 4000123456789017, 운송장 4000123456789017",
)
IP = (
    "«8.8.8.8», «203.0.114.7»에서 접속, http://«93.184.216.34»:8080/a, [«1.1.1.1»] user@«8.8.4.4» «8.8.8.8».",
    "«2606:4700:4700::1111», [«2001:4860:4860::8888»]:443, «2a00:1450:4001:81b:0:0:0:200e» «2001:4860:4860::8844».",
    "host=«9.9.9.9» ip:«8.8.8.8»/24 https://who.example/whois/«8.8.8.8» «８．８．８．８»",
    "10.0.0.1 192.168.1.1 172.16.0.1 127.0.0.1 169.254.1.1 192.0.2.1 198.51.100.7 203.0.113.5 224.0.0.1 0.0.0.0",
    "255.255.255.255 255.255.255.0 100.64.0.1 198.18.0.1 ::1 fe80::1 fc00::1 2001:db8::1 ff02::1 ::",
    "version 1.2.3.4, v1.2.3.4, v 1.2.3.4, ver. 1.2.3.4, 버전 1.2.3.4, 버전은 1.2.3.4, release 1.2.3.4, 1.2.3.4 버전",
    "versions 1.2.3.4, 1.2.3.5 and 1.2.3.6; Version: 1.2.3.4; section 1.2.3.4, § 1.2.3.4, 절 1.2.3.4, 1.2.3.4절",
    "«9.9.9.10» is an address, v. 9.9.9.10 is not",
    "1.2.3.4.5 256.1.1.1 1.2.3 01.2.3.4 8.8.8.8a x8.8.8.8 8.8.8.8-rc1 Chrome/120.0.0.0 Safari",
    "12:30:45 std::vector a::b 2024:01:15 2001:4860",
    "dead::beef face::1 2606:4700:::1 2606:4700:4700::1111g a2606:4700:4700::1111",
)
RESIDENT = (
    "«870514-1234568», «8705141234568», «870514 1234568», «870514–1234568», «870514 - 1234568», «991231-0123457»은",
    "외국인 «900101-5123452», «020815-7123455»이고 «880229-2345673»",
    "주민등록번호: «870514-1234567» / 주민번호는 «870514-1234560», RRN=«8705141234567», 주민등록번호(RRN): «030228-3123450»",
    "Resident registration number is «900101-5123450»; 외국인등록번호 «900101-6123450»",
    "«８７０５１４－１２３４５６８», «870514\u2011\u200b1234568»",
    "870514-1234567, 870514 1234560, 8705141234567",
    "871314-1234568 870532-1234568 주민번호 030229-3123456 주민번호 900230-1123454 870514-123456 870514-12345688",
    "«000229-3123454» but not 000229-1123459: 2000 was a leap year, 1900 not",
    "주민등록번호가 바뀌기 전에는 870514-1234567",
    "운송장 8705141234568, 상품코드: 8705141234568, 1870514-1234568, A870514-1234568",
)
BUSINESS = (
    "«123-45-67891», «214-87-01235»입니다, «506–81–02349», «１０１-８２-０１２３５»",
    "사업자등록번호 «1234567891», 사업자 번호: «2148701235», Business Registration No. «5068102349»",
    "123-45-67890, 214-87-01230, 1234567891, 000-00-00000, 123-45-678910, 1123-45-67891, 123-45-67891-1",
    "사업자등록번호 1234567890 (틀림), 사업자등록번호를 내고 나서 1234567891",
)
PASSPORT = (
    "여권번호 «M12345678», Passport No. «S12345678», PASSPORT: «M123A4567», 여권: «R12345678»입니다, 여권(«G12345678»)",
    "The Passport «AB1234567»",
    "PASSPORT/«M12345678»",
    "passport number of the bearer is «123456789», 여권 «AB1234567» 및 «X123456»",
    "여권번호：«Ｍ１２３４５６７８», 여권 «M1234\u20605678»",
    "M12345678 S123A4567 123456789 AB1234567",
    "여권을 새로 발급받으려면 먼저 구청에 가서 신청서를 쓰고 사진을 내고 기다려야 한다 M12345678",
    "여권 사본, 주문번호 AB1234567; passport photo, order number 123456789",
    "여권 m12345678 M1234567890 XYM1234567, M12345678-1",
    "M12345678 여권",
)
LICENSE = (
    "«11-08-123456-78», «28-99-000001-12»이며, «26–12–654321–90»",
    "운전면허번호 «110812345678», 면허번호: «280812345678», 운전면허증 번호는 «120812345678»",
    "Driver's license: «110812345678»",
    "driver’s licence number «130812345678»",
    "10-08-123456-78 29-08-123456-78 110812345678 11-08-12345-78 11-08-123456-789 운전면허 시험 날짜 110812345678",
)
ACCOUNT = (
    "국민은행 «123456-01-123456», 신한 «110-123-456789», 카카오뱅크 «3333-01-1234567», 우리은행 계좌번호: «1002-123-456789»",
    "계좌 «1234567890123»로 입금. 농협(«301-1234-5678-91») 토스뱅크 «1000-1234-5678», KB «12345678901234»",
    "IBK기업은행 «123-456789-01-012»; Account number: «1234567890», account no. «123-4567-8901»",
    "입금: 홍길동 «１２３４５６－７８－９０１２３４» 입금 «123456‐78‐901234» 입금 «123\u200b456-78-901234»",
    "IBAN «GB29 NWBK 6016 1331 9268 19» BIC NWBKGB2L, «GB29NWBK60161331926819»로, «DE12 5001 0517 0648 4898 90»",
    "«FR1420041010050500013M02606» and «NO93 8601 1117 947» OK",
    "110-123-456789, 3333-01-1234567, 1234567890123",
    "국민은행 주문번호 1234567890123, 신한 운송장 123456-78-901234",
    "계좌 확인 후 ISBN 9788968481234, 은행 serial 12345678901",
    "은행은 이 문장에서 아주 멀리 떨어진 곳에 있으므로 아래에 적힌 다음 번호와 상관이 없다 1234567890123",
    "계좌 123456789, 12345678901234567, 입금 10000000000원, 입금 1234567890 won, 입금 2024-01-15, 금액 100-200",
    "512 KB 1234567890, 40 SC 1234567890",
    "GB29 NWBK 6016 1331 9268 18, ZZ29NWBK60161331926819, GB29NWBK601613319268, XGB29NWBK60161331926819",
)
VEHICLE = (
    "«12가3456», «123나 4567»는, «서울12가3456»을, «서울 12바 3456»",
    "«경기 34사5678», 차량 «12허1234» 주차, «１２가３４５６»",
    "번호판 «12가3456» 차가 «77배7777» 대기 중, «12호1234».",
    "12시 3000명, 10대 2000, 3나노, 3나 1234, 20가구 1500, 12각3456, 12조 3000억, 10주 2000명, 12조3456개, 10도 2000 미터",
    "1234가5678 제12가3456 A12가3456 12가34567 12가345 12가  3456",
    "1,200조 3000 12조 3000.5 10배 2000년 20보 1500m 10로 2000%",
    "100호 1500가구, 12가3456명, 50주 1000원, 30구 2000건, 12거 3456년에",
)
TABLES = {
    "email": EMAIL, "phone": PHONE, "card": CARD, "ip": IP, "resident_number": RESIDENT, "business_number": BUSINESS,
    "passport": PASSPORT, "driver_license": LICENSE, "account_number": ACCOUNT, "vehicle_number": VEHICLE,
}  # fmt: skip


def unmarked(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without « and », and the ranges that they mark."""
    text, ranges, start = "", [], 0
    for part in re.split("([«»])", marked):
        if part == "«":
            start = len(text)
        elif part == "»":
            ranges.append((start, len(text)))
        else:
            text += part
    return text, ranges


@pytest.mark.parametrize(("kind", "marked"), [(kind, text) for kind, texts in TABLES.items() for text in texts])
def test_forms_and_look_alikes(kind: str, marked: str) -> None:
    text, ranges = unmarked(marked)
    found = find_pii(text)
    assert [text[s.start : s.stop] for s in found] == [text[start:stop] for start, stop in ranges]
    assert found == [Span(kind, start, stop) for start, stop in ranges]


def test_every_type_has_both_kinds_of_examples() -> None:
    assert set(TABLES) == set(PII_TYPES)
    for texts in TABLES.values():
        assert {bool(unmarked(t)[1]) for t in texts} == {True, False}


@pytest.mark.parametrize(
    ("marked", "kind"),
    [
        ("«01012345678@example.com»", "email"),
        ("IBAN «GB29 NWBK 6016 1331 9268 19» 계좌", "account_number"),
        ("국민은행 «4000 1234 5678 9017»", "card"),
        ("«4001031234564»", "card"),  # also a resident number with a valid check digit
        ("계좌 «870514-1234568»", "resident_number"),
        ("계좌 «870514-1234567»", "account_number"),  # without valid check digit or label no resident number
        ("농협 «11-08-123456-78»", "driver_license"),
        ("농협 «30-08-123456-78»", "account_number"),
        ("입금 «123-45-67891»", "business_number"),
        ("입금 «123-45-67890»", "account_number"),
        ("계좌번호 «010-1234-5678»", "account_number"),
        ("신한은행 «010-1234-5678»", "phone"),
        ("신한은행 고객센터 «02-1234-5678»", "phone"),
        ("여권 «+33 123456789»", "phone"),
        ("여권 «12가3456»", "vehicle_number"),
    ],
)
def test_the_more_certain_type_wins(marked: str, kind: str) -> None:
    text, ranges = unmarked(marked)
    assert find_pii(text) == [Span(kind, *ranges[0])]


def test_a_number_whose_label_came_before_needs_none_again() -> None:
    text, ranges = unmarked(
        "계좌번호 «110-123-456789». 회비는 매달 초에 걷으며 위에 적은 그곳, 곧 우리 모임의 «110-123-456789»로."
    )
    assert [(s.start, s.stop) for s in find_pii(text)] == ranges
    assert find_pii("매달 초에 걷으며 위에 적은 그곳, 곧 우리 모임의 110-123-456789로.") == []


def test_masking_one_text() -> None:
    text = "김민수(010-1234-5678, Kim@Example.com)와 이지은(010 9876 5432), 다시 kim@example.com, 01012345678, 12가3456."
    assert mask_pii(text) == (
        "김민수([PHONE-1], [EMAIL-1])와 이지은([PHONE-2]), 다시 [EMAIL-1], [PHONE-1], [VEHICLE_NUMBER-1].",
        {"phone": 3, "email": 2, "vehicle_number": 1},
    )


def test_separators_are_part_of_mail_and_ip_addresses() -> None:
    assert mask_pii("a.b@example.com ab@example.com 8.8.88.8 8.88.8.8") == (
        "[EMAIL-1] [EMAIL-2] [IP-1] [IP-2]",
        {"email": 2, "ip": 2},
    )


def test_numbering_goes_on_after_placeholders_of_the_text() -> None:
    masked = "[PHONE-7] 010-1234-5678 [PHONE-2] 010-9876-5432 a@example.com [EMAIL-X]"
    assert mask_pii(masked)[0] == "[PHONE-7] [PHONE-8] [PHONE-2] [PHONE-9] [EMAIL-1] [EMAIL-X]"
    # So long a number is no placeholder of ours; going on from the largest possible one must not make such a number.
    for text in ("계좌 [PHONE-999999999] a 010-1234-5678", "[PHONE-12345678901]010-1234-5678"):
        assert mask_pii(mask_pii(text)[0]) == (mask_pii(text)[0], {})


def test_placeholders_are_neither_labels_nor_pass_for_text_between() -> None:
    assert find_pii("[PASSPORT-1] 123456789 [ACCOUNT_NUMBER-1] 1234567890") == []
    assert [s.type for s in find_pii("여권 123456789 계좌 1234567890")] == ["passport", "account_number"]
    assert find_pii("계좌 [EMAIL-1] 1234567890") == []  # the text without the mail address must not read otherwise
    assert find_pii("[EMAIL-1]@example.com [PHONE-1]kim@example.com") == []


def test_spans_hold_no_values() -> None:
    assert [f.name for f in fields(Span)] == ["type", "start", "stop"]
    assert "5678" not in repr(find_pii("010-1234-5678"))


def test_invisible_characters_at_the_edges_stay_outside() -> None:
    text = "\u200b\u200b가\u200b010\u200b-1234-5678\u200b\u200b나 \ufeff8.8.8.8"
    assert [text[s.start : s.stop] for s in find_pii(text)] == ["010\u200b-1234-5678", "8.8.8.8"]


# Values that need no label, words that ask for or against types, and what stands between.
PLAIN = [
    ("email", "kim@example.com"), ("phone", "010-1234-5678"), ("phone", "+44 20 7946 0958"),
    ("phone", "(415) 555-2671"),
    ("card", "4000 1234 5678 9017"), ("card", "378282246310005"), ("ip", "8.8.4.4"), ("ip", "2606:4700:4700::1111"),
    ("resident_number", "870514-1234568"), ("business_number", "123-45-67891"), ("driver_license", "11-08-123456-78"),
    ("account_number", "GB29 NWBK 6016 1331 9268 19"), ("vehicle_number", "12가3456"),
]  # fmt: skip
LABELLED = ["1234567890", "110-123-456789", "M12345678", "123456789", "0212345678", "870514-1234567", "110812345678"]
WORDS = [
    "계좌", "여권", "passport", "전화", "주민번호", "면허번호", "운송장", "version", "주문번호",
    "order@example.com", "원", "명", "년", "[EMAIL-1]", "[PASSPORT-3]", "[ACCOUNT_NUMBER-12]",
    "[PHONE-", "]", "서울", "https://", "git@", "가", "x", "A", "0", "12", "300",
]  # fmt: skip
GLUE = [" ", "", "-", ".", ",", ":", "/", "(", ")", "+", "@", "\n", "은 ", "_", "\u200b", "–", "="]
PIECE = st.sampled_from([value for _, value in PLAIN] + LABELLED + WORDS + GLUE * 2)
TEXTS = st.lists(PIECE, max_size=24).map("".join) | st.text(
    alphabet="0123456789" * 2 + "ab@.-+() :/[]가호명\0\u200b４", max_size=60
)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_masking_twice_changes_nothing(text: str) -> None:
    masked, counts = mask_pii(text)
    assert mask_pii(masked) == (masked, {})
    found = find_pii(text)
    # More where a value was hidden by its neighbour: see the test below.
    assert sum(counts.values()) >= len(found)
    assert counts.keys() >= {s.type for s in found}


def test_a_value_that_its_neighbour_hides_is_masked_too() -> None:
    assert mask_pii("kim@example.com-lee@example.com") == ("[EMAIL-1]-[EMAIL-2]", {"email": 2})
    assert mask_pii("010-1234-5678-8.8.4.4") == ("[PHONE-1]-[IP-1]", {"ip": 1, "phone": 1})


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_spans_are_in_order_inside_the_text_and_hold_what_is_masked(text: str) -> None:
    spans = find_pii(text)
    position = 0
    for span in spans:
        assert position <= span.start < span.stop <= len(text)
        assert span.type in PII_TYPES
        position = span.stop


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLAIN), st.sampled_from([" ", ", ", "은 ", "\n", " / "])), max_size=8))
def test_only_the_spans_are_replaced(parts: list[tuple[tuple[str, str], str]]) -> None:
    text = "".join(value + glue for (_, value), glue in parts)
    masked, counts = mask_pii(text)
    assert re.sub(r"\[[A-Z_]+-\d+\]", "#", masked) == "".join("#" + glue for _, glue in parts)
    assert counts == Counter(kind for (kind, _), _ in parts)
    assert not any(value in masked for (_, value), _ in parts)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_text_without_digits_and_at_sign_is_unchanged(text: str) -> None:
    plain = "".join(c for c in text if not c.isnumeric() and c not in "@＠")
    assert mask_pii(plain) == (plain, {})
    assert mask_pii(f"여권 {plain} 계좌 :: [ ") == (f"여권 {plain} 계좌 :: [ ", {})


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(PLAIN),
    st.text(alphabet="가나다 abc\n.,;!\u200b—“「é", max_size=30),
    st.sampled_from(["", " ", "에서", ", ", ". 다음", ")", "\n"]),
    st.booleans(),
)
def test_a_value_is_found_where_it_stands(value: tuple[str, str], before: str, after: str, wide: bool) -> None:
    kind, form = value
    if wide:  # full-width digits and another dash
        form = form.translate({**{ord("0") + i: chr(0xFF10 + i) for i in range(10)}, ord("-"): "‑"})
    text = f"{before} {form}{after}"
    start = len(before) + 1
    assert find_pii(text) == [Span(kind, start, start + len(form))]
    masked, counts = mask_pii(text)
    assert form not in masked and counts == {kind: 1}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(["010-1234-567{}", "0101234567{}", "010.1234.567{}"])), max_size=12
    )
)
def test_one_value_one_placeholder(numbers: list[tuple[int, str]]) -> None:
    masked, counts = mask_pii(" 및 ".join(form.format(n) for n, form in numbers))
    order = list(dict.fromkeys(n for n, _ in numbers))
    assert masked == " 및 ".join(f"[PHONE-{order.index(n) + 1}]" for n, _ in numbers)
    assert counts == ({"phone": len(numbers)} if numbers else {})


MANY = 200_000


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("1", 0), ("1-", 0), ("1 ", 0), ("1.", 0), ("a@", 0), ("@", 0), ("@a.", 0), ("(", 0), ("(+", 0), ("+1 ", 0),
        ("((0", 0), ("1234 ", 0), ("2606:", 0), ("::", 0), ("GB29 NWBK ", 0), ("여권 ", 0), ("12가 ", 0), ("１", 0),
        ("–", 0), ("\u200b", 0), ("[EMAIL-", 0), ("[EMAIL-1]", 0), ("1234567890,", 0), ("8705141234567 ", 0),
        ("1.2.3.4.", 0), ("415-555-267", 0),
        ("a@b.co:", 28_571), ("010-1234-5678 ", 14_285), ("계좌 1234567890 ", 14_285), ("1\u200b", 0),
    ],
)  # fmt: skip
def test_hostile_repetition_ends(unit: str, expected: int) -> None:
    # Quadratic time would take minutes here and meet the time limit of the test run.
    found = find_pii((unit * (MANY // len(unit) + 1))[:MANY])
    assert abs(len(found) - expected) <= 1


@pytest.mark.parametrize(
    "text",
    [
        "a." * MANY + "@",
        "a" * MANY + "@example.com",
        "a@" + "a." * MANY + "com",
        "a@" + "a" * MANY,
        "https://" + "a" * MANY + "@b",
    ],
    ids=["dots", "local", "labels", "label", "user"],
)
def test_hostile_addresses_end(text: str) -> None:
    assert find_pii(text) == []


def test_a_long_path_behind_an_address_ends() -> None:
    assert [s.type for s in find_pii("a@b.co:" + "x" * MANY)] == ["email"]
    assert find_pii("a@b.co:" + "x" * MANY + "/") == []


def test_check_digits_refuse_nine_of_ten_random_numbers() -> None:
    """The rate at which random digits of the right form pass; ten where the check were not computed."""
    rng = random.Random(17)
    cards = [f"4{rng.randrange(10**15):015d}" for _ in range(2000)]
    firms = [f"{rng.randrange(101, 1000)}-{rng.randrange(100):02d}-{rng.randrange(10**5):05d}" for _ in range(2000)]
    people = [f"870514-1{rng.randrange(10**6):06d}" for _ in range(2000)]
    for kind, numbers in (("card", cards), ("business_number", firms), ("resident_number", people)):
        share = sum(s.type == kind for s in find_pii("\n".join(numbers))) / 2000
        assert 0.07 < share < 0.13, kind  # 10 %, four standard deviations: 2.7 points
