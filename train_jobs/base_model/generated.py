"""Generated retail text for the base model: extraction, grounded answers, short instructions.

Everything here is written by us and made from a seed. It teaches form (copy a value, answer from
the context, obey one instruction), never facts; it shares no template with the demo workload.
"""

from __future__ import annotations

import json
import random
import string

from train_jobs.base_model.documents import Document, Turn

_FIRST = [
    "maria",
    "james",
    "wei",
    "fatima",
    "olu",
    "priya",
    "ivan",
    "chloe",
    "diego",
    "aisha",
    "noah",
    "emma",
    "lucas",
    "mia",
    "kenji",
    "sara",
    "tom",
    "anna",
    "raj",
    "lily",
    "omar",
    "grace",
    "pedro",
    "nina",
    "hugo",
    "zara",
    "felix",
    "ruth",
    "amir",
    "elena",
    "vimal",
    "george",
    "carla",
    "yusuf",
]
_LAST = [
    "lopez",
    "smith",
    "chen",
    "khan",
    "okafor",
    "patel",
    "petrov",
    "martin",
    "garcia",
    "ali",
    "brown",
    "jones",
    "silva",
    "rossi",
    "tanaka",
    "weber",
    "kim",
    "novak",
    "singh",
    "moore",
    "haddad",
    "clark",
    "costa",
    "berg",
    "dubois",
    "shah",
    "young",
    "reyes",
    "kumar",
    "walker",
]
_CITIES = [
    "austin",
    "boston",
    "denver",
    "seattle",
    "miami",
    "chicago",
    "portland",
    "dallas",
    "tampa",
    "omaha",
    "tucson",
    "fresno",
    "mesa",
    "raleigh",
    "memphis",
    "oakland",
    "tulsa",
    "cleveland",
    "aurora",
    "lincoln",
    "reno",
    "buffalo",
    "newark",
    "salem",
]
_ITEMS = [
    "garden hose",
    "running shoes",
    "rice cooker",
    "desk lamp",
    "winter jacket",
    "phone case",
    "coffee maker",
    "yoga mat",
    "bath towel",
    "baby stroller",
    "dog food",
    "paint roller",
    "laptop bag",
    "water bottle",
    "toaster",
    "bike helmet",
    "office chair",
    "air filter",
    "beach umbrella",
    "cordless drill",
    "sofa cover",
    "wool socks",
    "blender",
    "tent",
]
_THINGS = [
    "order",
    "case",
    "ticket",
    "invoice",
    "booking",
    "claim",
    "policy",
    "member",
    "parcel",
    "voucher",
    "account",
]
_WORDS = [
    "blue",
    "river",
    "stone",
    "market",
    "quick",
    "paper",
    "green",
    "window",
    "cloud",
    "seven",
    "table",
    "silver",
    "garden",
    "north",
    "light",
    "apple",
    "train",
    "simple",
    "music",
    "early",
    "bright",
    "cotton",
    "lemon",
    "yellow",
    "signal",
    "rapid",
    "harbor",
    "forest",
    "orange",
]


def _name(rng: random.Random) -> str:
    return f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"


def _code(rng: random.Random) -> str:
    alphabet = rng.choice((string.digits, string.digits, string.ascii_lowercase + string.digits))
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(3, 9)))


def _value(rng: random.Random) -> tuple[str, str]:
    """A slot name and a value for it, as the extraction tasks use them."""
    kind = rng.randrange(9)
    if kind == 0:
        return "name", _name(rng)
    if kind == 1:
        return "city", rng.choice(_CITIES)
    if kind == 2:
        return "item", rng.choice(_ITEMS)
    if kind == 3:
        return f"{rng.choice(_THINGS)}_number", _code(rng)
    if kind == 4:
        return "quantity", rng.choice(("one", "two", "three", "2", "3", "5", "12", "a dozen"))
    if kind == 5:
        marker, slot = rng.choice(
            (("PHONE", "phone"), ("EMAIL", "email"), ("CARD", "card_number"), ("SSN", "ssn"))
        )
        return slot, f"[{marker}_{rng.choice((1, 1, 1, 2))}]"
    if kind == 6:
        return "date", rng.choice(
            (
                f"june {rng.randint(1, 30)}",
                "tomorrow",
                "next monday",
                "friday",
                f"{rng.randint(1, 12)}/{rng.randint(1, 28)}",
            )
        )
    if kind == 7:
        return "amount", rng.choice((f"${rng.randint(2, 900)}", f"{rng.randint(2, 900)} dollars"))
    return (
        "address",
        f"{rng.randint(1, 9999)} {rng.choice(_WORDS)} {rng.choice(('st', 'road', 'ave', 'lane'))}",
    )


_FRAMES = (
    "my {slot} is {value}",
    "{slot} {value}",
    "the {slot} should be {value}",
    "{value}",
    "it is {value}",
    "use {value} for the {slot}",
    "for {value}",
    "i have {value}",
    "that would be {value}",
)
_OPENERS = ("", "", "", "hi ", "hello, ", "sure, ", "ok ", "please note ", "yes ", "well ")
_JOINTS = (" and ", ", ", " ", " also ", " with ")
_CLOSERS = ("", "", "", " please", " thanks", ".", " thank you", " ok?")


def extraction(rng: random.Random) -> Document:
    """A turn with one to four values in it, and the JSON object of its slots."""
    slots: dict[str, list[str]] = {}
    parts: list[str] = []
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        slot, value = _value(rng)
        frame = rng.choice(_FRAMES)
        parts.append(frame.format(slot=slot.replace("_", " "), value=value))
        slots.setdefault(slot, []).append(value)
    text = rng.choice(_OPENERS) + rng.choice(_JOINTS).join(parts) + rng.choice(_CLOSERS)
    answer = json.dumps({"intent": "inform", "slots": slots})
    return Turn("user", text, 0.3), Turn("assistant", answer)


def find_one(rng: random.Random) -> Document:
    """A question for one of several values; the answer is that value alone."""
    pairs = dict(_value(rng) for _ in range(rng.randint(2, 5)))
    facts = list(pairs.items())
    rng.shuffle(facts)
    text = ". ".join(f"{slot.replace('_', ' ')}: {value}" for slot, value in facts)
    slot, value = rng.choice(facts)
    question = rng.choice(
        ("what is the {s}?", "give me the {s}", "which {s} was it?", "{s}?", "find the {s}")
    ).format(s=slot.replace("_", " "))
    if rng.random() < 0.5:
        return Turn("system", text, 0.2), Turn("user", question, 0.3), Turn("assistant", value)
    return Turn("user", f"{text}. {question}", 0.2), Turn("assistant", value)


def repeat(rng: random.Random) -> Document:
    """Repeat a random phrase, so that copying does not depend on knowing the words."""
    length = rng.randint(1, 12)
    words = [_code(rng) if rng.random() < 0.3 else rng.choice(_WORDS) for _ in range(length)]
    phrase = " ".join(words)
    ask = rng.choice(("repeat: {p}", "say {p}", "repeat after me: {p}", "copy this text: {p}"))
    return Turn("user", ask.format(p=phrase), 0.1), Turn("assistant", phrase)


_POLICY = (
    (
        "returns",
        "{item} can be returned within {days} days with a receipt",
        "can i return a {item}?",
        "yes, within {days} days with a receipt",
    ),
    (
        "opening hours",
        "the {city} store opens at {open} and closes at {close}",
        "when does the {city} store open?",
        "it opens at {open} and closes at {close}",
    ),
    (
        "price match",
        "we match the price of a {item} for {days} days",
        "do you match prices on a {item}?",
        "yes, for {days} days",
    ),
    (
        "delivery",
        "delivery to {city} takes {days} days and costs ${fee}",
        "how long is delivery to {city}?",
        "{days} days, and it costs ${fee}",
    ),
    (
        "stock",
        "the {city} store has {count} of {item} on the shelf",
        "how many {item} are in {city}?",
        "there are {count} in {city}",
    ),
    (
        "points",
        "a {item} earns {count} points for members",
        "how many points for a {item}?",
        "you earn {count} points",
    ),
    (
        "warranty",
        "the {item} comes with a warranty of {days} months",
        "how long is the warranty on the {item}?",
        "{days} months",
    ),
    (
        "pickup",
        "orders picked up in {city} are held for {days} days",
        "how long do you hold my order in {city}?",
        "we hold it for {days} days",
    ),
)


def grounded(rng: random.Random) -> Document:
    """A question whose answer stands in the context beside passages that do not matter."""
    chosen = rng.sample(_POLICY, k=rng.randint(1, 4))
    filled = []
    for title, fact, question, answer in chosen:
        values = {
            "item": rng.choice(_ITEMS),
            "city": rng.choice(_CITIES),
            "days": str(rng.randint(2, 90)),
            "open": f"{rng.randint(6, 11)} am",
            "close": f"{rng.randint(5, 11)} pm",
            "fee": str(rng.randint(1, 40)),
            "count": str(rng.randint(1, 300)),
        }
        filled.append((title, *(text.format(**values) for text in (fact, question, answer))))
    context = "\n".join(f"- {title}: {fact}." for title, fact, _, _ in filled)
    _, _, question, answer = rng.choice(filled)
    return (
        Turn("system", f"Context:\n{context}", 0.2),
        Turn("user", question, 0.5),
        Turn("assistant", answer),
    )


def instruction(rng: random.Random) -> Document:
    """One short instruction and its exact result."""
    words = [rng.choice(_WORDS) for _ in range(rng.randint(2, 7))]
    phrase = " ".join(words)
    number = rng.randint(0, 9)
    other = rng.randint(0, 9)
    tasks = (
        (f"write in capitals: {phrase}", phrase.upper()),
        (f"last word of: {phrase}", words[-1]),
        (f"first word of: {phrase}", words[0]),
        (f"how many words: {phrase}", str(len(words))),
        (f"is the word {words[0]} in this text? {phrase}", "yes"),
        (f"what is {number} plus {other}?", str(number + other)),
        (f"put in a list: {', '.join(words)}", json.dumps(words)),
        (f"reply only with the word {words[0]}", words[0]),
        (f"reverse the order: {phrase}", " ".join(reversed(words))),
        (
            f"make json with name {words[0]} and count {number}",
            json.dumps({"name": words[0], "count": number}),
        ),
    )
    ask, answer = rng.choice(tasks)
    return Turn("user", ask, 0.2), Turn("assistant", answer)


_DIALOG = (
    ("hi", "hello, how can i help you today?"),
    ("hello there", "hi, what can i do for you?"),
    ("i need help", "of course, what do you need?"),
    ("who are you?", "i am the store assistant."),
    ("thank you", "you are welcome."),
    ("thanks, that is all", "glad to help. have a nice day."),
    ("bye", "goodbye, see you soon."),
    ("that did not help", "i am sorry about that. let me try again."),
    ("can i talk to a person?", "sure, i will pass you to a colleague."),
)


def dialogue(rng: random.Random) -> Document:
    """A short shop conversation that asks for a value and confirms it."""
    item, city, code, name = rng.choice(_ITEMS), rng.choice(_CITIES), _code(rng), _name(rng)
    opening, greeting = rng.choice(_DIALOG)
    turns = [Turn("user", opening), Turn("assistant", greeting)]
    scenes = (
        (
            f"do you have a {item}?",
            f"we have a {item}. which store?",
            city,
            f"yes, the {city} store has the {item}.",
        ),
        (
            f"i want to return a {item}",
            "what is the order number?",
            code,
            f"order {code} found. the {item} can be returned.",
        ),
        (
            "where is my order?",
            "may i have the order number?",
            code,
            f"order {code} is on its way to {city}.",
        ),
        (
            "how many points do i have?",
            "what name is on the account?",
            name,
            f"{name} has {rng.randint(10, 900)} points.",
        ),
    )
    for line, role in zip(rng.choice(scenes), ("user", "assistant") * 2, strict=True):
        turns.append(Turn(role, line))
    return tuple(turns)
