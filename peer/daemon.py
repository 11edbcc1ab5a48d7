"""The peer daemon's core: the driver over real sockets and a real clock.

One core thread takes events from a queue, feeds the algorithm and performs its effects. Training
runs in a thread of its own, transport threads only ask `admit` and put events on the queue. What
belongs here is that traffic; `peer.service` puts a daemon together and takes it down.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from torch import Tensor

from peer.algorithms.common_model import CommonModel
from peer.algorithms.core import (
    LIVE,
    Algorithm,
    Averaged,
    Drop,
    Epoch,
    Event,
    Finished,
    Gone,
    Head,
    Kind,
    Mean,
    Message,
    NewView,
    PeerId,
    Received,
    SendDone,
    Tick,
    Train,
    Trained,
    Verdict,
    View,
)
from peer.algorithms.pairwise import Pairwise
from peer.announce import Announcer
from peer.audit import Audit
from peer.checkpoints import Checkpoints
from peer.config import build_algorithm, follows_swarm
from peer.daemon_metrics import swarm_metrics
from peer.driver import Driver
from peer.hellos import Hello
from peer.law import NO_LAW, Law
from peer.local_training import MakeTraining, Training
from peer.metrics import PeerMetrics, value
from peer.pace import Pace
from peer.process import computing_alone
from peer.registers import Registers
from peer.self_healing import SelfHealing
from peer.speed import Speed
from peer.swarm_metrics import metric_weight
from peer.training.learner import Learner, TrainResult
from peer.transport.client import Outbox
from peer.transport.contract import Outgoing, PeerState, Snapshot
from peer.transport.metric_payload import sums_of
from peer.wire_format import quantizer
from relayswarm import logs
from relayswarm.net.gate import Denial
from relayswarm.net.sparing import SparingLog
from relayswarm.site import LOSS

log = logging.getLogger("relayswarm.peer")

NAP_S = 1.0  # a signal that comes just before the core thread falls asleep is seen after this long
OBSERVE_EVERY = 10  # steps between evaluations of a vector metric: each is a pass over the model

ORDINARY = frozenset(
    {
        Verdict.DUPLICATE,
        Verdict.STALE_STEP,
        Verdict.EPOCH_BEHIND,
        Verdict.EPOCH_AHEAD,
        Verdict.BUSY,
    }
)
"""Refusals that happen among peers who mean well; the others are worth a line in the log."""


@dataclass(frozen=True)
class _Call:
    """Something to do in the core thread."""

    action: Callable[[], None]


@dataclass(frozen=True)
class _Successor:
    """What takes the place of algorithm and model when the swarm has gone on without us."""

    step: int
    vector: Tensor | None
    begun: Future[None]


class Stop(Exception):
    """Ends the core loop before the last step."""


class Daemon:
    """Host of one peer's driver, and handler of its transport."""

    def __init__(
        self,
        peer: PeerId,
        algorithm: Algorithm,
        trainer: Learner,
        checkpoints: Checkpoints,
        metrics: PeerMetrics,
        announce: Announcer,
        make_training: MakeTraining,
        weight: float = 1.0,
        law: Law = NO_LAW,
        audit: Audit | None = None,
    ) -> None:
        self.peer = peer
        self.law, self.audit = law, audit
        self.trainer = trainer
        self.metrics = metrics
        self.announce = announce
        self.view: View | None = None
        self.loss = math.nan
        self.outbox: Outbox | None = None
        config = trainer.config
        self.swarm = swarm_metrics(
            peer,
            config,
            metrics,
            announce,
            self.send,
            self.dropped,
            metric_weight(config, weight),
            law.may_tell,
        )
        self._training = make_training(
            Training(peer, trainer, checkpoints, metrics, announce, self.swarm)
        )
        self._checkpoints = checkpoints
        self._begin(algorithm)
        self._successors: list[_Successor] = []  # take over between steps; under the guard
        self._events: queue.SimpleQueue[Event | _Call] = queue.SimpleQueue()
        self._busy = False  # the live vector belongs to the local training
        self._readers: list[Future[Snapshot]] = []  # who waits for a model; under the guard
        self._closed = False  # the core loop has ended; under the guard
        self._guard = threading.Lock()
        self._sparing = SparingLog(log)
        self.healing: SelfHealing | None = None
        self.news = threading.Event()  # `down` has grown: the coordinator should know at once
        self._finished = False
        self._stop_step = trainer.config.steps  # no step from there on
        self._compute_s, self._local_steps = 0.0, 0  # of the last training
        self._speed = Speed()
        self.pace, self._follows_swarm = Pace(config.steps), follows_swarm(config)
        self._models_counted = 0

    def _begin(self, algorithm: Algorithm) -> None:
        flat = self.trainer.flat
        self.algorithm = algorithm
        rounding = quantizer(self.trainer.config)
        self.registers = Registers(flat.vector, algorithm.registers, flat.parameters_end, rounding)
        self._driver = Driver(algorithm, self.registers, self)
        self._exchanges = Counter(algorithm.exchanges)  # those that metrics know of
        self._training.steps_done = algorithm.step

    @property
    def steps_done(self) -> int:
        """Steps that the live model has seen."""
        return self._training.steps_done

    @property
    def down(self) -> frozenset[PeerId]:
        """Neighbours that the transport cannot reach."""
        return self.outbox.down if self.outbox else frozenset()

    # --- the core loop -----------------------------------------------------------------------

    def run(self) -> None:
        """Take events until the last step is done. Raises Stop if asked to end before that, and
        whatever training raised."""
        with computing_alone():
            self._loop()

    def _loop(self) -> None:
        while not self._finished:
            self._turn(self.algorithm.next_deadline())
        while not self._events.empty():  # calls that came too late: nobody shall wait for answers
            event = self._events.get()
            if isinstance(event, Received | Gone) and event.head and event.head.kind is Kind.OFFER:
                self._feed(Gone(event.head.sender, event.head))

    def post(self, event: Event) -> None:
        """Hand over an event, from any thread."""
        self._events.put(event)

    def viewed(self, view: View) -> None:
        """Hand over a view, from any thread. Metrics travel even when the core loop has ended."""
        self.law.viewed(view)
        if not self.law.may_send(view.epoch):
            least = self.law.config.allow.min_swarm_size
            text = f"{view.n} members, but this site demands at least {least} "
            text += "(allow.min_swarm_size): training on alone, and sending nothing"
            logs.event(log, logging.WARNING, "sending_paused", text, members=view.n, least=least)
            self._refuse_by_law(f"epoch {view.epoch.term}.{view.epoch.number}: {text}")
        self.swarm.viewed(view)
        self.post(NewView(view))

    def stop_before(self, step: int) -> None:
        """The run ends before this step, or if this peer is past it now. From any thread."""
        self.swarm.stop_before(step)

        def stop_before() -> None:
            self._stop_step = min(self._stop_step, step)
            self.algorithm.stop_before(step)

        self.call(stop_before)

    def call(self, action: Callable[[], None]) -> None:
        """Have something done in the core thread."""
        self._events.put(_Call(action))

    def stop(self) -> None:
        """End the core loop, from any thread or a signal handler."""
        self.fail(Stop())

    def fail(self, error: Exception) -> None:
        """End the core loop with an error, from any thread."""

        def fail() -> None:
            raise error

        self.call(fail)

    def start_over(self, step: int, vector: Tensor | None) -> Future[None]:
        """Go on as a newcomer does, from any thread: with a fresh algorithm at `step`, and the
        model `vector` (shape (d,)) unless it is None; but from its own last step, with its own
        model, if that is as far by then. Cancelled if the core loop ends before that."""
        successor = _Successor(step, vector, Future())
        with self._guard:
            self._successors.append(successor)
            if self._closed:
                successor.begun.cancel()
        self._wake()
        return successor.begun

    def close(self) -> None:
        """Let the local steps under way come to their end."""
        self._training.close()
        self._busy = False
        with self._guard:
            self._closed = True
            self._answer_readers()
            for successor in self._successors:
                successor.begun.cancel()

    def evaluate(self) -> dict[str, float]:
        """Measure the model, once training is over."""
        measured = self._training.evaluate_last(self.steps_done)
        self.swarm.measured_last(measured)
        return {name: m.value for name, m in measured.items()}

    def release(self) -> None:
        """Nothing here changes or measures the model any more."""
        self._training.release()

    def _wake(self) -> None:
        """Let the core loop come round."""
        self.call(lambda: None)

    def _turn(self, deadline: float | None) -> None:
        due_s = NAP_S if deadline is None else deadline - time.monotonic()
        try:
            item = self._events.get(timeout=min(max(0.0, due_s), NAP_S))
        except queue.Empty:
            item = Tick()  # of no effect before the deadline
        if isinstance(item, _Call):
            item.action()
        else:
            self._feed(item)
        if not self._busy:
            self._between_steps()

    def _between_steps(self) -> None:
        """The live vector belongs to this thread: do what others wait for."""
        if self._readers:
            with self._guard:
                self._answer_readers()
        if self._successors:
            with self._guard:
                successors, self._successors = self._successors, []
            for successor in successors:
                self._succeed(successor)

    def _succeed(self, successor: _Successor) -> None:
        if successor.vector is not None and successor.step > self.steps_done:
            self.registers.about_to_write(LIVE)
            self.trainer.flat.vector.copy_(successor.vector)
        step = max(successor.step, self.steps_done)  # it has trained on while donors were asked
        for farewell in self.algorithm.farewells():
            self.send(farewell.to, farewell.head, None)
        self._begin(build_algorithm(self.trainer.config, step))
        self.algorithm.stop_before(self._stop_step)
        self.view = None
        self.swarm.restart()
        successor.begun.set_result(None)

    def _feed(self, event: Event) -> None:
        if isinstance(event, NewView):
            if event.view.resumes and self.view is None:
                self._resume(event.view)
            self.view = event.view
            self.metrics.viewed(event.view)
        self._driver.feed(event, time.monotonic())
        ended = Counter(self.algorithm.exchanges)
        self.metrics.exchanged(ended - self._exchanges)
        self._exchanges = ended

    def _resume(self, view: View) -> None:
        """All go on from their checkpoints of one step, as if never stopped."""
        self._checkpoints.resume(view, self.algorithm, self.registers)
        self._training.steps_done = view.effective_step

    # --- Host: what effects ask for ----------------------------------------------------------

    def train(self, effect: Train) -> None:
        if self._follows_swarm:
            effect = replace(effect, at=self.pace.place(effect.step))
        momentum = self.registers[effect.momentum.name] if effect.momentum else None
        if self._readers:  # a peer that never waits has no other time for them
            with self._guard:
                self._answer_readers()
        self._busy = True
        kept = self._checkpoints.capture(effect.step, self.algorithm, self.registers, self.view)

        def then(done: Future[TrainResult]) -> None:
            self.call(lambda: self._trained(effect.step, done))

        self._training.start(effect, momentum, kept, then)

    def _trained(self, step: int, done: Future[TrainResult]) -> None:
        self._busy = False
        result = done.result()
        self.loss, self._compute_s = result.loss, result.seconds
        self._local_steps = result.local_steps
        self._speed.took(result.local_steps, time.monotonic())
        self.metrics.speed.set(self._speed.steps_per_s)
        self.metrics.trained(result.loss, result.seconds, result.local_steps)
        if not self._successors:
            self._feed(Trained(step, result.lr, result.local_steps))

    def send(self, to: PeerId, head: Head, outgoing: Outgoing | None) -> None:
        assert self.outbox is not None
        if outgoing is not None and not self.law.may_send(head.epoch):
            outgoing.close()
            self.metrics.withheld.inc()
            outgoing = None
        self.outbox.send(to, head, outgoing)

    def cancel(self, to: PeerId, head: Head) -> None:
        assert self.outbox is not None
        self.outbox.cancel(to, head)

    def averaged(self, effect: Averaged) -> None:
        self._training.steps_done = effect.step + 1  # it may have jumped ahead of the training's
        self._models_counted = int(effect.counted)
        self.metrics.averaged(effect)
        self.announce(
            "step",
            peer=self.peer,
            step=effect.step,
            loss=self.loss,
            models_counted=self._models_counted,
            swarm_size=effect.swarm_size,
            missed=effect.missed,
            late=effect.late,
            local_steps=self._local_steps,
            compute_s=round(self._compute_s, 6),
            wait_s=round(effect.waited_s, 6),
            bytes_sent=value(self.metrics.bytes_sent),
        )

    def dropped(self, effect: Drop) -> None:
        self.metrics.drop(effect)

    def wants(self, metric: str) -> bool:  # noqa: ARG002
        return self.algorithm.step % OBSERVE_EVERY == 0

    def observed(self, metric: str, value: float) -> None:
        if metric == "consensus_distance":
            self.metrics.consensus_distance.set(value)

    def finished(self, effect: Finished) -> None:  # noqa: ARG002
        with self._guard:
            self._finished = True

    # --- Handler: called by transport threads ------------------------------------------------

    def admit(self, head: Head) -> Verdict:
        if head.kind is Kind.METRIC:
            return self.swarm.admit(head)
        if self._finished and head.kind is Kind.OFFER:
            return Verdict.STALE_STEP  # it would wait for an answer: the core loop has ended
        return self.algorithm.admit(head)

    def received(self, head: Head, vectors: tuple[Tensor, ...]) -> Verdict:
        if head.kind is Kind.METRIC:
            self.metrics.metric_messages_received.inc()
            return self.swarm.received(head, sums_of(head, vectors))
        self.metrics.received.inc()
        device = self.trainer.device
        messages = tuple(Message(head, k, vector.to(device)) for k, vector in enumerate(vectors))
        return self._take(head, Received(head, messages))

    def lost(self, head: Head) -> Verdict:
        if head.kind is not Kind.METRIC:
            return self._take(head, Gone(head.sender, head))
        self.swarm.received(head, {})
        return Verdict.ACCEPTED

    def _take(self, head: Head, event: Event) -> Verdict:
        with self._guard:  # so that `run` either sees a call, or has it refused here
            if self._finished and head.kind is Kind.OFFER:
                return Verdict.STALE_STEP
            self.post(event)
        return Verdict.ACCEPTED

    def broken(self, head: Head) -> None:
        if head.kind is not Kind.METRIC:  # it comes again, or is missed in silence
            self.post(Gone(head.sender, head))

    def refused(self, verdict: Verdict, head: Head) -> None:
        self.metrics.refuse(verdict)
        text = (
            f"{head.kind.value} of {head.sender[:64]!r}, step {head.step}, refused: {verdict.value}"
        )
        if verdict in ORDINARY:
            log.debug("%s", text)
        else:
            self._sparing.warning(verdict.value, text)

    def denied(self, denial: Denial, text: str) -> None:
        self.metrics.denied.labels(denial.value).inc()
        if self.audit is not None and denial is not Denial.STRANGER:
            self.audit.refused(denial.value, text)
        if denial is Denial.STRANGER:  # a neighbour whose view is newer, most of the time
            log.debug("call denied: %s", text)
        else:
            self._sparing.warning(denial.value, f"call denied: {text}")

    def bytes_in(self, count: int) -> None:
        self.metrics.bytes_received.inc(count)

    def objection(self, names: frozenset[str]) -> str:
        return self.law.objection(names)

    def copy(self) -> Tensor:
        algorithm = self.algorithm
        assert isinstance(algorithm, Pairwise), "only pairs exchange copies"
        return self.registers[algorithm.shared.name]

    def snapshot(self) -> Snapshot:
        """The live model as soon as no local step is under way."""
        wanted: Future[Snapshot] = Future()
        with self._guard:
            self._readers.append(wanted)
            if self._closed:
                self._answer_readers()
        self._wake()
        return wanted.result()

    def greeted(self, hello: Hello) -> bool:
        if self.healing is None:
            return False
        self.healing.heard(hello)
        return True

    def state(self) -> PeerState:
        view = self.view
        return PeerState(
            peer_id=self.peer,
            incarnation=view.members[self.peer] if view else 0,
            epoch=view.epoch if view else Epoch(),
            step=self.algorithm.step,
            state=self.doing,
            loss=self.loss if self.law.may_tell(LOSS) else math.nan,
            models_counted=self._models_counted,
            steps_per_s=self._speed.steps_per_s,
            swarm=self.swarm.known,
        )

    @property
    def common(self) -> Mean | None:
        """The mean of all, which the live model is at the end of a run in a common model."""
        algorithm = self.algorithm
        return algorithm.common if isinstance(algorithm, CommonModel) else None

    @property
    def unsure(self) -> Mean | None:
        """A mean that the live model is, without any word whether all others have it, too."""
        algorithm = self.algorithm
        return algorithm.held if isinstance(algorithm, CommonModel) and not self.common else None

    def rest(self) -> None:
        """The run is done: there is a model to be read, and nothing else."""
        self._finished = True
        self.close()

    @property
    def doing(self) -> str:
        """In a word, for status pages."""
        if self._finished:
            return "finished"
        if self.view is None:
            return "waiting"
        return "training" if self._busy else "averaging"

    # --- Reports: called by the outbox's threads ---------------------------------------------

    def sent(self, to: PeerId, head: Head, verdict: Verdict | None) -> None:
        is_metric = head.kind is Kind.METRIC
        if verdict is not None:
            (self.metrics.metric_messages_sent if is_metric else self.metrics.sent).inc()
        if not is_metric:
            self.post(SendDone(to, head, verdict))

    def unreachable(self, peer: PeerId) -> None:
        self.news.set()
        self.metrics.unreachable.inc()
        text = f"{peer} cannot be reached"
        logs.event(log, logging.WARNING, "peer_unreachable", text, neighbour=peer)
        self.swarm.gone(peer)
        if self.healing:
            self.healing.unreachable(peer)
        self.post(Gone(peer))

    def retried(self, peer: PeerId, reason: str) -> None:
        self.metrics.retried.labels(reason.lower()).inc()
        log.debug("a message to %s is sent again: %s", peer, reason)

    def bytes_out(self, count: int, wire_format: str) -> None:
        self.metrics.bytes_sent.labels(wire_format).inc(count)

    def _refuse_by_law(self, text: str) -> None:
        if self.audit is not None:
            self.audit.refused(Denial.LAW.value, text)

    def _answer_readers(self) -> None:
        readers, self._readers = self._readers, []
        for reader in readers:
            reader.set_result(self._snapshot())

    def _snapshot(self) -> Snapshot:
        flat = self.trainer.flat
        tensors = tuple((spec.name, tuple(spec.shape)) for spec in flat.layout)
        return Snapshot(flat.vector.detach().cpu().clone(), self.algorithm.step, tensors)
