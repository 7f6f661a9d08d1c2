"""A language model for the Hugging Face Hub."""

from __future__ import annotations

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
    """A :class:`LanguageModel` with ``push_to_hub``, and whose folder may lie on the Hub.

    What is on the Hub is the folder of :meth:`LanguageModel.save_pretrained` and a model card. Any
    folder of a :class:`LanguageModel`, so also of ``noisin train``, can be read as this class and
    pushed. Arguments are those of :class:`LanguageModel`; the methods are those of
    ``huggingface_hub.PyTorchModelHubMixin``.

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
        """Writes the folder and, if there is none in it, a model card ``README.md``.

        Args:
            folder: where they go.
            vocabulary: the words; by default the model's own. They become the model's own.
            options: ``push_to_hub``, ``repo_id`` and the other options of the mixin.

        Raises:
            ValueError, ImportError: as :meth:`LanguageModel.save_pretrained` does.
        """
        if vocabulary is not None:
            self.vocabulary = vocabulary
        return super().save_pretrained(folder, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_folder(self, save_directory, self.vocabulary)

    # Not the mixin's: that would hand all that a stranger's config.json holds to the constructor.
    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[Model],
        folder: str | Path,
        *,
        name: str = "",
        trust_code: bool = False,
        **options: Any,
    ) -> Model:
        """The model in a folder, or in a repository of the Hub.

        Args:
            folder: a folder if there is one of this name; otherwise a repository, as ``"me/mine"``.
            name, trust_code: as in :meth:`LanguageModel.from_pretrained`.
            options: ``revision``, ``token``, ``cache_dir``, ``force_download`` and
                ``local_files_only`` of ``huggingface_hub.snapshot_download``.

        Raises:
            ValueError: if there is no such folder and the name is no repository's, and as
                :meth:`LanguageModel.from_pretrained` does.
        """
        path = Path(folder)
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
