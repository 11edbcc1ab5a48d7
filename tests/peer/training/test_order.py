"""The order of the data: a pure function, without replacement within an epoch."""

from hypothesis import given
from hypothesis import strategies as st

from peer.training.order import DataOrder

sizes = st.integers(1, 40)
batches = st.integers(1, 50)


@given(size=sizes, batch=batches, epochs=st.integers(1, 4))
def test_each_epoch_has_every_sample_once(size: int, batch: int, epochs: int) -> None:
    order = DataOrder(1, 0, size, batch)
    drawn: list[int] = []
    draw = 0
    while len(drawn) < size * epochs:
        drawn += order.indices(draw).tolist()
        draw += 1
    for epoch in range(epochs):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(size=sizes, batch=batches, draws=st.lists(st.integers(0, 200), max_size=8))
def test_batches_do_not_depend_on_what_was_asked_before(size, batch, draws) -> None:
    used = DataOrder(1, 2, size, batch)
    for draw in draws:
        fresh = DataOrder(1, 2, size, batch)
        assert used.indices(draw).tolist() == fresh.indices(draw).tolist()


@given(size=sizes, batch=batches, draw=st.integers(0, 1000))
def test_batches_have_one_size_and_no_sample_twice_if_they_fit(size, batch, draw) -> None:
    indices = DataOrder(0, 0, size, batch).indices(draw).tolist()
    assert len(indices) == min(batch, size)
    assert set(indices) <= set(range(size))


def test_a_batch_larger_than_the_shard_is_the_whole_shard() -> None:
    order = DataOrder(0, 0, 5, 32)
    for draw in range(4):
        assert sorted(order.indices(draw).tolist()) == [0, 1, 2, 3, 4]


def test_epochs_shards_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(DataOrder(seed, shard, 20, 20).indices(epoch).tolist())
        for seed in range(2)
        for shard in range(2)
        for epoch in range(2)
    }
    assert len(orders) == 8
