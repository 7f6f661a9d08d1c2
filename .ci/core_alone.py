"""Run in an environment with the core dependencies only: the library works without the extras."""

import importlib.metadata
import importlib.util
import re

needed = {re.split(r"[\s<>=;\[]", line)[0] for line in importlib.metadata.requires("noisin-pyro")
          if "extra ==" not in line}  # fmt: skip
assert needed == {"pyro-ppl", "torch", "numpy"}, needed
for extra in ("lightning_fabric", "jsonargparse", "pooch", "safetensors", "matplotlib"):
    assert importlib.util.find_spec(extra) is None, f"{extra} is installed"

import pyro.distributions as dist  # noqa: E402
import torch  # noqa: E402

import noisin_pyro as noisin  # noqa: E402
from noisin_pyro.cli import main  # noqa: E402

for name in noisin.__all__:
    getattr(noisin, name)
rnn = noisin.NoisyLSTM(4, 6, noise=noisin.Multiplicative(dist.Normal(0.0, 1.0)), spread=0.5)
model = noisin.LanguageModel(10, rnn)
tokens = torch.randint(10, (300,))
loss = noisin.NoisinELBO()(model, noisin.PriorGuide(model))(tokens[:-1, None], tokens[1:, None])
loss.backward()
assert noisin.evaluate(model, tokens).perplexity > 1
assert noisin.load_corpus("hmm").optimal_perplexity > 1
assert main(["corpus", "hmm"]) == 2  # one sentence that names the extra
print("the core works alone")
