"""The predicted memory equals that of small models."""

import gc
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from saved_bytes import saved_bytes
from small_settings import CAMERAS, NERF

from nfsd3d.cli.launch import print_plan
from nfsd3d.config.compose import compose
from nfsd3d.distill.methods import METHODS
from nfsd3d.errors import InputError
from nfsd3d.generators.base import RenderOptions
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.prior.architectures import random_prior
from nfsd3d.prior.chunked import in_chunks
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.runs import preflight
from nfsd3d.runs.summary import read_summary
from nfsd3d.train import run, task
from nfsd3d.train.build import build_generator, build_parts
from nfsd3d.train.memory import budget
from nfsd3d.train.memory.budget import GIB, Budget, Estimator
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.memory.footprint import SampleBytes, network_peak, sample_bytes, samples_at_most
from nfsd3d.train.memory.tensor_memory import count_bytes
from nfsd3d.train.run import train_and_export
from nfsd3d.views.cameras import orbit


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_live_bytes_are_those_of_the_tensors(device):
    known = torch.empty(1000, device=device)
    with count_bytes([known]) as counter:
        a = known.double()
        b = known.view(10, 100)  # no memory of its own
        assert counter.live() == 8000
        c = a + a
        del a
        assert (counter.live(), counter.peak()) == (8000, 16000)
        c.add_(1)
        d = c[:10].clone()
        del c
        assert counter.live() == 80
    assert b.shape == (10, 100) and d.shape == (10,)


def test_attention_keeps_no_matrix_of_weights():
    query = torch.empty(1, 4, 4096, 64, device="meta", requires_grad=True)
    with count_bytes([query]) as counter:
        result = F.scaled_dot_product_attention(query, query, query)
        result.sum().backward()
    assert counter.peak() < 10 * query.numel() * 4 < 4 * 4096**2 * 4
    exact = torch.rand(1, 2, 5, 8)
    with count_bytes():
        inside = F.scaled_dot_product_attention(exact, exact, exact)
    assert torch.equal(inside, F.scaled_dot_product_attention(exact, exact, exact))


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_encoders_predicted_memory_is_what_it_uses(narrow, checkpoint, dtype):
    prior = random_prior(narrow, dtype=dtype, image_size=64)
    image = torch.rand(2, 3, prior.image_size, prior.image_size, requires_grad=True)
    _, kept = saved_bytes(lambda: in_chunks(prior, None, checkpoint).encode(image))
    with count_bytes([*prior.tensors(), image]) as counter:
        z = in_chunks(prior, None, checkpoint).encode(image)
        gc.collect()
        live = counter.live()
        z.sum().backward()
    assert live == pytest.approx(kept, rel=0.2)  # what autograd keeps is what is left, and the result
    predicted = network_peak(prior.without_weights(), ChunkSizes(checkpoint_encoder=checkpoint), 2, 2)
    # The CPU's attention and convolutions take a little besides.
    assert predicted == pytest.approx(counter.peak(), rel=0.25)


def test_a_prior_without_weights_has_the_same_shapes():
    prior = load_prior(EMBEDDED)
    empty = prior.without_weights()
    assert all(tensor.is_meta for tensor in empty.tensors()) and not any(t.is_meta for t in prior.tensors())
    assert (empty.image_size, empty.latent_shape) == (prior.image_size, prior.latent_shape)
    contexts = prior.embed(["a red cube"]), prior.blank_context(1), empty.blank_context(1)
    assert len({context.tensors["embeddings"].shape for context in contexts}) == 1


def test_full_size_predictions_follow_chunks():
    prior = random_prior("sd21", "meta", torch.bfloat16).without_weights()
    whole, low = (network_peak(prior, chunks, 1, 3) / GIB for chunks in (ChunkSizes(), ChunkSizes(None, 1, True)))
    assert 1.2 < whole < 2.5 and low < 0.65 * whole


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("lit", [False, True])
def test_the_bytes_of_a_sample_predict_larger_views(configure, backend, lit):
    config = configure(**{"generator.normals": "finite_difference", "generator.samples_per_ray": 48},
                       **{f"backend.{name}": backend for name in ("field", "sampler")})  # fmt: skip
    nerf, ranges = build_generator(config), CAMERAS
    size = sample_bytes(nerf, ranges, normals=lit)
    assert all(parameter.grad is None for parameter in nerf.parameters())
    cameras = orbit(2, 40)
    view, kept = saved_bytes(
        lambda: nerf.render(cameras, options=RenderOptions(shading="lambertian" if lit else "albedo"))
    )
    count = float(view.samples_per_ray) * 2 * 40 * 40
    assert size.packed == pytest.approx(16, rel=0.05)  # a ray's index, start and end
    assert size.kept * count == pytest.approx(kept, rel=0.15)
    assert size.peak >= size.kept


@pytest.mark.parametrize("prune_alpha", [0.0, 0.05])
def test_the_bytes_of_a_sample_do_not_depend_on_how_full_the_scene_is(configure, prune_alpha):
    """Nor on what is known of it, by which samples would be pruned, as in a run that is resumed."""
    nerf, ranges = build_generator(configure(**{"generator.prune_alpha": prune_alpha})), CAMERAS
    full = sample_bytes(nerf, ranges, normals=False)
    nerf.occupancy.occupied.fill_(False)
    nerf.occupancy.occupied[4, 4, 4] = True
    nerf.occupancy.density.fill_(9.0)
    assert sample_bytes(nerf, ranges, normals=False) == full
    assert int(nerf.occupancy.occupied.sum()) == 1 and (nerf.occupancy.density == 9).all()


def test_a_peak_can_leave_out_tensors_afterwards():
    with count_bytes() as counter:
        kept, other = torch.zeros(100), torch.zeros(100)
        del other
        last = torch.zeros(50)
    assert counter.peak() == 800 and counter.peak(without=[kept]) == 400 and counter.peak(without=[kept, last]) == 400


def test_the_cap_on_samples_bounds_the_budget_at_every_resolution(configure):
    config = configure(**{"generator.max_samples": 3000})
    nerf = build_generator(config)
    for resolution in (12, 16, 20):
        assert samples_at_most(nerf, 2, resolution) == 3000
        view = nerf.render(orbit(2, resolution), torch.Generator().manual_seed(0))
        assert view.samples_per_ray * 2 * resolution**2 <= 3000
    assert samples_at_most(build_generator(configure()), 1, 2) == 4 * 24


def test_too_few_samples_for_the_highest_resolution_are_an_error_before_the_start():
    """Not at the step where the resolution rises."""
    choices = ["prompt=a red cube", "prior=shapes", "machine=cpu", "train.resolution=[[0.0,64],[0.5,256]]"]
    with pytest.raises(InputError, match=r"generator\.max_samples=262144: too few for 262144 rays.*1048576"):
        preflight.check(compose("nfsd", choices))
    preflight.check(compose("nfsd", [*choices, "generator.max_samples=1048576"]))


@pytest.mark.parametrize("experiment", ["nfsd", "fast", "lowmem"])
@pytest.mark.parametrize("prior", ["shapes", "sd15", "sd21", "sd21-768"])
def test_every_recipe_has_samples_enough(experiment, prior):
    preflight._check_samples(compose(experiment, ["prompt=x", f"prior={prior}", "machine=cpu"]))


def test_a_full_cube_can_be_sampled_with_as_few_as_that():
    settings = replace(NERF, samples_per_ray=64, max_samples=preflight.SAMPLES_PER_RAY * 3 * 20**2)
    nerf = NeRF(settings)  # every cell is occupied at the start
    for distance in (0.1, 1.2, 2.0):
        view = nerf.render(orbit(3, 20, distance=distance), torch.Generator().manual_seed(0))
        assert view.samples_per_ray <= preflight.SAMPLES_PER_RAY


class MadeUp(Estimator):
    """An estimator of a run that does not exist."""

    def __init__(self, count=10**6, graphs=lambda chunks: 0):
        self.weights, self.scene, self.views, self.resolution = GIB, GIB // 4, 1, 512
        self.sample_count, self.sample_bytes = count, SampleBytes(16, 3000, 6000)
        self.graphs = graphs

    def networks(self, chunks):
        return int((0.5 if chunks.checkpoint_encoder else 2) * GIB)


def test_chunks_shrink_until_the_budget_fits():
    estimated = MadeUp()
    whole = estimated.budget(ChunkSizes())
    assert whole.total == pytest.approx(1.25 * GIB + 6.016e9, rel=0.01)
    assert estimated.fitted(ChunkSizes(), 10**11) == (ChunkSizes(), whole)
    chunks, smaller = estimated.fitted(ChunkSizes(), 4 * GIB)
    assert smaller.total <= 4 * GIB and chunks.rays_per_chunk < 512**2 and chunks.checkpoint_encoder
    smallest, too_much = estimated.fitted(ChunkSizes(), GIB)
    assert too_much.total > GIB and smallest.smaller(1, 512) is None
    assert "choose a smaller prior" in too_much.remedy
    assert "generator.max_samples" in whole.remedy
    assert "machine.checkpoint_encoder" in MadeUp(count=0).budget(ChunkSizes()).remedy


def test_captured_graphs_keep_their_memory_while_a_scene_is_rendered():
    for count in (10**6, 10**5):
        eager = MadeUp(count=count).budget(ChunkSizes())
        captured = MadeUp(count=count, graphs=lambda chunks: GIB // chunks.unet_batch_size).budget(
            ChunkSizes(unet_batch_size=4)
        )
        assert eager.graphs == 0 and captured.graphs == GIB // 4
        assert captured.total == eager.total + GIB // 4
    told = {
        compiled: budget.predicted(
            compose("nfsd", ["prompt=x", "prior=sd21", "machine=cpu", "backend=numba", f"machine.compile={compiled}"])
        )
        for compiled in ("false", "true")
    }
    assert "graphs" not in told["false"] and "CUDA graphs of encoder and UNet 1." in told["true"]


def test_captured_graphs_need_at_least_the_memory_of_both_networks(configure):
    prior = load_prior(EMBEDDED)
    generator = build_generator(configure())
    eager, captured, vsd = (
        Estimator(prior, generator, METHODS[name], configure(**{"machine.compile": choice}))
        for name, choice in (("nfsd", False), ("nfsd", True), ("vsd", True))
    )
    whole, split = ChunkSizes(), ChunkSizes(unet_batch_size=2)
    assert eager.graphs(whole) == 0 and captured.networks(whole) == 0
    assert 0 < vsd.graphs(whole) < captured.graphs(whole)  # the UNet of VSD is not compiled
    assert vsd.networks(whole) > 0
    assert captured.graphs(split) < captured.graphs(whole)
    assert eager.networks(whole) <= captured.graphs(whole)
    # A checkpointed or chunked encoder is not captured.
    for chunks in (ChunkSizes(checkpoint_encoder=True), ChunkSizes(unet_batch_size=1)):
        assert 0 < captured.graphs(chunks) < vsd.graphs(whole) and captured.networks(chunks) > 0


def test_a_source_has_its_own_graph_of_the_encoder(configure):
    prior, config = load_prior(EMBEDDED), configure(**{"machine.compile": True})
    shapes, views = prior.without_weights(), config.train.batch_size
    both, alone = (network_peak(shapes, ChunkSizes(), views, 0, gradient=gradient) for gradient in (True, False))
    assert both > alone > 0
    for name, encoders in (("dds", both + alone), ("bridge", both)):
        entries = max(METHODS[name].batch_sizes(views, perp_neg=False))
        unet = network_peak(shapes, ChunkSizes(), views, entries, encodes=False)
        found = Estimator(prior, build_generator(config), METHODS[name], config)
        assert found.graphs(ChunkSizes()) == unet + encoders


def test_the_budget_lists_its_parts():
    text = str(Budget(GIB, GIB // 2, 2 * GIB, 0, 4194304, 512))
    assert text.startswith("3.50 GB at views of 512 pixels: the prior's weights 1.00, scene and optimiser 0.50")
    assert "4,194,304 samples (generator.max_samples caps them) 2.00" in text and "UNet" not in text


def test_the_prediction_includes_the_activations_of_vsds_lora_network(configure):
    prior = load_prior(EMBEDDED, "cpu", torch.bfloat16)
    config = configure(**{"distill.method": "vsd"})
    generator = build_generator(config)
    with_it, without = (Estimator(prior, generator, METHODS[name], config) for name in ("vsd", "csd"))
    real = build_parts(config, prior).distillation.lora
    trained = sum(value.numel() * 4 for value in real.state_dict().values())
    assert with_it.scene == without.scene + 4 * trained and trained > 1e5
    _, kept = saved_bytes(lambda: learning(real))
    # Below the measured bytes: the weights always exist. (The embedded prior's encoder is negligible.)
    assert without.networks(ChunkSizes()) < with_it.networks(ChunkSizes()) == pytest.approx(kept, rel=0.4)
    assert with_it.networks(ChunkSizes(unet_batch_size=1)) < 0.7 * with_it.networks(ChunkSizes())


def learning(lora):
    z, context = torch.zeros(2, *lora._prior.latent_shape), lora._prior.blank_context(2)
    lora.learn(z, context, orbit(2, 16), torch.Generator(), step=False)


def test_the_largest_batch_holds_all_predictions():
    counts = {name: max(method.batch_sizes(2, perp_neg=False)) for name, method in METHODS.items()}
    of_two, of_three = ("sds", "csd", "vsd", "ism", "sdi", "bridge", "rfds", "rfds_rev", "ucm"), ("nfsd", "asd")
    assert counts == dict.fromkeys(of_two, 4) | dict.fromkeys(of_three, 6) | dict.fromkeys(("dds", "dvrf"), 8)
    assert max(METHODS["nfsd"].batch_sizes(1, perp_neg=True)) == 5


@pytest.fixture
def embedded(configure, monkeypatch):
    """Parts of a tiny run with the embedded prior, on a fake GPU with some memory free."""
    config = configure(**{"train.steps": 2})
    parts = build_parts(config, load_prior(EMBEDDED))

    def pretend(free, **machine):
        monkeypatch.setattr(budget, "available_bytes", lambda device: free)
        said = []
        given = config.replace(machine={**vars(config.machine), **machine})
        return budget.fit_into_memory(given, parts, ChunkSizes(), said.append), said

    return pretend


def test_chunks_are_fitted_to_the_free_memory_before_the_start(embedded):
    chunks, said = embedded(10 * GIB)
    assert chunks == ChunkSizes() and len(said) == 1 and said[0].startswith("memory, predicted: 0.")
    chunks, said = embedded(10 * GIB, memory_gb=0.001)
    assert chunks.unet_batch_size == 1 and "to fit into machine.memory_gb=0.001" in said[1]
    assert said[2].startswith("warning: the prediction is above machine.memory_gb=0.001: choose a smaller prior")
    chunks, said = embedded(2**20)
    assert "0.00 GB free" in said[1] and "warning" in said[2]


def test_the_estimate_counts_the_scene_and_its_optimiser(configure):
    config = configure()
    parts = build_parts(config, load_prior(EMBEDDED))
    size = sum(p.numel() * 4 for p in parts.generator.parameters())
    found = Estimator(parts.prior, parts.generator, METHODS["nfsd"], config)
    assert found.scene == 4 * size and found.views == 2 and found.resolution == 16
    assert found.weights > 20e6  # the embedded networks, text encoder gone


def test_a_dry_run_prints_the_number_of_samples_and_the_predicted_memory(capsys, monkeypatch):
    config = compose("nfsd", ["prompt=x", "prior=sd21", "machine=cpu", "backend=numba"])
    print_plan(config, _source(), "somewhere")
    output = capsys.readouterr().out
    assert "# samples of a step: 4,194,304 at most" in output and "# prior's prediction type: epsilon" in output
    assert budget.predicted(compose("nfsd", ["prompt=x", "prior=shapes", "machine=cpu"])) is None
    monkeypatch.setattr(budget, "predicted", lambda config: "5.50 GB of something")
    print_plan(config.replace(machine={**vars(config.machine), "device": "cuda"}), _source(), "somewhere")
    assert "# memory of a step, predicted: 5.50 GB of something" in capsys.readouterr().out


def _source():
    from nfsd3d.prior.files.locate import Location, ModelSource

    return ModelSource(Location("prior=sd21", EMBEDDED))


@pytest.mark.usefixtures("tiny_prior")
def test_a_run_on_a_gpu_starts_with_chunks_that_fit(configure, monkeypatch):
    off = {"export.mesh": False, "export.turntable": False, "export.report": False}
    config = configure(**off, **{"train.steps": 1})
    parts = build_parts(config)
    # The device is fake as far as the decision goes; the parts are on the CPU.
    monkeypatch.setattr(run, "build_parts", lambda config, **kept: parts)
    monkeypatch.setattr(run, "fit_into_memory", lambda config, parts, chunks, log: ChunkSizes(256, 1, True))
    seen, original = [], task.step_loss
    monkeypatch.setattr(task, "step_loss", lambda *a: seen.append(a[5].chunks) or original(*a))
    on_gpu = config.replace(machine={**vars(config.machine), "device": "cuda"})
    train_and_export(on_gpu, console=Console(file=io.StringIO()))
    assert seen == [ChunkSizes(256, 1, True)] and read_summary(Path(config.run_dir))["status"] == "done"
