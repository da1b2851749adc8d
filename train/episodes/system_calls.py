"""The system-call filter of the sandbox, as a program for seccomp (classic BPF), which bubblewrap installs.

It refuses what would hold memory outside the limits of the one process (memory files, shared memory, message queues,
keys), further processes, namespaces and mounts, and kernel interfaces that no Python program of a model needs.

Sources: seccomp(2), and the kernel's tables of system calls for x86_64 and for the generic numbering (aarch64).
"""

from __future__ import annotations

import platform
import struct

_LOAD, _EQUAL, _AT_LEAST, _BIT_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FLAGS = 0, 4, 16  # offsets in seccomp's data: the call, its table, the first argument
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x10000
_X32 = 0x40000000
_CLONE3 = 435
_EVERYWHERE = (425, 428, 429, 430, 432, 447)  # io_uring_setup, open_tree, move_mount, fsopen, fsmount, memfd_secret

_MACHINES = {
    "x86_64": (
        0xC000003E,
        56,
        {
            "fork": 57, "vfork": 58, "memfd_create": 319, "shmget": 29, "shmat": 30, "msgget": 68, "semget": 64,
            "mq_open": 240, "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155,
            "chroot": 161, "userfaultfd": 323, "bpf": 321, "perf_event_open": 298, "fanotify_init": 300,
            "add_key": 248, "request_key": 249, "keyctl": 250, "ptrace": 101, "process_vm_readv": 310,
            "process_vm_writev": 311,
        },
    ),
    "aarch64": (
        0xC00000B7,
        220,
        {
            "memfd_create": 279, "shmget": 194, "shmat": 196, "msgget": 186, "semget": 190, "mq_open": 180,
            "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
            "userfaultfd": 282, "bpf": 280, "perf_event_open": 241, "fanotify_init": 262, "add_key": 217,
            "request_key": 218, "keyctl": 219, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
        },
    ),
}  # fmt: skip
"""Of a processor: its table's name for the kernel, `clone`, and the calls that are refused."""


def filter_program(machine: str | None = None) -> bytes | None:
    """The program for a processor (None: this one); None for one whose calls are not known here."""
    known = _MACHINES.get(machine or platform.machine())
    if known is None:
        return None
    architecture, clone, refused = known
    program = [_op(_LOAD, _ARCHITECTURE), _op(_EQUAL, architecture, 1, 0), _error(_EPERM)]
    program += [_op(_LOAD, _NUMBER), _op(_AT_LEAST, _X32, 0, 1), _error(_EPERM)]
    for number in (*refused.values(), *_EVERYWHERE):
        program += [_op(_EQUAL, number, 0, 1), _error(_EPERM)]
    # Its flags are in memory, where no filter can look; without it, threads are made by `clone`.
    program += [_op(_EQUAL, _CLONE3, 0, 1), _error(_ENOSYS)]
    program += [_op(_EQUAL, clone, 0, 3), _op(_LOAD, _FLAGS), _op(_BIT_SET, _CLONE_THREAD, 1, 0), _error(_EPERM)]
    return b"".join([*program, _op(_RETURN, _ALLOW)])


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _error(number: int) -> bytes:
    return _op(_RETURN, _ERRNO | number)
