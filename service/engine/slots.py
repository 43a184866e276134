"""Which slots of the latent pool are free."""

SLOTS_PER_ROW = 2  # images that may have begun, over the rows of a step; 4 and 8 gave the same


class SlotAllocator:
    """Free-list over the latent pool's slots."""

    def __init__(self, num_slots: int):
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._is_free = [True] * num_slots

    def __len__(self) -> int:
        """Free slots."""
        return len(self._free)

    def allocate(self) -> int:
        """A free slot. Raises IndexError where there is none."""
        slot = self._free.pop()
        self._is_free[slot] = False
        return slot

    def free(self, slot: int) -> None:
        """Raises ValueError: the slot is not in use."""
        if not 0 <= slot < self.num_slots or self._is_free[slot]:
            raise ValueError(f"slot {slot} is not in use")
        self._is_free[slot] = True
        self._free.append(slot)
