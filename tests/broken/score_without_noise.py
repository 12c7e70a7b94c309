"""A training's score would have next to no noise: a release of the method's own is called as the harness's."""

from broken.tiny import Tiny

from fedsim.privacy.plan import Release


class ScoreWithoutNoise(Tiny):
    def releases(self) -> tuple[Release, ...]:
        return (*super().releases(), Release("score", 1.0, 1, relative_noise=1e-6))
