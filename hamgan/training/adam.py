"""Adam with less work around its kernel."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """torch's fused Adam, whose counts of steps are one tensor on a CPU.

    torch adds 1 to the count of each weight in a call of its own, and looks all of them up again in every step: for networks
    with a hundred weights this takes longer than the update. Arguments, state and results are torch's.
    """

    _lists: tuple[list[Tensor], ...] | None = None
    """Weights, both moments and counts, as they are kept in the state; None: to be looked up."""
    _counts: Tensor

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step."""
        (group,) = self.param_groups
        weights = group["params"] if self._lists is None else self._lists[0]
        gradients = [weight.grad for weight in weights if weight.grad is not None and weight.grad.is_cpu]
        plain = group["fused"] and not (group["amsgrad"] or group["maximize"] or group["decoupled_weight_decay"])
        if closure is not None or not plain or len(gradients) < len(weights):
            return super().step(closure)
        if self._lists is None:
            result = super().step()
            self._look_up()
            return result
        weights, means, squares, counts = self._lists
        beta1, beta2 = group["betas"]
        with torch.no_grad():
            self._counts += 1
            torch._fused_adam_(
                weights,
                gradients,
                means,
                squares,
                [],
                counts,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
        return None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does."""
        self._lists = None
        super().load_state_dict(state_dict)

    def _look_up(self) -> None:
        """Join the counts, and keep what a step needs."""
        (group,) = self.param_groups
        states = [self.state[weight] for weight in group["params"]]
        self._counts = torch.stack([state["step"] for state in states])
        for state, count in zip(states, self._counts, strict=True):
            state["step"] = count
        names = "exp_avg", "exp_avg_sq", "step"
        self._lists = (list(group["params"]), *([state[name] for state in states] for name in names))
