"""The distributions of W&B's sweep format, by their quantile functions.

One function a distribution serves everything: a random trial takes the quantile of a uniform number, and a
Bayesian search looks for a good number between 0 and 1. The definitions are W&B's, tested against its own sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

Quantile = Callable[[float], Any]
"""From a number of [0, 1) to a value."""
MOST_CHOICES = 100_000
"""Values of one parameter that a grid may have."""
Spec = Mapping[str, Any]
"""A parameter as the file describes it."""


@dataclass(frozen=True)
class Distribution:
    """What a parameter can be."""

    quantile: Quantile
    """The value below which a share of the values lies."""
    choices: Sequence[Any] | None = None
    """All its values, where they can be tried one by one; None of continuous and of weighted ones."""

    @property
    def constant(self) -> bool:
        """Whether there is nothing to choose."""
        return self.choices is not None and len(self.choices) == 1


@dataclass(frozen=True)
class Family:
    """A distribution's name in the file: what describes it, and how it is made."""

    make: Callable[..., Distribution]
    required: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)


def distribution(spec: Spec) -> Distribution:
    """What a parameter's description means.

    Raises:
        ValueError: it is none of W&B's; the message names what is wrong, and the nearest right name.
    """
    name = spec["distribution"] if "distribution" in spec else _inferred(spec)
    if name not in FAMILIES:
        raise ValueError(f"distribution {name!r} is unknown{nearest(str(name), FAMILIES)}")
    family = FAMILIES[name]
    given = {key: value for key, value in spec.items() if key != "distribution"}
    known = [*family.required, *family.defaults]
    for key in given:
        if key not in known:
            raise ValueError(f"{key!r} means nothing for {name}{nearest(key, known)}")
    for key in family.required:
        if key not in given:
            raise ValueError(f"{name} needs {key}")
    return family.make(**family.defaults | given)


def nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Advice: the known name that a wrong one is most like, or all of a few."""
    if close := get_close_matches(word, list(known), n=1):
        return f": did you mean {close[0]}?"
    return f": choose {', '.join(known)}"


def _inferred(spec: Spec) -> str:
    """The distribution of a description that names none."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec or "max" in spec:
        whole = all(isinstance(spec.get(key), int) for key in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    raise ValueError("it needs value, values, min and max, or a distribution")


def _constant(value: Any) -> Distribution:
    return Distribution(lambda u: value, (value,))


def _categorical(values: Any) -> Distribution:
    choices = _list("values", values)
    return Distribution(lambda u: choices[int(u * len(choices))], choices)


def _weighted(values: Any, probabilities: Any) -> Distribution:
    choices, weights = _list("values", values), _list("probabilities", probabilities)
    if len(choices) != len(weights):
        raise ValueError(f"there are {len(choices)} values and {len(weights)} probabilities")
    for weight in weights:
        _number("probabilities", weight, least=0)
    if not math.isclose(sum(weights), 1):
        raise ValueError(f"probabilities add up to {sum(weights):g}, not to 1")
    edges = np.cumsum(weights)
    last = len(choices) - 1  # a sum just below 1 must not lead out of the list
    return Distribution(lambda u: choices[min(int(np.searchsorted(edges, u, side="right")), last)])


def _int_uniform(min: Any, max: Any) -> Distribution:
    for key, value in (("min", min), ("max", max)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}; int_uniform needs whole numbers")
    low, high = _range(min, max)
    choices = range(int(low), int(high) + 1)
    return Distribution(lambda u: choices[int(u * len(choices))], choices)


def _uniform(min: Any, max: Any) -> Distribution:
    low, high = _range(min, max)
    return Distribution(lambda u: low + u * (high - low))


def _q_uniform(min: Any, max: Any, q: Any) -> Distribution:
    # W&B's grid takes what numpy's arange gives: the upper end is not among it.
    step = _number("q", q, above=0)
    low, high = _range(min, max)
    choices = None
    if (high - low) / step <= MOST_CHOICES:
        choices = [_plain(float(value)) for value in np.arange(low, high, step)]
    return _quantised(_uniform(min, max), q, choices)


def _log_uniform(min: Any, max: Any) -> Distribution:
    exponent = _uniform(min, max).quantile
    return Distribution(lambda u: math.exp(exponent(u)))


def _inverse_log_uniform(min: Any, max: Any) -> Distribution:
    exponent = _uniform(min, max).quantile
    return Distribution(lambda u: math.exp(-exponent(1 - u)))


def _logarithms(min: Any, max: Any) -> tuple[float, float]:
    _number("min", min, above=0)
    low, high = _range(min, max)
    return math.log(low), math.log(high)


def _log_uniform_values(min: Any, max: Any) -> Distribution:
    return _log_uniform(*_logarithms(min, max))


def _inverse_log_uniform_values(min: Any, max: Any) -> Distribution:
    low, high = _logarithms(min, max)
    return _inverse_log_uniform(-high, -low)


def _normal(mu: Any, sigma: Any) -> Distribution:
    from scipy.special import ndtri

    mean, deviation = _number("mu", mu), _number("sigma", sigma, above=0)
    return Distribution(lambda u: mean + deviation * float(ndtri(_inside(u))))


def _log_normal(mu: Any, sigma: Any) -> Distribution:
    exponent = _normal(mu, sigma).quantile
    return Distribution(lambda u: math.exp(exponent(u)))


def _beta(a: Any, b: Any) -> Distribution:
    from scipy.special import betaincinv

    first, second = _number("a", a, above=0), _number("b", b, above=0)
    return Distribution(lambda u: float(betaincinv(first, second, u)))


def _quantised(inner: Distribution, q: Any, choices: Sequence[Any] | None = None) -> Distribution:
    step = _number("q", q, above=0)
    return Distribution(lambda u: _plain(float(np.round(inner.quantile(u) / step) * step)), choices)


def _with_q(make: Callable[..., Distribution]) -> Callable[..., Distribution]:
    return lambda q, **given: _quantised(make(**given), q)


def _plain(value: float) -> float | int:
    """A whole number as such, which is how W&B's agents pass it."""
    return int(value) if value.is_integer() else value


def _inside(u: float) -> float:
    """Away from 0, whose normal quantile is infinite."""
    return max(u, 1e-12)


def _range(low: Any, high: Any) -> tuple[float, float]:
    least, most = _number("min", low), _number("max", high)
    if least >= most:
        raise ValueError(f"min is {low}, max is {high}; choose min below max")
    return least, most


def _number(key: str, value: Any, *, above: float = -math.inf, least: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        # YAML 1.1, which W&B reads too, takes 1e-4 for a word.
        remedy = "write 1.0e-4 for 1e-4" if isinstance(value, str) and "e" in value else "choose a number"
        raise ValueError(f"{key} is {value!r}; {remedy}")
    if value <= above:
        raise ValueError(f"{key} is {value!r}; choose more than {above:g}")
    if value < least:
        raise ValueError(f"{key} is {value!r}; choose at least {least:g}")
    return value


def _list(key: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key} is {value!r}; choose a list with at least one value")
    return tuple(value)


_Q = {"q": 1.0}
_NORMAL = {"mu": 0.0, "sigma": 1.0}
_BETA = {"a": 1, "b": 1}
_BOUNDS = ("min", "max")
FAMILIES: Mapping[str, Family] = {
    "constant": Family(_constant, ("value",)),
    "categorical": Family(_categorical, ("values",)),
    "categorical_w_probabilities": Family(_weighted, ("values", "probabilities")),
    "int_uniform": Family(_int_uniform, _BOUNDS),
    "uniform": Family(_uniform, _BOUNDS),
    "q_uniform": Family(_q_uniform, _BOUNDS, _Q),
    "log_uniform": Family(_log_uniform, _BOUNDS),
    "log_uniform_values": Family(_log_uniform_values, _BOUNDS),
    "q_log_uniform": Family(_with_q(_log_uniform), _BOUNDS, _Q),
    "q_log_uniform_values": Family(_with_q(_log_uniform_values), _BOUNDS, _Q),
    "inv_log_uniform": Family(_inverse_log_uniform, _BOUNDS),
    "inv_log_uniform_values": Family(_inverse_log_uniform_values, _BOUNDS),
    "normal": Family(_normal, (), _NORMAL),
    "q_normal": Family(_with_q(_normal), (), _NORMAL | _Q),
    "log_normal": Family(_log_normal, (), _NORMAL),
    "q_log_normal": Family(_with_q(_log_normal), (), _NORMAL | _Q),
    "beta": Family(_beta, (), _BETA),
    "q_beta": Family(_with_q(_beta), (), _BETA | _Q),
}
"""W&B's distributions by their names."""
