"""A DLRM in PyTorch, as the peer of ours: the same shapes, interaction and rules.

PyTorch is no dependency of the project: without it, nothing here works.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.dlrm import DLRMConfig

PACKAGE = "torch"
IS_INSTALLED = importlib.util.find_spec(PACKAGE) is not None
EPS = 1e-10

torch: Any = importlib.import_module(PACKAGE) if IS_INSTALLED else None


class TorchDLRM:
    """Trains with row-wise Adagrad on the tables and Adagrad on the perceptrons.

    Tables are `nn.EmbeddingBag` with sparse gradients, one for each feature. Plain
    PyTorch has no row-wise Adagrad; it is written here on coalesced gradients and costs
    what `torch.optim.Adagrad` costs on them.

    Args:
      config: of full tables, one id a sample, dot interaction without the diagonal.
      params: initial ones, as from `dlrm(config).init`.
      learning_rate: of both rules.
      threads: of PyTorch's own pool.
    """

    def __init__(
        self,
        config: DLRMConfig,
        params: Mapping[str, Any],
        learning_rate: float,
        threads: int,
    ):
        torch.set_num_threads(threads)
        self._rate = learning_rate
        self.tables = []
        for index in range(len(config.tables)):
            weight = _tensor(params["tables"][str(index)]["table"])
            bag = torch.nn.EmbeddingBag(*weight.shape, mode="sum", sparse=True)
            bag.weight.data = weight
            self.tables.append(bag)
        self._sums = [torch.zeros(table.rows) for table in config.tables]
        self._bottom = _perceptron(params["bottom"], relu_last=True)
        self._top = _perceptron(params["top"], relu_last=False)
        layers = [*self._bottom.parameters(), *self._top.parameters()]
        self._dense = torch.optim.Adagrad(layers, lr=learning_rate, eps=EPS)
        count = len(config.tables) + 1
        pairs = [(i, j) for i in range(count) for j in range(i)]
        self._pairs = tuple(torch.tensor(pairs).T)
        self._loss = torch.nn.BCEWithLogitsLoss()

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Tensors of a batch of `make_batch`, sharing its memory where they can."""
        ids = [torch.from_numpy(of_table.astype(np.int64)) for of_table in batch["ids"]]
        return {
            "dense": torch.from_numpy(batch["dense"]),
            "ids": ids,
            "offsets": torch.arange(len(batch["dense"])),
            "labels": torch.from_numpy(batch["labels"])[:, None],
        }

    def step(self, batch: Mapping[str, Any]) -> Any:
        """One step; the loss before it.

        Args:
          batch: from `place`.
        """
        self._dense.zero_grad(set_to_none=True)
        x = self._bottom(batch["dense"])
        embedded = [
            bag(ids, batch["offsets"])
            for bag, ids in zip(self.tables, batch["ids"], strict=True)
        ]
        vectors = torch.stack([x, *embedded], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        features = torch.cat([x, products[:, self._pairs[0], self._pairs[1]]], dim=1)
        loss = self._loss(self._top(features), batch["labels"])
        loss.backward()
        self._dense.step()
        with torch.no_grad():
            self._update_tables()
        return loss.detach()

    def _update_tables(self) -> None:
        for bag, sums in zip(self.tables, self._sums, strict=True):
            gradient = bag.weight.grad.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
            total = sums[rows] + values.square().mean(dim=1)
            sums[rows] = total
            scaled = values / (total.sqrt() + EPS)[:, None]
            bag.weight.index_add_(0, rows, scaled, alpha=-self._rate)
            bag.weight.grad = None


def _tensor(array: Any) -> Any:
    return torch.from_numpy(np.array(array, np.float32))


def _perceptron(layers: Mapping[str, Mapping[str, Any]], relu_last: bool) -> Any:
    parts: list[Any] = []
    names: Sequence[str] = [f"layer_{index}" for index in range(len(layers))]
    for name in names:
        kernel = _tensor(layers[name]["kernel"])
        linear = torch.nn.Linear(*kernel.shape)
        linear.weight.data = kernel.T.contiguous()
        linear.bias.data = _tensor(layers[name]["bias"])
        parts.append(linear)
        if relu_last or name != names[-1]:
            parts.append(torch.nn.ReLU())
    return torch.nn.Sequential(*parts)
