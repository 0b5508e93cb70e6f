"""Captures of CUDA graphs: their arguments and number. Replays need a GPU."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from nfsd3d.prior.compiled.cuda_graphs import CapturedGraph, peak_bytes


@pytest.fixture
def captures(monkeypatch):
    """Replaces torch's graph capture by a call of the function; lists the arguments and options of each."""
    found = []

    def record(function, arguments, *, num_warmup_iters, pool):
        found.append((arguments, num_warmup_iters, pool, torch.backends.cudnn.benchmark))
        return function

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    handles = iter(range(1, 9))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    return found


def test_each_shape_is_captured_once(captures):
    double = CapturedGraph(lambda x: 2 * x)
    for rows in (2, 3, 2, 3):
        x = torch.rand(rows, 4)
        assert torch.equal(double(x), 2 * x)
    assert [len(arguments[0]) for arguments, *_ in captures] == [2, 3]
    double(torch.rand(2, 4, dtype=torch.float64))
    assert len(captures) == 3


def test_differentiated_calls_have_a_separate_graph(captures):
    double = CapturedGraph(lambda x: 2 * x)
    x = torch.rand(2, 4, requires_grad=True)
    double(x).sum().backward()
    assert torch.equal(x.grad, torch.full((2, 4), 2.0))
    with torch.no_grad():
        double(x), double(x.detach())  # where nothing is differentiated, these are one
    double(x.detach())
    assert [arguments[0].requires_grad for arguments, *_ in captures] == [True, True, False]


def test_later_calls_cannot_change_the_arguments_of_a_captured_graph(captures):
    x = torch.rand(2, 4).T
    CapturedGraph(lambda x: 2 * x)(x)
    (own,), *_ = captures[0]
    assert own.data_ptr() != x.data_ptr() and own.stride() == x.stride() and own.is_leaf


def test_memory_is_shared_if_asked(captures):
    for one_memory in (True, False):
        double = CapturedGraph(lambda x: 2 * x, one_memory=one_memory)
        double(torch.rand(2)), double(torch.rand(3))
    assert [pool for _, _, pool, _ in captures] == [1, 1, None, None]


def test_libraries_choose_their_fastest_kernels_before_the_capture(captures, monkeypatch):
    CapturedGraph(lambda x: 2 * x)(torch.rand(2))
    assert captures[0][1] > 1 and captures[0][3] is True and torch.backends.cudnn.benchmark is False

    def fail(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        CapturedGraph(lambda x: 2 * x)(torch.rand(2))
    assert torch.backends.cudnn.benchmark is False


def test_a_graph_is_captured_on_the_device_of_its_arguments(captures, monkeypatch):
    current, seen = [], []

    @contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    record = torch.cuda.make_graphed_callables
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda function, arguments, **options: (
        seen.append(current[-1] is arguments[0]) or record(function, arguments, **options)
    ))  # fmt: skip
    CapturedGraph(lambda x, y: x + y)(torch.rand(2), torch.rand(2))
    assert seen == [True] and current == []


def test_memory_of_captured_graphs_counts_as_used(monkeypatch):
    def segment(device, pool, total, allocated):
        return {"device": device, "segment_pool_id": pool, "total_size": total, "allocated_size": allocated}

    segments = [segment(0, (0, 0), 100, 40), segment(0, (0, 7), 50, 20), segment(0, (0, 8), 9, 9),
                segment(1, (0, 9), 1000, 0)]  # fmt: skip
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert peak_bytes("cuda") == peak_bytes("cuda:0") == 530
    assert peak_bytes(torch.device("cuda", 1)) == 1500


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # of streams, torch's own
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("one_memory", [True, False])
def test_captured_graphs_give_the_functions_numbers(one_memory):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3)).cuda().requires_grad_(False)
    recorded = CapturedGraph(network.forward, one_memory=one_memory)
    for rows in (2, 3, 2, 3):
        x = torch.rand(rows, 3, 16, 16, device="cuda", requires_grad=not one_memory)
        found = recorded(x)
        expected = network(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        if not one_memory:
            to_expected, to_found = (torch.autograd.grad(y.square().sum(), x)[0] for y in (expected, found))
            torch.testing.assert_close(to_found, to_expected, rtol=1e-4, atol=1e-4)
