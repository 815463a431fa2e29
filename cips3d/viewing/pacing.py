"""How large the next picture is: small enough to keep moving smooth, and finer step by step when all is still."""

from __future__ import annotations

SMALLEST = 32  # pixels; the side of the coarsest pictures
SMOOTH_SECONDS = 0.08  # a picture: twelve a second still look like a movement
REST_SECONDS = 0.25  # of stillness before a picture that takes longer than that, since nobody can see it made
UP, DOWN = 0.8, 1.25  # shares of the aim: from below one a larger size is tried, from above the other a smaller one
NEW_SHARE = 0.5  # of the last measurement in the running mean


def sizes_up_to(largest: int) -> tuple[int, ...]:
    """Sides of square pictures from `SMALLEST` to `largest`, each 4/3 or 3/2 of the one before."""
    sizes, side = {largest}, largest
    while side > SMALLEST:
        sizes |= {max(side * 3 // 4, SMALLEST), max(side // 2, SMALLEST)}
        side //= 2
    return tuple(sorted(sizes))


class Pacing:
    """Chooses sizes by what pictures took so far: a pixel costs what the last ones cost, c ← (c + seconds / side²) / 2.

    While all is moving, pictures have the largest size whose expected time, c · side², is within the aim. From one
    size to the next larger one only where that is expected to stay below 0.8 of it, and down only above 1.25 of it, so
    that sizes do not flicker.

    Args:
        largest: side in pixels of the finest picture.
        aim: seconds that a picture may take while all is moving.
        only: pictures have the largest size or none, as of models that make no other.
    """

    def __init__(self, largest: int, aim: float = SMOOTH_SECONDS, *, only: bool = False) -> None:
        if largest < 2:
            raise ValueError(f"largest must be at least 2, got {largest}")
        if not aim > 0:
            raise ValueError(f"aim must be positive, got {aim}")
        self.sizes = (largest,) if only else sizes_up_to(largest)
        self.aim = aim
        self._place = 0
        self._pixel_seconds: float | None = None

    @property
    def moving(self) -> int:
        """Side of the next picture while all is moving."""
        return self.sizes[self._place]

    def expected(self, size: int) -> float | None:
        """Seconds that a picture of this side will take; None before the first."""
        return None if self._pixel_seconds is None else self._pixel_seconds * size**2

    def measured(self, size: int, seconds: float) -> None:
        """A picture of this side took so long."""
        sample = seconds / size**2
        before = self._pixel_seconds
        self._pixel_seconds = sample if before is None else before + NEW_SHARE * (sample - before)
        while self._place > 0 and self._share_of_aim(self._place) > DOWN:
            self._place -= 1
        while self._place + 1 < len(self.sizes) and self._share_of_aim(self._place + 1) < UP:
            self._place += 1

    def finer(self, size: int) -> int | None:
        """Side of the picture that follows one of this side when all is still; None where nothing finer is left."""
        finer = [larger for larger in self.sizes if larger > size]
        if not finer:
            return None
        doubled = [larger for larger in finer if larger <= 2 * size]
        return doubled[-1] if doubled else finer[0]

    def rest_before(self, size: int) -> float:
        """Seconds that all has to be still before a picture of this side is begun."""
        expected = self.expected(size)
        return 0.0 if expected is not None and expected <= self.aim else REST_SECONDS

    def _share_of_aim(self, place: int) -> float:
        expected = self.expected(self.sizes[place])
        assert expected is not None  # asked only after a measurement
        return expected / self.aim
