"""Which system calls a sandbox may not make: the kernel's interfaces that no namespace divides.

Keyrings belong to the user (tickets and keys of the person's own session), vsock reaches the hypervisor whatever the
network is, and io_uring makes sockets without being asked by any filter.
"""

import errno
import functools
import os
import platform
import struct

_AF_VSOCK = 40
_ARCHITECTURES = {  # audit architecture, then the numbers of socket, add_key, request_key, keyctl, io_uring_setup
    "x86_64": (0xC000003E, 41, (248, 249, 250, 425)),
    "aarch64": (0xC00000B7, 198, (217, 218, 219, 425)),
}
_X32 = 0x40000000  # x86_64's other numbers for the same calls
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000


@functools.cache
def syscall_filter() -> bytes | None:
    """A seccomp program for `bwrap --seccomp`; None on a machine whose call numbers are not known here."""
    if platform.machine() not in _ARCHITECTURES:
        return None
    architecture, socket, refused = _ARCHITECTURES[platform.machine()]
    unknown, denied = _REFUSE | errno.ENOSYS, _REFUSE | errno.EAFNOSUPPORT
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, unknown)]
    program += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, unknown)]
    for number in refused:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, unknown)]
    program += [(_EQUAL, 0, 3, socket), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    program += [(_EQUAL, 0, 1, _AF_VSOCK), (_RETURN, 0, 0, denied), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def open_filter(program: bytes) -> int:
    """A descriptor to read `program` from; the caller closes it."""
    descriptor = os.memfd_create("syscalls")
    os.write(descriptor, program)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
