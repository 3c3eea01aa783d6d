"""A dataset and a configuration small enough to train in a test."""

import dataclasses

import numpy as np

from floq_eqx.agents import from_plain, to_plain
from floq_eqx.data import make_environment
from floq_eqx.training import TrainConfig

CUBE = "cube-single-play-singletask-task1-v0"


def small_agent(name, **changes):
    """An agent with tiny networks and few samples, whatever its hyperparameters are called."""
    settings = {}
    for key, value in to_plain(from_plain(name, {})).items():
        if isinstance(value, dict):
            settings[key] = {"kind": "mlp", "hidden_sizes": [8], "layer_norm": True}
        elif key in ("num_noise", "num_steps", "flow_steps"):
            settings[key] = 2
    return from_plain(name, settings | changes)


def small_config(data, agent="fql", **changes):
    config = TrainConfig(
        agent=small_agent(agent) if isinstance(agent, str) else agent,
        num_updates=20,
        batch_size=8,
        log_every=5,
        evaluate_every=10,
        evaluation_episodes=1,
        checkpoint_every=5,
        data=str(data),
    )
    return dataclasses.replace(config, **changes)


def write_dataset(path, *, solved=True, steps=30, episodes=4):
    """A file of cube-single's shapes, of noise, in which the cube lies at the goal now and then."""
    env = make_environment(CUBE)
    try:
        env.reset(seed=0)
        model, goal = env.unwrapped.model, env.unwrapped._data.mocap_pos[0].copy()
        size = env.observation_space.shape[0]
    finally:
        env.close()
    rng = np.random.default_rng(0)
    rows = steps * episodes
    qpos = rng.normal(size=(rows, model.nq))
    if solved:
        qpos[::7, 14:17] = goal
    terminals = np.zeros(rows, bool)
    terminals[steps - 1 :: steps] = True
    np.savez(
        path,
        observations=rng.normal(size=(rows, size)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(rows, 5)).astype(np.float32),
        terminals=terminals,
        qpos=qpos.astype(np.float32),
        qvel=np.zeros((rows, model.nv), np.float32),
    )
    return path
