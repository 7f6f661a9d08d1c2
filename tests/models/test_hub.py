"""A language model on the Hugging Face Hub, against a local folder: nothing asks the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch

from noisin_pyro import LanguageModel, Multiplicative, NoisyLSTM, Vocabulary

pytestmark = pytest.mark.lm
pytest.importorskip("huggingface_hub", reason="needs the extra hub")
pytest.importorskip("safetensors")

from huggingface_hub import HfApi, RepoUrl  # noqa: E402

from noisin_pyro.hub import HubLanguageModel  # noqa: E402

VOCABULARY = Vocabulary.build(["the", "cat", "saw", "the", "dog"])
FILES = ["README.md", "config.json", "model.safetensors", "vocabulary.txt"]


def build() -> HubLanguageModel:
    rnn = NoisyLSTM(4, 5, noise=Multiplicative(dist.Normal(0.0, 1.0)), spread=0.3)
    return HubLanguageModel(len(VOCABULARY), rnn, dropout_words=0.1, dropout_output=0.2)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_local_folder(tmp_path: Path) -> None:
    model = build()
    assert model.save_pretrained(tmp_path, VOCABULARY) is None
    assert names(tmp_path) == FILES
    card = (tmp_path / "README.md").read_text()
    assert "library_name: noisin-pyro" in card and "1805.01500" in card
    code = (
        card.split("```python\n")[1].split("```")[0].replace("FOLDER_OR_NAME", repr(str(tmp_path)))
    )
    exec(compile(code, "README.md", "exec"), {})  # the card says how the model is loaded
    x = torch.randint(len(VOCABULARY), (7, 2))
    for kind in (HubLanguageModel, LanguageModel):
        again = kind.from_pretrained(tmp_path, name="mine")
        assert type(again) is kind and again.vocabulary == VOCABULARY
        assert (again.dropout_words, again.dropout_output, again._pyro_name) == (0.1, 0.2, "mine")
        logits = [one.eval().predict(x)[0].logits for one in (model, again)]
        assert torch.equal(*logits)
    (tmp_path / "README.md").write_text("mine")
    again.save_pretrained(tmp_path)  # a LanguageModel writes no card
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_what_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of noisin train is read as this class and pushed; the Hub's calls are recorded."""
    LanguageModel(len(VOCABULARY), build().rnn).save_pretrained(tmp_path / "run", VOCABULARY)
    calls: list[Any] = []

    class Api(HfApi):
        def create_repo(self, repo_id: str, **_: Any) -> Any:
            calls.append(repo_id)
            return RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, *, folder_path: Any, **_: Any) -> Any:
            calls.append(names(Path(folder_path)))
            calls.append(
                json.loads((Path(folder_path) / "config.json").read_text())["rnn"]["class"]
            )

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    HubLanguageModel.from_pretrained(tmp_path / "run").push_to_hub("me/mine")
    assert calls == ["me/mine", FILES, "NoisyLSTM"]


def test_what_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build().save_pretrained(tmp_path, VOCABULARY)
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr("noisin_pyro.hub.snapshot_download", download)
    HubLanguageModel.from_pretrained("me/mine", revision="v1")
    assert sorted(asked.pop("allow_patterns")) == FILES[1:]
    assert asked == {"repository": "me/mine", "revision": "v1"}


@pytest.mark.parametrize("name", ["./runs/none", "/runs/none", "runs/none/best"])
def test_a_mistyped_folder(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is no folder, and no repository can have this"):
        HubLanguageModel.from_pretrained(name)


def test_a_file_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    """The error told to check the internet connection."""
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="model.safetensors is a file; give the folder"):
        HubLanguageModel.from_pretrained(tmp_path / "model.safetensors")


@pytest.mark.parametrize("option", ["map_location", "vocab_size", "trustcode"])
def test_an_option_that_would_be_ignored_is_refused(option: str, tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    options: dict[str, Any] = {option: 1}
    with pytest.raises(TypeError, match=f"no option '{option}'; the folder says what the model"):
        HubLanguageModel.from_pretrained(tmp_path, **options)
    HubLanguageModel.from_pretrained(tmp_path, revision="main", token=None)  # of the hub alone


def test_a_configuration_that_would_be_ignored_is_refused(tmp_path: Path) -> None:
    model = HubLanguageModel(len(VOCABULARY), NoisyLSTM(4, 6))
    with pytest.raises(
        TypeError, match=r"describes the model itself, got config=\{'a': 1\}; leave"
    ):
        model.save_pretrained(tmp_path / "run", config={"a": 1})
    assert not (tmp_path / "run").exists()
    model.save_pretrained(tmp_path / "run", config=None)


def test_a_strangers_folder_sets_no_argument(tmp_path: Path) -> None:
    """The mixin's own from_pretrained would hand these entries to the call."""
    build().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "trust_code": True}))
    with pytest.raises(ValueError, match="config.json describes no model: .*'trust_code'"):
        HubLanguageModel.from_pretrained(tmp_path)
