"""A fake CUDA device: placement, stream order and host-device synchronisation, checked on a machine without a GPU.

Problem: the code path for GPUs has errors that a CPU does not show, and most machines that run the tests have no GPU.
Idea: tensors "on cuda" stay in the CPU's memory and are computed by torch's CPU operations. A register records which
storages count as the GPU's. A function mode answers questions about devices, a dispatch mode checks every operation.
The numbers are right, and these errors of a real GPU appear:

- an operation on tensors of both devices (except what CUDA allows: scalars, and indices, on the CPU),
- random numbers for the GPU from a generator on the CPU,
- ``numpy()`` of a tensor on the GPU, pinning what is not on the CPU,
- an operation of one stream on memory that another stream may still write or read.

Host-device synchronisations are recorded: numbers that are read, shapes that depend on values, copies from memory that
is not pinned. Not covered: speed, memory, data types that CUDA kernels lack.

    with fake_gpu() as gpu:
        ...                          # torch.cuda.is_available(), device="cuda"
        print(gpu.syncs)
"""

import contextlib
import time
import traceback
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import nfsd3d

GPU = torch.device("cuda:0")
CPU = torch.device("cpu")
GIB = 2**30
PACKAGE = f"{Path(nfsd3d.__file__).parent}/"

aten = torch.ops.aten
# Operations that need values on the host: the result's shape depends on them, or Python gets a number.
SYNCHRONISING = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.bincount,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten._linalg_check_errors, aten.multinomial,
}  # fmt: skip
BETWEEN_DEVICES = {aten.copy_, aten._to_copy}
# Factories. Called from Python their result is where the arguments say; within a backward pass it is on the GPU.
FACTORIES = {
    torch.tensor, torch.as_tensor, torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace,
    torch.rand, torch.randn, torch.randint, torch.randperm, torch.eye, torch.from_numpy,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class _Places:
    """The storages that are on the GPU, and those that are pinned; views share their base's storage."""

    def __init__(self) -> None:
        self.gpu: set[int] = set()
        self.pinned: set[int] = set()

    @staticmethod
    def put(tensor: Tensor, register: set[int]) -> None:
        storage = tensor.untyped_storage()
        register.add(storage._cdata)
        weakref.finalize(storage, register.discard, storage._cdata).atexit = False

    @staticmethod
    def has(tensor: Tensor, register: set[int]) -> bool:
        return tensor.layout == torch.strided and tensor.untyped_storage()._cdata in register

    def on_gpu(self, tensor: Tensor) -> bool:
        return self.has(tensor, self.gpu)

    def take(self, tensor: Tensor) -> None:
        self.gpu.discard(tensor.untyped_storage()._cdata)


class Stream:
    """A CUDA stream: the number of its operations, and of each other stream's that precede its next one."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device, self.given, self.behind = GPU, 0, {self: 0}

    def wait_stream(self, other: "Stream") -> None:
        for stream, count in (other.behind | {other: other.given}).items():
            self.behind[stream] = max(self.behind.get(stream, 0), count)

    def is_capturing(self) -> bool:
        return False


class Event:
    """A CUDA event; operations on a CPU are finished when the next line begins."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.seconds - self.seconds)


class Generator(torch.Generator):
    """A random generator with a flag for the GPU."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls)
        made.of_gpu = torch.device(device).type == "cuda"
        return made


@dataclass
class Uses:
    """A storage: the stream that allocated it, the last operation of each stream that wrote or read it, and the streams
    given to ``record_stream``."""

    home: Stream
    written: dict[Stream, int] = field(default_factory=dict)
    read: dict[Stream, int] = field(default_factory=dict)
    recorded: set[Stream] = field(default_factory=set)

    def all(self) -> dict[Stream, int]:
        """The last operation of each stream."""
        streams = self.written.keys() | self.read.keys()
        return {stream: max(self.written.get(stream, 0), self.read.get(stream, 0)) for stream in streams}

    def check_end(self, errors: list[str]) -> None:
        """Called when the storage is freed: its stream may reuse the memory while other streams still use it."""
        for stream, count in self.all().items():
            if stream is not self.home and stream not in self.recorded and self.home.behind.get(stream, 0) < count:
                errors.append("freed memory that another stream may still use; record_stream was not called")


class FakeGpu:
    """``syncs``: host-device synchronisations, a line of code each; ``forbid_syncs`` makes them errors.

    ``errors``: mistakes that a real GPU would not report.
    """

    def __init__(self) -> None:
        self.places = _Places()
        self.syncs: list[str] = []
        self.forbid_syncs = False
        self.errors: list[str] = []
        self.main = self.stream = Stream()
        self.uses: dict[int, Uses] = {}
        self.backward = False  # a backward pass on the GPU is running
        self.functions, self.operations = _Functions(self), _Operations(self)

    def sync(self, why: str) -> None:
        """Records that the host waits for the current stream; later operations come after it."""
        if self.stream is not self.main:
            why = f"(side stream) {why}"
        self.main.wait_stream(self.stream)
        frames = traceback.extract_stack()
        frame = next((frame for frame in reversed(frames) if frame.filename.startswith(PACKAGE)), frames[0])
        self.syncs.append(f"{why}: {frame.filename.removeprefix(PACKAGE)}:{frame.lineno}: {frame.line}")
        if self.forbid_syncs:
            raise RuntimeError(f"called a synchronizing CUDA operation: {self.syncs[-1]}")

    def made(self, tensor: Tensor) -> Tensor:
        """``tensor``, registered as being on the GPU."""
        self.places.put(tensor, self.places.gpu)
        self.use([tensor], [tensor])
        return tensor

    def use(self, tensors: Iterable[Tensor], written: Iterable[Tensor]) -> None:
        """Records an operation of the current stream on ``tensors``, which writes to ``written``."""
        now = self.stream
        now.given += 1
        changed = {x.untyped_storage()._cdata for x in written}
        for x in tensors:
            if not self.places.on_gpu(x):
                continue
            storage = x.untyped_storage()
            key = storage._cdata
            if key not in self.uses:
                uses = self.uses[key] = Uses(now, {now: now.given})
                weakref.finalize(storage, self.end, key, uses).atexit = False
                continue
            uses = self.uses[key]
            others = uses.all() if key in changed else uses.written
            for stream, count in others.items():
                if stream is not now and now.behind.get(stream, 0) < count:
                    raise RuntimeError(f"a stream uses {tuple(x.shape)} that another may still work on")
            (uses.written if key in changed else uses.read)[now] = now.given

    def end(self, key: int, uses: Uses) -> None:
        """Records that a storage is freed."""
        uses.check_end(self.errors)
        del self.uses[key]

    @contextlib.contextmanager
    def within(self, stream: Stream) -> Iterator[None]:
        """``torch.cuda.stream``."""
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def record(self, x: Tensor, stream: Stream) -> None:
        """``Tensor.record_stream``."""
        assert not x.requires_grad, "its backward pass would be of the stream that made it"
        self.uses[x.untyped_storage()._cdata].recorded.add(stream)

    def run_backward(self, roots: Any, *args: Any, **kwargs: Any) -> Any:
        """torch's backward pass, in which new tensors are on the GPU and Python functions are answered as outside."""
        before, self.backward = self.backward, any(map(self.places.on_gpu, roots))
        seen = self.functions in _get_current_function_mode_stack()
        try:
            with contextlib.nullcontext() if seen else self.functions:
                return _engine_run_backward(roots, *args, **kwargs)
        finally:
            self.backward = before

    def moved(
        self, tensor: Tensor, device: Any, dtype: Any, non_blocking: bool, memory_format: Any, copy: bool
    ) -> Tensor:
        """The result of ``tensor.to``."""
        target = None if device is None else torch.device(device)
        was_there = self.places.on_gpu(tensor)
        goes_there = was_there if target is None else target.type == "cuda"
        options = {"memory_format": memory_format} if memory_format is not None else {}
        if target is not None and target.type == "meta":
            return tensor.to(target, dtype, **options)
        if was_there == goes_there:
            return tensor.to(dtype=dtype or tensor.dtype, copy=copy, **options)
        if was_there:
            self.sync("copy to the CPU")
        elif not (non_blocking and self.places.has(tensor, self.places.pinned)):
            self.sync("copy from memory that is not pinned")
        if tensor.is_meta:
            return tensor.to(CPU, dtype, **options)  # raises torch's own error
        result = tensor.to(dtype=dtype or tensor.dtype, copy=True, **options)
        if goes_there:
            return self.made(result)
        self.places.take(result)
        return result


class _Functions(TorchFunctionMode):
    """Functions of Python: a tensor's device, and those that move or create tensors."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu
        own, places = Tensor, gpu.places
        self.answers = {
            own.device.__get__: lambda x: GPU if places.on_gpu(x) else x.device,
            own.is_cuda.__get__: lambda x: places.on_gpu(x),
            own.is_cpu.__get__: lambda x: x.is_cpu and not places.on_gpu(x),
            own.get_device: lambda x: 0 if places.on_gpu(x) else x.get_device(),
            own.is_pinned: lambda x, *_: places.has(x, places.pinned),
            own.to: self.to,
            own.cpu: lambda x, *a, **k: self.to(x, "cpu"),
            own.cuda: lambda x, *a, **k: self.to(x, "cuda"),
            own.pin_memory: self.pin,
            own.numpy: lambda x, **k: self.array(x, "numpy", **k),
            own.__array__: lambda x, *a: self.array(x, "__array__", *a),
            own.tolist: self.tolist,
            own.new_tensor: self.new_tensor,
            own.__deepcopy__: lambda x, memo: self.as_its(x, x.__deepcopy__(memo)),
        }

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, places = kwargs or {}, self.gpu.places
        generator, first = kwargs.get("generator"), args[0] if args else None
        if generator is not None:
            filled = first if isinstance(first, Tensor) else None
            there = torch.device(kwargs.get("device") or (GPU if filled is not None and places.on_gpu(filled) else CPU))
            if there.type != ("cuda" if getattr(generator, "of_gpu", False) else "cpu"):
                raise RuntimeError(f"Expected a '{there.type}' device type for generator but found another")
        answer = self.answers.get(func)
        if answer is not None:
            return answer(*args, **kwargs)
        device = kwargs.get("device")
        if func in FACTORIES and device is None and not any(isinstance(value, Tensor) for value in args):
            result = func(*args, **kwargs)
            self.gpu.places.take(result)
            return result
        if device is None or torch.device(device).type == "meta":
            return func(*args, **kwargs)
        there = torch.device(device).type == "cuda"
        if kwargs.get("pin_memory"):
            raise NotImplementedError("pin_memory=True")
        result = func(*args, **{**kwargs, "device": "cpu"})
        if there:
            if func in (torch.tensor, torch.as_tensor, torch.asarray):
                self.gpu.sync("numbers from Python")
                if any(isinstance(value, Tensor) for value in args):
                    result = result.clone()
            self.gpu.made(result)
        return result

    def to(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs = dict(kwargs)
        copy, other = kwargs.pop("copy", False), args[0] if args else kwargs.pop("other", None)
        if isinstance(other, Tensor):
            device, dtype = GPU if self.gpu.places.on_gpu(other) else CPU, other.dtype
            non_blocking, layout = kwargs.get("non_blocking", False), None
        else:
            if len(args) > 3:
                copy, args = args[3], args[:3]
            device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        return self.gpu.moved(x, device, dtype, non_blocking, layout, copy)

    def pin(self, x: Tensor, *args: Any) -> Tensor:
        if self.gpu.places.on_gpu(x):
            raise RuntimeError(f"cannot pin 'torch.cuda.{x.dtype}' only dense CPU tensors can be pinned")
        if any(stride == 0 and size > 1 for size, stride in zip(x.shape, x.stride(), strict=True)):
            raise RuntimeError("more than one element of the written-to tensor refers to a single memory location")
        result = x.clone()
        self.gpu.places.put(result, self.gpu.places.pinned)
        return result

    def array(self, x: Tensor, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.gpu.places.on_gpu(x):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                            "host memory first.")  # fmt: skip
        return getattr(x, name)(*args, **kwargs)

    def tolist(self, x: Tensor) -> list:
        if self.gpu.places.on_gpu(x):
            self.gpu.sync("numbers for Python")
        return x.tolist()

    def new_tensor(self, x: Tensor, data: Any, **kwargs: Any) -> Tensor:
        there = torch.device(kwargs.pop("device", GPU if self.gpu.places.on_gpu(x) else CPU)).type == "cuda"
        if there:
            self.gpu.sync("numbers from Python")
        result = x.new_tensor(data, **kwargs)
        return self.gpu.made(result) if there else result

    def as_its(self, x: Tensor, result: Tensor) -> Tensor:
        return self.gpu.made(result) if self.gpu.places.on_gpu(x) else result


class _Operations(TorchDispatchMode):
    """torch's operations: all tensors of one are on one device, and so is the result."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, places = kwargs or {}, self.gpu.places
        given = tensors_in((args, kwargs))
        there = [x for x in given if places.on_gpu(x)]
        here = [x for x in given if not places.on_gpu(x)]
        packet = func.overloadpacket
        if there:
            self.check(packet, args, kwargs, given, here)
        result = func(*args, **kwargs)
        made = self.gpu.backward and not given  # within a backward pass
        if made or (there and packet is not aten.copy_):
            known = {x.untyped_storage()._cdata for x in here}
            for x in tensors_in(result):
                if x.untyped_storage()._cdata not in known:
                    places.put(x, places.gpu)
        if there:
            written = [value for argument, value in zip(func._schema.arguments, args, strict=False)
                       if argument.alias_info is not None and argument.alias_info.is_write]  # fmt: skip
            self.gpu.use([*there, *tensors_in(result)], tensors_in([written, kwargs.get("out")]))
        return result

    def check(self, packet: Any, args: tuple, kwargs: dict, given: list[Tensor], here: list[Tensor]) -> None:
        on_gpu = self.gpu.places.on_gpu
        if packet in SYNCHRONISING:
            self.gpu.sync(str(packet))
        if packet is aten.copy_ and not on_gpu(args[0]):
            self.gpu.sync("copy to the CPU")
        if packet is aten.copy_ and here and on_gpu(args[0]) and args[1].dim():
            self.gpu.sync("copy from memory that is not pinned")
        if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            self.gpu.sync(str(packet))
        if packet in INDEXING:
            indices = [x for x in args[1] if x is not None]
            if not on_gpu(args[0]):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                self.gpu.sync(f"{packet} by a mask")
            if any(not on_gpu(x) and x.dim() for x in indices):
                self.gpu.sync(f"{packet} by indices on the CPU")
        elif packet not in BETWEEN_DEVICES and any(x.dim() for x in here):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({packet} of {[(tuple(x.shape), x.dtype, 'cuda' if on_gpu(x) else 'cpu') for x in given]})"
            )


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors in ``values`` that have memory (no meta tensors)."""
    return [x for x in tree_leaves(values) if isinstance(x, Tensor) and not x.is_meta]


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """Within the block there is one CUDA device with 80 GB; torch.compile does not support it."""
    gpu = FakeGpu()
    with contextlib.ExitStack() as stack:

        def replace(target: str, value: Any) -> None:
            stack.enter_context(mock.patch(target, value))

        for name, value in {
            "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1,
            "current_device": lambda: 0, "get_device_name": lambda *_: "a fake GPU",
            "get_device_capability": lambda *_: (9, 0), "mem_get_info": lambda *_: (80 * GIB, 80 * GIB),
            "get_device_properties": lambda *_: SimpleNamespace(
                total_memory=80 * GIB, name="a fake GPU", major=9, minor=0, multi_processor_count=132
            ),
            "is_bf16_supported": lambda *_, **__: True, "device_of": lambda *_: contextlib.nullcontext(),
            "device": lambda *_: contextlib.nullcontext(), "manual_seed_all": lambda *_: None,
            "set_sync_debug_mode": lambda mode: setattr(gpu, "forbid_syncs", mode == "error"),
            "Stream": Stream, "Event": Event, "current_stream": lambda *_: gpu.stream, "stream": gpu.within,
            "is_current_stream_capturing": lambda: False, "synchronize": lambda *_: None, "empty_cache": lambda: None,
            "memory_reserved": lambda *_: 0, "memory_allocated": lambda *_: 0, "max_memory_allocated": lambda *_: 0,
            "max_memory_reserved": lambda *_: 0, "memory_snapshot": lambda *_: [],
            "reset_peak_memory_stats": lambda *_: None, "set_per_process_memory_fraction": lambda *_: None,
        }.items():  # fmt: skip
            replace(f"torch.cuda.{name}", value)
        # A CPU build of torch has no accelerator to ask.
        replace("torch.accelerator.current_accelerator", lambda check_available=False: torch.device("cuda"))
        replace("torch.accelerator.current_stream", lambda *_: gpu.stream)
        replace("torch.utils.checkpoint._allowed_determinism_checks_to_fns", {"default": lambda x: tuple(x.shape)})
        replace("torch.Tensor.record_stream", lambda x, stream: gpu.record(x, stream))
        replace("torch.Generator", Generator)
        # Functions written in Python are not dispatched as a whole: the questions that they ask tensors are.
        for module in ("torch.functional", "torch.nn.functional"):
            for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
                replace(f"{module}.{name}", lambda *_: False)
        replace("torch.autograd.has_torch_function", lambda *_: False)
        replace("torch.autograd._engine_run_backward", gpu.run_backward)
        group = torch._C._group_tensors_by_device_and_dtype
        replace(
            "torch._C._group_tensors_by_device_and_dtype",
            lambda lists, *rest: {
                (GPU if gpu.places.on_gpu(lists[0][0]) else device, dtype): found
                for (device, dtype), found in group(lists, *rest).items()
            },
        )
        replace("nfsd3d.config.hardware.cuda_obstacle", lambda: None)
        replace("nfsd3d.config.hardware.visible_gpus", lambda: 1)
        try:
            from triton.runtime import interpreter
        except ImportError:
            pass
        else:
            interpret = interpreter.GridExecutor.__call__

            def launched(self: Any, *arguments: Any, **options: Any) -> Any:
                tensors = [x for x in arguments if isinstance(x, Tensor)]
                if not all(map(gpu.places.on_gpu, tensors)):
                    raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
                gpu.use(tensors, tensors)  # some of them are written
                # The interpreter's own tensor operations are not the program's.
                with torch._C.DisableTorchFunction(), _disable_current_modes():
                    return interpret(self, *arguments, **options)

            replace("triton.runtime.interpreter.GridExecutor.__call__", launched)
        stack.enter_context(gpu.functions)
        stack.enter_context(gpu.operations)
        yield gpu
