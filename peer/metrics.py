"""What a peer tells Prometheus."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from wsgiref.simple_server import WSGIServer

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from peer.algorithms.core import Averaged, Drop, DropReason, PeerId, Verdict, View
from peer.algorithms.metric_relay import SwarmMean
from relayswarm.errors import ConfigError
from relayswarm.net.gate import Denial
from relayswarm.site import LOSS

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class PeerMetrics:
    """All of one peer's metrics, in a registry of their own."""

    def __init__(self, may_leave: Callable[[str], bool] = lambda _: True) -> None:
        """`may_leave` says of which measurements, by name, anything is exported."""
        self._may_leave = may_leave
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.info = self._gauge("info", "1, of the run and peer of this process.", ["run", "peer"])
        self.step = self._gauge("step", "The step being trained or averaged.")
        self.steps = self._counter("steps", "Steps finished.")
        self.step_seconds = Histogram(
            "relayswarm_peer_step_seconds",
            "Seconds of a step, by what they were spent on.",
            ["phase"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.local_steps = self._counter("local_steps", "Optimizer steps taken.")
        self.speed = self._gauge(
            "local_steps_per_second", "Optimizer steps per second, over the last seconds."
        )
        self.loss = self._gauge("training_loss", "Training loss of the last step.")
        self.losses_not_finite = self._counter(
            "losses_not_finite", "Steps whose loss was not finite."
        )
        self.evaluation = self._gauge("evaluation", "Last evaluation's values.", ["metric"])
        self.swarm_metric = self._gauge(
            "swarm_metric", "The swarm's weighted mean, as this peer knows it.", ["metric"]
        )
        self.swarm_metric_peers = self._gauge(
            "swarm_metric_peers", "How many peers measured what is in that mean.", ["metric"]
        )
        self.swarm_metric_weight = self._gauge(
            "swarm_metric_weight", "The sum of their weights, such as samples.", ["metric"]
        )
        self.swarm_metrics_step = self._gauge(
            "swarm_metrics_step", "Step of the evaluation that these means are of."
        )
        self.models_counted = self._gauge("models_counted", "Models in the last average.")
        self.swarm_size = self._gauge("swarm_size", "Members of this peer's epoch.")
        self.epoch_term = self._gauge("epoch_term", "Term of this peer's epoch of topology.")
        self.epoch_number = self._gauge("epoch_number", "Number of this peer's epoch.")
        self.consensus_distance = self._gauge(
            "consensus_distance", "Distance from the mean of the models that came in."
        )
        self.sent = self._counter("messages_sent", "Messages sent and answered.")
        self.received = self._counter("messages_received", "Messages received whole.")
        self.expected = self._counter("messages_expected", "Messages that steps counted on.")
        self.late = self._counter("messages_used_late", "Messages used after their step.")
        self.missed = self._counter("messages_missed", "Messages that a step went without.")
        self.timed_out = self._counter(
            "messages_timed_out", "Messages that were awaited until a deadline."
        )
        self.metric_messages_sent = self._counter(
            "metric_messages_sent", "Messages with sums of metrics, sent and answered."
        )
        self.metric_messages_received = self._counter(
            "metric_messages_received", "Messages with sums of metrics, received whole."
        )
        self.refused = self._counter(
            "messages_refused", "Messages refused on arrival, by verdict.", ["reason"]
        )
        self.denied = self._counter(
            "calls_denied", "Calls turned away at the door, by reason.", ["reason"]
        )
        for verdict in Verdict:
            if verdict is not Verdict.ACCEPTED:
                self._refused_as(verdict)
        for denial in Denial:
            self.denied.labels(denial.value)
        self.epsilon = self._gauge(
            "privacy_epsilon",
            "Of all movements released so far, at privacy.delta; +Inf: no such guarantee.",
        )
        self.epsilon.set(math.inf)
        self.withheld = self._counter(
            "messages_withheld", "Messages not sent: the site's own law forbade it."
        )
        self.audited = self._counter("audit_records", "Records written to the site's audit.")
        self.retried = self._counter("messages_retried", "Sent again, by reason.", ["reason"])
        self.dropped = self._counter("messages_dropped", "Messages left unused.", ["reason"])
        for reason in DropReason:
            self.dropped.labels(reason.value)
        self.exchanges = Counter(
            "relayswarm_exchanges",
            "Pairwise exchanges that ended, by who averaged as far as this peer knows.",
            ["role", "outcome"],
            registry=self.registry,
        )
        self.bytes_sent = self._counter(
            "sent_bytes", "Bytes of messages sent, by wire format.", ["format"]
        )
        self.bytes_received = self._counter("received_bytes", "Bytes of messages received.")
        self.unreachable = self._counter("unreachable_neighbours", "Outages of a neighbour.")
        self.checkpoint_seconds = Histogram(
            "relayswarm_peer_checkpoint_seconds",
            "Seconds to write a checkpoint.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.lease_expiries = self._counter("lease_expiries", "Times the swarm let us go.")
        self.gpu_memory = self._gauge(
            "gpu_memory_bytes", "Memory of this peer's GPU: by torch for it, and in all.", ["kind"]
        )
        self.checkpoint_failures = self._counter("checkpoint_failures", "Checkpoints not written.")

    def serve(self, host: str, port: int) -> tuple[str, WSGIServer]:
        """Serve them over HTTP; returns address and server. Raises ConfigError if the port is
        taken."""
        try:
            server, _ = start_http_server(port, host, registry=self.registry)
        except OSError as error:
            raise ConfigError(
                "metrics address",
                f"{host}:{port}",
                f"cannot be listened on ({error.strerror})",
                "choose a free port, or 0 to have one chosen",
            ) from error
        return f"{host}:{server.server_port}", server

    def belong(self, run_id: str, peer: PeerId, device: torch.device) -> None:
        """Say whose these metrics are, and watch the memory of its GPU, if it has one."""
        self.info.labels(run_id, peer).set(1)
        if device.type != "cuda":
            return
        kinds: dict[str, Callable[[], float]] = {
            "allocated": partial(torch.cuda.memory_allocated, device),
            "reserved": partial(torch.cuda.memory_reserved, device),
            "total": lambda: torch.cuda.mem_get_info(device)[1],
        }
        for kind, read in kinds.items():
            self.gpu_memory.labels(kind).set_function(read)

    def averaged(self, effect: Averaged) -> None:
        self.steps.inc()
        self.step.set(effect.step + 1)
        self.step_seconds.labels("wait").observe(effect.waited_s)
        self.models_counted.set(float(effect.counted))
        self.expected.inc(effect.expected)
        self.missed.inc(effect.missed)
        self.late.inc(effect.late)
        self.timed_out.inc(effect.timed_out)

    def trained(self, loss: float, seconds: float, local_steps: int) -> None:
        self.local_steps.inc(local_steps)
        self.step_seconds.labels("compute").observe(seconds)
        self.loss.set(loss if self._may_leave(LOSS) else math.nan)
        if not math.isfinite(loss):
            self.losses_not_finite.inc()

    def viewed(self, view: View) -> None:
        self.swarm_size.set(view.n)
        self.epoch_term.set(view.epoch.term)
        self.epoch_number.set(view.epoch.number)

    def evaluated(self, values: Mapping[str, float]) -> None:
        for metric, value in values.items():
            if self._may_leave(metric):
                self.evaluation.labels(metric).set(value)

    def learnt(self, swarm: SwarmMean) -> None:
        self.swarm_metrics_step.set(swarm.step)
        for metric, one in swarm.sums.items():
            self.swarm_metric.labels(metric).set(math.nan if one.mean is None else float(one.mean))
            self.swarm_metric_peers.labels(metric).set(one.peers)
            self.swarm_metric_weight.labels(metric).set(float(one.weight))

    @property
    def waited_s(self) -> float:
        """Seconds that all steps together have waited for messages."""
        samples = next(iter(self.step_seconds.collect())).samples
        sums = {s.labels["phase"]: s.value for s in samples if s.name.endswith("_sum")}
        return sums.get("wait", 0.0)

    def refuse(self, verdict: Verdict) -> None:
        self._refused_as(verdict).inc()

    def _refused_as(self, verdict: Verdict) -> Counter:
        return self.refused.labels(verdict.value.replace(" ", "_"))

    def exchanged(self, ended: Mapping[tuple[str, str], int]) -> None:
        for labels, count in ended.items():
            self.exchanges.labels(*labels).inc(count)

    def drop(self, effect: Drop) -> None:
        self.dropped.labels(effect.reason.value).inc()

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(f"relayswarm_peer_{name}", text, labels or [], registry=self.registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"relayswarm_peer_{name}", text, labels or [], registry=self.registry)


def value(counter: Counter) -> int:
    """A counter's present value, of all labels together, for the peer's own report."""
    samples = next(iter(counter.collect())).samples
    return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))
