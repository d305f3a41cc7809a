"""A training loop of one's own: any model that gives margins, and `StrengthObjective`.

    python examples/own_loop.py

Here a reward model is a line in five features; yours may be a network. The strength's distribution
is learned with it, by one optimiser, at a rate of its own and without weight decay.
"""

import torch

from mixdpo_pyro import strength_parameter_groups
from mixdpo_pyro.inference import StrengthObjective, build_strength_guide
from mixdpo_pyro.models import PreferenceModel

NUM_ANNOTATORS, CHOICES_EACH, NUM_FEATURES = 100, 30, 5


def simulate() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of the chosen less the rejected response, and who chose; cv is .7."""
    generator = torch.Generator().manual_seed(0)
    annotator = torch.arange(NUM_ANNOTATORS).repeat_interleave(CHOICES_EACH)
    difference = torch.randn(len(annotator), NUM_FEATURES, generator=generator)
    scale = torch.tensor(0.7**2).log1p().sqrt()
    strength = (scale * torch.randn(NUM_ANNOTATORS, generator=generator) - scale**2 / 2).exp()
    utility = strength[annotator] * (difference @ torch.linspace(-1, 1.5, NUM_FEATURES))
    is_first = torch.rand(len(annotator), generator=generator) < utility.sigmoid()
    return difference * torch.where(is_first, 1, -1)[:, None], annotator


def train(num_epochs: int = 30) -> StrengthObjective:
    """The loop; a batch holds all choices of some annotators, who have one strength each."""
    difference, annotator = simulate()
    torch.manual_seed(0)
    model = PreferenceModel("lognormal", mean_anchor="fixed", beta=1.0)
    objective = StrengthObjective(model, build_strength_guide(model, initial_cv=0.3))
    reward = torch.nn.Linear(NUM_FEATURES, 1, bias=False)
    groups = [{"params": reward.parameters()}, *strength_parameter_groups(objective, 0.03)]
    optimizer = torch.optim.AdamW(groups, lr=0.03, weight_decay=0.0)
    for epoch in range(num_epochs):
        for people in torch.randperm(NUM_ANNOTATORS).split(20):
            rows = torch.isin(annotator, people)
            margin = reward(difference[rows])[:, 0]
            loss = objective(margin, annotator[rows], num_total=NUM_ANNOTATORS)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: cv {objective.location()['cv']:.2f} (true: 0.70)")
    return objective


if __name__ == "__main__":
    train()
