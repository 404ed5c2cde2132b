"""Features of a data set: order, modes, pooling, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchjepa.evaluation import Features, extract_features, raw_pixels, stream_features
from torchjepa.nn import MeanMaxPool, MeanPool
from torchjepa.types import Batch


def batches(sizes=(4, 4, 2), channels=3, side=6) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    result, start = [], 0
    for n in sizes:
        x = torch.randn(n, channels, side, side, generator=generator)
        result.append(Batch((x, x + 100), torch.arange(start, start + n), torch.arange(n) - 1))
        start += n
    return result


class Tokens(nn.Module):
    """Four tokens of a picture: its quarters; with dropout and a batch norm, which must stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        x = self.dropout(self.frozen(self.norm(x)))
        return nn.functional.avg_pool2d(x, 3).flatten(2).transpose(1, 2)


def test_features_are_the_pooled_tokens_of_the_first_view_in_order():
    encoder = Tokens().eval()
    found = extract_features(encoder, batches(), device="cpu", pool=MeanPool())
    x = torch.cat([batch.views[0] for batch in batches()])
    torch.testing.assert_close(found.features, encoder(x).mean(dim=1))
    assert found.features.dtype == torch.float32
    assert found.ids.tolist() == list(range(10))
    assert found.labels.tolist() == [-1, 0, 1, 2, -1, 0, 1, 2, -1, 0]
    assert not found.features.requires_grad


def test_on_a_cpu_a_batch_is_encoded_in_pieces_and_nothing_changes():
    sizes = []

    def encode(x):
        sizes.append(len(x))
        return x.flatten(1).mul(2)

    found = extract_features(encode, batches((70, 32, 3)), device="cpu")
    assert sizes == [32, 32, 6, 32, 3]
    x = torch.cat([batch.views[0] for batch in batches((70, 32, 3))])
    assert torch.equal(found.features, 2 * x.flatten(1))
    assert found.ids.tolist() == list(range(105))
    with pytest.raises(ValueError, match=r"expected features \[b, d\] with b = 32, got \(70, 2\)"):
        extract_features(lambda x: torch.zeros(70, 2), batches((70,)), device="cpu")


def test_a_module_encodes_in_evaluation_mode_and_gets_its_modes_back():
    encoder = Tokens().train()
    encoder.frozen.eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    first = extract_features(encoder, batches(), device="cpu", pool=MeanMaxPool())
    second = extract_features(encoder.forward, batches(), device="cpu", pool=MeanMaxPool())
    torch.testing.assert_close(first.features, second.features, rtol=0, atol=0)
    assert first.features.shape == (10, 6)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert encoder.training
    assert encoder.norm.training
    assert not encoder.frozen.training


def test_an_interrupted_stream_gives_the_modes_back():
    encoder = Tokens().train()
    stream = stream_features(encoder, batches(), device="cpu", pool=MeanPool())
    assert len(next(stream)) == 4
    assert not encoder.training
    stream.close()
    assert encoder.training


def test_streaming_takes_one_batch_at_a_time():
    taken = []

    def source():
        for batch in batches():
            taken.append(len(batch))
            yield batch

    stream = stream_features(lambda x: x.flatten(1), source(), device="cpu")
    next(stream)
    assert taken == [4]
    assert sum(len(part) for part in stream) == 6


def test_bfloat16_features_come_as_float32():
    found = extract_features(lambda x: x.flatten(1).bfloat16(), batches(), device="cpu")
    assert found.features.dtype == torch.float32


def test_raw_pixels_are_the_flattened_input():
    found = raw_pixels(batches())
    x = torch.cat([batch.views[0] for batch in batches()])
    assert torch.equal(found.features, x.reshape(10, 3 * 6 * 6))


def test_labelled_leaves_out_those_without_a_label():
    found = raw_pixels(batches())
    assert found.labelled.ids.tolist() == [1, 2, 3, 5, 6, 7, 9]
    assert found.labelled.labelled is not None
    assert len(found[2:5]) == 3


def test_refusals_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"\(4, 4, 3\); tokens \[b, n, d\] need a pool"):
        extract_features(Tokens(), batches(), device="cpu")
    with pytest.raises(ValueError, match=r"no batch .*is the data set empty"):
        extract_features(Tokens(), [], device="cpu", pool=MeanPool())
    with pytest.raises(ValueError, match=r"features must be \[n, d\], got \(2, 3, 4\)"):
        Features(torch.zeros(2, 3, 4), torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"labels must be \[2\] like features, got \(3,\)"):
        Features(torch.zeros(2, 3), torch.zeros(3), torch.zeros(2))
