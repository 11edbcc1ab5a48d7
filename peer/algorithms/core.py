"""The contract between an algorithm and whatever drives it.

An algorithm is a state machine: events and the time go in, effects come out. It never does vector
arithmetic. Every method here forms linear combinations of a few named vectors of its own
(registers) and of messages received, so an effect carries coefficients and references, and the
driver evaluates them, chunk by chunk, in the order written. The same objects therefore run over
`Fraction` in a test, over torch in a daemon, and on a virtual clock in the simulator.

What belongs here: the values that cross that line, and nothing that decides.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from typing import Any, ClassVar, TypeAlias

PeerId: TypeAlias = str
Coef: TypeAlias = int | float | Fraction

ROUNDING = 1e-9
"""Relative difference between two sums of the same weights that may be rounding."""

LIVE = "x"
"""The register of the live model: the flat vector whose views are the parameters in training."""


def peer_order(peer: PeerId) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which peers are visited everywhere: `peer-10` comes after `peer-2`."""
    parts = re.split(r"(\d+)", peer)
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p)


class Kind(Enum):
    """What a message is for; with step and round it says what the receiver does next."""

    RELAY = "relay"  # a sum of models travelling along a tree
    GOSSIP = "gossip"  # a model for weighted averaging with direct neighbours
    PUSH = "push"  # a model and, as its weight, half of the sender's push-sum weight
    OFFER = "offer"  # initiator's communication copy in a pairwise exchange
    REPLY = "reply"  # partner's communication copy, sent in answer to an offer
    METRIC = "metric"  # sums of metrics travelling along a tree; see `metric_relay`


class Verdict(Enum):
    """Answer to a message, given on its header where possible, before a byte of payload."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    STALE_STEP = "stale step"
    EPOCH_BEHIND = "epoch behind"  # the message is of an older epoch than the receiver's
    EPOCH_AHEAD = "epoch ahead"  # the receiver has not got that view yet: try again
    NOT_A_NEIGHBOUR = "not a neighbour"
    FOREIGN_RUN = "foreign run"
    OLD_INCARNATION = "old incarnation"
    BAD_COUNT = "bad count"
    BAD_LENGTH = "bad length"
    CHECKSUM = "checksum"
    NOT_FINITE = "not finite"
    DECODE_FAILED = "decode failed"
    BUSY = "busy"
    VERSION = "version"
    BAD_METRIC = "bad metric"


class Role(Enum):
    """How a register treats the model's float buffers (BatchNorm statistics and the like).

    A MODEL register mixes them by plain averaging along with the parameters. A CORRECTION
    register holds zeros there: a correction could make a variance negative.
    """

    MODEL = "model"
    CORRECTION = "correction"


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """Epoch of topology. (term, number) orders epochs; all three must match to be the same."""

    term: int = 0
    number: int = 0
    digest: int = 0

    @property
    def age(self) -> tuple[int, int]:
        return (self.term, self.number)


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of some peers' models, with which a run ends: see `common_model`.

    It is told by the epoch in which it was formed, of all `members` of that. `weights` says what
    their models weigh, and is empty where all weigh the same. In a header both are left out where
    the receiver's epoch is that one.
    """

    epoch: Epoch
    members: tuple[PeerId, ...] = field(default=(), compare=False)
    weights: Mapping[PeerId, Coef] = field(default_factory=dict, compare=False)

    @property
    def n(self) -> int:
        """How many models are in it, whatever they weigh."""
        return len(self.members)


@dataclass(frozen=True, slots=True)
class Head:
    """The header of a message: everything an algorithm may know about it."""

    sender: PeerId
    incarnation: int
    epoch: Epoch
    step: int
    kind: Kind
    round: int = 0
    tree: int = 0
    count: Coef = 0  # models summed in this message
    weight: Coef = 1  # of the models in a sum, where they do not weigh the same; push-sum weight
    lost: bool = False  # header without payload: an announced (known) loss, or a refusal
    left: bool = False  # and of all that is not there yet: the sender has gone on to a later epoch
    exchange: int = 0  # number of a pairwise exchange, per initiator
    metrics: tuple[str, ...] = ()  # whose sums are in it, one section each
    mean: Mean | None = None  # that the message carries, or tells of

    @property
    def ordinal(self) -> int:
        """Tells messages of a step over an edge apart: by round, or by exchange of a pair."""
        return self.round + self.exchange


@dataclass(frozen=True, slots=True)
class Reg:
    """A vector that the driver stores; `Reg(LIVE)` is the live flat model vector, shape (d,)."""

    name: str


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Message:
    """One vector of a received message. The payload is the driver's; algorithms never look."""

    head: Head
    section: int = 0
    payload: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Lin:
    """A linear combination: sum of coef * vector from left to right, divided at the end.

    A coefficient of 1 means no multiplication, a divisor of 1 no division: together with the
    written order this pins the floating-point result. A `Lin` means its value at the moment it
    was emitted, whatever happens to its registers before a slow reader gets there.
    """

    terms: tuple[tuple[Coef, Reg | Message], ...]
    divisor: Coef = 1


@dataclass(frozen=True, slots=True)
class View:
    """Everything about an epoch's topology that an algorithm may ask.

    `trees[k]` maps each neighbour in tree k, in visiting order, to the number of peers behind
    that edge; with two trees, tree 0 carries coordinates [0, ceil(d/2)) and tree 1 the rest.
    `neighbours` are the neighbours in the communication graph, for gossip and pairwise methods;
    `mixing` is this peer's row of the mixing matrix, itself included. `weights` says what each
    member's model weighs, and `weight_behind`, laid out like `trees`, what all weigh together that
    are behind an edge; both are empty where all weigh the same.
    """

    epoch: Epoch
    effective_step: int
    me: PeerId
    members: Mapping[PeerId, int]  # peer -> current incarnation, in visiting order
    trees: tuple[Mapping[PeerId, int], ...] = ()
    neighbours: tuple[PeerId, ...] = ()
    mixing: Mapping[PeerId, Coef] = field(default_factory=dict)
    lr_scale: Coef = 1
    diameter: int = 0
    layout: int = 0  # tells one topology from another, whatever epoch and lives it is of
    resumes: bool = False  # all go on from their checkpoints of `effective_step`
    weights: Mapping[PeerId, Coef] = field(default_factory=dict)
    weight_behind: tuple[Mapping[PeerId, Coef], ...] = ()

    @property
    def n(self) -> int:
        """Swarm size of this epoch."""
        return len(self.members)

    @property
    def weight(self) -> Coef:
        """w, what this peer's model weighs; 1 where all weigh the same."""
        return self.weights[self.me] if self.weights else 1

    @property
    def total_weight(self) -> Coef:
        """W, what all models weigh together; n where they weigh the same. Added in visiting order,
        so that all peers come to the same bits."""
        return sum(self.weights.values()) if self.weights else self.n

    def weight_of(self, head: Head) -> Coef:
        """What the models in a relayed sum weigh together."""
        return head.weight if self.weights else head.count

    def can_weigh(self, head: Head) -> bool:
        """Whether the models in a relayed sum can weigh what its header says. A sum of weights may
        come out in another order than the coordinator's: see `ROUNDING`."""
        if not self.weights:
            return True
        most = self.weight_behind[head.tree][head.sender]
        return 0 <= head.weight <= most * (1 + ROUNDING)


class OptionError(ValueError):
    """An option of an algorithm is unusable; says which, its value and what to do about it."""

    def __init__(self, option: str, value: object, problem: str, remedy: str) -> None:
        self.option, self.value, self.problem, self.remedy = option, value, problem, remedy
        super().__init__(f"{option} = {value!r}: {problem}; {remedy}")


# --- events: what happened -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewView:
    """The coordinator published a topology; it takes effect at `view.effective_step`."""

    view: View


@dataclass(frozen=True, slots=True)
class Trained:
    """The local steps of `step` are done: the live register holds x^(t+1/2). `lr` is the rate, and
    so many `local_steps` were taken."""

    step: int
    lr: Coef
    local_steps: int = 1


@dataclass(frozen=True, slots=True)
class Received:
    """A complete, checked message is in; `messages` holds one vector for each section."""

    head: Head
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Gone:
    """With `head`: that message will not come (announced loss, broken stream). Without: the
    transport says the peer is unreachable."""

    peer: PeerId
    head: Head | None = None


@dataclass(frozen=True, slots=True)
class SendDone:
    """Our message was answered. `verdict` is None when no answer came."""

    to: PeerId
    head: Head
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline that `next_deadline` asked for has come."""


Event: TypeAlias = NewView | Trained | Received | Gone | SendDone | Tick


# --- effects: what the driver shall do, in order -----------------------------------------------


@dataclass(frozen=True, slots=True)
class Train:
    """Take the local steps of `step` on the live register; the rate is scaled by `lr_scale`.

    `momentum` names a register to use and leave untouched as momentum buffer (quasi-global
    momentum; of Adam, the movement that its moments gather); None leaves momentum to the optimizer.
    `local_steps` numbers the optimizer steps to
    take, counted over the whole run; None means as many as the run config says. With `budget_s`
    they are more than anybody takes: local steps go on until so many seconds have passed, so that
    there is at least one, and `Trained` says how many there were. The rate is that of `step` in the
    schedule, unless whoever drives the algorithm says `at` which place it is (see `peer.pace`).
    """

    step: int
    lr_scale: Coef = 1
    momentum: Reg | None = None
    local_steps: range | None = None
    budget_s: float = 0.0
    at: int | None = None

    @property
    def place(self) -> int:
        """In the schedule."""
        return self.step if self.at is None else self.at


@dataclass(frozen=True, slots=True)
class Send:
    """Send one message with a section for each of `lins`, over the coordinates of its tree."""

    to: PeerId
    head: Head
    lins: tuple[Lin, ...]


@dataclass(frozen=True, slots=True)
class Set:
    """Evaluate `lin` into register `reg`: whole, or on the coordinates of `tree`."""

    reg: Reg
    lin: Lin
    tree: int | None = None


@dataclass(frozen=True, slots=True)
class Quantize:
    """Evaluate Q(lin) into `reg`: rounded to the run's lattice, for `to` to decode. The rounding is
    random, by the place in the run that `head` names."""

    reg: Reg
    lin: Lin
    to: PeerId
    head: Head


@dataclass(frozen=True, slots=True)
class Apart:
    """The largest element of `lin`, in absolute terms, is how far apart two copies were: the
    quantizer reckons with it from now on."""

    lin: Lin


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop sending that message: a newer one takes its place."""

    to: PeerId
    head: Head


@dataclass(frozen=True, slots=True)
class Observe:
    """A metric that is the Euclidean norm of `lin`, evaluated now if the driver wants it."""

    metric: str
    lin: Lin
    tree: int | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """A message that was received or awaited is not used; counted by reason."""

    head: Head
    reason: DropReason


class DropReason(Enum):
    """Why a message went unused."""

    STALE = "stale"  # at or below the last step used on its edge
    SUPERSEDED = "superseded"  # a newer one took its slot before it was used
    EPOCH = "epoch"
    COUNT = "count"  # counts above n: the round was abandoned
    UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True)
class Averaged:
    """An exchange of `step` is complete; what the metrics and the live table show.

    `counted` of `swarm_size` models are in the average; of `expected` messages, `missed` were
    not used and `late` were used after their step; `waited_s` passed after the local steps, and
    `timed_out` messages were awaited until a deadline.
    """

    step: int
    counted: Coef
    swarm_size: int
    expected: int
    missed: int
    late: int
    waited_s: float
    timed_out: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The last step is done; the driver goes on serving until nobody needs it."""

    step: int


Effect: TypeAlias = (
    Train | Send | Set | Quantize | Apart | Cancel | Observe | Drop | Averaged | Finished
)


@dataclass(frozen=True, slots=True)
class CoreState:
    """An algorithm's memory besides its registers, at the beginning of a step: JSON values, and the
    messages that it has used and still needs."""

    values: Mapping[str, Any]
    received: tuple[Received, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """What an algorithm is told about the run besides its own options."""

    total_steps: int
    deadline_s: float = 30.0
    adapt_deadline: bool = False  # to how long steps take: see `patience`
    least_deadline_s: float = 1.0
    seed: int = 0
    start_step: int = 0  # above 0 after a resume
    local_steps: int = 1  # optimizer steps in a step, for methods that vary them
    clip: float | None = None  # how far a message may be, for methods that hold it: see `clipping`


@dataclass(frozen=True)
class NoOptions:
    """Of an algorithm that has none."""


class Conserved(Enum):
    """What averaging leaves alone; `relayswarm.testing` holds a method to what it declares."""

    WEIGHT = "weight"  # weights sum to one, whatever gets lost: equal models stay as they are
    MEAN = "mean"  # besides, while nothing is lost, training alone moves the mean of all models


class Algorithm(ABC):
    """A decentralized method as a state machine.

    One thread calls `handle`; others may call `admit`, which only reads. `registers` declares
    the vectors that the driver keeps besides the live model: the method's memory bound and,
    with the core state, its checkpoint. All registers start as zeros. A class from another
    package is called with the `Run` and an instance of its `Options`, a dataclass.
    """

    name: ClassVar[str]
    sections: ClassVar[int] = 1  # vectors in each of its messages
    sent_registers: ClassVar[int] = 1  # that these are formed from
    conserves: ClassVar[Conserved | None] = None
    clips: ClassVar[bool] = False  # whether it heeds `Run.clip`
    weighs: ClassVar[bool] = False  # whether it heeds `View.weights`
    Options: ClassVar[type[Any]] = NoOptions

    @property
    def registers(self) -> Mapping[str, Role]:
        return {}

    @abstractmethod
    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds, monotonic) and say what to do."""

    @abstractmethod
    def next_deadline(self) -> float | None:
        """When to be woken with a `Tick`; None when nothing is being waited for."""

    @abstractmethod
    def admit(self, head: Head) -> Verdict:
        """Would this message be of use? Asked on its header, before a byte of payload is taken."""

    @property
    @abstractmethod
    def step(self) -> int:
        """The step being trained or averaged."""

    @property
    def exchanges(self) -> Mapping[tuple[str, str], int]:
        """How many pairwise exchanges ended so far: by (role of this peer, who averaged)."""
        return {}

    def stop_before(self, step: int) -> None:  # noqa: B027
        """The run ends before this step, if it would not have ended sooner: a method with steps
        takes none from there on. Others go on to their end."""

    def farewells(self) -> list[Send]:
        """Announcements that nothing more comes from this peer in the epochs that it knows: another
        algorithm takes its place in the same life."""
        return []

    def state(self) -> CoreState | None:
        """What a whole swarm that was stopped needs of this peer to go on as if it had never been,
        besides the registers: asked while a step's `Train` is performed. None: it cannot."""
        return None

    def resume(self, state: CoreState) -> None:  # noqa: ARG002
        """Before the first view, which `resumes`: go on from that state. Raises LookupError,
        TypeError or ValueError if it is none."""
        raise ValueError(f"{self.name} cannot go on from a state")

    def period(self) -> int | None:
        """A promise: from here on the effects repeat after so many steps, but for step numbers, and
        for sums and differences of messages' counts, as long as topology and rate stay and all
        messages come in time. None: no promise."""
        return None
