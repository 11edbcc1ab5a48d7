"""Q of pairwise exchanges: rounds what a peer sends its partners to the lattice.

Both averages of an exchange use Q(X_i) and Q(X_j), so each peer needs its own as its partner gets
it. On the lattice that does not depend on whoever decodes it, nor on the bits that take it there:
a peer rounds its copy once, when it emits the message, and sends exactly that. Bits, refusals and
at last full precision are then the transport's business, and change no value.

Each peer sees in every exchange how far its partner's copy is from its own; the largest of the last
distances says how fine the lattice may be. As long as it has seen none, Q is the identity. What a
peer has seen depends only on its exchanges, so the simulator comes to the same values as daemons.
"""

from __future__ import annotations

from torch import Tensor

from peer.algorithms.core import Head, PeerId
from peer.codec.edges import Lattice, LatticeSetting, dither_seed
from peer.codec.lattice import Distances


class Quantizer:
    """One peer's. `seed` is the run's."""

    def __init__(self, setting: LatticeSetting, seed: int) -> None:
        self._setting, self._seed = setting, seed
        self._distances = Distances()

    def round(self, x: Tensor, out: Tensor, to: PeerId, head: Head) -> Lattice | None:
        """Write Q(x), both of shape (d,), into `out`; returns how it is best written, None: in full
        precision."""
        expected = self._distances.predict()
        if expected is None:
            out.copy_(x)
            return None
        seed, setting = dither_seed(self._seed, head, to), self._setting
        fresh = Lattice(setting.bits, seed, setting.is_rotated, (expected,))
        fresh.encoder(0).quantize(x, out)
        return Lattice(setting.bits, seed, setting.is_rotated, (expected,), is_rounded=True)

    def saw(self, distance: float) -> None:
        """The largest |x_k - v_k| of a partner's copy x from this peer's own, v."""
        if distance > 0:  # while all have the same model, nothing can be learnt
            self._distances.saw(distance)
