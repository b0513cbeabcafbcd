"""The result of a fit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import equinox as eqx
import numpy as np

from brenier.errors import InputError
from brenier.files import PathLike
from brenier.transport import CharacteristicTransport, Transport
from brenier.typing import Potential

if TYPE_CHECKING:  # what judges a solution is built on it
    from brenier.certificate import Certificate

STATUS = {
    "matched": "the held-out energy distance reached the noise band of same-distribution samples",
    "stalled": "the held-out energy distance stopped improving",
    "completed": "all planned steps were done",
    "time_budget": "the time budget was used",
    "stopped": "a callback asked to stop",
    "interrupted": "it was interrupted from the keyboard; this is the best map so far",
    "diverged": "the loss became non-finite; this is the last good map",
}
"""Why a fit ended, in words."""


class Metadata(dict[str, Any]):
    """JSON-able facts about a fit, hashable so that a `Solution` can be an argument of a jitted function."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True, default=str))


class Solution(eqx.Module):
    """A transport, how it was found, and how good it is on samples it did not see.

    Attributes:
        transport: forward, inverse, interpolate, velocity, trajectory.
        history: one array per column (`step`, `loss`, ... per chunk; `score_step`, `score`, `round_trip` per
            validation).
        status: one of `STATUS`.
        message: the status and the held-out scores in one or two plain sentences.
        scores: held-out energy distances `energy_forward` (T♯μ against ν) and `energy_backward` (S♯ν against μ),
            their noise bands `band_*` (95 % quantile between samples of one distribution of the same sizes),
            the same for the linear map `linear_*`, and `round_trip` = `E|S(T(x)) - x|² / Var(μ)`.
            With the dual also `cost`, the optimal cost as the dual value over the training samples, and its
            `cost_standard_error`. Empty when nothing was held out.
        info: method, seed, dimension, versions, device, timings in seconds, data hash; with class labels `classes`, by
            label the held-out energy distances of the class, and `kept_forward` and `kept_backward`, the shares of its
            points whose image has a sample of their own class for its nearest.
    """

    transport: Transport
    history: dict[str, np.ndarray]
    status: str = eqx.field(static=True)
    message: str = eqx.field(static=True)
    scores: Metadata = eqx.field(static=True)
    info: Metadata = eqx.field(static=True)

    @property
    def potential(self) -> Potential:
        """`u(t, x)` on one point, in the units of the data."""
        return self.transport.potential

    def certificate(self, Xs: Any, Xt: Any, **options: Any) -> Certificate:
        """Bounds on the optimal cost from held-out samples; see `brenier.certificate`."""
        from brenier.certificate import certificate

        return certificate(self, Xs, Xt, **options)

    def evaluate(self, Xs: Any, Xt: Any, **options: Any) -> dict[str, Any]:
        """Scores, bounds and a verdict from held-out samples; see `brenier.evaluate`."""
        from brenier.verdict import evaluate

        return evaluate(self, Xs, Xt, **options)

    def report(self, path: PathLike, Xs: Any = None, Xt: Any = None, **options: Any) -> None:
        """Write a page about this map, an HTML file that opens offline.

        Args:
            path: of the page.
            Xs, Xt: points for the verdict and the pictures, best held out; without them the page has
                what the fit recorded.
            **options: `state_cost`, `pictures`, `title`, `seed`; see `brenier.report.write_report`.
        """
        from brenier.report import write_report

        write_report(path, self, Xs, Xt, **options)

    def refined(self) -> Transport:
        """The lines solved for, so that none cross; see `CharacteristicTransport.refined`.

        Raises:
            InputError: the map is not one of NCF, or was fit with labels.
        """
        if not isinstance(self.transport, CharacteristicTransport):
            raise InputError("Expected a map of NCF to refine, found one of another method.")
        if self.info.get("classes"):
            # Where classes pass each other, the foot of least action is one of another class.
            raise InputError(
                "Expected a map that was fit without labels to refine: lines of different classes have to cross."
            )
        return self.transport.refined()
