"""Environments of one's own, as far as they suit, and how they are found."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv

from envs import SimulatorError, UnknownTaskError, find_task, make_env, resolve_task
from envs.perturb import broke_down, perturb
from envs.perturbations import Perturbation, PerturbationError
from envs.registered import VARIABLE


class Robot(gymnasium.Env):
    """Counts what it is pushed by, from a place that its seed says."""

    dt = 0.05
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=2)
        return self.place.copy(), {}

    def step(self, action):
        self.place = self.place + action
        return self.place.copy(), float(action.sum()), False, False, {}


class Camera(Robot):
    """Shows a picture and a number."""

    observation_space = spaces.Dict(
        {"picture": spaces.Box(0, 255, (2, 3), np.uint8), "speed": spaces.Box(-1, 1, (1,), np.float32)}
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def step(self, action):
        super().step(action)
        return self.seen(), 1.0, False, False, {}

    def seen(self):
        return {"picture": np.arange(6, dtype=np.uint8).reshape(2, 3), "speed": np.float32([0.5])}


@pytest.fixture
def register():
    """Registers an environment for one test; returns its id."""

    def add(kind, **settings):
        gymnasium.register("Robot-v0", entry_point=kind, **{"max_episode_steps": 30} | settings)
        return "Robot-v0"

    yield add
    gymnasium.registry.pop("Robot-v0", None)


def test_it_is_a_task_like_any_other(register):
    task = register(Robot)
    assert resolve_task(task) == task
    assert find_task(task).suite == "registered"
    env = make_env(task, seed=3, action_repeat=4)
    assert env.observation_space.dtype == env.action_space.dtype == np.float32
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    assert env.get_wrapper_attr("control_timestep") == pytest.approx(0.2)
    assert env.get_wrapper_attr("max_episode_steps") == 30
    assert env.get_wrapper_attr("task") == task
    first, _ = env.reset(seed=7)
    np.testing.assert_allclose(first, np.random.Generator(np.random.PCG64(7)).normal(size=2), rtol=1e-6)
    seen, reward, terminated, truncated, info = env.step(np.float32([0.5, 0]))
    np.testing.assert_allclose(seen - first, [4 * 1.0, 4 * 5.0], rtol=1e-5)  # halfway up both ranges
    assert reward == pytest.approx(24)
    assert info["env_steps"] == 4
    for _ in range(7):
        seen, reward, terminated, truncated, info = env.step(np.float32([0, -1]))
    assert (terminated, truncated, info["env_steps"]) == (False, True, 2)
    again, _ = env.reset(seed=7)
    assert np.array_equal(first, again)


def test_dictionaries_and_pictures_are_flattened(register):
    env = make_env(register(Camera))
    observation, _ = env.reset()
    assert env.observation_space.shape == (7,)
    assert observation.tolist() == [0, 1, 2, 3, 4, 5, 0.5]


def test_actions_stay_within_the_bounds_of_float64(register):
    class Exact(Robot):
        action_space = spaces.Box(-0.1, 0.1, (2,), np.float64)

        def step(self, action):
            assert action in self.action_space
            return super().step(action)

    env = make_env(register(Exact))
    env.reset()
    env.step(np.float32([1, -1]))


def robot(**attributes):
    return type("Other", (Robot,), attributes)


def forgets_its_seed(self, *, seed=None, options=None):
    self.place = np.random.normal(size=2)  # noqa: NPY002 - which is the fault
    return self.place, {}


def fails(self, action):
    raise RuntimeError("no\nmotor")


def lists_its_reward(self, action):
    observation, reward, *rest = Robot.step(self, action)
    return observation, np.array([reward]), *rest


def rewards_with_nan(self, action):
    observation, _, *rest = Robot.step(self, action)
    return observation, np.nan, *rest


UNSUITED = {
    "buttons": (robot(action_space=spaces.Discrete(3)), {}, r"has actions Discrete\(3\): only a bounded box"),
    "no bounds": (robot(action_space=spaces.Box(-np.inf, 1, (2,))), {}, "only a bounded box"),
    "whole numbers": (robot(action_space=spaces.Box(0, 9, (2,), np.int64)), {}, "only a bounded box"),
    "a table of actions": (robot(action_space=spaces.Box(0, 1, (2, 2))), {}, r"with a shape \(n,\)"),
    "words": (robot(observation_space=spaces.Text(9)), {}, "only boxes of numbers can be read"),
    "no limit": (Robot, {"max_episode_steps": None}, "register it with max_episode_steps"),
    "no seconds": (robot(dt=None), {}, "give the environment an attribute dt, in seconds"),
    "no time": (robot(dt=0.0), {}, "give the environment an attribute dt"),
    "no seed": (robot(reset=forgets_its_seed), {}, r"does not repeat itself after reset\(seed=0\)"),
    "no actions": (robot(action_space=spaces.Box(0, 1, (0,))), {}, "no observations or no actions"),
    "one action": (
        robot(action_space=spaces.Box(np.float32([0, 1]), np.float32([1, 1]))),
        {},
        "low be below high",
    ),
    "other observations": (
        robot(observation_space=spaces.Box(-9, 9, (3,))),
        {},
        "an observation has 2 numbers",
    ),
    "a list of rewards": (robot(step=lists_its_reward), {}, "a reward is .*, and no number"),
    "a reward that is none": (robot(step=rewards_with_nan), {}, "does not run: ValueError: a reward is nan"),
    "observations of nothing": (
        robot(reset=lambda *_, **__: (np.full(2, np.nan), {})),
        {},
        "does not run: ValueError: an observation is not finite",
    ),
    "a fault": (robot(step=fails), {}, "^Robot-v0 does not run: RuntimeError: no motor$"),
    "no such class": ("envs.nowhere:Robot", {}, "^Robot-v0 cannot be made: ModuleNotFoundError"),
}


@pytest.mark.parametrize("case", UNSUITED)
def test_what_does_not_suit_is_refused_in_one_line(case, register):
    kind, settings, reason = UNSUITED[case]
    with pytest.raises(SimulatorError, match=reason) as refusal:
        make_env(register(kind, **settings))
    assert "\n" not in str(refusal.value)


def test_a_reward_beyond_float32_is_not_finite(register):
    """What is learned from is float32; the check of `make_env` sees the first steps alone."""

    class Huge(Robot):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, 1e39, *rest

    env = make_env(register(Huge))
    env.reset(seed=1)
    with pytest.raises(
        SimulatorError, match=r"gave a reward that is not finite in agent step 1 of an episode$"
    ):
        env.step(np.float32([0, 0]))


class Filmed(Robot):
    """Draws what `picture` is."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    picture = np.zeros((4, 6, 3), np.uint8)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        if isinstance(self.picture, Exception):
            raise self.picture
        return self.picture


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (None, r"render gave object \[\]; uint8 \[H, W, 3\] is a picture"),
        (np.zeros((4, 6, 3)), r"render gave float64 \[4, 6, 3\]"),
        (np.zeros((4, 6), np.uint8), r"render gave uint8 \[4, 6\]"),
        (ImportError("no\npygame"), "^it cannot be drawn: ImportError: no pygame$"),
    ],
)
def test_what_is_no_picture(picture, reason, register):
    env = make_env(register(type("Blind", (Filmed,), {"picture": picture})), render_mode="rgb_array")
    env.reset(seed=1)
    with pytest.raises(SimulatorError, match=reason):
        env.render()


def test_pictures(register):
    env = make_env(register(Filmed), render_mode="rgb_array")
    env.reset(seed=1)
    assert env.render().shape == (4, 6, 3)


@pytest.mark.filterwarnings("ignore:.*render_mode")
def test_what_does_not_draw_is_refused_at_once(register):
    blind = type("Blind", (Filmed,), {"metadata": {}})
    with pytest.raises(
        SimulatorError, match=r"cannot be drawn: its metadata\['render_modes'\] lack rgb_array"
    ):
        make_env(register(blind), render_mode="rgb_array")


def test_seconds_of_a_step_may_follow_from_its_pictures(register):
    class Filmed(Robot):
        metadata = {"render_modes": [], "render_fps": 25}  # noqa: RUF012

        @property
        def dt(self):
            raise AttributeError

    assert make_env(register(Filmed)).get_wrapper_attr("control_timestep") == pytest.approx(0.04)


def test_only_physics_of_mujoco_can_be_changed(register):
    env = make_env(register(Robot))
    assert perturb(env, Perturbation("delay", 1)).reset(seed=1)[0].shape == (2,)
    assert not broke_down(env)
    with pytest.raises(PerturbationError, match=r"^mass=2: MuJoCo does not simulate Robot-v0: choose"):
        perturb(env, Perturbation("mass", 2))


def test_a_robot_of_ones_own_in_mujoco_has_masses(register):
    env = make_env(register(type("Arm", (ReacherEnv,), {})))
    before = env.unwrapped.model.body_mass.copy()
    perturb(env, Perturbation("mass", 2))
    assert np.array_equal(env.unwrapped.model.body_mass, 2 * before)
    assert before.any()


def test_gymnasiums_older_robots_are_no_tasks():
    for name in ("HalfCheetah-v4", "tdmpc_prune/Ant-v5", "Nowhere-v0"):
        with pytest.raises(UnknownTaskError):
            resolve_task(name)
    assert resolve_task("Pendulum-v1") == "Pendulum-v1"


MODULE = """
import gymnasium
gymnasium.register("Lab/Robot-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=9)
print("imported")
"""


def test_a_module_that_is_named_is_imported_from_where_one_stands(tmp_path, monkeypatch, python):
    (tmp_path / "lab_robots.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    code = "import sys, envs; print(envs.make_env('Lab/Robot-v0').get_wrapper_attr('max_episode_steps'))"
    monkeypatch.setenv(VARIABLE, " lab_robots,")
    assert python(code).split() == ["imported", "9"]


def test_a_file_is_no_module(monkeypatch):
    monkeypatch.setenv(VARIABLE, "./lab/robots.py")
    with pytest.raises(
        SimulatorError, match=r"is a file: give the name of a module, robots, and have its folder"
    ):
        find_task("Robot-v0")


def test_a_name_without_its_version(register, monkeypatch):
    register(Robot)
    with pytest.raises(UnknownTaskError, match="All 62"):
        find_task("Robot")
    monkeypatch.setenv(VARIABLE, "math")
    gymnasium.register("Robot-v10", entry_point=Robot)
    gymnasium.register("Robot-vision-v0", entry_point=Robot)
    try:
        for name in ("Robot", "Robot-v3"):
            with pytest.raises(UnknownTaskError, match=rf"^unknown task '{name}': did you mean Robot-v10"):
                find_task(name)
    finally:
        for name in ("Robot-v10", "Robot-vision-v0"):
            gymnasium.registry.pop(name)
    for name in ("Walker2d", "Ant", "Pendulum"):  # Gymnasium's own, old or not, are nobody's own
        with pytest.raises(UnknownTaskError) as refusal:
            find_task(name)
        assert f"{name}-v1" not in str(refusal.value)
        assert f"{name}-v3" not in str(refusal.value)


def test_a_task_names_no_module(tmp_path, monkeypatch, python):
    """As Gymnasium's ids can: a stranger's checkpoint has a task, too."""
    (tmp_path / "lab_robots.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    code = """
import sys, envs
sys.path.append(".")
try:
    envs.resolve_task("lab_robots:Lab/Robot-v0")
except envs.UnknownTaskError:
    print("unknown", "lab_robots" in sys.modules)
"""
    assert python(code).split() == ["unknown", "False"]


def test_a_module_that_cannot_be_imported(monkeypatch):
    monkeypatch.setenv(VARIABLE, "no_such_robots")
    with pytest.raises(
        SimulatorError, match=r"^TDMPC_PRUNE_ENVS=no_such_robots: the module cannot be imported: M"
    ):
        resolve_task("Lab/Robot-v0")
    assert resolve_task("cartpole-swingup") == "cartpole-swingup"  # nobody asks
