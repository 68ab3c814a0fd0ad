"""Bring your own agent: four methods make it prunable while it learns. Here, to push a mass to rest at 0."""

import torch
from torch import nn

from tdmpc_prune.pruning.config import ImportanceConfig, PruneConfig
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.pruning.surgery import cut_to


class ActorCritic(nn.Module):
    """An encoder shared by an actor, which chooses a force, and a critic, which predicts the cost to come."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 64), nn.ELU(), nn.Linear(64, 32))
        self.actor = nn.Sequential(nn.Linear(32, 64), nn.ELU(), nn.Linear(64, 1), nn.Tanh())
        self.critic = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.Tanh(), nn.Linear(64, 1))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)

    def components(self):  # the networks, by name
        return dict(self.named_children())

    def trace(self):  # one pass through all of them; what it returns keeps its width, and goes to no other
        z = self.encoder(torch.zeros(1, 2))
        return [self.actor(z), self.critic(z)]

    def mirrors(self):  # copies that have to follow, such as target networks
        return []

    def optimizers(self):  # whose moments have to follow
        return [self.optimizer]

    def drive(self, state):  # 5 s from [N, 2] positions and velocities: the end, the cost, and its prediction
        cost, predicted = 0.0, self.critic(self.encoder(state))
        for _ in range(50):
            state = state + 0.1 * torch.cat([state[:, 1:], self.actor(self.encoder(state))], dim=1)
            cost = cost + state.square().sum(1, keepdim=True) / 50
        return state, cost, predicted

    def error(self):  # mean distance from rest after one unit of distance, and after one of speed
        return self.drive(torch.eye(2))[0].norm(dim=1).mean().item()


torch.manual_seed(0)
agent, updates = ActorCritic(), 300
config = PruneConfig(sparsity=0.8, events=5, importance=ImportanceConfig(warmup=50))
pruner = Pruner(agent, config, config.schedule_over(updates))
pruner.check_target()  # refuses a sparsity that the limits do not allow
for update in range(1, updates + 1):
    _, cost, predicted = agent.drive(2 * torch.rand(64, 2) - 1)
    agent.optimizer.zero_grad()
    (cost + (predicted - cost.detach()).square()).mean().backward()
    # After backward, before any clipping; asked for anew, since removals replace them.
    pruner.observe(agent.parameters())
    agent.optimizer.step()
    pruner.advance(update / updates)
    if pruner.due(update):
        before = agent.error()
        # On real data, layers take over what they can of what they read.
        pruner.prune(update, lambda: agent.drive(torch.randn(64, 2)))
        print(f"sparsity {pruner.sparsity:.3f}: error {before:.4f} before, {agent.error():.4f} after")
print(f"sparsity {pruner.sparsity:.3f}: error {agent.error():.4f} at the end")

# To use it again: store these two; a new agent takes the widths first, and the weights then.
widths, weights = pruner.widths, agent.state_dict()
stored = ActorCritic()
cut_to(stored, widths)
stored.load_state_dict(weights)
print(f"loaded again: error {stored.error():.4f}")

# To go on learning: these three as well, the optimiser's state after the widths, the pruner's in the end.
moments, record, scores = agent.optimizer.state_dict(), pruner.record(), pruner.state_dict()
stored.optimizer.load_state_dict(moments)
pruner = Pruner(stored, config, config.schedule_over(updates))
pruner.load(record, scores)
print(f"goes on at sparsity {pruner.sparsity:.3f}, after {pruner.events} removals")
