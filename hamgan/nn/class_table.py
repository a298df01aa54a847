"""A table with a row for each class, read by class or by mixture of classes."""

from torch import Tensor, nn


class ClassTable(nn.Embedding):
    """One learned vector a class; a mixture of classes reads the same mixture of vectors."""

    def forward(self, y: Tensor) -> Tensor:
        """Read rows.

        Args:
            y: Classes, int64 (B,); or weights of the classes, floating (B, num_classes). A weight of 1 for one class and 0
                for all others gives that class's row to the last bit.

        Returns:
            (B, dim).
        """
        return y.to(self.weight.dtype) @ self.weight if y.is_floating_point() else super().forward(y)
