"""Which device solves which factor of a refresh stack, and how factors get there.

Legend: D devices, L local slots of a stack (those of its members, one after the other),
q matrices that each device solves, m lanes from each device to each other one.
"""

import dataclasses

import numpy as np

from optim_jax.preconditioning.layout import Layout, RefreshStack


@dataclasses.dataclass(frozen=True, eq=False)
class Route:
    """Static tables of one stack; rows belong to devices.

    A device keeps what it may solve itself, and only what is beyond its share moves.

    Attributes:
      lanes: m, 0 where nothing moves.
      outgoing: int32 (D, D * m), the local slot in each lane to each device; L where
        the lane is empty.
      solved: int32 (D, q), what the device solves: a local slot, L plus the lane it
        came through, or L + D * m for nothing.
      returned: int32 (D, D * m), which of the q results goes back through each lane.
      home: int32 (D, L), where the result of each local slot is: one of the q, or q
        plus a lane.
      real: bool (D, L), the slots that hold a block.
    """

    lanes: int
    outgoing: np.ndarray
    solved: np.ndarray
    returned: np.ndarray
    home: np.ndarray
    real: np.ndarray

    @property
    def is_identity(self) -> bool:
        """Whether every device solves its own slots as they lie."""
        return self.lanes == 0 and np.array_equal(
            self.solved, np.broadcast_to(np.arange(self.home.shape[1]), self.home.shape)
        )


def make_route(layout: Layout, stack: RefreshStack) -> Route:
    """Shares the factors of a stack out evenly, moving as few as possible."""
    devices = layout.options.num_devices
    real = _real_slots(layout, stack, devices)
    count, local = real.sum(axis=1), real.shape[1]
    share = -(-int(count.sum()) // devices)
    kept: list[list[int]] = [np.flatnonzero(row)[:share].tolist() for row in real]
    spare = [
        (device, int(slot))
        for device, row in enumerate(real)
        for slot in np.flatnonzero(row)[share:]
    ]
    # A matrix beyond the share of its device goes to the next one with room.
    moves: dict[tuple[int, int], list[int]] = {}
    for target in range(devices):
        for _ in range(min(share - len(kept[target]), len(spare))):
            source, slot = spare.pop()
            moves.setdefault((source, target), []).append(slot)
    lanes = max(map(len, moves.values()), default=0)
    empty = local + devices * lanes
    outgoing = np.full((devices, devices * lanes), local, np.int32)
    solved = np.full((devices, share), empty, np.int32)
    returned = np.zeros((devices, devices * lanes), np.int32)
    home = np.zeros((devices, local), np.int32)
    for device, slots in enumerate(kept):
        solved[device, : len(slots)] = slots
        home[device, slots] = np.arange(len(slots))
    filled = [len(slots) for slots in kept]
    for (source, target), slots in sorted(moves.items()):
        for lane, slot in enumerate(slots):
            outgoing[source, target * lanes + lane] = slot
            solved[target, filled[target]] = local + source * lanes + lane
            returned[target, source * lanes + lane] = filled[target]
            home[source, slot] = share + target * lanes + lane
            filled[target] += 1
    return Route(lanes, outgoing, solved, returned, home, real)


def _real_slots(layout: Layout, stack: RefreshStack, devices: int) -> np.ndarray:
    parts = []
    for key, _ in stack.members:
        bucket = layout.bucket[key]
        flags = np.arange(bucket.padded_slots) < bucket.slots
        parts.append(flags.reshape(devices, -1))
    return np.concatenate(parts, axis=1)
