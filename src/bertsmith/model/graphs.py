"""The layers of an encoder as CUDA graphs: a small batch's kernels in two launches instead of hundreds.

Where a step is small the device waits for the processor, which needs some ten microseconds to launch each kernel. A
CUDA graph is recorded once for a size, forward and backward, and then replayed. Sizes are rounded up to a few, so that
batches of any lengths find one: what is left over is a row of zeros, a sequence of its own that nobody looks at.

What a forward pass keeps for its backward pass lies where the recording put it, and the recordings of a `_Slot` share
that memory. So a slot is taken by a pass until nothing can ask for its gradient any more; a second pass meanwhile
(R-Drop) gets the second slot, and a third one runs without a recording.

Dropout follows the seed in a recording, too, but drops others than without one: the batch has another size.

Shape letters: T tokens, S sequences, D width.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bertsmith.model.attention import Room
from bertsmith.model.batch import PackedBatch

Run = Callable[[Tensor, Room, Tensor], Tensor]
"""[T, D], where its sequences are, int64 [T] positions in them -> [T, D]"""
Place = tuple[nn.Module, str, nn.Parameter]
"""Of a parameter: the module it is in, its name there, and itself."""

_MOST_VALUES = 1 << 22
"""T x D of the largest batch that is replayed: above that the kernels take longer than their launches."""
_FEWEST_TOKENS = 256
_SIZES_OF_AN_OCTAVE = 8
_SEQUENCES = 8
_LENGTHS = 128
"""Numbers of tokens are rounded up to an eighth of the power of two below them, sequences and the longest of them to
multiples of these; the kernel works in tiles of 128."""
_NUM_SLOTS = 2
_MOST_RECORDINGS = 64
"""A slot's; each is two graphs of some megabytes."""


@dataclass(frozen=True)
class Size:
    """What a recording has room for."""

    tokens: int
    sequences: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Size":
        """The smallest with room for sequences of these lengths, and for what is left over as further sequences."""
        used = sum(lengths)
        step = max(1 << (used.bit_length() - 1), _FEWEST_TOKENS) // _SIZES_OF_AN_OCTAVE
        tokens, longest = max(_round_up(used, step), _FEWEST_TOKENS), _round_up(max(lengths), _LENGTHS)
        num_fillers = -(-(tokens - used) // longest)
        return cls(tokens, _round_up(len(lengths) + num_fillers, _SEQUENCES), longest)

    def offsets(self, lengths: Sequence[int]) -> list[int]:
        """S + 1 of them: the sequences, then what is left over, then empty ones."""
        offsets = [0, *accumulate(lengths)]
        while offsets[-1] < self.tokens:
            offsets.append(min(offsets[-1] + self.longest, self.tokens))
        return offsets + [self.tokens] * (self.sequences + 1 - len(offsets))


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


class LayerGraphs:
    """The recordings of one encoder's layers, made as sizes come. Keep the parameters where they are in memory."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """`modules` are what is run."""
        self._places: list[Place] = [
            (module, name, parameter)
            for root in modules
            for module in root.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad
        ]
        self._parameters = list(dict.fromkeys(parameter for _, _, parameter in self._places))
        self._slots: list[_Slot] = []
        self._seen: Counter[Size] = Counter()
        self._has_room = True
        self.num_replays = 0
        """Passes that were replayed."""

    def run(self, layers: Run, hidden_TD: Tensor, batch: PackedBatch) -> Tensor | None:
        """What `layers` makes of a batch that is learnt from; None: run them, there is no recording.

        A size is recorded when it comes for the second time, as many never do. Only under autocast, in whose dtype it
        is recorded: the kernels of attention for float32 ask how long each sequence is.
        """
        is_small = hidden_TD.numel() <= _MOST_VALUES
        if not (self._parameters and is_small and torch.is_autocast_enabled("cuda")):
            return None
        size = Size.of(batch.lengths)
        self._seen[size] += 1
        slot = self._free_slot(hidden_TD.device) if self._seen[size] > 1 else None
        if slot is None:
            return None
        recording = slot.recordings.get(size) or self._record(layers, hidden_TD, size, slot)
        if recording is None:
            return None
        self.num_replays += 1
        taken = _Taken()
        slot.taken = weakref.ref(taken)
        recording.place(batch)
        output_TD: Tensor = _Replay.apply(recording, taken, hidden_TD, *self._parameters)  # type: ignore[no-untyped-call]
        return output_TD

    def _record(self, layers: Run, hidden_TD: Tensor, size: Size, slot: "_Slot") -> "_Recording | None":
        """None: there are too many, or there is no room; without it a pass may still have enough."""
        if not self._has_room or len(slot.recordings) == _MOST_RECORDINGS:
            return None
        with suppress(torch.OutOfMemoryError):
            recording = slot.recordings[size] = _Recording(layers, hidden_TD, size, self._places, slot)
            return recording
        self._has_room = False
        # A recording that fails takes cuBLAS's workspace with it, in some versions of torch; the slot's others use it.
        slot.recordings.clear()
        torch.cuda.empty_cache()
        return None

    def forget(self) -> None:
        """Let go of all recordings, and give their memory back."""
        self._slots.clear()
        torch.cuda.empty_cache()

    def _free_slot(self, device: torch.device) -> "_Slot | None":
        for slot in self._slots:
            if slot.taken is None or slot.taken() is None:
                return slot
        if len(self._slots) == _NUM_SLOTS:
            return None
        self._slots.append(_Slot(sum(one.numel() for one in self._parameters), device))
        return self._slots[-1]


class _Taken:
    """Lives as long as the pass that has taken a slot: autograd's node holds it."""


class _Slot:
    """Recordings that share memory, of which one can be between its passes at a time."""

    def __init__(self, num_weights: int, device: torch.device) -> None:
        self.recordings: dict[Size, _Recording] = {}
        self.taken: weakref.ref[_Taken] | None = None
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.gradients = torch.empty(num_weights, device=device)
        """Of all parameters, end to end."""


class _Recording:
    """The forward and the backward pass for one size."""

    def __init__(self, layers: Run, hidden_TD: Tensor, size: Size, places: Sequence[Place], slot: _Slot) -> None:
        device, width = hidden_TD.device, hidden_TD.shape[1]
        self._size, self._gradients = size, slot.gradients
        self._hidden_TD = torch.zeros(size.tokens, width, dtype=hidden_TD.dtype, device=device, requires_grad=True)
        self._positions_T = torch.zeros(size.tokens, dtype=torch.int64, device=device)
        self._room = Room(torch.tensor(size.offsets([]), dtype=torch.int32, device=device), size.longest)
        dtype = torch.get_autocast_dtype("cuda")

        def forward() -> Tensor:
            # Without the cache of autocast: what it holds was made of the weights as they were.
            with torch.autocast("cuda", dtype=dtype, cache_enabled=False):
                return layers(self._hidden_TD, self._room, self._positions_T)

        def backward(output_TD: Tensor) -> Tensor:
            # Kept, so that a second backward pass (adversarial training) finds what the first one did.
            gradient_TD, *gradients = torch.autograd.grad(
                output_TD, [self._hidden_TD, *weights], self._gradient_TD, retain_graph=True
            )
            torch.cat([gradient.reshape(-1) for gradient in gradients], out=self._gradients)
            return gradient_TD

        stream = slot.stream
        stream.wait_stream(torch.cuda.current_stream(device))
        kept_draws, gradients = torch.random.fork_rng([device]), torch.enable_grad()
        with kept_draws, gradients, torch.cuda.stream(stream), _aliases(places) as weights:
            output_TD = forward()  # a library's first call may do what cannot be recorded
            self._gradient_TD = torch.zeros_like(output_TD)
            backward(output_TD)
            self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            output_TD = _record(self._forward, slot, forward)
            self._input_gradient_TD = _record(self._backward, slot, lambda: backward(output_TD))
            self._output_TD = output_TD.detach()
        self._shapes = [weight.shape for weight in weights]
        self._counts = [weight.numel() for weight in weights]
        torch.cuda.current_stream(device).wait_stream(stream)

    def place(self, batch: PackedBatch) -> None:
        """Say where the sequences of the next batch are."""
        offsets = torch.tensor(self._size.offsets(batch.lengths), dtype=torch.int32, pin_memory=True)
        self._room.offsets.copy_(offsets, non_blocking=True)
        self._positions_T[: len(batch.position_ids)].copy_(batch.position_ids)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Replay it: [T, D] -> [T, D], copied."""
        _fill(self._hidden_TD, hidden_TD)
        self._forward.replay()
        return self._output_TD[: len(hidden_TD)].clone()

    def backward(self, gradient_TD: Tensor) -> list[Tensor]:
        """Replay it: the gradient of the output -> that of the input and of each parameter, copied."""
        _fill(self._gradient_TD, gradient_TD)
        self._backward.replay()
        gradients = torch.split(self._gradients.clone(), self._counts)
        of_parameters = [gradient.view(shape) for gradient, shape in zip(gradients, self._shapes, strict=True)]
        return [self._input_gradient_TD[: len(gradient_TD)].clone(), *of_parameters]


def _record(graph: torch.cuda.CUDAGraph, slot: _Slot, work: Callable[[], Tensor]) -> Tensor:
    """What `work` gives; `graph` does it again. Other threads may use the device meanwhile, as the loader does."""
    torch.cuda.synchronize()
    graph.capture_begin(pool=slot.pool, capture_error_mode="thread_local")
    try:
        result = work()
    except BaseException:
        with suppress(RuntimeError):  # it would only say that there was an error
            graph.capture_end()
        raise
    graph.capture_end()
    return result


@contextmanager
def _aliases(places: Sequence[Place]) -> Iterator[list[nn.Parameter]]:
    """Other parameters with the same memory in the modules meanwhile, each once, in order.

    Where another pass is under way, autograd has tied the parameters themselves to the stream of that pass, and would
    have the recording wait for it, which cannot be recorded.
    """
    aliases = {parameter: nn.Parameter(parameter.detach()) for _, _, parameter in places}
    try:
        for module, name, parameter in places:
            setattr(module, name, aliases[parameter])
        yield list(aliases.values())
    finally:
        for module, name, parameter in places:
            setattr(module, name, parameter)


def _fill(room_TD: Tensor, values_TD: Tensor) -> None:
    """Copy values to the beginning; zeros follow them, since what was there before may not have been finite."""
    with torch.no_grad():
        room_TD[: len(values_TD)].copy_(values_TD)
        room_TD[len(values_TD) :].zero_()


class _Replay(torch.autograd.Function):
    """A recording as a function of the hidden states and the parameters."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, taken: _Taken, hidden_TD: Tensor, *parameters: nn.Parameter) -> Tensor:
        ctx.recording, ctx.taken = recording, taken
        return recording.forward(hidden_TD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.recording.backward(gradient_TD)
