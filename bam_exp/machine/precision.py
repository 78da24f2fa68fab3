"""The precisions in which a run computes."""

from typing import Literal

Precision = Literal["float32", "tf32", "bfloat16"]
"""IEEE float32, float32 whose products have a mantissa of 10 bits, and autocast to bfloat16."""
