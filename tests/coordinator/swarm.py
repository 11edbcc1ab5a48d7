"""A membership on a clock that the tests advance, and peers that talk to it."""

from dataclasses import dataclass, field, replace
from typing import TypeVar

from coordinator.members import (
    Admitted,
    Decision,
    Elected,
    Join,
    Leave,
    Refused,
    Renew,
    Renewed,
    Rules,
    Tick,
)
from coordinator.membership import Membership

LEASE_S = 9.0  # so that renewals are due each second, and silence is 2.5 s
FINGERPRINT = 0xF1
LAYOUT = 5
T = TypeVar("T")


@dataclass
class Swarm:
    """A membership, a clock, and peers that talk to it."""

    needed: int = 3
    shards: int = 3
    number: int = 0
    fingerprint: int = 0
    deterministic: bool = False
    common_model: bool = False
    now: float = 100.0
    log: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        rules = Rules("run", self.needed, self.shards, LEASE_S, start_timeout_s=60.0)
        rules = replace(rules, deterministic=self.deterministic, common_model=self.common_model)
        self.core = Membership(
            rules,
            self.now,
            term=7,
            number=self.number,
            fingerprint=self.fingerprint,
            layout_of=lambda _: LAYOUT,
        )

    def join(self, peer: str = "", **fields: object) -> Admitted | Refused:
        known = {"incarnation": 1, "fingerprint": FINGERPRINT, "peer_id": peer}
        known |= {"address": f"{peer or 'new'}:1"} | fields
        answer = self.core.handle(Join(**known), self.now)[0]
        assert isinstance(answer, Admitted | Refused)
        return answer

    def renew(self, *peers: str, **fields: object) -> None:
        for peer in peers:
            event = Renew(peer, **({"incarnation": 1} | fields))
            assert self.core.handle(event, self.now) == [Renewed()]

    def leave(self, peer: str, finished: bool = False) -> list[Decision]:
        return self.core.handle(Leave(peer, 1, finished), self.now)

    def settle(self) -> list[Decision]:
        """Deliver the ticks that are due now."""
        decisions: list[Decision] = []
        while (at := self.core.next_deadline()) is not None and at <= self.now:
            decisions += self.core.handle(Tick(), self.now)
        self.log += decisions
        return decisions

    def advance(self, seconds: float) -> list[Decision]:
        """Let time pass, ticking at each deadline on the way."""
        until, decisions = self.now + seconds, self.settle()
        while (at := self.core.next_deadline()) is not None and at <= until:
            self.now = max(self.now, at)
            decisions += self.settle()
        self.now = until
        return decisions

    def keep(self, seconds: int, *peers: str, **fields: object) -> list[Decision]:
        """Let seconds pass in which these peers renew and the others are silent."""
        decisions: list[Decision] = []
        for _ in range(seconds):
            decisions += self.advance(1.0)
            self.renew(*peers, **fields)
        return decisions + self.settle()

    def start(self, *peers: str) -> Elected:
        for peer in peers or [f"peer-{k}" for k in range(self.needed)]:
            assert isinstance(self.join(peer), Admitted)
        return only(self.settle(), Elected)


def only(decisions: list[Decision], kind: type[T]) -> T:
    found = [d for d in decisions if isinstance(d, kind)]
    assert len(found) == 1, decisions
    return found[0]


def ids(elected: Elected) -> list[str]:
    return [m.peer_id for m in elected.members]
