"""Numerical traces against plain NumPy loops, written from the papers' listings alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peer.algorithms.core import Epoch, Head, Kind
from peer.codec.edges import dither_seed
from peer.simulator.trace import run_trace

N, D, T, LR = 4, 3, 12, 0.02
CHAIN = [(0, 1), (1, 2), (2, 3)]
STAR = [(0, 1), (0, 2), (0, 3)]
RING = [(0, 1), (1, 2), (2, 3), (0, 3)]

Array = Any


@pytest.fixture
def traced(tmp_path: Path) -> Callable[..., dict[str, Array]]:
    """Runs the product: method, settings and arrays in, the arrays of the trace out."""

    def run(method: str, *settings: str, **arrays: Array) -> dict[str, Array]:
        np.savez(tmp_path / "problem.npz", **(problem() | arrays))
        out = tmp_path / "trace.npz"
        lr = None if "lr" in arrays else LR
        run_trace(tmp_path / "problem.npz", method, T, lr, settings, out)
        with np.load(out) as file:
            return {name: file[name] for name in file.files}

    return run


def problem(n: int = N) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    return {
        "A": rng.normal(size=(n, D, D)),
        "b": rng.normal(size=(n, D)),
        "x0": rng.normal(size=D),
    }


def losses(n: int = N, share: float = 0.25) -> Array:
    return np.random.default_rng(3).random((T, n, n)) < share


# --- local steps ----------------------------------------------------------------------------------


class Local:
    """Peers' local steps on ||A x + b||^2: plain, with (Nesterov) momentum, or Adam."""

    def __init__(
        self,
        n: int = N,
        steps: int = 1,
        rates: Sequence[float] = (LR,) * T,
        momentum: float = 0.0,
        nesterov: bool = False,
        adam: bool = False,
    ) -> None:
        arrays = problem(n)
        self.a, self.b, self.x0 = arrays["A"], arrays["b"], arrays["x0"]
        self.n, self.steps, self.rates = n, steps, rates
        self.momentum, self.nesterov, self.adam = momentum, nesterov, adam
        self.m, self.v, self.count = np.zeros((n, D)), np.zeros((n, D)), [0] * n

    def gradient(self, i: int, x: Array) -> Array:
        return 2 * self.a[i].T @ (self.a[i] @ x + self.b[i])

    def move(self, i: int, x: Array, t: int, steps: int | None = None) -> Array:
        """x after the local steps of step t."""
        for _ in range(self.steps if steps is None else steps):
            x = x - self.rates[t] * self.direction(i, self.gradient(i, x))
        return x

    def direction(self, i: int, g: Array) -> Array:
        if self.adam:
            self.count[i] += 1
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = 0.999 * self.v[i] + 0.001 * g * g
            m_hat = self.m[i] / (1 - 0.9 ** self.count[i])
            v_hat = self.v[i] / (1 - 0.999 ** self.count[i])
            return m_hat / (np.sqrt(v_hat) + 1e-8)
        self.m[i] = self.momentum * self.m[i] + g
        return g + self.momentum * self.m[i] if self.nesterov else self.m[i]

    def start(self) -> Array:
        return np.tile(self.x0, (self.n, 1))

    def halves(self, x: Array, t: int) -> Array:
        return np.stack([self.move(i, x[i], t) for i in range(self.n)])


def none_lost(n: int = N) -> Array:
    return np.zeros((T, n, n), dtype=bool)


def around(edges: Sequence[tuple[int, int]], i: int) -> list[int]:
    return sorted({b if a == i else a for a, b in edges if i in (a, b)})


# --- references: relaying -------------------------------------------------------------------------


def relayed(
    edges: Sequence[tuple[int, int]], own: Array, m: dict, c: dict, drops: Array
) -> tuple[dict, dict]:
    """Lines 5 to 8 of Algorithm 1: what arrives in this step, and its counts."""
    sent_m, sent_c = {}, {}
    for i, j in m:
        others = [k for k in around(edges, i) if k != j]
        arrives = 0.0 if drops[i, j] else 1.0
        sent_m[i, j] = arrives * (own[i] + sum(m[k, i] for k in others))
        sent_c[i, j] = int(arrives) * (1 + sum(c[k, i] for k in others))
    return sent_m, sent_c


def relaysgd(
    edges: Sequence[tuple[int, int]],
    local: Local,
    *,
    fallback: str = "previous",
    overlap: bool = False,
    drops: Array | None = None,
) -> tuple[Array, Array]:
    drops, n, x = none_lost() if drops is None else drops, local.n, local.start()
    m = {(i, j): np.zeros(D) for i in range(n) for j in around(edges, i)}
    c = dict.fromkeys(m, 0)
    models, counts = [x], []
    for t in range(T):
        half = local.halves(x, t)
        arrived = relayed(edges, half, m, c, drops[t])
        used_m, used_c = (m, c) if overlap else arrived
        total = np.stack([half[i] + sum(used_m[j, i] for j in around(edges, i)) for i in range(n)])
        n_bar = np.array([1 + sum(used_c[j, i] for j in around(edges, i)) for i in range(n)])
        if fallback == "counts":
            x = total / n_bar[:, None]
        else:
            x = (total + (n - n_bar)[:, None] * x) / n
        m, c = arrived
        models.append(x)
        counts.append(n_bar)
    return np.stack(models), np.stack(counts)


def relaysgd_grad(edges: Sequence[tuple[int, int]], local: Local, drops: Array) -> Array:
    n, x = local.n, local.start()
    m = {(i, j): np.zeros(D) for i in range(n) for j in around(edges, i)}
    c = dict.fromkeys(m, 0)
    models = [x]
    for t in range(T):
        u = local.halves(x, t) - x
        m, c = relayed(edges, u, m, c, drops[t])
        x = np.stack([x[i] + (u[i] + sum(m[j, i] for j in around(edges, i))) / n for i in range(n)])
        models.append(x)
    return np.stack(models)


def relaysum(edges: Sequence[tuple[int, int]], local: Local, drops: Array) -> Array:
    n, x = local.n, local.start()
    m = {(i, j): np.zeros(D) for i in range(n) for j in around(edges, i)}
    c = dict.fromkeys(m, 0)
    y, s, models = np.zeros((n, D)), np.zeros(n), [x]
    for t in range(T):
        d = local.halves(x, t)
        m, c = relayed(edges, d, m, c, drops[t])
        for i in range(n):
            y[i] += d[i] + sum(m[j, i] for j in around(edges, i))
            s[i] += 1 + sum(c[j, i] for j in around(edges, i))
        x = y / s[:, None]
        models.append(x)
    return np.stack(models)


# --- references: gossip ---------------------------------------------------------------------------


def metropolis(edges: Sequence[tuple[int, int]], n: int = N) -> Array:
    w = np.zeros((n, n))
    for i in range(n):
        for j in around(edges, i):
            w[i, j] = 1 / (1 + max(len(around(edges, i)), len(around(edges, j))))
        w[i, i] = 1 - w[i].sum()
    return w


def rows(w: Array, lost: Array) -> Array:
    """W where message i to j lost means that j does without i, rescaled."""
    there = np.where(lost.T & ~np.eye(len(w), dtype=bool), 0.0, w)
    return there / there.sum(axis=1, keepdims=True)


def dpsgd(w: Array, local: Local, drops: Array) -> Array:
    x = local.start()
    models = [x]
    for t in range(T):
        x = rows(w, drops[t]) @ local.halves(x, t)
        models.append(x)
    return np.stack(models)


def dpsgd_qgm(w: Array, local: Local, drops: Array, beta: float) -> Array:
    x, m = local.start(), np.zeros((local.n, D))
    models = [x]
    for t in range(T):
        half = x.copy()
        for i in range(local.n):
            for _ in range(local.steps):
                g = local.gradient(i, half[i])
                half[i] = half[i] - local.rates[t] * (g + beta * (beta * m[i] + g))
        new = rows(w, drops[t]) @ half
        m = beta * m + (1 - beta) * (x - new) / local.rates[t]
        x = new
        models.append(x)
    return np.stack(models)


def dpsgd_qgm_adam(w: Array, local: Local, drops: Array, decay: float = 0.0) -> Array:
    """QG-DAdam of Lin et al.: gather after the exchange, the local step only reads."""
    x, m, v = local.start(), np.zeros((local.n, D)), np.zeros((local.n, D))
    models = [x]
    for t in range(T):
        half = x.copy()
        for i in range(local.n):
            for _ in range(local.steps):
                g = local.gradient(i, half[i]) + decay * half[i]
                m_hat = (0.9 * m[i] + 0.1 * g) / (1 - 0.9 ** (t + 1))
                v_hat = (0.999 * v[i] + 0.001 * g * g) / (1 - 0.999 ** (t + 1))
                half[i] = half[i] - local.rates[t] * m_hat / (np.sqrt(v_hat) + 1e-8)
        new = rows(w, drops[t]) @ half
        if local.rates[t]:
            d = (x - new) / local.rates[t]
            d /= np.linalg.norm(d, axis=1, keepdims=True) + 1e-8
        else:
            d = np.zeros_like(x)
        m, v = 0.9 * m + 0.1 * d, 0.999 * v + 0.001 * d * d
        x = new
        models.append(x)
    return np.stack(models)


def d2(w: Array, local: Local, drops: Array) -> Array:
    x, c = local.start(), np.zeros((local.n, D))
    models = [x]
    for t in range(T):
        u = local.halves(x, t) - x
        new = rows(w, drops[t]) @ (x + u + c)
        c = new - x - u
        x = new
        models.append(x)
    return np.stack(models)


def gradient_tracking(w: Array, local: Local, drops: Array) -> Array:
    x, c = local.start(), np.zeros((local.n, D))
    models = [x]
    for t in range(T):
        u = local.halves(x, t) - x
        mixing = rows(w, drops[t])
        x, c = mixing @ (x + u + c), mixing @ (c + u) - u
        models.append(x)
    return np.stack(models)


def sgp(local: Local, drops: Array, rounds: int = 2) -> Array:
    n, x, w = local.n, local.start(), np.ones(local.n)
    k, models = int(math.log2(n)), [x]
    for t in range(T):
        x = local.halves(x, t)
        for r in range(rounds):
            o = 2 ** ((rounds * t + r) % k)
            vector, weight = x * w[:, None] / 2, w / 2
            x, w = vector.copy(), weight.copy()
            for i in range(n):
                j = (i + o) % n
                if not drops[t, j, i]:
                    x[i] += vector[j]
                    w[i] += weight[j]
            x = x / w[:, None]
        models.append(x)
    return np.stack(models)


# --- references: all-reduce and pairs -------------------------------------------------------------


def allreduce(local: Local, lost_for: Callable[[int, int], bool]) -> Array:
    x = local.start()
    models = [x]
    for t in range(T):
        half = local.halves(x, t)
        mean = half.mean(axis=0)
        x = np.stack([half[i] if lost_for(t, i) else mean for i in range(local.n)])
        models.append(x)
    return np.stack(models)


PAIRS = np.array([(0, 1), (1, 2), (3, 2), (2, 3), (0, 1), (1, 0), (2, 1), (3, 2), (0, 1)])
STEPS = np.array([1, 2, 1, 3, 2, 1, 1, 2, 1])


class Lattice:
    """Q: x to the nearest multiples of the pitch, at random; the pitch is a power of two, at least
    1.5 / 127 of the largest of the last eight distances, and at least max |x| / 2^20."""

    def __init__(self, n: int = N) -> None:
        self.seen = [[] for _ in range(n)]
        self.rounded = 0

    def __call__(self, x: Array, i: int, to: int, step: int, kind: Kind) -> Array:
        if not self.seen[i]:
            return x
        least = max(1.5 * max(self.seen[i][-8:]) / 127, np.abs(x).max() / 2**20)
        pitch = 2.0 ** math.ceil(math.log2(least))
        head = Head(f"peer-{i}", 1, Epoch(), step, kind)
        stream = np.random.SFC64(dither_seed(0, head, f"peer-{to}"))
        dither = stream.random_raw(-(-len(x) // 8)).view(np.uint8)[: len(x)]
        self.rounded += 1
        return np.floor((np.rint(256 * x / pitch) + dither) / 256) * pitch

    def met(self, x_i: Array, q_j: Array, i: int) -> None:
        distance = np.abs(x_i - q_j).max()
        if distance > 0:
            self.seen[i].append(distance)


class Identity(Lattice):
    def __call__(self, x: Array, *place: Any) -> Array:  # noqa: ARG002
        return x


def in_pairs(
    method: str, local: Local, steps: Array, *, blocking: bool = False, q: Lattice | None = None
) -> Array:
    q = q or Identity()
    done = [0] * N  # steps of each peer: those it initiated, in the blocking form all its own
    x = local.start()
    x_hat, models = x.copy(), [x.copy()]
    for k, (i, j) in enumerate(PAIRS):
        if blocking:
            x_i, x_j = (local.move(p, x[p], k, int(steps[k])) for p in (i, j))
        else:
            start = x[i] if method == "adpsgd" else x_hat[i]
            delta = local.move(i, start, k, int(steps[k])) - start
            x_i, x_j = x[i], x[j]
        q_i = q(x_i, i, j, done[i], Kind.OFFER)
        q_j = q(x_j, j, i, done[i], Kind.REPLY)
        q.met(x_i, q_j, i)
        q.met(x_j, q_i, j)
        avg = (q_i + q_j) / 2
        x[j], x[i] = avg, avg if blocking else avg + delta
        x_hat[i] = x[i]
        done[i] += 1
        done[j] += blocking
        models.append(x.copy())
    return np.stack(models)


# --- the methods ----------------------------------------------------------------------------------


def close(trace: dict[str, Array], expected: Array) -> None:
    assert trace["x"].dtype == np.float64
    np.testing.assert_allclose(trace["x"], expected, rtol=0, atol=1e-12 * np.abs(expected).max())


LOCAL = {
    "plain": ((), {}),
    "two local steps": (("algorithm.local_steps=2",), {"steps": 2}),
    "momentum": (("optimizer.momentum=0.8",), {"momentum": 0.8}),
    "nesterov": (
        ("optimizer.momentum=0.8", "optimizer.nesterov=true"),
        {"momentum": 0.8, "nesterov": True},
    ),
    "adam": (("optimizer.name=adam", "algorithm.local_steps=3"), {"adam": True, "steps": 3}),
}


@pytest.mark.parametrize(("settings", "options"), LOCAL.values(), ids=LOCAL)
def test_local_steps(traced, settings, options) -> None:
    """With RelaySGD on the chain, where models, and not optimizer states, travel."""
    found = traced("relaysgd", *settings, edges=CHAIN)
    x, counts = relaysgd(CHAIN, Local(**options))
    close(found, x)
    np.testing.assert_array_equal(found["counts"], counts)


def test_rates_may_be_given_for_each_step(traced) -> None:
    rates = np.linspace(0.05, 0.0, T)
    close(traced("relaysgd", edges=CHAIN, lr=rates), relaysgd(CHAIN, Local(rates=rates))[0])


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("fallback", ["previous", "counts"])
@pytest.mark.parametrize("edges", [CHAIN, STAR], ids=["chain", "star"])
def test_relaysgd_with_losses(traced, edges, fallback: str, overlap: bool) -> None:
    drops = losses()
    settings = (f"algorithm.fallback={fallback}", f"algorithm.overlap={str(overlap).lower()}")
    found = traced("relaysgd", *settings, edges=edges, drops=drops)
    x, counts = relaysgd(edges, Local(), fallback=fallback, overlap=overlap, drops=drops)
    close(found, x)
    np.testing.assert_array_equal(found["counts"], counts)


def test_relaysgd_on_two_trees(traced) -> None:
    """Coordinates 0 and 1 travel on tree A, coordinate 2 on tree B; drops apply to both."""
    drops = losses()
    found = traced("relaysgd", edges_a=CHAIN, edges_b=STAR, drops=drops)
    n, local, x = N, Local(), Local().start()
    states = [({}, {}), ({}, {})]
    for k, edges in enumerate((CHAIN, STAR)):
        m = {(i, j): np.zeros(D) for i in range(n) for j in around(edges, i)}
        states[k] = (m, dict.fromkeys(m, 0))
    models, counts = [x], []
    for t in range(T):
        half, new, both = local.halves(x, t), np.empty_like(x), []
        for k, (edges, part) in enumerate([(CHAIN, slice(0, 2)), (STAR, slice(2, 3))]):
            states[k] = m, c = relayed(edges, half, *states[k], drops[t])
            n_bar = np.array([1 + sum(c[j, i] for j in around(edges, i)) for i in range(n)])
            total = [half[i] + sum(m[j, i] for j in around(edges, i)) for i in range(n)]
            new[:, part] = ((np.stack(total) + (n - n_bar)[:, None] * x) / n)[:, part]
            both.append(n_bar)
        x = new
        models.append(x)
        counts.append(np.minimum(*both))
    close(found, np.stack(models))
    np.testing.assert_array_equal(found["counts"], np.stack(counts))


def test_the_learning_rate_factor_applies_after_the_diameter(traced) -> None:
    """Of a chain of four it is 3/2, after three steps."""
    found = traced("relaysgd", "optimizer.relay_lr_correction=true", edges=CHAIN)
    rates = [LR] * 3 + [1.5 * LR] * (T - 3)
    close(found, relaysgd(CHAIN, Local(rates=rates))[0])


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_relaysgd_grad(traced, share: float) -> None:
    drops = losses(share=share)
    found = traced("relaysgd-grad", "algorithm.local_steps=2", edges=STAR, drops=drops)
    close(found, relaysgd_grad(STAR, Local(steps=2), drops))


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_relaysum(traced, share: float) -> None:
    """The sample is what training leaves in x."""
    drops = losses(share=share)
    close(traced("relaysum", edges=CHAIN, drops=drops), relaysum(CHAIN, Local(), drops))


WEIGHTS = {
    "default": ((), metropolis(RING)),
    "uniform": (("algorithm.weights=uniform",), metropolis(RING)),
    "lazy": (("algorithm.weights=lazy",), (metropolis(RING) + np.eye(N)) / 2),
    "auto": (("algorithm.weights=auto",), metropolis(RING)),
}


@pytest.mark.parametrize(("settings", "w"), WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_gossip(traced, settings, w, share: float) -> None:
    drops, options = losses(share=share), {"edges": RING, "drops": losses(share=share)}
    twice = (*settings, "algorithm.local_steps=2")
    close(traced("dpsgd", *twice, **options), dpsgd(w, Local(steps=2), drops))
    close(traced("d2", *twice, **options), d2(w, Local(steps=2), drops))
    found = traced("gradient-tracking", *settings, **options)
    close(found, gradient_tracking(w, Local(), drops))
    found = traced("dpsgd-qgm", *settings, "algorithm.momentum=0.7", **options)
    close(found, dpsgd_qgm(w, Local(), drops, 0.7))


ADAM = "optimizer.name=adam"


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_quasi_global_adam(traced, share: float) -> None:
    drops, w = losses(share=share), metropolis(RING)
    found = traced("dpsgd-qgm", ADAM, edges=RING, drops=drops)
    close(found, dpsgd_qgm_adam(w, Local(), drops))
    settings = ("algorithm.local_steps=2", "optimizer.weight_decay=0.1")
    found = traced("dpsgd-qgm", ADAM, *settings, edges=RING, drops=drops)
    close(found, dpsgd_qgm_adam(w, Local(steps=2), drops, 0.1))


def test_quasi_global_adam_at_rates_that_change_and_are_zero_at_times(traced) -> None:
    rates = [LR * (t % 4) / (1 + t) for t in range(T)]
    found = traced("dpsgd-qgm", ADAM, edges=CHAIN, lr=np.array(rates))
    close(found, dpsgd_qgm_adam(metropolis(CHAIN), Local(rates=rates), none_lost()))


def test_metropolis_weights_of_unequal_degrees(traced) -> None:
    close(traced("dpsgd", edges=STAR), dpsgd(metropolis(STAR), Local(), none_lost()))
    found = traced("dpsgd-qgm", edges=CHAIN)
    close(found, dpsgd_qgm(metropolis(CHAIN), Local(), none_lost(), 0.9))


def test_d2_with_momentum(traced) -> None:
    """m <- a m + g; u = -lr (g + a m)."""
    found = traced("d2", "algorithm.momentum=0.9", edges=RING)
    local = Local(momentum=0.9, nesterov=True)
    close(found, d2(metropolis(RING), local, none_lost()))


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_sgp(traced, n: int, share: float) -> None:
    drops = losses(n, share)
    arrays = problem(n) | {"drops": drops}
    if n == 1:
        expected, _ = relaysgd([], Local(1), drops=drops)
        close(traced("sgp", **arrays), expected)
        return
    close(traced("sgp", **arrays), sgp(Local(n), drops))
    found = traced("sgp", "algorithm.options.rounds_per_step=1", **arrays)
    close(found, sgp(Local(n), drops, rounds=1))


@pytest.mark.parametrize("edges", [CHAIN, RING], ids=["a tree", "a graph with a tree in it"])
def test_allreduce(traced, edges) -> None:
    expected = allreduce(Local(), lambda t, i: False)  # noqa: ARG005
    close(traced("allreduce", edges=edges), expected)
    found = traced("local-sgd", "algorithm.local_steps=3", edges=edges)
    close(found, allreduce(Local(steps=3), lambda t, i: False))  # noqa: ARG005
    assert (found["counts"] == N).all()


def test_allreduce_skips_rounds_that_cannot_complete(traced) -> None:
    """In the star round peer 0 a loss toward it spoils the round for all, one from it for one."""
    drops = losses(share=0.1)
    found = traced("allreduce", edges=STAR, drops=drops)
    expected = allreduce(Local(), lambda t, i: drops[t, 1:, 0].any() or (i > 0 and drops[t, 0, i]))
    close(found, expected)
    assert 0 < (found["counts"] == 1).sum() < T * N


FORMS = {
    "swarmsgd": ("swarmsgd", False),
    "blocking swarmsgd": ("swarmsgd", True),
    "adpsgd": ("adpsgd", False),
}


@pytest.mark.parametrize(("method", "blocking"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("local", ["plain", "momentum", "adam"])
def test_pairwise_methods(traced, method: str, blocking: bool, local: str) -> None:
    settings, options = LOCAL[local]
    settings = (*settings, *(["algorithm.blocking=true"] if blocking else []))
    found = traced(method, *settings, edges=CHAIN, interactions=PAIRS, interaction_steps=STEPS)
    close(found, in_pairs(method, Local(**options), STEPS, blocking=blocking))
    assert "counts" not in found


@pytest.mark.parametrize(("method", "blocking"), FORMS.values(), ids=FORMS)
def test_pairwise_methods_on_the_lattice(traced, method: str, blocking: bool) -> None:
    """avg = (Q(X_i) + Q(X_j)) / 2."""
    settings = ["algorithm.quantize=lattice", *(["algorithm.blocking=true"] if blocking else [])]
    q = Lattice()
    found = traced(method, *settings, edges=CHAIN, interactions=PAIRS, interaction_steps=STEPS)
    exact = in_pairs(method, Local(), STEPS, blocking=blocking)
    close(found, in_pairs(method, Local(), STEPS, blocking=blocking, q=q))
    assert q.rounded >= 8, "most copies are rounded"
    assert 1e-6 < np.abs(found["x"] - exact).max() < 0.2


@pytest.mark.parametrize(("method", "blocking"), FORMS.values(), ids=FORMS)
def test_pairwise_methods_with_rates_for_each_interaction(
    traced, method: str, blocking: bool
) -> None:
    """Without `interaction_steps` the number of local steps is the setting's, without `edges`
    anybody may meet."""
    rates = np.linspace(0.05, 0.01, len(PAIRS))
    settings = ("algorithm.local_steps=2", *(["algorithm.blocking=true"] if blocking else []))
    found = traced(method, *settings, interactions=PAIRS, lr=rates)
    expected = in_pairs(method, Local(rates=rates), np.full(len(PAIRS), 2), blocking=blocking)
    close(found, expected)
