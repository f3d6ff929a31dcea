"""Check that an OpenAI-compatible server works with five Python clients.

For each client: chat, streamed chat, a forced tool call, structured output by a JSON schema, and
embeddings. Prints one JSON line a (client, feature); the exit status is 1 if any of them failed.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType

from cases import TEXTS, TIMEOUT_S, Client, Target
from clients import CLIENTS

DEADLINE_S = TIMEOUT_S + 15
"""The limit on a feature: one request, and the modules that a client imports at its first use."""


def check_chat(client: Client) -> str:
    """An answer with text in it."""
    text = client.chat()
    require(bool(text.strip()), f"no text: {text!r}")
    return f"{len(text)} characters"


def check_stream(client: Client) -> str:
    """A streamed answer with text in it."""
    pieces = [piece for piece in client.stream() if piece]
    require(bool("".join(pieces).strip()), f"no text in {len(pieces)} pieces")
    return f"{len(pieces)} pieces"


def check_tool_call(client: Client) -> str:
    """A call of the one tool offered, with its one argument."""
    name, arguments = client.tool_call()
    require(name == "find_order", f"another tool: {name!r}")
    require(isinstance(arguments.get("order_id"), str), f"arguments: {arguments!r}")
    return f"{name}({arguments!r})"


def check_structured_output(client: Client) -> str:
    """An order, which its own type has validated."""
    order = client.structured_output()
    require(isinstance(order.product, str) and isinstance(order.quantity, int), repr(order))
    return repr(order)


def check_embeddings(client: Client) -> str:
    """One vector of numbers for each text, all of one length and not all zeros."""
    vectors: Sequence[Sequence[float]] = client.embeddings()
    require(len(vectors) == len(TEXTS), f"{len(vectors)} vectors for {len(TEXTS)} texts")
    sizes = {len(vector) for vector in vectors}
    require(len(sizes) == 1, f"vectors of lengths {sorted(sizes)}")
    require(all(any(float(x) != 0.0 for x in vector) for vector in vectors), "a vector of zeros")
    return f"{len(vectors)} vectors of {sizes.pop()}"


CHECKS: dict[str, Callable[[Client], str]] = {
    "chat": check_chat,
    "stream": check_stream,
    "tool_call": check_tool_call,
    "structured_output": check_structured_output,
    "embeddings": check_embeddings,
}


def require(holds: bool, otherwise: str) -> None:
    """Raise ValueError unless what a check states holds."""
    if not holds:
        raise ValueError(otherwise)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the body once it has run this long.

    A client's own timeout is the longest wait between two bytes; this one bounds the whole.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done in {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(work: Callable[[], str]) -> tuple[bool, str]:
    """Whether the work succeeded, and its detail or its error in one line."""
    try:
        with deadline(DEADLINE_S):
            return True, work()
    except Exception as error:  # noqa: BLE001 - any client's error is a result to print
        return False, " ".join(f"{type(error).__name__}: {error}".split())[:500]


def report(client: str, feature: str, ok: bool, detail: str) -> None:
    """Print one result as a JSON line."""
    line = {"client": client, "feature": feature, "ok": ok, "detail": detail}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def check_client(name: str, target: Target) -> bool:
    """Check and report every feature of one client. True if all of them work."""
    made: list[Client] = []

    def make() -> str:
        made.append(CLIENTS[name](target))
        return "made"

    ok, detail = attempt(make)
    if not ok:
        for feature in CHECKS:
            report(name, feature, ok=False, detail=detail)
        return False
    all_ok = True
    for feature, check in CHECKS.items():
        ok, detail = attempt(partial(check, made[0]))
        report(name, feature, ok, detail)
        all_ok = all_ok and ok
    return all_ok


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", required=True, help="such as http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--embedding-model", required=True)
    parser.add_argument("--client", choices=sorted(CLIENTS), help="only this one")
    parser.add_argument("--max-tokens", type=int, default=256, help="0 sends no limit")
    return parser.parse_args(arguments)


def main() -> int:
    """Check the clients asked for. 0 if everything works, else 1."""
    options = parse()
    target = Target(
        base_url=options.base_url,
        api_key=options.api_key,
        model=options.model,
        embedding_model=options.embedding_model,
        max_tokens=options.max_tokens or None,
    )
    names = [options.client] if options.client else list(CLIENTS)
    results = [check_client(name, target) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
