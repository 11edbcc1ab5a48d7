"""What the coordinator tells people and programs: log lines, and with `--json` lines of JSON.

What belongs here: the text of each notice, in both forms, with the same reason in both.
"""

from __future__ import annotations

import logging
import os
from typing import Any, TextIO

from coordinator.conductor import Denied, Notice, Publication, SamplesRefused, StopPublished
from coordinator.members import Admitted, GaveUp, Gone, NoTree, Refused, RunFinished, Waiting
from coordinator.messages import reason_text
from coordinator.reach import no_tree_text
from relayswarm import logs
from relayswarm.events import EventStream
from relayswarm.net.sparing import SparingLog

log = logging.getLogger("relayswarm.coordinator")

LENGTHY = {"epoch", "edges", "trees", "graph_edges", "detail"}
"""Fields of events that log lines go without: they would be long, or are in them already."""


class Announcer:
    """A listener of the conductor. `stream`: where JSON lines go; None: no JSON."""

    def __init__(self, stream: TextIO | None) -> None:
        self._events = EventStream(stream) if stream is not None else None
        self._sparing = SparingLog(log)

    def event(self, name: str, text: str, level: int = logging.INFO, **fields: Any) -> None:
        """Log it, and write one JSON line, flushed."""
        logs.event(log, level, name, text, **{k: v for k, v in fields.items() if k not in LENGTHY})
        self._write(name, **fields)

    def _write(self, name: str, **fields: Any) -> None:
        if self._events:
            self._events({"event": name, **fields})

    def standing_by(self, store: str) -> None:
        """Another coordinator may lead."""
        self.event("standing_by", f"standing by to lead the run in {store}", pid=os.getpid())

    def started(self, run_id: str, address: str, metrics_address: str, url: str) -> None:
        """The coordinator listens."""
        logs.set_context(run=lambda: run_id)
        self.event(
            "coordinator_started",
            f"run {run_id}: join with relayswarm peer --coordinator {address}; "
            f"watch it at {url}, metrics are at /metrics there",
            pid=os.getpid(),
            address=address,
            metrics_address=metrics_address,
            run_id=run_id,
        )

    def __call__(self, notice: Notice) -> None:
        """Log the notice, and write it as JSON."""
        match notice:
            case Waiting():
                self._waiting(notice)
            case Admitted():
                self._admitted(notice)
            case Denied():
                self._sparing.warning(notice.denial.value, f"call denied: {notice.text}")
            case SamplesRefused():
                faults = ", ".join(f"{n} for {fault.value}" for fault, n in notice.faults.items())
                text = f"metrics of {notice.peer_id!r} not taken: {faults}"
                self._sparing.warning("metrics", text)
            case Refused():
                reason = notice.refusal.value
                self._sparing.warning(reason, f"join refused ({reason}): {notice.text}")
                self._write("join_refused", reason=notice.refusal.value, text=notice.text)
            case Gone():
                self._gone(notice)
            case Publication():
                self._published(notice)
            case StopPublished(step, reason):
                text = f"the run ends before step {step}: {reason}"
                self.event("stop", text, step=step, reason=reason)
            case RunFinished():
                self.event("finished", "the run has finished")
            case GaveUp():
                text, present = gave_up_text(notice), len(notice.present)
                self.event("gave_up", text, logging.ERROR, present=present, needed=notice.needed)
            case NoTree():
                text, level = no_tree_text(notice.present), logging.WARNING
                members = list(notice.present)
                self.event("no_tree", text, level, members=members, final=notice.is_final)

    def _waiting(self, waiting: Waiting) -> None:
        present = len(waiting.present)
        text = f"waiting for {waiting.needed - present} of {waiting.needed} peers"
        members = list(waiting.present)
        self.event("waiting", text, present=present, needed=waiting.needed, members=members)

    def _admitted(self, admitted: Admitted) -> None:
        member = admitted.member
        if admitted.candidate or admitted.again:
            return
        peer, address, shard = member.peer_id, member.address, member.shard
        place = f"at {address}" if address else "to dial out only"
        text = f"{peer} joined {place}, shard {shard}"
        self.event("member_joined", text, peer=peer, address=address, shard=shard)
        if admitted.note:
            log.warning("%s: %s", peer, admitted.note)

    def _gone(self, gone: Gone) -> None:
        peer, step = gone.member.peer_id, gone.member.progress.step
        if gone.reason is None:
            self.event("member_finished", f"{peer} has done all steps", peer=peer, step=step)
        else:
            why = gone.reason.value
            text = f"{peer} is gone at step {step}: {why}"
            self.event("member_lost", text, logging.WARNING, peer=peer, step=step, reason=why)

    def _published(self, publication: Publication) -> None:
        elected, layout = publication.elected, publication.layout
        epoch = f"{elected.term}.{elected.number}"
        logs.set_context(epoch=lambda: epoch)
        text = (
            f"epoch {epoch} from step {elected.effective_step}: {len(layout.members)} peers, "
            f"root {layout.root}, diameter {layout.diameter} ({reason_text(elected, layout)})"
        )
        self.event("topology", text, **topology_fields(publication))


def topology_fields(publication: Publication) -> dict[str, Any]:
    """An epoch as JSON values. `edges` are those of all trees, each once."""
    elected, layout = publication.elected, publication.layout
    return {
        "epoch": {"term": elected.term, "number": elected.number},
        "root": layout.root,
        "edges": list(dict.fromkeys(edge for tree in layout.tree_edges for edge in tree)),
        "trees": layout.tree_edges,
        "members": layout.members,
        "reason": elected.reason.value,
        "detail": reason_text(elected, layout),
        "notes": layout.notes,
        "effective_step": elected.effective_step,
        "diameter": layout.diameter,
        "lr_factor": str(layout.lr_factor),
        "graph_edges": layout.graph_edges,
    }


def gave_up_text(gave_up: GaveUp) -> str:
    """The message with which a coordinator ends that waited in vain."""
    here = f" (here: {' '.join(gave_up.present)})" if gave_up.present else ""
    missing = gave_up.needed - len(gave_up.present)
    return (
        f"waiting for {missing} of {gave_up.needed} peers{here}, and gave up after "
        "coordinator.start_timeout_s; start the missing peers sooner, or raise it"
    )
