"""XLA FFI targets written in Python: numba compiles a kernel at run time, XLA:CPU calls it inside a program.

No compiler has to be installed, the arrays are XLA's own buffers, and the interpreter is not entered, so the calls work
under jit, scan and shard_map and from several devices at once. Work is shared out over the thread pool of the XLA
client, which has a thread for every core: XLA itself runs nearly all of a CPU program on one.

The structures are those of `xla/ffi/api/c_api.h` (a stable interface: XLA keeps old versions for 12 months), read as
arrays of 64-bit words.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

_API_VERSION = 0 | 3 << 32  # major, minor of the header that the offsets below are from
_METADATA = 1
# Words of XLA_FFI_CallFrame, XLA_FFI_Buffer, XLA_FFI_Metadata_Extension, XLA_FFI_Metadata, XLA_FFI_Api.
_FRAME_EXTENSION, _FRAME_API, _FRAME_CONTEXT, _FRAME_STAGE, _FRAME_ARGUMENTS, _FRAME_RESULTS = 1, 2, 3, 4, 9, 14
_EXECUTE = 3
_BUFFER_DATA, _BUFFER_DIMS = 3, 5
_EXTENSION_TYPE, _EXTENSION_METADATA, _METADATA_VERSION = 1, 3, 3
_API_DESTROY_ERROR, _API_SCHEDULE, _API_NUM_THREADS = 8, 17, 18

_malloc = types.ExternalFunction("malloc", types.int64(types.int64))
_free = types.ExternalFunction("free", types.void(types.int64))


def _kept(compiler: Callable, function: Callable, *args) -> Callable:
    """Compiles with a copy on disk for the next process, where a folder can be written."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return compiler(*args, cache=True, **options)(function)
    except RuntimeError:  # numba found no such folder
        return compiler(*args, **options)(function)


def compiled(function: Callable) -> Callable:
    """A function in machine code that never enters the interpreter."""
    return _kept(numba.njit, function)


def entry(function: Callable) -> Any:
    """The same with a C address: `int64 f(int64, int64)`. Its callers need not be compiled when it has changed."""
    return _kept(numba.cfunc, function, types.int64(types.int64, types.int64))


@intrinsic
def pointer(_, address):
    """An address as a pointer that `carray` takes."""
    return types.voidptr(types.int64), lambda c, b, sig, args: b.inttoptr(args[0], cgutils.voidptr_t)


@intrinsic
def _call(_, function, first, second):
    """Calls the C function at an address with two words (one that takes fewer leaves them unread); its result."""

    def generate(context, builder, signature, args):
        word = ir.IntType(64)
        return builder.call(builder.inttoptr(args[0], ir.FunctionType(word, [word, word]).as_pointer()), args[1:])

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def _fetch_add(_, address, amount):
    """Atomic addition to the word at an address; what it was before."""

    def generate(context, builder, signature, args):
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@compiled
def words(address):
    """The 64-bit words at an address."""
    return carray(pointer(address), (1 << 20,), np.int64)


@compiled
def argument(frame, i):
    """Address and dimensions (as words) of the i-th operand."""
    buffer = words(words(words(frame)[_FRAME_ARGUMENTS])[i])
    return buffer[_BUFFER_DATA], words(buffer[_BUFFER_DIMS])


@compiled
def result(frame, i):
    """Address and dimensions (as words) of the i-th result."""
    buffer = words(words(words(frame)[_FRAME_RESULTS])[i])
    return buffer[_BUFFER_DATA], words(buffer[_BUFFER_DIMS])


@compiled
def is_execution(frame_address):
    """Whether a call is to do the work. XLA first asks for the version of the interface, which is answered here."""
    frame = words(frame_address)
    if frame[_FRAME_EXTENSION] != 0:
        extension = words(frame[_FRAME_EXTENSION])
        if extension[_EXTENSION_TYPE] & 0xFFFFFFFF == _METADATA:
            words(extension[_EXTENSION_METADATA])[_METADATA_VERSION] = _API_VERSION
            return False
    return frame[_FRAME_STAGE] & 0xFFFFFFFF == _EXECUTE


@compiled
def num_threads(frame_address):
    """Threads of the client's pool; 1 where there is none."""
    frame = words(frame_address)
    api, answer = words(frame[_FRAME_API]), np.ones(1, np.int64)
    query = np.array([32, 0, frame[_FRAME_CONTEXT], answer.ctypes.data], np.int64)
    error = _call(api[_API_NUM_THREADS], query.ctypes.data, 0)
    if error != 0:
        request = np.array([24, 0, error], np.int64)
        _call(api[_API_DESTROY_ERROR], request.ctypes.data, 0)
    return answer[0]


# The block that the threads of one parallel loop share. It outlives the loop, because a pool that is busy elsewhere
# may start a task when the others have done all the work: the last one to leave frees it.
_NEXT, _DONE, _USERS, _COUNT, _BODY, _JOB, _BLOCK_WORDS = 0, 1, 2, 3, 4, 5, 6


@compiled
def _work(block):
    shared = words(block)
    while True:
        i = _fetch_add(block + 8 * _NEXT, 1)
        if i >= shared[_COUNT]:
            break
        _call(shared[_BODY], shared[_JOB], i)
        _fetch_add(block + 8 * _DONE, 1)


@compiled
def _leave(block):
    if _fetch_add(block + 8 * _USERS, -1) == 1:
        _free(block)


@entry
def helper(block, _):
    """What the pool's threads run."""
    _work(block)
    _leave(block)
    return 0


@compiled
def parallel_loop(frame_address, helper_address, body_address, job_address, count):
    """Runs `body(job_address, i)`, an `entry`, for every i below count on all cores; returns when all are done.

    The calling thread works too and waits for work already begun only, so that loops on one pool cannot block each
    other.
    """
    helpers = max(min(num_threads(frame_address), count) - 1, 0)
    block = _malloc(8 * _BLOCK_WORDS)
    shared = words(block)
    shared[_NEXT], shared[_DONE], shared[_USERS], shared[_COUNT] = 0, 0, helpers + 1, count
    shared[_BODY], shared[_JOB] = body_address, job_address
    frame = words(frame_address)
    request = np.array([40, 0, frame[_FRAME_CONTEXT], helper_address, block], np.int64)
    for _ in range(helpers):
        _call(words(frame[_FRAME_API])[_API_SCHEDULE], request.ctypes.data, 0)
    _work(block)
    while _fetch_add(block + 8 * _DONE, 0) < count:
        pass
    _leave(block)


_ALIVE: list = []  # what XLA holds bare addresses of


def register(name: str, run: Any, uses: Sequence[Any]) -> None:
    """Registers an entry `run(frame_address, table_address)` as the XLA:CPU custom call `name`.

    Args:
        uses: entries whose addresses `run` finds in the table, in this order.
    """
    table = np.array([used.address for used in uses], np.int64)
    run_address, table_address = run.address, table.ctypes.data

    # Not kept on disk, as it holds the addresses of this process; small, as it calls through them.
    @numba.cfunc(types.int64(types.int64))
    def handler(frame):
        if is_execution(frame):
            _call(run_address, frame, table_address)
        return 0

    _ALIVE.append((handler, run, table, uses))
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    jax.ffi.register_ffi_target(name, make(handler.address, b"xla._CUSTOM_CALL_TARGET", None), platform="cpu")
