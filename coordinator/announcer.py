"""What the coordinator tells people and programs: log lines, and with `--json` lines of JSON.

What belongs here: the text of each notice, in both forms, with the same reason in both.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import Any, TextIO

from coordinator.conductor import Denied, Notice, Publication
from coordinator.members import Admitted, GaveUp, Gone, Refused, RunFinished, Waiting
from coordinator.messages import reason_text
from relayswarm.net.sparing import SparingLog

log = logging.getLogger("relayswarm.coordinator")


class Announcer:
    """A listener of the conductor. `stream`: where JSON lines go; None: no JSON."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._guard = threading.Lock()
        self._sparing = SparingLog(log)

    def event(self, name: str, **fields: Any) -> None:
        """Write one JSON line, flushed."""
        with self._guard:
            if self._stream is None:
                return
            try:
                self._stream.write(json.dumps({"event": name, **fields}) + "\n")
                self._stream.flush()
            except BrokenPipeError:
                self._stream = None  # nobody listens any more

    def started(self, run_id: str, address: str, metrics_address: str) -> None:
        """The coordinator listens."""
        log.info("run %s: join with relayswarm peer --coordinator %s", run_id, address)
        log.info("watch it at http://%s, metrics are at /metrics there", metrics_address)
        self.event(
            "coordinator_started",
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
            case Refused():
                reason = notice.refusal.value
                self._sparing.warning(reason, f"join refused ({reason}): {notice.text}")
                self.event("join_refused", reason=notice.refusal.value, text=notice.text)
            case Gone():
                self._gone(notice)
            case Publication():
                self._published(notice)
            case RunFinished():
                log.info("the run has finished")
                self.event("finished")
            case GaveUp():
                log.error("%s", gave_up_text(notice))
                self.event("gave_up", present=len(notice.present), needed=notice.needed)

    def _waiting(self, waiting: Waiting) -> None:
        present = len(waiting.present)
        log.info("waiting for %d of %d peers", waiting.needed - present, waiting.needed)
        self.event("waiting", present=present, needed=waiting.needed, members=list(waiting.present))

    def _admitted(self, admitted: Admitted) -> None:
        member = admitted.member
        if admitted.candidate or admitted.again:
            return
        log.info("%s joined at %s, shard %d", member.peer_id, member.address, member.shard)
        if admitted.note:
            log.warning("%s: %s", member.peer_id, admitted.note)
        self.event("member_joined", peer=member.peer_id, address=member.address, shard=member.shard)

    def _gone(self, gone: Gone) -> None:
        peer, step = gone.member.peer_id, gone.member.progress.step
        if gone.reason is None:
            log.info("%s has done all steps", peer)
            self.event("member_finished", peer=peer, step=step)
        else:
            log.warning("%s is gone at step %d: %s", peer, step, gone.reason.value)
            self.event("member_lost", peer=peer, step=step, reason=gone.reason.value)

    def _published(self, publication: Publication) -> None:
        elected, layout = publication.elected, publication.layout
        log.info(
            "epoch %d.%d from step %d: %d peers, root %s, diameter %d (%s)",
            elected.term,
            elected.number,
            elected.effective_step,
            len(layout.members),
            layout.root,
            layout.diameter,
            reason_text(elected, layout),
        )
        self.event("topology", **topology_fields(publication))


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
