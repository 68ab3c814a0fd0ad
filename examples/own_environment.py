"""Bring your own environment: registered with Gymnasium, it is a task of the command like any other.

TDMPC_PRUNE_ENVS=examples.own_environment tdmpc-prune train PushToRest-v0 --steps 4000 --agent.random-steps 500
"""

import gymnasium
import numpy as np
from gymnasium import spaces


class PushToRest(gymnasium.Env):
    """A mass of 1 kg on a rail, to be pushed to rest at 0 by a force of up to 1 N."""

    dt = 0.1  # seconds between two steps: what a controller has time for

    def __init__(self, render_mode=None):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)  # position, velocity
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)  # seeds self.np_random: all that is random has to come from there
        self.state = self.np_random.uniform(-1, 1, 2)
        return self.state.astype(np.float32), {}

    def step(self, action):
        position, velocity = self.state
        velocity += self.dt * float(action[0])
        self.state = np.array([position + self.dt * velocity, velocity])
        reward = float(np.exp(-np.square(self.state).sum()))
        gone = bool(abs(position) > 10)
        return self.state.astype(np.float32), reward, gone, False, {}


gymnasium.register("PushToRest-v0", entry_point=PushToRest, max_episode_steps=100)
