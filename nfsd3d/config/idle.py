"""Settings that were given, and that change nothing beside the others: a person is told, and the run goes on."""

from collections.abc import Collection, Iterator

from nfsd3d.config.schema import Config
from nfsd3d.distill.methods import TABLE as METHODS
from nfsd3d.distill.methods import from_threshold
from nfsd3d.settings.schedules import highest


def idle_settings(config: Config, given: Collection[str]) -> list[str]:
    """A line for each of the ``given`` settings (dotted keys) that has no effect in ``config``, with the reason."""
    return [f"{key}: has no effect here, {reason}" for keys, reason in _idle(config) for key in keys if key in given]


def _idle(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys without effect, and why."""
    method, threshold = METHODS.find(config.distill.method), config.distill.threshold
    if "neg" not in method.all_prompts:
        yield ("negative_prompt",), f"distill={config.distill.method} reads none"
    elif method.active.get("neg") is from_threshold and (threshold >= 1 or threshold > highest(config.train.t_max)):
        reason = f"distill.threshold={threshold:g} is above every t; with the paper's 0.2 it is read"
        yield ("negative_prompt",), reason
    prompts = config.prompts
    if not prompts.view_dependent:
        words = tuple(f"prompts.{name}" for name in ("views", "front_deg", "back_deg", "overhead_deg"))
        yield words, "prompts.view_dependent=false adds no view words"
    elif prompts.views == "fine":
        yield ("prompts.front_deg", "prompts.back_deg"), "prompts.views=fine has its own directions"
    if config.cameras.overhead_probability == 0:
        yield ("cameras.overhead_deg",), "cameras.overhead_probability=0"
    if highest(config.train.shading.lambertian) == 0:
        yield ("cameras.light_jitter_deg", "cameras.light_distance"), "train.shading.lambertian=0 needs no light"
