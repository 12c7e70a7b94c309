"""Clients' updates are clipped at the median of their norms, if that is below C."""

from broken.clip_at_the_batch_median import ClipAtTheBatchMedian


class UpdatesClippedAtTheirMedian(ClipAtTheBatchMedian):
    units = ("client",)
