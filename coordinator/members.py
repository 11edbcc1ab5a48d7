"""The values that membership speaks in: members, what happens to them, what is decided and why.

What belongs here: data and its invariants. The rules are in `admission` and `membership`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from coordinator.member_metrics import Evaluation, Sample
from coordinator.progress import Progress


def natural_order(peer_id: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which peers are visited everywhere: `peer-10` comes after `peer-2`."""
    parts = re.split(r"(\d+)", peer_id)
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p)


FIRST_HEALED_NUMBER = 2**16
"""Numbers of epochs from here on are those of peers that repair their tree by themselves; a root's
own part of them is (`tag`, count), `tag * FIRST_HEALED_NUMBER` and what follows."""


LEAP = 2**32
"""How far a term that somebody tells of may be ahead of those that are known. Terms rise by one,
and begin with the time in seconds where nothing is known; one that is further ahead is nonsense,
and would leave no numbers for the terms after it."""


class Reason(Enum):
    """Why an epoch was published, or a member lost; log, status and metrics show the same word.

    In order of weight: of several changes in one epoch the first named here gives its reason.
    """

    QUORUM = "quorum"  # as many peers have come as the run needs to start
    RESTORED = "restored"  # the coordinator is back, and so are its peers, or a lease has passed
    HEALED = "healed"  # the peers have repaired their tree while it could not be reached
    LEASE_EXPIRED = "lease_expired"
    UNREACHABLE = "unreachable"  # silent, and its neighbours cannot reach it
    LEFT = "left"  # said goodbye before the last step
    RESTARTED = "restarted"  # a later incarnation took the place of an earlier one
    JOINED = "joined"


class RunState(Enum):
    """How far the run is."""

    WAITING = "waiting"  # for its peers to come
    RUNNING = "running"
    FINISHED = "finished"  # whoever was left has done all steps


PLAIN_FORMATS = frozenset({"float64", "float32", "bfloat16", "float16"})
"""Wire formats that a peer knows if it does not say which."""


REFUSAL_KEY = "relayswarm-refusal"
"""Of the metadata in which a refusal is told."""


class Refusal(Enum):
    """Why a join was refused; each is a label of the counter of refusals, and told to the peer."""

    VERSION = "version"
    WIRE_FORMAT = "wire_format"
    RUN = "run"
    FINGERPRINT = "fingerprint"
    FINISHED = "finished"
    BAD_ID = "bad_id"
    BAD_ADDRESS = "bad_address"
    ID_TAKEN = "id_taken"
    ADDRESS_TAKEN = "address_taken"
    WEIGHT = "weight"
    DIAL_ONLY = "dial_only"  # a run that has no place for those that can only dial out
    NO_DONOR = "no_donor"  # a newcomer can reach nobody who has a model
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a run asks of its members; times in seconds."""

    run_id: str
    needed: int  # peers, to start
    shards: int
    lease_s: float
    start_timeout_s: float
    max_members: int = 512
    steps: int = 2**40  # of each peer: no member is further, whatever it says
    wire_format: str | None = None  # None: one that every peer knows
    no_dial_only: str = ""  # why peers that can only dial out have no place in it, if so
    deterministic: bool = False  # a swarm that was stopped as a whole goes on where all can
    weights: tuple[float, float] | None = None  # from, to; None: all weigh the same, or nothing
    common_model: bool = False  # all end with one model: nobody comes once somebody has it

    @property
    def renew_every_s(self) -> float:
        """How often a peer renews its lease."""
        return min(1.0, self.lease_s / 3)

    @property
    def silent_s(self) -> float:
        """Two renewals missed: from here on its neighbours' word against a member counts."""
        return 2.5 * self.renew_every_s

    @property
    def reservation_s(self) -> float:
        """How long a candidate's id and shard are kept: it may have a large model to build on a
        busy machine, and a restarted candidate gets them back at once."""
        return max(self.lease_s, 120.0)


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A checkpoint from which a peer can go on as if it had never stopped: the step before which it
    was written, and the layout (its digest) that it belongs to."""

    step: int
    layout: int


@dataclass(frozen=True, slots=True)
class SwarmMetric:
    """A weighted mean over `peers` peers, as a member knows it; NaN if nothing had any weight."""

    name: str
    mean: float
    weight: float
    peers: int


@dataclass(frozen=True, slots=True)
class SwarmMetrics:
    """What a member knows of the swarm's evaluation at `step`, with `peers` of its peers in it."""

    step: int
    peers: int
    metrics: tuple[SwarmMetric, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A peer with a lease (or, as a candidate, with an id and a shard kept for it)."""

    peer_id: str
    incarnation: int
    address: str
    metrics_address: str
    fingerprint: int
    shard: int
    progress: Progress
    expires: float
    last_seen: float
    state: str = "joined"
    loss: float = float("nan")
    models_counted: int = 0
    steps_per_s: float = 0.0
    unreachable: frozenset[str] = frozenset()
    swarm: SwarmMetrics | None = None
    metrics: tuple[Sample, ...] = ()  # as told last
    evaluation: Evaluation | None = None  # its last
    resume_points: frozenset[ResumePoint] = frozenset()
    trains: bool = False  # it was in an epoch already when it joined
    weight: float = 1.0  # of its model in averages; 0: it has no data, and no shard

    @property
    def dial_only(self) -> bool:
        """Whether nobody can connect to it. A candidate has no address yet either."""
        return not self.address

    @property
    def done(self) -> bool:
        """Whether it has done all steps; it may still serve its neighbours."""
        return self.state == RunState.FINISHED.value


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a peer, as a reason for a new epoch."""

    reason: Reason
    peer_id: str


@dataclass(frozen=True, slots=True)
class HealedTree:
    """A tree that peers have committed without a coordinator."""

    age: tuple[int, int]  # (term, number)
    root: str
    lives: frozenset[tuple[str, int]]  # id and incarnation of each member
    edges: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]  # who hears whom: the communication graph


# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Join:
    """A peer asks to become a member, or with fingerprint 0 to learn about the run.

    `known_age` is the (term, number) of the epoch that it trains in: above (0, 0) when it joins
    again because the coordinator, not the peer, was away.
    """

    incarnation: int
    address: str = ""
    peer_id: str = ""
    run_id: str = ""
    fingerprint: int = 0
    metrics_address: str = ""
    step: int = 0
    min_version: int = 1
    max_version: int = 1
    known_age: tuple[int, int] = (0, 0)
    formats: frozenset[str] = PLAIN_FORMATS
    resume_points: frozenset[ResumePoint] = frozenset()
    tree: HealedTree | None = None  # of that epoch, if peers have committed it
    weight: float = 1.0  # of its model in averages; 0: it has no data
    dial_only: bool = False  # nobody can connect to it: it has no address


@dataclass(frozen=True, slots=True)
class Renew:
    """A member is still there, and says how it is doing."""

    peer_id: str
    incarnation: int
    step: int = 0
    loss: float = float("nan")
    state: str = "training"
    models_counted: int = 0
    steps_per_s: float = 0.0
    unreachable: frozenset[str] = frozenset()
    swarm: SwarmMetrics | None = None
    tree: HealedTree | None = None  # it trains in, if peers have committed it
    metrics: tuple[Sample, ...] | None = None  # checked; None: as told before
    evaluation: Evaluation | None = None  # its last


@dataclass(frozen=True, slots=True)
class Leave:
    """A member goes; `finished` if it has done all steps."""

    peer_id: str
    incarnation: int
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline asked for has come, `overslept_s` ago: leases do not run while we sleep."""

    overslept_s: float = 0.0


Event: TypeAlias = Join | Renew | Leave | Tick

# --- decisions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admitted:
    """The peer is a member, or a candidate. `donors` have a model for it, best to ask first."""

    member: Member
    version: int
    donors: tuple[Member, ...]
    candidate: bool
    again: bool = False  # it was one already: nothing has changed
    note: str = ""  # about its shard, for people


@dataclass(frozen=True, slots=True)
class Refused:
    """The peer may not join; `text` says what differs and what to do."""

    refusal: Refusal
    text: str


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease runs on."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """There is no such member any more (or yet): it has to join."""

    text: str


@dataclass(frozen=True, slots=True)
class Gone:
    """The membership is over: a reason, or None for a peer that has done all steps."""

    member: Member
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Elected:
    """These members form the next epoch, from `effective_step` on. Publish it once it is stored."""

    term: int
    number: int
    effective_step: int
    members: tuple[Member, ...]  # in visiting order
    changes: tuple[Change, ...]
    resumes: bool = False  # all go on from their checkpoints of `effective_step`
    tree: HealedTree | None = None  # theirs already: go on with it

    @property
    def reason(self) -> Reason:
        """The weightiest of its reasons."""
        order = list(Reason)
        return min((change.reason for change in self.changes), key=order.index)

    @property
    def text(self) -> str:
        """All reasons, such as `lease_expired peer-3; joined peer-8 peer-9`."""
        parts = []
        for reason in Reason:
            who = sorted({c.peer_id for c in self.changes if c.reason is reason}, key=natural_order)
            if who:
                parts.append(" ".join([reason.value, *filter(None, who)]))
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The run waits: so many of its peers are here."""

    present: tuple[str, ...]  # in visiting order
    needed: int


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The last member has gone, and somebody has done all steps."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Patience for the peers to come is over."""

    present: tuple[str, ...]
    needed: int


@dataclass(frozen=True, slots=True)
class NoTree:
    """No tree can hold the members, all of which can only dial out. Until it is final they train on
    as they are, and the next peer to come may mend it."""

    present: tuple[str, ...]
    is_final: bool


Decision: TypeAlias = (
    Admitted
    | Refused
    | Renewed
    | Unknown
    | Gone
    | Elected
    | Waiting
    | RunFinished
    | GaveUp
    | NoTree
)
