"""NoisinELBO: the NOISIN objective, estimated by one pass of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import MultiFrameTensor
from pyro.util import warn_if_nan
from torch import Tensor, nn

from noisin_pyro.infer.antithetic import AntitheticParticles, check_antithetic
from noisin_pyro.infer.prior_guide import PriorGuide
from noisin_pyro.infer.stateful import StatefulELBO, StatefulObjective

__all__ = ["NoisinELBO", "NoisinObjective"]


class NoisinELBO(StatefulELBO):
    """L = E_{p(z)} [Σ_t log p(x_t | z_t)] (the paper's Equation 1), estimated with S samples.

    Equal in value and gradients to ``Trace_ELBO`` with a :class:`PriorGuide` under the same
    seed, but it runs the model once, never the guide, and never evaluates the latent
    log-densities, which cancel. Where a noise has no pathwise gradient (a
    :class:`MeanParameterized` Poisson, say) its score-function term is added; there, with
    ``lengths``, the gradients are equal in expectation only, because Trace_ELBO does not mask
    the score of the padding.

    Use it in ``SVI`` or as a module, ``NoisinELBO()(model, PriorGuide(model))``. As any Pyro
    loss it is a sum over the sequence, in nats. Every term is that of one step, so the losses of
    windows with a carried state add up to the loss of the whole text at fixed weights.

    Args:
        num_particles: S, the number of noise samples averaged over.
        vectorize_particles: run them as one batch instead of one after another.
        antithetic: draw the noise in pairs, ε and its reflection: −ε for a symmetric base, and
            F⁻¹(1 − F(ε)) for another one with an ``icdf``. The estimate has the same expectation,
            and varies less than that of independent particles wherever log p(y | z) is nearly
            monotone in ε.

    Raises:
        ValueError: if S is below 1, or odd with ``antithetic``; and, when it meets such a model, if
            with ``antithetic`` a noise has no reflection or no sample site for a whole sequence, or
            with ``vectorize_particles`` none at all (``sites=None``).

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive, LanguageModel, NoisyRNN
        >>> rnn = NoisyRNN(4, 6, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.3)
        >>> model = LanguageModel(10, rnn)
        >>> objective = NoisinELBO()(model, PriorGuide(model))
        >>> x = torch.randint(10, (8, 2))
        >>> loss, state = objective.with_state(x[:-1], x[1:])
        >>> loss, state = objective.with_state(x[:-1], x[1:], state.detach())
    """

    def __init__(
        self,
        num_particles: int = 1,
        vectorize_particles: bool = False,
        *,
        antithetic: bool = False,
    ) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, got {num_particles}")
        if antithetic and num_particles % 2:
            raise ValueError(
                "antithetic=True draws noise in pairs, so num_particles must be even, got "
                f"{num_particles}"
            )
        super().__init__(  # type: ignore[no-untyped-call]
            num_particles=num_particles,
            max_plate_nesting=2,  # time and batch
            vectorize_particles=vectorize_particles,
        )
        self.antithetic = antithetic

    def __call__(self, model: nn.Module, guide: nn.Module) -> NoisinObjective:
        self._check(model, guide)
        return NoisinObjective(model, guide, self)

    def loss_and_state(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """The loss and the model's final state, for truncated backpropagation through time.

        Returns:
            The loss with shape (), and the state as the model returns it. With S > 1
            vectorised particles each part has a leading dimension S, and may be carried so;
            with S > 1 in turn it is the state of the last particle.

        Raises:
            TypeError: if ``guide`` is not the :class:`PriorGuide` of ``model``.
            ValueError: if nothing is observed.
        """
        loss, surrogate, state = self._estimate(model, guide, args, kwargs)
        if surrogate is not None:
            loss = loss + (surrogate - surrogate.detach())
        warn_if_nan(loss, "loss")
        return loss, state

    def _estimate(
        self, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Any]:
        """−L̂, the negative score-function terms or None, and the final state."""
        self._check(model, guide)
        loss, score = torch.zeros(()), None
        state = None
        for trace in self._get_traces(model, guide, args, kwargs):
            terms = [
                (site["cond_indep_stack"], _log_prob(site))
                for site in trace.nodes.values()
                if site["type"] == "sample" and _is_likelihood(site)
            ]
            if not terms:
                raise ValueError(
                    "NoisinELBO needs an observed site, got a model that was given no y; call it "
                    "as (x, y)"
                )
            loss = loss - sum(term.sum() for _, term in terms) / self.num_particles
            nodes = trace.nodes.values()
            scored = [site for site in nodes if site["type"] == "sample" and _needs_score(site)]
            if scored:
                part = _score(scored, terms) / self.num_particles
                score = -part if score is None else score - part
            state = trace.nodes["_RETURN"]["value"][1]
        return loss, score, state

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return poutine.trace(model).get_trace(*args, **kwargs)

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Any]:
        pairs: Any = nullcontext()
        if self.antithetic:
            pairs = AntitheticParticles(model, self.vectorize_particles)
        if self.vectorize_particles:
            vectorized = self._vectorized_num_particles(model)  # type: ignore[no-untyped-call]
            with pairs:
                trace = self._get_trace(vectorized, guide, args, kwargs)
            yield trace
        else:
            for _ in range(self.num_particles):
                with pairs:
                    trace = self._get_trace(model, guide, args, kwargs)
                yield trace

    def _check(self, model: Any, guide: Any) -> None:
        if isinstance(guide, PriorGuide) and guide.rest is not None:
            raise TypeError(
                "NoisinELBO leaves out the KL, which a PriorGuide with rest= has for γ or weights; "
                "use pyro.infer.Trace_ELBO"
            )
        if not (isinstance(guide, PriorGuide) and guide.model is model):
            raise TypeError(
                "NoisinELBO needs PriorGuide(model) of the very model it is given, got "
                f"{type(guide).__name__}; for another guide use pyro.infer.Trace_ELBO"
            )
        if self.antithetic:
            check_antithetic(model, self.num_particles)
            if model.rnn.sites is None:
                raise ValueError(
                    "antithetic=True reflects noise that is a sample site, got an RNN with "
                    "sites=None; use sites='sequence'"
                )
        elif self.vectorize_particles and model.rnn.sites is None and any(model.rnn.noise):
            raise ValueError(
                "vectorize_particles=True needs noise that is a sample site, got an RNN with "
                "sites=None, whose one draw would serve all particles; use sites='sequence'"
            )


class NoisinObjective(StatefulObjective):
    """A :class:`NoisinELBO` with its model and guide, as an ``nn.Module`` for torch optimisers.

    It leaves Pyro's global param store alone, so one thread can train several in turn.
    Frozen parameters stay frozen, but not those of a ``PyroModule`` of your own, as an embedding
    or an emission, which Pyro makes require a gradient (its issue 3438): make them buffers.
    """

    elbo: NoisinELBO


def _is_likelihood(site: Any) -> bool:
    return bool(site["is_observed"]) and not site["infer"].get("_deterministic", False)


def _needs_score(site: Any) -> bool:
    return not (
        site["is_observed"]
        or getattr(site["fn"], "has_rsample", False)
        or type(site["fn"]).__name__ == "_Subsample"
    )


def _score(sites: Sequence[Any], terms: Sequence[tuple[Any, Tensor]]) -> Tensor:
    """What the log-probabilities of sites are multiplied by in Trace_ELBO's score function.

    Args:
        sites: the sites without a pathwise gradient.
        terms: the plates and the log-probability of each observed site.

    Returns:
        The sum over the sites, with shape ().
    """
    downstream = MultiFrameTensor(*((stack, term.detach()) for stack, term in terms))
    total = torch.zeros(())
    for site in sites:
        weight, log_prob = downstream.sum_to(site["cond_indep_stack"]), _log_prob(site, False)
        # Trace_ELBO's weight is log r + 1; the 1 is a constant baseline, kept so that both give the
        # same estimate under the same seed.
        total = total + (log_prob * (weight + site["scale"])).sum()
    return total


def _log_prob(site: Any, scaled: bool = True) -> Tensor:
    """The log-probability without the padding, which Trace_ELBO's score function includes."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    scale = site["scale"] if scaled else 1.0
    return scale_and_mask(log_prob, scale, site["mask"])  # type: ignore[no-any-return]
