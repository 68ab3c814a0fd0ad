"""Runs an exported controller for one episode of its task and prints the return; contract.json explains it."""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

from envs import make_env

contract = json.loads(Path(__file__).with_name("contract.json").read_text())
cli = argparse.ArgumentParser(description=__doc__)
cli.add_argument("--controller", choices=contract["controllers"], default=next(iter(contract["controllers"])))
cli.add_argument("--seed", type=int, default=contract["simulator"]["episode_seed"])
args = cli.parse_args()
chosen, seed = contract["controllers"][args.controller], contract["simulator"]["construction_seed"]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(Path(__file__).with_name(chosen["file"]), options)
feed = {name: np.zeros(tensor["shape"], np.float32) for name, tensor in chosen["inputs"].items()}
env = make_env(contract["task"], seed, action_repeat=contract["action_repeat"])
obs, total, over, rng = env.reset(seed=args.seed)[0], 0.0, False, np.random.default_rng(args.seed)
while not over:
    feed |= {name: rng.standard_normal(feed[name].shape, np.float32) for name in chosen["noise"]}
    outputs = dict(zip(chosen["outputs"], session.run(None, feed | {"observation": obs[None]}), strict=True))
    feed |= {into: outputs[name] for name, into in chosen["carry"].items()}
    obs, reward, terminated, truncated, _ = env.step(outputs["action"][0])
    total, over = total + float(reward), terminated or truncated
print(f"{contract['task']}, {args.controller}, seed {args.seed}: return {total:.4f}")
