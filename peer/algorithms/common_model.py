"""The end of a run in one model: after the last step, all models are averaged exactly, once.

    SUM   up     i sends its parent  w_i x_i + the sums of its children, once these are in
                 root   mean = (w_i x_i + the sums of all children) / (the sum of all weights)
    MEAN  down   every peer passes the mean on, as it came;  x <- mean
    HAVE  up     who has it, and heard so from all its children, tells its parent
    DONE  down   all have it: it is the common model, and each peer finishes

The mean is formed in one place and passed on as it is, so that all peers end with the same bits.
Sums are formed in visiting order: they are the same in every run. The root is that of `allreduce`;
with two trees each carries the sums of its half, and HAVE and DONE travel on the first.

Unlike there nothing may be missed. A message that was not taken is sent again: whoever has sent it
learns that from the answer, or that none came. A peer that dies is waited for until the coordinator
publishes an epoch without it. In that epoch

    who has a mean sends no sum, but the mean, to all its neighbours, and these to all others
    who has none sends its sum up as before
    of two means that meet the one that was formed later holds

So a new mean is formed only if nobody in the epoch has one, and one that anybody has reaches all:
whoever might have got it must have spoken first. A mean is called common only where all members of
one epoch have had it, and nobody finishes, or leaves an epoch, before that; every later epoch with
one of them in it goes on with that mean. `Membership` lets nobody else in once a peer has finished.
What is left, two means in parts of a swarm that know nothing of each other, takes a swarm that
heals its tree by itself, or a coordinator that has not heard, or forgets, that a peer finished;
`stop.min_peers` above half the peers is proof against that.

DONE holds in any epoch, for those that have the mean it is about: a peer that has finished cannot
say it again in the next one. To whoever asks it answers that it is over (STALE_STEP), which says
the same. Who hears nothing new for `PATIENCE` deadlines ends without a common model, and says so.

Messages are of the kind that `relaying` sends, marked as those of this round. A peer that has not
come so far wants them later (EPOCH_AHEAD).
"""

from __future__ import annotations

from collections.abc import Mapping

from peer.algorithms.allreduce import children_of, parent_of
from peer.algorithms.core import (
    LIVE,
    Algorithm,
    Coef,
    CoreState,
    Drop,
    DropReason,
    Effect,
    Event,
    Finished,
    Gone,
    Head,
    Kind,
    Lin,
    Mean,
    NewView,
    PeerId,
    Received,
    Reg,
    Role,
    Run,
    Send,
    SendDone,
    Set,
    Tick,
    Verdict,
    View,
)
from peer.algorithms.last_round import Last, Standing
from peer.algorithms.posts import Post, Posts
from peer.algorithms.relaying import Terms
from peer.algorithms.synchronous import Synchronous

X = Reg(LIVE)

PATIENCE = 10
"""Deadlines without any news, after which a peer ends without the common model."""


class CommonModel(Algorithm):
    """A method with steps, and after its last step the exact mean of all models."""

    name = "common-model"

    def __init__(self, method: Synchronous, run: Run) -> None:
        self.method = method
        self._run = run
        self._view: View | None = None  # the latest
        self._ending = False
        self._standing = Standing()
        self._posts = Posts()
        self._round = 0
        self._news_at = 0.0
        self._finished = False

    @property
    def held(self) -> Mean | None:
        """The mean that the live model is, once it is one."""
        return self._standing.held

    @property
    def common(self) -> Mean | None:
        """The same, once all have it."""
        return self._standing.common

    # --- the method's own ----------------------------------------------------------------------

    @property
    def registers(self) -> Mapping[str, Role]:
        return self.method.registers

    @property
    def step(self) -> int:
        return self.method.step

    @property
    def exchanges(self) -> Mapping[tuple[str, str], int]:
        return self.method.exchanges

    def state(self) -> CoreState | None:
        return self.method.state()

    def resume(self, state: CoreState) -> None:
        self.method.resume(state)

    def stop_before(self, step: int) -> None:
        self.method.stop_before(step)

    def farewells(self) -> list[Send]:
        return [] if self._ending else self.method.farewells()

    # --- who may say what ----------------------------------------------------------------------

    def admit(self, head: Head) -> Verdict:
        if head.exchange not in tuple(Last) or head.kind is not Kind.RELAY:
            return Verdict.STALE_STEP if self._ending else self.method.admit(head)
        if not self._ending or self._view is None:
            return Verdict.EPOCH_AHEAD
        return self._standing.judge(self._view, head)

    # --- events --------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        if not self._ending:
            return self.method.next_deadline()
        if self._finished:
            return None
        again_at = self._posts.next_deadline()
        return self._gives_up_at if again_at is None else min(self._gives_up_at, again_at)

    @property
    def _gives_up_at(self) -> float:
        return self._news_at + PATIENCE * self._run.deadline_s

    def handle(self, event: Event, now: float) -> list[Effect]:
        if self._finished:
            return []
        if isinstance(event, NewView) and (
            self._view is None or event.view.epoch.age > self._view.epoch.age
        ):
            if self._ending:
                return self._begin(event.view, now)
            self._view = event.view
        if not self._ending:
            return self._train(event, now)
        match event:
            case Received(head):
                return self._received(event, now)
            case Gone(_, Head() as head) if head.exchange in (Last.HAVE, Last.DONE):
                return self._heard(head, now)
            case SendDone(to, head, verdict) if head.exchange:
                return self._answered(to, head, verdict, now)
            case Tick():
                return self._tick(now)
        return []

    def _train(self, event: Event, now: float) -> list[Effect]:
        effects = self.method.handle(event, now)
        if not any(isinstance(effect, Finished) for effect in effects):
            return effects
        self._ending = True
        kept = [effect for effect in effects if not isinstance(effect, Finished)]
        return kept + self._begin(self._present, now)

    # --- the mean ------------------------------------------------------------------------------

    def _begin(self, view: View, now: float) -> list[Effect]:
        """Begin in the latest epoch, with the mean if there is one."""
        self._news_at = now
        self._standing.begin_epoch()
        self._view = view  # now that nothing of an earlier one is taken for its own
        self._posts = Posts()
        effects: list[Effect] = []
        if self.held:
            for tree in range(len(self._present.trees)):
                effects += self._pass_on(tree, self.held)
        if self.common:
            effects += self._say_done()
        return effects + self._advance()

    def _received(self, event: Received, now: float) -> list[Effect]:
        head = event.head
        if self.admit(head) is not Verdict.ACCEPTED:
            return [Drop(head, DropReason.UNEXPECTED)]
        self._news_at = now
        if head.exchange == Last.SUM:
            self._standing.sums[head.tree, head.sender] = event
            return self._advance()
        standing, mean = self._standing, head.mean
        assert mean is not None, "it was admitted"
        if mean != standing.coming:
            standing.expect(mean if mean.members else _mean_of(self._present))
            self._posts.drop(Last.MEAN)  # of an older one
        came = self._half(head.tree, Lin(((1, event.messages[0]),)), head.sender)
        return [*came, *self._advance()]

    def _heard(self, head: Head, now: float) -> list[Effect]:
        if self.admit(head) is not Verdict.ACCEPTED:
            return []
        self._news_at = now
        if head.exchange == Last.DONE:
            return [*self._agree(head.sender), *self._advance()]
        self._standing.have.add(head.sender)
        return self._advance()

    def _advance(self) -> list[Effect]:
        """Send what has become possible, and end once all has been taken."""
        effects: list[Effect] = []
        if self.held is None:
            if not self._present.trees:
                self._standing.held = _mean_of(self._present)  # of this peer alone
            for tree in range(len(self._present.trees)):
                effects += self._reduce(tree)
        effects += self._confirm()
        if self.common and not self._posts:
            self._finished = True
            effects.append(Finished(self.step))
        return effects

    def _reduce(self, tree: int) -> list[Effect]:
        view, standing = self._present, self._standing
        parent, children = parent_of(view, tree), children_of(view, tree)
        parts = [standing.sums.get((tree, child)) for child in children]
        came = [part for part in parts if part]
        if len(came) < len(parts) or tree in standing.summed or tree in standing.halves:
            return []
        standing.summed.add(tree)
        own: Terms = ((view.weight, X),) if view.weight else ()
        terms = (*own, *((1, part.messages[0]) for part in came))
        if parent is None:
            total = view.total_weight  # 0: nobody has learnt anything, and the root's model stands
            standing.coming = _mean_of(view)
            return self._half(tree, Lin(terms, total) if total else Lin(((1, X),)), None)
        count = 1 + sum(part.head.count for part in came)
        weight = view.weight + sum(view.weight_of(part.head) for part in came)
        return [self._post(Post(tree, parent, Last.SUM), Lin(terms), count, weight)]

    def _half(self, tree: int, lin: Lin, source: PeerId | None) -> list[Effect]:
        """The mean of a tree's coordinates is in: pass it on, and take it once all of it is in."""
        standing = self._standing
        mean = standing.coming
        assert mean is not None, "of no mean"
        standing.halves[tree] = lin
        effects: list[Effect] = []
        if len(standing.halves) == len(self._present.trees):
            effects += [Set(X, half, k) for k, half in sorted(standing.halves.items())]
            standing.hold(mean)
            self._posts.drop(Last.SUM)  # `x` is something else now
        self._posts.taken(Post(tree, source or "", Last.MEAN))
        return [*effects, *self._pass_on(tree, mean, source)]

    def _pass_on(self, tree: int, mean: Mean, source: PeerId | None = None) -> list[Effect]:
        return [
            self._post(Post(tree, j, Last.MEAN), self._part(mean, tree), mean.n, mean=mean)
            for j in self._present.trees[tree]
            if j != source
        ]

    def _part(self, mean: Mean, tree: int) -> Lin:
        """The coordinates of a tree: this peer has all of the mean, or that half of it."""
        return Lin(((1, X),)) if mean == self.held else self._standing.halves[tree]

    # --- who has it ----------------------------------------------------------------------------

    def _confirm(self) -> list[Effect]:
        """Once all behind this peer have the mean, say so; the root knows then that all have it."""
        view, standing = self._present, self._standing
        if self.held is None or self.common or standing.told:
            return []
        parent = parent_of(view, 0) if view.trees else None
        if view.trees and not standing.have.issuperset(children_of(view, 0)):
            return []
        standing.told = True
        if parent is None:
            return self._agree(None)
        return [self._post(Post(0, parent, Last.HAVE), mean=self.held)]

    def _agree(self, source: PeerId | None) -> list[Effect]:
        """All have it."""
        self._standing.common = self.held
        self._posts.drop(Last.HAVE)
        return self._say_done(source)

    def _say_done(self, source: PeerId | None = None) -> list[Effect]:
        neighbours = self._present.trees[0] if self._present.trees else ()
        posts = (Post(0, j, Last.DONE) for j in neighbours if j != source)
        return [self._post(post, mean=self.common) for post in posts]

    # --- messages ------------------------------------------------------------------------------

    def _post(
        self,
        post: Post,
        lin: Lin | None = None,
        count: Coef = 0,
        weight: Coef = 1,
        mean: Mean | None = None,
    ) -> Send:
        view = self._present
        if mean and (mean.epoch == view.epoch or lin is None):
            mean = Mean(mean.epoch)
        head = Head(
            sender=view.me,
            incarnation=view.members[view.me],
            epoch=view.epoch,
            step=self.step,
            exchange=post.what,
            kind=Kind.RELAY,
            round=self._round,
            tree=post.tree,
            count=count,
            weight=weight if view.weights else 1,
            lost=lin is None,
            mean=mean,
        )
        send = Send(post.to, head, (lin,) * type(self.method).sections if lin else ())
        self._posts.add(post, send)
        return send

    def _answered(
        self, to: PeerId, head: Head, verdict: Verdict | None, now: float
    ) -> list[Effect]:
        post = Post(head.tree, to, Last(head.exchange))
        if not self._posts.is_awaited(post, head):
            return []
        is_over = verdict is Verdict.STALE_STEP and head.mean and head.mean == self.held
        if not is_over and verdict not in (Verdict.ACCEPTED, Verdict.DUPLICATE):
            self._posts.was_not_taken(post, now)
            return []
        self._posts.taken(post)
        agreed = self._agree(to) if is_over and not self.common else []
        return [*agreed, *self._advance()]

    def _tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        due = self._posts.due(now)
        self._round += bool(due)  # another message, for whoever decides what gets lost
        for post in due:
            head, lins = self._posts[post].head, self._posts[post].lins
            lin = lins[0] if lins else None
            if post.what is Last.MEAN and head.mean:
                lin = self._part(head.mean, post.tree)
            effects.append(self._post(post, lin, head.count, head.weight, head.mean))
        if now >= self._gives_up_at:
            self._finished = True
            effects.append(Finished(self.step))
        return effects

    @property
    def _present(self) -> View:
        assert self._view is not None, "no topology yet"
        return self._view


def _mean_of(view: View) -> Mean:
    """The mean of all its members' models."""
    return Mean(view.epoch, tuple(view.members), view.weights)
