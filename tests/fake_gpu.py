"""A fake CUDA device: placement, stream order and host-device synchronisation, checked on a machine without a GPU.

Problem: the code path for GPUs has errors that a CPU does not show, and most machines that run the tests have no GPU.
Idea: tensors "on cuda" stay in the CPU's memory and are computed by torch's CPU operations. A register holds the
storages that count as the GPU's. A function mode answers questions about devices, a dispatch mode checks every
operation. The numbers are right, and these errors of a real GPU appear:

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
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tag, Tensor, UntypedStorage
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import nfsd3d

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
GIB = 2**30
PACKAGE = f"{Path(nfsd3d.__file__).parent}/"

aten = torch.ops.aten
# Operations that need values on the host, besides those that torch tags.
SYNCHRONISING = {aten.is_nonzero, aten.bincount, aten._linalg_check_errors, aten.multinomial}
VALUE_DEPENDENT = {Tag.data_dependent_output, Tag.dynamic_output_shape}
BETWEEN_DEVICES = {aten.copy_, aten._to_copy}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Stream:
    """A CUDA stream: the number of its operations, and of each other stream's that precede its next one."""

    def __init__(self, device: object = None, priority: int = 0) -> None:
        self.device, self.given, self.behind = GPU, 0, {self: 0}

    def wait_stream(self, other: "Stream") -> None:
        for stream, count in (other.behind | {other: other.given}).items():
            self.behind[stream] = max(self.behind.get(stream, 0), count)

    def is_capturing(self) -> bool:
        return False


class Generator(torch.Generator):
    """A random generator that draws on the CPU and whose device may be the GPU."""

    device = CPU

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls)
        made.device = torch.device(device)
        return made


@dataclass
class Uses:
    """A storage: the stream that allocated it, the last operation of each stream that wrote or read it, and the streams
    given to ``record_stream``."""

    home: Stream
    written: dict[Stream, int] = field(default_factory=dict)
    read: dict[Stream, int] = field(default_factory=dict)
    recorded: set[Stream] = field(default_factory=set)

    def check_end(self, errors: list[str]) -> None:
        """Called when the storage is freed: its stream may reuse the memory while other streams still use it."""
        for stream, count in [*self.written.items(), *self.read.items()]:
            if stream is not self.home and stream not in self.recorded and self.home.behind.get(stream, 0) < count:
                errors.append("freed memory that another stream may still use; record_stream was not called")
                return


class FakeGpu:
    """``syncs``: host-device synchronisations, a line of code each; ``forbid_syncs`` makes them errors.

    ``errors``: mistakes that a real GPU would not report.
    """

    def __init__(self) -> None:
        self.syncs: list[str] = []
        self.forbid_syncs = False
        self.errors: list[str] = []
        self.main = self.stream = Stream()
        # The storages on the GPU, and those that are pinned; views share their base's storage.
        self.uses: weakref.WeakKeyDictionary[UntypedStorage, Uses] = weakref.WeakKeyDictionary()
        self.pinned: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()
        self.backward = False  # a backward pass on the GPU is running
        self.paused = False  # tensors are treated as torch does

    def on_gpu(self, tensor: Tensor) -> bool:
        return tensor.layout == torch.strided and tensor.untyped_storage() in self.uses

    def device(self, tensor: Tensor) -> torch.device:
        return GPU if self.on_gpu(tensor) else tensor.device

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

    def use(self, tensors: Iterable[Tensor], *, written: Iterable[Tensor] = (), made: Iterable[Tensor] = ()) -> None:
        """Records an operation of the current stream on ``tensors``, which writes ``written`` and makes ``made``."""
        now = self.stream
        now.given += 1
        for x in made:
            storage = x.untyped_storage()
            if storage not in self.uses:
                uses = self.uses[storage] = Uses(now, {now: now.given})
                weakref.finalize(storage, uses.check_end, self.errors).atexit = False
        changed = {x.untyped_storage() for x in written}
        for x in tensors:
            storage = x.untyped_storage()
            if storage not in self.uses:
                continue
            uses = self.uses[storage]
            conflicts = [*uses.written.items(), *(uses.read.items() if storage in changed else ())]
            if any(stream is not now and now.behind.get(stream, 0) < count for stream, count in conflicts):
                raise RuntimeError(f"a stream uses {tuple(x.shape)} that another may still work on")
            (uses.written if storage in changed else uses.read)[now] = now.given

    @contextlib.contextmanager
    def set(self, name: str, value: object) -> Iterator[None]:
        """Gives an attribute another value within the block."""
        before = getattr(self, name)
        setattr(self, name, value)
        try:
            yield
        finally:
            setattr(self, name, before)

    def record(self, x: Tensor, stream: Stream) -> None:
        """``Tensor.record_stream``."""
        assert not x.requires_grad, "its backward pass would be of the stream that made it"
        self.uses[x.untyped_storage()].recorded.add(stream)


class _Functions(TorchFunctionMode):
    """Functions of Python: a tensor's device, and those that move or create tensors."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu
        own, on_gpu = Tensor, gpu.on_gpu
        self.answers: dict[Any, Callable[..., Any]] = {
            own.device.__get__: gpu.device,
            own.is_cuda.__get__: on_gpu,
            own.is_cpu.__get__: lambda x: x.is_cpu and not on_gpu(x),
            own.get_device: lambda x: 0 if on_gpu(x) else x.get_device(),
            own.is_pinned: lambda x, *_: x.untyped_storage() in gpu.pinned,
            own.to: self.to,
            own.cpu: lambda x, **options: self.to(x, "cpu", **options),
            own.cuda: lambda x, *_, **options: self.to(x, "cuda", **options),
            own.pin_memory: self.pin,
            own.new_tensor: self.new_tensor,
            own.__deepcopy__: lambda x, memo: self.put(x.__deepcopy__(memo), gpu.device(x)),
            own.backward: self.backward,
        }

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, gpu, first = kwargs or {}, self.gpu, args[0] if args else None
        if gpu.paused:
            return func(*args, **kwargs)
        device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if (generator := kwargs.get("generator")) is not None:
            there = device or (gpu.device(first) if isinstance(first, Tensor) else CPU)
            if there.type != generator.device.type:
                raise RuntimeError(f"Expected a '{there.type}' device type for generator but found another")
        if func in self.answers:
            return self.answers[func](*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and gpu.on_gpu(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                            "host memory first.")  # fmt: skip
        if func is Tensor.tolist and gpu.on_gpu(args[0]):
            gpu.sync("numbers for Python")
        if device is None or device.type == "meta":
            result = func(*args, **kwargs)
            # The dispatch mode cannot distinguish a factory that Python calls from those of the backward pass itself.
            if gpu.backward and not tensors_in([args, kwargs]):
                for x in tensors_in([result]):
                    self.put(x, CPU)
            return result
        result = func(*args, **{**kwargs, "device": CPU})
        if device.type == "cuda" and func in (torch.tensor, torch.as_tensor, torch.asarray):
            gpu.sync("numbers from Python")
            result = result.clone() if isinstance(first, Tensor) else result
        return self.put(result, device) if device.type == "cuda" else result

    def put(self, x: Tensor, device: torch.device) -> Tensor:
        """``x``, registered as being on the device."""
        if device.type == "cuda":
            self.gpu.use([], made=[x])
        else:
            self.gpu.uses.pop(x.untyped_storage(), None)
        return x

    def to(self, x: Tensor, *args: Any, device: Any = None, dtype: torch.dtype | None = None,
           non_blocking: bool = False, copy: bool = False, other: Any = None, **options: Any) -> Tensor:  # fmt: skip
        for value in (*args, other):
            if isinstance(value, Tensor):
                device, dtype = self.gpu.device(value), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif value is not None and not isinstance(value, bool):
                device = value
        if flags := [value for value in args if isinstance(value, bool)]:
            non_blocking, copy = (*flags, copy)[:2]
        options["dtype"] = dtype or x.dtype
        target, place = self.gpu.device(x) if device is None else torch.device(device), self.gpu.device(x)
        if "meta" in (target.type, place.type):
            return x.to(CPU if target.type == "cuda" else target, **options)
        if target.type == place.type:
            return x.to(copy=copy, **options)
        if target.type == "cpu":
            self.gpu.sync("copy to the CPU")
        elif not (non_blocking and x.untyped_storage() in self.gpu.pinned):
            self.gpu.sync("copy from memory that is not pinned")
        return self.put(x.to(copy=True, **options), target)

    def pin(self, x: Tensor, *_: object) -> Tensor:
        if self.gpu.on_gpu(x):
            raise RuntimeError(f"cannot pin 'torch.cuda.{x.dtype}' only dense CPU tensors can be pinned")
        if any(stride == 0 and size > 1 for size, stride in zip(x.shape, x.stride(), strict=True)):
            raise RuntimeError("more than one element of the written-to tensor refers to a single memory location")
        result = x.clone()
        self.gpu.pinned.add(result.untyped_storage())
        return result

    def new_tensor(self, x: Tensor, data: Any, **options: Any) -> Tensor:
        with self:
            return torch.tensor(data, **{"device": x.device, "dtype": x.dtype} | options)

    def backward(self, x: Tensor, gradient: Tensor | None = None, *args: Any, **options: Any) -> None:
        with self:  # functions in Python that the backward pass calls are answered as outside
            torch.autograd.backward(x, gradient, *args, **options)


class _Operations(TorchDispatchMode):
    """torch's operations: all tensors of one are on one device, and so is the result."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, gpu, packet = kwargs or {}, self.gpu, func.overloadpacket
        given = tensors_in([args, kwargs])
        there = [x for x in given if gpu.on_gpu(x)]
        here = [x for x in given if not gpu.on_gpu(x)]
        if there and not gpu.paused:
            self.check(func, args, kwargs, given, here)
        result = func(*args, **kwargs)
        if gpu.paused or not (there or (gpu.backward and not given)):
            return result
        known, results = {x.untyped_storage() for x in here}, tensors_in([result])
        made = [] if packet is aten.copy_ else [x for x in results if x.untyped_storage() not in known]
        written = [value for argument, value in zip(func._schema.arguments, args, strict=False)
                   if argument.alias_info is not None and argument.alias_info.is_write]  # fmt: skip
        gpu.use([*there, *results], written=tensors_in([written, kwargs.get("out")]), made=made)
        return result

    def check(self, func: Any, args: tuple, kwargs: dict, given: list[Tensor], here: list[Tensor]) -> None:
        """Records a synchronisation, or raises the error of a real GPU."""
        on_gpu, packet, why = self.gpu.on_gpu, func.overloadpacket, str(func.overloadpacket)
        if packet in INDEXING:
            indices = [x for x in args[1] if x is not None]
            if not on_gpu(args[0]):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                self.gpu.sync(f"{why} by a mask")
            if any(not on_gpu(x) and x.dim() for x in indices):
                self.gpu.sync(f"{why} by indices on the CPU")
            return
        if packet is aten.copy_ and not on_gpu(args[0]):
            self.gpu.sync("copy to the CPU")
        elif packet is aten.copy_ and here and args[1].dim():
            self.gpu.sync("copy from memory that is not pinned")
        elif packet in SYNCHRONISING or (VALUE_DEPENDENT & {*func.tags} and kwargs.get("output_size") is None):
            self.gpu.sync(why)
        if packet not in BETWEEN_DEVICES and any(x.dim() for x in here):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({why} of {[(tuple(x.shape), x.dtype, 'cuda' if on_gpu(x) else 'cpu') for x in given]})"
            )


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries that have memory (no meta tensors)."""
    if isinstance(values, Tensor):
        return [] if values.is_meta else [values]
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list | tuple) else ()
    return [x for value in inner for x in tensors_in(value)]


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """Within the block there is one CUDA device with 80 GB; torch.compile does not support it."""
    gpu = FakeGpu()
    functions, operations = _Functions(gpu), _Operations(gpu)
    group = torch._C._group_tensors_by_device_and_dtype
    properties = SimpleNamespace(total_memory=80 * GIB, name="a fake GPU", major=9, minor=0, multi_processor_count=132)

    def differentiating(differentiate: Any) -> Any:
        def flagged(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            with gpu.set("backward", any(map(gpu.on_gpu, tensors_in([outputs])))):
                return differentiate(outputs, *args, **kwargs)

        return flagged

    def answering(answer: Any, *names: str) -> dict[str, Any]:
        return {name: lambda *_, **__: answer() for name in names}  # torch._dynamo needs a function for each name

    def grouped(lists: Any, *rest: Any) -> dict:
        return {(gpu.device(found[0][0][0]), dtype): found for (_, dtype), found in group(lists, *rest).items()}

    cuda: dict[str, Any] = {
        **answering(lambda: True, "is_available", "is_initialized", "is_bf16_supported"),
        **answering(contextlib.nullcontext, "device", "device_of"),
        **answering(lambda: 0, "current_device", "memory_reserved", "memory_allocated", "max_memory_allocated",
                    "max_memory_reserved"),
        **answering(lambda: None, "manual_seed_all", "synchronize", "empty_cache", "reset_peak_memory_stats",
                    "set_per_process_memory_fraction"),
        "device_count": lambda: 1, "get_device_name": lambda *_: "a fake GPU", "memory_snapshot": lambda *_: [],
        "get_device_capability": lambda *_: (9, 0), "mem_get_info": lambda *_: (80 * GIB, 80 * GIB),
        "get_device_properties": lambda *_: properties, "is_current_stream_capturing": lambda: False,
        "set_sync_debug_mode": lambda mode: setattr(gpu, "forbid_syncs", mode == "error"), "Stream": Stream,
        "current_stream": lambda *_: gpu.stream, "stream": lambda stream: gpu.set("stream", stream),
    }  # fmt: skip
    others: dict[str, Any] = {
        # A CPU build of torch has no accelerator to ask.
        "torch.accelerator.current_accelerator": lambda check_available=False: torch.device("cuda"),
        "torch.accelerator.current_stream": lambda *_: gpu.stream,
        "torch.Tensor.record_stream": lambda x, stream: gpu.record(x, stream),
        "torch.Generator": Generator,
        # Its default also compares devices, which the hooks of a forward pass see without the function mode.
        "torch.utils.checkpoint._allowed_determinism_checks_to_fns": {"default": lambda x: tuple(x.shape)},
        "torch.autograd.backward": differentiating(torch.autograd.backward),
        "torch.autograd.grad": differentiating(torch.autograd.grad),
        "torch._C._group_tensors_by_device_and_dtype": grouped,
        "nfsd3d.config.hardware.cuda_obstacle": lambda: None,
        "nfsd3d.config.hardware.visible_gpus": lambda: 1,
        # Functions written in Python are not dispatched as a whole: the questions that they ask tensors are.
        "torch.autograd.has_torch_function": lambda *_: False,
        **{f"torch.{module}has_torch_function{ending}": lambda *_: False
           for module in ("functional.", "nn.functional.") for ending in ("", "_unary", "_variadic")},
    }  # fmt: skip
    with contextlib.suppress(ImportError):
        from triton.runtime import interpreter

        interpret = interpreter.GridExecutor.__call__

        def launched(self: Any, *arguments: Any, **options: Any) -> Any:
            tensors = tensors_in(arguments)
            if not all(map(gpu.on_gpu, tensors)):
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
            gpu.use(tensors, written=tensors)  # some of them are written
            with gpu.set("paused", True):  # the interpreter's own tensor operations are not the program's
                return interpret(self, *arguments, **options)

        others["triton.runtime.interpreter.GridExecutor.__call__"] = launched
    with contextlib.ExitStack() as stack:
        for target, value in [*((f"torch.cuda.{name}", value) for name, value in cuda.items()), *others.items()]:
            stack.enter_context(mock.patch(target, value))
        stack.enter_context(functions)
        stack.enter_context(operations)
        yield gpu
