"""The ways to embed a categorical feature that are compared, and their tables."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from models.embeddings import TableConfig, choose_moduli

DIM = 16  # of every table
CONCAT_DIMS = (12, 4)  # of quotient and remainder
COLLISIONS = 4  # c where it is not swept
SWEPT_COLLISIONS = (2, 4, 8, 16)
SWEPT_PARTS = (2, 3)

FAMILIES = {
    "full": "full",
    "hash": "hash",
    "qr_mult": "QR mult",
    "qr_add": "QR add",
    "qr_concat": "QR concat",
    "features": "features",
    "path": "path",
    "mixed_radix": "mixed radix mult",
    "crt": "CRT mult",
}

_QR_FIELDS: dict[str, dict[str, Any]] = {
    "hash": {"method": "hash"},
    "qr_mult": {"method": "qr", "op": "mult"},
    "qr_add": {"method": "qr", "op": "add"},
    "qr_concat": {"method": "qr", "op": "concat", "component_dims": CONCAT_DIMS},
    "features": {"method": "features"},
    "path": {"method": "path"},
}


@dataclasses.dataclass(frozen=True)
class EmbeddingArm:
    """One method with its setting, for features of any size.

    Attributes:
      name: identifier, stable over result files.
      label: what tables and figures show.
      family: a key of `FAMILIES`; members are drawn as one line.
      fields: of `TableConfig`, but rows, dim and threshold.
      parts: k where moduli as equal as possible are chosen for every feature, or the
        rows of a hashed table like those of k parts; 0 for the others.
      peer: name of the hashing arm with (about) as many rows; "" for none.
      threshold: rows up to which a table stays full; None for the protocol's.
      variation: whether the arm stands beside its family's line.
    """

    name: str
    label: str
    family: str
    fields: Mapping[str, Any]
    parts: int = 0
    peer: str = ""
    threshold: int | None = None
    variation: bool = False

    def table(self, rows: int, threshold: int) -> TableConfig:
        """The table of one feature.

        Args:
          rows: number of ids.
          threshold: the protocol's, see `TableConfig`.
        """
        fields = dict(self.fields)
        if self.parts:
            method = fields["method"]
            moduli = choose_moduli(rows, self.parts, coprime=method == "crt")
            chosen = (
                {"hash_rows": sum(moduli)} if method == "hash" else {"moduli": moduli}
            )
            fields |= chosen
        own = threshold if self.threshold is None else self.threshold
        return TableConfig(rows, DIM, threshold=own, **fields)

    def tables(self, rows: Sequence[int], threshold: int) -> tuple[TableConfig, ...]:
        """The tables of all features; arguments as in `table`."""
        return tuple(self.table(count, threshold) for count in rows)


def _with_collisions(family: str, collisions: int) -> EmbeddingArm:
    return EmbeddingArm(
        name=f"{family}_c{collisions}",
        label=f"{FAMILIES[family]}, c = {collisions}",
        family=family,
        fields={**_QR_FIELDS[family], "collisions": collisions},
        peer="" if family == "hash" else f"hash_c{collisions}",
    )


def _with_parts(family: str, parts: int) -> EmbeddingArm:
    suffix = f"k = {parts}"
    return EmbeddingArm(
        name=f"{family}_k{parts}",
        label=f"hash, rows of {suffix}"
        if family == "hash"
        else f"{FAMILIES[family]}, {suffix}",
        family=family,
        fields={"method": family},
        parts=parts,
        peer="" if family == "hash" else f"hash_k{parts}",
    )


def _with_threshold(family: str, threshold: int) -> EmbeddingArm:
    base = _with_collisions(family, COLLISIONS)
    return dataclasses.replace(
        base,
        name=f"{base.name}_t{threshold}",
        label=f"{base.label}, threshold {threshold:,}",
        peer=base.peer and f"{base.peer}_t{threshold}",
        threshold=threshold,
        variation=True,
    )


def _with_original_init(family: str) -> EmbeddingArm:
    base = _with_collisions(family, COLLISIONS)
    return dataclasses.replace(
        base,
        name=f"{base.name}_original_init",
        label=f"{base.label}, original initial weights",
        fields={**base.fields, "init": "reference_qr"},
        variation=True,
    )


def embedding_arms(
    collisions: Sequence[int] = SWEPT_COLLISIONS,
    parts: Sequence[int] = SWEPT_PARTS,
    thresholds: Sequence[int] = (),
    original_init: bool = False,
) -> tuple[EmbeddingArm, ...]:
    """The arms of a comparison.

    Hashing has as many rows as the quotient and the remainder together, or as the
    parts of the mixed radix: its arms come first, so that every peer precedes its arm.

    Args:
      collisions: c of the methods of quotient and remainder.
      parts: k of the balanced partitions.
      thresholds: besides the protocol's, for hashing and QR mult at c = 4.
      original_init: adds QR mult and add at c = 4 with the weights of the original
        implementation, U(1 / sqrt(n), 1) in both parts.
    """
    arms = [EmbeddingArm("full", "full", "full", {"method": "full"})]
    arms += [_with_collisions(family, c) for family in _QR_FIELDS for c in collisions]
    arms += [
        _with_parts(family, k)
        for family in ("hash", "mixed_radix", "crt")
        for k in parts
    ]
    arms += [
        _with_threshold(family, threshold)
        for family in ("hash", "qr_mult")
        for threshold in thresholds
    ]
    if original_init:
        arms += [_with_original_init(family) for family in ("qr_mult", "qr_add")]
    return tuple(arms)
