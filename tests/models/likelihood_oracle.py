"""Reference values of the mixed-logit likelihood by mpmath, with 20 digits or more.

Used by the tests of this folder and by `benchmarks/likelihood.py`. Slow on purpose: nothing here
shares code with the package.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import mpmath as mp

Number = float | mp.mpf


def gamma_points(number: int, seed: int) -> Iterator[tuple[float, float, float]]:
    """Margin, mean, cv: the whole stated range, its corners, the bulk of moderate utilities."""
    generator = random.Random(seed)
    for i in range(number):
        log_margin, log_mean = generator.uniform(-8, 8), generator.uniform(-3, 2)
        log_concentration = generator.uniform(-3, 8)
        if i % 4 == 0:
            log_margin = generator.choice([-8, 8])
        if i % 4 == 1:
            log_concentration = generator.choice([-3, 8])
        if i % 4 == 2:
            log_margin = generator.uniform(-1, 3) - log_mean
        sign = generator.choice([-1, 1])
        yield sign * 10**log_margin, 10**log_mean, 10 ** (-log_concentration / 2)


def gamma_log_q(y: mp.mpf, c: mp.mpf, num_terms: int = 100) -> mp.mpf:
    """log E[sigmoid(-v)] for a Gamma utility v of mean y and squared cv c, by the series."""
    a, x = 1 / c, c * y
    w = x / (1 + x)
    d = (3 + mp.sqrt(8)) ** num_terms
    d = (d + 1 / d) / 2
    b, weight, total = mp.mpf(-1), -d, mp.mpf(0)
    for k in range(num_terms):
        weight = b - weight
        total += weight * mp.exp(-a * mp.log1p(k * w))
        b *= mp.mpf((k + num_terms) * (k - num_terms)) / ((k + mp.mpf(1) / 2) * (k + 1))
    return mp.log(total / d) - a * mp.log1p(x)


def gamma_log_q_by_zeta(y: Number, c: Number) -> mp.mpf:
    """The same by Lerch(-1, a, v) = 2^-a [zeta(a, v/2) - zeta(a, (v+1)/2)], Hurwitz's zeta."""
    a, x = 1 / mp.mpf(c), mp.mpf(c) * mp.mpf(y)
    v = 1 + 1 / x
    lerch = mp.mpf(2) ** -a * (mp.zeta(a, v / 2) - mp.zeta(a, (v + 1) / 2))
    return mp.log(lerch) - a * mp.log(x)


def gamma_log_prob(margin: Number, mean: Number, cv: Number) -> mp.mpf:
    """log P of a pair under a Gamma strength."""
    margin, mean, cv = mp.mpf(margin), mp.mpf(mean), mp.mpf(cv)
    log_q = gamma_log_q(abs(margin) * mean, cv * cv)
    return log_q if margin < 0 else mp.log1p(-mp.exp(log_q))


def log_logistic(u: mp.mpf) -> mp.mpf:
    """log sigmoid(u)."""
    return -mp.log1p(mp.exp(-u)) if u > 0 else u - mp.log1p(mp.exp(u))


def panel_log_prob(
    margins: Sequence[Number], mean: Number, cv: Number, family: str, flip: Number = 0
) -> mp.mpf:
    """log P of the choices of one annotator, by adaptive tanh-sinh quadrature."""
    mean, cv = mp.mpf(mean), mp.mpf(cv)
    margins = [mp.mpf(value) for value in margins]

    def log_likelihood(beta: mp.mpf) -> mp.mpf:
        if flip:
            return sum(
                mp.log(
                    (1 - mp.mpf(flip)) * mp.exp(log_logistic(beta * d))
                    + flip * mp.exp(log_logistic(-beta * d))
                )
                for d in margins
            )
        return sum(log_logistic(beta * d) for d in margins)

    log_density = _log_densities(mean, cv)[family]
    kinks = [-1 / cv] if family == "normal" else []
    return _log_integral(lambda t: log_density(t, log_likelihood), kinks)


def pair_log_prob(margin: Number, mean: Number, cv: Number, family: str) -> mp.mpf:
    """log P of a pair: the closed form for Gamma, otherwise log Q or log(1 - Q) by integration."""
    if family == "gamma":
        return gamma_log_prob(margin, mean, cv)
    if family == "normal" or margin < 0:
        return panel_log_prob([margin], mean, cv, family)
    return mp.log1p(-mp.exp(panel_log_prob([-margin], mean, cv, family)))


def gradient(
    function: Callable[..., mp.mpf], arguments: Sequence[Number], relative_step: float = 1e-14
) -> list[mp.mpf]:
    """Central differences; the working precision must be about three times the step's digits."""
    slopes = []
    for i, value in enumerate(arguments):
        step = mp.mpf(value) * mp.mpf(relative_step)
        up, down = list(map(mp.mpf, arguments)), list(map(mp.mpf, arguments))
        up[i] += step
        down[i] -= step
        slopes.append((function(*up) - function(*down)) / (2 * step))
    return slopes


def _log_densities(mean: mp.mpf, cv: mp.mpf) -> dict[str, Callable]:
    """Log integrand in a coordinate on the whole line, given the log-likelihood of a strength."""
    sigma = mp.sqrt(mp.log1p(cv * cv))
    a = 1 / (cv * cv)

    def standard_normal(z: mp.mpf) -> mp.mpf:
        return -z * z / 2 - mp.log(2 * mp.pi) / 2

    def gamma(u: mp.mpf, log_likelihood: Callable) -> mp.mpf:
        s = u - mp.exp(-u)
        log_density = a * mp.log(a) - mp.loggamma(a) + a * (s - mp.exp(s))
        return log_density + mp.log1p(mp.exp(-u)) + log_likelihood(mean * mp.exp(s))

    return {
        "lognormal": lambda z, f: standard_normal(z) + f(mean * mp.exp(sigma * z - sigma**2 / 2)),
        "normal": lambda z, f: standard_normal(z) + f(mean * (1 + cv * z)),
        "gamma": gamma,
    }


def _log_integral(
    log_integrand: Callable[[mp.mpf], mp.mpf], kinks: Sequence[mp.mpf], digits: int = 20
) -> mp.mpf:
    """Tanh-sinh quadrature over the part where a unimodal integrand keeps `digits` digits.

    The rule resolves sharp features at the ends of its intervals: `kinks` become ends.
    """
    peak = _argmax(log_integrand)
    height = log_integrand(peak)
    cut = digits * mp.log(10)

    def end(direction: int) -> mp.mpf:
        inside, outside = mp.mpf(0), mp.mpf("1e-12")
        while height - log_integrand(peak + direction * outside) < cut:
            inside, outside = outside, 2 * outside
        for _ in range(12):
            middle = (inside + outside) / 2
            if height - log_integrand(peak + direction * middle) < cut:
                inside = middle
            else:
                outside = middle
        return peak + direction * outside

    low, high = end(-1), end(1)
    points = [low + (high - low) * mp.mpf(i) / 6 for i in range(7)]
    points = sorted(points + [kink for kink in kinks if low < kink < high])
    return height + mp.log(mp.quad(lambda t: mp.exp(log_integrand(t) - height), points))


def _argmax(function: Callable[[mp.mpf], mp.mpf]) -> mp.mpf:
    """Maximum of a unimodal function by an expanding bracket and golden section."""
    golden = (mp.sqrt(5) - 1) / 2
    low, high = mp.mpf(-1), mp.mpf(1)
    while function(low) > function(low + (high - low) / 100):
        low *= 2
    while function(high) > function(high - (high - low) / 100):
        high *= 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(45):
        if at_left > at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = function(right)
    return (low + high) / 2
