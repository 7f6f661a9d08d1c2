"""What is displayed of a training."""

from dataclasses import replace

import pytest

from noisin_pyro.training.progress import ProgressBar, Status

STATUS = Status(
    label="noisin",
    epoch=2,
    epochs=3,
    step=0,
    steps=40,
    nats=None,
    valid_nats=None,
    spread=[0.5, None],
    tokens_per_second=1234.5,
)


def test_a_status_in_words() -> None:
    assert str(STATUS) == ""
    middle = replace(STATUS, step=20, nats=4.0)
    assert str(middle) == "loss 4 nats/token, ppl 54.6, γ 0.500 -, 1,234 tok/s"
    assert str(replace(middle, valid_nats=5.0)).endswith("tok/s valid 148.4")
    assert "ppl e^1e+03," in str(replace(middle, nats=1000.0))


def test_one_bar_for_each_epoch(capfd: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar()
    for epoch in (2, 3):
        start = replace(STATUS, epoch=epoch)
        bar(start)
        bar(replace(start, step=20, nats=4.0))
        bar(replace(start, step=40, nats=4.0, valid_nats=5.0))
    bar.close()  # nothing is left to close
    lines = capfd.readouterr().err.split("\n")
    ends = [line.rsplit("\r", 1)[-1] for line in lines if "valid 148.4" in line]
    assert [line.partition("%")[0] for line in ends] == [
        "noisin epoch 2/3 100",
        "noisin epoch 3/3 100",
    ]


def test_an_interrupted_bar_ends_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar()
    bar(STATUS)
    bar.close()
    assert capfd.readouterr().err.endswith("\n")
