"""Objects in place of the names of methods, priors and generators."""

import pytest
import torch
from analytic_prior import AnalyticPrior
from torch import nn

import nfsd3d
from nfsd3d.config.objects import register_object
from nfsd3d.distill.methods import Method
from nfsd3d.generators.base import ImageGenerator, Images
from nfsd3d.generators.plugins import GeneratorRow
from nfsd3d.prior.priors import PriorRow
from nfsd3d.prior.schedule import VariancePreserving


def half(predictions, s):
    """Half of the classifier's direction."""
    return 0.5 * s * (predictions.cond - predictions.uncond)


def prior_of_a_cube():
    """A mixture of two grey images: the prompt means the brighter one."""
    means = torch.stack([torch.full((3, 8, 8), 0.6), torch.full((3, 8, 8), -0.6)])
    prompts = {"": torch.tensor([0.5, 0.5]), "dull": torch.tensor([0.1, 0.9]), "a red cube": torch.tensor([1.0, 0.0])}
    return AnalyticPrior(means, torch.tensor([0.2, 0.2]), prompts, VariancePreserving(torch.linspace(0.999, 0.01, 100)))


class Gray(ImageGenerator):
    """B images of one grey each."""

    def __init__(self, views=2):
        super().__init__()
        self.learning_rates = {"gray": 0.05}
        self.gray = nn.Parameter(torch.full((views, 1, 1, 1), 0.25))

    def show(self):
        return Images(self.gray.expand(-1, 3, 16, 16))

    def parameter_groups(self):
        return {"gray": [self.gray]}


QUIET = {"train.steps": 4, "train.batch_size": 2, "train.tensorboard": False, "export.report": False}
FLAT = {"export.mesh": False, "export.turntable": False, "train.random_background": 0.0, "train.resolution": 16}
PLAIN = {
    "train.shading.lambertian": 0.0,
    "train.regularizers.sparsity": 0.0,
    "train.regularizers.opaque": 0.0,
    "prompts.view_dependent": False,
}


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Generates with tiny settings in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def generate(**options):
        overrides = {"machine": "cpu", "backend": "torch", "negative_prompt": "dull", **QUIET, **FLAT, **PLAIN}
        return nfsd3d.generate("a red cube", **overrides, **options)

    return generate


def test_objects_are_used_like_names(quick):
    prior, start = prior_of_a_cube(), Gray()
    run = quick(prior=prior, generator=start, method=Method(half, ("cond", "uncond")))
    assert (run.config.prior.name, run.config.generator.type, run.config.distill.method) == (
        "AnalyticPrior",
        "Gray",
        "half",
    )
    assert run.step == 4 and start.gray.unique().item() == 0.25  # the object given is as it was
    assert run.images.mean() > 0.3 * 255  # the prompt means the brighter image
    again = quick(prior=prior, generator=start, method=Method(half, ("cond", "uncond")))
    assert again.config.distill.method == "half-2" and again.config.prior.name == "AnalyticPrior"
    assert (again.images == run.images).all()


def test_names_are_names(quick):
    assert register_object("distill", "sds") == "sds"
    run = quick(prior=prior_of_a_cube(), generator=Gray(), method="sds")
    assert run.config.distill.method == "sds"


def test_rows_are_used_as_they_are(quick):
    def build(settings, device, dtype):
        return prior_of_a_cube()

    gray = GeneratorRow(lambda options, facts: Gray(facts.views), {"gray": 0.1})
    run = quick(prior=PriorRow(build), generator=gray, method="csd")
    assert run.config.prior.name == "build" and run.config.generator.type.startswith("custom")


@pytest.mark.parametrize(
    ("setting", "given", "message"),
    [
        ("distill", half, "method: function is none; give a name, or a nfsd3d.distill.methods.Method"),
        ("prior", object(), "prior: object has no predict_eps, encode, embed, schedule; give a name"),
        ("generator", nn.Linear(1, 1), "generator: Linear is none; give a name"),
    ],
)
def test_other_objects_are_refused(setting, given, message):
    with pytest.raises(TypeError, match=message):
        register_object(setting, given)


def test_an_object_keeps_its_name_and_another_gets_another(monkeypatch):
    first, second = (Method(half, ("cond", "uncond")) for _ in range(2))
    names = [register_object("distill", method) for method in (first, second, first)]
    assert names[0] == names[2] != names[1]
