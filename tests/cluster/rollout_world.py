"""A world in which a rollout controller runs on a virtual clock and everything may fail.

One schedule is one seed: which of the controller, the operator, the gateways and the engines acts
next, what fails, and where the controller dies (before or after any write, or while it waits for
the engines) are all drawn from it. The same seed is the same schedule.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.control.protocol import Proof, Split
from cluster.control.rollouts import RolloutController
from cluster.records.adapter import ServedAdapter
from cluster.rollout.evidence import Evidence, Moments, VariantStats
from cluster.rollout.outcomes import Answer, AnswerSource, Side
from cluster.rollout.state import Report, Rollout, Status, chosen
from cluster.types import AdapterVersion, VersionState
from tests.cluster.rollout_plans import AB_TEST, PLAN

NAME = "care"
_USERS = [f"user-{number}" for number in range(12)]
_RESOLVED, _MORE, _LESS = 0.6, 0.95, 0.25
#: Groups of users: as many as an A/B test needs, and some.
_GROUPS = 100


class Crash(BaseException):
    """The controller's process dies here."""


class Broken(BaseException):
    """An invariant is broken. No `Exception`: the controller outlives those of what it calls."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Broken(message)


class Pause:
    """Somebody else may act here."""

    def __await__(self) -> Generator[None]:
        yield


def served(version: AdapterVersion) -> ServedAdapter:
    """Engine id and digest follow from the version."""
    return ServedAdapter(NAME, version.version, version.version, f"/{version}", f"d{version}")


@dataclass
class Durable:
    """What outlives the controller: the registry."""

    rollouts: dict[int, Rollout] = field(default_factory=dict)
    states: dict[int, VersionState] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)
    answers: dict[int, dict[str, Answer]] = field(default_factory=dict)
    """Of each rollout, by trace id."""

    @property
    def live(self) -> int | None:
        """The live version's number."""
        return next((n for n, state in self.states.items() if state == VersionState.LIVE), None)


class Store:
    """Implements `cluster.control.rollouts.Store`; each write may be the controller's last act."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _write(self, change: Callable[[], None]) -> None:
        world = self._world
        fate = world.random.random() if world.faults else 1.0
        if fate < 0.02:
            raise Crash
        if fate < 0.03:
            raise OSError("no space left on device")
        change()
        if fate < 0.05:
            raise Crash

    def active(self) -> list[Rollout]:
        return [r for r in self._world.durable.rollouts.values() if not r.status.over]

    def save(self, rollout: Rollout) -> None:
        def change() -> None:
            self._world.durable.rollouts[rollout.id] = rollout
            if rollout.status == Status.WITHDRAWING and rollout.at_fault:
                self._world.durable.states[rollout.candidate.version] = VersionState.REJECTED

        self._write(change)

    def note(self, report: Report) -> None:
        def change() -> None:
            known = self._world.durable.answers.setdefault(report.rollout, {})
            for trace_id, given in report.answered.items():
                mine = Answer(report.rollout, report.phase, given.side, given.group)
                known.setdefault(trace_id, mine)

        self._write(change)

    def forget(self, rollout: Rollout) -> bool:
        mine = self._world.durable.answers.get(rollout.id, {})
        some = list(mine)[: max(5, len(mine) // 2)]

        def change() -> None:
            for trace_id in some:
                del mine[trace_id]

        self._write(change)
        return bool(mine)

    def answer(self, trace_id: str) -> Answer | None:
        every = self._world.durable.answers.values()
        return next((known[trace_id] for known in every if trace_id in known), None)

    def judged(self, trace_id: str, answer: Answer) -> None:
        def change() -> None:
            self._world.durable.answers[answer.rollout][trace_id] = answer

        self._write(change)

    def promote(self, rollout: Rollout) -> None:
        def change() -> None:
            durable, number = self._world.durable, rollout.candidate.version
            _require(durable.states[number] == VersionState.PASSED, "promoted what had not passed")
            _require(NAME not in durable.killed, "promoted what is switched off")
            if durable.live is not None:
                durable.states[durable.live] = VersionState.RETIRED
            durable.states[number] = VersionState.LIVE
            durable.rollouts[rollout.id] = rollout

        self._write(change)

    def killed(self) -> frozenset[str]:
        return frozenset(self._world.durable.killed)

    def served(self, version: AdapterVersion) -> ServedAdapter:
        return served(version)


class Engines:
    """Implements `cluster.control.protocol.Fleet` over replicas that come and go."""

    def __init__(self, world: World, replicas: int) -> None:
        self._world = world
        self.held: list[set[int] | None] = [set() for _ in range(replicas)]
        """What each replica holds; None while it is down."""

    async def _each(self) -> list[set[int]]:
        found = []
        for number in range(len(self.held)):
            await Pause()
            held = self.held[number]
            if self._world.faults and self._world.random.random() < 0.02:
                raise RuntimeError(f"replica {number} gave no answer")
            if held is not None:
                found.append(held)
        return found

    async def prepare(self, adapter: ServedAdapter) -> list[Proof]:
        proofs = []
        for held in await self._each():
            held.add(adapter.int_id)
            off = 9.0 if adapter.version in self._world.corrupt else 0.001
            proofs.append(Proof("r", adapter.int_id, adapter.digest, off))
        return proofs

    async def retire(self, int_id: int, timeout_s: float) -> bool:
        done = True
        for held in await self._each():
            if self._world.faults and self._world.random.random() < 0.1:
                done = False  # what it has in flight takes longer than that
            else:
                self._unload(held, int_id)
        return done

    async def remove(self, int_id: int) -> bool:
        for held in await self._each():
            self._unload(held, int_id)
        return True

    def _unload(self, held: set[int], int_id: int) -> None:
        sent = int_id in self._world.routable()
        _require(not sent, f"removed {int_id}, which users are sent to")
        held.discard(int_id)

    async def kill(self, name: str) -> int:
        return 0


class World:
    """One schedule. `run` raises AssertionError or Broken where an invariant is broken."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.faults = True
        self.now = 1000.0
        self.durable = Durable(states={1: VersionState.LIVE})
        self.engines = Engines(self, self.random.choice((1, 2, 3)))
        for held in self.engines.held:
            assert held is not None
            held.add(1)
        self.controller: RolloutController | None = None
        self.splits: dict[str, Split] = {}
        self.live: int | None = 1
        self.corrupt: set[int] = set()
        self.bad: set[int] = set()
        self.resolves: dict[int, float] = {}
        """How often each version settles what it is asked; the live one does so as often as 0.6."""
        self._tick: Coroutine[Any, Any, None] | None = None
        self._reports: list[Report] = []
        self._shown: deque[tuple[str, int, AdapterVersion]] = deque(maxlen=20)
        """The newest answers that users saw: of which rollout, by which version."""
        self._voted: set[str] = set()
        self._votes: Counter[int] = Counter()
        """How many votes were taken in each rollout."""
        self._sent = 0
        self._on_candidate: dict[int, set[str]] = {}
        self._asked: dict[int, int] = {}
        self._start()

    # -- what acts --------------------------------------------------------------------------

    def run(self, steps: int = 300) -> None:
        """Act at random for `steps`, then without faults until every rollout is over."""
        acts = [
            (self._controller, 60),
            (self._gateways, 30),
            (self._deliver, 20),
            (self._vote, 10),
            (self._operator, 3),
            (self._replica, 3),
            (self._die, 1),
        ]
        choices = [act for act, weight in acts for _ in range(weight)]
        for _ in range(steps):
            self._guarded(self.random.choice(choices))
            self._check()
        self._settle()

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError:
            return  # the operator is told so
        except Crash:
            self.controller = None
            if self._tick is not None:
                self._tick.close()
            self._tick = None

    def _controller(self) -> None:
        if self.controller is None:
            self._start()
        elif self._tick is None:
            self.now += self.random.choice((0.5, 1.0, 3.0))
            self._tick = self.controller.tick(self.now)
        else:
            try:
                self._tick.send(None)
            except StopIteration:
                self._tick = None

    def _start(self) -> None:
        self.controller = RolloutController(Store(self), self.engines, self._publish)
        self._publish()

    def _die(self) -> None:
        raise Crash

    def _publish(self) -> None:
        """What the control plane tells the gateways."""
        assert self.controller is not None
        off = NAME in self.durable.killed
        self.live = None if off else self.durable.live
        self.splits = {} if off else self.controller.splits()

    def _operator(self) -> None:
        if self.controller is None:
            return
        drawn = self.random.random()
        if drawn < 0.8:
            self._begin()
        elif drawn < 0.9:
            self.durable.killed.add(NAME)
            self._publish()
            self.controller.withdraw(NAME, "the adapter was switched off")
        elif NAME in self.durable.killed:
            self._revive()
        else:
            self.controller.withdraw(NAME, "an operator ended it")

    def _revive(self) -> None:
        live = self.durable.live
        for held in self.engines.held:
            if held is not None and live is not None:
                held.add(live)
        self.durable.killed.discard(NAME)
        self._publish()

    def _begin(self) -> None:
        """A new candidate passes the gate and is rolled out, or one whose rollout was ended for
        nothing of its own; the actor allows one at a time."""
        assert self.controller is not None
        if self.controller.of(NAME) is not None or NAME in self.durable.killed:
            return
        states = self.durable.states
        again = [number for number, state in states.items() if state == VersionState.PASSED]
        if again and self.random.random() < 0.7:
            number = again[-1]
        else:
            number = max(states) + 1
            if self.random.random() < 0.2:
                self.corrupt.add(number)
            elif self.random.random() < 0.4:
                self.bad.add(number)
            self.resolves[number] = self.random.choice((_LESS, _RESOLVED, _MORE))
            states[number] = VersionState.PASSED
        live = self.durable.live
        rollout = Rollout(
            len(self.durable.rollouts) + 1,
            AdapterVersion(NAME, number),
            AdapterVersion(NAME, live) if live else None,
            self.random.choice((PLAN, PLAN, AB_TEST)),
            phase_started=self.now,
        )
        self.durable.rollouts[rollout.id] = rollout
        self.controller.add(rollout)

    def _replica(self) -> None:
        number = self.random.randrange(len(self.engines.held))
        if self.engines.held[number] is not None:
            self.engines.held[number] = None
        elif self.controller is not None:
            wanted = {adapter.int_id for adapter in self.controller.wanted()}
            self.engines.held[number] = wanted | ({self.live} if self.live else set())

    # -- users ------------------------------------------------------------------------------

    def _gateways(self) -> None:
        """Users ask; a gateway sums up what it saw, and may lose it or send it twice."""
        split = self.splits.get(NAME)
        if split is None:
            return
        if not split.shadow:
            mine = {u for u in _USERS if chosen(split.rollout, u, split.percent)}
            before = self._on_candidate.get(split.rollout, set())
            assert before <= mine, "a user was sent back to the former version"
            self._on_candidate[split.rollout] = mine
        requests = self.random.randint(5, 40)
        number = split.candidate.version
        wrong = 0.4 if number in self.bad else 0.0
        self._sent += 1
        report = Report(
            f"g{self.random.randint(1, 2)}",
            self._sent,
            split.rollout,
            split.phase,
            Evidence(
                self._arm(requests, 0.0, 0.0 if split.shadow else _RESOLVED),
                self._arm(requests, wrong, 0.0 if split.shadow else self.resolves[number]),
            ),
            # What is known of their answers is of one group of users.
            group=self.random.randrange(_GROUPS),
        )
        if not split.shadow:
            report = replace(report, answered=self._show(split))
        self._asked[split.rollout] = self._asked.get(split.rollout, 0) + requests
        self._reports += [report] * self.random.choice((0, 1, 1, 1, 2) if self.faults else (1,))

    def _show(self, split: Split) -> dict[str, AnswerSource]:
        """Users see an answer of either version, and know its trace id."""
        rollout = self.durable.rollouts[split.rollout]
        answered: dict[str, AnswerSource] = {}
        sides: tuple[Side, ...] = ("candidate", "baseline")
        for side in sides:
            version = rollout.candidate if side == "candidate" else rollout.baseline
            assert version is not None
            trace_id = f"tr-{self._sent}-{side}"
            answered[trace_id] = AnswerSource(side, self.random.randrange(_GROUPS))
            self._shown.append((trace_id, split.rollout, version))
        return answered

    def _vote(self) -> None:
        """A user rates an answer, perhaps once more, or says that another version gave it."""
        if self.controller is None or not self._shown:
            return
        trace_id, rollout, version = self.random.choice(self._shown)
        forged = self.random.random() < 0.1
        named = replace(version, version=version.version + 1) if forged else version
        if self.controller.judge(trace_id, named, VariantStats(rating=Moments(1, 5.0, 25.0))):
            assert not forged, "a vote counted for a version that did not give the answer"
            assert trace_id not in self._voted, "somebody voted twice"
            self._voted.add(trace_id)
            self._votes[rollout] += 1

    def _arm(self, requests: int, wrong: float, resolved: float) -> VariantStats:
        failed = round(requests * wrong * self.random.uniform(0.7, 1.3))
        took = 20.0 + self.random.random()
        latency = Moments(requests, requests * took, requests * (took * took + 1.0))
        spread = (requests * resolved * (1 - resolved)) ** 0.5
        settled = min(requests, max(0, round(self.random.gauss(requests * resolved, spread))))
        known = Moments(requests if resolved else 0, settled, settled)
        return VariantStats(Moments(requests, failed, failed), latency, resolved=known)

    def _deliver(self) -> None:
        if self._reports and self.controller is not None:
            late = self.random.randrange(len(self._reports)) if self.faults else 0
            self.controller.take(self._reports.pop(late))

    # -- invariants -------------------------------------------------------------------------

    def routable(self) -> set[int]:
        """Engine ids that a gateway may send a request to."""
        found = {split.candidate.int_id for split in self.splits.values()}
        return found | ({self.live} if self.live is not None else set())

    def _check(self) -> None:
        durable = self.durable
        live = [n for n, state in durable.states.items() if state == VersionState.LIVE]
        assert len(live) == 1, f"{live} are live"
        assert sum(not r.status.over for r in durable.rollouts.values()) <= 1
        if NAME in durable.killed and self.controller is not None:
            assert not self.routable(), "users are sent to what is switched off"
        for split in self.splits.values():
            number = split.candidate.version
            assert number not in self.corrupt, "users are sent to what was not proved"
            if self.controller is not None:
                assert durable.states[number] != VersionState.REJECTED, "sent to what was refused"
                held = [held for held in self.engines.held if held is not None]
                assert all(number in one for one in held), "users are sent where it is not loaded"
        for rollout in durable.rollouts.values():
            alike = rollout.alike.values()
            counted = sum(one.candidate.errors.n for one in alike)
            assert counted <= self._asked.get(rollout.id, 0), "a request was counted twice"
            votes = sum(one.candidate.rating.n + one.baseline.rating.n for one in alike)
            assert votes <= self._votes[rollout.id], (
                "a vote was counted twice, or of another rollout"
            )
            number = rollout.candidate.version
            if rollout.status in (Status.PROMOTED, Status.DRAINING):
                assert number not in self.bad | self.corrupt, f"promoted {number}: {rollout.reason}"
                if rollout.plan == AB_TEST:
                    assert self.resolves[number] == _MORE, f"promoted {number}: {rollout.reason}"
            if rollout.status.over:
                kept = durable.answers.get(rollout.id)
                assert not kept, "answers are kept that nothing can be judged by"
            if rollout.status in (Status.ROLLED_BACK, Status.WITHDRAWING):
                refused = durable.states[number] == VersionState.REJECTED
                assert refused or not rollout.at_fault, "what was at fault may be begun again"

    def _settle(self) -> None:
        """Without faults every rollout comes to its end, and engines hold what is wanted."""
        self.faults = False
        for number, held in enumerate(self.engines.held):
            if held is None:
                self._replica_up(number)
        for _ in range(4000):
            for act in (self._controller, self._controller, self._gateways, self._deliver):
                act()
                self._check()
            if self.controller is not None and not self.controller.active:
                break
        assert self.controller is not None
        assert not self.controller.active, f"never over: {self.controller.active}"
        assert all(r.status.over for r in self.durable.rollouts.values())
        if self._tick is not None:
            self._tick.close()

    def _replica_up(self, number: int) -> None:
        if self.controller is None:
            self._start()
        assert self.controller is not None
        wanted = {adapter.int_id for adapter in self.controller.wanted()}
        self.engines.held[number] = wanted | ({self.live} if self.live else set())


def schedule(seed: int) -> World:
    """Run the schedule of `seed` to its end."""
    world = World(seed)
    world.run()
    return world
