"""The recipe everything is compared with: DDPM's objective on the cosine process, sampled by DDIM in 50 steps.

Source: Ho et al. 2020 (2006.11239) for target and loss, Nichol and Dhariwal 2021 (2102.09672) for the process, Song et
al. 2021 (2010.02502) for the sampler. Why this is a fair baseline stands in `catalog/baseline.yaml`.
"""

from methods.core.codec import Pixels
from methods.core.denoiser import Unguided
from methods.core.fit import Fit
from methods.core.objective import Independent, UniformTimes, UnitOnTarget
from methods.core.parameterization import Noise
from methods.core.process import Cosine
from methods.core.recipe import NetConfig, Recipe
from methods.core.sampling import UniformAngle
from methods.core.start import FromNoise
from methods.inference.ode_solver.ddim import DDIM


def baseline(net: NetConfig, fit: Fit, steps: int = 50) -> Recipe:
    """The baseline for a bed's network and training budget."""
    return Recipe(
        net=net,
        process=Cosine(),
        parameterization=Noise(),
        times=UniformTimes(),
        weight=UnitOnTarget(),
        coupling=Independent(),
        space=Pixels(),
        start=FromNoise(),
        guidance=Unguided(),
        grid=UniformAngle(),
        sampler=DDIM(),
        steps=steps,
        fit=fit,
    )
