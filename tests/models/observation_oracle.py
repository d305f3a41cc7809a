"""Reference values of the observation models by mpmath, written from their definitions."""

import likelihood_oracle as oracle
import mpmath as mp


def best_of(utility, outcome, beta):
    chosen = utility[outcome.index(1)]
    return -mp.log(sum(mp.exp(beta * (v - chosen)) for v in utility))


def ranking(utility, outcome, beta):
    left = sorted((rank or len(utility) + 1, i) for i, rank in enumerate(outcome))
    order, depth = [i for _, i in left], sum(rank > 0 for rank in outcome)
    return sum(
        -mp.log(sum(mp.exp(beta * (utility[j] - utility[order[t]])) for j in order[t:]))
        for t in range(depth)
    )


def best_worst(utility, outcome, beta):
    best, worst = outcome.index(1), outcome.index(-1)
    rest = [v for i, v in enumerate(utility) if i != best]
    second = -mp.log(sum(mp.exp(beta * (utility[worst] - v)) for v in rest))
    return best_of(utility, outcome, beta) + second


def graded(cut_points, middle=True):
    def log_prob(margin, outcome, beta):
        points = [mp.mpf(c) for c in cut_points]
        edges = [-mp.inf, *(-c for c in reversed(points)), *([] if middle else [0]), *points]
        edges.append(mp.inf)
        low, high = edges[outcome], edges[outcome + 1]
        if low == -mp.inf:
            return oracle.log_logistic(high - beta * margin)
        if high == mp.inf:
            return oracle.log_logistic(beta * margin - low)
        x, width = beta * margin, high - low
        between = mp.log1p(-mp.exp(-width))
        return oracle.log_logistic(high - x) + oracle.log_logistic(x - low) + between

    return log_prob


def davidson(nu):
    def log_prob(margin, outcome, beta):
        x = beta * margin
        terms = [-x, mp.log(nu) - x / 2, mp.mpf(0)]
        top = max(terms)
        return terms[outcome] - top - mp.log(sum(mp.exp(t - top) for t in terms))

    return log_prob


def lapse(log_prob, rate, num_outcomes):
    def careless(margin, outcome, beta):
        attentive = mp.exp(log_prob(margin, outcome, beta))
        return mp.log((1 - mp.mpf(rate)) * attentive + mp.mpf(rate) / num_outcomes)

    return careless


def mixed(log_likelihood, mean, cv, family):
    """Log of the integral of the likelihood of a strength, by adaptive tanh-sinh quadrature."""
    log_density = oracle._log_densities(mp.mpf(mean), mp.mpf(cv))[family]
    return oracle._log_integral(lambda t: log_density(t, log_likelihood), [])
