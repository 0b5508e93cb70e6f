"""The score decomposition of NFSD (Katzir et al., 2310.17590, section 4), measured.

Each figure of the paper is a pure function of a prior's predictions (:mod:`nfsd3d.decompose.observation`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nfsd3d.decompose.observation import Observation, PairObservation
from nfsd3d.distill.gradient import threshold_step
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.evaluate.statistics import (
    Claim,
    Estimate,
    area_under_curve,
    claim,
    correlation,
    estimate,
    estimate_difference,
    size,
)
from nfsd3d.prior.base import Prior
from nfsd3d.shapes.world.grammar import Composition

UNCORRELATED = 0.1
"""Correlations below this absolute value count as zero."""
NEGLIGIBLE = 0.1
"""Quantities below this share of another one are negligible."""
CHANCE = 0.5
"""The area under the ROC curve at chance level."""
ETAS = (1.0, 3.0, 7.5)
"""Step lengths along a direction, in σ/α."""
SCALES = (7.5, 100.0)
"""Common guidance scales of SDS."""
THRESHOLD = 0.2
"""The fraction of the training steps below which NFSD takes ε(∅) for δ_D."""


@dataclass(frozen=True)
class Figure:
    """Measurements: by a table's title and a row's name, an estimate for each timestep; and the claims about them."""

    timesteps: tuple[int, ...]
    tables: dict[str, dict[str, list[Estimate]]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def row(self, table: str, name: str, values: Tensor) -> list[Estimate]:
        """Adds the estimates of ``values`` [T,N] to a table, and returns them."""
        return self.enter(table, name, estimate(values))

    def enter(self, table: str, name: str, values: list[Estimate]) -> list[Estimate]:
        """Adds estimates to a table, and returns them."""
        self.tables.setdefault(table, {})[name] = values
        return values

    def state(
        self,
        statement: str,
        of: str,
        values: list[Estimate],
        *,
        above: float = -torch.inf,
        below: float = torch.inf,
        where: Callable[[int], bool] = lambda t: True,
    ) -> None:
        """States that the values lie between bounds at the timesteps ``where`` (nothing without any)."""
        chosen = [i for i, t in enumerate(self.timesteps) if where(t)]
        if chosen:
            times, part = [self.timesteps[i] for i in chosen], [values[i] for i in chosen]
            self.claims.append(claim(statement, of, times, part, above=above, below=below))


def condition_figure(seen: Observation, mask: Tensor | None, gains: Mapping[float, Tensor]) -> Figure:
    """δ_C: its correlation with the added noise, where it is large, and whether a step along it follows the prompt.

    Args:
        seen: with "cond" and "uncond"; with a mask also "shown" (what the image shows) and "behind" (the same with
            words about the background).
        mask: [N,h,w] the object's latent pixels (bool).
        gains: see :func:`classifier_gains`.
    """
    figure = Figure(seen.timesteps)
    delta_c = seen.delta_c
    title = "correlation with the added noise ε"
    values = figure.row(title, "δ_C", correlation(delta_c, seen.noise).mean(1))
    figure.row(title, "ε(∅)", correlation(seen.eps["uncond"], seen.noise).mean(1))
    figure.state("δ_C is uncorrelated with the added noise", "δ_C", values, above=-UNCORRELATED, below=UNCORRELATED)
    figure.row("size of δ_C (root mean square; that of ε is 1)", "δ_C", size(delta_c).mean(1))
    if mask is not None:
        title = "area under the curve against the region that the words speak of"
        values = figure.row(title, "‖δ_C‖ against the object", area_under_curve(_norm(delta_c), mask).mean(1))
        figure.state("‖δ_C‖ is large where the prompt's object is", "object", values, above=CHANCE)
        behind = seen.eps["behind"] - seen.eps["shown"]
        values = figure.row(title, "‖ε(y, on a ... background) − ε(y)‖ against the background", _auc(behind, ~mask))
        figure.state("and words about the background change the background", "background", values, above=CHANCE)
    for eta, gain in gains.items():
        title = "nats that the classifier's log p(prompt) − log p(what was shown) gains, x − η(σ/α)δ_C"
        values = figure.row(title, f"η = {eta:g}", gain)
        figure.state("a step along −δ_C shows more of the prompt", f"η = {eta:g}", values, above=0.0)
    return figure


def classifier_gains(
    prior: Prior, seen: Observation, classifier: Classifier, shown: Sequence[Composition], wanted: Sequence[Composition]
) -> dict[float, Tensor]:
    """By η of ``ETAS``, [T,N]: how much the classifier's log-odds of ``wanted`` against ``shown`` [N] rise along −δ_C.

    Only the first noise is used.
    """

    def odds(z: Tensor) -> Tensor:
        prediction = classifier.classify(prior.decode(z.to(prior.device)).clamp(0, 1).cpu())
        pairs = enumerate(zip(shown, wanted, strict=True))
        logs = [prediction[i : i + 1].log_likelihood([after, before])[0] for i, (before, after) in pairs]
        return torch.stack([after - before for after, before in logs])

    start, steps = odds(seen.z), (seen.step * seen.delta_c)[:, 0]
    return {eta: torch.stack([odds(seen.z - eta * step) - start for step in steps]) for eta in ETAS}


def domain_figure(families: Mapping[str, PairObservation], control: str | None) -> Figure:
    """δ_N and δ_D of pairs: their correlation with content and distortion, and whether δ_D leads back to the domain.

    ``control`` names the family whose "distorted" image is in-domain, too. It is needed because the distance of z_OOD −
    (σ/α)δ_D from z_ID equals that between the two predicted clean latents, and at high noise every denoiser brings any
    two images nearer.
    """
    first = next(iter(families.values()))
    figure = Figure(first.clean.timesteps)
    shared = next((name for name, pair in families.items() if pair.shared), None)
    for name, pair in families.items():
        figure.row("size of δ_D as a share of δ_N's", name, (size(pair.delta_d) / size(pair.delta_n)).mean(1))
        if pair.shared and name != shared:
            continue  # the same clean images
        label = "the true pictures" if pair.shared else f"the true pictures of {name}"
        content = correlation(pair.delta_n, pair.clean.z).mean(1)
        values = figure.row("correlation of δ_N with the content z_ID", label, content)
        statement = "δ_N is uncorrelated with the content"
        figure.state(statement, label, values, above=-UNCORRELATED, below=UNCORRELATED)
        noise = correlation(pair.delta_n, pair.clean.noise).mean(1)
        figure.row("correlation of δ_N with the added noise ε", label, noise)
    for name, pair in families.items():
        values = figure.row("area under the curve of ‖δ_D‖ against the distortion", name, _auc(pair.delta_d, pair.mask))
        if name != control:
            figure.state("‖δ_D‖ is large where the distortion is", name, values, above=CHANCE)
    after = {name: pair.distance_after(pair.delta_d) for name, pair in families.items()}
    for name in families:
        title = "distance of x_OOD − (σ/α)δ_D from x_ID, as a share of x_OOD's"
        values = figure.row(title, name, after[name])
        if name != control:
            figure.state("x_OOD − (σ/α)δ_D is nearer to x_ID than x_OOD", name, values, below=1.0)
    for name, pair in families.items():
        if control is not None and name != control:
            title = "the same share minus the control's"
            more = estimate_difference(after[name], after[control], paired=pair.shared)
            values = figure.enter(title, name, more)
            figure.state("and more so than between two in-domain pictures", name, values, below=0.0)
    return figure


def negative_figure(families: Mapping[str, PairObservation]) -> Figure:
    """NFSD's two approximations of δ_D: ε(∅) − ε(neg), and ε(∅) at low noise; compared with δ_D of pairs.

    The distorted observations need "uncond", "neg" and "random", an unrelated caption.
    """
    first = next(iter(families.values())).distorted
    figure = Figure(first.timesteps)
    threshold = threshold_step(THRESHOLD, first.schedule.training_steps)

    def late(t: int) -> bool:
        return t >= threshold

    def early(t: int) -> bool:
        return t < threshold

    for name, pair in families.items():
        eps, delta_d = pair.distorted.eps, pair.delta_d
        by_neg, by_random = (eps["uncond"] - eps[prompt] for prompt in ("neg", "random"))
        along = {what: correlation(d, delta_d).mean(1) for what, d in (("neg", by_neg), ("random", by_random))}
        alone = correlation(eps["uncond"], delta_d).mean(1)
        title = "correlation of ε(∅) − ε(neg) with the pair's δ_D"
        values = figure.row(title, name, along["neg"])
        figure.state(f"ε(∅) − ε(neg) points along δ_D (t ≥ {threshold})", name, values, above=0.0, where=late)
        figure.row("the same with a random caption in place of p_neg", name, along["random"])
        values = figure.row("difference of the two correlations", name, along["neg"] - along["random"])
        figure.state(
            f"and p_neg does better than a random caption (t ≥ {threshold})", name, values, above=0.0, where=late
        )
        figure.row("correlation of ε(∅) with the pair's δ_D", name, alone)
        share = (delta_d.square().mean((-3, -2, -1)) / eps["uncond"].square().mean((-3, -2, -1))).mean(1)
        values = figure.row("share of δ_D in the power of ε(∅)", name, share)
        figure.state(f"ε(∅) is mostly δ_D (t < {threshold})", name, values, above=0.5, where=early)
        values = figure.row("correlation of ε(∅) minus that of ε(∅) − ε(neg)", name, alone - along["neg"])
        nearer = f"ε(∅) is nearer to δ_D than ε(∅) − ε(neg) is (t < {threshold})"
        figure.state(nearer, name, values, above=0.0, where=early)
        figure.state(f"and ε(∅) − ε(neg) is nearer (t ≥ {threshold})", name, values, below=0.0, where=late)
        title = "distance of x_OOD − (σ/α)(ε(∅) − ε(neg)) from x_ID, as a share of x_OOD's"
        values = figure.row(title, name, pair.distance_after(by_neg))
        figure.state("a step along −(ε(∅) − ε(neg)) leads towards x_ID", name, values, below=1.0)
        # Over noises, ε(∅) and ε(∅) − ε have the same mean; the latter has far less variance.
        averaged = correlation(pair.distorted.residual.mean(1), delta_d.mean(1))
        values = figure.row("correlation of δ_D with ε(∅) − ε, to which ε(∅) averages out", name, averaged)
        less = averaged - correlation(by_neg.mean(1), delta_d.mean(1))
        values = figure.row("the same minus that with ε(∅) − ε(neg)", name, less)
        statement = f"averaged over noise, ε(∅) is nearer to δ_D than ε(∅) − ε(neg) is (t < {threshold})"
        figure.state(statement, name, values, above=0.0, where=early)
    return figure


def residual_figure(groups: Mapping[str, Observation]) -> Figure:
    """The residual ε(∅) − ε of SDS: its size relative to s δ_C, and its share of noise.

    Each observation needs "uncond" for many noises and "cond".
    """
    first = next(iter(groups.values()))
    figure = Figure(first.timesteps)
    for name, seen in groups.items():
        residual, draws = seen.residual, seen.eps["uncond"].shape[1]
        power = residual.square().mean((1, -3, -2, -1))
        variance = residual.var(1).mean((-3, -2, -1))
        mean_power = residual.mean(1).square().mean((-3, -2, -1)) - variance / draws  # unbiased
        values = figure.row("size of the residual ε(∅) − ε (root mean square; that of ε is 1)", name, power.sqrt())
        figure.state("the residual is not negligible beside ε", name, values, above=NEGLIGIBLE)
        figure.row("size of its mean over noises", name, mean_power.clamp(min=0).sqrt())
        values = figure.row("share of its variance over noises in its power", name, variance / power)
        figure.state("the residual is mostly noise", name, values, above=0.5)
        condition = size(seen.delta_c).square().mean(1).sqrt()
        for s in SCALES:
            ratio = power.sqrt() / (s * condition)
            values = figure.row(f"size of the residual as a share of {s:g} δ_C's", name, ratio)
            if s == SCALES[0]:
                figure.state(
                    f"at s = {s:g} the residual is not negligible beside s δ_C", name, values, above=NEGLIGIBLE
                )
            else:
                figure.state(f"at s = {s:g} it is", name, values, below=NEGLIGIBLE)
    return figure


def dds_figure(source: Observation, edited: Mapping[str, Observation], s: float = SCALES[0]) -> Figure:
    """DDS: the share of the residual that remains in the difference between an edited image and its source.

    ``edited``: by the progress of the edit, images with the same noise as the source. All have "cond", each with its
    own prompt. At the start of an edit both images are equal, so the difference is zero by construction.
    """
    figure = Figure(source.timesteps)
    for stage, seen in edited.items():
        alone = size(seen.residual)
        left = size(seen.residual - source.residual)
        title = "size of the difference of the residuals, as a share of one residual's"
        values = figure.row(title, stage, (left / alone).mean(1))
        figure.state("the residual cancels, more than half of it", stage, values, below=0.5)
        figure.state("the residual cancels, all but a tenth", stage, values, below=NEGLIGIBLE)
        other = size(seen.residual - source.residual.roll(1, dims=1))
        figure.row("the same with another noise for the source (control)", stage, (other / alone).mean(1))
        direction = size(seen.delta_c - source.delta_c)
        title = f"size of that difference as a share of {s:g} (δ_C,edit − δ_C,orig)'s"
        values = figure.row(title, stage, (left / (s * direction)).mean(1))
        figure.state(f"at s = {s:g} what is left is negligible beside the edit", stage, values, below=NEGLIGIBLE)
        figure.row("of one residual alone", stage, (alone / (s * direction)).mean(1))
    return figure


def vsd_figure(pair: PairObservation, stages: Mapping[int, Tensor]) -> Figure:
    """VSD's LoRA network over its training: its distance from δ_N and from ε, and the resulting gradient.

    ``stages``: by finished training steps, its predictions [T,K,N,C,h,w] for the distorted images.
    """
    figure = Figure(pair.clean.timesteps)
    noise, uncond, delta_d = pair.clean.noise, pair.distorted.eps["uncond"], pair.delta_d
    from_n = {steps: size(eps - pair.delta_n).mean(1) for steps, eps in stages.items()}
    from_eps = {steps: size(eps - noise).mean(1) for steps, eps in stages.items()}
    first, last = min(stages), max(stages)
    for steps in stages:
        figure.row("distance of ε_LoRA from δ_N (root mean square)", f"after {steps} steps", from_n[steps])
    figure.row("distance of ε_LoRA from δ_N (root mean square)", "ε(∅) in its place", size(delta_d).mean(1))
    for steps in stages:
        figure.row("distance of ε_LoRA from ε", f"after {steps} steps", from_eps[steps])
    figure.row("distance of ε_LoRA from ε", "δ_N in its place", size(pair.delta_n - noise).mean(1))
    title = "correlation of ε(∅) − ε_LoRA, VSD's gradient without s δ_C, with the pair's δ_D"
    for steps, eps in stages.items():
        values = figure.row(title, f"after {steps} steps", correlation(uncond - eps, delta_d).mean(1))
    figure.state("ε(∅) − ε_LoRA points along δ_D", f"after {last} steps", values, above=0.0)
    trained = figure.enter("what training changes", "distance from δ_N", estimate(from_n[last] - from_n[first]))
    figure.state("training brings ε_LoRA nearer to δ_N", f"after {last} steps", trained, below=0.0)
    nearer = figure.enter("what training changes", "distance from ε", estimate(from_eps[last] - from_eps[first]))
    figure.state("training brings ε_LoRA nearer to ε", f"after {last} steps", nearer, below=0.0)
    values = figure.enter(
        "distance from δ_N minus that from ε", f"after {last} steps", estimate(from_n[last] - from_eps[last])
    )
    figure.state("ε_LoRA is nearer to δ_N than to ε", f"after {last} steps", values, below=0.0)
    return figure


def _norm(direction: Tensor) -> Tensor:
    """[...,h,w] the length over channels of [...,C,h,w]."""
    return direction.norm(dim=-3)


def _auc(direction: Tensor, mask: Tensor) -> Tensor:
    return area_under_curve(_norm(direction), mask).mean(1)
