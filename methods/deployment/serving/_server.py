"""A server for real time: requests come when they like, and one worker advances whatever is under way."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from methods.core.denoiser import Denoiser
from methods.deployment.serving._shared import UnderWay
from methods.deployment.serving.dynamic_batching import Admission


@dataclass
class Request:
    """Noise and label of one sample, and where its answer goes."""

    x: Float[Tensor, "1 *s"]
    label: Int[Tensor, "1"]
    answer: asyncio.Future[Tensor]
    since: float


@dataclass
class Server:
    """Answers requests with steps of DDIM. The deadline of its admission is in seconds."""

    denoiser: Denoiser
    times: Float[Tensor, "n"]
    admission: Admission
    waiting: deque[Request] = field(default_factory=deque)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, x: Float[Tensor, "1 *s"], label: Int[Tensor, "1"]) -> Float[Tensor, "*s"]:
        """The sample that begins with this noise, when it is done."""
        loop = asyncio.get_running_loop()
        request = Request(x, label, loop.create_future(), loop.time())
        self.waiting.append(request)
        self.came.set()
        return await request.answer

    async def serve(self) -> None:
        """Work until cancelled. The network runs in a thread of its own, so that requests can come meanwhile."""
        self.denoiser.reset()
        under_way, asked, name = UnderWay(self.denoiser, self.times), dict[int, Request](), 0
        while True:
            now = asyncio.get_running_loop().time()
            due = bool(self.waiting) and now >= self.waiting[0].since + self.admission.deadline
            for _ in range(self.admission.admits(len(self.waiting), len(under_way), due)):
                asked[name] = request = self.waiting.popleft()
                under_way.join([name], request.x, request.label)
                name += 1
            if len(under_way):
                for done, row in (await asyncio.to_thread(self.advance, under_way)).items():
                    asked.pop(done).answer.set_result(row)
            else:
                await self.idle(self.waiting[0].since + self.admission.deadline - now if self.waiting else None)

    @staticmethod
    @torch.inference_mode()
    def advance(under_way: UnderWay) -> dict[int, Tensor]:
        """One call of the network; what a thread needs to be told again is told here."""
        return under_way.advance()

    async def idle(self, seconds: float | None) -> None:
        """Until another request comes, or the first that waits is due."""
        self.came.clear()
        try:
            await asyncio.wait_for(self.came.wait(), seconds)
        except TimeoutError:
            return
