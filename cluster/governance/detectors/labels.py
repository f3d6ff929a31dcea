"""Context words: what the words before (and just after) a number say it is.

The nearest one decides. A word that announces an identifier rules a telephone number out; one that
announces a telephone rules one in where the digits alone would not be enough.
"""

from __future__ import annotations

import re
from enum import Enum

#: Characters before a value in which its label is looked for.
_REACH = 48


class Label(Enum):
    """What a number is announced as."""

    NONE = 0
    PHONE = 1
    CARD = 2
    SSN = 3
    IDENTIFIER = 4
    """An order, a ticket, an article: an identifier that is not personal data."""
    VERSION = 5
    COUNT = 6
    """A word that rules bare digits out, and not a number that is written as a telephone's."""


#: Latin and other alphabets with spaces between words; then scripts without.
_WORDS: dict[Label, tuple[str, str]] = {
    Label.PHONE: (
        "phone|phones|telephone|tel|tele|mobile|mobil|cell|cellphone|cellular|landline|fax|hotline"
        "|whatsapp|(?<!_)call|calling|dial|ring|reach me|text me|sms|contact number|callback"
        "|contact me|telefonnummer|handynummer|mobilnummer|telefoonnummer|numéro de téléphone"
        "|(?:my|our|his|her|their|your|this) number|desk|handy|telefon|telefono|teléfono|telefone"
        "|téléphone|portable|celular|cellulare|móvil|movil|rufnummer|anrufen|appelez|llámame"
        "|телефон|телефона|телефону|тел|फोन|هاتف|الهاتف|טלפון",
        "電話|电话|手机|携帯|전화|휴대폰",
    ),
    Label.CARD: (
        "card|cards|visa|mastercard|amex|karte|kreditkarte|tarjeta|carte|pan",
        "卡号|信用卡",
    ),
    Label.SSN: ("ssn|ssns|social security|soc sec|social", "社会安全号"),
    Label.VERSION: (
        "version|versions|ver|v|kernel|release|build|firmware|rev|revision|section|chapter|clause|oid",
        "版本",
    ),
    Label.IDENTIFIER: (
        "order|orders|orderid|invoice|ticket|tracking|shipment|parcel|waybill|awb|ref|reference"
        "|claim|policy|sku|item|article|part|parts|serial|batch|lot|isbn-1[03]|isbn|issn|ean"
        "|upc|gtin|barcode|asin|imei|imsi|iccid|vin|uid|uuid|userid|iban|routing|po|purchase order"
        "|confirmation|booking|reservation|transaction|txn|trx|receipt|voucher|coupon"
        "|timestamp|epoch|ts|unix|cas|doi|pmid|patent|licen[cs]e|seed|hash|commit|checksum|digest"
        "|bestellung|bestellnummer|bestelling|bestelnummer|rechnung|rechnungsnummer|pedido|factura"
        "|commande|facture|ordine|auftrag|auftragsnummer|sendung|artikel|artikelnummer"
        "|kundennummer|zamówienie|zamówienia|заказ|заказа|job|task|thread|process|scan",
        "订单|訂單|注文|주문|快递|单号",
    ),
    Label.COUNT: (
        "id|ids|case|product|model|customer|member|membership|account|acct|code|store|session"
        "|request|trace|time|date|zip|postcode|plz|size|price|amount|total|balance|eur|usd|gbp"
        "|revenue|population|latitude|lat|longitude|lon|lng|error|port|pid|log|logs|row|package"
        "|views|count|visits|likes|followers|downloads|bytes|rows|max|min|int",
        "数量",
    ),
}
#: A whole word, where `order_id` and `tel4155550132` hold one too.
_LABELS = re.compile(
    "|".join(
        rf"(?P<{label.name}>(?<![^\W_])(?:{spaced})(?![^\W\d_])|{unspaced})"
        for label, (spaced, unspaced) in _WORDS.items()
    ),
    re.IGNORECASE,
)
#: What may stand between a label and the number it announces.
_JOINED = re.compile(
    r"(?:[\s\"'“”:=#_\-.()\[\]>*]|numbers?|num|nr|no|nos|n[º°]|ids?|codes?|is|was|are|of|the|号码?|番号|编号|번호)*",
    re.IGNORECASE,
)
#: Where `phoneNumber` is two words.
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f]\s|\n\s*\n")
_AFTER = re.compile(
    r" {0,2}\(?(?:mobile|cell|cellphone|office|home|work|fax|desk|phone|tel|mobil|handy)\b",
    re.IGNORECASE,
)


def label_before(text: str, start: int) -> tuple[Label, bool]:
    """The label of the number at `start`, and whether it directly announces it.

    A word that stands directly before the number decides; else the nearest that announces personal
    data does.
    """
    left = _HUMP.sub(" ", text[max(0, start - _REACH) : start])
    for match in reversed(list(_LABELS.finditer(left))):
        between = left[match.end() :]
        # `tel.` and `no.` end no sentence.
        if _SENTENCE_END.search(between.removeprefix(".")):
            break
        label = Label[str(match.lastgroup)]
        if _JOINED.fullmatch(between):
            return label, True
        if label not in (Label.IDENTIFIER, Label.VERSION, Label.COUNT):
            return label, False
    return Label.NONE, False


def phone_after(text: str, end: int) -> bool:
    """Whether the word right after `end` says that a telephone number ended there."""
    return _AFTER.match(text, end, end + 16) is not None
