"""A checkpoint comes and goes as one: what can be seen can be read."""

import itertools
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tdmpc_prune import checkpoint


class Killed(BaseException):
    """The process ends here."""


def save(folder, number):
    checkpoint.save(
        folder,
        networks={"online": nn.Linear(2, number)},
        training={"number": torch.tensor(number)},
        state={"number": number},
        keep=number == 1,
    )


@pytest.mark.parametrize("call", range(1, 5))
def test_killed_while_an_old_one_is_removed(call, folder, monkeypatch):
    for number in (1, 2, 3):
        save(folder, number)
    real, count = os.unlink, itertools.count(1)

    def dies(*arguments, **named):
        if next(count) == call:
            raise Killed
        real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", dies)
        try:
            save(folder, 4)
        except Killed:
            killed = True
        else:
            killed = False
    assert killed == (call <= 3)  # the second one's three files
    seen = checkpoint._complete(folder)
    assert [path.name for path in seen][-2:] == ["000003", "000004"]
    for path in seen:
        number = json.loads((path / checkpoint.STATE).read_text())["number"]
        assert load_file(path / "training.safetensors") == {"number": torch.tensor(number)}
        assert load_file(path / "model.safetensors")["online.weight"].shape == (number, 2)
    save(folder, 5)
    assert sorted(path.name for path in folder.iterdir()) == ["000001", "000004", "000005"]
