"""Settings that were given and have no effect beside the others: a person is told, and the run goes on."""

from collections.abc import Collection, Iterator

from nfsd3d.config.schema import Config
from nfsd3d.distill.methods import TABLE as METHODS
from nfsd3d.distill.methods import Method, from_threshold
from nfsd3d.generators.settings import PluginGeneratorSettings
from nfsd3d.settings.schedules import highest

PAPER = 0.2
"""NFSD's threshold in the paper."""
_ROUNDING = 0.01
"""More than a threshold and t_max, which become whole timesteps, are rounded by."""


def settings_without_effect(config: Config, given: Collection[str]) -> list[str]:
    """A line for each of the ``given`` settings (dotted keys) that has no effect in ``config``, with the reason.

    Where it cannot be known, as for a method that is not registered, nothing is said.
    """
    if not given:
        return []
    return [f"{key}: has no effect here, {reason}" for keys, reason in _unused(config) for key in keys if key in given]


def _unused(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys of settings without effect, and why."""
    # A mesh's field has settings of its own; a method may be registered by a program that is not this one.
    if config.refine is None and config.distill.method in METHODS:
        reason = _unread_negative_prompt(config, METHODS.find(config.distill.method))
        if reason is not None:
            yield ("negative_prompt",), reason
    prompts = config.prompts
    if not prompts.view_dependent:
        words = tuple(f"prompts.{name}" for name in ("views", "front_deg", "back_deg", "overhead_deg"))
        yield words, "prompts.view_dependent=false adds no view words"
    elif prompts.views == "fine":
        yield ("prompts.front_deg", "prompts.back_deg"), "prompts.views=fine has its own directions"
    if config.cameras.overhead_probability == 0:
        yield ("cameras.overhead_deg",), "cameras.overhead_probability=0 draws none"
    if highest(config.train.shading.lambertian) == 0 and not isinstance(config.generator, PluginGeneratorSettings):
        yield ("cameras.light_jitter_deg", "cameras.light_distance"), "train.shading.lambertian=0 needs no light"


def _unread_negative_prompt(config: Config, method: Method) -> str | None:
    """Why no prediction of the method is given the negative prompt; None if one may be."""
    stages = [method]
    while (then := stages[-1].then) is not None:
        stages.append(then)
    reading = [(stage, name) for stage in stages for name in stage.predictions if stage.prompt(name) == "neg"]
    if not reading:
        return f"distill={config.distill.method} reads no negative prompt"
    threshold, t_max = config.distill.threshold, highest(config.train.t_max)
    late = all(stage.active.get(name) is from_threshold for stage, name in reading)
    if not late or (threshold < 1 and threshold <= t_max + _ROUNDING):
        return None
    advice = f"; with the paper's {PAPER:g} it is read" if min(t_max, threshold) > PAPER + _ROUNDING else ""
    return f"every t is below distill.threshold={threshold:g}{advice}"
