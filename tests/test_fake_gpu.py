"""The fake GPU reports the errors of a real one, and no others."""

import pytest
import torch
from fake_gpu import fake_gpu

from nfsd3d.device import move


@pytest.fixture
def gpu():
    with fake_gpu() as gpu:
        yield gpu


def test_tensors_are_where_they_were_put(gpu):
    there = torch.zeros(3, 4, device="cuda")
    for result in (there + 1, there[0], there.T, torch.zeros_like(there), there.new_ones(2), there.clone().mul_(2)):
        assert result.is_cuda and result.device == torch.device("cuda:0")
    here = torch.zeros(3)
    assert not (here + 1).is_cuda and here.to(there).is_cuda and not there.cpu().is_cuda
    layer = torch.nn.Linear(4, 2).to("cuda")
    loss = layer(there).square().sum() + layer(there)[:, :1].sum()
    loss.backward()
    assert loss.is_cuda and layer.weight.grad.is_cuda
    assert gpu.errors == []


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        (lambda there, here: there + here, RuntimeError),
        (lambda there, here: torch.cat([there, here]), RuntimeError),
        (lambda there, here: here[there.long()], RuntimeError),
        (lambda there, here: torch.where(there > 0, there, here), RuntimeError),
        (lambda there, here: torch.nn.Linear(3, 3)(there), RuntimeError),
        (lambda there, here: there.numpy(), TypeError),
        (lambda there, here: there.pin_memory(), RuntimeError),
        (lambda there, here: here[:1].expand(5, *here.shape[1:]).pin_memory(), RuntimeError),
        (lambda there, here: torch.randn(3, device="cuda", generator=torch.Generator()), RuntimeError),
        (lambda there, here: there.normal_(generator=torch.Generator()), RuntimeError),
    ],
)
def test_operations_that_a_gpu_refuses_are_errors(gpu, attempt, error):
    there, here = torch.zeros(3, device="cuda"), torch.zeros(3)
    with pytest.raises(error):
        attempt(there, here)


def test_operations_that_a_gpu_allows_are_no_errors(gpu):
    there, here = torch.zeros(3, device="cuda"), torch.tensor([0, 2])
    torch.randn(3, device="cuda", generator=torch.Generator("cuda"))
    assert (there * torch.tensor(2.0)).is_cuda and there[here].is_cuda
    there.copy_(torch.ones(3))
    assert there.sum().item() == 3


@pytest.mark.parametrize(
    ("ask", "syncs"),
    [
        (lambda there: there.sum().item(), 1),
        (lambda there: float(there.sum()), 1),
        (lambda there: bool((there > 0).all()), 1),
        (lambda there: there.nonzero(), 1),
        (lambda there: there[there > 0], 1),
        (lambda there: there[torch.tensor([0, 1])], 1),
        (lambda there: there.cpu(), 1),
        (lambda there: there.tolist(), 1),
        (lambda there: there.copy_(torch.zeros(3)), 1),
        (lambda there: torch.zeros(3).to("cuda"), 1),
        (lambda there: torch.tensor([1.0], device="cuda"), 1),
        (lambda there: there.new_tensor([1.0]), 1),
        (lambda there: move(torch.zeros(3), "cuda"), 0),
        (lambda there: there.masked_fill(there > 0, 1.0), 0),
        (lambda there: torch.arange(3, device="cuda") + there[:1], 0),
        (lambda there: there[torch.zeros(2, dtype=torch.int64, device="cuda")], 0),
    ],
)
def test_synchronisations_are_recorded(gpu, ask, syncs):
    there = torch.zeros(3, device="cuda")
    gpu.syncs.clear()
    ask(there)
    assert len(gpu.syncs) == syncs
    torch.cuda.set_sync_debug_mode("error")
    if syncs:
        with pytest.raises(RuntimeError, match="synchronizing"):
            ask(there)
    else:
        ask(there)


def test_reading_a_tensor_that_another_stream_still_writes_is_an_error(gpu):
    side, there = torch.cuda.Stream(), torch.zeros(3, device="cuda")
    with torch.cuda.stream(side), pytest.raises(RuntimeError, match="another may still work on"):
        there + 1
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        result = there + 1
    with pytest.raises(RuntimeError, match="another may still work on"):
        there.mul_(2)  # which the side stream still reads
    with pytest.raises(RuntimeError, match="another may still work on"):
        result + 1
    torch.cuda.current_stream().wait_stream(side)
    there.mul_(result)
    with torch.cuda.stream(side), pytest.raises(RuntimeError, match="another may still work on"):
        there.zero_()  # whatever the side stream did with it before


def test_reading_a_number_synchronises_its_stream(gpu):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        there = torch.zeros(3, device="cuda")
        gpu.syncs.clear()
        there.sum().item()
    assert there.sum().is_cuda
    assert gpu.syncs[0].startswith("(side stream)")


@pytest.mark.parametrize("recorded", [True, False])
def test_memory_of_a_stream_is_kept_for_another(gpu, recorded):
    side, first = torch.cuda.Stream(), torch.cuda.current_stream()
    with torch.cuda.stream(side):
        there = torch.zeros(3, device="cuda")
    first.wait_stream(side)
    if recorded:
        there.record_stream(first)
    there + 1
    del there
    assert len(gpu.errors) == (0 if recorded else 1)
