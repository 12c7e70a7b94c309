import torch

from fedsim.methods.products import is_personal, on_sphere, own


class Rows:
    """Three rows of norm 5, 1 and 0.5, whatever is asked for."""

    def sample(self, labels: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
        return torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.3, 0.4]])


class Everyones(Rows):
    def of_client(self, client: int) -> Rows:
        return Rows()


def test_rows_longer_than_1_come_back_to_the_sphere_and_others_stay() -> None:
    expected = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.3, 0.4]])
    for made in (on_sphere(Rows()), own(on_sphere(Everyones()), 1)):
        torch.testing.assert_close(made.sample(torch.zeros(3), torch.Generator()), expected)  # type: ignore[union-attr]
    assert is_personal(on_sphere(Everyones()))
    assert not is_personal(on_sphere(Rows()))
