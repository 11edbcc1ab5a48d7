"""The task contract: options, sites, and data held in tensors."""

import pytest
import torch
from pydantic import Field

from relayswarm import ConfigError, Measured, Options, Site, Task, TensorData


class LineOptions(Options):
    slope: float = Field(default=1.0, gt=0)
    count: int = 3


class Line(Task):
    name = "line"
    Options = LineOptions

    def model(self):
        return torch.nn.Linear(1, 1)

    def data(self, site):
        x = torch.linspace(0, 1, self.options.count)[site.shard :: site.shards, None]
        return TensorData(x, self.options.slope * x)

    def loss(self, model, batch):
        x, y = batch
        return (model(x) - y).square().mean()

    def evaluate(self, model, site):  # noqa: ARG002
        return {"weight": Measured(float(model.weight))}


class TestOptions:
    def test_are_validated_and_frozen(self) -> None:
        task = Line({"slope": 2})
        assert (task.options.slope, task.options.count) == (2.0, 3)
        with pytest.raises(ValueError, match="frozen"):
            task.options.slope = 3.0

    def test_misspelt_one_is_named_with_the_nearest(self) -> None:
        with pytest.raises(ConfigError) as caught:
            Line({"slop": 2})
        assert caught.value.field == "task.options.slop"
        assert "did you mean 'slope'?" in str(caught.value)

    def test_unknown_one_is_answered_with_the_known(self) -> None:
        with pytest.raises(ConfigError, match="known options: count, slope"):
            Line({"zzz": 2})

    @pytest.mark.parametrize("value", [-1.0, float("inf"), "steep"])
    def test_bad_value_is_named(self, value: object) -> None:
        with pytest.raises(ConfigError) as caught:
            Line({"slope": value})
        assert (caught.value.field, caught.value.value) == ("task.options.slope", value)

    def test_a_task_without_options_says_so(self) -> None:
        class Plain(Line):
            Options = Options

        with pytest.raises(ConfigError, match="takes no options"):
            Plain({"a": 1})


@pytest.mark.parametrize("shard", [-1, 2])
def test_site_refuses_a_shard_that_is_not_there(shard: int) -> None:
    with pytest.raises(ConfigError, match="choose one from 0 to 1") as caught:
        Site(shard=shard, shards=2)
    assert caught.value.field == "shard"


class TestTensorData:
    def test_batches_are_rows_of_each_tensor(self) -> None:
        data = TensorData(torch.arange(4), torch.arange(8).view(4, 2), notes=["n"])
        x, y = data.batch(torch.tensor([3, 0]))
        assert x.tolist() == [3, 0]
        assert y.tolist() == [[6, 7], [0, 1]]
        assert (len(data), data.notes) == (4, ("n",))

    @pytest.mark.parametrize("tensors", [(), (torch.ones(0),), (torch.ones(2), torch.ones(3))])
    def test_refuses_empty_and_unequal(self, tensors: tuple[torch.Tensor, ...]) -> None:
        with pytest.raises(ConfigError, match="one row per sample"):
            TensorData(*tensors)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float64])
    def test_digest_tells_contents_apart(self, dtype: torch.dtype) -> None:
        rows = torch.arange(6, dtype=dtype).view(3, 2)
        digest = TensorData(rows).digest()
        assert digest == TensorData(rows.clone()).digest()
        assert digest == TensorData(rows.t().contiguous().t()).digest()
        changed = rows.clone()
        changed[2, 1] += 1
        assert digest != TensorData(changed).digest()
        assert digest != TensorData(rows.reshape(6)).digest()
        assert len(digest) == 64
