"""A language model with ``push_to_hub`` and ``from_pretrained`` for the Hugging Face Hub."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

try:
    from huggingface_hub import PyTorchModelHubMixin, snapshot_download
except ImportError as error:
    raise ImportError(
        'HubLanguageModel needs huggingface_hub; run pip install "noisin-pyro[hub]"'
    ) from error

from huggingface_hub.errors import HFValidationError

from noisin_pyro.models.language import LanguageModel
from noisin_pyro.models.pretrained import FILES, load_folder, save_folder
from noisin_pyro.vocabulary import Vocabulary

__all__ = ["HubLanguageModel"]

Model = TypeVar("Model", bound="HubLanguageModel")

OPTIONS = signature(snapshot_download).parameters.keys() - {"repo_id", "allow_patterns"}

CARD = """---
{{ card_data }}
---

A recurrent language model with noise on its hidden state ([NOISIN]({{ paper_url }})), saved by
noisin_pyro. Its folder holds data alone, no code. To load it from there, or by its name on the Hub:

```python
from noisin_pyro import sample_text
from noisin_pyro.hub import HubLanguageModel

model = HubLanguageModel.from_pretrained(FOLDER_OR_NAME)
print(sample_text(model, length=20))
```
"""


class HubLanguageModel(
    PyTorchModelHubMixin,
    LanguageModel,
    library_name="noisin-pyro",
    tags=["language-modeling", "recurrent-neural-network", "noisin", "pyro"],
    paper_url="https://arxiv.org/abs/1805.01500",
    model_card_template=CARD,
):
    """A :class:`LanguageModel` that can be pushed to the Hugging Face Hub and loaded from there.

    A repository on the Hub contains the folder of :meth:`LanguageModel.save_pretrained` and a model
    card. Any such folder, including that of ``noisin train``, can be loaded as this class and
    pushed. Arguments are those of :class:`LanguageModel`; the methods are those of
    ``huggingface_hub.PyTorchModelHubMixin``
    (https://huggingface.co/docs/huggingface_hub/package_reference/mixins).

    Example:
        >>> import tempfile
        >>> from noisin_pyro import NoisyGRU, family
        >>> model = HubLanguageModel(10, NoisyGRU(4, 6, noise=family("laplace"), spread=0.3))
        >>> folder = tempfile.mkdtemp()
        >>> model.save_pretrained(folder)
        >>> HubLanguageModel.from_pretrained(folder).rnn.noise[0].base
        Laplace(loc: 0.0, scale: 1.0)
    """

    def save_pretrained(  # type: ignore[override]
        self, folder: str | Path, vocabulary: Vocabulary | None = None, **options: Any
    ) -> str | None:
        """Writes the model's folder, with a model card ``README.md`` unless there is one.

        Args:
            folder: the folder to write.
            vocabulary: the words, which become ``self.vocabulary``; by default that is written.
            options: ``push_to_hub``, ``repo_id`` and the other options of the mixin, but for
                ``config``, since the model describes itself.

        Returns:
            The URL of the commit if ``push_to_hub`` is True, otherwise None.

        Raises:
            TypeError: if ``config`` is given.
            ValueError, ImportError: as :meth:`LanguageModel.save_pretrained` does.
        """
        if options.get("config") is not None:
            raise TypeError(
                f"config.json describes the model itself, got config={options['config']!r}; leave "
                "config out"
            )
        if vocabulary is not None:
            self.vocabulary = vocabulary
        return super().save_pretrained(folder, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_folder(self, save_directory, self.vocabulary)

    # The mixin's method would pass every entry of a stranger's config.json to the constructor.
    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[Model],
        folder: str | Path,
        *,
        name: str = "",
        trust_code: bool = False,
        **options: Any,
    ) -> Model:
        """Loads a model from a folder or from a repository on the Hub.

        The errors of ``huggingface_hub`` for a repository that does not exist or cannot be reached
        are raised unchanged.

        Args:
            folder: the path of a folder; if there is none, the name of a repository such as
                ``"me/mine"``.
            name, trust_code: as in :meth:`LanguageModel.from_pretrained`.
            options: ``revision``, ``token``, ``cache_dir``, ``force_download`` and
                ``local_files_only`` of ``huggingface_hub.snapshot_download``.

        Returns:
            The model, in evaluation mode on the CPU.

        Raises:
            ValueError: if it is a file, if there is no such folder and no repository can have this
                name, and as :meth:`LanguageModel.from_pretrained` does.
            TypeError: if there is no such option.
            ImportError: if safetensors is not installed.
        """
        if unknown := sorted(options.keys() - OPTIONS):
            raise TypeError(
                f"from_pretrained has no option {unknown[0]!r}; the folder says what the model "
                "is, and .to() moves it"
            )
        path = Path(folder)
        if path.is_file():
            raise ValueError(f"{folder} is a file; give the folder that save_pretrained wrote")
        if not path.is_dir():
            try:
                fetched = snapshot_download(str(folder), allow_patterns=list(FILES), **options)
            except HFValidationError:
                raise ValueError(
                    f"{folder} is no folder, and no repository can have this name; give the folder "
                    "that save_pretrained wrote, or a repository as 'me/mine'"
                ) from None
            path = Path(fetched)
        return load_folder(cls, path, name, trust_code)
