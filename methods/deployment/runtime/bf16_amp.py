"""Runs convolutions and matrix products in bfloat16, and keeps the sampler's state and coefficients in float32.

bfloat16 has the range of float32, so nothing overflows and no loss scaling is needed; half the bytes move, and products
accumulate in float32.

Source: Micikevicius et al. 2018 "Mixed Precision Training" (1710.03740), section 3; Kalamkar et al. 2019 "A Study of
BFLOAT16 for Deep Learning Training" (1905.12322) for the format.
Limits: faster only where the processor multiplies bfloat16 (AVX512-BF16, AMX, tensor cores). On a CPU, autocast leaves
norms and softmax in the type of their input. Weights stay float32 on disk.
"""

from methods.core.recipe import Method, edit


def bf16_amp() -> Method:
    """Sample under bfloat16 autocast."""
    return edit(precision="bfloat16")
