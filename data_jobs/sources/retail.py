"""A generated retail workload: stores ask about inventory, loyalty and store policy.

Written by us and named as generated wherever it is used. Three adapters: `inventory`, `loyalty`,
`storepolicy`. Turns are made from a seed, with typing noise, so that two seeds share few texts.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from cluster.answer import Understanding
from data_jobs.sources.turns import LabelledTurn, Workload

STORES = 1600

_ITEMS = [
    "espresso machine",
    "rain boots",
    "garden chair",
    "led bulb",
    "wool blanket",
    "school backpack",
    "pasta maker",
    "gas grill",
    "camping stove",
    "picture frame",
    "wall clock",
    "bath mat",
    "dinner plate",
    "kids scooter",
    "hand mixer",
    "sun hat",
    "rug pad",
    "fire pit",
    "storage bin",
    "sleeping bag",
    "bar stool",
    "baking tray",
    "tool box",
    "snow shovel",
]
_COLORS = ["red", "blue", "black", "white", "green", "grey", "navy", "beige", "teal"]
_SIZES = ["small", "medium", "large", "xl", "twin", "queen", "king"]
_PLACES = [
    "maple street",
    "north plaza",
    "lakeside",
    "airport road",
    "old town",
    "westgate",
    "river mall",
    "hill center",
    "union square",
    "harbor point",
]
_NAMES = [
    "dana",
    "priya",
    "marcus",
    "elif",
    "tomas",
    "yuki",
    "sofia",
    "andre",
    "leah",
    "omar",
    "ines",
    "paul",
    "greta",
    "sam",
    "noor",
]

Slots = dict[str, list[str]]
Filler = Callable[[random.Random], tuple[str, str]]


def _item(rng: random.Random) -> tuple[str, str]:
    text = rng.choice(_ITEMS)
    return "item", f"{rng.choice(_COLORS)} {text}" if rng.random() < 0.4 else text


_FILL: dict[str, Filler] = {
    "item": _item,
    "size": lambda rng: ("size", rng.choice(_SIZES)),
    "store": lambda rng: (
        "store",
        rng.choice((f"store {rng.randint(1, STORES)}", rng.choice(_PLACES))),
    ),
    "quantity": lambda rng: ("quantity", str(rng.randint(2, 48))),
    "sku": lambda rng: ("sku", f"{rng.randint(100, 999)}-{rng.randint(1000, 9999)}"),
    "member": lambda rng: ("member_id", f"m{rng.randint(10000, 99999)}"),
    "name": lambda rng: ("name", rng.choice(_NAMES)),
    "phone": lambda rng: (
        "phone",
        f"{rng.randint(200, 989)}-{rng.randint(200, 989)}-{rng.randint(1000, 9999)}",
    ),
    "email": lambda rng: ("email", f"{rng.choice(_NAMES)}{rng.randint(1, 99)}@example.com"),
    "points": lambda rng: ("points", str(rng.randrange(50, 5000, 50))),
    "order": lambda rng: ("order_number", f"r{rng.randint(100000, 999999)}"),
    "days": lambda rng: ("days", str(rng.choice((3, 7, 10, 14, 20, 30, 45, 60)))),
    "percent": lambda rng: ("percent", f"{rng.choice((5, 10, 15, 20, 25, 30, 40))}%"),
    "date": lambda rng: (
        "date",
        rng.choice(("today", "tomorrow", "friday", "next week", "on sunday")),
    ),
}

_TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "inventory": {
        "checkstock": (
            "do we have {item} at {store}",
            "is the {item} in stock",
            "any {item} in {size} left at {store}",
            "how many {item} does {store} have",
            "need to know if {item} is available",
            "stock on sku {sku} please",
            "looking for a {item} {size}",
            "can you see the {item} anywhere near {store}",
        ),
        "transferstock": (
            "send {quantity} {item} to {store}",
            "move {quantity} of sku {sku} over to {store}",
            "can {store} ship us {quantity} {item}",
            "we need {quantity} {item} from {store}",
            "transfer {item} to {store} {date}",
            "please pull {quantity} {item} for {store}",
        ),
        "reorder": (
            "order {quantity} more {item}",
            "we are running low on {item} need {quantity}",
            "replenish sku {sku} with {quantity}",
            "put in {quantity} {item} for {date}",
            "we sold out of {item} get {quantity} more",
            "restock the {item}",
        ),
        "reportdamage": (
            "{quantity} {item} came in broken",
            "the {item} box was crushed",
            "damaged {item} in the {date} truck",
            "sku {sku} arrived cracked",
            "{item} is leaking at {store}",
            "we got {quantity} {item} with dents",
        ),
        "countcorrection": (
            "system says {quantity} {item} but shelf is empty",
            "count is off for {item}",
            "sku {sku} shows {quantity} we have none",
            "fix the count of {item} at {store}",
            "inventory for {item} is wrong should be {quantity}",
            "physical count of {item} is {quantity}",
        ),
        "findlocation": (
            "where is the {item} on the shelf",
            "which aisle has {item}",
            "where do we keep sku {sku}",
            "cannot find {item} in the back",
            "what bay is the {item} in",
            "locate {item} for me",
        ),
    },
    "loyalty": {
        "checkpoints": (
            "how many points does {member} have",
            "point balance for {name}",
            "my number is {phone} what are my points",
            "do i have enough points for {item}",
            "check balance {member}",
            "points please {email}",
        ),
        "redeempoints": (
            "use {points} points on this order",
            "i want to spend {points} points",
            "redeem {points} for {item}",
            "take {points} points off {member}",
            "apply my points to {order}",
            "pay with points {member}",
        ),
        "enroll": (
            "sign me up my email is {email}",
            "i want to join {name} {phone}",
            "new member {name}",
            "can i get a rewards card {phone}",
            "enroll {email} please",
            "join the program",
        ),
        "missingpoints": (
            "points from {order} never showed",
            "i did not get points for {item}",
            "{member} is missing {points} points",
            "where are the points of my last visit {date}",
            "bought a {item} and no points came",
            "order {order} gave me nothing",
        ),
        "updateprofile": (
            "change my email to {email}",
            "new phone is {phone}",
            "update {member} to {phone}",
            "my name is spelled {name} fix it",
            "i moved update {member}",
            "please correct my number {phone}",
        ),
        "tierquestion": (
            "what do i need for gold",
            "how far is {member} from silver",
            "when does my status end",
            "what perks does gold have",
            "is {name} a gold member",
            "do {points} points make me gold",
        ),
        "discountrequest": (
            "can i get {percent} off",
            "give me {percent} discount on the {item}",
            "{member} wants {percent} off {item}",
            "any coupon for {item}",
            "is there a {percent} deal for members",
            "take {percent} off {order}",
        ),
    },
    "storepolicy": {
        "returnpolicy": (
            "can i return a {item} after {days} days",
            "customer has no receipt for {item}",
            "return window on {item}",
            "is {days} days too late to bring back {item}",
            "opened {item} can it come back",
            "refund rules for {item}",
        ),
        "pricematch": (
            "do we match the price on {item}",
            "customer saw {item} cheaper elsewhere",
            "price match for {item} at {store}",
            "other shop has {percent} off {item} do we match",
            "can i match {item} {date}",
            "match policy please",
        ),
        "openinghours": (
            "when does {store} close {date}",
            "is {store} open {date}",
            "hours for {store}",
            "what time do we open {date}",
            "are we open late {date}",
            "closing time at {store}",
        ),
        "warranty": (
            "is {item} under warranty",
            "how long is the warranty on {item}",
            "{item} broke after {days} days",
            "who fixes a {item} under warranty",
            "warranty claim {order}",
            "does {item} have a guarantee",
        ),
        "pickuprules": (
            "how long do we hold {order}",
            "can {name} pick up {order} for a friend",
            "pick up {order} {date}",
            "do we need id for {order}",
            "hold {item} for {days} days",
            "someone else collects {order}",
        ),
        "giftcards": (
            "can a gift card pay for {item}",
            "gift card balance question",
            "is a gift card refundable",
            "sell a gift card {date}",
            "gift card lost what now",
            "can i use two gift cards on {order}",
        ),
    },
}

#: Turns every desk hears; the same intent in each domain.
_COMMON: dict[str, tuple[str, ...]] = {
    "greeting": (
        "hi",
        "hello",
        "hey there",
        "good morning",
        "hi this is {name} at {store}",
        "hello team",
    ),
    "thanks": (
        "thanks",
        "thank you",
        "great thanks",
        "thx {name}",
        "perfect thank you so much",
        "appreciate it",
    ),
    "confirm": ("yes", "ok", "sure", "yes do it", "sounds good", "correct", "yep that is right"),
    "reject": ("no", "no thanks", "not now", "nothing else", "that is all", "nope we are good"),
    "giveinfo": (
        "{member}",
        "{order}",
        "{sku}",
        "it is {name}",
        "{phone}",
        "{store}",
        "{email}",
        "{quantity}",
    ),
    "other": (
        "the weather is awful here",
        "who won last night",
        "my register is making noise",
        "lol ok then",
        "are you a robot",
        "what is for lunch",
    ),
}

_DOCUMENTS = (
    (
        "returns",
        "Any item comes back within 30 days with a receipt; without one you get store credit.",
    ),
    (
        "opened items",
        "Opened items come back within 14 days if complete; sleeping bags and bath mats do not.",
    ),
    ("price match", "We match a local competitor's advertised price on the same item for 7 days."),
    ("opening hours", "Stores open at 9 am and close at 9 pm; on Sunday they close at 6 pm."),
    ("warranty", "Tools and appliances carry a 12 month warranty; claims need the order number."),
    (
        "pickup",
        "Online orders are held for 7 days; a friend may collect with the order number and an id.",
    ),
    ("gift cards", "Gift cards never expire, are not refundable, and two may pay for one order."),
    (
        "gold tier",
        "Gold needs 2000 points a year and gives free delivery and up to 30% off on member days.",
    ),
    ("discounts", "Members who are not gold get at most 20% off."),
    ("missing points", "Points show within 3 days of a visit; after that send the order number."),
    (
        "transfers",
        "Transfers between stores leave on the next truck; over 24 units a manager approves.",
    ),
    ("damage", "Report damage on the day of delivery with the sku and a photo."),
)

_OPENERS = ("", "", "", "", "hi ", "hello ", "hey ", "quick one ", "um ", "please ", "ok ")
_CLOSERS = ("", "", "", "", " please", " thanks", "?", " asap", " today", " ok")


def _turn(rng: random.Random, template: str) -> tuple[str, Slots]:
    slots: Slots = {}
    words = []
    for part in template.split("{"):
        key, mark, rest = part.partition("}")
        if not mark:
            words.append(part)
            continue
        slot, value = _FILL[key](rng)
        slots.setdefault(slot, []).append(value)
        words.append(value + rest)
    return "".join(words), slots


def _typo(rng: random.Random, text: str, protected: Slots) -> str:
    """Swap, drop or double a letter in one word that is no slot value."""
    values = {word for items in protected.values() for item in items for word in item.split()}
    words = text.split(" ")
    free = [
        i
        for i, word in enumerate(words)
        # "boots?" is part of a value too.
        if len(word) > 3 and not any(value in word for value in values)
    ]
    if not free:
        return text
    place = rng.choice(free)
    word = words[place]
    cut = rng.randrange(1, len(word) - 1)
    kinds = (
        word[:cut] + word[cut + 1 :],
        word[:cut] + word[cut] + word[cut:],
        word[: cut - 1] + word[cut] + word[cut - 1] + word[cut + 1 :],
    )
    words[place] = rng.choice(kinds)
    return " ".join(words)


def _domain(rng: random.Random, domain: str, count: int, prefix: str) -> list[LabelledTurn]:
    turns = []
    for number in range(count):
        table = _COMMON if rng.random() < 0.3 else _TEMPLATES[domain]
        intent = rng.choice(list(table))
        body, slots = _turn(rng, rng.choice(table[intent]))
        text = rng.choice(_OPENERS) + body + rng.choice(_CLOSERS)
        while rng.random() < 0.35:
            text = _typo(rng, text, slots)
        turns.append(
            LabelledTurn(f"{prefix}-{domain}-{number}", domain, text, Understanding(intent, slots))
        )
    return turns


def generate_workload(seed: int, train: int = 6000, heldout: int = 800) -> Workload:
    """The generated workload; the held-out turns come from a different seed."""
    workload = Workload(
        "retail-generated", generated=True, licence="Apache-2.0", documents=list(_DOCUMENTS)
    )
    for domain in _TEMPLATES:
        workload.train[domain] = _domain(
            random.Random(f"{seed}-train-{domain}"), domain, train, "train"
        )
        workload.heldout[domain] = _domain(
            random.Random(f"{seed}-held-{domain}"), domain, heldout, "heldout"
        )
    return workload
